"""The objects that the ledgers record, and their hashes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Self

import pyarrow as pa
import pyarrow.compute as pc

from imbrace_lake.errors import StoreError
from imbrace_lake.lake.lake import Lake
from imbrace_lake.lake.ledger import last_of_each, list_ledger, read_objects
from imbrace_lake.lake.ledger_schema import CONVERSATIONS, Ledger

READ_AT_A_TIME = 16
_TIME = CONVERSATIONS.field("finished_at").type
# A version of a part, and the latest entry that records it.
_VERSIONS = pa.schema(
    [
        pa.field("key", pa.string()),
        pa.field("sha256", pa.string()),
        pa.field("begun_at", _TIME),
        pa.field("finished_at", _TIME),
    ]
)


@dataclass(slots=True)
class ExpectedObjects:
    """What the ledgers record of the lake's objects.

    Attributes:
        parts: The hashes that each part may have.
        newest: `_VERSIONS` of each part: the version that was recorded last for the first time, then.
        ledgers: The ledgers' objects that runs recorded.
        is_complete: No object of the ledger `conversations` is damaged or missing, so that no newer hash is.
    """

    parts: dict[str, tuple[str, ...]]
    newest: pa.Table
    ledgers: set[str]
    is_complete: bool

    @classmethod
    async def read(cls, lake: Lake) -> Self:
        """Read it from all ledgers and journals; damaged objects are left out."""
        versions, is_complete = _VERSIONS.empty_table(), True
        first = versions
        columns = ["parts", "started_at", "finished_at"]
        async for tables, are_all in _intact_rows(lake, "conversations", columns):
            some = pa.concat_tables([versions, *map(_versions, tables)])
            # The ledgers record the same few versions again and again.
            versions = last_of_each(some, ["key", "sha256"], "finished_at")
            first = _first_of_each(pa.concat_tables([first, *map(_versions, tables)]))
            is_complete = is_complete and are_all
        written = set()
        async for tables, _ in _intact_rows(lake, "runs", ["objects"]):
            for rows in tables:
                written.update(pc.list_flatten(rows.column("objects")).to_pylist())
        # An entry of an unchanged conversation repeats the version that was known when its run began, which
        # may be one that a repair has replaced meanwhile.
        newest = last_of_each(first, ["key"], "finished_at")
        return cls(_hashes(versions, newest), newest, written, is_complete)

    def newest_begun_at(self, key: str) -> datetime:
        """When the reading began whose entry is the newest that records a part."""
        own = self.newest.filter(pc.equal(self.newest.column("key"), key))
        begun_at: datetime = own.column("begun_at")[0].as_py()
        return begun_at


def _versions(entries: pa.Table) -> pa.Table:
    """Each part that each entry records."""
    entries = entries.combine_chunks()
    parts = pc.list_flatten(entries.column("parts"))
    index = pc.list_parent_indices(entries.column("parts"))
    finished_at = entries.column("finished_at").take(index)
    begun_at = pc.coalesce(entries.column("started_at").take(index), finished_at)
    columns = [pc.struct_field(parts, "key"), pc.struct_field(parts, "sha256"), begun_at, finished_at]
    versions = pa.Table.from_arrays(columns, schema=_VERSIONS)
    return versions.filter(pc.is_valid(versions.column("sha256")))


def _first_of_each(versions: pa.Table) -> pa.Table:
    """Each version as it was recorded first."""
    before = pc.negate(versions.column("finished_at").cast(pa.int64()))
    found = last_of_each(versions.append_column("before", before), ["key", "sha256"], "before")
    return found.drop_columns(["before"])


def _hashes(versions: pa.Table, newest: pa.Table) -> dict[str, tuple[str, ...]]:
    """The hashes of each part: that of its newest version, and of those recorded since it was being read.

    Where two runs were at one conversation at a time, the entry that was written last need not be
    that of the run that replaced the part last, so both count.
    """
    index = pc.index_in(versions.column("key"), newest.column("key").combine_chunks())
    is_current = pc.greater_equal(versions.column("finished_at"), newest.column("begun_at").take(index))
    hashes: dict[str, tuple[str, ...]] = {}
    for batch in versions.filter(is_current).to_batches(max_chunksize=4096):
        for key, digest in zip(batch["key"].to_pylist(), batch["sha256"].to_pylist(), strict=True):
            hashes[key] = (*hashes.get(key, ()), digest)
    return hashes


async def _intact_rows(
    lake: Lake, ledger: Ledger, columns: Sequence[str]
) -> AsyncIterator[tuple[list[pa.Table], bool]]:
    """A ledger's rows, some objects at a time: those of intact objects, and whether all of them are."""

    async def read(key: str) -> list[pa.Table] | None:
        try:
            return await read_objects(lake, [key], columns, is_strict=True)
        except StoreError:
            return None

    keys = await list_ledger(lake, ledger)
    for start in range(0, len(keys), READ_AT_A_TIME):
        some = await asyncio.gather(*(read(key) for key in keys[start : start + READ_AT_A_TIME]))
        yield [rows for tables in some for rows in tables or ()], None not in some
