"""`imbrace-lake backfill`, run in this process against a real Prefect server and a real gateway."""

from __future__ import annotations

import io
import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pytest

from imbrace_cli.local_server import LocalServer
from imbrace_sandbox import Sandbox
from tests.cli.conftest import Run, prefect_leaks

pytestmark = [pytest.mark.usefixtures("settings", "prefect"), prefect_leaks]


def texts(workdir: Path, conversation_id: str) -> dict[str, str]:
    """Return the messages of a conversation in the lake: content by id."""
    rows = ds.dataset(workdir / "lake" / "messages").to_table(
        columns=["conversation_id", "message_id", "content"]
    )
    own = rows.filter(pc.equal(rows.column("conversation_id"), conversation_id))
    return dict(zip(own.column("message_id").to_pylist(), own.column("content").to_pylist(), strict=True))


def truth(box: Sandbox, conversation_id: str, since: str = "", until: str = "9") -> dict[str, Any]:
    items = box.truth(conversation_id)
    return {item["_id"]: item["content"] for item in items if since <= item["created_at"] < until}


def parsed(contents: dict[str, str]) -> dict[str, Any]:
    return {key: json.loads(content) for key, content in contents.items()}


def of_size(box: Sandbox, least: int) -> list[str]:
    """Return the conversations of at least `least` messages."""
    return [one for one, size in box.conversations.items() if size >= least]


def test_conversations_given_by_id_are_read_completely_and_old_edits_found(
    run: Run, box: Sandbox, workdir: Path
) -> None:
    long = of_size(box, 110)[0]
    assert run("backfill", "--conversation", long).code == 0
    box.edit(long, [box.truth(long)[0]["_id"]])  # the oldest, which no look-back reaches

    assert run("backfill", "--conversation", long, "--new-only").code == 0
    assert parsed(texts(workdir, long)) != truth(box, long)

    result = run("backfill", "--conversation", long, "--json")

    assert result.code == 0
    assert json.loads(result.out)["totals"]["conversations"] == {"complete": 1}
    assert parsed(texts(workdir, long)) == truth(box, long)


def test_only_the_window_is_read(
    run: Run, box: Sandbox, workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = of_size(box, 110)[0]
    middle = box.truth(long)[60]["created_at"]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(f"{long}\n".encode())))

    result = run("backfill", "--conversations", "-", "--since", middle)

    assert result.code == 0
    assert result.out.startswith(f"complete: every message from {middle[:10]}")
    assert " on was read; nothing is proven about others\n" in result.out
    assert "  conversations  1 found: 1 changed\n" in result.out
    assert parsed(texts(workdir, long)) == truth(box, long, since=middle)
    assert len(truth(box, long, since=middle)) == 70
    assert run("backfill", "--conversation", long, "--until", middle).code == 0
    assert parsed(texts(workdir, long)) == truth(box, long)


def test_failures_of_a_window_are_reported_with_the_window_and_everything_finds_them(
    run: Run, box: Sandbox, workdir: Path, phones: Path, prefect: LocalServer
) -> None:
    never, windowed = of_size(box, 5)[:2]
    box.break_conversation(never, "400")

    partial = run("backfill", "--conversation", never, "--conversation", windowed, "--since", "2020-01-01")
    box.repair(never)
    reported = next(line for line in partial.out.splitlines() if "--rerun" in line)
    everything = run("backfill", "--everything", "--json", "--chunk-size", "1")

    assert (partial.code, everything.code) == (3, 0)
    assert "imbrace-lake backfill --since 2020-01-01 --rerun " in reported
    summary = json.loads(everything.out)
    assert summary["totals"]["conversations"] == {"complete": 2}
    for one in (never, windowed):
        assert parsed(texts(workdir, one)) == truth(box, one)
    parameters = httpx.get(f"{prefect.api_url}/flow_runs/{summary['run_id']}").json()["parameters"]["params"]
    assert (parameters["everything"], parameters["chunk_size"]) == (True, 1)


def test_times_reach_the_flow_with_their_zone_and_a_plain_date_is_midnight_in_utc(
    run: Run, box: Sandbox, prefect: LocalServer
) -> None:
    window = ("--since", "2026-01-31", "--until", "2026-02-01T08:00+08:00")

    done = run("backfill", "--conversation", of_size(box, 5)[0], *window, "--json")

    run_id = json.loads(done.out)["run_id"]
    parameters = httpx.get(f"{prefect.api_url}/flow_runs/{run_id}").json()["parameters"]["params"]
    since, until = (datetime.fromisoformat(parameters[name]) for name in ("since", "until"))
    assert since == datetime(2026, 1, 31, tzinfo=UTC)
    assert until == datetime(2026, 2, 1, tzinfo=UTC)


def test_the_failures_of_a_run_are_read_by_its_id(
    run: Run, box: Sandbox, workdir: Path, phones: Path
) -> None:
    broken = next(one for ids in box.links.values() for one in ids if box.conversations[one])
    box.break_conversation(broken, "400")
    partial = run("backfill", "--phones", str(phones), "--json")
    box.repair(broken)

    rest = run("backfill", "--rerun", json.loads(partial.out)["run_id"], "--json")

    assert (partial.code, rest.code) == (3, 0)
    assert json.loads(rest.out)["totals"]["conversations"] == {"complete": 1}
    assert parsed(texts(workdir, broken)) == truth(box, broken)


def test_a_budget_bounds_the_requests_of_a_run_over_everything(run: Run, box: Sandbox) -> None:
    assert run("backfill", *[f"--conversation={one}" for one in box.conversations]).code == 0
    box.reset_stats()

    result = run("backfill", "--everything", "--new-only", "--budget", "5", "--minutes", "10", "--json")

    assert result.code == 0
    summary = json.loads(result.out)
    assert (summary["status"], summary["totals"]["conversations"]) == ("complete", {"unchanged": 5})
    assert (summary["visits"]["visited"], summary["visits"]["requests"]) == (5, 5)
    assert box.stats().accepted == 5


@pytest.mark.parametrize("option", ["--budget=5", "--minutes=5"])
@pytest.mark.parametrize("others", [["--everything"], ["--new-only", "--conversation", "conv_1"]])
def test_a_budget_is_for_new_messages_of_everything(run: Run, option: str, others: list[str]) -> None:
    result = run("backfill", option, *others)

    assert result.code == 2
    assert "--budget and --minutes are for runs with --everything --new-only" in result.err


def test_a_mistyped_id_is_never_complete_and_leaves_nothing_to_visit(
    run: Run, box: Sandbox, phones: Path
) -> None:
    mistyped = [run("backfill", "--conversation", "nope", "--json") for _ in range(2)]
    run_id = json.loads(mistyped[0].out)["run_id"]
    mistyped.append(run("backfill", "--rerun", run_id, "--json"))
    linked = next(each[0] for each in box.links.values() if each)
    box.vanish(linked)
    exports = [run("export", "--phones", str(phones), "--json") for _ in range(2)]
    everything = run("backfill", "--everything", "--json")

    for result in mistyped:
        summary = json.loads(result.out)
        assert (result.code, summary["totals"]["conversations"]) == (1, {"failed": 1})
        assert (
            "neither the gateway nor the lake has this conversation" in summary["dead_letters"][0]["reason"]
        )
        assert summary["dead_letters"][0]["advice"].startswith("Check the id")
    assert [result.code for result in exports] == [3, 0]
    assert json.loads(exports[0].out)["totals"]["conversations"]["gone"] == 1
    assert everything.code == 0
    assert json.loads(everything.out)["totals"]["conversations"]["gone"] == 1
