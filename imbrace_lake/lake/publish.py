"""Publish the result of a walk: new messages, newer versions, deletions."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import ParamSpec, TypeVar

import pyarrow as pa
import pyarrow.compute as pc

from imbrace_lake.errors import ObjectChanged, ObjectExists, StoreUnavailable
from imbrace_lake.lake.claim import PartClaim
from imbrace_lake.lake.diff import Diff, apply_diff, diff_partition
from imbrace_lake.lake.hashes import NO_HASH, content_hash, hash_sum
from imbrace_lake.lake.lake import Lake, Part, encoded
from imbrace_lake.lake.ledger import Journal
from imbrace_lake.lake.ledger_schema import REVISIONS
from imbrace_lake.lake.memory import Reservation
from imbrace_lake.lake.rows import Rows, SortBuffer
from imbrace_lake.lake.schema import as_written_today, with_digests
from imbrace_lake.lake.snapshot import PartitionSnapshot
from imbrace_lake.store.contract import Body

P = ParamSpec("P")
T = TypeVar("T")

# Every lost race is another writer's progress; 20 in a row mean contention.
TRIES = 20
# Longer parts are rewritten in a thread: the digest of a row takes 10 µs.
FEW_ROWS = 1_000
# More rows are encoded in a thread: this many take 10 ms, and those of most conversations less than one.
FEW_BYTES = 2**20


@dataclass(slots=True)
class PublishResult:
    """The result of a publication.

    Attributes:
        parts: The conversation's parts now.
        size_bytes: The bytes written.
        had_no_race: No other run wrote to the conversation meanwhile or had stored newer versions.
        new: The rows added; None if there are none.
        edited, deleted: The number of rows replaced by newer versions, and marked deleted.
        added_hashes, removed_hashes: Content hashes of the newer versions, and of the replaced rows that were
            not marked deleted.
    """

    parts: tuple[Part, ...] = ()
    size_bytes: int = 0
    had_no_race: bool = True
    new: Rows | None = None
    edited: int = 0
    deleted: int = 0
    added_hashes: list[str] = field(default_factory=list)
    removed_hashes: list[str] = field(default_factory=list)


async def publish(
    lake: Lake,
    journal: Journal,
    claim: PartClaim,
    read: Rows,
    snapshot: PartitionSnapshot,
    *,
    is_full_walk: bool,
    now: datetime,
    reservation: Reservation,
) -> PublishResult:
    """Write the difference between a walk and the lake; each object that is written is a complete step.

    Args:
        lake, journal: Those of the run.
        claim: Names the partition, and states how the walk proved the conversation.
        read: The rows of the walk, with digests.
        snapshot: The partition before the walk.
        is_full_walk: `read` is proven complete, so messages of `snapshot` that are not in it are deleted. The
            walk proves nothing about messages that another run has added since.
        now: The time of the changes in the lake.
        reservation: The memory budget, with a folder for rows that exceed it.

    Raises:
        StoreUnavailable: Other runs kept writing to the same conversation.
    """
    result = PublishResult()
    baseline = snapshot if is_full_walk else None
    for _ in range(TRIES):
        is_small = read.table is not None and all(
            one.is_in_memory for one in (snapshot, baseline or snapshot)
        )
        diff = await in_thread_unless(is_small, diff_partition, read, snapshot, baseline, reservation)
        result.had_no_race = result.had_no_race and not diff.outdated
        parts = list(snapshot.parts)
        try:
            for index in diff.changed_parts:
                is_short = is_small and (parts[index].rows or 0) <= FEW_ROWS
                rewrite = await in_thread_unless(
                    is_short, _rewrite_part, diff.part_diffs(index), now, reservation
                )
                # Before the part is replaced: a crash in between can repeat a revision, but not lose one.
                await _note_revisions(journal, parts[index], claim.conversation_id, rewrite, now)
                metadata = replace(claim, content_hash=rewrite.content_hash).metadata()
                body = await _encode(rewrite.after.rows(), reservation, metadata)
                parts[index] = await lake.replace_part(parts[index], body)
                result.size_bytes += parts[index].size_bytes
                result.edited += rewrite.edited
                result.deleted += rewrite.deleted
                result.added_hashes.append(rewrite.added_hash)
                result.removed_hashes.append(rewrite.removed_hash)
            if diff.new is not None:
                metadata = replace(claim, content_hash=diff.new.content_hash).metadata()
                body = await _encode(diff.new, reservation, metadata)
                number = max((part.number for part in parts), default=-1) + 1
                added = await lake.add_part(
                    claim.organization_id, claim.conversation_id, number, body, diff.new.num_rows
                )
                parts.append(added)
                result.size_bytes += added.size_bytes
                result.new = diff.new
        except (ObjectExists, ObjectChanged):
            # Another writer was first: read its changes, and write the remaining difference.
            result.had_no_race = False
            parts_now = await lake.list_parts(claim.organization_id, claim.conversation_id)
            snapshot = await PartitionSnapshot.read(lake, parts_now, reservation)
        else:
            return replace(result, parts=tuple(parts))
    raise StoreUnavailable(
        f"conversation {claim.conversation_id}: other runs kept writing to it, so try again"
    )


@dataclass(slots=True)
class _Rewrite:
    """The rows of one part after a diff.

    Attributes:
        after: All rows.
        replaced: The replaced versions.
        edited, deleted: The number of rows that are replaced, and marked deleted.
        added_hash, removed_hash: As in `PublishResult`.
        content_hash: The content hash of all rows.
    """

    after: SortBuffer
    replaced: SortBuffer
    edited: int = 0
    deleted: int = 0
    added_hash: str = NO_HASH
    removed_hash: str = NO_HASH
    content_hash: str = NO_HASH


def _rewrite_part(
    part_diffs: Iterable[tuple[pa.Table, Diff]], now: datetime, reservation: Reservation
) -> _Rewrite:
    rewrite = _Rewrite(SortBuffer(reservation), SortBuffer(reservation))
    for rows, diff in part_diffs:
        after, replaced, deleted = apply_diff(rows, diff, now)
        rewrite.after.add(after)
        rewrite.content_hash = hash_sum([rewrite.content_hash, content_hash(with_digests(after))])
        rewrite.deleted += deleted.num_rows
        if replaced.num_rows:
            rewrite.replaced.add(replaced)
            rewrite.edited += replaced.num_rows
            newer = diff.newer_of(replaced.column("message_id").combine_chunks())
            current = replaced.filter(pc.invert(replaced.column("is_deleted")))
            rewrite.added_hash = hash_sum([rewrite.added_hash, content_hash(newer)])
            rewrite.removed_hash = hash_sum([rewrite.removed_hash, content_hash(with_digests(current))])
    return rewrite


async def _note_revisions(
    journal: Journal, part: Part, conversation_id: str, rewrite: _Rewrite, now: datetime
) -> None:
    """Write the replaced versions to the journal, under a name that no other replacement uses."""
    if not rewrite.edited:
        return
    name = f"{encoded(conversation_id)}-{part.number}-{(part.sha256 or '')[:8]}"
    for number, replaced in enumerate(rewrite.replaced.rows().batches()):
        columns = [
            *as_written_today(replaced).columns,
            pa.repeat(pa.scalar(now, REVISIONS.field("replaced_at").type), replaced.num_rows),
            pa.repeat(journal.run_id, replaced.num_rows),
        ]
        rows = pa.Table.from_arrays(columns, schema=REVISIONS)
        await journal.note("revisions", f"{name}-{number}", rows)


async def _encode(rows: Rows, reservation: Reservation, metadata: Mapping[str, str]) -> Body:
    """Encode the rows of a part; see `Rows.encode`."""
    is_small = rows.table is not None and rows.size_bytes <= FEW_BYTES
    return await in_thread_unless(is_small, rows.encode, reservation, metadata)


async def in_thread_unless(is_small: bool, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run inline if the work is small, else in a thread."""
    return work(*args, **kwargs) if is_small else await asyncio.to_thread(work, *args, **kwargs)
