"""Retries of tasks, and how a task hands its result or an expected error to the flow.

Results are in the data of the task's state. Tasks and flows have `persist_result=False`, so that this data
never leaves the process: Prefect sends the type, name and message of a state to its server, and nothing else.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from prefect import Task
from prefect.client.schemas.objects import State, TaskRun
from prefect.context import TaskRunContext
from prefect.states import Failed

from imbrace_lake.errors import ImbraceLakeError, frames_of, unexpected, without_context

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


@dataclass(frozen=True, slots=True)
class TaskError:
    """The result of a task that ended with an error; its state has the message."""

    error: ImbraceLakeError


def result_of(state: State[Any]) -> Any:
    """Return the result of a task, a `TaskError` if it failed, from its state.

    Raises:
        BaseException: The task raised it, because it is not an error of a task's work.
    """
    result = getattr(state.data, "result", state.data)
    if isinstance(result, BaseException):
        raise result
    return result


async def attempt(work: Callable[[], Awaitable[State[Any]]]) -> State[Any]:
    """Do a task's work; raise transient errors so that the orchestrator tries again.

    Any other error ends the task as failed, in one sentence, with a `TaskError` as its result. No exception
    leaves with its cause: the orchestrator would print and store what that carries.
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
    return Failed(message=str(error), data=TaskError(error))
