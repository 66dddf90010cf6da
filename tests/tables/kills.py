"""Compactions in a child process that is killed at its n-th write to the tables."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from imbrace_lake.lake.lake import Lake, open_lake
from imbrace_lake.tables import delta_log, messages
from imbrace_lake.tables.cleaning import GRACE
from imbrace_lake.tables.ledgers import LEDGER_TABLES, LedgerCompaction
from imbrace_lake.tables.messages import MessagesCompaction
from imbrace_lake.tables.report import TableReport

# Every child is forked from a server process that has already imported these modules.
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload([__name__])

# Reading changes nothing, so a kill during a read is a kill after the last write.
WRITES = ("create", "overwrite", "delete")


async def compact_tables(
    lake: Lake, now: datetime, ledgers: Sequence[str], grace: timedelta = GRACE
) -> list[TableReport]:
    """Compact the messages and some tables of ledgers."""
    tables = [one for one in LEDGER_TABLES if one.name in ledgers]
    reports = [await MessagesCompaction(lake, lambda: now, grace=grace).run()]
    return reports + [await LedgerCompaction(lake, one, lambda: now, grace=grace).run() for one in tables]


def _work(url: str, now: datetime, ledgers: Sequence[str], at: int) -> None:
    """Compact a lake in several steps, delete old files, and die before a write to the tables."""
    messages.STEP_BYTES = 1
    messages.MAX_SMALL_FILES = 2
    delta_log.COMMITS_PER_CHECKPOINT = 2
    writes = 0

    async def job() -> None:
        async with open_lake(url, now=None) as lake:

            def counted(write: Any) -> Any:
                async def wrapped(*arguments: Any) -> Any:
                    nonlocal writes
                    writes += arguments[0].startswith("tables/")
                    if writes == at:
                        os.kill(os.getpid(), signal.SIGKILL)
                    return await write(*arguments)

                return wrapped

            for name in WRITES:
                setattr(lake.store, name, counted(getattr(lake.store, name)))
            await compact_tables(lake, now, ledgers, grace=timedelta(0))

    asyncio.run(job())
    os._exit(0)


def compact_and_kill(url: str, now: datetime, ledgers: Sequence[str], at: int) -> bool:
    """Return whether the compaction was killed before its end."""
    process = _context.Process(target=_work, args=(url, now, ledgers, at))
    process.start()
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode != 0
