"""The job of a competitor, and how it measures itself.

Nothing of the project or of its environment is imported, because peers with an environment of their own
use this as well.
"""

from __future__ import annotations

import json
import resource
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path

SUCCESS = "success"


@dataclass(frozen=True, slots=True)
class Job:
    """What a competitor is to do: everything of these phones into that folder, or bucket's URL."""

    url: str
    token: str
    organization: str
    phones: str
    folder: str


@dataclass(frozen=True, slots=True)
class Metrics:
    """What a competitor says of itself.

    Attributes:
        seconds: From the first request to the last file, imports left out.
        cpu_seconds: Of its processes, in that time.
        memory_bytes: The most it ever had resident, with the most of each process that it started.
        outcome: How it says that it ended: ``success``, or anything else.
    """

    seconds: float
    cpu_seconds: float
    memory_bytes: int
    outcome: str = SUCCESS

    def print(self) -> None:
        """Print it as one line of JSON, the last that a competitor prints."""
        print(json.dumps(asdict(self)), flush=True)


def read_job() -> Job:
    """Take the job from standard input."""
    return Job(**json.loads(sys.stdin.readline()))


def most_memory_bytes(process: int | str = "self") -> int:
    """The most memory that a process ever had resident; 0 for another that has ended."""
    with suppress(OSError):
        # What getrusage() says begins with what the process had that started this one.
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
        return int(dict(line.split(":", 1) for line in lines).get("VmHWM", "0 kB").split()[0]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 if process == "self" else 0


class _Children:
    """Looks twice a second how much memory the processes have that this one started."""

    def __init__(self) -> None:
        self._most: dict[int, int] = {}
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._is_over.wait(0.5):
            for each in Path("/proc/self/task").glob("*/children"):
                with suppress(OSError):
                    for one in map(int, each.read_text().split()):
                        self._most[one] = max(self._most.get(one, 0), most_memory_bytes(one))

    def end(self) -> int:
        """The most that each ever had, together."""
        self._is_over.set()
        self._thread.join()
        return sum(self._most.values())


def cpu_seconds() -> float:
    """The CPU of this process and of those it started and waited for."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def measure(work: Callable[[], str], late_imports: Sequence[str] = ()) -> None:
    """Do the work, which returns its outcome, and print what it cost.

    Args:
        work: Everything that is timed.
        late_imports: What a library would import in the midst of it, and is imported before.
    """
    for name in late_imports:
        import_module(name)
    children = _Children()
    began, cpu = time.monotonic(), cpu_seconds()
    outcome = work()
    seconds, cpu = time.monotonic() - began, cpu_seconds() - cpu
    Metrics(seconds, cpu, most_memory_bytes() + children.end(), outcome).print()
