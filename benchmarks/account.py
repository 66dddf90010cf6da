"""What a contender is told, and how it measures itself.

Nothing of the project or of its environment is imported, because peers with an environment of their own
use this as well.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

SUCCESS = "success"


@dataclass(frozen=True, slots=True)
class Job:
    """What a contender is to do: everything of these phones into that folder, or bucket's URL."""

    url: str
    token: str
    organization: str
    phones: str
    folder: str


@dataclass(frozen=True, slots=True)
class Account:
    """What a contender says of itself.

    Attributes:
        seconds: From the first request to the last file, imports left out.
        cpu_seconds: Of its processes, in that time.
        memory_bytes: The most it ever had resident.
        outcome: How it says that it ended: ``success``, or anything else.
    """

    seconds: float
    cpu_seconds: float
    memory_bytes: int
    outcome: str = SUCCESS

    def print(self) -> None:
        """Print it as one line of JSON, the last that a contender prints."""
        print(json.dumps(asdict(self)), flush=True)


def read_job() -> Job:
    """Take the job from standard input."""
    return Job(**json.loads(sys.stdin.readline()))


def most_memory_bytes() -> int:
    """The most memory that this process ever had resident."""
    status = Path("/proc/self/status")
    if status.exists():
        # What getrusage() says begins with what the process had that started this one.
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(lines["VmHWM"].split()[0]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def cpu_seconds() -> float:
    """The CPU of this process and of those it started and waited for."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def measure(work: Callable[[], str]) -> None:
    """Do the work, which returns its outcome, and print what it cost."""
    began, cpu = time.monotonic(), cpu_seconds()
    outcome = work()
    Account(time.monotonic() - began, cpu_seconds() - cpu, most_memory_bytes(), outcome).print()
