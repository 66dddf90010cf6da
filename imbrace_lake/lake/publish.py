"""Bring what was read of a conversation into the lake: new messages, newer versions, deletions."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import ParamSpec, TypeVar

import pyarrow as pa
import pyarrow.compute as pc

from imbrace_lake.errors import ObjectChanged, ObjectExists, StoreUnavailable
from imbrace_lake.lake.compare import Comparison, Found, compare
from imbrace_lake.lake.entries import REVISIONS
from imbrace_lake.lake.hashes import NO_HASH, content_hash, hash_sum
from imbrace_lake.lake.held import Held
from imbrace_lake.lake.lake import Lake, PublishedPart, encoded
from imbrace_lake.lake.ledger import Journal
from imbrace_lake.lake.reconcile import Changes, apply_changes
from imbrace_lake.lake.room import Room
from imbrace_lake.lake.rows import Collector, Rows
from imbrace_lake.lake.schema import as_written_today, with_digests

P = ParamSpec("P")
T = TypeVar("T")

# Each lost race means that another writer has just written, so only a crowd loses this often.
TRIES = 20


@dataclass(slots=True)
class Published:
    """What publishing did.

    Attributes:
        parts: The conversation's parts now.
        size_bytes: How much was written.
        is_alone: Nobody else wrote to the conversation meanwhile, nor had anything newer than was read.
        new: Rows added; None if there are none.
        edited, deleted: How many rows were replaced by newer versions, or marked deleted.
        came, went: Hashes of what replaced other rows, and of the rows replaced that were live.
    """

    parts: tuple[PublishedPart, ...] = ()
    size_bytes: int = 0
    is_alone: bool = True
    new: Rows | None = None
    edited: int = 0
    deleted: int = 0
    came: list[str] = field(default_factory=list)
    went: list[str] = field(default_factory=list)


@dataclass(slots=True)
class _Rewrite:
    """One part as it is to be.

    Attributes:
        after: Its rows.
        replaced: The versions that newer ones replace.
        edited, deleted: How many rows are replaced, or marked deleted.
        came, went: As in `Published`.
    """

    after: Collector
    replaced: Collector
    edited: int = 0
    deleted: int = 0
    came: str = NO_HASH
    went: str = NO_HASH

    def add(self, rows: pa.Table, changes: Changes, now: datetime) -> None:
        """Apply changes to some of the part's rows."""
        after, replaced, deleted = apply_changes(rows, changes, now)
        self.after.add(after)
        self.deleted += deleted.num_rows
        if replaced.num_rows:
            self.replaced.add(replaced)
            self.edited += replaced.num_rows
            newer = changes.newer_of(replaced.column("message_id").combine_chunks())
            live = replaced.filter(pc.invert(replaced.column("is_deleted")))
            self.came = hash_sum([self.came, content_hash(newer)])
            self.went = hash_sum([self.went, content_hash(with_digests(live))])

    def replaced_batches(self) -> Iterator[pa.Table]:
        """The versions that newer ones replace, some at a time."""
        if self.edited:
            yield from self.replaced.rows().batches()


@dataclass(frozen=True, slots=True)
class Publication:
    """Where and by whom something is published.

    Attributes:
        lake, journal: The run's.
        organization_id, conversation_id: Which partition.
        now: When the changes were noticed.
        room: For what does not fit into memory.
    """

    lake: Lake
    journal: Journal
    organization_id: str
    conversation_id: str
    now: datetime
    room: Room

    async def publish(self, read: Rows, held: Held, *, is_whole: bool) -> Published:
        """Write what the lake lacks of what was read; each object written is a whole step.

        Args:
            read: What was read, with digests.
            held: What the lake had when last looked at, before anything was read.
            is_whole: `read` is proven to be all that there is, so what is not in it is gone. Of what
                another run has added since `held` was looked at, the walk could say nothing.

        Raises:
            StoreUnavailable: Other runs kept writing to the same conversation.
        """
        done = Published()
        judged = held if is_whole else None
        for _ in range(TRIES):
            is_small = read.table is not None and held.is_in_memory
            comparison, found = await somewhere(is_small, self._compare, read, held, judged)
            done.is_alone = done.is_alone and not found.outdated
            parts = list(held.parts)
            try:
                for place in found.touched:
                    parts[place] = await self._rewrite(parts[place], comparison, place, done)
                if found.new is not None:
                    parts.append(await self._add(found.new, parts, done))
            except (ObjectExists, ObjectChanged):
                # Another writer was first: look at what it has written, and do what is left.
                done.is_alone = False
                there = await self.lake.list_parts(self.organization_id, self.conversation_id)
                held = await Held.read(self.lake, there, self.room)
            else:
                return replace(done, parts=tuple(parts))
        raise StoreUnavailable(
            f"conversation {self.conversation_id}: other runs kept writing to it, so try again"
        )

    def _compare(self, read: Rows, held: Held, judged: Held | None) -> tuple[Comparison, Found]:
        comparison = compare(read, held, judged, self.room)
        return comparison, comparison.find()

    async def _rewrite(
        self, held: PublishedPart, comparison: Comparison, place: int, done: Published
    ) -> PublishedPart:
        """Replace one part, if any of its rows changes, and keep the versions that it had."""
        rewrite = await somewhere(comparison.is_small, self._apply, comparison, place)
        if not rewrite.edited and not rewrite.deleted:
            return held
        # Before the part is replaced: a crash in between notes a revision twice, never not at all.
        # By the part's version, so that what an earlier replacement noted stays.
        name = f"{encoded(self.conversation_id)}-{held.part.number}-{held.sha256[:8]}"
        for number, replaced in enumerate(rewrite.replaced_batches()):
            await self.journal.note("revisions", f"{name}-{number}", self._revisions(replaced))
        body = rewrite.after.rows().body(self.room, self._metadata())
        written = await self.lake.replace_part(held.part, body, held.rows)
        done.size_bytes += written.part.size_bytes
        done.edited += rewrite.edited
        done.deleted += rewrite.deleted
        done.came.append(rewrite.came)
        done.went.append(rewrite.went)
        return written

    def _apply(self, comparison: Comparison, place: int) -> _Rewrite:
        """Work out one part's rows as they are to be."""
        rewrite = _Rewrite(Collector(self.room), Collector(self.room))
        for rows, changes in comparison.changes_of(place):
            rewrite.add(rows, changes, self.now)
        return rewrite

    async def _add(self, new: Rows, parts: Sequence[PublishedPart], done: Published) -> PublishedPart:
        """Add one part with all new rows."""
        number = max((held.part.number for held in parts), default=-1) + 1
        body = new.body(self.room, self._metadata())
        written = await self.lake.add_part(
            self.organization_id, self.conversation_id, number, body, new.num_rows
        )
        done.size_bytes += written.part.size_bytes
        done.new = new
        return written

    def _metadata(self) -> dict[str, str]:
        return {"run_id": self.journal.run_id, "conversation_id": self.conversation_id}

    def _revisions(self, replaced: pa.Table) -> pa.Table:
        count = replaced.num_rows
        columns = [
            *as_written_today(replaced).columns,
            pa.repeat(pa.scalar(self.now, REVISIONS.field("replaced_at").type), count),
            pa.repeat(self.journal.run_id, count),
        ]
        return pa.Table.from_arrays(columns, schema=REVISIONS)


async def somewhere(is_small: bool, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Do work at once, or in a thread if it takes a while."""
    return work(*args, **kwargs) if is_small else await asyncio.to_thread(work, *args, **kwargs)
