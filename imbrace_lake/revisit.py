"""Which conversations a run visits within its budget: a function of the ledgers' state and the time.

docs/freshness.md explains the rules with an example. Times are in hours since 1970 (UTC), and one row of each
array is one conversation, so that a million conversations take a few seconds and 300 MB.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

Floats = npt.NDArray[np.floating[Any]]
Integers = npt.NDArray[np.integer[Any]]

# The number of active hours that the lake remembers of each conversation.
LISTED_HOURS = 20
# An absent entry of the list of active hours: long before any message.
ABSENT = -(2**15)
# How many of the last active hours each estimate of the rate uses, and the weight of the estimate.
ESTIMATES = ((1, 0.05), (4, 0.15), (20, 0.8))
# How many active hours a silent conversation is expected to have in a time as long as that of its silence,
# if the lake does not show it, and how many such times of the lake's conversations count as much as that.
UNSEEN = 0.25
UNSEEN_TIMES = 10
# The spans, in hours, in which the active hours of conversations are compared.
SPANS = (24, 168, 672)
# The organization's messages per active hour count as much as this many active hours of the conversation.
ORGANIZATION_MESSAGES = 4
# The organization's day counts as much as this many active hours of the conversation.
ORGANIZATION_HOURS = 20
# Each active hour counts for this many hours before and after it, too.
BLUR = 2
# Active hours that are added to each hour of the day, and to each weekday, in the organization's profile.
SMOOTHING = 10
# The share of the promised age at which a proof is renewed.
RENEWED_AFTER = 0.9
# A conversation is active for this long after its last message.
ACTIVE_HOURS = 168
# Clocks may differ by this many hours.
SKEW = 1 / 12
# The state of a lake takes entries that are further ahead as older than all others (lake/checkpoint.py), so
# only these can be renewed at once.
RENEWABLE_SKEW = 1.0
ROWS_AT_A_TIME = 16_384
COLUMNS = (
    "conversation_id", "status", "proven_until", "finished_at", "first_message_at", "last_message_at",
    "distinct_messages", "active_hours", "active_hour_count",
)  # fmt: skip


def as_hours(time: datetime) -> float:
    """Return a time in hours since 1970."""
    return time.timestamp() / 3600


def as_time(hours: float) -> datetime:
    """Return hours since 1970 as a time in UTC."""
    return datetime.fromtimestamp(hours * 3600, UTC)


@dataclass(frozen=True, slots=True)
class RevisitPolicy:
    """The limits of the time between two visits of a conversation.

    Attributes:
        promise: No conversation waits longer, if the budget is sufficient.
        period: The time between two runs; no conversation is visited twice in it.
    """

    promise: timedelta = timedelta(days=7)
    period: timedelta = timedelta(hours=1)

    @property
    def longest(self) -> float:
        """The hours after which runs renew a proof: before the promise ends, because runs may be skipped."""
        return RENEWED_AFTER * (self.promise / timedelta(hours=1))

    @property
    def shortest(self) -> float:
        """The period in hours."""
        return self.period / timedelta(hours=1)

    def periods(self, hours: float) -> float:
        """Return the number of runs in some hours."""
        return hours / self.shortest

    def needed(self, conversations: int) -> int:
        """Return the visits per run that the promise needs: no conversation is visited twice in a run."""
        return math.ceil(conversations / max(1, math.floor(self.periods(self.longest))))

    @property
    def is_possible(self) -> bool:
        """Whether runs are often enough for the promise, if each visits everything."""
        return self.period <= self.promise

    def share(self, conversations: int, requests: int) -> int:
        """Return the most visits of a run for the promise: half, or all if only all of them can keep it."""
        return requests if requests / 2 < self.needed(conversations) <= requests else requests // 2


@dataclass(frozen=True, slots=True)
class Known:
    """What the lake knows about conversations that were proven at least once.

    Attributes:
        seen: The time of the last proof, or of the last look at a conversation that is deleted upstream.
        since: The time of the first message, from which on active hours are known.
        hours: The last active hours, those in which messages were written, the newest last;
            `ABSENT` at the front if there were fewer.
        messages, active: The number of all messages, and of all active hours; 0 where it is unknown.
        ids: The ids; None if the order of the rows decides between equal conversations.
        gone: Which conversations are deleted upstream; None if none is.
    """

    seen: Floats
    since: Floats
    hours: Integers
    messages: Integers
    active: Integers
    ids: pa.ChunkedArray | None = None
    gone: npt.NDArray[np.bool_] | None = None

    def __len__(self) -> int:
        return len(self.seen)

    @property
    def is_gone(self) -> npt.NDArray[np.bool_]:
        """Which conversations are deleted upstream."""
        return np.zeros(len(self), np.bool_) if self.gone is None else self.gone

    def rows(self, rows: Any) -> Known:
        """Return some conversations, without their ids."""
        return Known(
            self.seen[rows], self.since[rows], self.hours[rows], self.messages[rows], self.active[rows]
        )  # fmt: skip

    def is_active(self, now: float) -> npt.NDArray[np.bool_]:
        """Return which conversations had messages in the last seven days before a time."""
        last = self.hours[:, -1]
        return (last > math.floor(now) - ACTIVE_HOURS) & (last <= now)

    def ahead(self, now: float) -> int:
        """Return the number of proofs from the future: a clock was or is wrong."""
        return int(np.count_nonzero(self.seen > now + SKEW))

    def slices(self) -> Iterator[tuple[slice, Known]]:
        """Yield all conversations, some at a time."""
        for start in range(0, len(self), ROWS_AT_A_TIME):
            rows = slice(start, start + ROWS_AT_A_TIME)
            yield rows, self.rows(rows)


def known_of(states: pa.Table, policy: RevisitPolicy) -> Known:
    """Return what the states of conversations (`COLUMNS`) show.

    A conversation that was deleted upstream counts as silent since 1970, and as seen when a run last looked:
    only the promise lets it be visited.
    A state of an earlier version lacks the active hours: they are then spread evenly from its first message
    to its last.
    """
    count = states.num_rows
    seen, since = np.empty(count), np.empty(count)
    messages, active = np.zeros(count, np.int32), np.zeros(count, np.int32)
    hours = np.full((count, LISTED_HOURS), ABSENT, np.int32)
    gone = np.zeros(count, np.bool_)
    for start in range(0, count, ROWS_AT_A_TIME):
        rows, some = slice(start, start + ROWS_AT_A_TIME), states.slice(start, ROWS_AT_A_TIME)
        is_gone = gone[rows] = pc.equal(some.column("status"), "gone").to_numpy()
        proven, looked = some.column("proven_until"), some.column("finished_at")
        seen[rows] = np.where(
            is_gone, _hours_of(pc.coalesce(looked, proven)), _hours_of(pc.coalesce(proven, looked))
        )
        first = _hours_of(some.column("first_message_at"))
        since[rows] = np.where(np.isnan(first), seen[rows] - policy.longest, first)
        lists = some.column("active_hours")
        _fill(hours[rows], lists.combine_chunks())
        counts = pc.if_else(pc.is_null(lists), some.column("distinct_messages"), 0)
        _spread(hours[rows], first, _hours_of(some.column("last_message_at")), _numbers(counts))
        since[rows][is_gone], hours[rows][is_gone] = 0.0, ABSENT
        active[rows] = _numbers(some.column("active_hour_count"))
        is_counted = active[rows] > 0
        messages[rows] = np.where(is_counted, _numbers(some.column("distinct_messages")), 0)
    return Known(seen, since, hours, messages, active, states.column("conversation_id"), gone)


def _fill(hours: Integers, lists: pa.ListArray) -> None:
    """Write the end of each list to the end of a row."""
    lengths = _numbers(pc.list_value_length(lists)).astype(np.int64)
    listed = _numbers(pc.list_flatten(lists))
    row = np.repeat(np.arange(len(hours)), lengths)
    from_end = np.repeat(np.cumsum(lengths), lengths) - np.arange(len(listed))
    is_kept = from_end <= LISTED_HOURS
    hours[row[is_kept], LISTED_HOURS - from_end[is_kept]] = listed[is_kept]


def _spread(hours: Integers, first: Floats, last: Floats, counts: Floats) -> None:
    """Spread a number of active hours evenly over a span of time."""
    number = np.where(np.isnan(first) | np.isnan(last), 0, np.minimum(counts, LISTED_HOURS))[:, None]
    place = np.arange(LISTED_HOURS - 1, -1, -1)
    step = (last - first)[:, None] / np.maximum(number, 1)
    row, column = np.nonzero(place < number)
    hours[row, column] = np.floor(last[row] - step[row, 0] * place[column])


def _numbers(values: pa.Array | pa.ChunkedArray) -> Floats:
    """Return numbers, 0 for null."""
    return np.asarray(pc.fill_null(values.cast(pa.float64()), 0.0).to_numpy(zero_copy_only=False))


def _hours_of(times: pa.ChunkedArray) -> npt.NDArray[np.float64]:
    milliseconds = pc.cast(times.cast(pa.int64()), pa.float64(), safe=False)
    return np.asarray(pc.divide(milliseconds, 3_600_000.0).to_numpy(zero_copy_only=False), np.float64)


def add_active_hours(
    listed: Sequence[int] | None, count: int | None, times: npt.NDArray[np.int64]
) -> tuple[tuple[int, ...], int]:
    """Return the last active hours of a conversation, and the number of all, after further messages.

    Args:
        listed, count: The same before; None if there was no message.
        times: The times of new messages, in milliseconds since 1970.
    """
    new = {*(times // 3_600_000).tolist()}
    before = {*(listed or ())}
    return tuple(sorted(before | new)[-LISTED_HOURS:]), (count or 0) + len(new - before)


# -- the activity of a conversation -----------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Organization:
    """What the conversations of an organization have in common.

    Attributes:
        rate: Active hours per hour of one conversation, on average.
        messages: Messages per active hour, on average.
        contrast: The share of the differences between conversations that is not chance, from 0 to 1.
        unseen: The active hours of a conversation that was silent since its first message, on average, in a
            further time as long as that.
        day: The activity in each hour of the day (UTC), 1 on average.
        week: The weight of each day of the week, Thursday first: the root of its activity.
    """

    rate: float
    messages: float
    contrast: float
    unseen: float
    day: Floats
    week: Floats

    @classmethod
    def of(cls, known: Known, now: float, policy: RevisitPolicy) -> Organization:
        """Return the common properties of conversations."""
        until = math.floor(now - policy.longest)
        sums, profile = np.zeros((len(SPANS), 5)), np.zeros(168)
        silent_hours, silent_times = UNSEEN_TIMES * UNSEEN, float(UNSEEN_TIMES)
        for _, some in known.slices():
            # One row for each place in the lists: long rows are compared several times faster.
            hours = np.ascontiguousarray(some.hours.T)
            for number, span in enumerate(SPANS):
                time = np.clip(some.seen - some.since, 1.0, span)
                start = np.ceil(some.seen - time).astype(hours.dtype)
                count = (hours >= start).sum(0, dtype=np.int8).astype(np.float64)
                sums[number] += [
                    count.sum(), time.sum(), count @ count, count @ time, time @ time
                ]  # fmt: skip
            # Those that were silent from their first message until the last span began, for a week at least.
            before = some.seen - some.since - SPANS[-1]
            is_silent = ((hours > ABSENT).sum(0) - count == 1) & (hours[0] == ABSENT) & (before >= 168)
            silent_hours += count[is_silent].sum()
            silent_times += (SPANS[-1] / before[is_silent]).sum()
            # Whole weeks, four at most, of which all active hours are listed, so that all weekdays have the
            # same chance, in a young lake too.
            begin = until - 168 * np.clip((until - some.since) // 168, 0, 4).astype(hours.dtype)
            is_complete = (hours[0] == ABSENT) | (hours[0] <= begin)
            is_in = (hours > begin) & (hours <= until) & is_complete
            profile += np.bincount(hours[is_in] % 168, minlength=168)
        by_day = profile.reshape(7, 24)
        day, week = by_day.sum(0) + SMOOTHING, by_day.sum(1) + SMOOTHING
        count, time = sums[-1, :2]
        return cls(
            rate=max(count, 0.5) / max(time, 1.0),
            messages=max(float(known.messages.sum()), 1.0) / max(float(known.active.sum()), 1.0),
            contrast=1 - 1 / _dispersion(sums) ** 2,
            unseen=float(silent_hours / silent_times),
            day=day / day.mean(),
            week=np.sqrt(week / week.mean()),
        )


def _dispersion(sums: Floats) -> float:
    """Return the largest ratio of the variance of counts to that of chance, at least 1.

    Args:
        sums: Per span, the sums of counts n, of times t, of n², nt and t².
    """
    count, time, squares, products, times = sums.T
    rate = count / np.maximum(time, 1.0)
    # If all conversations had the same rate, the count of each would have the variance rate x time.
    variance = squares - 2 * rate * products + rate * rate * times
    return float(np.max(variance / np.maximum(count, 1.0), initial=1.0))


def rates(known: Known, organization: Organization) -> Floats:
    """Return the expected messages of each conversation, per hour, as of its last proof."""
    raw = np.zeros(len(known))
    for number, weight in ESTIMATES:
        raw += weight * estimate(known, number, organization)
    active = organization.rate * (raw / organization.rate) ** organization.contrast
    found: Floats = active * messages_per_active_hour(known, organization)
    return found


def messages_per_active_hour(known: Known, organization: Organization) -> Floats:
    """Return the mean of each conversation; the fewer its active hours, the nearer to the organization's."""
    others = ORGANIZATION_MESSAGES
    messages, active = known.messages.astype(np.float64), known.active.astype(np.float64)
    found: Floats = (messages + others * organization.messages) / (active + others)
    return found


def estimate(known: Known, number: int, organization: Organization) -> Floats:
    """Return the active hours per hour: the last `number` of them, in the time since the first of these.

    A conversation with fewer has those after its first message, since its first message. If there are none,
    it has those that the organization's conversations have after a silence of the same length.
    """
    start = known.hours[:, -number]
    is_listed = start > ABSENT
    further = np.maximum((known.hours > ABSENT).sum(1) - 1, organization.unseen)
    found: Floats = np.where(is_listed, number, further) / np.maximum(
        known.seen - np.where(is_listed, start, known.since), 1.0
    )
    return found


def weigh_hours(hours: Integers, organization: Organization) -> Floats:
    """Return the weight of each hour of the day for conversations, added up from midnight: 25 columns.

    The weight is the root of the activity, because the time between visits that is best is inversely
    proportional to it.
    """
    is_listed = hours > ABSENT
    cells = np.arange(len(hours))[:, None] * 24 + hours % 24
    counts = np.bincount(cells[is_listed].astype(np.int64), minlength=24 * len(hours)).reshape(-1, 24)
    # Without a difference between conversations, a difference between their days is chance, too.
    share = organization.contrast
    around = (
        share * sum(np.roll(counts, shift, 1) for shift in range(-BLUR, BLUR + 1)) * (24 / (2 * BLUR + 1))
    )
    total = is_listed.sum(1)[:, None]
    weights = np.sqrt((ORGANIZATION_HOURS * organization.day + around) / (ORGANIZATION_HOURS + share * total))
    added = np.zeros((len(hours), 25))
    np.cumsum(weights, axis=1, out=added[:, 1:])
    return added


def count_hours(added: Floats, organization: Organization, time: Floats | float) -> Floats:
    """Return the hours from 1970 to a time, each with its weight.

    Args:
        added: From `weigh_hours`.
        organization: The organization.
        time: One for each conversation, or one for all.
    """
    day, hour = np.divmod(np.asarray(time), 24)
    weeks, weekday = np.divmod(day, 7)
    number, whole = weekday.astype(np.int64), hour.astype(np.int64)
    before = np.concatenate([[0.0], np.cumsum(organization.week)])
    # In the precision of the weights; a simulation keeps them in half of the memory.
    days = (weeks * before[7] + before[number]).astype(added.dtype)
    weight, share = organization.week[number].astype(added.dtype), (hour - whole).astype(added.dtype)
    row = np.arange(len(added)) if np.ndim(time) else slice(None)
    low, high = added[row, whole], added[row, whole + 1]
    counted: Floats = added[:, 24] * days + weight * (low + share * (high - low))
    return counted


# -- the choice -------------------------------------------------------------------------------------


def values(rate: Floats, counted: Floats) -> Floats:
    """Return the value of visits: the hours for which messages are expected to have waited, added up.

    Args:
        rate: Messages per hour.
        counted: The weighted hours since the last proof.
    """
    waited: Floats = rate * np.square(np.maximum(counted, 0.0)) / 2
    return waited


def pick(
    rate: Floats,
    counted: Floats,
    left: Floats,
    policy: RevisitPolicy,
    requests: int,
    ids: pa.ChunkedArray | None = None,
    now: float = 0.0,
) -> tuple[npt.NDArray[np.int64], int]:
    """Choose the conversations to visit, in the order of their visits.

    As many of the oldest proofs as the promise needs, and the most valuable other visits. Proofs that must be
    renewed come first, then the conversations with the most expected messages. If more must be renewed than
    the run has visits for the promise, they take turns: those that fail in every run do not keep others
    waiting.

    Args:
        rate, counted: As in `values`.
        left: The hours until the proof must be renewed.
        policy: The promise, and the time until the next run.
        requests: The number of visits.
        ids: Decide between equal values; the order of the rows by default.
        now: The time, which decides whose turn it is.

    Returns:
        The rows, and the number of them that are chosen for the promise.
    """
    promised = min(_needed_now(left, policy, requests), requests, len(left))
    late = np.flatnonzero(left <= 0)
    if len(late) > promised:
        first = late[_in_turn(len(late), promised, policy.periods(now))]
    else:
        first = _most(-left, promised, ids)
    value = values(rate, counted)
    value[first] = -1.0
    rows = np.concatenate([first, _most(value, min(requests, len(left)) - promised, ids)])
    # By value, conversations that every run visits would change their places more.
    expected = rate[rows] * np.maximum(counted[rows], 0.0)
    return rows[np.lexsort((-expected, left[rows] > 0))], promised


def _needed_now(left: Floats, policy: RevisitPolicy, requests: int) -> int:
    """Return how many of the oldest proofs this run renews, so that later runs never need more than it."""
    if not len(left):
        return 0
    runs = (np.clip(left, 0, policy.longest) / policy.shortest).astype(np.int64)
    due = np.cumsum(np.bincount(runs))
    most = int(np.ceil((due / np.maximum(np.arange(len(due)), 1)).max()))
    # A run of a single visit renews what must be renewed, because half of it is none.
    return min(most, max(policy.share(len(left), requests), min(1, int(due[0]))))


def _in_turn(count: int, number: int, runs: float) -> npt.NDArray[np.int64]:
    """Return which of some conversations have their turn: each run begins where the one before ended."""
    start = math.floor(runs) * number
    turn: npt.NDArray[np.int64] = (start + np.arange(number)) % max(1, count)
    return turn


def _most(value: Floats, number: int, ids: pa.ChunkedArray | None) -> npt.NDArray[np.int64]:
    """Return the rows with the largest values, the largest first."""
    if number <= 0:
        return np.empty(0, np.int64)
    if number < len(value):
        least = np.partition(value, len(value) - number)[len(value) - number]
        rows = np.flatnonzero(value >= least)
    else:
        rows = np.arange(len(value))
    if ids is None:
        order = np.argsort(-value[rows], kind="stable")
    else:
        table = pa.table({"value": value[rows], "id": ids.take(pa.array(rows))})
        order = pc.sort_indices(table, [("value", "descending"), ("id", "ascending")]).to_numpy()
    most: npt.NDArray[np.int64] = rows[order[:number]]
    return most


@dataclass(frozen=True, slots=True)
class Choice:
    """What a run visits, in this order: first `unproven`, then `rows`.

    Attributes:
        unproven: Rows of the list of conversations that were never proven.
        rows: Rows of the others.
        promised: How many of `rows` are visited for the promise.
        due: The number of conversations that are due.
    """

    unproven: npt.NDArray[np.int64]
    rows: npt.NDArray[np.int64]
    promised: int
    due: int


@dataclass(frozen=True, slots=True)
class Forecast:
    """What the budget achieves, if conversations continue as before.

    Attributes:
        mean, median, most: The age, in hours, at which a run finds news: mean, median, 95th percentile.
        fresh: The share of the news that is found within an hour.
        requests: The visits per run that the promise needs.
        is_promise_kept: Whether the budget is sufficient for them.
        late: The proofs that are older than the promise, or will be before runs renew them, if it is.
        catches_up: The hours until runs have renewed these.
    """

    mean: float
    median: float
    most: float
    fresh: float
    requests: int
    is_promise_kept: bool
    late: int = 0
    catches_up: float = 0.0


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a conversation is due or not, in numbers; all times between two visits are weighted hours.

    Attributes:
        seen, deadline, next_visit: The last proof; when it is as old as promised; when it is due again.
        listed: The listed active hours.
        estimates: The active hours per hour, by each of `ESTIMATES`.
        messages: The messages per active hour.
        rate: The messages per hour.
        counted: The hours from the last proof to the middle of the run.
        interval: The hours between two visits.
        value: The value of a visit in this run.
        price: The value from which on a visit is due.
        reason: ``everything``: a run visits all conversations; ``ahead``: the proof is from the future;
            ``promise``: it must be renewed; ``value``: the interval is over; ``waits``: not due.
        is_gone: It is deleted upstream, so only the promise lets it be visited.
    """

    seen: datetime
    deadline: datetime
    next_visit: datetime
    listed: int
    estimates: tuple[float, ...]
    messages: float
    rate: float
    counted: float
    interval: float
    value: float
    price: float
    reason: str
    is_gone: bool = False


@dataclass(frozen=True, slots=True)
class Outlook:
    """The conversations of a lake at one time, and the budget of a run.

    Attributes:
        requests: The visits of a run, `new` included.
        unproven: The number of conversations that were never proven.
        new: How many other conversations this run visits before all of these.
        rate: The expected messages of each conversation, per hour.
        counted: The weighted hours from its last proof to the middle of the run, because visits are spread
            over the time until the next run.
        pace: The weighted hours in an hour, on average.
        left: The hours until its proof must be renewed; none if the proof is from the future.
        price: The value from which on a visit is due.
    """

    policy: RevisitPolicy
    now: float
    requests: int
    known: Known
    unproven: int
    organization: Organization
    rate: Floats
    counted: Floats
    pace: Floats
    left: Floats
    price: float
    new: int = 0

    @classmethod
    def of(
        cls,
        known: Known,
        now: datetime,
        policy: RevisitPolicy,
        requests: int,
        unproven: int = 0,
        new: int = 0,
    ) -> Outlook:
        """Return the outlook.

        Args:
            known: The conversations that were proven at least once.
            now: The time.
            policy: The promise, and the time between runs.
            requests: The budget of a run.
            unproven: The number of conversations that were never proven.
            new: The number of other conversations, which this run visits first.
        """
        time = as_hours(now)
        middle = time + policy.shortest / 2
        organization = Organization.of(known, time, policy)
        rate, counted, pace = (np.empty(len(known)) for _ in range(3))
        for rows, some in known.slices():
            added = weigh_hours(some.hours, organization)
            rate[rows] = rates(some, organization)
            counted[rows] = count_hours(added, organization, middle) - count_hours(
                added, organization, some.seen
            )
            pace[rows] = added[:, 24] / 24 * organization.week.mean()
        left = np.where(known.seen > time + RENEWABLE_SKEW, 0.0, known.seen + policy.longest - time)
        price = _price(rate, pace, policy, requests)
        return cls(
            policy, time, requests, known, unproven, organization, rate, counted, pace, left, price, new
        )  # fmt: skip

    @property
    def interval(self) -> Floats:
        """The weighted hours between two visits of each conversation."""
        return _intervals(self.rate, self.price, self.policy)

    @property
    def conversations(self) -> int:
        """The number of all conversations."""
        return len(self.known) + self.unproven + self.new

    @property
    def is_everything(self) -> bool:
        """Whether a run can visit all conversations."""
        return self.conversations <= self.requests

    def is_due(self) -> npt.NDArray[np.bool_]:
        """Return which conversations are due."""
        if self.is_everything:
            return np.ones(len(self.known), np.bool_)
        return (self.counted >= self.interval) | (self.left <= 0)

    def choose(self) -> Choice:
        """Choose what to visit within the budget, or everything if it fits."""
        requests = max(0, self.requests - self.new)
        first = min(self.unproven, requests if self.is_everything else requests // 2)
        # In turn, so that failures do not keep others waiting.
        unproven = _in_turn(self.unproven, first, self.policy.periods(self.now))
        rows, promised = pick(
            self.rate, self.counted, self.left, self.policy, requests - first, self.known.ids, self.now
        )  # fmt: skip
        return Choice(unproven, rows, promised, int(self.is_due().sum()) + self.unproven)

    def forecast(self) -> Forecast:
        """Return what the budget achieves."""
        needed = self.policy.needed(self.conversations)
        is_kept = self.policy.is_possible and (needed <= self.requests or self.is_everything)
        late, catches_up = self._late() if is_kept else (0, 0.0)
        wait = self.interval
        share = self.rate / max(float(self.rate.sum()), 1e-300)

        def within(hours: float) -> float:
            # A visit finds news at any age up to the interval with the same chance.
            return float((share * np.minimum(1.0, hours / wait)).sum())

        def age(part: float) -> float:
            low, high = 0.0, self.policy.longest
            for _ in range(30):
                middle = (low + high) / 2
                low, high = (middle, high) if within(middle) < part else (low, middle)
            return high

        return Forecast(
            float((share * wait).sum()) / 2, age(0.5), age(0.95), within(1.0), needed,
            is_kept, late, catches_up,
        )  # fmt: skip

    def _late(self) -> tuple[int, float]:
        """Return how many proofs are, or will be, older than the promise, and when runs have renewed them.

        Runs are expected to renew the oldest proofs first, with as many visits as they have for the promise.
        """
        promise = self.policy.promise / timedelta(hours=1)
        left = np.sort(self.known.seen) + promise - self.now
        share = self.requests if self.is_everything else self.policy.share(self.conversations, self.requests)
        renewed = np.arange(len(left)) // max(1, share) * self.policy.shortest
        late = np.flatnonzero((left < 0) | (left < renewed))
        return len(late), float(renewed[late[-1]]) + self.policy.shortest if len(late) else 0.0

    def explain(self, row: int) -> Explanation:
        """Explain when a conversation is visited next."""
        one, interval = self.known.rows(slice(row, row + 1)), float(self.interval[row])
        seen = float(one.seen[0])
        added = weigh_hours(one.hours, self.organization)
        # Within a full hour, all times count alike.
        times = np.append(seen, math.floor(seen) + np.arange(1.0, self.policy.longest + 2))
        counted = count_hours(np.repeat(added, len(times), 0), self.organization, times)
        next_visit = float(np.interp(interval, counted - counted[0], times))
        next_visit = min(next_visit, seen + self.policy.longest)
        if self.is_everything:
            reason, next_visit = "everything", seen + self.policy.shortest
        elif seen > self.now + RENEWABLE_SKEW:
            reason, next_visit = "ahead", self.now
        elif self.left[row] <= 0:
            reason = "promise"
        else:
            reason = "value" if self.counted[row] >= interval else "waits"
        return Explanation(
            seen=as_time(seen),
            deadline=as_time(seen) + self.policy.promise,
            next_visit=as_time(next_visit),
            listed=int((one.hours > ABSENT).sum()),
            estimates=tuple(float(estimate(one, number, self.organization)[0]) for number, _ in ESTIMATES),
            messages=float(messages_per_active_hour(one, self.organization)[0]),
            rate=float(self.rate[row]),
            counted=float(self.counted[row]),
            interval=interval,
            value=float(values(self.rate[row : row + 1], self.counted[row : row + 1])[0]),
            price=self.price,
            reason=reason,
            is_gone=bool(self.known.is_gone[row]),
        )


def _intervals(rate: Floats, price: float, policy: RevisitPolicy) -> Floats:
    """Return the weighted hours after which the value of a visit is the price, within the policy's limits."""
    found: Floats = np.clip(np.sqrt(2 * price / np.maximum(rate, 1e-12)), policy.shortest, policy.longest)
    return found


def _price(rate: Floats, pace: Floats, policy: RevisitPolicy, requests: int) -> float:
    """Return the value from which on visits are due, so that on average they use up the budget."""
    visits = requests / policy.shortest
    if not len(rate) or (pace / policy.shortest).sum() <= visits:
        return 0.0
    low, high = 1e-12, policy.longest**2 * max(float(rate.max()), 1e-9)
    for _ in range(40):
        middle = math.sqrt(low * high)
        is_too_low = float((pace / _intervals(rate, middle, policy)).sum()) > visits
        low, high = (middle, high) if is_too_low else (low, middle)
    return high
