"""Commands on a lake that is empty or does not exist: one sentence, and no empty table."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from imbrace_lake.lake.lake import open_lake
from imbrace_sandbox import Sandbox
from tests.cli.conftest import Run


@pytest.fixture
def empty(settings: dict[str, str]) -> str:
    """A lake without any run."""

    async def make() -> None:
        async with open_lake(settings["IMBRACE_LAKE"], now=datetime.now(UTC)):
            pass

    asyncio.run(make())
    return settings["IMBRACE_LAKE"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["freshness"],
        ["freshness", "--json"],
        ["verify"],
        ["verify", "--counts"],
        ["repair"],
        ["repair", "--apply"],
        ["compact"],
        ["compact", "--dry-run"],
        ["sql", "SELECT 1 FROM messages"],
        ["new-key"],
        ["export", "--rerun", "3f2504e0-4f89-11d3-9a0c-0305e82c3301"],
        ["backfill", "--rerun", "3f2504e0-4f89-11d3-9a0c-0305e82c3301"],
        ["backfill", "--everything"],
        ["backfill", "--everything", "--new-only", "--budget", "5"],
    ],
)
def test_a_lake_that_does_not_exist_is_a_failure_in_one_sentence_and_is_not_created(
    arguments: list[str], settings: dict[str, str], run: Run
) -> None:
    result = run(*arguments)

    assert (result.code, result.out) == (1, "")
    assert result.err.startswith("error: there is no lake at ")
    assert len(result.err.splitlines()) == 1
    assert not Path(settings["IMBRACE_LAKE"]).exists()


@pytest.mark.parametrize(
    ("arguments", "code"), [(["freshness"], 0), (["freshness", "--stale-hours", "1"], 3)]
)
def test_the_freshness_of_an_empty_lake_is_one_sentence_and_stale(
    arguments: list[str], code: int, empty: str, run: Run
) -> None:
    result = run(*arguments)

    assert (result.code, result.err) == (code, "")
    assert result.out.startswith(f"the lake at {empty} has no conversation of org_")
    assert len(result.out.splitlines()) == 1


def test_programs_get_an_empty_list(empty: str, run: Run) -> None:
    result = run("freshness", "--json", "--stale-hours", "1")

    found = json.loads(result.out)
    assert (result.code, found["stale"], found["conversations"]) == (3, 0, [])


@pytest.mark.parametrize("arguments", [["verify"], ["verify", "--counts"]])
def test_the_verification_of_an_empty_lake_is_one_sentence(
    arguments: list[str], empty: str, run: Run
) -> None:
    result = run(*arguments)

    assert (result.code, result.out) == (0, "")
    assert result.err == f"the lake at {empty} has no conversation yet, so there is nothing to verify\n"


def test_check_and_plan_describe_the_lake(empty: str, run: Run, box: Sandbox) -> None:
    checked = run("check")
    planned = run("plan", *box.phones)

    assert checked.code == planned.code == 0
    assert "ledgers: the lake has no conversation of this organization yet: export into it" in checked.out
    assert f"{empty} (has none of these conversations yet)" in planned.out
