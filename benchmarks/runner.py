"""Runs competitors one after the other on the same fake gateway.

A competitor is a command. It reads a `Job` as one line of JSON on its standard input and ends with an
`Metrics` as the last line of its standard output, so it can be anything, also a program with an
environment of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa

from benchmarks.expected import Expected, Verdict, as_ids, judge, read_ids
from benchmarks.metrics import Job, Metrics
from imbrace_sandbox import SandboxOptions
from imbrace_sandbox.generated import iter_generated

CONTROL_SECONDS = 600.0
PROJECT = Path(__file__).parent.parent


@dataclass(frozen=True, slots=True)
class FakeGateway:
    """A fake gateway in a process of its own, and what it served at first."""

    url: str
    token: str
    organization: str
    phones: list[str]
    conversation_ids: list[str]
    message_ids: pa.ChunkedArray

    def count_requests(self) -> int:
        """How many requests there were since the last call."""
        counted = sum(json.loads(self._control("stats"))["requests"].values())
        self._control("reset-stats", {})
        return int(counted)

    def append(self, conversation_id: str, count: int) -> list[str]:
        """Let messages arrive at the head of a conversation; return their ids."""
        answer = json.loads(self._control(f"conversations/{conversation_id}", {"append": count}))
        appended: list[str] = answer["ids"]["append"]
        return appended

    def ids_now(self) -> pa.ChunkedArray:
        """The ids of all messages that are served now, one request a conversation."""
        bodies = (self._control(f"conversations/{each}/messages") for each in self.conversation_ids)
        return as_ids(orjson.loads(line)["_id"] for body in bodies for line in body.splitlines())

    def _control(self, path: str, body: Mapping[str, Any] | None = None) -> bytes:
        return _ask(f"{self.url.removesuffix('/3rd')}/_sandbox/{path}", body)


@dataclass(frozen=True, slots=True)
class Competitor:
    """A command, and where below the folder the messages are afterwards.

    Attributes:
        name: As the tables say.
        command: What runs it, from the project's folder.
        messages: The part of the folder that holds only Parquet files with messages.
        message_id: The column with their ids.
        is_lake: It writes the lake's columns.
    """

    name: str
    command: Sequence[str]
    messages: str = ""
    message_id: str = "message_id"
    is_lake: bool = True


@dataclass(frozen=True, slots=True)
class Round:
    """One run of one competitor: what it says of itself, and how many requests the fake gateway counted."""

    competitor: Competitor
    metrics: Metrics
    requests: int


@contextmanager
def fake_gateway(**options: Any) -> Iterator[FakeGateway]:
    """Run the fake gateway in a process of its own, with everything rendered before it is asked."""
    command = [sys.executable, "-m", "benchmarks.gateway", json.dumps(options)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=PROJECT) as process:
        try:
            # Made a second time here, because asking the server for the ids of millions would take longer.
            conversation_ids, message_ids = _generate(options)
            assert process.stdout is not None  # noqa: S101 - narrows the type for mypy
            facts = json.loads(process.stdout.readline())
            phones = _ask(f"{facts['url'].removesuffix('/3rd')}/_sandbox/phones").decode().split()
            yield FakeGateway(
                facts["url"], facts["token"], facts["organization"], phones, conversation_ids, message_ids
            )
        finally:
            process.terminate()


def _generate(options: Mapping[str, Any]) -> tuple[list[str], pa.ChunkedArray]:
    """The ids of all conversations and of all their messages."""
    sources = list(iter_generated(SandboxOptions(**{**options, "sizes": tuple(options.get("sizes", ()))})))
    ids = as_ids(source.message_id(ordinal) for source in sources for ordinal in range(source.size))
    return [source.senders.conversation_id for source in sources], ids


def _ask(url: str, body: Mapping[str, Any] | None = None) -> bytes:
    request = urllib.request.Request(url, data=None if body is None else orjson.dumps(body))  # noqa: S310
    with urllib.request.urlopen(request, timeout=CONTROL_SECONDS) as answer:  # noqa: S310 - our own server
        found: bytes = answer.read()
    return found


def run(competitor: Competitor, gateway: FakeGateway, folder: str) -> Round:
    """Let one competitor do the whole job in a new process.

    Args:
        competitor: Who.
        gateway: What it reads.
        folder: What it writes into: a local folder or a bucket's URL.

    Raises:
        SystemExit: It ended with a status other than 0.
    """
    with tempfile.TemporaryDirectory(prefix="benchmark-job-") as folder:
        phones = Path(folder, "phones.txt")
        phones.write_text("\n".join(gateway.phones))
        job = Job(gateway.url, gateway.token, gateway.organization, str(phones), folder)
        gateway.count_requests()
        done = subprocess.run(
            competitor.command,
            input=json.dumps(asdict(job)) + "\n",
            stdout=subprocess.PIPE,
            text=True,
            check=False,
            cwd=PROJECT,
            # Modules that are compiled again each time would be counted as work.
            env={name: text for name, text in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"},
        )
    if done.returncode:
        raise SystemExit(f"{competitor.name} ended with status {done.returncode}")
    metrics = Metrics(**json.loads(done.stdout.splitlines()[-1]))
    return Round(competitor, metrics, gateway.count_requests())


def check(competitor: Competitor, folder: str, expected: Expected) -> Verdict:
    """Compare what a competitor wrote with what is served."""
    folder = f"{folder}/{competitor.messages}".rstrip("/")
    found = read_ids(folder, competitor.message_id, is_lake=competitor.is_lake)
    return judge(found, expected)
