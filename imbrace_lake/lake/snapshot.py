"""A partition as it was read, in memory or, if large, in files."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from imbrace_lake.concurrency import run_bounded
from imbrace_lake.errors import DamagedObject
from imbrace_lake.gateway.id_set import IdSet
from imbrace_lake.lake.hash_index import first_repeating, id_hashes
from imbrace_lake.lake.hashes import NO_HASH, content_hash, hash_sum
from imbrace_lake.lake.lake import READ_AT_A_TIME, Lake, Part
from imbrace_lake.lake.memory import Reservation
from imbrace_lake.lake.schema import EMPTY, with_digests

# The approximate size of rows in memory, as a multiple of the size of their part.
EXPANSION = 8


@dataclass(frozen=True, slots=True)
class PartitionSnapshot:
    """The parts of one conversation as they were read.

    Attributes:
        lake: The lake.
        parts: The parts.
        sources: The rows of each part, or the file with them.
    """

    lake: Lake
    parts: tuple[Part, ...] = ()
    sources: tuple[pa.Table | Path, ...] = ()

    @classmethod
    async def read(cls, lake: Lake, parts: Sequence[Part], reservation: Reservation) -> PartitionSnapshot:
        """Read the parts, one request each; those that do not fit into memory go to files.

        Raises:
            DamagedObject: A part is missing or damaged, or has messages of another one; the message names it.
        """

        async def read_one(part: Part) -> tuple[Part, pa.Table | Path]:
            size_bytes = EXPANSION * part.size_bytes
            if reservation.fits(size_bytes):
                reservation.reserve(size_bytes)
                return (await lake.read_parts([part]))[0]
            path = reservation.new_file()
            return await lake.download_part(part, path), path

        # A read that goes on after the error of another one would write into a folder that is deleted.
        read = await run_bounded(min(READ_AT_A_TIME, len(parts)), (partial(read_one, one) for one in parts))
        snapshot = cls(lake, tuple(part for part, _ in read), tuple(source for _, source in read))
        if len(read) > 1:
            find = snapshot._repeating_part
            repeating = find() if snapshot.is_in_memory else await asyncio.to_thread(find)
            if repeating is not None:
                raise DamagedObject(
                    f"{lake.url}/{repeating.key} repeats messages of an earlier part: delete it and export"
                    " its conversation again"
                )
        return snapshot

    def _repeating_part(self) -> Part | None:
        """Return the first part that has a message of an earlier one, because each message is stored once."""
        parts = (self.part_batches(index, ["message_id"]) for index in range(len(self.parts)))
        index = first_repeating([*map(id_hashes, parts)])
        return None if index is None else self.parts[index]

    @property
    def is_in_memory(self) -> bool:
        """Whether all rows are in memory."""
        return not any(isinstance(source, Path) for source in self.sources)

    @property
    def size_bytes(self) -> int:
        """The approximate size of all rows in memory."""
        return EXPANSION * sum(one.size_bytes for one in self.parts)

    @property
    def tables(self) -> list[pa.Table]:
        """The rows of each part, if all are in memory."""
        return [source for source in self.sources if not isinstance(source, Path)]

    @property
    def rows(self) -> pa.Table:
        """All rows, part by part, if they are in memory."""
        return pa.concat_tables(self.tables) if self.sources else EMPTY

    def part_batches(self, index: int, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """Yield the rows of one part, or some columns of them, in batches."""
        source = self.sources[index]
        if isinstance(source, Path):
            yield from self.lake.iter_part(self.parts[index], source, columns)
        else:
            yield source if columns is None else source.select(columns)

    def batches(self, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """Yield all rows, or some columns of them, in batches."""
        for index in range(len(self.parts)):
            yield from self.part_batches(index, columns)

    def current_hash(self) -> tuple[int, str]:
        """Return the number of messages that are not marked deleted, and their content hash."""
        count, total = 0, NO_HASH
        for rows in self.batches():
            current = rows.filter(pc.invert(rows.column("is_deleted")))
            count += current.num_rows
            total = hash_sum([total, content_hash(with_digests(current))])
        return count, total

    def current_ids(self) -> IdSet:
        """Return the ids of the messages that are not marked deleted."""
        current = IdSet()
        for rows in self.batches(["message_id", "is_deleted"]):
            current.add(rows.filter(pc.invert(rows.column("is_deleted"))).column("message_id").to_pylist())
        return current
