"""What was read held against what the lake has, as much of it at a time as memory allows.

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

from imbrace_lake.lake.held import Held
from imbrace_lake.lake.reconcile import Changes, find_changes, live_ids
from imbrace_lake.lake.room import Room
from imbrace_lake.lake.rows import Collector, Rows
from imbrace_lake.lake.schema import EMPTY

# Each is an open file while they are filled.
MOST_SLICES = 256


@dataclass(frozen=True, slots=True)
class Found:
    """What comes of a comparison.

    Attributes:
        new: Rows that the lake does not have; None if there are none.
        touched: Places of the parts some of whose rows may have to change.
        outdated: How many messages the lake has in a newer version than was read.
    """

    new: Rows | None
    touched: tuple[int, ...]
    outdated: int


class Comparison(ABC):
    """One side held against the other; `compare` makes one.

    Attributes:
        is_small: All of it is in memory, so that nothing takes long.
    """

    is_small = True

    @abstractmethod
    def find(self) -> Found:
        """What is new and where something is to change."""

    @abstractmethod
    def changes_of(self, place: int) -> Iterator[tuple[pa.Table, Changes]]:
        """All rows of one part, some at a time, with the changes that concern them."""


def compare(read: Rows, held: Held, judged: Held | None, room: Room) -> Comparison:
    """Hold what was read against what the lake has.

    Args:
        read: What was read, with digests.
        held: What the lake has now.
        judged: What it had before a walk began that proved `read` to be all there is: of that, a
            message that was not read is gone. None if there was no such walk.
        room: For what does not fit into memory.
    """
    if not held.parts:
        return _Nothing(read)
    if read.table is not None and held.is_in_memory and (judged is None or judged.is_in_memory):
        return _InMemory(read.table, held, judged)
    if read.table is not None and judged is None:
        return _FewRead(read.table, held)
    return _Sliced(read, held, judged, room)


class _Nothing(Comparison):
    """With a lake that has nothing of it."""

    def __init__(self, read: Rows) -> None:
        self._read = read

    def find(self) -> Found:
        return Found(self._read if self._read.num_rows else None, (), 0)

    def changes_of(self, place: int) -> Iterator[tuple[pa.Table, Changes]]:
        raise IndexError(place)


class _InMemory(Comparison):
    """Of all with all."""

    def __init__(self, read: pa.Table, held: Held, judged: Held | None) -> None:
        self._held = held
        self._changes = find_changes(held.rows, read, live_ids(judged.rows) if judged is not None else None)

    def find(self) -> Found:
        changes = self._changes
        touched = tuple(range(len(self._held.parts))) if changes.is_rewrite else ()
        return Found(_some(changes.new), touched, changes.outdated)

    def changes_of(self, place: int) -> Iterator[tuple[pa.Table, Changes]]:
        for rows in self._held.part_batches(place):
            yield rows, self._changes


class _FewRead(Comparison):
    """Of what was read with what the lake has of that."""

    is_small = False

    def __init__(self, read: pa.Table, held: Held) -> None:
        self._held = held
        ids = read.column("message_id").combine_chunks()
        spoken_of = [
            pa.concat_tables(
                [EMPTY]
                + [rows.filter(pc.is_in(rows.column("message_id"), ids)) for rows in held.part_batches(place)]
            )
            for place in range(len(held.parts))
        ]
        self._changes = find_changes(pa.concat_tables(spoken_of), read)
        self._touched = tuple(place for place, rows in enumerate(spoken_of) if self._changes.concern(rows))

    def find(self) -> Found:
        return Found(_some(self._changes.new), self._touched, self._changes.outdated)

    def changes_of(self, place: int) -> Iterator[tuple[pa.Table, Changes]]:
        for rows in self._held.part_batches(place):
            yield rows, self._changes


class _Sliced(Comparison):
    """Slice by slice, each made of the messages whose ids have one hash modulo their number."""

    is_small = False

    def __init__(self, read: Rows, held: Held, judged: Held | None, room: Room) -> None:
        self._room = room
        size_bytes = read.size_bytes + held.size_bytes
        self._count = min(MOST_SLICES, -(-size_bytes // room.most_bytes))
        self._read = self._spread(read.batches())
        self._parts = [self._spread(held.part_batches(place)) for place in range(len(held.parts))]
        self._judged: list[Path] | None = None
        if judged is not None:
            live = judged.batches(["message_id", "is_deleted"])
            self._judged = self._spread(live)

    def find(self) -> Found:
        collector = Collector(self._room)
        touched: set[int] = set()
        new = outdated = 0
        for number in range(self._count):
            parts, changes = self._slice(number)
            collector.add(changes.new)
            new += changes.new.num_rows
            outdated += changes.outdated
            touched.update(place for place, rows in enumerate(parts) if changes.concern(rows))
        return Found(collector.rows() if new else None, tuple(sorted(touched)), outdated)

    def changes_of(self, place: int) -> Iterator[tuple[pa.Table, Changes]]:
        # They are found again rather than kept, for there may be as many changes as messages.
        for number in range(self._count):
            parts, changes = self._slice(number)
            yield parts[place], changes

    def _slice(self, number: int) -> tuple[list[pa.Table], Changes]:
        parts = [_load(paths[number]) for paths in self._parts]
        judged = None if self._judged is None else live_ids(_load(self._judged[number]))
        return parts, find_changes(pa.concat_tables(parts), _load(self._read[number]), judged)

    def _spread(self, batches: Iterable[pa.Table]) -> list[Path]:
        """Write rows to as many files as there are slices."""
        paths = [self._room.new_file() for _ in range(self._count)]
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
