"""The events and artifacts of flows on a real Prefect server."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import subprocess
import sys
import time
from base64 import b64decode
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from imbrace_cli.local_server import LocalServer
from imbrace_lake.errors import BadRequest, TokenRejected
from imbrace_sandbox import Sandbox, SandboxOptions
from tests.cli.conftest import Run, prefect_leaks

pytestmark = [pytest.mark.usefixtures("settings", "prefect"), prefect_leaks]


def events_of(server: LocalServer, run_id: str, least: int, prefix: str = "imbrace.") -> list[dict[str, Any]]:
    """Wait for at least `least` events of a flow run, which Prefect sends in the background."""
    wanted = {
        "filter": {
            "event": {"prefix": [prefix]},
            "related": {"id": [f"prefect.flow-run.{run_id}"]},
        },
        "limit": 50,
    }
    deadline = time.monotonic() + 300
    found: list[dict[str, Any]] = []
    while len(found) < least and time.monotonic() < deadline:
        time.sleep(0.2)
        found = httpx.post(f"{server.api_url}/events/filter", json=wanted).json()["events"]
    return found


def artifacts_of(server: LocalServer, run_id: str) -> dict[str, str]:
    wanted = {"artifacts": {"flow_run_id": {"any_": [run_id]}}}
    found = httpx.post(f"{server.api_url}/artifacts/filter", json=wanted).json()
    return {one["key"]: one["data"] if isinstance(one["data"], str) else "" for one in found}


def artifact_of(server: LocalServer, run_id: str, key: str) -> dict[str, Any]:
    wanted = {"artifacts": {"flow_run_id": {"any_": [run_id]}, "key": {"any_": [key]}}}
    (found,) = httpx.post(f"{server.api_url}/artifacts/filter", json=wanted).json()
    return dict(found)


def verified(**params: Any) -> tuple[str, str, str, str]:
    """Run the flow `verify-lake`: the run's id, and type, name and message of its state."""
    from imbrace_flows.params import VerifyParams
    from imbrace_flows.verify import verify_lake

    async def run() -> Any:
        return await verify_lake(VerifyParams(**params), return_state=True)

    state = asyncio.run(run())
    return str(state.state_details.flow_run_id), state.type.value, state.name, state.message or ""


def test_the_events_of_a_run_show_its_end_its_failures_and_new_shapes(
    run: Run, box: Sandbox, phones: Path, prefect: LocalServer, workdir: Path
) -> None:
    broken = next(one for ids in box.links.values() for one in ids if box.conversations[one])
    box.break_conversation(broken, "400")

    summary = json.loads(run("export", "--phones", str(phones), "--json").out)
    run_id = summary["run_id"]
    events = {one["event"]: one for one in events_of(prefect, run_id, 3)}

    assert set(events) == {
        "imbrace.export.completed",
        "imbrace.conversation.incomplete",
        "imbrace.schema.drift",
    }
    ended = events["imbrace.export.completed"]
    assert ended["resource"]["prefect.resource.id"].startswith("imbrace.lake.")
    assert ended["payload"]["status"] == "partial"
    assert ended["payload"]["lake"] == str(workdir / "lake")
    assert ended["payload"]["totals"] == summary["totals"]
    organization = f"imbrace.organization.{box.options.organization_id}"
    assert organization in [one["prefect.resource.id"] for one in ended["related"]]
    missed = events["imbrace.conversation.incomplete"]
    assert missed["resource"]["prefect.resource.id"] == f"imbrace.conversation.{broken}"
    assert missed["payload"]["reason"] == summary["dead_letters"][0]["reason"]
    drift = events["imbrace.schema.drift"]
    assert drift["payload"]["new_shapes"] == summary["new_shapes"] != []
    assert not any(number.lstrip("+") in json.dumps(list(events.values())) for number in box.phones)
    assert summary["new_shapes"][0] in artifacts_of(prefect, run_id)["export-drift"]


@pytest.mark.parametrize(
    ("days", "words"), [(3, "the token expires in 3 days"), (-3, "the token expired on ")]
)
def test_a_run_warns_of_a_token_that_expires(
    days: int, words: str, run: Run, box: Sandbox, prefect: LocalServer
) -> None:
    day = datetime.now(UTC).date() + timedelta(days=days)
    os.environ["IMBRACE_TOKEN_EXPIRES"] = day.isoformat()

    summary = json.loads(run("export", box.phones[0], "--json").out)

    events = {one["event"]: one for one in events_of(prefect, summary["run_id"], 2)}
    assert summary["status"] == "complete"
    assert summary["token_warning"].startswith(words)
    assert summary["token_warning"] in artifacts_of(prefect, summary["run_id"])["export-summary"]
    expiring = events["imbrace.token.expiring"]
    assert expiring["payload"] == {
        "organization": box.options.organization_id,
        "expires": day.isoformat(),
        "warning": summary["token_warning"],
    }
    assert box.options.token not in json.dumps(expiring)


def test_the_tables_that_a_run_has_written_are_assets_made_from_the_organization(
    run: Run, box: Sandbox, phones: Path, prefect: LocalServer, workdir: Path
) -> None:
    summary = json.loads(run("export", "--phones", str(phones), "--json").out)

    made = events_of(prefect, summary["run_id"], 5, "prefect.asset.materialization.succeeded")
    (source,) = events_of(prefect, summary["run_id"], 1, "prefect.asset.referenced")
    root = f"file://{workdir / 'lake'}"
    rows = {one["resource"]["prefect.resource.id"]: one["payload"]["new_rows"] for one in made}
    totals = summary["totals"]
    assert rows == {
        f"{root}/runs": 1,
        f"{root}/conversations": sum(totals["conversations"].values()),
        f"{root}/messages": totals["messages_new"],
        f"{root}/phones": sum(totals["phones"].values()),
        f"{root}/shapes": len(summary["new_shapes"]),
    }
    assert {one["payload"]["run_id"] for one in made} == {summary["run_id"]}
    organization = f"imbrace://{box.options.organization_id}/conversations"
    assert source["resource"]["prefect.resource.id"] == organization
    assert all(organization in [one["prefect.resource.id"] for one in event["related"]] for event in made)


def test_resources_keep_their_ids_from_run_to_run(
    run: Run, box: Sandbox, phones: Path, prefect: LocalServer
) -> None:
    def resource() -> str:
        summary = json.loads(run("export", "--phones", str(phones), "--json").out)
        events = events_of(prefect, summary["run_id"], 1)
        ended = next(one for one in events if one["event"] == "imbrace.export.completed")
        return str(ended["resource"]["prefect.resource.id"])

    assert resource() == resource()


def test_events_report_at_most_a_hundred_conversations(
    run: Run, workdir: Path, prefect: LocalServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("imbrace_flows.events.MAX_CONVERSATIONS", 2)
    given = [argument for number in range(4) for argument in ("--conversation", f"conv_{number}")]

    summary = json.loads(run("backfill", *given, "--json").out)

    events = [one["event"] for one in events_of(prefect, summary["run_id"], 3)]
    assert summary["dead_letter_count"] == 4
    assert events.count("imbrace.conversation.incomplete") == 2


@pytest.fixture
def lake(run: Run, phones: Path, workdir: Path) -> Path:
    """Make a lake with all conversations."""
    assert run("export", "--phones", str(phones)).code == 0
    return workdir / "lake"


def test_a_sound_lake_completes_its_verification(lake: Path, box: Sandbox, prefect: LocalServer) -> None:
    run_id, kind, _, message = verified(counts=True, stale_hours=24)

    assert kind == "COMPLETED"
    assert "objects are as they were written" in message
    assert "no proof" not in message
    artifacts = artifacts_of(prefect, run_id)
    assert set(artifacts) == {"verify-summary", "freshness"}
    counted = len({one for ids in box.links.values() for one in ids})
    assert f"**Counts:** {counted} compared with the gateway" in artifacts["verify-summary"]
    assert f"| under an hour | {counted} |" in artifacts["verify-summary"]


def damage(path: Path) -> None:
    body = bytearray(path.read_bytes())
    body[len(body) // 2] ^= 0xFF
    path.write_bytes(bytes(body))


def test_differences_fail_a_verification_and_are_in_its_table_with_what_is_stale(
    lake: Path, box: Sandbox, prefect: LocalServer
) -> None:
    part = next(lake.glob("messages/**/*.parquet"))
    damage(part)
    grown = next(one for ids in box.links.values() for one in ids if box.conversations[one])
    box.append(grown, 1)

    run_id, kind, name, message = verified(counts=True, stale_hours=1e-9)

    assert (kind, name) == ("FAILED", "Differs")
    assert message.startswith("2 things differ, see the table of this run; ")
    table = artifacts_of(prefect, run_id)["verify-differences"]
    assert str(part.relative_to(lake)) in table
    assert grown in table
    (stale,) = events_of(prefect, run_id, 1)
    assert stale["event"] == "imbrace.lake.stale"
    assert stale["payload"]["conversations"] == len({one for ids in box.links.values() for one in ids})
    assert stale["payload"]["never_proven"] == 0


def test_a_long_table_of_differences_is_cut_and_reports_it(
    lake: Path, prefect: LocalServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("imbrace_flows.report.MAX_LISTED", 2)
    parts = sorted(lake.glob("messages/**/*.parquet"))[:3]
    for part in parts:
        damage(part)

    run_id, _, _, message = verified()

    assert message.startswith("3 things differ, see the table of this run; oldest proof ")
    assert len(json.loads(artifacts_of(prefect, run_id)["verify-differences"])) == 2


def test_a_verification_whose_token_is_rejected_shows_its_check_of_the_objects(
    lake: Path, prefect: LocalServer
) -> None:
    os.environ.update(IMBRACE_TOKEN="api_other")

    run_id, kind, name, message = verified(counts=True)

    assert (kind, name) == ("FAILED", "Failed")
    assert message.startswith(
        "the counts could not be compared with the gateway: the gateway does not accept"
    )
    assert TokenRejected.advice in message
    assert " objects are as they were written" in message
    page = artifacts_of(prefect, run_id)["verify-summary"]
    assert page.startswith("# ❌ Counts not compared\n\n- **Read:** ")
    assert TokenRejected.advice in page


def test_an_impossible_verification_fails_in_one_sentence(lake: Path) -> None:
    (lake / "lake.json").unlink()

    _, kind, name, message = verified(counts=True)

    assert (kind, name) == ("FAILED", "Failed")
    assert "has lost its lake.json" in message


def test_the_progress_of_a_run_ends_with_its_counts(
    run: Run, box: Sandbox, phones: Path, prefect: LocalServer
) -> None:
    summary = json.loads(run("export", "--phones", str(phones), "--json").out)

    progress = artifact_of(prefect, summary["run_id"], "export-progress")
    count, messages = sum(summary["totals"]["conversations"].values()), summary["totals"]["messages_total"]
    assert progress["data"] == 100.0
    assert progress["description"] == (
        f"{count:,} of {count:,} conversations · 0 failed · {messages:,} messages"
    )


def test_the_failures_are_shown_by_cause_with_advice_and_the_run_to_rerun(
    run: Run, box: Sandbox, phones: Path, prefect: LocalServer
) -> None:
    broken = next(one for ids in box.links.values() for one in ids if box.conversations[one])
    box.break_conversation(broken, "400")

    run_id = json.loads(run("export", "--phones", str(phones), "--json").out)["run_id"]

    page = artifact_of(prefect, run_id, "export-failures")
    assert page["type"] == "markdown"
    assert page["data"].startswith("# Not exported: 1 conversation\n")
    assert f"start `retry-failed` with this run: `{run_id}`" in page["data"]
    assert f"**What to do:** {BadRequest.advice}\n\n**Why:** the gateway rejects this request" in page["data"]
    assert f"**Which:** `{broken}`" in page["data"]
    assert "request id " in page["data"]
    assert f"`retry-failed` with this run: `{run_id}`" in artifacts_of(prefect, run_id)["export-summary"]


def test_a_thousand_conversations_are_less_than_thirty_lines_of_log_and_none_is_red(
    prefect: LocalServer,
) -> None:
    with Sandbox(SandboxOptions(conversations=1_000, messages_mean=1, messages_spread=0)) as box:
        os.environ.update(IMBRACE_GATEWAY=box.url, IMBRACE_TOKEN=box.options.token)
        numbers = Path("many.txt")
        numbers.write_text("\n".join(box.phones), encoding="utf-8")
        # Another test may have imported Prefect into this process with other settings of its loggers.
        command = [sys.executable, "-m", "imbrace_cli", "export", "--phones", str(numbers), "--json"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        summary = json.loads(done.stdout)

    wanted = {"logs": {"flow_run_id": {"any_": [summary["run_id"]]}}, "limit": 200, "sort": "TIMESTAMP_ASC"}

    def read() -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = httpx.post(f"{prefect.api_url}/logs/filter", json=wanted).json()
        return found

    deadline = time.monotonic() + 300
    # The last line of a run, which shows its state; Prefect sends logs in the background.
    while not any("Finished in state Completed" in line["message"] for line in read()[-3:]):
        assert time.monotonic() < deadline, read()
        time.sleep(0.5)
    lines = read()
    messages = [line["message"] for line in lines]
    assert summary["totals"]["conversations"]["complete"] == 1_000
    # A worker adds three.
    assert 5 <= len(lines) < 27, messages
    assert [line for line in lines if line["level"] >= logging.WARNING] == []
    assert "found: 1,000 conversations" in messages
    assert any(line.startswith("complete: 1,000 conversations found = 1,000 complete; ") for line in messages)


def test_a_backfill_of_a_typed_number_reads_the_conversations_of_that_customer(
    lake: Path, box: Sandbox, prefect: LocalServer
) -> None:
    from imbrace_flows.backfill import backfill_conversations
    from imbrace_flows.params import BackfillParams

    number, ids = next((phone, ids) for phone, ids in box.links.items() if ids)
    box.reset_stats()

    async def run() -> Any:
        params = BackfillParams(numbers=SecretStr(number))
        return await backfill_conversations(params, return_state=True)

    state = asyncio.run(run())

    assert state.name == "Completed"
    assert set(box.stats().pages) == set(ids)


def test_the_chart_of_a_run_shows_its_new_messages_and_nothing_of_a_customer(
    run: Run, box: Sandbox, phones: Path, prefect: LocalServer
) -> None:
    summary = json.loads(run("export", "--phones", str(phones), "--json").out)

    found = artifact_of(prefect, summary["run_id"], "export-picture")
    assert found["type"] == "markdown"
    svg = b64decode(found["data"].partition("](data:image/svg+xml;base64,")[2].removesuffix(")")).decode()
    assert f"{summary['totals']['messages_new']:,} new messages; a bar for every " in svg
    assert f"{summary['totals']['conversations']['complete']:,} complete" in svg
    assert not any(number.lstrip("+") in svg for number in box.phones)
    assert not any(conversation_id in svg for conversation_id in box.conversations)


def test_a_run_that_cannot_be_resumed_does_not_ask_for_approval(
    workdir: Path, box: Sandbox, prefect: LocalServer
) -> None:
    from imbrace_flows.export import export_conversations
    from imbrace_flows.params import ExportParams

    async def run() -> Any:
        params = ExportParams(numbers=SecretStr(box.phones[0]), ask_first=True)
        return await export_conversations(params, return_state=True)

    state = asyncio.run(run())

    assert state.name == "Failed"
    assert (state.message or "").startswith("only a run of a deployment can ask before it reads")
    assert not (workdir / "lake").exists()
