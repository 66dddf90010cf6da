"""Shows a run in Prefect as far as that goes: whatever fails there, the run itself goes on."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

# Of this name, lines reach the server and the terminal as those of the core do.
logger = logging.getLogger("imbrace_lake.runs")


@contextmanager
def best_effort(what: str, level: int = logging.WARNING) -> Iterator[None]:
    """Log a failure of the block by its class only; the lake has all that the block was to show.

    Args:
        what: Names in the log what the block shows.
        level: Of the log line.
    """
    try:
        yield
    except Exception as exc:  # noqa: BLE001 - whatever it is, it must not fail an export
        logger.log(level, "%s is not in Prefect: %s", what, type(exc).__name__)
