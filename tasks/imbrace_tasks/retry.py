"""Retries of tasks, and how a task passes its result or an expected error to the flow.

Results are in the data of the task's state. Tasks and flows have `persist_result=False`, so that this data
never leaves the process: Prefect sends only the type, name and message of a state to its server.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from functools import wraps
from typing import Any, ParamSpec

from prefect import Task
from prefect.client.schemas.objects import State, TaskRun
from prefect.context import TaskRunContext
from prefect.states import Failed

from imbrace_lake.errors import ImbraceLakeError, as_own_error

P = ParamSpec("P")


# Of the run of a task, with its run.
_ENDED = ("cancelled by the runtime environment", "aborted by a termination signal")


def _is_shown(record: logging.LogRecord) -> bool:
    """Whether Prefect's line about a task reports an error that no other line reports.

    It logs a failed state without an exception twice, and as an error that the run of a task was cancelled.
    """
    is_repeated = record.exc_info == (None, None, None)
    message = record.getMessage()
    return not is_repeated and not any(ended in message for ended in _ENDED)


def is_transient(task: Task[..., Any], task_run: TaskRun, state: State[Any]) -> bool:
    """Return whether waiting may help; a plain function, because Prefect ignores other callables."""
    return isinstance(state.data, ImbraceLakeError) and state.data.is_transient


def is_last_try() -> bool:
    """Return whether the current task run is the last attempt."""
    context = TaskRunContext.get()
    return context is None or context.task_run.run_count > context.task.retries


@dataclass(frozen=True, slots=True)
class TaskError:
    """The result of a task that ended with an error; the message is in the task's state."""

    error: ImbraceLakeError


def result_of(state: State[Any]) -> Any:
    """Return the result of a task, a `TaskError` if it failed, from its state.

    Raises:
        BaseException: The task raised it, and it is not an error of the task's work.
    """
    result = getattr(state.data, "result", state.data)
    if isinstance(result, BaseException):
        raise result
    return result


def attempt(work: Callable[P, Awaitable[State[Any]]]) -> Callable[P, Coroutine[Any, Any, State[Any]]]:
    """Make the work of a task raise transient errors only, so that Prefect retries the task.

    Any other error ends the task as failed, with a message of one sentence and a `TaskError` as its result.
    Exceptions are raised without their cause, because Prefect would print and store its contents.
    """

    @wraps(work)
    async def attempted(*arguments: P.args, **options: P.kwargs) -> State[Any]:
        # Not on import, which must not change the logging of other programs. Repeated calls do nothing.
        logging.getLogger("prefect.task_runs").addFilter(_is_shown)
        try:
            return await work(*arguments, **options)
        except Exception as exc:  # noqa: BLE001 - any error ends only this task
            error = as_own_error(exc)
        if error.is_transient and not is_last_try():
            raise error
        return Failed(message=str(error), data=TaskError(error))

    return attempted
