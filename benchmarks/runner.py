"""Runs a competitor on the fake gateway, and measures and checks what it did.

A competitor is any command that finds a `Job` in its environment and in its last argument. It ends with its
`Metrics` as the last line of its standard output, unless it is measured as a whole process.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.environment import PROJECT
from benchmarks.expected import Expected, Verdict, judge, read_ids
from benchmarks.gateway import FakeGateway
from benchmarks.memory import watched
from benchmarks.metrics import SUCCESS, Job, Metrics, cpu_seconds

# Often enough for a peak, which the system keeps, and rarely enough to take no time from the competitor.
WATCH_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class Competitor:
    """A command, and the messages that it leaves in the lake.

    Attributes:
        name: In the tables.
        command: Gets the path of the list as a further argument. It runs in the project's folder, or in
            the root folder if it needs to be measured whole.
        messages: The folder within the lake that has only Parquet files with messages; None for a command
            that exports nothing.
        message_id: The column with their ids.
        is_lake: Whether the files have the lake's columns.
        environment: Further variables for the command.
        needs_whole: The command prints no metrics, so only the whole process can be measured.
    """

    name: str
    command: Sequence[str]
    messages: str | None = ""
    message_id: str = "message_id"
    is_lake: bool = True
    environment: Mapping[str, str] = field(default_factory=dict)
    needs_whole: bool = False


@dataclass(frozen=True, slots=True)
class Round:
    """One run of a competitor: its metrics, the memory of its processes, and the requests it sent."""

    name: str
    metrics: Metrics
    memory_bytes: int
    requests: int
    verdict: Verdict | None = None

    @property
    def result(self) -> str:
        """The verdict, with the outcome that the competitor reported if that differs."""
        if self.verdict is None:
            return ""
        is_right = self.verdict.is_complete == (self.metrics.outcome == SUCCESS)
        return str(self.verdict) if is_right else f"{self.verdict}, and it reported {self.metrics.outcome}"


def run(competitor: Competitor, gateway: FakeGateway, lake: str, *, is_whole: bool = False) -> Round:
    """Let a competitor do its job in a new process.

    Args:
        competitor: Who.
        gateway: What it reads.
        lake: What it writes into: a folder or a bucket's URL.
        is_whole: Measure the whole process, with the interpreter's start and all imports.

    Raises:
        SystemExit: The competitor ended with a status other than 0.
    """
    gateway.count_requests()
    with tempfile.TemporaryDirectory(prefix="benchmark-job-") as folder:
        phones = Path(folder, "phones.txt")
        phones.write_text("\n".join(gateway.phones))
        job = Job(gateway.url, gateway.token, gateway.organization, lake, str(phones))
        environment = {**os.environ, **job.environment, **competitor.environment}
        # With it, every process would compile its modules again.
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        began, cpu = time.monotonic(), cpu_seconds()
        with (
            subprocess.Popen(
                [*competitor.command, job.phones],
                stdout=subprocess.PIPE,
                text=True,
                # Processes of another revision must not find this project's packages in their folder.
                cwd="/" if competitor.needs_whole else PROJECT,
                env=environment,
            ) as process,
            watched(process.pid, WATCH_SECONDS) as peaks,
        ):
            output, _ = process.communicate()
            whole = Metrics(time.monotonic() - began, cpu_seconds() - cpu)
    if process.returncode:
        raise SystemExit(f"{competitor.name} ended with status {process.returncode}")
    is_whole = is_whole or competitor.needs_whole
    metrics = whole if is_whole else Metrics(**json.loads(output.splitlines()[-1]))
    return Round(competitor.name, metrics, peaks.together_bytes, gateway.count_requests())


def check(competitor: Competitor, lake: str, expected: Expected) -> Verdict | None:
    """Compare the messages that a competitor wrote with those that the gateway served."""
    if competitor.messages is None:
        return None
    found = read_ids(
        f"{lake}/{competitor.messages}".rstrip("/"), competitor.message_id, is_lake=competitor.is_lake
    )
    return judge(found, expected)
