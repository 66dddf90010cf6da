"""The objects that the ledgers record, and their hashes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Self

import pyarrow as pa
import pyarrow.compute as pc

from imbrace_lake.concurrency import run_bounded
from imbrace_lake.errors import StoreError
from imbrace_lake.lake.lake import Lake, partition_key
from imbrace_lake.lake.ledger import CondensedRows, last_of_each, list_ledger, read_objects
from imbrace_lake.lake.ledger_schema import CONVERSATIONS, WINDOW, Ledger

READ_AT_A_TIME = 16
_TIME = CONVERSATIONS.field("finished_at").type
# A version of a part, and the time of the latest entry that records it.
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
    """The objects and hashes that the ledgers record.

    Attributes:
        parts: The hashes that each part may have.
        newest: For each part, the version (`_VERSIONS`) whose first record is the latest.
        ledgers: The keys of ledger objects that runs recorded.
        is_complete: No object of the ledger `conversations`, and so no newer hash, is damaged or missing.
    """

    parts: dict[str, tuple[str, ...]]
    newest: pa.Table
    ledgers: set[str]
    is_complete: bool

    @classmethod
    async def read(cls, lake: Lake) -> Self:
        """Read all ledgers and journals, without damaged objects."""
        is_complete = True
        # The ledgers record the same few versions many times.
        versions = CondensedRows(_last_of_each_version, _VERSIONS.empty_table())
        first = CondensedRows(_first_of_each_version, _VERSIONS.empty_table())
        columns = ["parts", "started_at", "finished_at"]
        async for tables, are_all in _intact_rows(lake, "conversations", columns):
            for rows in map(_versions, tables):
                versions.add(rows)
                first.add(rows)
            is_complete = is_complete and are_all
        written = set()
        async for tables, _ in _intact_rows(lake, "runs", ["objects"]):
            for rows in tables:
                written.update(pc.list_flatten(rows.column("objects")).to_pylist())
        # An entry of an unchanged conversation repeats the version from the start of its run, which a repair
        # may have replaced meanwhile. So the first record of each version counts.
        newest = last_of_each(first.rows(), ["key"], "finished_at")
        return cls(_hashes(versions.rows(), newest), newest, written, is_complete)

    def newest_begun_at(self, key: str) -> datetime:
        """Return when the run whose entry is the newest of a part began to read the conversation."""
        own = self.newest.filter(pc.equal(self.newest.column("key"), key))
        begun_at: datetime = own.column("begun_at")[0].as_py()
        return begun_at


async def read_replaced(lake: Lake, missing: set[str]) -> set[str]:
    """Return those of the missing parts without which a later run proved the conversation complete.

    Such a run has listed the other parts of the conversation, and added what they lack.

    Args:
        lake: The lake.
        missing: Keys of parts that a ledger records.
    """
    folders = {key.rpartition("/")[0] for key in missing}
    recorded_at: dict[str, datetime] = {}
    proofs: dict[str, list[tuple[datetime, set[str]]]] = {}
    columns = [
        "organization_id",
        "conversation_id",
        "status",
        "proof_method",
        "parts",
        "started_at",
        "finished_at",
    ]
    async for tables, _ in _intact_rows(lake, "conversations", columns):
        for rows in tables:
            for row in rows.filter(pc.is_valid(rows.column("parts"))).to_pylist():
                folder = partition_key(row["organization_id"], row["conversation_id"])
                if folder not in folders:
                    continue
                keys = {part["key"] for part in row["parts"]}
                for key in keys & missing:
                    recorded_at[key] = max(recorded_at.get(key, row["finished_at"]), row["finished_at"])
                if row["status"] == "complete" and row["proof_method"] != WINDOW and row["started_at"]:
                    proofs.setdefault(folder, []).append((row["started_at"], keys))
    return {
        key
        for key, last in recorded_at.items()
        if any(began > last and key not in keys for began, keys in proofs.get(key.rpartition("/")[0], ()))
    }


def _versions(entries: pa.Table) -> pa.Table:
    """Return the versions of parts in each entry."""
    entries = entries.combine_chunks()
    parts = pc.list_flatten(entries.column("parts"))
    index = pc.list_parent_indices(entries.column("parts"))
    finished_at = entries.column("finished_at").take(index)
    begun_at = pc.coalesce(entries.column("started_at").take(index), finished_at)
    columns = [pc.struct_field(parts, "key"), pc.struct_field(parts, "sha256"), begun_at, finished_at]
    versions = pa.Table.from_arrays(columns, schema=_VERSIONS)
    return versions.filter(pc.is_valid(versions.column("sha256")))


def _last_of_each_version(versions: pa.Table) -> pa.Table:
    return last_of_each(versions, ["key", "sha256"], "finished_at")


def _first_of_each_version(versions: pa.Table) -> pa.Table:
    before = pc.negate(versions.column("finished_at").cast(pa.int64()))
    first = last_of_each(versions.append_column("before", before), ["key", "sha256"], "before")
    return first.drop_columns(["before"])


def _hashes(versions: pa.Table, newest: pa.Table) -> dict[str, tuple[str, ...]]:
    """Return the hashes of each part: of its newest version, and of those recorded since its reading began.

    If two runs exported a conversation at the same time, the entry that was written last need not be that of
    the run that replaced the part last, so both count.
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
    """Yield a ledger's rows from intact objects, a few objects at a time, and whether all were intact."""

    async def read(key: str) -> list[pa.Table] | None:
        try:
            return await read_objects(lake, [key], columns, is_strict=True)
        except StoreError:
            return None

    keys = await list_ledger(lake, ledger)
    for start in range(0, len(keys), READ_AT_A_TIME):
        jobs = (partial(read, key) for key in keys[start:][:READ_AT_A_TIME])
        some = await run_bounded(READ_AT_A_TIME, jobs)
        yield [rows for tables in some for rows in tables or ()], None not in some
