"""Runs within a budget: ages as in the simulator, and nothing is missing after the promised age."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, tzinfo
from pathlib import Path
from threading import Thread

import numpy as np
import pytest

from benchmarks.revisit import Ages, Lake, Pattern, Rows, Visits, simulate
from imbrace_lake.revisit import RevisitPolicy
from imbrace_sandbox import Sandbox, SandboxOptions
from tests.acceptance.scale import IS_FULL
from tests.flows.offline import Offline

# Conversations, and requests per second of hourly runs.
CASES = [(20_000, 5.0), (20_000, 1.0)] if IS_FULL else [(200, 0.01)]
ACTIVE = 0.02 if IS_FULL else 0.05
HISTORY_DAYS = 20
# A simulation begins on a Thursday, as the hours since 1970 do.
START = datetime(2026, 1, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)
# Hours in which messages arrive; later runs go on until the promise has ended.
ARRIVALS = 24 if IS_FULL else 12
PROMISE = 12
MINUTE = timedelta(minutes=1)


class FewActive(Pattern):
    """Conversations of which few write nearly all messages."""

    def __init__(self, count: int, seed: int) -> None:
        super().__init__(count, seed)
        is_active = self.random.random(count) < ACTIVE
        self.rate = np.where(is_active, self.random.lognormal(-1.5, 1, count), 1 / 1_000)
        self._sums = np.cumsum(self.rate)


class AtOnce(Lake):
    """The policy of the lake if a run takes no time."""

    def spread(self, rows: Rows, now: float) -> Visits:
        return rows, np.full(len(rows), now)


class Clock:
    """A clock that stands at a time while a run is going on; replaces `datetime` in a module."""

    time = START

    @classmethod
    def now(cls, zone: tzinfo) -> datetime:
        return cls.time.astimezone(zone)


class Days:
    """A gateway and its lake, hour by hour."""

    def __init__(
        self,
        box: Sandbox,
        offline: Offline,
        pattern: Pattern,
        requests: int,
        *,
        start: datetime = START,
        history_days: int = HISTORY_DAYS,
    ) -> None:
        self.box, self.offline, self.pattern, self.requests = box, offline, pattern, requests
        self.start, self.history_days = start, history_days
        self.ids: list[str] = []
        self.written: dict[str, list[datetime]] = defaultdict(list)

    def first(self, numbers: Path) -> None:
        """Export the history of all conversations."""
        phones = [f"+88691{number:07}" for number in range(self.pattern.count)]
        for number, phone in enumerate(phones):
            # Between equal values, the id decides, and the order in the simulator.
            one = self.box.put([], phone=phone, conversation_id=f"conv_{number:07}")
            self.box.append(one, at=self.start - timedelta(days=self.history_days))
            self.ids.append(one)
        for day in range(-self.history_days, 0):
            self.arrive(24 * day, 24 * day + 24)
        self.written.clear()
        numbers.write_text("\n".join(["phone", *phones]))
        assert self.offline.ingest("first", phones=numbers).is_completed()

    def arrive(self, begin: float, end: float, wait: Callable[[datetime], None] = lambda at: None) -> None:
        """Let the messages of some hours arrive, after a wait for each."""
        rows, times = self.pattern.step(begin, end)
        order = np.argsort(times)
        for row, hours in zip(rows[order].tolist(), times[order].tolist(), strict=True):
            at = self.start + hours * HOUR
            wait(at)
            self.box.append(self.ids[row], at=at)
            self.written[self.ids[row]].append(at)

    def run(self, hour: int, monkeypatch: pytest.MonkeyPatch) -> None:
        """Run at a full hour."""
        monkeypatch.setattr(Clock, "time", self.start + hour * HOUR)
        state = self.offline.ingest(f"hour-{hour}", budget=self.requests, promise_days=PROMISE / 24)
        assert state.is_completed(), state.message

    def ages(self, hours: float) -> Ages:
        """Return the ages at which the runs of the first hours found messages."""
        found, end = Ages(), self.start + hours * HOUR
        proofs = defaultdict(list)
        for row in self.offline.rows("conversations"):
            if row["run_id"] != "first" and row["finished_at"] < end:
                proofs[row["conversation_id"]].append(row["finished_at"])
        for one, times in self.written.items():
            ages = [min((proof for proof in proofs[one] if proof >= at), default=end) - at for at in times]
            found.add(np.array([age / HOUR for age in ages]))
        return found


@pytest.mark.timeout(7_200)
@pytest.mark.parametrize(("conversations", "per_second"), CASES)
def test_measured_ages_are_those_of_the_simulator_and_nothing_is_missing_after_the_promised_age(
    conversations: int, per_second: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests, policy = round(0.9 * 3600 * per_second), RevisitPolicy(PROMISE * HOUR)
    monkeypatch.setattr("imbrace_lake.export.run.datetime", Clock)
    with Sandbox(SandboxOptions(conversations=0)) as box:
        offline = Offline(box, tmp_path / "lake", monkeypatch)
        days = Days(box, offline, FewActive(conversations, 1), requests)
        days.first(tmp_path / "all.csv")
        for hour in range(ARRIVALS):
            days.run(hour, monkeypatch)
            days.arrive(hour, hour + 1)
        measured = days.ages(ARRIVALS)
        for hour in range(ARRIVALS, ARRIVALS + PROMISE + 1):
            days.run(hour, monkeypatch)

        assert offline.is_complete()

    simulated = simulate(
        FewActive(conversations, 1), AtOnce, requests, policy, days=ARRIVALS / 24, history_days=HISTORY_DAYS
    )
    assert measured.count == simulated.count > 40
    assert measured.quantile(1) < 1.02 * PROMISE
    for share in (0.5, 0.95):
        assert measured.quantile(share) == pytest.approx(simulated.quantile(share), rel=0.2)
    assert measured.total == pytest.approx(simulated.total, rel=0.2)
    assert measured.fresh == pytest.approx(simulated.fresh, rel=0.2)
    print(  # noqa: T201 - the figures of a full run
        f"{conversations:,} at {per_second:g}/s: median {measured.quantile(0.5):.2f} h"
        f" (simulated {simulated.quantile(0.5):.2f}), 95 % {measured.quantile(0.95):.2f} h"
        f" ({simulated.quantile(0.95):.2f}), {measured.fresh / measured.count:.0%} within an hour"
        f" ({simulated.fresh / simulated.count:.0%})"
    )


# -- the pace, by a real clock -----------------------------------------------------------------------


class FewBusy(Pattern):
    """The same in a sixtieth of the time: a few conversations write every few minutes."""

    def __init__(self, count: int, seed: int) -> None:
        super().__init__(count, seed)
        is_busy = self.random.random(count) < 0.02
        self.rate = np.where(is_busy, self.random.lognormal(2.5, 1, count), 1 / 20)
        self._sums = np.cumsum(self.rate)


@pytest.mark.skipif(not IS_FULL, reason="takes 27 minutes by the clock: IMBRACE_ACCEPTANCE=full")
@pytest.mark.timeout(3_600)
def test_at_the_pace_of_five_requests_per_second_ages_are_those_of_the_simulator(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    conversations, per_second, arrivals, promise = 2_000, 5, 10, 15
    policy = RevisitPolicy(promise * MINUTE, MINUTE)
    pattern = FewBusy(conversations, 1)
    with Sandbox(SandboxOptions(conversations=0)) as box:
        offline = Offline(box, tmp_path / "lake", monkeypatch)
        days = Days(box, offline, pattern, 0, start=datetime.now(UTC), history_days=1)
        days.first(tmp_path / "all.csv")
        # More than five requests in a second are answered with 429.
        box.set_options(budget_requests=per_second, budget_window_seconds=1.0, budget_kind="bucket")
        box.reset_stats()
        days.start = datetime.now(UTC)

        def let_arrive() -> None:
            for minute in range(arrivals):
                days.arrive(minute / 60, (minute + 1) / 60, sleep_until)

        arriving = Thread(target=let_arrive)
        arriving.start()
        taken = []
        for minute in range(arrivals + promise + 1):
            sleep_until(days.start + minute * MINUTE)
            began = time.monotonic()
            state = offline.ingest(
                f"minute-{minute}", requests_per_second=per_second, tries=6,
                period_minutes=1, promise_days=promise / 1_440,
            )  # fmt: skip
            taken.append(time.monotonic() - began)
            assert state.is_completed(), state.message
        arriving.join()
        measured, stats = days.ages(arrivals / 60), box.stats()
        runs = [offline.row(f"minute-{minute}") for minute in range(arrivals)]
        # A visit that finds news costs more than one request, so a run visits fewer than its budget.
        reached = [json.loads(run["parameters"])["visits"]["visited"] for run in runs if run is not None]

        assert offline.is_complete()

    simulated = simulate(
        FewBusy(conversations, 1), Lake, round(sum(reached) / arrivals), policy,
        days=arrivals / 1_440, history_days=1,
    )  # fmt: skip
    print(  # noqa: T201 - the figures of a full run
        f"{conversations:,} at {per_second:g}/s by the clock: {minutes(measured)}; simulated:"
        f" {minutes(simulated)}; {measured.count} messages; runs of {min(taken):.0f} to {max(taken):.0f} s;"
        f" {stats.accepted:,} requests, {stats.refused} too many"
    )
    assert measured.count == simulated.count > 40
    assert measured.total == pytest.approx(simulated.total, rel=0.2)
    assert measured.quantile(0.95) == pytest.approx(simulated.quantile(0.95), rel=0.2)


def minutes(ages: Ages) -> str:
    """Return ages in minutes."""
    return (
        f"mean {60 * ages.total / ages.count:.2f} min, median {60 * ages.quantile(0.5):.2f}, 95 %"
        f" {60 * ages.quantile(0.95):.2f}"
    )


def sleep_until(at: datetime) -> None:
    """Wait for a time."""
    time.sleep(max(0.0, (at - datetime.now(UTC)).total_seconds()))
