"""Compactions in a child process that is killed at its n-th call of the store."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
from datetime import datetime
from typing import Any

from imbrace_lake.lake.lake import open_lake
from imbrace_lake.tables import delta_log, messages
from imbrace_lake.tables.compact import compact_lake

# Every child is forked from a server process that has already imported these modules.
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload([__name__])

# Reading changes nothing, so a kill during a read is a kill after the last write.
CALLS = ("create", "overwrite", "delete")


def _work(url: str, now: datetime, at: int, is_after: bool) -> None:
    """Compact a lake, and die before or after a call of the store."""
    messages.MOST_SMALL_FILES = 2
    delta_log.COMMITS_PER_CHECKPOINT = 2
    calls = 0

    async def job() -> None:
        async with open_lake(url, now=None) as lake:

            def counted(call: Any) -> Any:
                async def wrapped(*arguments: Any) -> Any:
                    nonlocal calls
                    calls += arguments[0].startswith("tables/")
                    mine = calls
                    if mine == at and not is_after:
                        os.kill(os.getpid(), signal.SIGKILL)
                    result = await call(*arguments)
                    if mine == at:
                        os.kill(os.getpid(), signal.SIGKILL)
                    return result

                return wrapped

            for name in CALLS:
                setattr(lake.store, name, counted(getattr(lake.store, name)))
            await compact_lake(lake, "killed", lambda: now)

    asyncio.run(job())
    os._exit(0)


def compact_and_kill(url: str, now: datetime, at: int, *, is_after: bool) -> bool:
    """Return whether the compaction was killed before its end."""
    process = _context.Process(target=_work, args=(url, now, at, is_after))
    process.start()
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode != 0
