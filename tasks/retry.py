"""When a task is tried again, and how it ends without a traceback for what is nobody's bug."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any

from prefect import Task
from prefect.client.schemas.objects import State, TaskRun
from prefect.context import TaskRunContext
from prefect.states import Failed

from imbrace_lake.errors import ImbraceLakeError
from imbrace_lake.export.export_run import ExportRun


def _drop_empty_traceback(record: logging.LogRecord) -> bool:
    """A failed state is logged as if it were an exception; without one that reads "NoneType: None"."""
    if record.exc_info == (None, None, None):
        record.exc_info = None
    return True


logging.getLogger("prefect.task_runs").addFilter(_drop_empty_traceback)


def is_transient(task: Task[..., Any], task_run: TaskRun, state: State[Any]) -> bool:
    """Retry only what waiting can cure; a plain function, because Prefect ignores other callables."""
    return isinstance(state.data, ImbraceLakeError) and state.data.is_transient


def is_last_try() -> bool:
    """Whether the task run that is under way will not be tried again."""
    context = TaskRunContext.get()
    return context is None or context.task_run.run_count > context.task.retries


async def attempt(run: ExportRun | None, work: Callable[[], Awaitable[State[Any]]]) -> State[Any]:
    """Do a task's work; what waiting can cure is raised so that the orchestrator tries again.

    All else ends the task as failed, in one sentence. What every other task of a run would meet as
    well is kept in `run.fatal`, so that the flow stops instead of repeating it.
    """
    try:
        return await work()
    except ImbraceLakeError as exc:
        if exc.is_transient and not is_last_try():
            raise
        if run is not None and exc.is_fatal and run.fatal is None:
            run.fatal = exc
        return Failed(message=str(exc))
