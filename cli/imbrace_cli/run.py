"""Run a reading flow in this process, show its progress, and return its outcome."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from imbrace_cli.exit_codes import COMPLETE, FAILED, PARTIAL
from imbrace_cli.interrupt import Interrupt, Interrupted, current_interrupt
from imbrace_cli.options import environment
from imbrace_cli.prefect_session import prefect_session
from imbrace_lake.concurrency import every
from imbrace_lake.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from prefect import Flow
    from prefect.client.schemas.objects import State

    from imbrace_cli.progress_view import View
    from imbrace_flows.observer import Observer
    from imbrace_flows.params import ReadParams
    from imbrace_lake.export.run import RunSummary
    from imbrace_lake.settings import Settings

    ReadingFlow = Flow[..., Coroutine[Any, Any, State[Any]]]


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of a run, and the first of the `problem_count` problems of its input."""

    summary: RunSummary
    problems: Sequence[str]

    @property
    def problem_count(self) -> int:
        """The number of inputs that are not phone numbers."""
        return self.summary.totals.phones.get("invalid", len(self.problems))

    @property
    def exit_code(self) -> int:
        """0 complete, 3 partial, 1 failed."""
        return {"complete": COMPLETE, "partial": PARTIAL}.get(self.summary.status, FAILED)


def export_flow() -> ReadingFlow:
    """Import the export flow."""
    from imbrace_flows.export import export_conversations

    return export_conversations


def backfill_flow() -> ReadingFlow:
    """Import the backfill flow."""
    from imbrace_flows.backfill import backfill_conversations

    return backfill_conversations


def run_watched(
    settings: Settings,
    load: Callable[[], ReadingFlow],
    params: ReadParams,
    overrides: Mapping[str, object | None],
) -> Outcome:
    """Run a flow; a failed one is an outcome too.

    Args:
        settings: Checked settings.
        load: Imports the flow, after Prefect's environment is set.
        params: The parameters of the flow.
        overrides: Settings that are not parameters of the flow.

    Raises:
        Interrupted: Ctrl-C was pressed.
        ImbraceLakeError: No Prefect server is available.
    """
    from imbrace_cli.progress_view import open_view

    interrupt = current_interrupt()
    with (
        environment(overrides),
        open_view() as view,
        prefect_session(view.say) as session,
        _own_sigterm(),
    ):
        from imbrace_flows.observer import Observer, RunResult, current_observer, run_result
        from imbrace_lake.tuning import tuned_process

        observer = Observer()
        interrupt.give_up = lambda: session.cancel_run(observer.cancellation.run_id)
        token = current_observer.set(observer)
        try:
            flow = load()
            threading.Thread(target=_prepare_client, daemon=True).start()
            with tuned_process():
                state = asyncio.run(_watched(flow, params, observer, view, interrupt))
                result = run_result(state)
        except KeyboardInterrupt:
            raise Interrupted(_interrupted_message(observer)) from None
        finally:
            current_observer.reset(token)
        if interrupt.is_requested and state.is_cancelled():
            raise Interrupted(_interrupted_message(observer))
        result = result or RunResult(_failed(settings, state, observer))
        result.summary.flow_run_url = session.run_url(result.summary.run_id)
    return Outcome(result.summary, result.problems)


@contextmanager
def _own_sigterm() -> Iterator[None]:
    """Let a run in this process end at SIGTERM as at Ctrl-C: Prefect's handler raises a separate error."""
    from prefect import flow_engine

    before = flow_engine.capture_sigterm  # type: ignore[attr-defined] # it is imported there
    flow_engine.capture_sigterm = nullcontext  # type: ignore[assignment, attr-defined]
    try:
        yield
    finally:
        flow_engine.capture_sigterm = before  # type: ignore[attr-defined]


def _prepare_client() -> None:
    """Load the gateway's client and its certificates, while the main thread waits for the Prefect server."""
    from imbrace_lake.gateway.http_client import certificates

    # The run itself reports it.
    with suppress(SettingsError):
        certificates()


def _interrupted_message(observer: Observer) -> str:
    from imbrace_lake.lake.ledger_schema import PROVEN
    from imbrace_lake.printable import plural

    done = sum(observer.progress.statuses[status] for status in PROVEN)
    count = plural(done, "conversation is", "conversations are")
    return f"{count} complete in the lake; run the same command to export the others"


async def _watched(
    flow: ReadingFlow, params: ReadParams, observer: Observer, view: View, interrupt: Interrupt
) -> State[Any]:
    loop = asyncio.get_running_loop()

    def cancel() -> None:
        # The signal can arrive anywhere in this thread, also while the loop waits for the network.
        loop.call_soon_threadsafe(observer.cancellation.request)

    async def watch() -> None:
        # A closed terminal does not end the run.
        with suppress(OSError):
            view.update(observer.progress)

    with interrupt.cancels(cancel):
        async with every(view.interval_seconds, watch, at_once=True):
            return await flow(params, return_state=True)


def _failed(settings: Settings, state: Any, observer: Observer) -> RunSummary:
    """Return the summary of a run that could not open its lake, or not write its accounts."""
    from imbrace_lake.export.run import RunSummary, totals_of

    now = datetime.now(UTC)
    return RunSummary(
        run_id=str(state.state_details.flow_run_id),
        organization=settings.require("organization"),
        lake=settings.require("lake"),
        started_at=now,
        finished_at=now,
        reason=state.message,
        totals=replace(totals_of(observer.progress), found=observer.progress.conversations or None),
    )
