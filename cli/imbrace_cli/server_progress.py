"""Whether a Prefect server that does not answer is at work: starting, migrating its database, or busy."""

from __future__ import annotations

import os
import subprocess
import time
from contextlib import suppress
from pathlib import Path

from imbrace_cli.server_files import ServerFiles

LEAST_CPU_SECONDS = 0.1
"""CPU time that counts as progress; an idle event loop needs less in a minute."""


class Progress:
    """Watches one server process.

    Args:
        pid: The server's; None where it is not known, and then only its files are looked at.
        files: Where it writes its log and its database.
    """

    def __init__(self, pid: int | None, files: ServerFiles) -> None:
        self._pid = pid
        self._files = files
        self._since = time.monotonic()
        self._cpu = self._cpu_seconds()
        self._written = self._sizes()

    def stalled_seconds(self) -> float:
        """Look at the server, and return for how many seconds it has shown no progress."""
        cpu, written = self._cpu_seconds(), self._sizes()
        if cpu - self._cpu >= LEAST_CPU_SECONDS or written != self._written:
            self._since, self._cpu, self._written = time.monotonic(), cpu, written
        return time.monotonic() - self._since

    def _cpu_seconds(self) -> float:
        return 0.0 if self._pid is None else cpu_seconds(self._pid)

    def _sizes(self) -> list[tuple[str, int, int]]:
        found = []
        for path in (self._files.log, *sorted(self._files.directory.glob("prefect.db*"))):
            # SQLite removes the log beside its database whenever it likes.
            with suppress(FileNotFoundError):
                about = path.stat()
                found.append((path.name, about.st_size, about.st_mtime_ns))
        return found


def cpu_seconds(pid: int) -> float:
    """Return the CPU time that a process has used so far, or 0 if it is gone."""
    stat = Path(f"/proc/{pid}/stat")
    if stat.parent.parent.joinpath("self").exists():
        try:
            # The name, in parentheses, may contain anything.
            fields = stat.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        except OSError:
            return 0.0
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    asked = subprocess.run(  # noqa: S603
        ["ps", "-o", "time=", "-p", str(pid)],  # noqa: S607
        capture_output=True,
        text=True,
        check=False,
    )
    return parse_cpu_time(asked.stdout)


def parse_cpu_time(text: str) -> float:
    """Parse a time as ``ps`` writes it, such as ``1-02:03:04``, ``02:03:04`` or ``3:04.56``, to seconds."""
    days, _, clock = text.strip().rpartition("-")
    seconds = 0.0
    for part in clock.split(":"):
        seconds = seconds * 60 + float(part or 0)
    return int(days or 0) * 86_400 + seconds
