"""Tasks and threads that end with the block that started them: bounded fan-out, work beside a block."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeVar

T = TypeVar("T")


async def run_bounded(limit: int, jobs: Iterable[Callable[[], Awaitable[T]]]) -> list[T]:
    """Run jobs side by side, each started only when there are fewer than `limit`.

    Args:
        limit: The most jobs at a time.
        jobs: Taken from the iterable one by one, so a long list of jobs need not exist.

    Returns:
        Their results, in the order of the jobs.

    Raises:
        Exception: The first error of a job. The other jobs have been cancelled and have ended.
    """
    results: list[Any] = []
    # All workers share one iterator: a free worker takes the next job.
    remaining = iter(jobs)

    async def work() -> None:
        for job in remaining:
            index = len(results)
            results.append(None)
            results[index] = await job()

    failure: BaseException | None = None
    try:
        async with asyncio.TaskGroup() as group:
            workers = [group.create_task(work()) for _ in range(limit)]
    except BaseExceptionGroup as failures:
        # Callers write `except ImbraceLakeError`, which does not catch a group.
        failure = failures.exceptions[0]
    # Outside of `except`, so that the error keeps its own cause and context.
    if failure is not None:
        raise failure
    for worker in workers:
        worker.result()  # raises if something else cancelled a job
    return results


def read_ahead(items: Iterator[T], most: int) -> Iterator[T]:
    """Yield the items of an iterator, while a thread gets up to `most` of the next ones."""
    end: Any = object()
    with ThreadPoolExecutor(1, "read-ahead") as thread:
        following = deque(thread.submit(next, items, end) for _ in range(most))
        while (item := following.popleft().result()) is not end:
            following.append(thread.submit(next, items, end))
            yield item


@asynccontextmanager
async def beside(work: Coroutine[Any, Any, object]) -> AsyncIterator[None]:
    """Do work, which handles its errors, beside the block; wait for its end, or cancel it with the block."""
    task = asyncio.create_task(work)
    try:
        yield
        await asyncio.wait([task])
    except asyncio.CancelledError:
        task.cancel()
        raise
    finally:
        await asyncio.wait([task])


@asynccontextmanager
async def every(
    seconds: float | Callable[[], float], action: Callable[[], Awaitable[object]], *, at_once: bool = False
) -> AsyncIterator[None]:
    """Run an action every few seconds while the block runs.

    Args:
        seconds: The pause before each run of the action, or a function that returns the next pause.
        action: Its error cancels the block, and is raised in place of the cancellation.
        at_once: Run the action for the first time without a pause, beside the block.
    """

    # Not a TaskGroup: when the block fails while a caller cancels it, a TaskGroup cancels it again, and
    # with it the cleanup of the callers.
    block = asyncio.current_task()
    assert block is not None  # noqa: S101 - narrows the type for mypy
    failure: Exception | None = None
    is_over = False

    async def repeat() -> None:
        nonlocal failure
        try:
            if at_once:
                await action()
            while True:
                await asyncio.sleep(seconds() if callable(seconds) else seconds)
                await action()
        except Exception as exc:  # noqa: BLE001 - raised below, by the block
            if not is_over:
                failure = exc
                block.cancel()

    repeating = asyncio.create_task(repeat())
    try:
        yield
    except BaseException:
        if failure is None:
            raise
    finally:
        is_over = True
        repeating.cancel()
        if failure is not None:
            # The cancellation may not have reached the block yet.
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(0)
            block.uncancel()
        await asyncio.wait([repeating])
    if failure is not None:
        raise failure
