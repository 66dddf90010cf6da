"""The progress of a run, which the command line and the orchestrator show while it works."""

from __future__ import annotations

import math
import time
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date

from imbrace_lake.export.humanize import duration
from imbrace_lake.gateway.client import Traffic
from imbrace_lake.gateway.limiter import Bound, RequestLimiter
from imbrace_lake.lake.ledger_schema import ConversationEntry, RunTotals
from imbrace_lake.lake.memory import MemoryBudget
from imbrace_lake.lake.publish import PublishResult
from imbrace_lake.printable import plural

# The span over which speeds are measured, and the shortest one for an estimate.
REQUEST_SECONDS = 10.0
RECENT_SECONDS = 3.0
DONE_SECONDS = 60.0
FIRST_SECONDS = 5.0
# Of a core; the event loop of a process can use little more than one.
BUSY_SHARE = 0.9


@dataclass(slots=True)
class Progress:
    """Counters of one run in one process; written by the run, read by its display.

    Attributes:
        stage: The stage of the run, in one word.
        numbers, numbers_resolved: The distinct numbers to resolve, and those resolved.
        conversations: The number of conversations to export.
        statuses: Finished conversations, by status.
        messages_new: Messages added to the lake.
        messages_total: Messages of the proven conversations.
        written_bytes: The size of the parts written.
        days: Messages added, by the day of their creation, UTC.
        limiter: The run's limiter; None before the gateway is opened.
        traffic: Counters of requests; None before the gateway is opened.
        memory: The run's memory budget; None before the lake is opened.
        writing: Conversations that are being written to the lake.
        retried: Conversations that failed and wait for another try, by chunk.
        shards: What the shards of the run have done; None in a run without shards.
        waiting_shards: The number of shards that wait for a worker.
    """

    stage: str = "starting"
    numbers: int = 0
    numbers_resolved: int = 0
    conversations: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    messages_new: int = 0
    messages_total: int = 0
    written_bytes: int = 0
    days: Counter[date] = field(default_factory=Counter)
    limiter: RequestLimiter | None = None
    traffic: Traffic | None = None
    memory: MemoryBudget | None = None
    writing: int = 0
    retried: dict[str, int] = field(default_factory=dict)
    shards: RunTotals | None = None
    waiting_shards: int = 0

    @property
    def requests(self) -> int:
        """Requests sent by the run and its shards."""
        return (self.traffic.requests if self.traffic else 0) + (self.shards.requests if self.shards else 0)

    @property
    def failing_seconds(self) -> float:
        """For how long requests have been failing and none has succeeded."""
        return self.traffic.failing_seconds if self.traffic else 0.0

    @property
    def silent_seconds(self) -> float:
        """For how long requests have been under way and none was answered."""
        is_waiting = self.limiter is not None and self.limiter.in_flight
        return self.traffic.silent_seconds if self.traffic and is_waiting else 0.0

    def show_shards(self, totals: RunTotals) -> None:
        """Show what the shards of the run have done so far."""
        self.shards, self.statuses = totals, Counter(totals.conversations)
        self.messages_new, self.messages_total = totals.messages_new, totals.messages_total
        self.written_bytes = totals.written_bytes
        self.days = Counter({date.fromisoformat(day): count for day, count in totals.days.items()})

    def start_resolving(self, numbers: int) -> None:
        """Start the stage in which this many distinct numbers are resolved."""
        self.stage, self.numbers = "resolving", numbers

    @property
    def conversations_done(self) -> int:
        """The number of finished conversations; those that a shard of the run did not reach are not."""
        return self.statuses.total() - self.statuses["not_reached"]

    def note(self, entry: ConversationEntry, published: PublishResult | None = None) -> None:
        """Count a finished conversation, and the messages and bytes that were written."""
        self.statuses[entry.status] += 1
        self.messages_new += entry.new_messages
        self.messages_total += entry.distinct_messages or 0
        if published is not None:
            self.written_bytes += published.size_bytes
            if published.new is not None:
                for day, count in published.new.days():
                    self.days[day] += count

    @contextmanager
    def write(self) -> Iterator[None]:
        """Count a conversation as being written while the block runs."""
        self.writing += 1
        try:
            yield
        finally:
            self.writing -= 1

    @property
    def conversations_failed(self) -> int:
        """The number of conversations that could not be exported so far."""
        return self.statuses["failed"] + self.statuses["incomplete"]

    def position(self) -> tuple[int, int, str]:
        """Return how many of how many units of this stage are done, and the name of the unit."""
        if self.stage == "resolving":
            return self.numbers_resolved, self.numbers, "numbers"
        return self.conversations_done, self.conversations, "conversations"

    def share(self) -> float:
        """Return the finished share of the conversations, 0.0 to 1.0."""
        if self.stage == "done":
            return 1.0
        return min(1.0, self.conversations_done / self.conversations) if self.conversations else 0.0

    @property
    def is_stopped(self) -> bool:
        """Whether the run does nothing now: without budget, after a 429, in an outage, between two tries."""
        limiter = self.limiter
        if limiter is None:
            return False
        is_between_tries = bool(self.retried) and not limiter.in_flight
        waiting = max(limiter.pause_seconds(), self.failing_seconds, self.silent_seconds)
        is_waiting = waiting > FIRST_SECONDS
        return limiter.per_second == 0 or is_waiting or is_between_tries


class Rate:
    """Measures how fast a counter grows.

    Args:
        seconds: The span of the measurement.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._seen: deque[tuple[float, int]] = deque()

    def of(self, count: int) -> float:
        """Record the counter, and return its growth per second."""
        now = time.monotonic()
        self._seen.append((now, count))
        while len(self._seen) > 2 and self._seen[1][0] < now - self._seconds:
            self._seen.popleft()
        began, before = self._seen[0]
        return (count - before) / (now - began) if now > began else 0.0

    @property
    def measured_seconds(self) -> float:
        """The span of the recorded counters."""
        return self._seen[-1][0] - self._seen[0][0] if self._seen else 0.0


@dataclass(frozen=True, slots=True)
class Pace:
    """The speed of a run.

    Attributes:
        requests, messages: Per second, in the last ten seconds.
        answers: Requests per second in the last three seconds.
        busy: The used share of a processor core in the same time.
    """

    requests: float = 0.0
    messages: float = 0.0
    answers: float = 0.0
    busy: float = 0.0


class Speed:
    """Measures the pace of a run."""

    def __init__(self) -> None:
        self._requests, self._messages = Rate(REQUEST_SECONDS), Rate(REQUEST_SECONDS)
        self._answers, self._busy = Rate(RECENT_SECONDS), Rate(RECENT_SECONDS)

    def of(self, progress: Progress) -> Pace:
        """Record the counters of a run, and return its pace; call this every few seconds."""
        return Pace(
            self._requests.of(progress.requests),
            self._messages.of(progress.messages_total),
            self._answers.of(progress.requests),
            self._busy.of(round(1_000 * time.process_time())) / 1_000,
        )


def limit_in_force(progress: Progress) -> str:
    """Describe the limit of requests per second of this run; empty if it has none."""
    limiter = progress.limiter
    if limiter is None or limiter.per_second is None:
        return ""
    own, shared = limiter.per_second, limiter.shared_limit
    if shared is None:
        return f"limit {own:,.3g} requests/s"
    if progress.shards is not None or own == shared:
        return f"budget {shared:,.3g} requests/s"
    return f"{own:,.3g} of the budget of {shared:,.3g} requests/s"


def limited_by(progress: Progress, pace: Pace) -> str:
    """Describe what limits the run at the moment, as the end of "limited by …"; empty if unknown."""
    if progress.shards is not None:
        waiting = progress.waiting_shards
        return f"missing workers: {plural(waiting, 'shard waits', 'shards wait')}" if waiting else ""
    limiter = progress.limiter
    if limiter is None or progress.stage not in ("resolving", "exporting"):
        return ""
    bound, failing, silent = limiter.bound(), progress.failing_seconds, progress.silent_seconds
    if max(failing, silent) > FIRST_SECONDS or bound not in (None, "in flight"):
        return _bound_in_words(bound, limiter, failing, silent)
    if pace.busy >= BUSY_SHARE:
        return "the processor of this machine"
    if bound == "in flight":
        latency = limiter.in_flight / pace.answers if pace.answers else math.nan
        answers = f"answers after {latency:.2g} s, {limiter.in_flight:,} at a time"
        return f"the gateway: {answers if pace.answers else _under_way(limiter)}"
    if progress.writing > limiter.in_flight:
        writing = plural(progress.writing, "conversation is", "conversations are")
        return f"the lake: {writing} being written"
    if progress.memory is not None and progress.memory.reserved_bytes > progress.memory.most_bytes:
        return "memory: further messages wait in files"
    if progress.retried and not limiter.in_flight:
        retried = plural(sum(progress.retried.values()), "conversation waits", "conversations wait")
        return f"failures: {retried} for another try"
    left = progress.conversations - progress.conversations_done
    if progress.stage == "exporting" and 0 < left < limiter.in_flight_limit:
        return f"the last {plural(left, 'conversation')}"
    return ""


def _under_way(limiter: RequestLimiter) -> str:
    return f"{plural(limiter.in_flight, 'request')} under way"


def _bound_in_words(
    bound: Bound | None, limiter: RequestLimiter, failing_seconds: float, silent_seconds: float
) -> str:
    if failing_seconds > FIRST_SECONDS:
        return f"the gateway: no request has succeeded for {duration(failing_seconds)}"
    if silent_seconds > FIRST_SECONDS:
        # Not an outage yet: some answers take long.
        return f"the gateway: no answer for {duration(silent_seconds)}, {_under_way(limiter)}"
    match bound:
        case "budget" if limiter.per_second == 0:
            others = "other runs, which use the whole budget"
            return others if limiter.shared_limit else "the budget, which is 0: raise it"
        case "budget":
            return "the budget" if limiter.shared_limit is not None else "the limit of requests per second"
        case "rate-limited":
            pause = limiter.pause_seconds()
            again = f"asking again in {pause:.0f} s" if pause >= 1 else "asking again"
            return f"the gateway, which limits the rate (429): {again}"
        case "accepted rate":
            return f"the gateway, which accepts {limiter.rate:,.3g} requests/s"
    return f"the gateway, which is overloaded: {limiter.in_flight_limit:,} requests at a time"


class TimeLeft:
    """Estimates the time left from the conversations exported in the last minute."""

    def __init__(self) -> None:
        self._done = Rate(DONE_SECONDS)
        self._last_done = 0
        self._done_at = -math.inf

    def seconds(self, progress: Progress) -> float | None:
        """Return the seconds to the last conversation; None if no estimate can be true yet."""
        # While numbers are resolved, the number of their conversations is unknown.
        if progress.stage != "exporting":
            return None
        done, now = progress.conversations_done, time.monotonic()
        per_second = self._done.of(done)
        if done != self._last_done:
            self._last_done, self._done_at = done, now
        if not per_second or self._done.measured_seconds < FIRST_SECONDS or progress.is_stopped:
            return None
        seconds = (progress.conversations - done) / per_second
        # The last conversations can be those whose requests fail and are sent again.
        return seconds if now - self._done_at <= max(seconds, FIRST_SECONDS) else None


class ProgressLine:
    """Describes in one line the progress of a run, its speed, what limits it, and the time left."""

    def __init__(self) -> None:
        self._speed = Speed()
        self._left = TimeLeft()

    def describe(self, progress: Progress) -> str:
        """Return the line; call this every few seconds, because it measures speeds between calls."""
        done, total, unit = progress.position()
        pace = self._speed.of(progress)
        seconds = self._left.seconds(progress)
        limit = limited_by(progress, pace)
        parts = [
            f"{progress.stage}: {done:,} of {total:,} {unit}" if total else progress.stage,
            f"{progress.conversations_failed:,} failed",
            f"{pace.requests:,.1f} requests/s",
            f"{pace.messages:,.0f} messages/s",
            limit_in_force(progress),
            limit and f"limited by {limit}",
            "" if seconds is None else f"about {duration(seconds)} left",
        ]
        return " · ".join(filter(None, parts))

    def describe_end(self, progress: Progress) -> str:
        """Return the line for the end of the run."""
        done, total, unit = progress.position()
        counts = f"{progress.conversations_failed:,} failed · {plural(progress.messages_total, 'message')}"
        return f"{done:,} of {total:,} {unit} · {counts}"
