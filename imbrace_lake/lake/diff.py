"""Compare what was read with what the lake has: new messages, newer versions, deletions, returns.

Pure functions over Arrow tables; what comes of it is written elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import pyarrow as pa
import pyarrow.compute as pc

from imbrace_lake.lake.hashes import DIGEST
from imbrace_lake.lake.schema import CONTENT, SCHEMA, as_written_today


@dataclass(frozen=True, slots=True)
class Diff:
    """The difference between a walk and the stored rows.

    Attributes:
        new: Rows of messages that the lake does not have, with their digests.
        newer: Rows of messages that the lake has in another version or marked deleted, with digests.
        deleted: Ids of messages that the lake has, and that a full walk proved gone.
        outdated: How many messages the lake has in a newer version than was read.
    """

    new: pa.Table
    newer: pa.Table
    deleted: pa.Array
    outdated: int = 0

    @property
    def is_rewrite(self) -> bool:
        """Whether rows that the lake has must change."""
        return bool(self.newer.num_rows or len(self.deleted))

    def affects(self, rows: pa.Table) -> bool:
        """Whether some of these stored rows must change."""
        ids = rows.column("message_id")
        return any(
            pc.any(
                pc.is_in(ids, others.combine_chunks() if isinstance(others, pa.ChunkedArray) else others)
            ).as_py()
            for others in (self.newer.column("message_id"), self.deleted)
            if len(others)
        )

    def newer_of(self, ids: pa.Array) -> pa.Table:
        """The newer rows of some messages."""
        return self.newer.filter(pc.is_in(self.newer.column("message_id"), ids))


def diff_rows(lake: pa.Table, read: pa.Table, baseline: pa.Array | None = None) -> Diff:
    """Compare the rows of a walk with those of the lake.

    Args:
        lake: What the lake has of the conversation; each message once.
        read: What was read, each message once, with digests.
        baseline: Ids that the lake had before a walk began that proved `read` to be all there is: such
            a message that was not read is gone. Of one that another run has added since, the walk
            could say nothing.
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
    """The messages of the lake that are not marked deleted."""
    return lake.filter(pc.invert(lake.column("is_deleted"))).column("message_id").combine_chunks()


def _compare_versions(lake: pa.Table, again: pa.Table) -> tuple[pa.Array, pa.Array]:
    """Which rows of `again` are another version than the lake's, and which of them an older one."""
    index = pc.index_in(again.column("message_id"), lake.column("message_id").combine_chunks())
    old = lake.take(index)
    is_deleted = old.column("is_deleted").combine_chunks()
    differs = _differ(old, again)
    if pc.any(differs).as_py():
        # An earlier version of this project may have written the same message in another form.
        still_differs = _differ(as_written_today(old.filter(differs)), again.filter(differs))
        differs = pc.replace_with_mask(differs, differs, still_differs)
    differs = pc.or_(differs, is_deleted)
    # A run that read earlier and writes later must not bring an old version back. But a message that
    # comes back from the dead may do so in any version: the gateway has no other.
    is_older = pc.less(again.column("updated_at").combine_chunks(), old.column("updated_at").combine_chunks())
    is_older = pc.and_(pc.fill_null(is_older, False), pc.invert(is_deleted))
    return differs, pc.and_(differs, is_older)


def _differ(old: pa.Table, now: pa.Table) -> pa.Array:
    """Which rows, one by one, differ in a column of `CONTENT`."""
    differs = pa.repeat(False, old.num_rows)
    for name in CONTENT:
        was, is_now = old.column(name).combine_chunks(), now.column(name).combine_chunks()
        is_equal = pc.or_kleene(pc.equal(was, is_now), pc.and_(pc.is_null(was), pc.is_null(is_now)))
        differs = pc.or_(differs, pc.invert(pc.fill_null(is_equal, False)))
    return differs


def apply_diff(part: pa.Table, diff: Diff, now: datetime) -> tuple[pa.Table, pa.Table, pa.Table]:
    """Rewrite the rows of one part that changed.

    Args:
        part: The part's rows.
        diff: That of the conversation; rows of other parts are ignored.
        now: When the change was noticed.

    Returns:
        The part's rows as they are to be, in their order; the versions that newer ones replace; and
        those that are marked deleted. What is as it is to be stays, so that applying changes twice
        changes nothing.
    """
    newer = diff.newer_of(part.column("message_id").combine_chunks())
    newer = newer.filter(_compare_versions(part, newer)[0])
    instant = pa.scalar(now, pa.timestamp("ms", "UTC"))
    index = pc.index_in(part.column("message_id"), newer.column("message_id").combine_chunks())
    is_replaced = pc.is_valid(index)
    is_gone = pc.and_(pc.is_in(part.column("message_id"), diff.deleted), pc.invert(part.column("is_deleted")))
    replacement = newer.drop_columns([DIGEST]).take(index)
    kept = {"message_id", "conversation_id", "organization_id", "first_seen_at"}
    columns = [
        part.column(name)
        if name in kept
        else pc.if_else(is_replaced, replacement.column(name), part.column(name))
        for name in SCHEMA.names
    ]
    rows = pa.Table.from_arrays(columns, schema=SCHEMA)
    if newer.num_rows:
        rows = _set(rows, "last_changed_at", pc.if_else(is_replaced, instant, rows.column("last_changed_at")))
    if len(diff.deleted):
        rows = _set(rows, "is_deleted", pc.or_(rows.column("is_deleted"), is_gone))
        rows = _set(rows, "deleted_at", pc.if_else(is_gone, instant, rows.column("deleted_at")))
    return rows, part.filter(is_replaced), part.filter(is_gone)


def _set(rows: pa.Table, name: str, values: pa.ChunkedArray) -> pa.Table:
    return rows.set_column(SCHEMA.names.index(name), SCHEMA.field(name), values)
