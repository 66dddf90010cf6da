"""The progress of a run: its stage, its speed, and the time left."""

from __future__ import annotations

from collections import Counter

import pytest

from imbrace_lake.export.progress import Progress, ProgressLine, Rate, TimeLeft
from imbrace_lake.gateway.client import Traffic


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
    progress = Progress(stage="exporting", conversations=1_200, messages_total=5_000, traffic=traffic)
    line = ProgressLine()
    first = line.describe(progress)
    clock.now += 10.0
    traffic.requests = 85
    progress.statuses = Counter(complete=98, failed=1, incomplete=1)

    assert first == (
        "exporting: 0 of 1,200 conversations · 0 failed · 5,000 messages · 0.0 requests per second"
        " · time left unknown"
    )
    assert line.describe(progress) == (
        "exporting: 100 of 1,200 conversations · 2 failed · 5,000 messages · 8.5 requests per second"
        " · about 110 s left"
    )
    assert line.describe_end(progress) == "100 of 1,200 conversations · 2 failed · 5,000 messages"
