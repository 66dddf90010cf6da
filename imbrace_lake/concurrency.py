"""Tasks and threads that end with the block that started them: bounded fan-out, work beside a block."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Iterator, Sequence
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
        CancelledError: The caller was cancelled, even if a job then ended with an error.
    """
    results: list[Any] = []
    failures: list[Exception] = []
    # All workers share one iterator: a free worker takes the next job.
    remaining = iter(jobs)

    async def work() -> None:
        try:
            for job in remaining:
                index = len(results)
                results.append(None)
                results[index] = await job()
        except Exception as exc:
            failures.append(exc)
            raise

    workers = [asyncio.create_task(work()) for _ in range(limit)]
    await _end_together(workers)
    # Outside of `except`, so that the error keeps its own cause and context.
    if failures:
        raise failures[0]
    for worker in workers:
        worker.result()  # raises if something else cancelled a job
    return results


async def _end_together(workers: Sequence[asyncio.Task[None]]) -> None:
    """Wait until all workers have ended; when one fails, or the caller is cancelled, cancel the others.

    Not a TaskGroup, which raises the errors of cancelled workers in place of the caller's cancellation.
    """
    cancellation: asyncio.CancelledError | None = None
    is_ending = False
    while running := [worker for worker in workers if not worker.done()]:
        try:
            ended, _ = await asyncio.wait(running, return_when=asyncio.FIRST_EXCEPTION)
        except asyncio.CancelledError as exc:
            cancellation, ended = exc, set()
        # asyncio logs errors that are not read.
        errors = [worker.exception() for worker in ended if not worker.cancelled()]
        if not is_ending and (cancellation or any(errors)):
            is_ending = True
            for worker in running:
                worker.cancel()
    if cancellation is not None:
        raise cancellation


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
