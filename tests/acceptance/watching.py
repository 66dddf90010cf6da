"""The memory of a process and of those that it started, watched from outside."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.metrics import most_memory_bytes


@dataclass(slots=True)
class Peaks:
    """The most memory that each process of a tree ever had resident, by its number."""

    of_each: dict[int, int] = field(default_factory=dict)

    @property
    def together_bytes(self) -> int:
        """The sum, as if all had had their most at the same moment."""
        return sum(self.of_each.values())

    def look(self, process: int) -> None:
        """Look at a process and at all that it started."""
        self.of_each[process] = max(self.of_each.get(process, 0), most_memory_bytes(process))
        for each in Path(f"/proc/{process}/task").glob("*/children"):
            with suppress(OSError):
                for child in map(int, each.read_text().split()):
                    self.look(child)


@contextmanager
def watched(process: int) -> Iterator[Peaks]:
    """Watch a process until the block ends."""
    peaks, is_over = Peaks(), threading.Event()

    def watch() -> None:
        while not is_over.wait(0.05):
            peaks.look(process)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield peaks
    finally:
        is_over.set()
        thread.join()
        peaks.look(process)
