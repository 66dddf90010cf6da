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
from imbrace_lake.lake.claim import PartClaim
from imbrace_lake.lake.diff import Diff, apply_diff
from imbrace_lake.lake.hashes import NO_HASH, content_hash, hash_sum
from imbrace_lake.lake.lake import Lake, Part, encoded
from imbrace_lake.lake.ledger import Journal
from imbrace_lake.lake.ledger_schema import REVISIONS
from imbrace_lake.lake.memory import Reservation
from imbrace_lake.lake.partition_diff import DiffSummary, PartitionDiff, diff_partition
from imbrace_lake.lake.rows import Rows, SortBuffer
from imbrace_lake.lake.schema import as_written_today, with_digests
from imbrace_lake.lake.snapshot import PartitionSnapshot

P = ParamSpec("P")
T = TypeVar("T")

# Every lost race is another writer's progress; 20 in a row mean contention.
TRIES = 20


@dataclass(slots=True)
class PublishResult:
    """The result of a publication.

    Attributes:
        parts: The conversation's parts now.
        size_bytes: How much was written.
        had_no_race: Nobody else wrote to the conversation meanwhile, nor had anything newer than was read.
        new: Rows added; None if there are none.
        edited, deleted: How many rows were replaced by newer versions, or marked deleted.
        added_hashes, removed_hashes: Hashes of what replaced other rows, and of the rows replaced that were
            live.
    """

    parts: tuple[Part, ...] = ()
    size_bytes: int = 0
    had_no_race: bool = True
    new: Rows | None = None
    edited: int = 0
    deleted: int = 0
    added_hashes: list[str] = field(default_factory=list)
    removed_hashes: list[str] = field(default_factory=list)


@dataclass(slots=True)
class _Rewrite:
    """One part as it is to be.

    Attributes:
        after: Its rows.
        replaced: The versions that newer ones replace.
        edited, deleted: How many rows are replaced, or marked deleted.
        added_hash, removed_hash: As in `PublishResult`.
        content_hash: Of all its rows.
    """

    after: SortBuffer
    replaced: SortBuffer
    edited: int = 0
    deleted: int = 0
    added_hash: str = NO_HASH
    removed_hash: str = NO_HASH
    content_hash: str = NO_HASH

    def add(self, rows: pa.Table, diff: Diff, now: datetime) -> None:
        """Apply changes to some of the part's rows."""
        after, replaced, deleted = apply_diff(rows, diff, now)
        self.after.add(after)
        self.content_hash = hash_sum([self.content_hash, content_hash(with_digests(after))])
        self.deleted += deleted.num_rows
        if replaced.num_rows:
            self.replaced.add(replaced)
            self.edited += replaced.num_rows
            newer = diff.newer_of(replaced.column("message_id").combine_chunks())
            current = replaced.filter(pc.invert(replaced.column("is_deleted")))
            self.added_hash = hash_sum([self.added_hash, content_hash(newer)])
            self.removed_hash = hash_sum([self.removed_hash, content_hash(with_digests(current))])

    def replaced_batches(self) -> Iterator[pa.Table]:
        """The versions that newer ones replace, some at a time."""
        if self.edited:
            yield from self.replaced.rows().batches()


@dataclass(frozen=True, slots=True)
class Publisher:
    """Publishes to one partition, on behalf of one run.

    Attributes:
        lake, journal: The run's.
        claim: Names the partition, and states how the walk proved the conversation.
        now: When the changes were noticed.
        reservation: For what does not fit into memory.
    """

    lake: Lake
    journal: Journal
    claim: PartClaim
    now: datetime
    reservation: Reservation

    async def publish(self, read: Rows, snapshot: PartitionSnapshot, *, is_full_walk: bool) -> PublishResult:
        """Write what the lake lacks of what was read; each object written is a whole step.

        Args:
            read: What was read, with digests.
            snapshot: What the lake had when last looked at, before anything was read.
            is_full_walk: `read` is proven to be all that there is, so what is not in it is gone. Of what
                another run has added since `current` was looked at, the walk could say nothing.

        Raises:
            StoreUnavailable: Other runs kept writing to the same conversation.
        """
        result = PublishResult()
        baseline = snapshot if is_full_walk else None
        for _ in range(TRIES):
            is_small = read.table is not None and snapshot.is_in_memory
            partition_diff, summary = await in_thread_unless(is_small, self._diff, read, snapshot, baseline)
            result.had_no_race = result.had_no_race and not summary.outdated
            parts = list(snapshot.parts)
            try:
                for index in summary.changed_parts:
                    parts[index] = await self._rewrite(parts[index], partition_diff, index, result)
                if summary.new is not None:
                    parts.append(await self._add(summary.new, parts, result))
            except (ObjectExists, ObjectChanged):
                # Another writer was first: look at what it has written, and do what is left.
                result.had_no_race = False
                parts_now = await self.lake.list_parts(self.claim.organization_id, self.claim.conversation_id)
                snapshot = await PartitionSnapshot.read(self.lake, parts_now, self.reservation)
            else:
                return replace(result, parts=tuple(parts))
        raise StoreUnavailable(
            f"conversation {self.claim.conversation_id}: other runs kept writing to it, so try again"
        )

    def _diff(
        self, read: Rows, snapshot: PartitionSnapshot, baseline: PartitionSnapshot | None
    ) -> tuple[PartitionDiff, DiffSummary]:
        partition_diff = diff_partition(read, snapshot, baseline, self.reservation)
        return partition_diff, partition_diff.summarize()

    async def _rewrite(
        self, current: Part, partition_diff: PartitionDiff, index: int, result: PublishResult
    ) -> Part:
        """Replace one part, if any of its rows changes, and keep the versions that it had."""
        rewrite = await in_thread_unless(partition_diff.is_small, self._apply, partition_diff, index)
        if not rewrite.edited and not rewrite.deleted:
            return current
        # Before the part is replaced: a crash in between notes a revision twice, never not at all.
        # By the part's version, so that what an earlier replacement noted stays.
        name = f"{encoded(self.claim.conversation_id)}-{current.number}-{(current.sha256 or '')[:8]}"
        for number, replaced in enumerate(rewrite.replaced_batches()):
            await self.journal.note("revisions", f"{name}-{number}", self._revisions(replaced))
        body = rewrite.after.rows().body(self.reservation, self._metadata(rewrite.content_hash))
        written = await self.lake.replace_part(current, body)
        result.size_bytes += written.size_bytes
        result.edited += rewrite.edited
        result.deleted += rewrite.deleted
        result.added_hashes.append(rewrite.added_hash)
        result.removed_hashes.append(rewrite.removed_hash)
        return written

    def _apply(self, partition_diff: PartitionDiff, index: int) -> _Rewrite:
        """Work out one part's rows as they are to be."""
        rewrite = _Rewrite(SortBuffer(self.reservation), SortBuffer(self.reservation))
        for rows, diff in partition_diff.part_diffs(index):
            rewrite.add(rows, diff, self.now)
        return rewrite

    async def _add(self, new: Rows, parts: Sequence[Part], result: PublishResult) -> Part:
        """Add one part with all new rows."""
        number = max((part.number for part in parts), default=-1) + 1
        body = new.body(self.reservation, self._metadata(new.content_hash))
        written = await self.lake.add_part(
            self.claim.organization_id, self.claim.conversation_id, number, body, new.num_rows
        )
        result.size_bytes += written.size_bytes
        result.new = new
        return written

    def _metadata(self, content_hash: str) -> dict[str, str]:
        return replace(self.claim, content_hash=content_hash).metadata()

    def _revisions(self, replaced: pa.Table) -> pa.Table:
        count = replaced.num_rows
        columns = [
            *as_written_today(replaced).columns,
            pa.repeat(pa.scalar(self.now, REVISIONS.field("replaced_at").type), count),
            pa.repeat(self.journal.run_id, count),
        ]
        return pa.Table.from_arrays(columns, schema=REVISIONS)


async def in_thread_unless(is_small: bool, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run inline if the work is small, else in a thread."""
    return work(*args, **kwargs) if is_small else await asyncio.to_thread(work, *args, **kwargs)
