"""The progress of a run, which the command line and the orchestrator show while it works."""

from __future__ import annotations

import time
from collections import Counter, deque
from dataclasses import dataclass, field
from datetime import date

from imbrace_lake.export.humanize import duration
from imbrace_lake.gateway.client import Traffic
from imbrace_lake.gateway.limiter import RequestLimiter
from imbrace_lake.lake.ledger_schema import ConversationEntry, RunTotals
from imbrace_lake.lake.publish import PublishResult

# The span over which speeds are measured, and the shortest one for an estimate.
REQUEST_SECONDS = 10.0
DONE_SECONDS = 60.0
FIRST_SECONDS = 5.0


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
        shards: What the shards of the run have done; None in a run without shards.
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
    shards: RunTotals | None = None

    @property
    def requests(self) -> int:
        """Requests sent by the run and its shards."""
        return (self.traffic.requests if self.traffic else 0) + (self.shards.requests if self.shards else 0)

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
        """The number of finished conversations."""
        return sum(self.statuses.values())

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
        """Return the finished share of the run, 0.0 to 1.0; the numbers are a twentieth."""
        if self.stage == "done":
            return 1.0
        resolved = self.numbers_resolved / self.numbers if self.numbers else 0.0
        exported = self.conversations_done / self.conversations if self.conversations else 0.0
        return 0.05 * resolved + 0.95 * exported


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


class TimeLeft:
    """Estimates the time left from the conversations exported in the last minute."""

    def __init__(self) -> None:
        self._done = Rate(DONE_SECONDS)

    def seconds(self, progress: Progress) -> float | None:
        """Return the seconds to the last conversation; None if no estimate is possible yet."""
        # While numbers are resolved, the number of their conversations is unknown.
        if progress.stage != "exporting":
            return None
        per_second = self._done.of(progress.conversations_done)
        if not per_second or self._done.measured_seconds < FIRST_SECONDS:
            return None
        return (progress.conversations - progress.conversations_done) / per_second


class ProgressLine:
    """Describes in one line the progress of a run, its speed and the time left."""

    def __init__(self) -> None:
        self._requests = Rate(REQUEST_SECONDS)
        self._left = TimeLeft()

    def describe(self, progress: Progress) -> str:
        """Return the line; call this every few seconds, because it measures speeds between calls."""
        done, total, unit = progress.position()
        requests = self._requests.of(progress.requests)
        seconds = self._left.seconds(progress)
        return " · ".join(
            [
                f"{progress.stage}: {done:,} of {total:,} {unit}",
                f"{progress.conversations_failed:,} failed",
                f"{progress.messages_total:,} messages",
                f"{requests:,.1f} requests per second",
                "time left unknown" if seconds is None else f"about {duration(seconds)} left",
            ]
        )

    def describe_end(self, progress: Progress) -> str:
        """Return the line for the end of the run."""
        done, total, unit = progress.position()
        counts = f"{progress.conversations_failed:,} failed · {progress.messages_total:,} messages"
        return f"{done:,} of {total:,} {unit} · {counts}"
