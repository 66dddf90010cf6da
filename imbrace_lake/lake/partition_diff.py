"""Diff a walk against the stored partition within the memory budget.

All of it is done by the pure functions of `reconcile`. Where both sides fit into memory they see all
at once. Where only what was read does, they see of the lake what it speaks of. Where neither does,
both are spread over slices by the messages' ids: a message of the one side is in the same slice as
that of the other, and each slice fits.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from imbrace_lake.lake.diff import Diff, current_ids, diff_rows
from imbrace_lake.lake.memory import Reservation
from imbrace_lake.lake.rows import Rows, SortBuffer
from imbrace_lake.lake.schema import EMPTY
from imbrace_lake.lake.snapshot import PartitionSnapshot

# Each is an open file while they are filled.
MOST_SLICES = 256


@dataclass(frozen=True, slots=True)
class DiffSummary:
    """The summary of a diff.

    Attributes:
        new: Rows that the lake does not have; None if there are none.
        changed_parts: Indexes of the parts some of whose rows may have to change.
        outdated: How many messages the lake has in a newer version than was read.
    """

    new: Rows | None
    changed_parts: tuple[int, ...]
    outdated: int


class PartitionDiff(ABC):
    """The diff of a walk and a partition; `diff_partition` makes one.

    Attributes:
        is_small: All of it is in memory, so that nothing takes long.
    """

    is_small = True

    @abstractmethod
    def summarize(self) -> DiffSummary:
        """The new rows, and the parts that change."""

    @abstractmethod
    def part_diffs(self, index: int) -> Iterator[tuple[pa.Table, Diff]]:
        """All rows of one part, some at a time, with the diff that affects them."""


def diff_partition(
    read: Rows, snapshot: PartitionSnapshot, baseline: PartitionSnapshot | None, reservation: Reservation
) -> PartitionDiff:
    """Compare what was read with what the lake has.

    Args:
        read: What was read, with digests.
        snapshot: What the lake has now.
        baseline: What it had before a walk began that proved `read` to be all there is: of that, a
            message that was not read is gone. None if there was no such walk.
        reservation: For what does not fit into memory.
    """
    if not snapshot.parts:
        return _EmptyPartition(read)
    if read.table is not None and snapshot.is_in_memory and (baseline is None or baseline.is_in_memory):
        return _InMemory(read.table, snapshot, baseline)
    if read.table is not None and baseline is None:
        return _SmallRead(read.table, snapshot)
    return _Sliced(read, snapshot, baseline, reservation)


class _EmptyPartition(PartitionDiff):
    """Against an empty partition."""

    def __init__(self, read: Rows) -> None:
        self._read = read

    def summarize(self) -> DiffSummary:
        return DiffSummary(self._read if self._read.num_rows else None, (), 0)

    def part_diffs(self, index: int) -> Iterator[tuple[pa.Table, Diff]]:
        raise IndexError(index)


class _InMemory(PartitionDiff):
    """With both sides in memory."""

    def __init__(
        self, read: pa.Table, snapshot: PartitionSnapshot, baseline: PartitionSnapshot | None
    ) -> None:
        self._snapshot = snapshot
        self._diff = diff_rows(
            snapshot.rows, read, current_ids(baseline.rows) if baseline is not None else None
        )

    def summarize(self) -> DiffSummary:
        diff = self._diff
        changed_parts = tuple(range(len(self._snapshot.parts))) if diff.is_rewrite else ()
        return DiffSummary(_some(diff.new), changed_parts, diff.outdated)

    def part_diffs(self, index: int) -> Iterator[tuple[pa.Table, Diff]]:
        for rows in self._snapshot.part_batches(index):
            yield rows, self._diff


class _SmallRead(PartitionDiff):
    """With what was read in memory, and the matching rows of the partition."""

    is_small = False

    def __init__(self, read: pa.Table, snapshot: PartitionSnapshot) -> None:
        self._snapshot = snapshot
        ids = read.column("message_id").combine_chunks()
        matching = [
            pa.concat_tables(
                [EMPTY]
                + [
                    rows.filter(pc.is_in(rows.column("message_id"), ids))
                    for rows in snapshot.part_batches(index)
                ]
            )
            for index in range(len(snapshot.parts))
        ]
        self._diff = diff_rows(pa.concat_tables(matching), read)
        self._changed_parts = tuple(index for index, rows in enumerate(matching) if self._diff.affects(rows))

    def summarize(self) -> DiffSummary:
        return DiffSummary(_some(self._diff.new), self._changed_parts, self._diff.outdated)

    def part_diffs(self, index: int) -> Iterator[tuple[pa.Table, Diff]]:
        for rows in self._snapshot.part_batches(index):
            yield rows, self._diff


class _Sliced(PartitionDiff):
    """Slice by slice, each made of the messages whose ids have one hash modulo their number."""

    is_small = False

    def __init__(
        self,
        read: Rows,
        snapshot: PartitionSnapshot,
        baseline: PartitionSnapshot | None,
        reservation: Reservation,
    ) -> None:
        self._reservation = reservation
        size_bytes = read.size_bytes + snapshot.size_bytes
        self._count = min(MOST_SLICES, -(-size_bytes // reservation.most_bytes))
        self._read = self._spread(read.batches())
        self._parts = [self._spread(snapshot.part_batches(index)) for index in range(len(snapshot.parts))]
        self._baseline: list[Path] | None = None
        if baseline is not None:
            ids = baseline.batches(["message_id", "is_deleted"])
            self._baseline = self._spread(ids)

    def summarize(self) -> DiffSummary:
        buffer = SortBuffer(self._reservation)
        changed_parts: set[int] = set()
        new = outdated = 0
        for number in range(self._count):
            parts, diff = self._slice(number)
            buffer.add(diff.new)
            new += diff.new.num_rows
            outdated += diff.outdated
            changed_parts.update(index for index, rows in enumerate(parts) if diff.affects(rows))
        return DiffSummary(buffer.rows() if new else None, tuple(sorted(changed_parts)), outdated)

    def part_diffs(self, index: int) -> Iterator[tuple[pa.Table, Diff]]:
        # They are found again rather than kept, for there may be as many changes as messages.
        for number in range(self._count):
            parts, diff = self._slice(number)
            yield parts[index], diff

    def _slice(self, number: int) -> tuple[list[pa.Table], Diff]:
        parts = [_load(paths[number]) for paths in self._parts]
        baseline = None if self._baseline is None else current_ids(_load(self._baseline[number]))
        return parts, diff_rows(pa.concat_tables(parts), _load(self._read[number]), baseline)

    def _spread(self, batches: Iterable[pa.Table]) -> list[Path]:
        """Write rows to as many files as there are slices."""
        paths = [self._reservation.new_file() for _ in range(self._count)]
        batches = iter(batches)
        first = next(batches, EMPTY)
        options = pa.ipc.IpcWriteOptions(compression="lz4", use_threads=False)
        with ExitStack() as stack:
            files = [stack.enter_context(pa.OSFile(str(path), "wb")) for path in paths]
            writers = [
                stack.enter_context(pa.ipc.new_stream(file, first.schema, options=options)) for file in files
            ]
            for rows in (first, *batches):
                ids = rows.column("message_id").to_pylist()
                owner = np.fromiter((hash(one) % self._count for one in ids), np.int64, len(ids))
                order = np.argsort(owner, kind="stable")
                ends = np.searchsorted(owner[order], np.arange(self._count + 1))
                sorted_rows = rows.take(pa.array(order))
                for number, writer in enumerate(writers):
                    begin, end = int(ends[number]), int(ends[number + 1])
                    if begin < end:
                        writer.write_table(sorted_rows.slice(begin, end - begin))
        return paths


def _some(rows: pa.Table) -> Rows | None:
    return Rows.of(rows) if rows.num_rows else None


def _load(path: Path) -> pa.Table:
    with pa.OSFile(str(path)) as file, pa.ipc.open_stream(file) as reader:
        return reader.read_all()
