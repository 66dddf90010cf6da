"""Ends a run that was cancelled, even if its worker's signal is lost or it has no worker.

Prefect's worker cancels a run with a signal. The signal raises an exception in the code that runs at that
moment, and the exception is lost in a callback of the event loop. A run of the command line has no worker
(Prefect 3.9: `FlowRunCancellingObserver`, `CancellationManager` and `capture_sigterm`).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Literal
from uuid import UUID

from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.objects import StateType
from prefect.exceptions import ObjectNotFound
from prefect.runtime import flow_run
from prefect.states import Cancelled

from imbrace_flows.best_effort import best_effort
from imbrace_flows.deployment_run import is_deployment_run
from imbrace_flows.log import logger_of
from imbrace_lake.concurrency import every

POLL_SECONDS = 5.0
DELETED: Literal["deleted"] = "deleted"
_NOT_FOUND = "Flow run not found"
CANCELLED = "Cancelled. Start it again for the rest."
CANCELLED_BACKFILL = (
    "Cancelled. Start retry-failed with this run for the rest: started again, it would read everything again."
)

logger = logger_of("cancelling")


def shard_cancelled(parent_run_id: str) -> str:
    """Return the message of a cancelled shard."""
    return f"Cancelled. The page of run {parent_run_id} shows how to export the rest."


class RunCancelled(Exception):
    """The run was cancelled in the UI, by the API or by its caller, or it was deleted there."""


@dataclass(slots=True)
class Cancellation:
    """Lets the caller of a flow in this process cancel it, also before it begins; for one event loop.

    Attributes:
        run_id: The run, once it has begun.
    """

    is_requested: bool = False
    run_id: str | None = None
    _cancel: Callable[[], None] | None = None

    def request(self) -> None:
        """Cancel the run; called in its event loop."""
        self.is_requested = True
        if self._cancel is not None:
            self._cancel()

    def bind(self, cancel: Callable[[], None] | None) -> None:
        """Set the function that ends the run; call it at once if the cancellation was requested before."""
        self._cancel = cancel
        if cancel is not None and self.is_requested:
            cancel()


@asynccontextmanager
async def cancelled_with(
    run_id: str, *final: StateType, by_caller: Cancellation | None = None
) -> AsyncIterator[None]:
    """End the block soon after a run was cancelled or deleted.

    Args:
        run_id: This run, or the parent of a shard.
        final: Further states that end the block.
        by_caller: Lets the caller cancel the block without the server.

    Raises:
        RunCancelled: The run was cancelled.
    """
    ending = {StateType.CANCELLING, StateType.CANCELLED, DELETED, *final}
    block = asyncio.current_task()
    assert block is not None  # noqa: S101 - narrows the type for mypy
    is_cancelled = False

    def cancel() -> None:
        nonlocal is_cancelled
        # Once: a second cancellation would end the closing of the run's accounts.
        if not is_cancelled:
            is_cancelled = True
            block.cancel()

    async def poll() -> None:
        # A shard that was cancelled itself is not cancelled again with its run.
        if not is_cancelled and await _state_of(client, run_id) in ending and not block.cancelling():
            cancel()

    try:
        async with get_client() as client, every(POLL_SECONDS, poll, at_once=True):
            if by_caller is not None:
                by_caller.bind(cancel)
            yield
    except asyncio.CancelledError:
        if not is_cancelled:
            raise
        raise RunCancelled from None
    finally:
        if is_cancelled:
            block.uncancel()
        if by_caller is not None:
            by_caller.bind(None)


@asynccontextmanager
async def reported_when_cancelled() -> AsyncIterator[None]:
    """Report the end of a run that its worker cancels with a signal.

    The worker reports it too, but before that waits up to 3 s for the end of the process, and starts another
    one that looks for hooks. An argument of the exception is the message of the state.
    """
    try:
        yield
    except asyncio.CancelledError as exc:
        run_id = str(flow_run.id)
        message = str(exc.args[0]) if exc.args else CANCELLED
        if is_deployment_run() and await state_of(run_id) == StateType.CANCELLING:
            with best_effort("the end of this run"):
                async with get_client() as client:
                    await client.set_flow_run_state(UUID(run_id), Cancelled(message=message))
        raise


async def state_of(run_id: str) -> StateType | Literal["deleted"] | None:
    """Return the state of a run; None if the server does not answer."""
    async with get_client() as client:
        return await _state_of(client, run_id)


async def _state_of(client: PrefectClient, run_id: str) -> StateType | Literal["deleted"] | None:
    try:
        found = await client.read_flow_run(UUID(run_id))
    except ObjectNotFound as exc:
        # A proxy, or a server that starts, can answer 404 with other words.
        return DELETED if _NOT_FOUND in str(exc.http_exc) else None
    except Exception as exc:  # noqa: BLE001 - after any error the run itself continues
        logger.debug("the state of the run is not known: %s", type(exc).__name__)
        return None
    return found.state.type if found.state is not None else None
