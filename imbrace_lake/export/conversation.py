"""Export one conversation: update its partition to the gateway's list."""

from __future__ import annotations

import logging
from contextlib import nullcontext
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from imbrace_lake.errors import ConversationNotFound, MalformedAnswer, NeverFound
from imbrace_lake.export.prior import PriorState
from imbrace_lake.export.run import RunContext
from imbrace_lake.export.window import export_window, incomplete
from imbrace_lake.gateway.id_set import IdSet
from imbrace_lake.gateway.models import LARGE_BYTES, Page
from imbrace_lake.gateway.walk import REACHED_KNOWN, REPEATS, Proof, Walk
from imbrace_lake.lake.claim import PartClaim
from imbrace_lake.lake.hashes import content_hash, hash_sum
from imbrace_lake.lake.ledger_schema import PROVEN, ConversationEntry, ConversationStatus
from imbrace_lake.lake.memory import Reservation
from imbrace_lake.lake.publish import PublishResult, in_thread_unless, publish
from imbrace_lake.lake.rows import Rows, SortBuffer
from imbrace_lake.lake.schema import Origin, rows_of_page
from imbrace_lake.lake.snapshot import PartitionSnapshot
from imbrace_lake.printable import printable
from imbrace_lake.revisit import add_active_hours

logger = logging.getLogger(__name__)

MANY_PAGES = 4


async def export_conversation(run: RunContext, conversation_id: str, prior: PriorState) -> ConversationEntry:
    """Read a conversation, prove that no message is missing, and bring the lake up to date.

    An unchanged conversation costs one request and no read of the lake's messages. A conversation with new
    messages is read from the newest one down to those in the lake, if the counts agree; all others get a full
    walk. A run for a window of time reads only the messages of that window.

    Args:
        run: The context of the run.
        conversation_id: The conversation.
        prior: Its state when the run began.

    Returns:
        Its entry, ``complete``, ``unchanged`` or ``gone``.

    Raises:
        NeverFound: Neither the gateway nor the lake has it.
        WalkIncomplete: It could not be proven complete; nothing was written.
        RepeatedMessages: The same, because the gateway lists messages more than once.
        ImbraceLakeError: The gateway or the store failed; every object that was written is complete.
    """
    with run.new_reservation() as reservation:
        export = _Export(run, conversation_id, prior, reservation)
        requested = run.accounts.pages_requested[conversation_id]
        try:
            if not run.window.is_open:
                return await export_window(run, conversation_id, run.window, prior.parts, reservation)

            # 1. Look at the head.
            head = await export.look_at_head()
            if head is not None and head.is_unchanged:
                return export.settled("unchanged", head_etag=head.etag, proven_until=export.started_at)
            snapshot = await PartitionSnapshot.read(run.lake, prior.parts, reservation)

            # 2. Walk from the head down to the messages in the lake, or else to the oldest message.
            collector, proof = await export.walk(head, snapshot)
            buffer = collector.buffer
            is_small = not buffer.is_spilled and snapshot.is_in_memory

            async with nullcontext() if is_small else run.large_turn:
                # 3. Sort the rows, each message once.
                rows = await in_thread_unless(not buffer.is_spilled, buffer.rows, distinct=proof.distinct)

                # 4. and 5. Diff them with the snapshot and publish the diff, again if another run was first.
                # The parts were listed when the run began, and no message is ever added to a part, so all
                # messages of the snapshot were in the lake before the walk began.
                with run.progress.write():
                    published = await publish(
                        run.lake, run.journal, export.claim(proof), rows, snapshot,
                        is_full_walk=proof.method != REACHED_KNOWN, now=run.clock(), reservation=reservation,
                    )  # fmt: skip
                return await export.complete(collector, proof, rows, snapshot, published)
        except ConversationNotFound as exc:
            is_first_report = prior.state is None and not prior.parts
            # A second page is requested after the first has arrived.
            has_answered = run.accounts.pages_requested[conversation_id] > requested + 1
            if is_first_report and not run.prior.is_named(conversation_id) and not has_answered:
                reason = "neither the gateway nor the lake has this conversation"
                raise NeverFound(exc.path, reason, exc.request_id) from None
            if has_answered:
                await export.raise_if_there(exc)
            return export.settled("gone", reason=str(exc), is_dead_letter=is_first_report)


@dataclass(frozen=True, slots=True)
class LookBack:
    """The newest messages of a conversation, which are read again for edits although the lake has them."""

    since: datetime
    messages: int

    def ends_in(self, page: Page, times: pa.ChunkedArray) -> bool:
        """Whether the look-back ends within a page; `times` are those of its messages."""
        if page.next_skip >= self.messages or page.total_count is None or page.next_skip >= page.total_count:
            return True
        # Not of the oldest alone, because some messages can have a wrong time.
        oldest = times.take(pc.bottom_k_unstable(times, min(len(times), max(2, len(times) // 10))))
        last = oldest[-1].as_py() if len(oldest) else None
        return last is not None and last < self.since


@dataclass(frozen=True, slots=True)
class Head:
    """The newest page of a conversation that the lake has.

    Attributes:
        etag: The etag of the page.
        is_unchanged: The page proves that the conversation is unchanged since its last proof.
        page: None if the gateway's answer was, byte for byte, that of the last proof.
        rows: The messages of the page; None if they are too large to keep.
    """

    etag: str | None
    is_unchanged: bool = True
    page: Page | None = None
    rows: pa.Table | None = None


class _Export:
    """The export of one conversation."""

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
        self.started_at = run.clock()
        self._origin = Origin(run.organization_id, conversation_id, run.run_id, self.started_at)
        self._look_back = LookBack(self.started_at - run.policy.look_back, run.policy.look_back_messages)

    # -- reading ---------------------------------------------------------------------------------

    async def look_at_head(self) -> Head | None:
        """Read the newest page; None if the conversation is due for a full walk."""
        state, run = self._state, self._run
        if state is None or run.policy.is_due(state, self._id, self.started_at):
            return None
        stored = [(part.key, part.size_bytes) for part in self._parts]
        is_comparable = (
            state.status in PROVEN
            and state.is_counted
            and stored == [(part.key, part.size_bytes) for part in state.parts]
        )
        etag = state.head_etag if is_comparable and self._head_suffices(state) else None
        page = await run.get_head(self._id, etag)
        if page is None:
            return Head(state.head_etag)
        rows = rows_of_page(page, self._origin)
        is_unchanged = (
            is_comparable
            and _has_head(state, page, rows)
            and self._look_back.ends_in(page, rows.column("created_at"))
        )
        if page.size_bytes > LARGE_BYTES:
            # Many conversations can wait after this, so a large head is not kept: the walk requests it again.
            return Head(page.etag, is_unchanged, replace(page, items=[]))
        return Head(page.etag, is_unchanged, page, rows)

    def _head_suffices(self, state: ConversationEntry) -> bool:
        """Whether no message outside the head is in the look-back."""
        head, look_back = state.head_messages or 0, self._look_back
        is_asleep = state.last_message_at is not None and state.last_message_at < look_back.since
        return head >= look_back.messages or head == state.server_count or is_asleep

    async def raise_if_there(self, error: ConversationNotFound) -> None:
        """Request the newest message again, after the gateway had a page and not the next one.

        Raises:
            MalformedAnswer: The gateway has the conversation.
        """
        try:
            await self._run.get_page(self._id, 0, 1)
        except ConversationNotFound:
            return
        reason = "the gateway has this conversation, and answers 404 for one of its pages"
        raise MalformedAnswer(error.path, reason, error.request_id) from None

    async def walk(self, head: Head | None, snapshot: PartitionSnapshot) -> tuple[PageCollector, Proof]:
        """Walk down to the messages in the lake, if there is a head and the counts agree, else to the bottom.

        Raises:
            WalkIncomplete: The walk proves nothing.
        """
        run, state = self._run, self._state
        collector = PageCollector(SortBuffer(self._reservation), self._look_back)
        read_ahead = run.pages_ahead
        if head is not None and head.page is not None and state is not None:
            current = await in_thread_unless(snapshot.is_in_memory, snapshot.current_ids)
            collector = PageCollector(SortBuffer(self._reservation), self._look_back, current, state.repeats)
            # The end of the walk wastes pages that were read ahead, so there must be many new ones.
            is_long = collector.new_pages(head.page) > MANY_PAGES * run.pages_ahead
            read_ahead = run.pages_ahead if is_long else 1
        while True:
            counts_agree = True
            async with Walk(
                partial(run.get_page, self._id),
                head=head.page if head is not None and head.rows is not None else None,
                limit=run.page_size,
                read_ahead=read_ahead,
                bounds=run.bounds,
                # Repeats that were accepted once are not an error in later runs.
                accept_repeats=run.accept_repeats or bool(state and state.repeats),
            ) as walk:
                async for page in walk:
                    run.observe_shapes(self._id, page)
                    rows = head.rows if head is not None and page is head.page else None
                    collector.add(page, rows_of_page(page, self._origin) if rows is None else rows)
                    # The walk needs only the ids, and the messages of a page can take 14 MB.
                    page.items.clear()
                    if collector.reached_current(page):
                        counts_agree = collector.counts_agree(page)
                        if not counts_agree:
                            break
                        walk.stop()
            if counts_agree:
                break
            # Messages were deleted or are missing, which only a new full walk can find out.
            collector.buffer.clear()
            collector = PageCollector(SortBuffer(self._reservation), self._look_back)
            head, read_ahead = None, run.pages_ahead
        if not walk.proof.is_complete:
            raise incomplete(f"conversation {printable(self._id)} is not proven complete", walk.proof)
        return collector, walk.proof

    def claim(self, proof: Proof) -> PartClaim:
        """Return the claim of this conversation's parts about the walk."""
        return PartClaim(
            organization_id=self._run.organization_id,
            conversation_id=self._id,
            run_id=self._run.run_id,
            status="complete",
            proof_method=self._proof_method(proof),
            server_count=proof.server_count,
        )

    def _proof_method(self, proof: Proof) -> str:
        """Return the method as the ledger states it: a walk down to accepted repeats relies on them."""
        relies_on_repeats = proof.method == REACHED_KNOWN and self._state is not None and self._state.repeats
        return REPEATS if relies_on_repeats else proof.method

    # -- entries ---------------------------------------------------------------------------------

    async def complete(
        self,
        collector: PageCollector,
        proof: Proof,
        rows: Rows,
        snapshot: PartitionSnapshot,
        published: PublishResult,
    ) -> ConversationEntry:
        """Return the entry of a conversation that was walked and published."""
        reached_known = proof.method == REACHED_KNOWN
        state = (self._state if reached_known else None) or self._empty_entry()
        new = published.new.num_rows if published.new is not None else 0
        active_hours, active_hour_count = state.active_hours, state.active_hour_count
        if not reached_known or active_hours is not None:
            added = published.new if reached_known else rows
            for times in added.times() if added is not None else ():
                active_hours, active_hour_count = add_active_hours(active_hours, active_hour_count, times)
        entry = replace(
            self._empty_entry(),
            status="complete",
            reason=proof.reason or None,
            server_count=proof.server_count,
            # Includes messages that were deleted during the walk; the next run finds the difference.
            distinct_messages=rows.num_rows,
            new_messages=new,
            edited_messages=published.edited,
            deleted_messages=published.deleted,
            first_message_at=min(filter(None, (state.first_message_at, rows.first_at)), default=None),
            last_message_at=rows.last_at,
            active_hours=active_hours,
            active_hour_count=active_hour_count,
            proven_from=min(filter(None, (state.proven_from, rows.first_at)), default=None),
            proven_until=self.started_at,
            proof_method=self._proof_method(proof),
            is_still=proof.did_not_move,
            content_hash=rows.content_hash,
            newest_message_id=collector.newest_id,
            head_messages=collector.head_messages,
            head_hash=collector.head_hash,
            head_etag=collector.head_etag,
            full_walk_at=state.full_walk_at if reached_known else self.started_at,
            parts=published.parts,
        )
        if reached_known or not published.had_no_race:
            count, digest = await self._current_counts(proof, snapshot, published)
            entry = replace(entry, distinct_messages=count, content_hash=digest)
        self._run.progress.note(entry, published)
        # At INFO it would be 100,000 lines in the orchestrator's database.
        logger.debug(
            "exported conversation=%s messages=%d new=%d edited=%d deleted=%d requests=%d method=%s",
            self._id, proof.distinct, entry.new_messages, entry.edited_messages, entry.deleted_messages,
            entry.requests, proof.method,
        )  # fmt: skip
        return entry

    async def _current_counts(
        self, proof: Proof, snapshot: PartitionSnapshot, published: PublishResult
    ) -> tuple[int | None, str]:
        """Return the number of messages in the lake, and their hash, if it has more than were read."""
        state = self._state
        is_unchanged = state is not None and snapshot.parts == state.parts
        if state is not None and state.content_hash and is_unchanged and published.had_no_race:
            added = [published.new.content_hash] if published.new is not None else []
            added_hashes = [state.content_hash, *added, *published.added_hashes]
            return (proof.server_count or 0) - state.repeats, hash_sum(added_hashes, published.removed_hashes)
        now = await PartitionSnapshot.read(self._run.lake, published.parts, self._reservation)
        return await in_thread_unless(now.is_in_memory, now.current_hash)

    def _empty_entry(self) -> ConversationEntry:
        return ConversationEntry(
            run_id=self._run.run_id,
            organization_id=self._run.organization_id,
            conversation_id=self._id,
            status="complete",
            started_at=self.started_at,
            finished_at=self._run.clock(),
            requests=self._run.accounts.pages_requested[self._id],
        )

    def settled(self, status: ConversationStatus, **changes: Any) -> ConversationEntry:
        """Return the entry of a conversation that was not walked: its last state with changes."""
        entry = replace(
            self._state or self._empty_entry(),
            run_id=self._run.run_id,
            status=status,
            reason=None,
            is_dead_letter=False,
            new_messages=0,
            edited_messages=0,
            deleted_messages=0,
            requests=self._run.accounts.pages_requested[self._id],
            started_at=self.started_at,
            finished_at=self._run.clock(),
        )
        entry = replace(entry, **changes)
        self._run.progress.note(entry)
        return entry


class PageCollector:
    """Collects the pages of one walk as rows, so that the pages themselves need not be kept.

    Args:
        buffer: Receives the rows.
        look_back: The messages that the walk reads even if the lake has them.
        current: The messages in the lake; None to walk to the bottom.
        repeats: The known number of repeats among them in the gateway's list.
    """

    def __init__(
        self, buffer: SortBuffer, look_back: LookBack, current: IdSet | None = None, repeats: int = 0
    ) -> None:
        self.buffer = buffer
        self.newest_id: str | None = None
        self.head_hash = ""
        self.head_etag = ""
        self.head_messages = 0
        self._look_back = look_back
        self._current = current
        self._repeats = repeats
        self._new = IdSet()
        self._total_count: int | None = None  # as the head stated it
        # The times of the last page, without its rows, which can have many megabytes.
        self._last_times: pa.ChunkedArray = pa.chunked_array([], pa.timestamp("ms", "UTC"))

    def new_pages(self, head: Page) -> float:
        """Return the number of new pages, by the counts."""
        return ((head.total_count or 0) - len(self._current or ())) / max(1, len(head.ids))

    def add(self, page: Page, rows: pa.Table) -> None:
        """Add a page, as rows."""
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
        """Whether the page added last contains a message of the lake, and the look-back ends in it."""
        return (
            self._current is not None
            and self._look_back.ends_in(page, self._last_times)
            and not self._current.isdisjoint(page.ids)
            and page.count_matches
        )

    def counts_agree(self, page: Page) -> bool:
        """Whether the stored and the new messages together match the gateway's count."""
        stored = len(self._current or ()) + len(self._new) + self._repeats
        return page.total_count == self._total_count == stored


def _has_head(state: ConversationEntry, page: Page, rows: pa.Table) -> bool:
    """Whether a page ends with the head of the last proof, and the total count is the same."""
    count = state.head_messages or 0
    return (
        page.count_matches
        and page.total_count == state.server_count
        and rows.num_rows >= count
        and content_hash(rows.slice(rows.num_rows - count)) == state.head_hash
    )
