"""The progress of a run, which the command line and the orchestrator show while it works."""

from __future__ import annotations

import time
from collections import Counter, deque
from dataclasses import dataclass, field
from datetime import date

from imbrace_lake.export.humanize import duration
from imbrace_lake.gateway.client import Traffic
from imbrace_lake.gateway.limiter import RequestLimiter
from imbrace_lake.lake.ledger_schema import ConversationEntry
from imbrace_lake.lake.publish import PublishResult

# How far back speeds are measured, and how long before anything is foretold by one.
REQUEST_SECONDS = 10.0
DONE_SECONDS = 60.0
FIRST_SECONDS = 5.0


@dataclass(slots=True)
class Progress:
    """Counters of one run in one process; written by the run, read by its display.

    Attributes:
        stage: What is being done, in one word.
        numbers: How many distinct numbers are to be resolved, and how many are.
        conversations: How many conversations are to be exported; the done ones are in `statuses`.
        statuses: Conversations done, by status.
        messages_new: Messages added to the lake.
        messages_total: Messages of the conversations that were proven.
        written_bytes: Size of the parts added.
        days: Messages added, by the day they were created, UTC.
        limiter: The run's budget of requests; None until it is opened.
        traffic: What was sent and received; None until the gateway is opened.
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

    def start_resolving(self, numbers: int) -> None:
        """Begin with the numbers: how many distinct ones there are."""
        self.stage, self.numbers = "resolving", numbers

    @property
    def conversations_done(self) -> int:
        """Conversations that have a status."""
        return sum(self.statuses.values())

    def note(self, entry: ConversationEntry, published: PublishResult | None = None) -> None:
        """Count one conversation that is done, and what was written of it."""
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
        """Conversations that were not exported, as far as is known."""
        return self.statuses["failed"] + self.statuses["incomplete"]

    def position(self) -> tuple[int, int, str]:
        """How many of how many are done in this stage, and what they are."""
        if self.stage == "resolving":
            return self.numbers_resolved, self.numbers, "numbers"
        return self.conversations_done, self.conversations, "conversations"

    def share(self) -> float:
        """How much of the run is done, 0.0 to 1.0; the numbers count a twentieth."""
        if self.stage == "done":
            return 1.0
        resolved = self.numbers_resolved / self.numbers if self.numbers else 0.0
        exported = self.conversations_done / self.conversations if self.conversations else 0.0
        return 0.05 * resolved + 0.95 * exported


class Rate:
    """How fast a counter grows.

    Args:
        seconds: How far back is looked.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._seen: deque[tuple[float, int]] = deque()

    def of(self, count: int) -> float:
        """Note the counter; how much it grew a second."""
        now = time.monotonic()
        self._seen.append((now, count))
        while len(self._seen) > 2 and self._seen[1][0] < now - self._seconds:
            self._seen.popleft()
        began, before = self._seen[0]
        return (count - before) / (now - began) if now > began else 0.0

    @property
    def measured_seconds(self) -> float:
        """How long the counter has been looked at, of the last seconds."""
        return self._seen[-1][0] - self._seen[0][0] if self._seen else 0.0


class TimeLeft:
    """Estimates the time left from the conversations exported in the last minute."""

    def __init__(self) -> None:
        self._done = Rate(DONE_SECONDS)

    def seconds(self, progress: Progress) -> float | None:
        """Seconds to the last conversation; None as long as nothing can be said."""
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
        """Return the line; call it every few seconds, from which it measures speeds."""
        done, total, unit = progress.position()
        requests = self._requests.of(progress.traffic.requests if progress.traffic else 0)
        seconds = self._left.seconds(progress)
        return " · ".join(
            [
                f"{progress.stage}: {done:,} of {total:,} {unit}",
                f"{progress.conversations_failed:,} failed",
                f"{progress.messages_total:,} messages",
                f"{requests:,.1f} requests a second",
                "time left unknown" if seconds is None else f"about {duration(seconds)} left",
            ]
        )

    def describe_end(self, progress: Progress) -> str:
        """Return the line for the end of the run."""
        done, total, unit = progress.position()
        counts = f"{progress.conversations_failed:,} failed · {progress.messages_total:,} messages"
        return f"{done:,} of {total:,} {unit} · {counts}"
