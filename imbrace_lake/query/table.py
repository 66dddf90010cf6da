"""The compacted table of a lake: which files are its newest snapshot, and how new they are."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from imbrace_lake.lake.lake import Lake
from imbrace_lake.store.contract import ObjectMeta


@dataclass(frozen=True)
class TableSnapshot:
    """The newest snapshot of the table of messages.

    Attributes:
        files: Its Parquet files, with keys relative to the lake's root.
        as_of: The end of the last run whose messages it has.
    """

    files: tuple[ObjectMeta, ...]
    as_of: datetime


async def read_table_snapshot(lake: Lake) -> TableSnapshot | None:
    """Return the newest snapshot of `tables/messages/`; None if the lake has no such table.

    No version writes the table yet, so there is none.
    """
    return None
