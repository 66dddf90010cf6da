"""What a table of messages contains: the parts that were read into it, with the sums of their rows by month.

The state is one object in `tables/state/`, and the commit of a table names the state that belongs to it, so
both change in one step. Without its state, a table is built again.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from imbrace_lake.lake.hashes import digest_lanes
from imbrace_lake.lake.lake import Part
from imbrace_lake.lake.ledger import has_hash, named_by_hash
from imbrace_lake.lake.parquet import encode
from imbrace_lake.store.contract import Store
from imbrace_lake.tables.cleaning import STATE_FOLDER
from imbrace_lake.tables.rows import months_of

# One row for each month of each part. The hashes are sums of digests (lake/hashes.py), as two numbers.
STATE = pa.schema(
    [
        pa.field("key", pa.dictionary(pa.int32(), pa.string())),
        pa.field("size_bytes", pa.int64()),
        pa.field("etag", pa.dictionary(pa.int32(), pa.string())),
        pa.field("sha256", pa.dictionary(pa.int32(), pa.string())),
        pa.field("month", pa.int32()),
        pa.field("rows", pa.int64()),
        pa.field("low", pa.uint64()),
        pa.field("high", pa.uint64()),
        pa.field("current_rows", pa.int64()),
        pa.field("current_low", pa.uint64()),
        pa.field("current_high", pa.uint64()),
    ]
)
_MASK = 2**64 - 1
Sums = tuple[int, int, int, int, int, int]
"""Number and content hash of rows, and of those that are not marked deleted; in a sum, each modulo 2^64."""
NOTHING: Sums = (0, 0, 0, 0, 0, 0)


def plus(one: Sums, other: Sums) -> Sums:
    """Return the sums of two disjoint sets of rows."""
    return tuple((a + b) & _MASK for a, b in zip(one, other, strict=True))  # type: ignore[return-value]


def content_hash_of(sums: Sums) -> str:
    """Return the content hash of the rows that are not marked deleted, as the ledger has it."""
    return f"{sums[4]:016x}{sums[5]:016x}"


def sums_by(rows: pa.Table, keys: np.ndarray[Any, Any]) -> dict[int, Sums]:
    """Return the sums of rows with digests, for each value of a key.

    Args:
        rows: Rows with the columns `is_deleted` and `DIGEST`.
        keys: An integer for each row.
    """
    if not rows.num_rows:
        return {}
    lanes = digest_lanes(rows)
    current = ~rows.column("is_deleted").to_numpy(zero_copy_only=False)
    distinct, positions = np.unique(keys, return_inverse=True)
    columns = []
    for mask in (np.ones(len(lanes), bool), current):
        count = np.zeros(len(distinct), np.uint64)
        np.add.at(count, positions[mask], np.uint64(1))
        columns.append(count)
        for lane in (0, 1):
            total = np.zeros(len(distinct), np.uint64)
            np.add.at(total, positions[mask], lanes[mask, lane])
            columns.append(total)
    values = zip(*(column.tolist() for column in columns), strict=True)
    return dict(zip(distinct.tolist(), values, strict=True))


def sums_by_month(rows: pa.Table) -> dict[int, Sums]:
    """Return the sums of the rows of each month."""
    return sums_by(rows, months_of(rows))


def sums_by_conversation(rows: pa.Table) -> dict[tuple[str, str], Sums]:
    """Return the sums of the rows of each conversation, by organization and conversation."""
    found: dict[tuple[str, str], Sums] = {}
    for batch in rows.to_batches():
        ids = [batch.column(name).dictionary_encode() for name in ("organization_id", "conversation_id")]
        codes = [one.indices.to_numpy().astype(np.int64) for one in ids]
        width = max(1, len(ids[1].dictionary))
        names = [one.dictionary.to_pylist() for one in ids]
        for key, sums in sums_by(pa.Table.from_batches([batch]), codes[0] * width + codes[1]).items():
            pair = (names[0][key // width], names[1][key % width])
            found[pair] = plus(found.get(pair, NOTHING), sums)
    return found


@dataclass(frozen=True, slots=True)
class ReadPart:
    """A part as it was read into the table.

    Attributes:
        part: The part, with the version and the hash that were read.
        months: The sums of its rows by month.
    """

    part: Part
    months: Mapping[int, Sums]


@dataclass(slots=True)
class Changes:
    """The difference between the parts of a lake and those in a table, by folder of a conversation.

    Attributes:
        folders: All parts of each conversation with a new, replaced or removed part; none if it is gone.
        new: The keys of the parts that the table does not have, or has in another version.
        new_bytes: Their sizes.
        folder_count: The number of all conversations of the lake.
    """

    folders: dict[str, list[Part]] = field(default_factory=dict)
    new: set[str] = field(default_factory=set)
    new_bytes: int = 0
    folder_count: int = 0


@dataclass(slots=True)
class TableState:
    """The state that belongs to a version of the table.

    Attributes:
        rows: Rows of `STATE`.
        removed: Keys of objects that earlier versions of the table need, and when they were replaced.
        unlike_ledger: Conversations that differed from the ledger when they were read, by folder:
            organization and conversation. Later compactions compare them again.
    """

    rows: pa.Table = field(default_factory=STATE.empty_table)
    removed: dict[str, datetime] = field(default_factory=dict)
    unlike_ledger: dict[str, tuple[str, str]] = field(default_factory=dict)

    def changes(self, parts: Sequence[Part]) -> Changes:
        """Compare the table with all parts of the lake, as listed."""
        listed = pa.table(
            {
                "key": pa.array([one.key for one in parts], pa.string()),
                "size_bytes": pa.array([one.size_bytes for one in parts], pa.int64()),
                "etag": pa.array([one.etag for one in parts], pa.string()),
            }
        )
        keys = self.rows.column("key").cast(pa.string()).combine_chunks()
        at = pc.index_in(listed.column("key").combine_chunks(), keys)
        known = self.rows.select(["size_bytes", "etag"]).take(at)
        is_same = pc.and_(
            pc.equal(known.column("size_bytes"), listed.column("size_bytes")),
            pc.equal(known.column("etag").cast(pa.string()), listed.column("etag")),
        )
        other = np.flatnonzero(~pc.fill_null(is_same, False).to_numpy(zero_copy_only=False))
        found = Changes(new={parts[index].key for index in other.tolist()})
        found.new_bytes = sum(parts[index].size_bytes for index in other.tolist())
        folders = {folder_of(key) for key in found.new}
        is_listed = pc.is_in(keys, value_set=listed.column("key").combine_chunks())
        gone = pc.unique(keys.filter(pc.invert(is_listed))).to_pylist()
        folders.update(map(folder_of, gone))
        found.folders = {folder: [] for folder in sorted(folders)}
        last = None
        for part in parts:
            folder = folder_of(part.key)
            found.folder_count += folder != last
            last = folder
            if folder in folders:
                found.folders[folder].append(part)
        return found

    def of_folders(self, folders: Iterable[str]) -> dict[str, dict[str, ReadPart]]:
        """Return the parts of some conversations that the table contains, by folder and key."""
        chosen = self.rows.filter(self._mask(folders))
        months: dict[str, dict[int, Sums]] = {}
        versions: dict[str, Part] = {}
        for row in chosen.to_pylist():
            key = row["key"]
            sums = tuple(row[name] for name in STATE.names[5:])
            months.setdefault(key, {})[row["month"]] = sums
            versions[key] = Part(key, row["size_bytes"], sha256=row["sha256"], etag=row["etag"])
        found: dict[str, dict[str, ReadPart]] = {}
        for key, part in versions.items():
            found.setdefault(folder_of(key), {})[key] = ReadPart(part, months[key])
        return found

    def with_folders(self, folders: Mapping[str, Iterable[ReadPart]]) -> TableState:
        """Return the state in which some conversations have these parts."""
        columns: dict[str, list[Any]] = {name: [] for name in STATE.names}
        for parts in folders.values():
            for one in parts:
                part = one.part
                for month, sums in one.months.items():
                    values = (part.key, part.size_bytes, part.etag, part.sha256, month, *sums)
                    for name, value in zip(STATE.names, values, strict=True):
                        columns[name].append(value)
        arrays = [pa.array(columns[one.name], one.type) for one in STATE]
        kept = self.rows.filter(pc.invert(self._mask(folders)))
        rows = pa.concat_tables([kept, pa.Table.from_arrays(arrays, schema=STATE)])
        unlike = {folder: names for folder, names in self.unlike_ledger.items() if folder not in folders}
        return TableState(rows.unify_dictionaries().combine_chunks(), dict(self.removed), unlike)

    def row_count(self) -> int:
        """Return the number of rows of the table."""
        return int(pc.sum(self.rows.column("rows")).as_py() or 0)

    def folders(self) -> set[str]:
        """Return the folders of all conversations that have rows in the table."""
        return {folder_of(key) for key in pc.unique(self.rows.column("key").cast(pa.string())).to_pylist()}

    def conversation_sums(self) -> dict[str, Sums]:
        """Return the sums of the rows of each conversation, by folder."""
        found: dict[str, Sums] = {}
        for batch in self.rows.to_batches(max_chunksize=16_384):
            for row in batch.to_pylist():
                sums: Sums = tuple(row[name] for name in STATE.names[5:])
                folder = folder_of(row["key"])
                found[folder] = plus(found.get(folder, NOTHING), sums)
        return found

    def _mask(self, folders: Iterable[str]) -> pa.ChunkedArray:
        """Return a mask of the rows of some conversations."""
        wanted = pa.array([*folders], pa.string())
        chunks = []
        for chunk in self.rows.column("key").chunks:
            # As `folder_of`, for each key once.
            split = pc.split_pattern(chunk.dictionary, "/", max_splits=1, reverse=True)
            is_wanted = pc.is_in(pc.list_element(split, 0), value_set=wanted)
            chunks.append(is_wanted.take(chunk.indices))
        return pa.chunked_array(chunks, pa.bool_())

    async def write(self, store: Store) -> str:
        """Write the state and return its key."""
        removed = json.dumps({key: moment.isoformat() for key, moment in self.removed.items()})
        rows = self.rows.cast(_PLAIN)
        metadata = {"removed": removed, "unlike_ledger": json.dumps(self.unlike_ledger)}
        body = encode(rows, metadata, compression="zstd", use_dictionary=["key", "etag", "sha256"])
        key = named_by_hash(f"{STATE_FOLDER}messages", body)
        await store.overwrite(key, body)
        return key


_PLAIN = pa.schema([one.with_type(pa.string()) if pa.types.is_dictionary(one.type) else one for one in STATE])


async def read_state(store: Store, key: str) -> TableState | None:
    """Read a state; None if it is missing or damaged."""
    try:
        body = await store.get(key)
    except FileNotFoundError:
        return None
    if not has_hash(key, body):
        return None
    rows = pq.read_table(io.BytesIO(body), read_dictionary=["key", "etag", "sha256"])
    metadata = pq.read_metadata(io.BytesIO(body)).metadata
    removed = json.loads(metadata[b"removed"])
    unlike = json.loads(metadata.get(b"unlike_ledger", b"{}"))
    return TableState(
        rows.cast(STATE).unify_dictionaries().combine_chunks(),
        {key: datetime.fromisoformat(moment) for key, moment in removed.items()},
        {folder: tuple(names) for folder, names in unlike.items()},
    )


def folder_of(key: str) -> str:
    """Return the folder of a part's conversation."""
    return key.rpartition("/")[0]
