"""Hold what was read against what the lake has: new messages, newer versions, deletions, returns.

Pure functions over Arrow tables; what comes of it is written elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import pyarrow as pa
import pyarrow.compute as pc

from imbrace_lake.schema import DIGEST, SCHEMA

# What makes two versions of a message different; the other columns are the lake's own remarks.
CONTENT = ["business_unit_id", "sender_id", "type", "content", "created_at", "updated_at", "extra"]


@dataclass(frozen=True, slots=True)
class Changes:
    """What a conversation's walk found that the lake does not have like that.

    Attributes:
        new: Rows of messages that the lake does not have, with their digests.
        newer: Rows of messages that the lake has in another version or marked deleted, with digests.
        deleted: Ids of messages that the lake has, and that a full walk proved gone.
    """

    new: pa.Table
    newer: pa.Table
    deleted: pa.Array

    @property
    def is_rewrite(self) -> bool:
        """Whether rows that the lake has must change."""
        return bool(self.newer.num_rows or len(self.deleted))


def find_changes(lake: pa.Table, read: pa.Table, *, is_whole: bool) -> Changes:
    """Compare the rows of a walk with those of the lake.

    Args:
        lake: What the lake has of the conversation; each message once.
        read: What was read, each message once, with digests.
        is_whole: The walk proved that `read` is all there is, so what it lacks is gone.
    """
    held = lake.column("message_id").combine_chunks()
    is_held = pc.is_in(read.column("message_id"), held)
    again = read.filter(is_held)
    deleted = pa.array([], pa.string())
    if is_whole:
        live = lake.filter(pc.invert(lake.column("is_deleted"))).column("message_id").combine_chunks()
        deleted = live.filter(pc.invert(pc.is_in(live, read.column("message_id").combine_chunks())))
    return Changes(read.filter(pc.invert(is_held)), again.filter(_differs(lake, again)), deleted)


def _differs(lake: pa.Table, again: pa.Table) -> pa.Array:
    """Which rows of `again` are another version than the lake's, and not an older one."""
    place = pc.index_in(again.column("message_id"), lake.column("message_id").combine_chunks())
    old = lake.take(place)
    differs = old.column("is_deleted").combine_chunks()
    for name in CONTENT:
        was, now = old.column(name).combine_chunks(), again.column(name).combine_chunks()
        is_equal = pc.or_kleene(pc.equal(was, now), pc.and_(pc.is_null(was), pc.is_null(now)))
        differs = pc.or_(differs, pc.invert(pc.fill_null(is_equal, False)))
    # A run that read earlier and writes later must not bring an old version back.
    is_older = pc.less(again.column("updated_at").combine_chunks(), old.column("updated_at").combine_chunks())
    return pc.and_(differs, pc.invert(pc.fill_null(is_older, False)))


def apply_changes(part: pa.Table, changes: Changes, now: datetime) -> tuple[pa.Table, pa.Table]:
    """Rewrite the rows of one part that changed.

    Args:
        part: The part's rows.
        changes: Those of the conversation; rows of other parts are left aside.
        now: When the change was noticed.

    Returns:
        The part's rows as they are to be, in their order, and the versions that they replace. A
        row that is there already stays as it is, so applying changes twice changes nothing.
    """
    newer = changes.newer.filter(
        pc.is_in(changes.newer.column("message_id"), part.column("message_id").combine_chunks())
    )
    newer = newer.filter(_differs(part, newer))
    instant = pa.scalar(now, pa.timestamp("ms", "UTC"))
    place = pc.index_in(part.column("message_id"), newer.column("message_id").combine_chunks())
    is_replaced = pc.is_valid(place)
    is_gone = pc.and_(
        pc.is_in(part.column("message_id"), changes.deleted), pc.invert(part.column("is_deleted"))
    )
    replacement = newer.drop_columns([DIGEST]).take(place)
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
    if len(changes.deleted):
        rows = _set(rows, "is_deleted", pc.or_(rows.column("is_deleted"), is_gone))
        rows = _set(rows, "deleted_at", pc.if_else(is_gone, instant, rows.column("deleted_at")))
    return rows, part.filter(pc.or_(is_replaced, is_gone))


def _set(rows: pa.Table, name: str, values: pa.ChunkedArray) -> pa.Table:
    return rows.set_column(SCHEMA.names.index(name), SCHEMA.field(name), values)
