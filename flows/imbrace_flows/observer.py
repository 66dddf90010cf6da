"""What the caller of a flow in this process passes to it, and the result that the flow returns.

The observer goes in through a context variable, because Prefect stores the parameters of a flow. The result
comes back in the data of the flow's state, which stays in this process: our flows have
`persist_result=False`, and Prefect then sends the type, name and message of a state to its server only.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from prefect.client.schemas.objects import State
from prefect.exceptions import CancelledRun, FailedRun

from imbrace_flows.cancellation import Cancellation
from imbrace_lake.export.progress import Progress
from imbrace_lake.export.run import RunSummary


@dataclass(frozen=True, slots=True)
class Observer:
    """Shows the caller the progress of a run, and lets the caller cancel it."""

    progress: Progress = field(default_factory=Progress)
    cancellation: Cancellation = field(default_factory=Cancellation)


current_observer: ContextVar[Observer | None] = ContextVar("current_observer", default=None)


@dataclass(frozen=True, slots=True)
class RunResult:
    """The summary of a run, and the first problems of its input.

    Neither is in its representation, because in its debug mode Prefect logs the data of states.
    """

    summary: RunSummary = field(repr=False)
    problems: Sequence[str] = field(default=(), repr=False)


class UnsuccessfulRun(Exception):
    """A run without success, as the data of its state; Prefect raises it if the caller asks for no state.

    Args:
        message: The message of the state.
        run_result: The result that the run has nevertheless returned.
    """

    def __init__(self, message: str, run_result: RunResult) -> None:
        super().__init__(message)
        self.run_result = run_result


class RunFailed(UnsuccessfulRun, FailedRun):
    """The run failed, or exported only a part."""


class RunStopped(UnsuccessfulRun, CancelledRun):
    """The run was cancelled, and has closed its accounts."""


def run_result(state: State[Any]) -> RunResult | None:
    """Return the result of a flow from the state that it ended in; None if the run wrote no accounts.

    Raises:
        BaseException: The flow raised it: a bug, because the flow turns our errors into the state's message.
    """
    result = getattr(state.data, "result", state.data)
    if isinstance(result, UnsuccessfulRun):
        return result.run_result
    if isinstance(result, BaseException):
        raise result
    return result if isinstance(result, RunResult) else None
