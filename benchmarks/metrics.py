"""The job of a competitor, and how it measures its own work.

This module imports only the standard library, because competitors with a separate environment use it too.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Self

SUCCESS = "success"


@dataclass(frozen=True, slots=True)
class Job:
    """Export all conversations of the phone numbers in a file; `lake` is a folder or a bucket's URL.

    A competitor gets its job as `imbrace-lake export` does: the environment has all but the file, whose
    path is the last argument.
    """

    gateway: str
    token: str
    organization: str
    lake: str
    phones: str

    @classmethod
    def read(cls) -> Self:
        """Read the job from the environment and the command line."""
        names = ("gateway", "token", "organization", "lake")
        given = {name: os.environ[f"IMBRACE_{name.upper()}"] for name in names}
        return cls(**given, phones=sys.argv[-1])

    @property
    def environment(self) -> dict[str, str]:
        """The part of the job that is in the environment."""
        return {f"IMBRACE_{name.upper()}": value for name, value in asdict(self).items() if name != "phones"}

    @property
    def numbers(self) -> list[str]:
        """The phone numbers as the gateway takes them: without a plus sign."""
        return [phone.removeprefix("+") for phone in Path(self.phones).read_text().split()]


@dataclass(frozen=True, slots=True)
class Metrics:
    """What a competitor reports about its work.

    Attributes:
        seconds: Without the interpreter's start and without imports.
        cpu_seconds: Of all its processes, in that time.
        outcome: ``success``, or the other outcome that the competitor reports.
    """

    seconds: float
    cpu_seconds: float
    outcome: str = SUCCESS

    def print(self) -> None:
        """Print one line of JSON, the last line that a competitor prints."""
        print(json.dumps(asdict(self)), flush=True)


def cpu_seconds() -> float:
    """Return the CPU time of this process and of the processes that it started and waited for."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def measure(work: Callable[[], str], late_imports: Sequence[str] = ()) -> None:
    """Do the work, which returns its outcome, and print its metrics.

    Args:
        work: Everything that is measured.
        late_imports: Modules that a library imports in the middle of the work; they are imported before.
    """
    for name in late_imports:
        import_module(name)
    began, cpu = time.monotonic(), cpu_seconds()
    outcome = work()
    Metrics(time.monotonic() - began, cpu_seconds() - cpu, outcome).print()
