"""How a contender of this project's own measures itself."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from benchmarks.contest import Account, Job


def read_job() -> Job:
    """Take the job from standard input."""
    return Job(**json.loads(sys.stdin.readline()))


def measure(work: Callable[[], Awaitable[object]]) -> None:
    """Do the work in an event loop and print what it cost."""

    async def do() -> None:
        await work()

    began, cpu = time.monotonic(), time.process_time()
    asyncio.run(do())
    seconds, cpu_seconds = time.monotonic() - began, time.process_time() - cpu
    # Not getrusage(), whose maximum is that of the process before it became this program.
    status = Path("/proc/self/status").read_text()
    memory = int(status.partition("VmHWM:")[2].split()[0]) * 1024
    account = Account(seconds, cpu_seconds, memory)
    print(json.dumps({name: getattr(account, name) for name in Account.__slots__}))
