"""Lets the caller of a flow in this process watch it, cancel it and take its summary."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass, field

from imbrace_flows.cancellation import Cancellation
from imbrace_lake.export.progress import Progress
from imbrace_lake.export.run import RunSummary


@dataclass(slots=True)
class Observer:
    """What a caller sees of a run: how far it is, what was wrong with the input, how it ended."""

    progress: Progress = field(default_factory=Progress)
    problems: list[str] = field(default_factory=list)
    summary: RunSummary | None = None
    cancellation: Cancellation = field(default_factory=Cancellation)


current_observer: ContextVar[Observer | None] = ContextVar("current_observer", default=None)
