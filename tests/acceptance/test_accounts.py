"""However a run ends, its outcomes add up, and one rerun by its id completes the lake."""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pytest

from imbrace_cli.local_server import LocalServer
from imbrace_lake.lake.ledger_schema import OUTCOMES
from imbrace_sandbox import Sandbox, SandboxOptions
from tests.acceptance.accidents import EXCEPTIONS, SECRET
from tests.acceptance.exporter import Exporter, Outcome, linked, settings_for, write_phones
from tests.acceptance.lakes import messages_in
from tests.acceptance.runner import ACCIDENTS, BROKEN_STEP
from tests.acceptance.scale import IS_FULL
from tests.acceptance.test_privacy import everything_of_prefect
from tests.prefect_api import send

KINDS = ("fatal", "transient", "unexpected", "cancelled", "killed")
SEEDS = 100 if IS_FULL else 5
CONVERSATIONS = 1_000 if IS_FULL else 60
QUICK = {"tries": "3", "task_retries": "1", "task_retry_seconds": "0.1", "chunk_size": "25"}
# The state of a run in which each of these fails; steps that only report do not change it.
FLOW_STEPS = {
    "imbrace_flows.pipeline.read_phone_list": "Failed",
    "imbrace_flows.pipeline.check_can_shard": "Failed",
    "imbrace_tasks.resolve.resolve_numbers": "Failed",
    "imbrace_lake.export.prior.read_state": "Failed",
    "imbrace_flows.pipeline.needs_shards": "Failed",
    "imbrace_flows.pipeline.export_chunks": "Failed",
    "imbrace_lake.lake.ledger.Journal.publish": "Failed",
    "imbrace_flows.pipeline.acreate_progress_artifact": "Completed",
    "imbrace_flows.report.acreate_markdown_artifact": "Completed",
    "imbrace_flows.events.emit_event": "Completed",
    "imbrace_tasks.assets.add_asset_metadata": "Completed",
}
TRANSIENT = ("500", "500:html", "not_json", "cut_body", "short", "503", "504")

pytestmark = pytest.mark.timeout(36_000 if IS_FULL else 600)


@pytest.fixture(scope="module")
def box() -> Any:
    options = SandboxOptions(
        conversations=CONVERSATIONS, sizes=(0, 1, 60), latency_seconds=0.01, gateway_timeout_seconds=0.0
    )
    with Sandbox(options) as started:
        yield started


@pytest.fixture(scope="module")
def debugging(
    box: Sandbox, prefect_server: LocalServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Exporter]:
    """A process whose loggers write everything; each takes 3 s of CPU to start."""
    with Exporter(prefect_server, tmp_path_factory.mktemp("debugging"), is_debugging=True) as process:
        yield process
    # Python reports some exceptions at the end of a process.
    assert secrets_in(process.console.read_text(), box) == []


def secrets_in(text: str, box: Sandbox) -> list[str]:
    """What a log must not contain, and contains."""
    secrets = [SECRET, box.options.token, *(phone[1:] for phone in box.phones)]
    return [one for one in secrets if one in text]


@pytest.mark.parametrize("seed", range(SEEDS))
def test_outcomes_add_up_and_one_rerun_by_id_completes_the_lake(
    seed: int, box: Sandbox, prefect_server: LocalServer, debugging: Exporter, tmp_path: Path
) -> None:
    chance = random.Random(seed)
    kind = KINDS[seed % len(KINDS)]
    environment = settings_for(box, tmp_path / "lake", **QUICK)
    phones = write_phones(tmp_path / "phones.txt", box.phones)
    ids = sorted(linked(box))
    broken = chance.sample(ids, 5)
    earlier = len(debugging.console.read_text())

    process, is_own = debugging, kind == "killed"
    with ExitStack() as opened:
        if is_own:
            process = opened.enter_context(Exporter(prefect_server, tmp_path / "process", is_debugging=True))
        for one in broken:
            box.break_conversation(one, chance.choice(TRANSIENT))
        accidents = {ACCIDENTS: str(seed)} if kind == "unexpected" else {}
        # So slow that it is cancelled in the middle: Prefect reports a cancellation after up to ten seconds.
        rate = {"IMBRACE_REQUESTS_PER_SECOND": str(CONVERSATIONS / 20)}
        slowly = rate if kind in ("fatal", "cancelled", "killed") else {}
        process.begin({**environment, **accidents, **slowly}, phones=phones)
        run_id, outcome = _end(kind, process, prefect_server, box, tmp_path / "lake")
    box.set_options(token_expired=False)
    for one in broken:
        box.repair(one)

    rerun = debugging.run(environment, rerun=run_id)

    totals = _check_accounts(prefect_server, tmp_path / "lake", run_id, outcome)
    if kind == "fatal":
        assert totals["conversations"]["not_reached"] > 0
    assert (rerun.state_type, rerun.state_name) == ("COMPLETED", "Completed"), rerun.message
    missing = sum(totals["conversations"].get(one, 0) for one in ("incomplete", "failed", "not_reached"))
    assert rerun.totals["found"] == missing
    rows = messages_in(tmp_path / "lake")
    found = {(row["conversation_id"], row["message_id"]): json.loads(row["content"]) for row in rows}
    truth = {(each, item["_id"]): item["content"] for each in ids for item in box.truth(each)}
    assert len(rows) == len(found)
    assert found == truth
    consoles = [process.console.read_text()] if is_own else []
    for console in [*consoles, debugging.console.read_text()[earlier:]]:
        assert "DEBUG" in console
        assert secrets_in(console, box) == []


def test_an_exception_in_a_step_of_the_flow_fails_only_that_step(
    box: Sandbox, prefect_server: LocalServer, debugging: Exporter, tmp_path: Path
) -> None:
    phones = write_phones(tmp_path / "phones.txt", box.phones[:2])
    outcomes = {}

    earlier = len(debugging.console.read_text())
    for number, step in enumerate(FLOW_STEPS):
        environment = settings_for(box, tmp_path / f"lake-{number}", **QUICK)
        broken = {BROKEN_STEP: f"{step}={number % len(EXCEPTIONS)}"}
        outcomes[step] = debugging.run({**environment, **broken}, phones=phones)

    assert {step: outcome.state_name for step, outcome in outcomes.items()} == FLOW_STEPS
    for number, outcome in enumerate(outcomes.values()):
        if outcome.summary is not None and outcome.totals["found"]:
            run_id, has_event = outcome.summary["run_id"], "emit_event" not in [*FLOW_STEPS][number]
            _check_accounts(prefect_server, tmp_path / f"lake-{number}", run_id, outcome, has_event=has_event)
    console = debugging.console.read_text()[earlier:]
    assert "DEBUG" in console
    assert secrets_in(f"{console}{outcomes}", box) == []


def test_prefect_contains_no_text_of_an_exception(box: Sandbox, prefect_server: LocalServer) -> None:
    haystack = everything_of_prefect(prefect_server)

    assert b"not exported conversation=" in haystack["dump of the database"]
    secrets = [SECRET, box.options.token, *(phone[1:] for phone in box.phones)]
    assert [(folder, one) for folder, hay in haystack.items() for one in secrets if one.encode() in hay] == []


def _end(
    kind: str, process: Exporter, server: LocalServer, box: Sandbox, lake: Path
) -> tuple[str, Outcome | None]:
    """Wait for or cause the end of a run; return its id and, unless it was killed, its outcome."""
    if kind in ("transient", "unexpected"):
        outcome = process.finish()
        assert outcome.summary is not None, outcome.message
        return outcome.summary["run_id"], outcome
    run_id = _wait_until_it_adds(lake)
    if kind == "fatal":
        box.set_options(token_expired=True)
        return run_id, process.finish()
    if kind == "killed":
        process.kill()
        return run_id, None
    state = {"state": {"type": "CANCELLING", "name": "Cancelling"}, "force": True}
    send("POST", f"{server.api_url}/flow_runs/{run_id}/set_state", state)
    outcome = process.finish()
    assert outcome.state_type == "CANCELLED", outcome.message
    return run_id, outcome


def _wait_until_it_adds(lake: Path) -> str:
    while not any((lake / "messages").rglob("*.parquet")):
        time.sleep(0.05)
    (journal,) = (lake / "journal").iterdir()
    return journal.name


def _check_accounts(
    server: LocalServer, lake: Path, run_id: str, outcome: Outcome | None, *, has_event: bool = True
) -> dict[str, Any]:
    """Compare ledger, event and summary of a run; return its totals."""
    runs = ds.dataset(lake / "runs").to_table().filter(pc.field("run_id") == run_id).to_pylist()
    (row,) = runs
    totals: dict[str, Any] = json.loads(row["totals"])
    ledger = ds.dataset(lake / "conversations").to_table().filter(pc.field("run_id") == run_id)
    ids = ledger.column("conversation_id").to_pylist()
    assert len(ids) == len(set(ids)) == totals["found"] == sum(totals["conversations"].values())
    assert dict(Counter(ledger.column("status").to_pylist())) == totals["conversations"]
    assert totals["conversations"].keys() <= set(OUTCOMES)
    if has_event:
        assert _event(server, run_id)["totals"]["conversations"] == totals["conversations"]
    if outcome is not None:
        assert outcome.summary is not None
        assert outcome.totals == totals
        dead = pc.sum(ledger.column("is_dead_letter")).as_py() or 0
        assert outcome.summary["dead_letter_count"] == dead
    return totals


def _event(server: LocalServer, run_id: str) -> dict[str, Any]:
    """Return the payload of the event at the end of a run; the server records events a moment later."""
    wanted = {"filter": {"event": {"name": ["imbrace.export.completed"]}, "order": "DESC"}, "limit": 50}
    while True:
        answer = httpx.post(f"{server.api_url}/events/filter", json=wanted).raise_for_status()
        for event in answer.json()["events"]:
            if event["payload"]["run_id"] == run_id:
                payload: dict[str, Any] = event["payload"]
                return payload
        time.sleep(0.2)


@pytest.mark.parametrize(
    ("numbers", "state", "message"),
    [
        (
            "hello, +8869, 12",
            ("FAILED", "Failed"),
            "nothing in the input could be read as a phone number (entries 1, 2, 3)",
        ),
        (
            "{phone}, hello, 12",
            ("FAILED", "Partial"),
            "2 of 3 input entries could not be read (entries 2, 3)",
        ),
        (
            "{phones}, hello",
            ("COMPLETED", "Completed with unreadable input"),
            "1 of 20 input entries could not be read (entry 20)",
        ),
        ("+886933517284", ("COMPLETED", "Completed"), "no conversation was found"),
    ],
)
def test_unreadable_input_shows_in_the_state_of_the_run(
    numbers: str, state: tuple[str, str], message: str, exporter: Exporter, tmp_path: Path
) -> None:
    with Sandbox(SandboxOptions(conversations=19, sizes=(1, 1, 1))) as box:
        typed = numbers.format(phone=box.phones[0], phones=", ".join(box.phones[:19]))
        outcome = exporter.run(settings_for(box, tmp_path / "lake"), numbers=typed)

    assert (outcome.state_type, outcome.state_name) == state
    assert outcome.message == message
    assert outcome.summary is not None
    unreadable = sum(text in ("hello", "12", "+8869") for text in typed.split(", "))
    assert outcome.totals["phones"].get("invalid", 0) == len(outcome.problems) == unreadable
