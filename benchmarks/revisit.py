"""Simulate revisit policies with a virtual clock: how old news is when a run finds it.

Messages arrive by a pattern; every period, a run visits as many conversations as it has requests. The policy
of the lake is compared with a round robin, with the conversations of the most recent messages first, and with
the limit: the best fixed schedule that knows the true rate of each conversation.
"""

from __future__ import annotations

import argparse
import gzip
import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from benchmarks.environment import machine
from benchmarks.memory import most_memory_bytes
from imbrace_lake.export.visits import choose_visits
from imbrace_lake.lake.conversation_states import ConversationStates
from imbrace_lake.revisit import (
    ABSENT,
    COLUMNS,
    LISTED_HOURS,
    Known,
    Organization,
    Outlook,
    RevisitPolicy,
    as_time,
    count_hours,
    pick,
    rates,
    weigh_hours,
)
from imbrace_lake.tuning import tuned_process

Floats = npt.NDArray[np.floating[Any]]
Rows = npt.NDArray[np.int64]
# The conversations and the times of messages.
Messages = tuple[Rows, Floats]

# Messages per hour of one conversation, on average: three per week.
MEAN_RATE = 3 / 168
# The spread of the logarithm of rates; 1 % of the conversations write 57 % of the messages.
SPREAD = 2.5
MAX_RATE = 30.0
# An export reads all messages of a conversation, so a lake knows years of its customers from the first day.
HISTORY_DAYS = 365
AGES = np.concatenate([[0.0], np.geomspace(1 / 60, 24 * 365, 700)])
NEVER = -np.inf


# -- patterns ---------------------------------------------------------------------------------------


class Pattern:
    """Conversations that write at random times, each at its own rate: exponential silence.

    Args:
        count: The number of conversations.
        seed: Decides the rates and times.
    """

    has_equal_rates = False
    # Messages with longer gaps, in hours, belong to different sessions; None if these do not begin at random.
    session_gap: float | None = 0.0

    def __init__(self, count: int, seed: int) -> None:
        self.count, self.seed = count, seed
        self.random = np.random.default_rng(seed)
        rate = np.ones(count)
        if not self.has_equal_rates:
            rate = np.exp(SPREAD * self.random.standard_normal(count))
        self.rate = np.minimum(rate * (MEAN_RATE / rate.mean()), MAX_RATE)
        self._sums = np.cumsum(self.rate)
        self._later: Messages = (np.empty(0, np.int64), np.empty(0))

    def step(self, begin: float, end: float) -> Messages:
        """Return the messages of a span of time, in hours; the spans of several calls follow each other.

        The messages depend on the span alone, so that all schedules find the same ones.
        """
        self.random = np.random.default_rng([self.seed, 2**31 + round(60 * begin)])
        rows, times = self.write(begin, end)
        rows, times = np.concatenate([self._later[0], rows]), np.concatenate([self._later[1], times])
        is_now = times < end
        self._later = rows[~is_now], times[~is_now]
        return rows[is_now], times[is_now]

    def write(self, begin: float, end: float) -> Messages:
        """Return messages that begin in a span of time, and those that follow from them."""
        return self.at_random(begin, end, 1.0)

    def at_random(self, begin: float, end: float, factor: float) -> Messages:
        """Return random times, each of a random conversation by its rate."""
        number = self.random.poisson(self._sums[-1] * (end - begin) * factor)
        return self.choose(number), self.random.uniform(begin, end, number)

    def choose(self, number: int) -> Rows:
        """Return random conversations by their rate, sorted, because millions are then found much faster."""
        at = np.sort(self.random.random(number)) * self._sums[-1]
        found: Rows = np.minimum(np.searchsorted(self._sums, at, side="right"), self.count - 1)
        return found


class Equal(Pattern):
    """Conversations without structure: all have the same rate."""

    has_equal_rates = True


class Office(Pattern):
    """Customers who write in office hours; a fifth of them live in other time zones."""

    def __init__(self, count: int, seed: int) -> None:
        super().__init__(count, seed)
        is_abroad = self.random.random(count) < 0.2
        self._offset = np.where(is_abroad, self.random.integers(6, 18, count), 0).astype(np.int8)
        self._mean = float(self._activity(np.arange(168) + 0.5).mean())

    def write(self, begin: float, end: float) -> Messages:
        rows, times = self.at_random(begin, end, 1 / self._mean)
        is_kept = self.random.random(len(times)) < self._activity(times + self._offset[rows])
        return rows[is_kept], times[is_kept]

    def _activity(self, times: Floats) -> Floats:
        hour, day = times % 24, (times // 24) % 7
        activity = np.where((hour >= 9) & (hour < 18), 1.0, np.where((hour >= 7) & (hour < 22), 0.25, 0.03))
        return activity * np.where(day >= 5, 0.2, 1.0)


class Bursts(Pattern):
    """Cases: one to several sessions within some days, each of about ten messages some minutes apart."""

    session_gap = None
    sessions, messages = 3.0, 10

    def write(self, begin: float, end: float) -> Messages:
        rows, times = self.at_random(begin, end, 1 / ((1 + self.sessions) * self.messages))
        further = self.random.poisson(self.sessions, len(rows))
        rows = np.concatenate([rows, np.repeat(rows, further)])
        times = np.concatenate(
            [times, np.repeat(times, further) + self.random.exponential(24, further.sum())]
        )
        number = self.random.geometric(1 / self.messages, len(rows))
        gaps = np.cumsum(self.random.exponential(0.05, number.sum()))
        start = np.repeat(np.cumsum(number) - number, number)
        return np.repeat(rows, number), np.repeat(times, number) + gaps - gaps[start]


class Seasonal(Pattern):
    """Customers who write for some weeks, then not for months."""

    session_gap = None
    share = 0.15

    def __init__(self, count: int, seed: int) -> None:
        super().__init__(count, seed)
        self._cycle = self.random.uniform(30 * 24, 90 * 24, count).astype(np.float32)
        self._phase = self.random.random(count, np.float32)

    def write(self, begin: float, end: float) -> Messages:
        rows, times = self.at_random(begin, end, 1 / self.share)
        is_kept = (times / self._cycle[rows] + self._phase[rows]) % 1 < self.share
        return rows[is_kept], times[is_kept]


class Recorded(Pattern):
    """The times of recorded conversations, over and over, each given to a random conversation by its rate.

    Args:
        count, seed: As in `Pattern`.
        path: Lines of JSON, each with the `messages` of a conversation and the time of each (`at`).
    """

    session_gap = 1.0

    def __init__(self, count: int, seed: int, path: Path) -> None:
        super().__init__(count, seed)
        sessions = [one for one in _read_times(path) if len(one)]
        first = min(one[0] for one in sessions)
        self._sessions = sorted(sessions, key=lambda one: float(one[0]))
        # Whole weeks, so that the weekdays stay.
        self._length = 168 * np.ceil((max(one[0] for one in sessions) - first) / 168)
        self._start = np.array([one[0] for one in self._sessions])
        # Each session is repeated by as many conversations as the mean rate requires.
        total = sum(map(len, sessions)) / self._length
        self._copies = self._sums[-1] / total

    def write(self, begin: float, end: float) -> Messages:
        rows, times = [np.empty(0, np.int64)], [np.empty(0)]
        for week in range(int(begin // self._length) - 1, int(end // self._length) + 1):
            shift = week * self._length - self._start[0] // 168 * 168
            low, high = np.searchsorted(self._start + shift, [begin, end])
            for number in range(low, high):
                copies = self.random.poisson(self._copies)
                chosen = self.choose(copies)
                session = self._sessions[number] + shift
                rows.append(np.repeat(chosen, len(session)))
                times.append(np.tile(session, copies) + np.repeat(self.random.random(copies), len(session)))
        return np.concatenate(rows), np.concatenate(times)


def _read_times(path: Path) -> Iterator[Floats]:
    """Yield the times of the messages of each conversation, in hours, without anything else of it."""
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as lines:
        for line in lines:
            times = [one["at"] for one in json.loads(line)["messages"] if one.get("at")]
            yield np.sort([datetime.fromisoformat(one).timestamp() / 3600 for one in times])


# -- policies ---------------------------------------------------------------------------------------


@dataclass(slots=True)
class Job:
    """One simulation: the conversations, the budget and the promise.

    Attributes:
        pattern: Writes the messages.
        requests: The visits of one run.
        policy: The promise, and the time between runs.
        seen: The last visit of each conversation.
        since: The time of each conversation's first message.
    """

    pattern: Pattern
    requests: int
    policy: RevisitPolicy
    seen: Floats
    since: Floats


# The rows and the times of visits.
Visits = tuple[Rows, Floats]


class Schedule:
    """A way to choose conversations.

    Attributes:
        learns: Whether it needs the messages of the time before the simulation.
    """

    learns = False

    def __init__(self, job: Job) -> None:
        self.job = job

    def visit(self, now: float) -> Visits:
        """Return the visits of the run that begins now; a conversation is visited at most once."""
        raise NotImplementedError

    def learn(self, rows: Rows, times: Floats) -> None:
        """Receive the messages that the visits found, before `visited`."""

    def visited(self, rows: Rows) -> None:
        """Continue after the visits, whose times are those of `job.seen`."""

    def spread(self, rows: Rows, now: float) -> Visits:
        """Return visits in this order, evenly spread over the run."""
        share = (np.arange(len(rows)) + 0.5) / max(1, self.job.requests)
        return rows, now + self.job.policy.shortest * share


class Lake(Schedule):
    """The policy of the lake (imbrace_lake/revisit.py); it compares the conversations once a week."""

    learns = True

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        count = job.pattern.count
        self.hours = np.full((count, LISTED_HOURS), ABSENT, np.int16)
        self.messages, self.active = np.zeros(count, np.int32), np.zeros(count, np.int32)
        self.rate, self.mark = np.zeros(count, np.float32), np.zeros(count, np.float32)
        # One column for each conversation, because each step needs two rows.
        self.added = np.zeros((25, count), np.float32)
        self.organization: Organization | None = None
        self.compared = NEVER

    def visit(self, now: float) -> Visits:
        job = self.job
        if now >= self.compared + 168:
            known = self.known()
            self.organization, self.compared = Organization.of(known, now, job.policy), now
            for some, _ in known.slices():
                rows = np.arange(len(job.seen))[some]
                self.weigh(rows)
                self.visited(rows)
        assert self.organization is not None  # noqa: S101 - narrows the type for mypy
        middle = now + job.policy.shortest / 2
        counted = count_hours(self.added.T, self.organization, middle) - self.mark
        left = job.seen + (job.policy.longest - now)
        rows, _ = pick(self.rate, counted, left, job.policy, job.requests)
        return self.spread(rows, now)

    def outlook(self, now: float) -> Outlook:
        """Return the outlook as the lake computes it for a run."""
        return Outlook.of(self.known(), as_time(now), self.job.policy, self.job.requests)

    def known(self) -> Known:
        """Return what the visits have found."""
        return Known(self.job.seen, self.job.since, self.hours, self.messages, self.active)

    def learn(self, rows: Rows, times: Floats) -> None:
        np.add.at(self.messages, rows, 1)
        # One number for each conversation and hour.
        pairs = np.sort(rows * 2**16 + np.floor(times).astype(np.int64) + 2**15)
        pairs = pairs[_first_of_equal(pairs)]
        rows, hours = pairs >> 16, (pairs & (2**16 - 1)) - 2**15
        is_new = hours > self.hours[rows, -1]
        rows, hours = rows[is_new], hours[is_new]
        start = _first_of_equal(rows)
        changed, number = rows[start], np.diff(start, append=len(rows))
        self.active[changed] += number.astype(np.int32)
        for place in range(number.max(initial=0)):
            some = start[number > place] + place
            self.hours[rows[some], :-1] = self.hours[rows[some], 1:]
            self.hours[rows[some], -1] = hours[some]
        if self.organization is not None:
            self.weigh(changed)

    def weigh(self, rows: Rows) -> None:
        """Weigh the hours of the day again for conversations whose active hours have changed."""
        assert self.organization is not None  # noqa: S101 - narrows the type for mypy
        self.added[:, rows] = weigh_hours(self.hours[rows], self.organization).T

    def visited(self, rows: Rows) -> None:
        assert self.organization is not None  # noqa: S101 - narrows the type for mypy
        self.rate[rows] = self.rates(rows)
        self.mark[rows] = count_hours(self.added[:, rows].T, self.organization, self.job.seen[rows])

    def rates(self, rows: Rows) -> Floats:
        """Return the expected messages of conversations, per hour."""
        assert self.organization is not None  # noqa: S101 - narrows the type for mypy
        return rates(self.known().rows(rows), self.organization)


def _first_of_equal(ordered: Rows) -> Rows:
    """Return where each number of an ordered array begins; `np.unique` takes several times as long."""
    return np.flatnonzero(np.diff(ordered, prepend=ordered[:1] - 1))


class Learned(Lake):
    """What can be learned: the policy with the best estimate of the rate that the messages so far allow.

    It knows how many conversations have which rate, and counts the sessions of each conversation: its rate is
    the mean of all rates, each weighted by the chance that it leads to this number of sessions. No other
    function of the number of sessions has a smaller error, if sessions begin at random times.
    """

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        count = job.pattern.count
        self.sessions, self.last = np.zeros(count, np.int32), np.full(count, NEVER)
        numbers, edges = np.histogram(np.log(job.pattern.rate), 200)
        is_there = numbers > 0
        self.rate_of_all = np.exp((edges[:-1] + edges[1:]) / 2)[is_there]
        self.share = numbers[is_there] / count

    def learn(self, rows: Rows, times: Floats) -> None:
        super().learn(rows, times)
        order = np.lexsort((times, rows))
        rows, times = rows[order], times[order]
        before = np.concatenate([[NEVER], times[:-1]])
        is_first = np.concatenate([[True], rows[1:] != rows[:-1]])[: len(rows)]
        before = np.where(is_first, self.last[rows], before[: len(rows)])
        begins = times > before + (self.job.pattern.session_gap or 0.0)
        self.sessions += np.bincount(rows[begins], minlength=len(self.sessions)).astype(np.int32)
        self.last[rows] = times

    def rates(self, rows: Rows) -> Floats:
        if not len(rows):
            return np.empty(0)
        # Without the message with which each conversation began.
        numbers, which = np.unique(self.sessions[rows] - 1, return_inverse=True)
        time = float((self.job.seen[rows] - self.job.since[rows]).mean())
        expected = self.rate_of_all * time * self.sessions.sum() / self.messages.sum()
        chance = numbers[:, None] * np.log(expected) - expected + np.log(self.share)
        weight = np.exp(chance - chance.max(1, keepdims=True))
        found: Floats = ((weight @ self.rate_of_all) / weight.sum(1))[which]
        return found


class RoundRobin(Schedule):
    """All conversations in turn."""

    next = 0

    def visit(self, now: float) -> Visits:
        count = self.job.pattern.count
        rows = (self.next + np.arange(min(self.job.requests, count))) % count
        self.next = int(rows[-1] + 1) % count
        return self.spread(rows, now)


class RecentFirst(Schedule):
    """Those with the most recent messages that the lake has."""

    learns = True

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self.last = np.full(job.pattern.count, NEVER)

    def visit(self, now: float) -> Visits:
        number = min(self.job.requests, len(self.last))
        return self.spread(np.argpartition(-self.last, number - 1)[:number], now)

    def learn(self, rows: Rows, times: Floats) -> None:
        np.maximum.at(self.last, rows, times)


class Limit(Schedule):
    """The fixed schedule with the least mean age that knows the true rates."""

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self.interval = _best_intervals(job.pattern.rate, job.requests, job.policy)
        self.next = np.random.default_rng(job.pattern.seed).random(job.pattern.count) * self.interval

    def visit(self, now: float) -> Visits:
        rows = np.flatnonzero(self.next < now + self.job.policy.shortest)
        times = np.maximum(self.next[rows], now)
        self.next[rows] += self.interval[rows]
        return rows, times


def _best_intervals(rate: Floats, requests: int, policy: RevisitPolicy) -> Floats:
    """Minimise the sum of rate x interval, where the visits of a run are the requests: t ~ 1/sqrt(rate)."""
    longest = policy.promise / timedelta(hours=1)
    root = 1 / np.sqrt(np.maximum(rate, 1e-12))
    low, high = 1e-9, 1e9
    for _ in range(100):
        factor = np.sqrt(low * high)
        interval = np.clip(factor * root, policy.shortest, longest)
        is_too_short = (policy.shortest / interval).sum() > requests
        low, high = (factor, high) if is_too_short else (low, factor)
    return np.clip(high * root, policy.shortest, longest)


# -- the simulation ---------------------------------------------------------------------------------


@dataclass(slots=True)
class Ages:
    """The ages at which visits found messages."""

    counts: Rows = field(default_factory=lambda: np.zeros(len(AGES), np.int64))
    total: float = 0.0
    fresh: int = 0
    oldest: float = 0.0

    def add(self, ages: Floats) -> None:
        """Add the ages of messages, in hours."""
        # Times are kept to the second.
        ages = np.maximum(ages, 0.0)
        self.counts += np.bincount(np.searchsorted(AGES, ages, side="right") - 1, minlength=len(AGES))
        self.total += float(ages.sum())
        self.fresh += int((ages <= 1).sum())

    @property
    def count(self) -> int:
        """The number of messages."""
        return int(self.counts.sum())

    def quantile(self, share: float) -> float:
        """Return the age below which a share of the messages was found."""
        sums = np.cumsum(self.counts)
        return float(AGES[min(np.searchsorted(sums, share * sums[-1]) + 1, len(AGES) - 1)])


class Waiting:
    """The messages that no visit has found yet.

    Each conversation has a chain of places from its last message to its first, so that a visit costs as much
    as it finds, however many messages wait elsewhere.
    """

    def __init__(self, count: int) -> None:
        self._last = np.full(count, -1, np.int32)
        self._times, self._before = np.empty(0, np.float32), np.empty(0, np.int32)
        # The places that are free: the first `_left` of this array.
        self._free, self._left = np.empty(0, np.int32), 0

    def add(self, rows: Rows, times: Floats) -> None:
        """Add messages."""
        if len(rows) > self._left:
            self._grow(len(rows))
        order = np.argsort(rows, kind="stable")
        rows, self._left = rows[order], self._left - len(rows)
        places = self._free[self._left : self._left + len(rows)].copy()
        before, is_same = self._last[rows], rows[1:] == rows[:-1]
        before[1:][is_same] = places[:-1][is_same]
        self._before[places], self._times[places] = before, times[order]
        # Of several messages of a conversation, the last one stays.
        self._last[rows] = places

    def take(self, rows: Rows) -> Messages:
        """Remove and return all messages of some conversations."""
        found_rows, found = [rows[:0]], [self._last[:0]]
        places, self._last[rows] = self._last[rows], -1
        while (is_there := places >= 0).any():
            rows, places = rows[is_there], places[is_there]
            found_rows.append(rows)
            found.append(places)
            places = self._before[places]
        taken = np.concatenate(found)
        self._free[self._left : self._left + len(taken)] = taken
        self._left += len(taken)
        return np.concatenate(found_rows), self._times[taken].astype(np.float64)

    def _grow(self, number: int) -> None:
        size = len(self._times)
        more = max(number, size // 2)
        self._times, self._before = np.resize(self._times, size + more), np.resize(self._before, size + more)
        self._free = np.resize(self._free, size + more)
        self._free[self._left : self._left + more] = np.arange(size, size + more)
        self._left += more


def simulate(
    pattern: Pattern,
    schedule: Callable[[Job], Schedule],
    requests: int,
    policy: RevisitPolicy,
    *,
    days: float = 60,
    history_days: int = HISTORY_DAYS,
) -> Ages:
    """Run a schedule over some days, after an export of everything, with its history, at the time 0."""
    count = pattern.count
    job = Job(pattern, requests, policy, np.zeros(count), np.full(count, -24.0 * history_days))
    chosen = schedule(job)
    if chosen.learns:
        # The message with which each conversation began.
        chosen.learn(np.arange(count), job.since)
    # Sessions that have begun before continue, also for a schedule that does not learn.
    for day in range(-history_days if chosen.learns else max(-history_days, -14), 0):
        messages = pattern.step(24.0 * day, 24.0 * (day + 1))
        if chosen.learns:
            chosen.learn(*messages)
    ages, period, waiting = Ages(), policy.shortest, Waiting(count)
    visit_of = np.full(count, np.inf)
    for number in range(round(24 * days / period)):
        now = number * period
        visited, at = chosen.visit(now)
        ages.oldest = max(ages.oldest, float((at - job.seen[visited]).max(initial=0)))
        job.seen[visited] = visit_of[visited] = at
        rows, times = pattern.step(now, now + period)
        is_later = times > visit_of[rows]
        waiting.add(rows[~is_later], times[~is_later])
        found, written = waiting.take(visited)
        ages.add(visit_of[found] - written)
        chosen.learn(found, written)
        chosen.visited(visited)
        waiting.add(rows[is_later], times[is_later])
        visit_of[visited] = np.inf
    # Messages that were not found are at least this old.
    _, written = waiting.take(np.arange(count))
    ages.add(24.0 * days - written)
    ages.oldest = max(ages.oldest, float(24.0 * days - job.seen.min()))
    return ages


PATTERNS: dict[str, Callable[..., Pattern]] = {
    "exponential": Pattern,
    "office": Office,
    "bursts": Bursts,
    "seasonal": Seasonal,
    "equal": Equal,
}
SCHEDULES: dict[str, Callable[[Job], Schedule]] = {
    "lake": Lake,
    "learned": Learned,
    "round robin": RoundRobin,
    "recent first": RecentFirst,
    "limit": Limit,
}


def row_of(ages: Ages, others: dict[str, Ages]) -> str:
    """Return the cells of a row: ages, and the mean of the limit and of a round robin divided by this one."""
    mean = ages.total / max(1, ages.count)
    compared = [others.get(name) for name in ("limit", "round robin")]
    ratios = ["" if one is None else f"{one.total / max(1, one.count) / mean:.2f}" for one in compared]
    return (
        f"{mean:.2f} h | {ages.quantile(0.5):.2f} h | {ages.quantile(0.95):.2f} h"
        f" | {ages.fresh / max(1, ages.count):.1%} | {ages.oldest / 24:.1f} d | {' | '.join(ratios)}"
    )


def states_of(count: int, now: datetime, seed: int) -> pa.Table:
    """Return states of conversations as a checkpoint has them, with ids, times and active hours."""
    random, hour = np.random.default_rng(seed), int(now.timestamp() // 3600)
    lengths = random.integers(0, LISTED_HOURS + 1, count)
    ends = np.cumsum(lengths)
    hours = hour - 2 - np.floor(random.pareto(0.5, ends[-1]) % 20_000).astype(np.int32)
    hours = hours[np.lexsort((hours, np.repeat(np.arange(count), lengths)))]
    listed = pa.ListArray.from_arrays(pa.array(np.concatenate([[0], ends]), pa.int32()), pa.array(hours))
    time = pa.timestamp("ms", "UTC")
    ago = random.integers(0, 168 * 3_600_000, count)
    seen = pa.array(int(now.timestamp() * 1000) - ago).cast(time)
    first = pa.array(np.full(count, (hour - 20_002) * 3_600_000)).cast(time)
    ids = pa.array(f"conv_{number:032x}" for number in random.permutation(count).tolist())
    columns = dict.fromkeys(COLUMNS, pa.nulls(count, time))
    columns |= {"status": pa.array(["unchanged"] * count), "conversation_id": ids}
    columns |= {"proven_until": seen, "first_message_at": first}
    columns |= {"distinct_messages": pa.array(3 * lengths), "active_hours": listed}
    columns |= {"active_hour_count": pa.array(lengths)}
    return pa.table(columns)


def choose(path: Path) -> str:
    """Measure the choice of 72,000 visits, those of an hour at 20 requests per second."""
    policy = RevisitPolicy()
    with tuned_process(), pa.memory_map(str(path)) as file:
        states = pa.ipc.open_file(file).read_all()
        lake = ConversationStates(states)
        began, cpu = time.perf_counter(), time.process_time()
        visits = choose_visits(lake, (), (), policy, datetime.now(UTC), 72_000)
    return (
        f"{len(visits.ids):,} of {states.num_rows:,} chosen in {time.perf_counter() - began:.1f} s"
        f" ({time.process_time() - cpu:.1f} s of CPU);"
        f" peak memory {most_memory_bytes() / 1e6:,.0f} MB, with the states ({states.nbytes / 1e6:,.0f} MB)"
    )


def _choose_in_process(count: int, seed: int) -> str:
    """Return the measurement of a new process, because the peak memory of a process never shrinks."""
    with TemporaryDirectory(prefix="imbrace-revisit-") as folder:
        path = Path(folder, "states")
        states = states_of(count, datetime.now(UTC), seed)
        with pa.ipc.new_file(str(path), states.schema) as file:
            file.write_table(states)
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as processes:
            return processes.submit(choose, path).result()


def main() -> None:
    """Run the simulations and print the table row by row."""
    arguments = _arguments()
    if arguments.choose:
        print(machine())
        print(_choose_in_process(arguments.choose, arguments.seed))
        return
    period = timedelta(minutes=arguments.period_minutes)
    patterns = {name: PATTERNS[name] for name in arguments.patterns}
    if arguments.recorded:
        patterns["recorded"] = lambda count, seed: Recorded(count, seed, arguments.recorded)
    print(
        f"{machine()}; {arguments.days} days after a history of {arguments.history_days} days, a run every"
        f" {arguments.period_minutes:g} minutes\n\n| pattern | conversations | requests/s | promise"
        " | schedule | mean age | median | 95 % | within 1 h | oldest proof | limit/it | round robin/it"
        " | time | memory |\n"
        "|---|--:|--:|--:|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
        flush=True,
    )
    for name, pattern in patterns.items():
        for count in arguments.conversations:
            for per_second in arguments.per_second:
                # At least the promise that needs half of the requests.
                promise = max(arguments.promise_days, 2 * count / (86_400 * per_second))
                policy = RevisitPolicy(timedelta(days=promise), period)
                requests = round(per_second * 3600 * policy.shortest)
                found: dict[str, Ages] = {}
                # The limit comes first, because the others are compared with it.
                for schedule in [one for one in reversed(SCHEDULES) if one in arguments.schedules]:
                    began = time.perf_counter()
                    job = pattern(count, arguments.seed)
                    if schedule == "learned" and job.session_gap is None:
                        continue
                    found[schedule] = simulate(
                        job, SCHEDULES[schedule], requests, policy,
                        days=arguments.days, history_days=arguments.history_days,
                    )  # fmt: skip
                    row = row_of(found[schedule], found)
                    memory = most_memory_bytes() / 1e6
                    print(
                        f"| {name} | {count:,} | {per_second:g} | {promise:.3g} d | {schedule} | {row}"
                        f" | {time.perf_counter() - began:.0f} s | {memory:,.0f} MB |",
                        flush=True,
                    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.revisit", description=__doc__)

    def add(name: str, meaning: str, **options: Any) -> None:
        parser.add_argument(name, help=meaning, **options)

    add("--conversations", "default: 10000", nargs="+", type=int, default=[10_000], metavar="N")
    add(
        "--per-second", "requests per second; default: 0.2", nargs="+", type=float, default=[0.2], metavar="N"
    )
    add("--days", "simulated days; default: 60", type=int, default=60, metavar="N")
    add(
        "--history-days",
        f"of messages before them; default: {HISTORY_DAYS}",
        type=int,
        default=HISTORY_DAYS,
        metavar="N",
    )
    add(
        "--promise-days",
        "oldest proof, or what half of the requests can keep; default: 7",
        type=float,
        default=7.0,
        metavar="N",
    )
    add("--period-minutes", "time between runs; default: 60", type=float, default=60.0, metavar="N")
    add(
        "--patterns", ", ".join(PATTERNS), nargs="*", choices=PATTERNS, default=list(PATTERNS), metavar="NAME"
    )
    add("--recorded", "JSON lines of conversations with times: one more pattern", type=Path, metavar="FILE")
    add("--schedules", "default: all", nargs="+", choices=SCHEDULES, default=list(SCHEDULES), metavar="NAME")
    add("--seed", "default: 1", type=int, default=1, metavar="N")
    add(
        "--choose",
        "only measure one choice among N conversations, without a simulation",
        type=int,
        metavar="N",
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
