"""The progress of a run: its stage, its speed, and the time left."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from imbrace_lake.export.progress import (
    Pace,
    Progress,
    ProgressLine,
    Rate,
    TimeLeft,
    limit_in_force,
    limited_by,
)
from imbrace_lake.gateway.client import Traffic
from imbrace_lake.gateway.limiter import RequestLimiter
from imbrace_lake.lake.ledger_schema import RunTotals
from imbrace_lake.lake.memory import MemoryBudget
from tests.core.clock import run_timeless


class Clock:
    """A monotonic clock that the test sets."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("imbrace_lake.export.progress.time.monotonic", clock)
    return clock


def test_the_rate_is_that_of_the_last_seconds(clock: Clock) -> None:
    rate = Rate(3.0)
    reported = []
    for seconds, count in ((0, 0), (10, 1_000), (20, 1_100), (24, 1_300)):
        clock.now = 100.0 + seconds
        reported.append(rate.of(count))

    assert reported == [0.0, 100.0, 10.0, 50.0]


def test_the_time_left_is_unknown_until_some_seconds_were_measured(clock: Clock) -> None:
    left, progress = TimeLeft(), Progress(stage="exporting", conversations=100)
    reported = []
    for seconds, done in ((0, 0), (4, 8), (10, 20), (20, 20)):
        clock.now = 100.0 + seconds
        progress.statuses = Counter(complete=done)
        reported.append(left.seconds(progress))

    assert reported == [None, None, 40.0, 80.0]


def test_there_is_no_time_left_once_it_has_passed_and_no_conversation_was_done(clock: Clock) -> None:
    left, progress = TimeLeft(), Progress(stage="exporting", conversations=100)
    reported = []
    for seconds, done in ((0, 0), (10, 50), (19, 50), (20, 99), (23, 99), (40, 99), (41, 100)):
        clock.now = 100.0 + seconds
        progress.statuses = Counter(complete=done)
        reported.append(left.seconds(progress) is not None)

    assert reported == [False, True, True, True, True, False, True]


def test_the_time_left_is_unknown_while_conversations_are_counted_or_none_is_exported(clock: Clock) -> None:
    left = TimeLeft()
    resolving = Progress(stage="resolving", numbers=10, numbers_resolved=5)
    stuck = Progress(stage="exporting", conversations=100, statuses=Counter(complete=7))
    reported = []
    for progress in (resolving, stuck, stuck):
        reported.append(left.seconds(progress))
        clock.now += 200.0

    assert reported == [None, None, None]


def test_one_line_shows_stage_failures_speed_and_time_left(clock: Clock) -> None:
    traffic = Traffic()
    progress = Progress(stage="exporting", conversations=1_200, traffic=traffic)
    line = ProgressLine()
    first = line.describe(progress)
    clock.now += 10.0
    traffic.requests, progress.messages_total = 85, 5_000
    progress.statuses = Counter(complete=98, failed=1, incomplete=1)

    assert first == "exporting: 0 of 1,200 conversations · 0 failed · 0.0 requests/s · 0 messages/s"
    assert line.describe(progress) == (
        "exporting: 100 of 1,200 conversations · 2 failed · 8.5 requests/s · 500 messages/s"
        " · about 110 s left"
    )
    assert line.describe_end(progress) == "100 of 1,200 conversations · 2 failed · 5,000 messages"


def test_the_share_is_that_of_the_conversations() -> None:
    progress = Progress(stage="resolving", numbers=10, numbers_resolved=10)
    shares = [progress.share()]
    progress.stage, progress.conversations, progress.statuses = "exporting", 8, Counter(complete=1, failed=1)
    shares.append(progress.share())
    progress.stage = "done"

    assert [*shares, progress.share()] == [0.0, 0.25, 1.0]


# -- what limits a run ----------------------------------------------------------------------------


IDLE = Pace()


async def wait_for(limiter: RequestLimiter, many: int) -> list[asyncio.Task[int]]:
    tasks = [asyncio.create_task(limiter.acquire()) for _ in range(many)]
    await asyncio.sleep(0)
    return tasks


def limited(
    prepare: Callable[[Progress, RequestLimiter], None] = lambda progress, limiter: None,
    *,
    requests: int = 0,
    pace: Pace = IDLE,
    **limits: Any,
) -> tuple[str, str, bool]:
    """What limits a run whose requests wait, its limit, and whether it is stopped."""

    async def look() -> tuple[str, str, bool]:
        limiter = RequestLimiter(**limits)
        progress = Progress(stage="exporting", conversations=1_000, limiter=limiter)
        tasks = await wait_for(limiter, requests)
        prepare(progress, limiter)
        found = limited_by(progress, pace), limit_in_force(progress), progress.is_stopped
        for task in tasks:
            task.cancel()
        return found

    return run_timeless(look())


def share_a_budget(limit: float) -> Callable[[Progress, RequestLimiter], None]:
    def prepare(progress: Progress, limiter: RequestLimiter) -> None:
        limiter.shared_limit = limit

    return prepare


def meet_429(progress: Progress, limiter: RequestLimiter) -> None:
    limiter.on_rate_limited(0, 30.0)


def be_overloaded(progress: Progress, limiter: RequestLimiter) -> None:
    limiter.on_overload(0)


def test_a_run_is_limited_by_its_budget() -> None:
    assert limited(share_a_budget(5), requests=3, per_second=5) == (
        "the budget",
        "budget 5 requests/s",
        False,
    )
    assert limited(share_a_budget(0), per_second=0)[::2] == ("the budget, which is 0: raise it", True)
    assert limited(share_a_budget(5), per_second=0)[0] == "other runs, which use the whole budget"
    assert limited(share_a_budget(5), per_second=2)[1] == "2 of the budget of 5 requests/s"
    assert limited(requests=3, per_second=5)[:2] == ("the limit of requests per second", "limit 5 requests/s")


def test_a_run_is_limited_by_the_gateway() -> None:
    assert limited(meet_429)[::2] == (
        "the gateway, which limits the rate (429): asking again in 30 s", True
    )  # fmt: skip
    assert limited(requests=3, max_in_flight=2, pace=Pace(answers=4.0))[0] == (
        "the gateway: answers after 0.5 s, 2 at a time"
    )
    assert limited(be_overloaded, requests=9, max_in_flight=8)[0] == (
        "the gateway, which is overloaded: 5 requests at a time"
    )


def test_a_run_is_limited_by_its_machine_the_lake_or_its_failures() -> None:
    def write(progress: Progress, limiter: RequestLimiter) -> None:
        progress.writing = 3

    def fill_memory(progress: Progress, limiter: RequestLimiter) -> None:
        progress.memory = MemoryBudget(most_bytes=1, reserved_bytes=2)

    def fail(progress: Progress, limiter: RequestLimiter) -> None:
        progress.retried = {"chunk-1-of-2": 7, "chunk-2-of-2": 1}

    def end(progress: Progress, limiter: RequestLimiter) -> None:
        progress.statuses = Counter(complete=998)

    assert limited(pace=Pace(busy=0.95))[0] == "the processor of this machine"
    assert limited(write)[0] == "the lake: 3 conversations are being written"
    assert limited(fill_memory)[0] == "memory: further messages wait in files"
    assert limited(fail)[::2] == ("failures: 8 conversations wait for another try", True)
    assert limited(end)[0] == "the last 2 conversations"
    assert limited() == ("", "", False)


def test_a_run_is_limited_by_a_gateway_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    def be_down(progress: Progress, limiter: RequestLimiter) -> None:
        progress.traffic = Traffic(failing_since=0.0)

    monkeypatch.setattr(Traffic, "failing_seconds", property(lambda traffic: 45.0 + traffic.failing_since))

    assert limited(be_down, requests=3, per_second=5)[::2] == (
        "the gateway: no request has succeeded for 45 s", True
    )  # fmt: skip


def test_a_run_whose_requests_are_not_answered_is_limited_by_the_gateway_and_stopped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def be_silent(progress: Progress, limiter: RequestLimiter) -> None:
        progress.traffic = Traffic(waiting_since=0.0)

    monkeypatch.setattr(Traffic, "silent_seconds", property(lambda _: 18.0))

    for limits in ({"per_second": 5}, {"max_in_flight": 2}):
        found = limited(be_silent, requests=3, pace=Pace(answers=1.0), **limits)
        assert found[::2] == ("the gateway: no answer for 18 s, 2 requests under way", True)
    # Without a request under way, nothing is waited for.
    assert limited(be_silent, requests=3, per_second=0)[0] == "the budget, which is 0: raise it"
    assert limited(requests=3, max_in_flight=2)[0] == "the gateway: 2 requests under way"


def test_a_run_with_shards_is_limited_by_its_workers() -> None:
    progress = Progress(stage="exporting", shards=RunTotals(), waiting_shards=2)

    assert limited_by(progress, Pace()) == "missing workers: 2 shards wait"
    progress.waiting_shards = 0
    assert limited_by(progress, Pace()) == ""


def test_conversations_that_a_cancelled_shard_did_not_reach_are_not_done() -> None:
    progress = Progress(stage="exporting", conversations=100)

    progress.show_shards(RunTotals(conversations={"complete": 5, "failed": 1, "not_reached": 44}))

    assert progress.position() == (6, 100, "conversations")
    assert progress.share() == 0.06


def test_a_stopped_run_has_no_time_left(clock: Clock) -> None:
    async def look() -> list[float | None]:
        left, limiter = TimeLeft(), RequestLimiter()
        progress = Progress(stage="exporting", conversations=100, limiter=limiter)
        found = [left.seconds(progress)]
        clock.now += 10.0
        progress.statuses = Counter(complete=50)
        for limiter.per_second in (5.0, 0.0):
            found.append(left.seconds(progress))
        return found

    assert run_timeless(look()) == [None, 10.0, None]
