"""Why a local Prefect server did not start, and what to do, from what it wrote into its log."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

LEAST_FREE_BYTES = 1_000_000
LONGEST_LINE = 300

_CAUSES: list[tuple[str, str]] = [
    (
        r"Can't locate revision identified by",
        "its database was made by a newer version of Prefect: install a newer imbrace-lake, or let this one"
        " begin with an empty database (only the history of earlier runs is in it): set IMBRACE_HOME to"
        " another folder, or move {database} away",
    ),
    (
        r"No space left on device|database or disk is full|Disk quota exceeded",
        "the disk is full: free some space, or set IMBRACE_HOME to a folder on another disk",
    ),
    (
        r"address already in use|[Pp]ort \d+ is already in use",
        "another program took its port while it started: try again",
    ),
    (
        r"Permission denied|readonly database|unable to open database file|Read-only file system"
        r"|Operation not permitted",
        "it may not write to {directory}: change its owner or permissions, or set IMBRACE_HOME to a folder of"
        " yours",
    ),
    (
        r"database disk image is malformed|file is not a database|file is encrypted",
        "its database is damaged: move {database} away (only the history of earlier runs is in it)",
    ),
    (
        r"MemoryError|Cannot allocate memory|killed by signal 9\b",
        "it ran out of memory or was killed: close other programs and try again",
    ),
    (
        r"database is locked",
        "another program keeps its database locked: end that program, or set IMBRACE_HOME to another folder",
    ),
    (
        r"did not start(: no progress for [\d.]+ s| within [\d.]+ s)",
        "it made no progress: try again, or on a busy machine when there is less to do",
    ),
]
_EXCEPTION = re.compile(r"[A-Za-z_][\w.]*(Error|Exception|Exit|Interrupt|Warning)\b.*")
_UNPRINTABLE = re.compile(r"[^ -~\u00a0-\U0010ffff]+")


def explain_failure(log: str, directory: Path) -> str:
    """Return why a server did not start and what to do, as the end of a sentence.

    Args:
        log: What the server and its supervisor wrote during this start.
        directory: The folder of its files.
    """
    for pattern, cause in _CAUSES:
        if re.search(pattern, log):
            return cause.format(directory=directory, database=directory / "prefect.db")
    # A full disk leaves no log.
    if shutil.disk_usage(directory).free < LEAST_FREE_BYTES:
        return _CAUSES[1][1]
    line = last_relevant_line(log)
    return f"it ended with {line!r}" if line else "it wrote nothing into its log"


def last_relevant_line(log: str) -> str:
    """Return the last line that names an exception, or else the last line, shortened and printable."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    raised = [line for line in lines if _EXCEPTION.match(line)]
    line = (raised or lines or [""])[-1]
    return _UNPRINTABLE.sub(" ", line)[:LONGEST_LINE]
