"""Why a local Prefect server did not start, and what to do, from its log."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

LEAST_FREE_BYTES = 1_000_000
LONGEST_LINE = 300

NO_PROGRESS = "it made no progress: try again, on a busy machine when it has less to do"
_DISK_FULL = "the disk is full: free some space, or set IMBRACE_HOME to a folder on another disk"
_CAUSES = {
    r"Can't locate revision identified by": (
        "its database was made by a newer version of Prefect: install a newer imbrace-lake, set IMBRACE_HOME"
        " to another folder, or move {database} away (it contains only the history of earlier runs)"
    ),
    r"No space left on device|database or disk is full|Disk quota exceeded": _DISK_FULL,
    r"Permission denied|Operation not permitted|Read-only file system|readonly database|unable to open": (
        "it may not write to {directory}: change its owner or permissions, or set IMBRACE_HOME to another"
        " folder"
    ),
    r"database disk image is malformed|file is not a database|file is encrypted": (
        "its database is damaged: move {database} away (it contains only the history of earlier runs)"
    ),
    r"MemoryError|Cannot allocate memory|killed by signal 9\b": (
        "it ran out of memory or was killed: close other programs and try again"
    ),
    r"database is locked": (
        "another program keeps its database locked: end that program, or set IMBRACE_HOME to another folder"
    ),
}
_EXCEPTION = re.compile(r"[A-Za-z_][\w.]*(Error|Exception|Exit|Interrupt|Warning)\b.*")
_UNPRINTABLE = re.compile(r"[^ -~\u00a0-\U0010ffff]+")


def explain_failure(log: str, exit_code: int, directory: Path) -> str:
    """Return why a server did not start and what to do, as the end of a sentence.

    Args:
        log: The part of the log from this start.
        exit_code: The exit code of the server, negative for a signal.
        directory: The folder of its files.
    """
    if exit_code < 0:
        log += f"\nkilled by signal {-exit_code}"
    for pattern, cause in _CAUSES.items():
        if re.search(pattern, log):
            return cause.format(directory=directory, database=directory / "prefect.db")
    # A full disk leaves no log.
    if shutil.disk_usage(directory).free < LEAST_FREE_BYTES:
        return _DISK_FULL
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    raised = [line for line in lines if _EXCEPTION.match(line)]
    # The last line that names an exception, or else the last line, shortened and printable.
    line = _UNPRINTABLE.sub(" ", (raised or lines or [""])[-1])[:LONGEST_LINE]
    return (
        f"it ended with {line!r}"
        if line
        else f"it wrote nothing into its log and ended with code {exit_code}"
    )
