"""Compare the rows of a walk with the lake: new messages, newer versions, deletions, returns.

`diff_rows` and `apply_diff` are pure functions over Arrow tables. `diff_partition` calls them within the
memory budget: on all rows if they fit into memory; on the stored rows of the messages that were read if only
these fit; else slice by slice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime

import pyarrow as pa
import pyarrow.compute as pc

from imbrace_lake.lake.hash_index import Buckets
from imbrace_lake.lake.hashes import DIGEST
from imbrace_lake.lake.memory import Reservation
from imbrace_lake.lake.rows import Rows, SortBuffer
from imbrace_lake.lake.schema import CONTENT, EMPTY, SCHEMA, WITH_DIGEST, as_written_today
from imbrace_lake.lake.snapshot import PartitionSnapshot

# Each slice is an open file while rows are distributed.
MAX_SLICES = 256


@dataclass(frozen=True, slots=True)
class Diff:
    """The difference between rows that were read and stored rows.

    Attributes:
        new: Rows of messages that the lake does not have, with their digests.
        newer: Rows of messages that the lake has in another version or marked deleted, with digests.
        deleted: Ids of stored messages that a full walk proved deleted.
        outdated: The number of messages that the lake has in a newer version than the walk.
    """

    new: pa.Table
    newer: pa.Table
    deleted: pa.Array
    outdated: int = 0

    @property
    def is_rewrite(self) -> bool:
        """Whether stored rows must change."""
        return bool(self.newer.num_rows or len(self.deleted))

    def affects(self, rows: pa.Table) -> bool:
        """Whether some of these stored rows must change."""
        changed = pa.concat_arrays([*self.newer.column("message_id").chunks, self.deleted])
        return bool(pc.any(pc.is_in(rows.column("message_id"), changed)).as_py())

    def newer_of(self, ids: pa.Array) -> pa.Table:
        """Return the newer rows of some messages."""
        return self.newer.filter(pc.is_in(self.newer.column("message_id"), ids))


def diff_rows(lake: pa.Table, read: pa.Table, baseline: pa.Array | None = None) -> Diff:
    """Compare the rows of a walk with those of the lake.

    Args:
        lake: The stored rows of the conversation, each message once.
        read: The rows of the walk, each message once, with digests.
        baseline: Ids that the lake had before the start of a walk that proved `read` complete: such messages
            are deleted if they were not read. The walk proves nothing about messages that another run has
            added since.
    """
    if not lake.num_rows:
        return Diff(read, read.slice(0, 0), pa.array([], pa.string()))
    stored_ids = lake.column("message_id").combine_chunks()
    is_stored = pc.is_in(read.column("message_id"), stored_ids)
    again = read.filter(is_stored)
    deleted = pa.array([], pa.string())
    if baseline is not None:
        current = current_ids(lake)
        is_missing = pc.invert(pc.is_in(current, read.column("message_id").combine_chunks()))
        deleted = current.filter(pc.and_(is_missing, pc.is_in(current, baseline)))
    differs, is_older = _compare_versions(lake, again)
    newer = again.filter(pc.and_(differs, pc.invert(is_older)))
    return Diff(read.filter(pc.invert(is_stored)), newer, deleted, pc.sum(is_older).as_py() or 0)


def current_ids(lake: pa.Table) -> pa.Array:
    """Return the ids of stored messages that are not marked deleted."""
    return lake.filter(pc.invert(lake.column("is_deleted"))).column("message_id").combine_chunks()


def _compare_versions(lake: pa.Table, again: pa.Table) -> tuple[pa.Array, pa.Array]:
    """Return masks of the rows of `again` that differ from the lake's version, and that are older."""
    index = pc.index_in(again.column("message_id"), lake.column("message_id").combine_chunks())
    old = lake.take(index)
    is_deleted = old.column("is_deleted").combine_chunks()
    differs = _differ(old, again)
    if pc.any(differs).as_py():
        # An earlier release may have written the same message in another form.
        still_differs = _differ(as_written_today(old.filter(differs)), again.filter(differs))
        differs = pc.replace_with_mask(differs, differs, still_differs)
    differs = pc.or_(differs, is_deleted)
    # A run that reads early and writes late must not bring back an old version. But a restored message is
    # accepted in any version, because the gateway has only this one.
    is_older = pc.less(again.column("updated_at").combine_chunks(), old.column("updated_at").combine_chunks())
    is_older = pc.and_(pc.fill_null(is_older, False), pc.invert(is_deleted))
    return differs, pc.and_(differs, is_older)


def _differ(old: pa.Table, now: pa.Table) -> pa.Array:
    """Return a mask of the rows that differ in a column of `CONTENT`."""
    differs = pa.repeat(False, old.num_rows)
    for name in CONTENT:
        was, is_now = old.column(name).combine_chunks(), now.column(name).combine_chunks()
        is_equal = pc.or_kleene(pc.equal(was, is_now), pc.and_(pc.is_null(was), pc.is_null(is_now)))
        differs = pc.or_(differs, pc.invert(pc.fill_null(is_equal, False)))
    return differs


def apply_diff(part: pa.Table, diff: Diff, now: datetime) -> tuple[pa.Table, pa.Table, pa.Table]:
    """Apply the diff of a conversation to the rows of one part; applying it twice changes nothing more.

    Args:
        part: The part's rows.
        diff: The conversation's diff; rows of other parts are ignored.
        now: The time of the change in the lake.

    Returns:
        The part's new rows, in the same order; the replaced versions; and the rows that were marked deleted.
    """
    newer = diff.newer_of(part.column("message_id").combine_chunks())
    newer = newer.filter(_compare_versions(part, newer)[0])
    instant = pa.scalar(now, pa.timestamp("ms", "UTC"))
    index = pc.index_in(part.column("message_id"), newer.column("message_id").combine_chunks())
    is_replaced = pc.is_valid(index)
    is_gone = pc.and_(pc.is_in(part.column("message_id"), diff.deleted), pc.invert(part.column("is_deleted")))
    replacement = newer.drop_columns([DIGEST]).take(index)
    kept = {"message_id", "conversation_id", "organization_id", "first_seen_at"}
    columns = {
        name: part.column(name)
        if name in kept
        else pc.if_else(is_replaced, replacement.column(name), part.column(name))
        for name in SCHEMA.names
    }
    columns["last_changed_at"] = pc.if_else(is_replaced, instant, columns["last_changed_at"])
    columns["is_deleted"] = pc.or_(columns["is_deleted"], is_gone)
    columns["deleted_at"] = pc.if_else(is_gone, instant, columns["deleted_at"])
    rows = pa.Table.from_arrays([*columns.values()], schema=SCHEMA)
    return rows, part.filter(is_replaced), part.filter(is_gone)


# -- a partition ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PartitionDiff:
    """The difference between a walk and a partition.

    Attributes:
        new: Rows that the lake does not have; None if there are none.
        changed_parts: Indexes of the parts in which rows must change.
        outdated: The number of messages that the lake has in a newer version than the walk.
        part_diffs: Yields all rows of a part in batches, each with the diff that affects it.
    """

    new: Rows | None
    changed_parts: tuple[int, ...]
    outdated: int
    part_diffs: Callable[[int], Iterator[tuple[pa.Table, Diff]]]


def diff_partition(
    read: Rows, snapshot: PartitionSnapshot, baseline: PartitionSnapshot | None, reservation: Reservation
) -> PartitionDiff:
    """Compare the rows of a walk with a partition.

    Args:
        read: The rows of the walk, with digests.
        snapshot: The partition now.
        baseline: The partition before a walk that proved `read` complete: its messages that were not read are
            deleted. None if there was no such walk.
        reservation: The memory budget, with a folder for rows that exceed it.
    """
    indexes = range(len(snapshot.parts))
    if not indexes:
        return PartitionDiff(read if read.num_rows else None, (), 0, lambda index: iter(()))
    is_in_memory = snapshot.is_in_memory and (baseline is None or baseline.is_in_memory)
    if read.table is None or not (is_in_memory or baseline is None):
        return _diff_in_slices(read, snapshot, baseline, reservation)
    if is_in_memory:
        stored = snapshot.tables
    else:
        # Without a baseline, only the messages that were read matter.
        ids = read.table.column("message_id").combine_chunks()
        stored = [
            pa.concat_tables(
                [EMPTY, *(rows.filter(pc.is_in(rows.column("message_id"), ids)) for rows in batches)]
            )
            for batches in map(snapshot.part_batches, indexes)
        ]
    before = current_ids(baseline.rows) if baseline is not None else None
    diff = diff_rows(pa.concat_tables(stored), read.table, before)
    changed_parts = tuple(index for index in indexes if diff.is_rewrite and diff.affects(stored[index]))

    def part_diffs(index: int) -> Iterator[tuple[pa.Table, Diff]]:
        return ((rows, diff) for rows in snapshot.part_batches(index))

    new = Rows.of(diff.new) if diff.new.num_rows else None
    return PartitionDiff(new, changed_parts, diff.outdated, part_diffs)


def _diff_in_slices(
    read: Rows, snapshot: PartitionSnapshot, baseline: PartitionSnapshot | None, reservation: Reservation
) -> PartitionDiff:
    """Distribute both sides over files by a hash of the message id, so that each slice fits into memory."""
    count = min(MAX_SLICES, -(-(read.size_bytes + snapshot.size_bytes) // reservation.most_bytes))

    def spread(schema: pa.Schema, batches: Iterable[pa.Table]) -> Buckets:
        buckets = Buckets(schema, "message_id", [reservation.new_file() for _ in range(count)])
        buckets.add(batches)
        buckets.close()
        return buckets

    read_slices = spread(WITH_DIGEST, read.batches())
    part_slices = [spread(SCHEMA, snapshot.part_batches(index)) for index in range(len(snapshot.parts))]
    ids = [SCHEMA.field("message_id"), SCHEMA.field("is_deleted")]
    before = None if baseline is None else spread(pa.schema(ids), baseline.batches([one.name for one in ids]))

    def slices() -> Iterator[tuple[list[pa.Table], Diff]]:
        # Computed again instead of kept, because there can be as many changes as messages.
        for number in range(count):
            parts = [part.read(number) for part in part_slices]
            had = None if before is None else current_ids(before.read(number))
            yield parts, diff_rows(pa.concat_tables(parts), read_slices.read(number), had)

    buffer = SortBuffer(reservation)
    changed_parts: set[int] = set()
    new = outdated = 0
    for parts, diff in slices():
        buffer.add(diff.new)
        new += diff.new.num_rows
        outdated += diff.outdated
        changed_parts.update(index for index, rows in enumerate(parts) if diff.affects(rows))

    def part_diffs(index: int) -> Iterator[tuple[pa.Table, Diff]]:
        return ((parts[index], diff) for parts, diff in slices())

    return PartitionDiff(buffer.rows() if new else None, tuple(sorted(changed_parts)), outdated, part_diffs)
