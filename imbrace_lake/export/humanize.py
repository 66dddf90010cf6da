"""Format numbers for people, in the same way in the terminal and in the orchestrator."""

from __future__ import annotations

import math
from collections.abc import Sequence


def counted(counts: Sequence[tuple[int, str]]) -> str:
    """List the counts that are not zero: ``83 with conversations · 12 without``."""
    return " · ".join(f"{count:,} {what}" for count, what in counts if count) or "none"


def duration(seconds: float) -> str:
    """Format seconds: ``3 min``."""
    for length, unit in ((86_400, "days"), (3_600, "h"), (60, "min")):
        if seconds >= 2 * length:
            return f"{seconds / length:,.0f} {unit}"
    return f"{max(1, math.ceil(seconds))} s"


def span(hours: float) -> str:
    """Format hours: ``6.1 days``, ``3.2 h``, ``12 min`` or ``less than a minute``."""
    if hours >= 48:
        return f"{hours / 24:,.1f} days"
    if hours >= 1:
        return f"{hours:.1f} h"
    return f"{math.ceil(60 * hours)} min" if 60 * hours > 1 else "less than a minute"


def size(size_bytes: float) -> str:
    """Format bytes: ``1.4 MB``."""
    for unit in ("B", "KB", "MB", "GB"):
        if size_bytes < 1_000:
            return f"{size_bytes:.1f} {unit}" if unit != "B" else f"{size_bytes:.0f} B"
        size_bytes /= 1_000
    return f"{size_bytes:.1f} TB"
