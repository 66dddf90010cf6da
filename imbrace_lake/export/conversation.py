"""Export one conversation: read what is new of it, prove it, publish it, say how it stands."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from datetime import datetime

import pyarrow.compute as pc

from imbrace_lake.errors import ConversationNotFound
from imbrace_lake.export.run_context import PriorState, RunContext
from imbrace_lake.export.window import export_window, incomplete
from imbrace_lake.gateway.http_client import LARGE_BYTES
from imbrace_lake.gateway.id_set import IdSet
from imbrace_lake.gateway.models import Page
from imbrace_lake.gateway.walk import REPEATS, Proof, walk
from imbrace_lake.lake.hashes import content_hash, hash_sum
from imbrace_lake.lake.lake import Part
from imbrace_lake.lake.ledger_schema import PROVEN, ConversationEntry, ConversationStatus, part_entries
from imbrace_lake.lake.memory import Reservation
from imbrace_lake.lake.publish import Publisher, PublishResult, in_thread_unless
from imbrace_lake.lake.rows import Rows, SortBuffer
from imbrace_lake.lake.schema import Origin, rows_of_page
from imbrace_lake.lake.snapshot import PartitionSnapshot
from imbrace_lake.printable import printable

logger = logging.getLogger(__name__)

# The method of a proof that leans on what the lake has (walk.py).
REACHED_KNOWN = "joined"
MANY_PAGES = 4


async def export_conversation(run: RunContext, conversation_id: str, prior: PriorState) -> ConversationEntry:
    """Read a conversation, prove that it was read whole, and bring the lake up to it.

    An unchanged conversation costs one request and no read of the lake's messages. A longer one
    is read from its newest message down to what the lake has, if the counts agree; all others are
    walked from top to bottom. A run for a window of time reads that and no more.

    Args:
        run: What all conversations of the run share.
        conversation_id: Which.
        prior: What there was of it when the run began.

    Returns:
        Its entry, ``complete``, ``unchanged`` or ``gone``.

    Raises:
        WalkIncomplete: It could not be proven whole; nothing was written.
        RepeatedMessages: Neither could it, because the gateway lists messages more than once.
        ImbraceLakeError: As its class says; whatever was written is whole.
    """
    with run.new_reservation() as reservation:
        export = _Export(run, conversation_id, prior, reservation)
        try:
            if run.window.is_open:
                return await export.run()
            return await export_window(run, conversation_id, run.window, prior.parts, reservation)
        except ConversationNotFound as exc:
            return export.gone(str(exc))


class _Export:
    """One conversation on its way into the lake."""

    def __init__(
        self,
        run: RunContext,
        conversation_id: str,
        prior: PriorState,
        reservation: Reservation,
    ) -> None:
        self._run = run
        self._reservation = reservation
        self._id = conversation_id
        self._state = prior.state
        self._parts = prior.parts
        self._started_at = run.clock()
        self._requests = 0

    async def run(self) -> ConversationEntry:
        if self._state is not None and not self._run.policy.is_due(self._state, self._id, self._started_at):
            return await self._read_increment(self._state)
        return await self._walk_all(await self._read_snapshot(self._parts))

    async def _read_increment(self, state: ConversationEntry) -> ConversationEntry:
        """Read from the head down to what the lake has, or no more than the head."""
        etag = state.head_etag if self._head_proves_unchanged(state) else None
        self._requests += 1
        head = await self._run.gateway.get_head(self._id, limit=self._run.page_size, etag=etag)
        if head is None:
            return self._unchanged(state)
        collector = self._new_collector(head)
        if collector.matches(state, self._parts) and collector.covers_look_back(head):
            return self._unchanged(replace(state, head_etag=head.etag))
        if head.size_bytes > LARGE_BYTES:
            # Many conversations wait at this place, so a large head is not held: it is asked for again.
            collector, head = self._new_collector(None), replace(head, items=[])
        snapshot = await self._read_snapshot(self._parts)
        collector.stop_at_current(
            await in_thread_unless(snapshot.is_in_memory, snapshot.current_ids), state.repeats
        )
        # Pages read side by side reach beyond where the walk ends, so there must be many new ones.
        is_long = collector.new_pages(head) > MANY_PAGES * self._run.pages_ahead
        try:
            proof = await self._walk(collector, self._run.pages_ahead if is_long else 1)
        except _CountsDiffer:
            # Something was deleted, or is missing: only a walk that begins now can tell what.
            return await self._walk_all(snapshot)
        return await self._publish(collector, proof, snapshot)

    def _head_proves_unchanged(self, state: ConversationEntry) -> bool:
        """Whether an unchanged head proves the conversation unchanged."""
        policy = self._run.policy
        head = state.head_messages or 0
        is_asleep = (
            state.last_message_at is not None and state.last_message_at < self._started_at - policy.look_back
        )
        return (
            state.status in PROVEN
            and state.is_counted
            and (head >= policy.look_back_messages or head == state.server_count or is_asleep)
            and _parts_match(self._parts, state)
        )

    async def _walk_all(self, snapshot: PartitionSnapshot) -> ConversationEntry:
        collector = self._new_collector(None)
        proof = await self._walk(collector, self._run.pages_ahead)
        return await self._publish(collector, proof, snapshot)

    def _new_collector(self, head: Page | None) -> PageCollector:
        origin = Origin(self._run.organization_id, self._id, self._run.run_id, self._started_at)
        policy = self._run.policy
        look_back_from = self._started_at - policy.look_back
        return PageCollector(
            origin, head, look_back_from, policy.look_back_messages, SortBuffer(self._reservation)
        )

    async def _read_snapshot(self, parts: Sequence[Part]) -> PartitionSnapshot:
        return await PartitionSnapshot.read(self._run.lake, parts, self._reservation)

    async def _walk(self, collector: PageCollector, read_ahead: int) -> Proof:
        async def fetch(skip: int, limit: int) -> Page:
            return collector.take_head(skip) or await self._get_page(skip, limit)

        def take(page: Page) -> None:
            self._run.observe_shapes(self._id, page)
            collector.take(page)
            # The walk goes on with the ids; the messages of a few pages would take up to 14 MB each.
            page.items.clear()

        proof = await walk(
            fetch,
            take,
            limit=self._run.page_size,
            read_ahead=read_ahead,
            stop_at=collector.reached_current,
            bounds=self._run.bounds,
            # What was accepted once is no error of a later run that is not asked to accept it.
            accept_repeats=self._run.accept_repeats or bool(self._state and self._state.repeats),
        )
        if not proof.is_complete:
            raise incomplete(f"conversation {printable(self._id)} is not proven whole", proof)
        return proof

    async def _get_page(self, skip: int, limit: int) -> Page:
        self._requests += 1
        return await self._run.gateway.get_page(self._id, skip=skip, limit=limit)

    async def _publish(
        self, collector: PageCollector, proof: Proof, snapshot: PartitionSnapshot
    ) -> ConversationEntry:
        is_small = not collector.buffer.is_spilled and snapshot.is_in_memory
        async with nullcontext() if is_small else self._run.large_turn:
            return await self._publish_in_turn(collector, proof, snapshot)

    async def _publish_in_turn(
        self, collector: PageCollector, proof: Proof, snapshot: PartitionSnapshot
    ) -> ConversationEntry:
        buffer = collector.buffer
        rows = await in_thread_unless(not buffer.is_spilled, buffer.rows, distinct=proof.distinct)
        is_full_walk = proof.method != REACHED_KNOWN
        publisher = Publisher(
            self._run.lake,
            self._run.journal,
            self._run.organization_id,
            self._id,
            self._run.clock(),
            self._reservation,
        )
        # The parts were listed when the run began, and no message is ever added to a part: what is
        # in them was in the lake before the walk began.
        published = await publisher.publish(rows, snapshot, is_full_walk=is_full_walk)
        entry = self._proven_entry(collector, proof, rows, published)
        if not (is_full_walk and published.had_no_race):
            count, digest = await self._current_counts(proof, snapshot, published)
            entry = replace(entry, distinct_messages=count, content_hash=digest)
        self._run.progress.note(entry, published)
        # A line a conversation would be 100,000 lines in the orchestrator's database.
        logger.debug(
            "exported conversation=%s messages=%d new=%d edited=%d deleted=%d requests=%d method=%s",
            self._id, proof.distinct, entry.new_messages, entry.edited_messages, entry.deleted_messages,
            self._requests, proof.method,
        )  # fmt: skip
        return entry

    async def _current_counts(
        self, proof: Proof, snapshot: PartitionSnapshot, published: PublishResult
    ) -> tuple[int | None, str]:
        """The number of messages in the lake, and their hash, where it has more, or newer ones, than were
        read.
        """
        state = self._state
        is_unchanged = state is not None and part_entries(snapshot.parts) == state.parts
        if state is not None and state.content_hash and is_unchanged and published.had_no_race:
            added = [published.new.content_hash] if published.new is not None else []
            added_hashes = [state.content_hash, *added, *published.added_hashes]
            return (proof.server_count or 0) - state.repeats, hash_sum(added_hashes, published.removed_hashes)
        now = await self._read_snapshot([snapshot.part for snapshot in published.parts])
        return await in_thread_unless(now.is_in_memory, now.current_hash)

    # -- entries ---------------------------------------------------------------------------------

    def _empty_entry(self) -> ConversationEntry:
        return ConversationEntry(
            run_id=self._run.run_id,
            organization_id=self._run.organization_id,
            conversation_id=self._id,
            status="complete",
            started_at=self._started_at,
            finished_at=self._run.clock(),
            requests=self._requests,
        )

    def _entry_from_state(
        self,
        state: ConversationEntry,
        status: ConversationStatus,
        *,
        proven_until: datetime | None,
        reason: str | None = None,
        is_dead_letter: bool = False,
    ) -> ConversationEntry:
        """The last state, as an entry of this run."""
        return replace(
            state,
            run_id=self._run.run_id,
            status=status,
            reason=reason,
            is_dead_letter=is_dead_letter,
            new_messages=0,
            edited_messages=0,
            deleted_messages=0,
            proven_until=proven_until,
            requests=self._requests,
            started_at=self._started_at,
            finished_at=self._run.clock(),
        )

    def _unchanged(self, state: ConversationEntry) -> ConversationEntry:
        entry = self._entry_from_state(state, "unchanged", proven_until=self._started_at)
        self._run.progress.note(entry)
        return entry

    def gone(self, reason: str) -> ConversationEntry:
        """The gateway does not have it; said once, for what is known to be gone fails no later run."""
        is_first_report = self._state is None and not self._parts
        state = self._state or self._empty_entry()
        entry = self._entry_from_state(
            state, "gone", proven_until=state.proven_until, reason=reason, is_dead_letter=is_first_report
        )
        self._run.progress.note(entry)
        return entry

    def _proven_entry(
        self, collector: PageCollector, proof: Proof, rows: Rows, published: PublishResult
    ) -> ConversationEntry:
        """The entry of a conversation that was walked."""
        reached_known = proof.method == REACHED_KNOWN and self._state is not None
        state = self._state if reached_known and self._state is not None else self._empty_entry()
        new = published.new.num_rows if published.new is not None else 0
        return replace(
            self._empty_entry(),
            status="complete",
            reason=proof.reason or None,
            server_count=proof.server_count,
            # Those included that were deleted while they were read: the next run sees the difference.
            distinct_messages=rows.num_rows,
            new_messages=new,
            edited_messages=published.edited,
            deleted_messages=published.deleted,
            first_message_at=_earlier(state.first_message_at, rows.first_at),
            last_message_at=rows.last_at,
            proven_from=_earlier(state.proven_from, rows.first_at),
            proven_until=self._started_at,
            proof_method=REPEATS if reached_known and state.repeats else proof.method,
            is_still=proof.did_not_move,
            content_hash=rows.content_hash,
            newest_message_id=collector.newest_id,
            head_messages=collector.head_messages,
            head_hash=collector.head_hash,
            head_etag=collector.head_etag,
            full_walk_at=state.full_walk_at if reached_known else self._started_at,
            parts=part_entries(published.parts),
        )


class _CountsDiffer(Exception):
    """The gateway's count differs from stored plus new messages."""


class PageCollector:
    """Collects the pages of one walk as rows, so that the pages themselves need not be kept."""

    def __init__(
        self,
        origin: Origin,
        head: Page | None,
        look_back_from: datetime,
        look_back_messages: int,
        buffer: SortBuffer,
    ) -> None:
        self.buffer = buffer
        self._origin = origin
        self._head = head  # read already, to see whether a walk is needed
        self._head_rows = rows_of_page(head, origin) if head is not None else None
        self._look_back_from = look_back_from
        self._look_back_messages = look_back_messages
        # Of the last page; its rows, which may have many megabytes, are not kept.
        self._last_times = self._head_rows.column("created_at") if self._head_rows is not None else None
        self._total_count: int | None = None  # the gateway's count, with the head
        self._current: IdSet | None = None
        self._repeats = 0
        self._new = IdSet()
        self.newest_id: str | None = None
        self.head_hash = ""
        self.head_etag = ""
        self.head_messages = 0

    def matches(self, state: ConversationEntry, parts: Sequence[Part]) -> bool:
        """Whether head and count are those of the last proof, and the lake has what it had then."""
        count = state.head_messages or 0
        return (
            state.status in PROVEN
            and self._head is not None
            and self._head_rows is not None
            and self._head.count_matches
            and state.is_counted
            and self._head.total_count == state.server_count
            and self._head_rows.num_rows >= count
            and content_hash(self._head_rows.slice(self._head_rows.num_rows - count)) == state.head_hash
            and _parts_match(parts, state)
        )

    def covers_look_back(self, page: Page) -> bool:
        """Whether the look-back ends within this page."""
        if (
            page.next_skip >= self._look_back_messages
            or page.total_count is None
            or page.next_skip >= page.total_count
        ):
            return True
        oldest = pc.min(self._last_times).as_py() if self._last_times is not None else None
        return oldest is not None and oldest < self._look_back_from

    def stop_at_current(self, current: IdSet, repeats: int) -> None:
        """Let the walk end where it meets what the lake has, if the counts agree.

        Args:
            current: What the lake has.
            repeats: How often the gateway's list is known to repeat a message of it.
        """
        self._current = current
        self._repeats = repeats

    def new_pages(self, head: Page) -> float:
        """How many pages are new, by the counts."""
        return ((head.total_count or 0) - len(self._current or ())) / max(1, len(head.ids))

    def take_head(self, skip: int) -> Page | None:
        """Return the head that was already read, once."""
        head, self._head = self._head, None
        return head if skip == 0 else None

    def take(self, page: Page) -> None:
        """Turn a page of the walk into rows."""
        if self._head_rows is not None:
            rows, self._head_rows = self._head_rows, None
        else:
            rows = rows_of_page(page, self._origin)
        self.buffer.add(rows)
        self._last_times = rows.column("created_at")
        if self._current is not None:
            self._new.add(self._current.difference(page.ids))
        if page.skip == 0:
            self._total_count = page.total_count
            self.newest_id = page.ids[0] if page.ids else None
            self.head_messages = len(page.ids)
            self.head_hash = content_hash(rows)
            self.head_etag = page.etag

    def reached_current(self, page: Page) -> bool:
        """Whether everything below this page is in the lake, as far as position and count can tell.

        Raises:
            _CountsDiffer: Position says so, and the count does not.
        """
        if self._current is None or not self.covers_look_back(page):
            return False
        if self._current.isdisjoint(page.ids) or not page.count_matches:
            return False
        if not page.total_count == self._total_count == len(self._current) + len(self._new) + self._repeats:
            raise _CountsDiffer
        return True


def _parts_match(parts: Sequence[Part], state: ConversationEntry) -> bool:
    """Whether the lake has the parts that it had when the conversation was last proven."""
    return [(part.key, part.size_bytes) for part in parts] == [
        (part.key, part.size_bytes) for part in state.parts
    ]


def _earlier(one: datetime | None, other: datetime | None) -> datetime | None:
    return min(one, other) if one is not None and other is not None else one or other
