"""Any exception in a step of the flow: the run ends with its accounts and reveals nothing confidential."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from prefect.client.schemas.objects import StateType
from prefect.exceptions import CancelledRun, FailedRun, TerminationSignal
from prefect.states import aget_state_exception

from imbrace_flows.cancellation import cancelled_with
from imbrace_flows.observer import run_result
from imbrace_flows.params import VerifyParams
from imbrace_flows.verify import verify_lake
from imbrace_lake.errors import StoreError
from imbrace_lake.export.chunk import export_chunk
from imbrace_lake.export.run import close_run
from imbrace_sandbox import Sandbox, SandboxOptions
from tests.acceptance.accidents import EXCEPTIONS, SECRET
from tests.acceptance.scale import IS_FULL
from tests.flows.offline import Offline, Server

pytestmark = pytest.mark.slow

CONVERSATIONS = 4
# An exception before anything is found leaves nothing to account for.
BEGINNING = (
    "imbrace_flows.pipeline.read_phone_list",
    "imbrace_flows.pipeline.open_gateway",
    "imbrace_lake.export.run.open_lake",
)
# Nothing is found, because no number could be resolved; the numbers are accounted for.
RESOLVING = ("imbrace_tasks.resolve.resolve_numbers",)
# All conversations are found, and none is reached.
READING = (
    "imbrace_lake.export.run.recover_dead_runs",
    "imbrace_lake.export.prior.read_state",
    "imbrace_flows.pipeline.needs_shards",
    "imbrace_flows.pipeline.export_chunks",
    "imbrace_tasks.export.export_chunk",
)
# The accounts of the run are left to another run.
CLOSING = (
    "imbrace_lake.export.recovery.Heartbeat.stop",
    "imbrace_lake.lake.ledger.Journal.publish",
    "imbrace_lake.lake.ledger.Journal.finish",
)
# The export is complete; only its display or its clean-up fails.
SHOWING = (
    "imbrace_flows.report.acreate_markdown_artifact",
    "imbrace_flows.report.chart_markdown",
    "imbrace_flows.pipeline.acreate_progress_artifact",
    "imbrace_flows.pipeline.aupdate_progress_artifact",
    "imbrace_lake.export.progress.ProgressLine.describe_end",
    "imbrace_flows.events.emit_event",
    "imbrace_flows.pipeline.record_tables",
    "imbrace_lake.lake.ledger.Journal.drop",
    "imbrace_lake.export.run.write_checkpoint",
)
# Loading them takes as long as everything else in a run of four conversations.
# Each of these behaves like one of the others here.
LEFT_OUT = {"RuntimeError", "SSLError", "AssertionError", "StopAsyncIteration"}
NUMBERS = [place for place, make in enumerate(EXCEPTIONS) if type(make()).__name__ not in LEFT_OUT]
each_exception = pytest.mark.parametrize("number", NUMBERS)


def each_step_and_exception(steps: Sequence[str]) -> pytest.MarkDecorator:
    """Combine each step with a quarter of the exceptions, by turns; in full runs with all."""
    cases = [
        (step, number)
        for first, step in enumerate(steps)
        for number in (NUMBERS if IS_FULL else NUMBERS[first % 4 :: 4])
    ]
    return pytest.mark.parametrize(("step", "number"), cases)


@pytest.fixture(scope="module")
def box() -> Iterator[Sandbox]:
    """Conversations that no test changes."""
    with Sandbox(SandboxOptions(conversations=0)) as started:
        for number in range(CONVERSATIONS):
            one = started.put([], phone=f"+88691142597{number}")
            started.append(one, 1)
        yield started


@pytest.fixture
def offline(
    box: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> Offline:
    """Runs without a server, each in a process that has ended when the next begins."""
    monkeypatch.setattr("imbrace_lake.export.recovery._is_running", lambda pid: False)
    caplog.set_level(logging.DEBUG)
    return Offline(box, tmp_path / "lake", monkeypatch)


def break_step(offline: Offline, step: str, number: int) -> Any:
    """Run an export in which a step raises an exception each time, and return its state."""

    def fail(*arguments: object, **options: object) -> None:
        raise EXCEPTIONS[number]()

    with offline.monkeypatch.context() as patch:
        patch.setattr(step, fail)
        return offline.run("run_1")


def check_secrets(offline: Offline, state: Any, log: str) -> None:
    """Make sure that only the class of an exception has left the run."""
    secrets = [SECRET, offline.box.options.token, *(phone[1:] for phone in offline.box.phones)]
    reported = f"{state!r} {state.message} {offline.everything_told()} {log}"
    assert [one for one in secrets if one in reported] == []
    # No exception that a step raised is in the data, which holds the result of the run or nothing.
    assert state.data is None or run_result(state) is not None


@each_step_and_exception(BEGINNING)
def test_an_exception_before_anything_is_found_fails_the_run(
    step: str, number: int, offline: Offline, caplog: pytest.LogCaptureFixture
) -> None:
    state = break_step(offline, step, number)

    assert (state.is_failed(), state.name) == (True, "Failed")
    assert state.message.startswith(f"unexpected {type(EXCEPTIONS[number]()).__name__} in ")
    assert offline.row("run_1") is None
    check_secrets(offline, state, caplog.text)


@each_step_and_exception(RESOLVING)
def test_an_exception_while_numbers_are_resolved_leaves_all_of_them_to_the_rerun(
    step: str, number: int, offline: Offline, caplog: pytest.LogCaptureFixture
) -> None:
    state = break_step(offline, step, number)

    assert state.is_failed()
    assert offline.outcomes("run_1").total() == 0
    check_secrets(offline, state, caplog.text)
    assert offline.run("run_2", rerun="run_1").is_completed()
    assert offline.is_complete()


@each_step_and_exception(READING)
def test_an_exception_before_anything_is_read_leaves_every_conversation_to_the_rerun(
    step: str, number: int, offline: Offline, caplog: pytest.LogCaptureFixture
) -> None:
    state = break_step(offline, step, number)

    assert state.is_failed()
    assert offline.outcomes("run_1") == {"not_reached": CONVERSATIONS}
    check_secrets(offline, state, caplog.text)
    assert offline.run("run_2", rerun="run_1").is_completed()
    assert offline.is_complete()


@each_step_and_exception(CLOSING)
def test_a_run_that_cannot_be_closed_reports_it_and_its_rerun_closes_it(
    step: str, number: int, offline: Offline, caplog: pytest.LogCaptureFixture
) -> None:
    state = break_step(offline, step, number)

    name = type(EXCEPTIONS[number]()).__name__
    assert (state.is_failed(), state.name) == (True, "Failed")
    assert state.message.startswith(f"The accounts of this run could not be written: unexpected {name} in ")
    assert offline.row("run_1") is None
    check_secrets(offline, state, caplog.text)
    assert offline.run("run_2", rerun="run_1").is_completed()
    assert offline.outcomes("run_1") == {"complete": CONVERSATIONS}
    assert offline.is_complete()


@each_step_and_exception(SHOWING)
def test_an_exception_while_a_run_is_displayed_or_cleaned_up_leaves_it_complete(
    step: str, number: int, offline: Offline, caplog: pytest.LogCaptureFixture
) -> None:
    state = break_step(offline, step, number)

    assert (state.is_completed(), state.name) == (True, "Completed"), state.message
    assert offline.outcomes("run_1") == {"complete": CONVERSATIONS}
    assert offline.is_complete()
    assert bool(offline.events) == (step != "imbrace_flows.events.emit_event")
    check_secrets(offline, state, caplog.text)


@each_exception
def test_an_exception_in_the_report_of_the_list_leaves_the_run_complete(
    number: int, offline: Offline, caplog: pytest.LogCaptureFixture
) -> None:
    state = break_step(offline, "imbrace_flows.input_report.input_markdown", number)

    assert state.is_completed(), state.message
    assert offline.outcomes("run_1") == {"complete": CONVERSATIONS}
    check_secrets(offline, state, caplog.text)


@each_exception
def test_a_verification_reports_only_the_class_of_an_exception(
    number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise EXCEPTIONS[number]()

    monkeypatch.setattr("imbrace_flows.verify.connect", fail)

    state = asyncio.run(verify_lake.fn(VerifyParams()))

    assert state.is_failed()
    name = type(EXCEPTIONS[number]()).__name__
    assert (state.message or "").startswith(f"unexpected {name} in imbrace_flows.verify:")


def test_a_cancelled_backfill_names_the_rerun_that_reads_only_the_rest(
    offline: Offline, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert offline.run("run_1").is_completed()
    with monkeypatch.context() as patch:
        cancel_in_the_middle(offline, patch)
        cancelled = offline.backfill_everything("run_2", rewalk_days=0.0, chunk_size=CONVERSATIONS // 2)

    assert cancelled.is_cancelled()
    assert str(cancelled.message).startswith("Cancelled. Start retry-failed with this run for the rest")
    half = CONVERSATIONS // 2
    assert offline.outcomes("run_2") == {"complete": half, "not_reached": half}
    assert offline.run("run_3", rerun="run_2").is_completed()
    assert offline.outcomes("run_3") == {"complete": half}


@pytest.mark.parametrize("error", [TerminationSignal(signal.SIGTERM), asyncio.CancelledError()])
def test_a_signal_that_reaches_a_task_ends_the_run_as_cancelled_with_all_accounts(
    error: BaseException, offline: Offline
) -> None:
    """Prefect raises it in the code that runs at that moment, or cancels the tasks of the run alone."""
    is_closing = False

    async def export(run: Any, name: str, *arguments: Any, **options: Any) -> Any:
        if name == "chunk-2-of-2":
            await asyncio.sleep(0.5)
            raise error
        return await export_chunk(run, name, *arguments, **options)

    async def close(*arguments: Any, **options: Any) -> Any:
        nonlocal is_closing
        is_closing = True
        await asyncio.sleep(0.3)
        return await close_run(*arguments, **options)

    async def state_of(client: object, run_id: str) -> StateType | None:
        return StateType.CANCELLING if is_closing else None

    with offline.monkeypatch.context() as patch:
        patch.setattr("imbrace_tasks.export.export_chunk", export)
        patch.setattr("imbrace_flows.pipeline.close_run", close)
        patch.setattr("imbrace_flows.cancellation._state_of", state_of)
        patch.setattr("imbrace_flows.cancellation.POLL_SECONDS", 0.05)
        with pytest.raises(asyncio.CancelledError, match=r"Cancelled\. Start it again"):
            offline.run("run_1", chunk_size=CONVERSATIONS // 2)

    half = CONVERSATIONS // 2
    assert offline.outcomes("run_1") == {"complete": half, "not_reached": half}
    row = offline.row("run_1")
    assert row is not None
    assert row["status"] == "cancelled"
    assert offline.run("run_2", rerun="run_1").is_completed()


def test_a_run_that_is_cancelled_is_not_cancelled_again_while_it_closes_its_accounts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    is_closing = False

    async def state_of(client: object, run_id: str) -> StateType | None:
        return StateType.CANCELLING if run_id == "shard" or is_closing else None

    async def close() -> bool:
        nonlocal is_closing
        async with cancelled_with("shard"), cancelled_with("its run"):
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(60)
            is_closing = True
            await asyncio.sleep(0.3)
            return True

    monkeypatch.setattr("imbrace_flows.cancellation.get_client", Server)
    monkeypatch.setattr("imbrace_flows.cancellation._state_of", state_of)
    monkeypatch.setattr("imbrace_flows.cancellation.POLL_SECONDS", 0.05)

    assert asyncio.run(close())


def cancel_in_the_middle(offline: Offline, patch: pytest.MonkeyPatch) -> None:
    """Let the caller cancel the run when one of its two chunks is done."""

    async def export(run: Any, name: str, *arguments: Any, **options: Any) -> Any:
        if name == "chunk-2-of-2":
            await asyncio.sleep(600)
        result = await export_chunk(run, name, *arguments, **options)
        offline.observer.cancellation.request()
        return result

    patch.setattr("imbrace_tasks.export.export_chunk", export)


def test_a_run_without_success_returns_its_summary_and_raises_its_message(offline: Offline) -> None:
    """A worker reads the value of a flow, which Prefect can raise only if the data is an exception."""
    failed = break_step(offline, RESOLVING[0], 0)
    with offline.monkeypatch.context() as patch:
        cancel_in_the_middle(offline, patch)
        cancelled = offline.run("run_2", chunk_size=CONVERSATIONS // 2)

    for state, kind, status in ((failed, FailedRun, "failed"), (cancelled, CancelledRun, "cancelled")):
        result = run_result(state)
        assert result is not None
        assert result.summary.status == status
        with pytest.raises(kind) as caught:
            raise asyncio.run(aget_state_exception(state))
        assert str(caught.value) == state.message


@pytest.mark.parametrize("step", CLOSING)
@pytest.mark.parametrize("is_rerun", [True, False])
def test_a_cancelled_run_that_cannot_be_closed_reports_it_and_another_run_closes_it(
    step: str, is_rerun: bool, offline: Offline, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(*arguments: object, **options: object) -> None:
        raise StoreError("the disk is full")

    with offline.monkeypatch.context() as patch:
        cancel_in_the_middle(offline, patch)
        patch.setattr(step, fail)
        state = offline.run("run_1", chunk_size=CONVERSATIONS // 2)

    assert (state.is_cancelled(), state.name) == (True, "Cancelled")
    assert (state.message or "").startswith(
        "Cancelled. The accounts of this run could not be written: the disk is full. Once that is fixed, the"
    )
    assert offline.row("run_1") is None
    again = offline.run("run_2", rerun="run_1") if is_rerun else offline.run("run_2")
    assert again.is_completed(), again.message
    half = CONVERSATIONS // 2
    assert offline.outcomes("run_1") == {"complete": half, "not_reached": half}
    assert offline.outcomes("run_2") == {"complete": half if is_rerun else CONVERSATIONS}
    assert offline.is_complete()
    row = offline.row("run_1")
    # The header of its journal is written first.
    is_known_as_cancelled = not step.endswith("stop")
    assert row is not None
    assert row["status"] == ("cancelled" if is_known_as_cancelled else "failed")
    assert ("imbrace.export.completed", row["status"]) in [
        (name, payload["status"]) for name, payload in offline.events if payload["run_id"] == "run_1"
    ]
    check_secrets(offline, again, caplog.text)
