"""Runs contenders one after the other on the same stand-in, and checks what each of them wrote.

A contender is a command. It reads a `Job` as one line of JSON on its standard input and ends with an
`Account` as the last line of its standard output, so it can be anything, also a program with an
environment of its own.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import fsspec
import pyarrow.compute as pc
import pyarrow.dataset as ds

from imbrace_lake.lake.schema import SCHEMA

START_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class StandIn:
    """A stand-in gateway in a process of its own, and what it serves."""

    url: str
    token: str
    organization: str
    phones: list[str]
    messages: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Job:
    """What a contender is to do: everything of these phones into that empty folder, or bucket's URL."""

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
        cpu_seconds: Of its process, in that time.
        memory_bytes: The most it ever had resident.
    """

    seconds: float
    cpu_seconds: float
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class Contender:
    """A command, and where in the folder the messages are afterwards."""

    name: str
    command: Sequence[str]
    messages: str = "."
    message_id: str = "message_id"
    is_same: bool = True  # it writes the lake's columns


@dataclass(frozen=True, slots=True)
class Round:
    """One round of one contender; `faults` says in a few words what its result lacks."""

    contender: Contender
    account: Account
    process_seconds: float
    faults: str


@contextmanager
def stand_in(**options: Any) -> Iterator[StandIn]:
    """Run the stand-in in a process of its own, with everything rendered before it is asked."""
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.gateway", json.dumps(options)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None  # noqa: S101 - told to the type checker
        facts = json.loads(process.stdout.readline())
        control = facts["url"].removesuffix("/3rd")
        phones = _get(f"{control}/_sandbox/phones").decode().split()
        messages = json.loads(_get(f"{control}/_sandbox/conversations"))
        yield StandIn(facts["url"], facts["token"], facts["organization"], phones, messages)
    finally:
        process.terminate()
        process.wait()


def _get(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=START_SECONDS) as answer:  # noqa: S310 - our own server
        body: bytes = answer.read()
    return body


def compete(contender: Contender, gateway: StandIn, bucket: str | None = None) -> Round:
    """Let one contender do the whole job, in a new folder (or below a bucket's URL) and a new process."""
    folder = Path(tempfile.mkdtemp(prefix="benchmark-"))
    try:
        phones = folder / "phones.txt"
        phones.write_text("\n".join(gateway.phones))
        result = f"{bucket or folder}/{folder.name}"
        job = Job(gateway.url, gateway.token, gateway.organization, str(phones), result)
        began = time.monotonic()
        done = subprocess.run(
            contender.command,
            input=json.dumps(asdict(job)) + "\n",
            stdout=subprocess.PIPE,
            text=True,
            check=False,
            # Modules that are compiled anew each time would be counted as work.
            env={name: text for name, text in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"},
        )
        seconds = time.monotonic() - began
        if done.returncode:
            raise SystemExit(f"{contender.name} ended with status {done.returncode}")
        account = Account(**json.loads(done.stdout.splitlines()[-1]))
        return Round(contender, account, seconds, _faults(contender, result, gateway))
    finally:
        shutil.rmtree(folder)


def _faults(contender: Contender, result: str, gateway: StandIn) -> str:
    """Hold what was written against what is served."""
    files, path = fsspec.url_to_fs(f"{result}/{contender.messages}")
    found = ds.dataset(path, filesystem=files)
    table = found.to_table(columns=[contender.message_id, "conversation_id"])
    served = sum(gateway.messages.values())
    distinct = pc.count_distinct(table.column(contender.message_id)).as_py()
    faults = []
    if contender.is_same and [(f.name, f.type) for f in found.schema] != [(f.name, f.type) for f in SCHEMA]:
        faults.append("other columns")
    if distinct < served:
        faults.append(f"{served - distinct:,} lost")
    if table.num_rows > distinct:
        faults.append(f"{table.num_rows - distinct:,} doubles")
    counts = table.group_by("conversation_id").aggregate([([], "count_all")]).to_pylist()
    lengths = {row["conversation_id"]: row["count_all"] for row in counts}
    wrong = [each for each, count in gateway.messages.items() if lengths.get(each, 0) != count]
    if wrong:
        faults.append(f"{len(wrong):,} conversations of the wrong length")
    return ", ".join(faults)
