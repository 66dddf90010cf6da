"""A run with shards leaves the lake that one process leaves, even if a worker dies meanwhile."""

from __future__ import annotations

import itertools
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow.dataset as ds
import pytest

from imbrace_sandbox import Sandbox
from tests.acceptance.lakes import export_with_core
from tests.acceptance.scale import IS_FULL
from tests.deployments.lakes import messages
from tests.deployments.operator import Operator, Worker

# A run and its shards are five processes, which start at the same time.
PATIENCE_SECONDS = 300.0
# Prefect takes 300 s to end a run that was cancelled while its process was starting.
LONG_PATIENCE_SECONDS = 600.0
# The columns that depend on the run that wrote a row.
WRITTEN = ["run_id", "first_seen_at", "last_changed_at"]
PROOF = ["status", "server_count", "distinct_messages", "new_messages", "content_hash", "is_dead_letter"]

pytestmark = pytest.mark.timeout(4_000)

_numbers = itertools.count(886911700000)


@dataclass(frozen=True, slots=True)
class Listed:
    """A list of numbers, and their conversations in the order of their ids."""

    phones: str
    ids: list[str]


@pytest.fixture
def twelve(box: Sandbox, tmp_path: Path) -> Iterator[Listed]:
    """Twelve conversations that no run has seen, of 1 to 12 messages."""
    numbers = [f"+{next(_numbers)}" for _ in range(12)]
    ids = [box.put([], phone=number) for number in numbers]
    for count, conversation_id in enumerate(ids, 1):
        box.append(conversation_id, count)
    path = tmp_path / "numbers.txt"
    path.write_text("\n".join(numbers), encoding="utf-8")
    yield Listed(str(path), sorted(ids))
    for conversation_id in ids:
        box.repair(conversation_id)


# The long tests kill workers of their own.
@pytest.fixture(scope="function" if IS_FULL else "module")
def workers(deployed: Operator) -> Iterator[list[Worker]]:
    """Two workers, which together have slots for a run and three of its shards."""
    bare = Operator(deployed.server, deployed.folder)
    with ExitStack() as opened:
        yield [opened.enter_context(Worker(bare, "imbrace", "--limit", "2")) for _ in range(2)]


def wait(operator: Operator, run_id: str) -> dict[str, Any]:
    """Wait for the end of a run and return its last state; a crash is not the end."""

    def state() -> dict[str, Any] | None:
        found = operator.flow_run(run_id)["state"]
        return dict(found) if found["type"] in ("COMPLETED", "FAILED", "CANCELLED") else None

    return operator.until(state, "the end of the run", PATIENCE_SECONDS)


def shards_of(operator: Operator, run_id: str) -> list[dict[str, Any]]:
    """The runs of the shards of a run, by their numbers."""
    body = {"flow_runs": {"tags": {"all_": [f"imbrace-run-{run_id}"]}}}
    found = operator.ask("POST", "/flow_runs/filter", body)
    return sorted(found, key=lambda run: str(run["parameters"]["params"]["conversations"]))


def states_of(operator: Operator, run_id: str) -> list[str]:
    """The names of the states of a run's shards."""
    return [run["state"]["name"] for run in shards_of(operator, run_id)]


def artifacts(operator: Operator, run_id: str) -> set[str]:
    """The keys of the artifacts of a run."""
    body = {"artifacts": {"flow_run_id": {"any_": [run_id]}}}
    return {found["key"] for found in operator.ask("POST", "/artifacts/filter", body)}


def rows(lake: Path, listed: Listed) -> list[dict[str, Any]]:
    """The rows of some conversations, without the columns that depend on the run."""
    table = ds.dataset(lake / "messages").to_table(filter=ds.field("conversation_id").isin(listed.ids))
    found = table.drop_columns(WRITTEN).to_pylist()
    return sorted(found, key=lambda row: (row["conversation_id"], row["message_id"]))


def ledger(lake: Path, name: str) -> list[dict[str, Any]]:
    """The rows of a ledger."""
    found: list[dict[str, Any]] = ds.dataset(lake / name).to_table().to_pylist()
    return found


def proofs(lake: Path, listed: Listed) -> dict[str, list[Any]]:
    """The first proof of each conversation in the ledger; an hourly run may have added others.

    A killed attempt of a run leaves rows without a proof, about conversations that it did not reach.
    """
    rows = sorted(ledger(lake, "conversations"), key=lambda row: row["finished_at"], reverse=True)
    return {
        row["conversation_id"]: [row[name] for name in PROOF]
        for row in rows
        if row["conversation_id"] in listed.ids and row["status"] != "not_reached"
    }


def test_shards_make_the_lake_of_one_process_and_one_report(
    deployed: Operator, workers: list[Worker], twelve: Listed, box: Sandbox, lake: Path, tmp_path: Path
) -> None:
    alone = tmp_path / "alone"
    export_with_core(box, alone, twelve.phones)
    assert not (alone / "shards").exists()

    count = 4 if IS_FULL else 2
    run_id = deployed.start("export", phones=twelve.phones, shard_size=12 // count)
    state = wait(deployed, run_id)

    assert state["name"] == "Completed", f"{state['message']}\n{workers[0].log.read_text()}"
    assert states_of(deployed, run_id) == ["Completed"] * count
    assert rows(lake, twelve) == rows(alone, twelve)
    assert proofs(lake, twelve) == proofs(alone, twelve)
    assert not [path for path in lake.rglob("shards/**/*") if path.is_file()]
    name = deployed.flow_run(run_id)["name"]
    shards = shards_of(deployed, run_id)
    assert [run["name"] for run in shards] == [
        f"{name} shard {number} of {count}" for number in range(1, count + 1)
    ]
    assert {"export-progress", "export-summary", "export-picture"} <= artifacts(deployed, run_id)
    assert [artifacts(deployed, run["id"]) for run in shards] == [{"export-progress"}] * count
    events = {"filter": {"event": {"name": ["imbrace.export.completed"]}}, "limit": 50}
    ids = {run_id, *(run["id"] for run in shards)}

    def reported() -> list[dict[str, Any]] | None:
        payloads = [event["payload"] for event in deployed.ask("POST", "/events/filter", events)["events"]]
        return [payload for payload in payloads if payload["run_id"] in ids] or None

    # Events arrive with a delay; the event of the run would arrive after those of its shards.
    (own,) = deployed.until(reported, "the event")
    assert own["run_id"] == run_id
    assert own["totals"]["conversations"] == {"complete": 12}
    assert own["totals"]["messages_new"] == sum(range(1, 13))


def test_failures_in_shards_are_recorded_once_and_exported_by_a_rerun_of_their_run(
    deployed: Operator, workers: list[Worker], twelve: Listed, box: Sandbox, lake: Path
) -> None:
    broken = {twelve.ids[0], twelve.ids[11]}
    for conversation_id in broken:
        box.break_conversation(conversation_id, "400")

    run_id = deployed.start("export", phones=twelve.phones, shard_size=6)
    state = wait(deployed, run_id)

    assert (state["name"], state["message"]) == (
        "Partial",
        "2 conversations failed; the others are in the lake",
    )
    assert states_of(deployed, run_id) == ["Partial"] * 2
    assert "export-failures" in artifacts(deployed, run_id)
    ids = {run["id"] for run in shards_of(deployed, run_id)}
    assert {row["run_id"] for row in ledger(lake, "runs") if row["parent_run_id"] == run_id} == ids
    dead = [
        row
        for row in ledger(lake, "conversations")
        if row["run_id"] in {run_id, *ids} and row["is_dead_letter"]
    ]
    assert sorted(row["conversation_id"] for row in dead) == sorted(broken)
    for conversation_id in broken:
        box.repair(conversation_id)
    state = wait(deployed, deployed.start("retry-failed", rerun=run_id))
    assert state["name"] == "Completed", state["message"]
    assert set(twelve.ids) <= messages(lake).keys()


@pytest.mark.skipif(not IS_FULL, reason="waits for minutes: IMBRACE_ACCEPTANCE=full")
@pytest.mark.parametrize("killed", ["the worker of the run", "the other worker"])
def test_a_worker_that_is_killed_changes_nothing_in_the_result(
    impatient: Operator, twelve: Listed, box: Sandbox, lake: Path, killed: str
) -> None:
    stuck = twelve.ids[2::3]
    for conversation_id in stuck:
        box.break_conversation(conversation_id, "stall")
    bare = Operator(impatient.server, impatient.folder)
    box.reset_stats()
    run_id = impatient.start("export", phones=twelve.phones, shard_size=3)
    with ExitStack() as opened:
        first = opened.enter_context(Worker(bare, "imbrace", "--limit", "3"))
        impatient.until(lambda: "Running" in impatient.states(run_id) or None, "the run")
        second = opened.enter_context(Worker(bare, "imbrace", "--limit", "3"))
        impatient.until(
            lambda: all(box.stats().pages[one] for one in stuck) or None,
            "all shards to be stuck",
            PATIENCE_SECONDS,
        )
        quick = set(twelve.ids) - set(stuck)
        impatient.until(lambda: quick <= messages(lake).keys() or None, "what is answered", PATIENCE_SECONDS)
        before = [run["id"] for run in shards_of(impatient, run_id)]

        (first if killed == "the worker of the run" else second).kill()
        for conversation_id in stuck:
            box.repair(conversation_id)
        with Worker(bare, "imbrace"):
            state = wait(impatient, run_id)

    assert state["name"] == "Completed", state["message"]
    assert [run["id"] for run in shards_of(impatient, run_id)] == before
    assert states_of(impatient, run_id) == ["Completed"] * 4
    restarted = [one for one in (run_id, *before) if "Restarting" in impatient.states(one)]
    assert (run_id in restarted) == (killed == "the worker of the run")
    assert restarted
    for conversation_id in twelve.ids:
        truth = [item["_id"] for item in box.truth(conversation_id)]
        found = [row["message_id"] for row in rows(lake, twelve) if row["conversation_id"] == conversation_id]
        assert sorted(found) == sorted(truth)
        assert proofs(lake, twelve)[conversation_id][1:3] == [len(truth)] * 2
    # The killed attempt may have left a row.
    ends = sorted(
        (row["finished_at"], row["totals"]) for row in ledger(lake, "runs") if row["run_id"] == run_id
    )
    totals = ends[-1][1]
    # Messages that were published just before the kill, but not yet in the journal, are not new any more.
    assert f'"messages_total": {sum(range(1, 13))},' in totals


def start_stuck(operator: Operator, box: Sandbox, twelve: Listed) -> str:
    """Start a run of six shards, three of which run and never end; the others wait for them."""
    for conversation_id in twelve.ids:
        box.break_conversation(conversation_id, "stall")
    box.reset_stats()
    run_id = operator.start("export", phones=twelve.phones, shard_size=2)
    operator.until(
        lambda: sum(box.stats().pages[one] > 0 for one in twelve.ids) == 6 or None,
        "three stuck shards",
        PATIENCE_SECONDS,
    )
    # On a busy machine, the first shards are stuck before the last ones are started.
    operator.until(
        lambda: len(shards_of(operator, run_id)) == 6 or None, "the runs of six shards", PATIENCE_SECONDS
    )
    assert states_of(operator, run_id).count("Running") == 3
    return run_id


def test_a_cancelled_run_cancels_its_shards_including_those_that_wait(
    deployed: Operator,
    workers: list[Worker],
    twelve: Listed,
    box: Sandbox,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run_id = start_stuck(deployed, box, twelve)

    deployed.ask("POST", f"/flow_runs/{run_id}/set_state", {"state": {"type": "CANCELLING"}})

    def all_ends() -> list[datetime] | None:
        runs = [deployed.flow_run(run_id), *shards_of(deployed, run_id)]
        ends = [datetime.fromisoformat(run["end_time"]) for run in runs if run["end_time"]]
        return ends if len(ends) == 7 else None

    ends = deployed.until(all_ends, "the end of the run and its six shards", PATIENCE_SECONDS)
    states = deployed.ask("GET", f"/flow_run_states/?flow_run_id={run_id}")
    asked = next(datetime.fromisoformat(one["timestamp"]) for one in states if one["name"] == "Cancelling")
    with capsys.disabled():
        seconds = [round((end - asked).total_seconds(), 1) for end in ends]
        sys.stdout.write(f" cancelled after {seconds[0]} s, its shards after {sorted(seconds[1:])} s ")
    assert deployed.flow_run(run_id)["state"]["name"] == "Cancelled"
    assert states_of(deployed, run_id) == ["Cancelled"] * 6


@pytest.mark.skipif(not IS_FULL, reason="waits for minutes: IMBRACE_ACCEPTANCE=full")
@pytest.mark.usefixtures("workers")
def test_shards_end_with_a_run_that_was_killed_before_it_could_cancel_them(
    deployed: Operator, twelve: Listed, box: Sandbox
) -> None:
    run_id = start_stuck(deployed, box, twelve)
    pid = int(deployed.flow_run(run_id)["infrastructure_pid"].rpartition(":")[2])

    os.kill(pid, signal.SIGSTOP)
    deployed.ask("POST", f"/flow_runs/{run_id}/set_state", {"state": {"type": "CANCELLED"}, "force": True})
    os.kill(pid, signal.SIGKILL)

    deployed.until(
        lambda: states_of(deployed, run_id) == ["Cancelled"] * 6 or None,
        "the end of all shards, including those that had not begun",
        LONG_PATIENCE_SECONDS,
    )
    assert deployed.flow_run(run_id)["state"]["name"] == "Cancelled"
