"""Compact a lake into its tables."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from datetime import datetime, timedelta

from imbrace_lake.lake.lake import Lake
from imbrace_lake.store.lease import exclusive_lease
from imbrace_lake.tables.cleaning import GRACE
from imbrace_lake.tables.delta_log import require_deltalake
from imbrace_lake.tables.ledgers import LEDGER_TABLES, LedgerCompaction, LedgerTable
from imbrace_lake.tables.messages import MessagesCompaction
from imbrace_lake.tables.report import TableReport


async def compact_lake(
    lake: Lake,
    run_id: str,
    clock: Callable[[], datetime],
    *,
    is_dry_run: bool = False,
    grace: timedelta = GRACE,
    on_progress: Callable[[int, int], None] = lambda done, all: None,
) -> list[TableReport]:
    """Bring the tables of a lake up to date; exports and other compactions may be under way.

    Args:
        lake: The lake.
        run_id: Names the compaction in a store that supports only one writer.
        clock: Returns the time.
        is_dry_run: Write nothing, and report what would be read and written.
        grace: How long files of earlier versions are kept for their readers.
        on_progress: Receives the number of finished conversations and of all changed ones.

    Raises:
        InputError: The package `deltalake` is missing.
        LeaseHeld: The store has no conditional writes, and a run or another compaction is under way.
        StoreError: An object cannot be read or written; the message names it.
    """
    require_deltalake()

    def messages() -> MessagesCompaction:
        return MessagesCompaction(lake, clock, grace=grace, on_progress=on_progress)

    def ledger(table: LedgerTable) -> LedgerCompaction:
        return LedgerCompaction(lake, table, clock, grace=grace)

    if is_dry_run:
        return [await messages().plan(), *[await ledger(table).plan() for table in LEDGER_TABLES]]
    probe = await lake.store.probe()
    async with nullcontext() if probe.is_conditional else exclusive_lease(lake.store, run_id, clock):
        # Nothing keeps a compaction, so its memory is free for the next one.
        return [await messages().run(), *[await ledger(table).run() for table in LEDGER_TABLES]]
