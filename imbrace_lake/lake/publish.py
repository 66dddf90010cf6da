"""Bring what was read of a conversation into the lake: new messages, newer versions, deletions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial

import pyarrow as pa

from imbrace_lake.errors import ObjectChanged, ObjectExists, StoreUnavailable
from imbrace_lake.lake.lake import Lake, Part, PublishedPart, encoded
from imbrace_lake.lake.ledger import REVISIONS, Journal
from imbrace_lake.lake.reconcile import Changes, apply_changes, find_changes
from imbrace_lake.lake.schema import DIGEST, EMPTY, in_order, to_parquet

# Each lost race means that another writer has just written, so only a crowd loses this often.
TRIES = 20


@dataclass(frozen=True, slots=True)
class Held:
    """What the lake has of one conversation: its parts as they were read, and the rows of each."""

    parts: tuple[PublishedPart, ...] = ()
    tables: tuple[pa.Table, ...] = ()

    @classmethod
    async def read(cls, lake: Lake, parts: Sequence[Part]) -> Held:
        """Read the parts, one request each."""
        read = await lake.read_parts(parts)
        return cls(tuple(part for part, _ in read), tuple(rows for _, rows in read))

    @property
    def rows(self) -> pa.Table:
        """All rows, part by part."""
        return pa.concat_tables(self.tables) if self.tables else EMPTY


@dataclass(slots=True)
class Published:
    """What publishing did.

    Attributes:
        parts: The conversation's parts now.
        size_bytes: How much was written.
        is_alone: Nobody else wrote to the conversation meanwhile, nor had anything newer than was read.
        new: Rows added, with digests.
        newer: Rows that replaced others, with digests.
        replaced, deleted: Rows as they were before they were replaced or marked deleted.
    """

    parts: tuple[PublishedPart, ...] = ()
    size_bytes: int = 0
    is_alone: bool = True
    new: pa.Table | None = None
    newer: list[pa.Table] = field(default_factory=list)
    replaced: list[pa.Table] = field(default_factory=list)
    deleted: list[pa.Table] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Publication:
    """Where and by whom something is published.

    Attributes:
        lake, journal: The run's.
        organization_id, conversation_id: Which partition.
        now: When the changes were noticed.
    """

    lake: Lake
    journal: Journal
    organization_id: str
    conversation_id: str
    now: datetime

    async def publish(self, read: pa.Table, held: Held, judged: pa.Array | None) -> Published:
        """Write what the lake lacks of what was read; each object written is a whole step.

        Args:
            read: What was read, each message once, with digests.
            held: What the lake had when last looked at.
            judged: As in `find_changes`.

        Raises:
            StoreUnavailable: Other runs kept writing to the same conversation.
        """
        done = Published()
        for _ in range(TRIES):
            changes = find_changes(held.rows, read, judged)
            done.is_alone = done.is_alone and not changes.outdated
            parts = list(held.parts)
            try:
                for place, (part, rows) in enumerate(zip(held.parts, held.tables, strict=True)):
                    if changes.is_rewrite:
                        parts[place] = await self._rewrite(part, rows, changes, done)
                if changes.new.num_rows:
                    parts.append(await self._add(changes.new, parts, done))
            except (ObjectExists, ObjectChanged):
                # Another writer was first: look at what it has written, and do what is left.
                done.is_alone = False
                there = await self.lake.list_parts(self.organization_id, self.conversation_id)
                held = await Held.read(self.lake, there)
            else:
                return replace(done, parts=tuple(parts))
        raise StoreUnavailable(
            f"conversation {self.conversation_id}: other runs kept writing to it, so try again"
        )

    async def _rewrite(
        self, held: PublishedPart, rows: pa.Table, changes: Changes, done: Published
    ) -> PublishedPart:
        """Replace one part, if any of its rows changes, and keep the versions that it had."""
        after, replaced, deleted = apply_changes(rows, changes, self.now)
        if not replaced.num_rows and not deleted.num_rows:
            return held
        if replaced.num_rows:
            # Before the part is replaced: a crash in between notes a revision twice, never not at all.
            # By the part's version, so that what an earlier replacement noted stays.
            name = f"{encoded(self.conversation_id)}-{held.part.number}-{held.sha256[:8]}"
            await self.journal.note("revisions", name, self._revisions(replaced))
        encode = partial(to_parquet, in_order(after), self._metadata())
        written = await self.lake.replace_part(held.part, encode, after.num_rows)
        done.size_bytes += written.part.size_bytes
        done.replaced.append(replaced)
        done.deleted.append(deleted)
        ids = replaced.column("message_id").combine_chunks()
        done.newer.append(changes.newer_of(ids))
        return written

    async def _add(self, new: pa.Table, parts: Sequence[PublishedPart], done: Published) -> PublishedPart:
        """Add one part with all new rows."""
        encode = partial(to_parquet, new.drop_columns([DIGEST]), self._metadata())
        number = max((held.part.number for held in parts), default=-1) + 1
        written = await self.lake.add_part(
            self.organization_id, self.conversation_id, number, encode, new.num_rows
        )
        done.size_bytes += written.part.size_bytes
        done.new = new
        return written

    def _metadata(self) -> dict[str, str]:
        return {"run_id": self.journal.run_id, "conversation_id": self.conversation_id}

    def _revisions(self, replaced: pa.Table) -> pa.Table:
        count = replaced.num_rows
        columns = [
            *replaced.columns,
            pa.repeat(pa.scalar(self.now, REVISIONS.field("replaced_at").type), count),
            pa.repeat(self.journal.run_id, count),
        ]
        return pa.Table.from_arrays(columns, schema=REVISIONS)
