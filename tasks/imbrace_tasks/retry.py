"""When a task is tried again, and how it ends without a traceback for what is nobody's bug."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any

from prefect import Task
from prefect.client.schemas.objects import State, TaskRun
from prefect.context import TaskRunContext
from prefect.states import Failed

from imbrace_lake.errors import ImbraceLakeError, frames_of, unexpected, without_context
from imbrace_lake.export.run import RunContext

logger = logging.getLogger("imbrace_lake.tasks")


def _drop_empty_traceback(record: logging.LogRecord) -> bool:
    """A failed state is logged as if it were an exception; without one that reads "NoneType: None"."""
    if record.exc_info == (None, None, None):
        record.exc_info = None
    return True


def is_transient(task: Task[..., Any], task_run: TaskRun, state: State[Any]) -> bool:
    """Retry only what waiting can cure; a plain function, because Prefect ignores other callables."""
    return isinstance(state.data, ImbraceLakeError) and state.data.is_transient


def is_last_try() -> bool:
    """Whether the task run that is under way will not be tried again."""
    context = TaskRunContext.get()
    return context is None or context.task_run.run_count > context.task.retries


async def attempt(run: RunContext | None, work: Callable[[], Awaitable[State[Any]]]) -> State[Any]:
    """Do a task's work; raise transient errors so that the orchestrator tries again.

    All else ends the task as failed, in one sentence. What every other task of a run would meet too
    is kept in `run.fatal`, so that the flow stops instead of repeating it. No exception leaves with
    its cause: the orchestrator would print and store what that carries.
    """
    # Here and not on import, which changes nothing for the tasks of others. Adds it once.
    logging.getLogger("prefect.task_runs").addFilter(_drop_empty_traceback)
    try:
        return await work()
    except ImbraceLakeError as exc:
        error = without_context(exc)
    except Exception as exc:  # noqa: BLE001 - whatever it is, it ends this task only
        logger.debug("unexpected %s", frames_of(exc))
        error = unexpected(exc)
    if error.is_transient and not is_last_try():
        raise error
    if run is not None and error.is_fatal and run.fatal is None:
        run.fatal = error
    if run is not None and run.problem is None:
        run.problem = str(error)
    return Failed(message=str(error))
