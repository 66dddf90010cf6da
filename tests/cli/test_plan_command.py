"""`imbrace-lake plan`: the estimate of an export, which writes nothing."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from imbrace_sandbox import Sandbox
from tests.cli.conftest import Run

pytestmark = pytest.mark.usefixtures("settings")


@pytest.mark.parametrize("watched", [False, True])
def test_a_plan_shows_numbers_requests_and_time_and_writes_nothing(
    watched: bool, run: Run, box: Sandbox, phones: Path, workdir: Path, request: pytest.FixtureRequest
) -> None:
    if watched:
        request.getfixturevalue("terminal")

    result = run("plan", "--phones", str(phones), "--requests-per-second", "20")

    new = len({one for each in box.links.values() for one in each})
    assert result.code == 0
    assert f"{new} new to the lake" in result.out
    # On a busy machine, the gateway's latency can be the limit.
    assert re.search(r"at (20|1?\d(\.\d+)?) requests per second \(", result.out), result.out
    assert "(does not exist yet: the export creates it)" in result.out
    assert result.err.count("input:") == 3
    assert [path.name for path in workdir.iterdir()] == ["phones.txt"]
    assert not (workdir.parent / "home").exists()


def test_a_plan_as_json_is_one_object(run: Run, box: Sandbox) -> None:
    number = next(phone for phone, ids in box.links.items() if not ids)

    result = run("plan", number, "--json")

    plan = json.loads(result.out)
    assert (result.code, result.err) == (0, "")
    assert plan["numbers"]["none"] == 1
    assert plan["conversations"] == 0
    assert number[1:] not in result.out


def test_a_plan_with_nothing_new_reports_it(run: Run, box: Sandbox) -> None:
    number = next(phone for phone, ids in box.links.items() if not ids)

    assert "none that are new" in run("plan", number).out


def test_a_plan_of_a_list_without_any_phone_number_fails_as_its_export_would(
    run: Run, box: Sandbox, workdir: Path
) -> None:
    (workdir / "phones.txt").write_text("12\nnot a number\n")

    result = run("plan", "--phones", "phones.txt", "--json")

    assert (result.code, result.out) == (1, "")
    assert result.err.count("input:") == 2
    assert "\nerror: nothing in the input could be read as a phone number: check the list\n" in result.err
    assert box.stats().requests == {}


@pytest.mark.parametrize("as_json", [[], ["--json"]])
@pytest.mark.parametrize(("has_conversations", "code"), [(True, 3), (False, 1)])
def test_a_plan_that_misses_numbers_ends_as_its_export_would(
    has_conversations: bool, code: int, as_json: list[str], run: Run, box: Sandbox
) -> None:
    failing, other = sorted(box.phones, key=lambda phone: bool(box.links[phone]) == has_conversations)[-2:]
    # The request of both numbers, and that of the first.
    box.fail_next("400", "400")

    result = run("plan", failing, other, *as_json)

    assert result.code == code
    assert '"error": 1' in result.out or "1 not resolved" in result.out


def test_a_plan_of_a_list_of_which_too_much_is_unreadable_is_partial(run: Run, box: Sandbox) -> None:
    assert [run("plan", box.phones[0], *invalid).code for invalid in (["12"], ["12", "13"])] == [0, 3]


@pytest.mark.parametrize("fault", ["301", "302", "307", "308"])
def test_a_plan_for_a_gateway_that_redirects_fails_and_shows_the_address(
    fault: str, run: Run, box: Sandbox
) -> None:
    box.break_conversation("links", fault)

    result = run("plan", box.phones[0])

    assert result.code == 1
    assert f"redirects with status {fault} to https://login.example.invalid/sso" in result.err
    assert box.phones[0][1:] not in result.err
    assert "not resolved" not in result.out
    assert box.stats().requests == {"links": 1}
