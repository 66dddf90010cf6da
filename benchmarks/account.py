"""How a contender of this project's own measures itself."""

from __future__ import annotations

import asyncio
import json
import resource
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from benchmarks.contest import Account, Job


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


def measure(work: Callable[[], Awaitable[object]]) -> None:
    """Do the work in an event loop and print what it cost."""

    async def do() -> None:
        await work()

    began, cpu = time.monotonic(), time.process_time()
    asyncio.run(do())
    seconds, cpu_seconds = time.monotonic() - began, time.process_time() - cpu
    account = Account(seconds, cpu_seconds, most_memory_bytes())
    print(json.dumps({name: getattr(account, name) for name in Account.__slots__}))
