"""The progress of a run: a live display on a terminal, elsewhere a line every ten seconds."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Group, RenderableType
from rich.live import Live
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
)
from rich.spinner import Spinner
from rich.text import Text

from imbrace_cli.interrupt import ACKNOWLEDGED, current_interrupt
from imbrace_cli.terminal import MAX_LISTED, echo_error, echo_status, is_watched, stderr_console
from imbrace_lake.export import progress as core
from imbrace_lake.export.humanize import counted, duration

LINE_SECONDS = 10.0


class View(Protocol):
    """Shows the progress of a run."""

    interval_seconds: float

    def say(self, sentence: str) -> None:
        """Show the reason of a wait before the run begins."""

    def update(self, progress: core.Progress) -> None:
        """Show the progress; called in the event loop of the run."""


@contextmanager
def open_view() -> Iterator[View]:
    """Open the view that fits standard error while the block runs."""
    logger = logging.getLogger("imbrace_lake")
    if is_watched():
        live = _LiveView()
        with live.display:
            yield live
        return
    handler = _Warnings()
    logger.addHandler(handler)
    try:
        yield _LineView()
    finally:
        logger.removeHandler(handler)


class _LiveView:
    interval_seconds = 0.1

    def __init__(self) -> None:
        console = stderr_console()
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TextColumn("{task.fields[unit]}"),
            TextColumn("{task.fields[left]}"),
            console=console,
        )
        self._task = self._bar.add_task("", total=None, unit="", left="")
        self._waiting = Spinner("dots", text="starting", style="progress.spinner")
        self._details = Text()
        self._speed = core.Speed()
        self._left = core.TimeLeft()
        self.display = Live(
            console=console, transient=True, refresh_per_second=10, get_renderable=self._render
        )

    def say(self, sentence: str) -> None:
        self._waiting.update(text=sentence)

    def update(self, progress: core.Progress) -> None:
        if not progress.numbers and not progress.conversations:
            self.say("opening the lake")
            return
        done, total, unit = progress.position()
        seconds = self._left.seconds(progress)
        left = "" if seconds is None else f"{duration(seconds)} left"
        self._bar.update(
            self._task, description=progress.stage, completed=done, total=total, unit=unit, left=left
        )
        pace = self._speed.of(progress)
        self._details = Text("  " + details(progress, pace), style="dim")
        if limit := limited(progress, pace):
            self._details.append(f"\n  {limit}", style="not dim yellow" if progress.is_stopped else "")

    def _render(self) -> RenderableType:
        shown = Group(self._bar, self._details) if self._details else self._waiting
        if current_interrupt().is_requested:
            # The display has covered the line of the interrupt.
            return Group(shown, Text(f"  {ACKNOWLEDGED}", style="yellow"))
        return shown


class _LineView:
    interval_seconds = 0.5

    def __init__(self) -> None:
        self._speed = core.Speed()
        self._left = core.TimeLeft()
        self._said = ""
        self._due = 0.0

    def say(self, sentence: str) -> None:
        # The import of Prefect takes two seconds, which is not worth a line.
        if sentence != self._said and "server" in sentence:
            self._said = sentence
            echo_status(sentence)

    def update(self, progress: core.Progress) -> None:
        pace = self._speed.of(progress)
        seconds = self._left.seconds(progress)
        now = time.monotonic()
        is_first = not self._due
        if now < self._due or current_interrupt().is_requested:
            return
        self._due = now + LINE_SECONDS
        if is_first:
            return
        done, total, unit = progress.position()
        left = "" if seconds is None else f"about {duration(seconds)} left"
        position = f"{progress.stage}: {done:,} of {total:,} {unit}" if total else progress.stage
        parts = [position, details(progress, pace), limited(progress, pace), left]
        echo_status(" · ".join(filter(None, parts)))


class _Warnings(logging.Handler):
    """Writes the first warnings of a run as lines; the log of the run in Prefect has all of them."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._count = 0

    def emit(self, record: logging.LogRecord) -> None:
        self._count += 1
        if self._count <= MAX_LISTED:
            echo_error(record.getMessage(), "warning")
        elif self._count == MAX_LISTED + 1:
            echo_error(
                "further warnings are not shown here; the log of the run in Prefect has all of them",
                "warning",
            )


def details(progress: core.Progress, pace: core.Pace) -> str:
    """Return the counters of a run, its speed and the limit in force in one line."""
    statuses = [(count, status) for status, count in sorted(progress.statuses.items())]
    parts = [counted(statuses) if statuses else ""]
    if progress.limiter is not None:
        parts += [
            f"{pace.requests:,.1f} requests/s",
            f"{pace.messages:,.0f} messages/s" if progress.messages_total else "",
            core.limit_in_force(progress),
        ]
        if progress.limiter.rate_limited:
            parts.append(f"{progress.limiter.rate_limited:,} rate-limited")
    return " · ".join(filter(None, parts))


def limited(progress: core.Progress, pace: core.Pace) -> str:
    """Describe what limits the run at the moment; empty if unknown."""
    limit = core.limited_by(progress, pace)
    return limit and f"limited by {limit}"
