"""Shows a run in Prefect; if that fails, the run itself continues."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from imbrace_flows.log import logger_of

logger = logger_of("runs")


@contextmanager
def best_effort(what: str, level: int = logging.WARNING) -> Iterator[None]:
    """Log only the class of an error in the block; the lake has everything that the block would have shown.

    Args:
        what: What the block shows, for the log.
        level: The level of the log line.
    """
    try:
        yield
    except Exception as exc:  # noqa: BLE001 - no error here may fail an export
        logger.log(level, "%s is not in Prefect: %s", what, type(exc).__name__)
