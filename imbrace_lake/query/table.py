"""The compacted table of a lake: which files are its newest snapshot, and how new they are."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from imbrace_lake.lake.lake import Lake
from imbrace_lake.store.contract import ObjectMeta
from imbrace_lake.tables.cleaning import AS_OF
from imbrace_lake.tables.delta_log import require_deltalake
from imbrace_lake.tables.messages import FOLDER, messages_log


@dataclass(frozen=True)
class TableSnapshot:
    """The newest snapshot of the table of messages.

    Attributes:
        files: Its Parquet files, with keys relative to the lake's root.
        as_of: It has everything that runs had written by this time, at which its compaction began.
    """

    files: tuple[ObjectMeta, ...]
    as_of: datetime


async def read_table_snapshot(lake: Lake) -> TableSnapshot | None:
    """Return the newest snapshot of `tables/messages/`; None if the lake has no complete table.

    Raises:
        InputError: The package `deltalake` is missing.
        DamagedObject: The log of the table cannot be read.
    """
    if not await lake.store.list(f"{FOLDER}_delta_log/", most=1):
        return None
    require_deltalake()
    snapshot = await messages_log(lake).read()
    as_of = None if snapshot is None else snapshot.configuration.get(AS_OF)
    if snapshot is None or as_of is None:
        return None
    files = (
        ObjectMeta(f"{FOLDER}{file.path}", file.size_bytes, "", file.modified_at) for file in snapshot.files
    )
    return TableSnapshot(tuple(files), datetime.fromisoformat(as_of))
