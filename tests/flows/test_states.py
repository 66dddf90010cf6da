"""The final states of the flows and of their tasks: complete, partial or failed, and why."""

from __future__ import annotations

import asyncio
import logging
import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from prefect.client.schemas.objects import State
from prefect.states import Failed

from imbrace_flows.backfill import export_shard
from imbrace_flows.blocks import Connection
from imbrace_flows.compact import compact_lake_tables
from imbrace_flows.observer import Observer, RunResult, current_observer
from imbrace_flows.params import CompactParams, ShardParams, VerifyParams
from imbrace_flows.pipeline import _final_state, failed_early
from imbrace_flows.report import compaction_markdown
from imbrace_flows.verify import verify_lake
from imbrace_lake.errors import BadRequest, StoreError, StoreUnavailable, TokenRejected, UsageError
from imbrace_lake.export.run import RunContext, RunSummary
from imbrace_lake.tables.report import TableReport
from imbrace_sandbox import Sandbox, SandboxOptions
from imbrace_tasks.export import export_conversations_chunk
from imbrace_tasks.retry import is_transient
from tests.core.test_runs import settings_for
from tests.flows.offline import Offline, plainly
from tests.gateways import open_run

REJECTED = TokenRejected("/conversations/c/messages", "the gateway does not accept the token", "-")


@pytest.fixture
def box() -> Iterator[Sandbox]:
    """Three conversations of one message."""
    with Sandbox(SandboxOptions(conversations=0)) as started:
        for number in range(3):
            started.append(started.put([], phone=f"+88691142597{number}"), 1)
        yield started


@pytest.fixture
def offline(box: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Offline:
    """Runs without a server."""
    return Offline(box, tmp_path / "lake", monkeypatch)


@pytest.mark.parametrize(("broken", "name"), [(0, "Completed"), (1, "Partial"), (3, "Failed")])
def test_the_state_of_a_run_shows_whether_all_conversations_or_some_were_exported(
    offline: Offline, box: Sandbox, broken: int, name: str
) -> None:
    for conversation_id in [*box.conversations][:broken]:
        box.break_conversation(conversation_id, "400")

    state = offline.run("run_1")

    assert state.name == name
    assert state.is_completed() == (name == "Completed")
    assert state.is_failed() == (name != "Completed")
    assert offline.outcomes("run_1") == +Counter(complete=3 - broken, failed=broken)


@pytest.mark.parametrize("of_deployment", [True, False])
def test_a_run_of_a_deployment_that_cannot_begin_says_why_in_one_line_of_its_log(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, *, of_deployment: bool
) -> None:
    monkeypatch.setattr("imbrace_flows.pipeline.is_deployment_run", lambda: of_deployment)

    with caplog.at_level(logging.INFO):
        state = failed_early(UsageError("a.csv does not exist"))

    assert (state.is_failed(), state.message) == (True, "a.csv does not exist")
    assert [one.getMessage() for one in caplog.records] == ["a.csv does not exist"] * of_deployment


@pytest.mark.parametrize("of_deployment", [True, False])
def test_the_message_of_a_deployments_run_has_what_no_terminal_shows(
    monkeypatch: pytest.MonkeyPatch, *, of_deployment: bool
) -> None:
    monkeypatch.setattr("imbrace_flows.pipeline.is_deployment_run", lambda: of_deployment)
    summary = RunSummary("run_1", "org_1", "./lake", datetime(2026, 1, 1, tzinfo=UTC))
    summary.status, summary.reason = "failed", "the gateway does not accept the token"
    summary.is_new_lake, summary.remedy = True, "Save a valid token."

    message = _final_state(RunResult(summary)).message

    more = "; made a new lake at ./lake. Save a valid token."
    assert message == "the gateway does not accept the token" + more * of_deployment


def test_a_cancelled_shard_refers_to_its_run() -> None:
    summary = RunSummary("run_2", "org_1", "./lake", datetime(2026, 1, 1, tzinfo=UTC), "cancelled")
    summary.parent_run_id, summary.is_backfill, summary.totals.found = "run_1", True, 2
    summary.causes = {"Look.": 1}

    async def end() -> State[Any]:
        return _final_state(RunResult(summary))

    message = asyncio.run(end()).message

    assert message == "Cancelled. The page of run run_1 shows how to export the rest."


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("by_caller", [True, False])
def test_a_shard_that_is_cancelled_before_it_opens_its_lake_refers_to_its_run(*, by_caller: bool) -> None:
    async def end() -> str:
        observer = Observer()
        current_observer.set(observer)
        task = asyncio.current_task()
        assert task is not None
        # Its worker ends the task itself.
        cancel = observer.cancellation.request if by_caller else task.cancel
        asyncio.get_running_loop().call_later(0.1, cancel)
        try:
            state = await export_shard.fn(ShardParams(conversations="list", parent_run="run_1"))
        except asyncio.CancelledError as exc:
            return str(exc)
        return str(state.message)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("imbrace_flows.backfill.connect", lambda *given, **settings: None)
        patch.setattr("imbrace_flows.backfill.read_conversations", lambda *given: asyncio.sleep(60))
        message = asyncio.run(end())

    assert message == "Cancelled. The page of run run_1 shows how to export the rest."


def test_the_message_of_a_complete_run_names_what_the_gateway_does_not_have() -> None:
    summary = RunSummary("run_1", "org_1", "./lake", datetime(2026, 1, 1, tzinfo=UTC))
    summary.status, summary.totals.conversations = "complete", {"complete": 9, "gone": 1}

    message = _final_state(RunResult(summary)).message

    assert message == (
        "every conversation is complete, except for 1 conversation that the gateway does not have"
    )
    summary.reason = "of January: nothing is proven about other messages"
    assert _final_state(RunResult(summary)).message == summary.reason


@pytest.mark.parametrize("step", ["resolve.resolve_numbers", "export.export_chunk"])
def test_after_a_fatal_error_no_further_task_starts_and_the_run_fails_with_it(
    offline: Offline, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    calls = []

    async def fail(*arguments: object, **options: object) -> None:
        calls.append(step)
        raise REJECTED

    monkeypatch.setattr(f"imbrace_tasks.{step}", fail)
    monkeypatch.setattr("imbrace_flows.pipeline.SMALLEST_SLICE", 1)
    loading = []
    load = RunContext.load_prior_state

    async def load_prior_state(run: RunContext, job: str) -> None:
        loading.append(run)
        await load(run, job)

    monkeypatch.setattr(RunContext, "load_prior_state", load_prior_state)

    state = offline.run("run_1", chunk_size=1, chunks_in_flight=1)

    assert len(calls) == 1
    assert (state.is_failed(), state.name) == (True, "Failed")
    assert (state.message or "").startswith(str(REJECTED))
    assert bool(loading) == (step == "export.export_chunk")


def test_the_reason_of_conversations_that_a_failed_task_did_not_reach_is_its_error(
    offline: Offline, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*arguments: object, **options: object) -> None:
        raise StoreError("the disk is full")

    monkeypatch.setattr("imbrace_tasks.export.export_chunk", fail)

    state = offline.run("run_1")

    assert state.is_failed()
    assert {row["reason"] for row in offline.rows("conversations")} == {"not reached: the disk is full"}


@pytest.mark.parametrize("is_broken", [True, False])
def test_a_chunk_with_a_dead_letter_is_a_failed_task(box: Sandbox, tmp_path: Path, is_broken: bool) -> None:
    ids = [*box.conversations]
    if is_broken:
        box.break_conversation(ids[0], "400")

    async def work() -> State[Any]:
        async with open_run(settings_for(box, tmp_path), "run_1") as run:
            return await export_conversations_chunk.fn(run, "chunk", ids)

    state = asyncio.run(work())

    assert state.is_failed() == is_broken
    assert state.message == ("2 complete, 1 failed" if is_broken else "3 complete")


@pytest.mark.parametrize(
    ("data", "is_retried"),
    [
        (StoreUnavailable("for a while"), True),
        (BadRequest("/path", "rejected", "-"), False),
        (REJECTED, False),
        (OSError(), False),
        (None, False),
    ],
)
def test_a_task_is_retried_only_after_an_error_that_passes(data: object, is_retried: bool) -> None:
    assert is_transient(None, None, Failed(data=data)) == is_retried  # type: ignore[arg-type]


# -- verification ---------------------------------------------------------------------------------


def verify(offline: Offline, params: VerifyParams, **given: object) -> State[Any]:
    async def publish(*arguments: object) -> None:
        pass

    settings = settings_for(offline.box, offline.lake, request_limit="").model_copy(update=given)
    patch = offline.monkeypatch.setattr
    patch("imbrace_flows.verify.connect", lambda *blocks: Connection(settings))
    patch("imbrace_flows.verify.with_retries", lambda task, settings: plainly(task))
    patch("imbrace_flows.verify.publish_verification", publish)
    return asyncio.run(verify_lake.fn(params))


@pytest.mark.parametrize("is_damaged", [True, False])
def test_a_verification_that_finds_a_difference_fails(offline: Offline, is_damaged: bool) -> None:
    offline.run("run_1")
    if is_damaged:
        part = next(offline.lake.rglob("part-*.parquet"))
        part.write_bytes(part.read_bytes()[:-1])

    state = verify(offline, VerifyParams())

    assert state.is_failed() == is_damaged
    assert state.name == ("Differs" if is_damaged else "Completed")


def test_a_verification_of_counts_of_another_organization_only_fails(offline: Offline) -> None:
    offline.run("run_1")

    state = verify(offline, VerifyParams(counts=True), organization="org_beta")

    assert state.is_failed()
    assert "has no proven conversation of org_beta, but 3 of org_sandbox" in str(state.message)


@pytest.mark.parametrize("step", ["verify_objects", "verify_counts"])
def test_a_verification_of_which_a_task_fails_fails_with_its_error(
    offline: Offline, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    async def fail(*arguments: object, **options: object) -> None:
        raise StoreError("the disk fails")

    offline.run("run_1")
    monkeypatch.setattr(f"imbrace_tasks.verify.{step}", fail)

    state = verify(offline, VerifyParams(counts=True))

    assert state.is_failed()
    assert "the disk fails" in (state.message or "")


# -- compaction -----------------------------------------------------------------------------------


def compact(offline: Offline, params: CompactParams) -> tuple[State[Any], str]:
    """Run the flow `compact-tables`; return its state and its summary."""
    pages: list[str] = []

    async def publish(lake: str, reports: list[TableReport]) -> None:
        pages.append(compaction_markdown(lake, reports))

    settings = settings_for(offline.box, offline.lake, request_limit="")
    patch = offline.monkeypatch.setattr
    patch("imbrace_flows.compact.connect", lambda *blocks: Connection(settings))
    patch("imbrace_flows.compact.with_retries", lambda task, settings: plainly(task))
    patch("imbrace_flows.compact.publish_compaction", publish)
    return asyncio.run(compact_lake_tables.fn(params)), "".join(pages)


def test_a_compaction_brings_the_tables_up_to_date(offline: Offline) -> None:
    offline.run("run_1")

    planned, plan = compact(offline, CompactParams(dry_run=True))
    is_dry = not (offline.lake / "tables").exists()
    state, page = compact(offline, CompactParams())

    assert is_dry
    assert (planned.name, state.name) == ("Completed", "Completed")
    assert plan.startswith("# 📋 Dry run")
    assert page.startswith("# ✅ Up to date")
    assert "\n| `runs` | 1 | 1 | " in page
    assert "rows now" in plan
    assert "rows now" not in page
    assert len(page.splitlines()) < 30
    assert "rows in 1 file" in (state.message or "")


def test_a_compaction_without_the_package_is_skipped(
    offline: Offline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "deltalake", None)

    state, _ = compact(offline, CompactParams())

    assert (state.is_completed(), state.name) == (True, "Skipped")
    assert "imbrace-lake[tables]" in (state.message or "")


def test_a_compaction_that_finds_a_difference_fails_and_names_it(offline: Offline) -> None:
    offline.run("run_1")
    compact(offline, CompactParams())
    for path in (offline.lake / "tables/messages").glob("*.parquet"):
        path.unlink()
    shutil.rmtree(next(offline.lake.glob("messages/*/*")))

    state, _ = compact(offline, CompactParams())

    assert state.is_failed()
    assert "is missing" in (state.message or "")
