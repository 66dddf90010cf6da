"""The loggers of the flows."""

from __future__ import annotations

import logging


def logger_of(topic: str) -> logging.Logger:
    """Return the logger of a topic, such as ``runs``.

    Its name begins with that of the core, so that its lines reach the server and the terminal as those of the
    core do (`PREFECT_LOGGING_EXTRA_LOGGERS`).
    """
    return logging.getLogger(f"imbrace_lake.{topic}")
