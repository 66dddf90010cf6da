"""Fan-out and periodic actions end with the block that started them, and raise the first error."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import suppress
from functools import partial, wraps
from typing import NoReturn

import pytest

from imbrace_lake.concurrency import beside, every, read_ahead, run_bounded


def in_loop(test: Callable[[], Coroutine[None, None, None]]) -> Callable[[], None]:
    @wraps(test)
    def run() -> None:
        asyncio.run(test())

    return run


class Broken(Exception):
    pass


async def broken(text: str = "broken") -> NoReturn:
    raise Broken(text)


async def forever(ended: list[str], name: str = "forever") -> None:
    try:
        await asyncio.Event().wait()
    finally:
        # The cleanup takes a while, as closing a connection does.
        await asyncio.sleep(0.01)
        ended.append(name)


def others() -> set[asyncio.Task[object]]:
    return asyncio.all_tasks() - {asyncio.current_task()}


@in_loop
async def test_results_are_in_the_order_of_the_jobs() -> None:
    async def double(number: int) -> int:
        await asyncio.sleep(0.001 * (5 - number))
        return 2 * number

    assert await run_bounded(3, (partial(double, number) for number in range(6))) == [0, 2, 4, 6, 8, 10]
    assert await run_bounded(0, []) == []


@in_loop
async def test_at_most_the_limit_of_jobs_run_and_each_is_made_at_its_turn() -> None:
    made, running, most = 0, 0, 0

    async def job() -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.001)
        running -= 1

    def jobs() -> Iterator[Callable[[], Awaitable[None]]]:
        nonlocal made
        for _ in range(20):
            made += 1
            assert running < 4
            yield job

    await run_bounded(4, jobs())
    assert (made, most) == (20, 4)


@in_loop
async def test_only_the_first_error_is_raised_when_the_other_jobs_have_ended() -> None:
    ended: list[str] = []
    started: list[str] = []

    async def fails_late() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await broken("the second")

    async def is_started() -> None:
        started.append("one more")

    jobs: list[Callable[[], Awaitable[None]]]
    jobs = [partial(forever, ended), fails_late, partial(broken, "the first"), is_started]
    with pytest.raises(Broken, match="the first"):
        await run_bounded(3, jobs)

    assert ended == ["forever"]
    assert not started
    assert not others()


@in_loop
async def test_a_cancelled_fan_out_stays_cancelled_if_the_end_of_a_job_fails() -> None:
    async def fails_when_cancelled() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await broken()

    fan_out = asyncio.create_task(run_bounded(2, [fails_when_cancelled] * 2))
    await asyncio.sleep(0.01)
    fan_out.cancel()
    await asyncio.wait([fan_out])
    assert fan_out.cancelled()

    errors: list[Exception] = []

    async def cleans_up() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            try:
                await run_bounded(1, [broken])
            except Broken as exc:  # the error of the cleanup, whose fan-out was not cancelled
                errors.append(exc)

    cleaning = asyncio.create_task(cleans_up())
    await asyncio.sleep(0.01)
    cleaning.cancel()
    await asyncio.wait([cleaning])
    assert (cleaning.cancelled(), len(errors)) == (True, 1)


@in_loop
async def test_an_error_keeps_its_cause() -> None:
    async def job() -> None:
        try:
            await broken()
        except Broken as exc:
            raise ValueError("because of it") from exc

    with pytest.raises(ValueError, match="because of it") as caught:
        await run_bounded(1, [job])
    assert isinstance(caught.value.__cause__, Broken)

    with pytest.raises(ValueError, match="because of it") as caught:
        async with every(60.0, broken):
            await job()
    assert isinstance(caught.value.__cause__, Broken)


@in_loop
async def test_a_cancelled_fan_out_cancels_its_jobs_and_waits_for_them() -> None:
    ended: list[str] = []
    running = asyncio.create_task(run_bounded(2, [partial(forever, ended)] * 5))
    await asyncio.sleep(0.01)

    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running

    assert ended == ["forever", "forever"]
    assert not others()


@in_loop
async def test_a_job_that_was_cancelled_from_outside_is_not_done() -> None:
    async def cancelled() -> None:
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await run_bounded(2, [cancelled])


@in_loop
async def test_work_beside_a_block_ends_before_what_follows_the_block() -> None:
    steps: list[str] = []

    async def work() -> None:
        await asyncio.sleep(0.01)
        steps.append("work")

    for error in (None, Broken()):
        with suppress(Broken):
            async with beside(work()):
                steps.append("block")
                if error is not None:
                    raise error
        steps.append("after")

    assert steps == ["block", "work", "after"] * 2


@pytest.mark.parametrize("block_seconds", [0, 10])
def test_work_beside_a_block_is_cancelled_with_it(block_seconds: int) -> None:
    ended: list[str] = []

    async def block() -> None:
        async with beside(forever(ended)):
            await asyncio.sleep(block_seconds)

    async def cancelled() -> None:
        task = asyncio.create_task(block())
        await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        assert not others()

    asyncio.run(cancelled())
    assert ended == ["forever"]


@in_loop
async def test_an_action_is_repeated_while_the_block_runs_and_not_after_it() -> None:
    times: list[int] = []

    async def action() -> None:
        times.append(1)

    async with every(0.001, action):
        assert not times
        await asyncio.sleep(0.05)
        assert len(times) > 1
    count = len(times)
    assert not others()
    await asyncio.sleep(0.01)
    assert len(times) == count


@in_loop
async def test_an_action_can_begin_at_once_and_choose_its_next_pause() -> None:
    pauses = iter([0.001, 60.0])
    times: list[int] = []

    async def action() -> None:
        times.append(1)

    async with every(lambda: next(pauses), action, at_once=True):
        await asyncio.sleep(0.05)
        assert len(times) == 2


@in_loop
async def test_the_error_of_an_action_ends_the_block_and_is_raised() -> None:
    async def block() -> None:
        async with every(0.001, broken):
            await asyncio.Event().wait()

    with pytest.raises(Broken):
        await block()

    task = asyncio.current_task()
    assert task is not None
    assert not task.cancelling()
    await asyncio.sleep(0)  # raises if a cancellation is pending
    assert not others()


@in_loop
async def test_the_error_of_an_action_is_raised_by_a_block_that_ends_at_that_moment() -> None:
    event = asyncio.Event()

    async def action() -> None:
        event.set()
        await broken()

    with pytest.raises(Broken):
        async with every(0.0, action):
            await event.wait()
    await asyncio.sleep(0)  # raises if a cancellation is pending


@in_loop
async def test_the_error_of_a_block_is_raised_unchanged_after_the_action_has_ended() -> None:
    ended: list[str] = []
    error = Broken("the block's")

    async def block() -> None:
        async with every(0.0, partial(forever, ended)):
            await asyncio.sleep(0.01)
            raise error

    with pytest.raises(Broken) as caught:
        await block()

    assert caught.value is error
    assert ended == ["forever"]
    assert not others()


@in_loop
async def test_an_action_that_fails_because_it_is_cancelled_is_not_an_error() -> None:
    async def action() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await broken()

    async with every(0.0, action):
        await asyncio.sleep(0.01)
    await asyncio.sleep(0)
    assert not others()


@in_loop
async def test_a_block_that_fails_while_it_is_cancelled_does_not_cancel_the_cleanup_of_its_caller() -> None:
    """TaskGroup would cancel the task again, which could then not close its files."""
    cleaned: list[str] = []
    ended: list[str] = []

    async def work() -> None:
        try:
            async with every(0.0, partial(forever, ended)):
                try:
                    await asyncio.Event().wait()
                except asyncio.CancelledError:
                    await broken()
        finally:
            await asyncio.sleep(0)
            cleaned.append("all")

    working = asyncio.create_task(work())
    await asyncio.sleep(0.01)
    working.cancel()
    with pytest.raises(Broken):
        await working
    assert cleaned == ["all"]
    assert ended == ["forever"]


def test_items_are_read_ahead_in_their_order_by_another_thread_and_never_too_many() -> None:
    read: list[int] = []
    threads: set[int] = set()

    def numbers() -> Iterator[int]:
        for number in range(10):
            read.append(number)
            threads.add(threading.get_ident())
            yield number

    used: list[int] = []
    for number in read_ahead(numbers(), 3):
        assert len(read) <= len(used) + 1 + 3
        used.append(number)
    assert used == [*range(10)]
    assert len(threads) == 1
    assert threading.get_ident() not in threads


def test_the_next_items_are_read_while_one_is_used() -> None:
    read = [threading.Event() for _ in range(4)]

    def numbers() -> Iterator[int]:
        for number, event in enumerate(read):
            event.set()
            yield number

    for number in read_ahead(numbers(), 2):
        assert all(event.wait(10) for event in read[: number + 3])


def test_an_error_of_an_item_read_ahead_comes_in_its_turn() -> None:
    def numbers() -> Iterator[int]:
        yield 1
        raise Broken("after the first")

    items = read_ahead(numbers(), 4)
    assert next(items) == 1
    with pytest.raises(Broken, match="after the first"):
        next(items)


@pytest.mark.slow
def test_a_reader_that_stops_ends_the_thread() -> None:
    before = threading.active_count()
    for _ in read_ahead(iter(range(100)), 2):
        assert threading.active_count() == before + 1
        break
    gc.collect()
    assert threading.active_count() == before
