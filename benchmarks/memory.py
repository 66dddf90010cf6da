"""The most memory of a process and of all processes that it started, read from outside.

Other processes are read from /proc, so their memory is known on Linux only.
"""

from __future__ import annotations

import resource
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path


def most_memory_bytes(process: int | str = "self") -> int:
    """Return the most memory that a process ever had resident; 0 for another process that has ended."""
    with suppress(OSError):
        # The maximum that getrusage() reports includes the memory of the process that started this one.
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
        return int(dict(line.split(":", 1) for line in lines).get("VmHWM", "0 kB").split()[0]) * 1024
    # On macOS, which has no /proc and counts in bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss if process == "self" else 0


@dataclass(slots=True)
class Peaks:
    """The most memory that each process of a tree ever had resident, by process id."""

    of_each: dict[int, int] = field(default_factory=dict)

    @property
    def together_bytes(self) -> int:
        """The sum, as if all processes had their peaks at the same moment."""
        return sum(self.of_each.values())

    def look(self, process: int) -> None:
        """Read the peaks of a process and of all processes that it started."""
        self.of_each[process] = max(self.of_each.get(process, 0), most_memory_bytes(process))
        for each in Path(f"/proc/{process}/task").glob("*/children"):
            with suppress(OSError):
                for child in map(int, each.read_text().split()):
                    self.look(child)


@contextmanager
def watched(process: int, interval_seconds: float = 0.05) -> Iterator[Peaks]:
    """Watch a process until the block ends."""
    peaks, is_over = Peaks(), threading.Event()

    def watch() -> None:
        while not is_over.wait(interval_seconds):
            peaks.look(process)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield peaks
    finally:
        is_over.set()
        thread.join()
        peaks.look(process)
