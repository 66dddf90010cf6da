"""Export one conversation: read what is new of it, prove it, publish it, say how it stands."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from datetime import datetime

import pyarrow.compute as pc

from imbrace_lake.errors import ConversationNotFound
from imbrace_lake.export.export_run import ExportRun, Past
from imbrace_lake.export.window import export_window, incomplete
from imbrace_lake.gateway.http_client import LARGE_BYTES
from imbrace_lake.gateway.models import Page
from imbrace_lake.gateway.paging import REPEATS, Proof, walk
from imbrace_lake.gateway.seen import Seen
from imbrace_lake.lake.entries import PROVEN, ConversationEntry, ConversationStatus, part_entries
from imbrace_lake.lake.hashes import content_hash, hash_sum
from imbrace_lake.lake.held import Held
from imbrace_lake.lake.lake import Part
from imbrace_lake.lake.publish import Publication, Published, somewhere
from imbrace_lake.lake.room import Room
from imbrace_lake.lake.rows import Collector, Rows
from imbrace_lake.lake.schema import Origin, rows_of_page
from imbrace_lake.printable import printable

logger = logging.getLogger(__name__)

# The method of a proof that leans on what the lake has (paging.py).
JOINED = "joined"
MANY_PAGES = 4


async def export_conversation(run: ExportRun, conversation_id: str, past: Past) -> ConversationEntry:
    """Read a conversation, prove that it was read whole, and bring the lake up to it.

    One that stands as it stood costs one request and no read of the lake's messages. One that grew
    is read from its newest message down to what the lake has, if the counts agree; all others are
    walked from top to bottom. A run for a window of time reads that and no more.

    Args:
        run: What all conversations of the run share.
        conversation_id: Which.
        past: What there was of it when the run began.

    Returns:
        Its entry, ``complete``, ``unchanged`` or ``gone``.

    Raises:
        WalkIncomplete: It could not be proven whole; nothing was written.
        RepeatedMessages: Neither could it, because the gateway lists messages more than once.
        ImbraceLakeError: As its class says; whatever was written is whole.
    """
    with run.room() as room:
        export = _Export(run, conversation_id, past, room)
        try:
            if run.window.is_open:
                return await export.run()
            return await export_window(run, conversation_id, run.window, past.parts, room)
        except ConversationNotFound as exc:
            return export.gone(str(exc))


class _Export:
    """One conversation on its way into the lake."""

    def __init__(
        self,
        run: ExportRun,
        conversation_id: str,
        past: Past,
        room: Room,
    ) -> None:
        self._run = run
        self._room = room
        self._id = conversation_id
        self._known = past.known
        self._parts = past.parts
        self._started_at = run.clock()
        self._requests = 0

    async def run(self) -> ConversationEntry:
        if self._known is not None and not self._run.policy.is_due(self._known, self._id, self._started_at):
            return await self._look_for_news(self._known)
        return await self._walk_whole(await self._read_held(self._parts))

    async def _look_for_news(self, known: ConversationEntry) -> ConversationEntry:
        """Read from the head down to what the lake has, or no more than the head."""
        etag = known.head_etag if self._is_told_by_head(known) else None
        self._requests += 1
        head = await self._run.gateway.get_head(self._id, limit=self._run.page_size, etag=etag)
        if head is None:
            return self._unchanged(known)
        reading = self._reading(head)
        if reading.stands_as(known, self._parts) and reading.is_far_enough(head):
            return self._unchanged(replace(known, head_etag=head.etag))
        if head.size_bytes > LARGE_BYTES:
            # Many conversations wait at this place, so a large head is not held: it is asked for again.
            reading, head = self._reading(None), replace(head, items=[])
        held = await self._read_held(self._parts)
        reading.expect(await somewhere(held.is_in_memory, held.live), known.repeats)
        # Pages read side by side reach beyond where the walk ends, so there must be many new ones.
        is_long = reading.new_pages(head) > MANY_PAGES * self._run.pages_ahead
        try:
            proof = await self._walk(reading, self._run.pages_ahead if is_long else 1)
        except _CountsDiffer:
            # Something was deleted, or is missing: only a walk that begins now can tell what.
            return await self._walk_whole(held)
        return await self._publish(reading, proof, held)

    def _is_told_by_head(self, known: ConversationEntry) -> bool:
        """Whether the conversation stands as it stood if the gateway answers for its head as it did then."""
        policy = self._run.policy
        head = known.head_messages or 0
        is_asleep = (
            known.last_message_at is not None and known.last_message_at < self._started_at - policy.look_back
        )
        return (
            known.status in PROVEN
            and known.is_counted
            and (head >= policy.look_back_messages or head == known.server_count or is_asleep)
            and _are_those_of(self._parts, known)
        )

    async def _walk_whole(self, held: Held) -> ConversationEntry:
        reading = self._reading(None)
        proof = await self._walk(reading, self._run.pages_ahead)
        return await self._publish(reading, proof, held)

    def _reading(self, head: Page | None) -> Reading:
        origin = Origin(self._run.organization_id, self._id, self._run.run_id, self._started_at)
        policy = self._run.policy
        look_back_from = self._started_at - policy.look_back
        return Reading(origin, head, look_back_from, policy.look_back_messages, Collector(self._room))

    async def _read_held(self, parts: Sequence[Part]) -> Held:
        return await Held.read(self._run.lake, parts, self._room)

    async def _walk(self, reading: Reading, ahead: int) -> Proof:
        async def fetch(skip: int, limit: int) -> Page:
            return reading.head_once(skip) or await self._get_page(skip, limit)

        def take(page: Page) -> None:
            self._run.look_at_shapes(self._id, page)
            reading.take(page)
            # The walk goes on with the ids; the messages of a few pages would take up to 14 MB each.
            page.items.clear()

        proof = await walk(
            fetch,
            take,
            limit=self._run.page_size,
            ahead=ahead,
            is_enough=reading.is_enough,
            bounds=self._run.bounds,
            # What was accepted once is no error of a later run that is not asked to accept it.
            accept_repeats=self._run.accept_repeats or bool(self._known and self._known.repeats),
        )
        if not proof.is_complete:
            raise incomplete(f"conversation {printable(self._id)} is not proven whole", proof)
        return proof

    async def _get_page(self, skip: int, limit: int) -> Page:
        self._requests += 1
        return await self._run.gateway.get_page(self._id, skip=skip, limit=limit)

    async def _publish(self, reading: Reading, proof: Proof, held: Held) -> ConversationEntry:
        is_small = not reading.collected.is_spilled and held.is_in_memory
        async with nullcontext() if is_small else self._run.large_turn:
            return await self._publish_in_turn(reading, proof, held)

    async def _publish_in_turn(self, reading: Reading, proof: Proof, held: Held) -> ConversationEntry:
        collected = reading.collected
        rows = await somewhere(not collected.is_spilled, collected.rows, distinct=proof.distinct)
        is_whole = proof.method != JOINED
        publication = Publication(
            self._run.lake,
            self._run.journal,
            self._run.organization_id,
            self._id,
            self._run.clock(),
            self._room,
        )
        # The parts were listed when the run began, and no message is ever added to a part: what is
        # in them was in the lake before the walk began.
        published = await publication.publish(rows, held, is_whole=is_whole)
        entry = self._proven(reading, proof, rows, published)
        if not (is_whole and published.is_alone):
            live, digest = await self._look_at_lake(proof, held, published)
            entry = replace(entry, distinct_messages=live, content_hash=digest)
        self._run.progress.note(entry, published)
        # A line a conversation would be 100,000 lines in the orchestrator's database.
        logger.debug(
            "exported conversation=%s messages=%d new=%d edited=%d deleted=%d requests=%d method=%s",
            self._id, proof.distinct, entry.new_messages, entry.edited_messages, entry.deleted_messages,
            self._requests, proof.method,
        )  # fmt: skip
        return entry

    async def _look_at_lake(self, proof: Proof, held: Held, published: Published) -> tuple[int | None, str]:
        """How many messages the lake has, and their hash, where it has more, or newer, than was read."""
        known = self._known
        is_known = known is not None and part_entries(held.parts) == known.parts
        if known is not None and known.content_hash and is_known and published.is_alone:
            added = [published.new.content_hash] if published.new is not None else []
            came = [known.content_hash, *added, *published.came]
            return (proof.server_count or 0) - known.repeats, hash_sum(came, published.went)
        now = await self._read_held([held.part for held in published.parts])
        return await somewhere(now.is_in_memory, now.live_hash)

    # -- how it stands ----------------------------------------------------------------------------

    def _blank(self) -> ConversationEntry:
        return ConversationEntry(
            run_id=self._run.run_id,
            organization_id=self._run.organization_id,
            conversation_id=self._id,
            status="complete",
            started_at=self._started_at,
            finished_at=self._run.clock(),
            requests=self._requests,
        )

    def _carried(
        self,
        known: ConversationEntry,
        status: ConversationStatus,
        *,
        proven_until: datetime | None,
        reason: str | None = None,
        is_dead_letter: bool = False,
    ) -> ConversationEntry:
        """What was known, as an entry of this run."""
        return replace(
            known,
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

    def _unchanged(self, known: ConversationEntry) -> ConversationEntry:
        entry = self._carried(known, "unchanged", proven_until=self._started_at)
        self._run.progress.note(entry)
        return entry

    def gone(self, reason: str) -> ConversationEntry:
        """The gateway does not have it; said once, for what is known to be gone fails no later run."""
        is_news = self._known is None and not self._parts
        known = self._known or self._blank()
        entry = self._carried(
            known, "gone", proven_until=known.proven_until, reason=reason, is_dead_letter=is_news
        )
        self._run.progress.note(entry)
        return entry

    def _proven(self, reading: Reading, proof: Proof, rows: Rows, published: Published) -> ConversationEntry:
        """The entry of a conversation that was walked."""
        is_joined = proof.method == JOINED and self._known is not None
        known = self._known if is_joined and self._known is not None else self._blank()
        new = published.new.num_rows if published.new is not None else 0
        return replace(
            self._blank(),
            status="complete",
            reason=proof.reason or None,
            server_count=proof.server_count,
            # Those included that were deleted while they were read: the next run sees the difference.
            distinct_messages=rows.num_rows,
            new_messages=new,
            edited_messages=published.edited,
            deleted_messages=published.deleted,
            first_message_at=_least(known.first_message_at, rows.first_at),
            last_message_at=rows.last_at,
            proven_from=_least(known.proven_from, rows.first_at),
            proven_until=self._started_at,
            proof_method=REPEATS if is_joined and known.repeats else proof.method,
            is_still=proof.is_still,
            content_hash=rows.content_hash,
            newest_message_id=reading.newest_id,
            head_messages=reading.head_messages,
            head_hash=reading.head_hash,
            head_etag=reading.head_etag,
            full_walk_at=known.full_walk_at if is_joined else self._started_at,
            parts=part_entries(published.parts),
        )


class _CountsDiffer(Exception):
    """The gateway counts other than what the lake has and what is new make."""


class Reading:
    """Collects the pages of one walk as rows, so that the pages themselves need not be kept."""

    def __init__(
        self,
        origin: Origin,
        head: Page | None,
        look_back_from: datetime,
        look_back_messages: int,
        collected: Collector,
    ) -> None:
        self.collected = collected
        self._origin = origin
        self._head = head  # read already, to see whether a walk is needed
        self._head_rows = rows_of_page(head, origin) if head is not None else None
        self._look_back_from = look_back_from
        self._look_back_messages = look_back_messages
        # Of the last page; its rows, which may have many megabytes, are not kept.
        self._last_times = self._head_rows.column("created_at") if self._head_rows is not None else None
        self._whole: int | None = None  # the gateway's count, with the head
        self._live: Seen | None = None
        self._repeats = 0
        self._new = Seen()
        self.newest_id: str | None = None
        self.head_hash = ""
        self.head_etag = ""
        self.head_messages = 0

    def stands_as(self, known: ConversationEntry, parts: Sequence[Part]) -> bool:
        """Whether head and count are those of the last proof, and the lake has what it had then."""
        count = known.head_messages or 0
        return (
            known.status in PROVEN
            and self._head is not None
            and self._head_rows is not None
            and self._head.is_exact
            and known.is_counted
            and self._head.whole == known.server_count
            and self._head_rows.num_rows >= count
            and content_hash(self._head_rows.slice(self._head_rows.num_rows - count)) == known.head_hash
            and _are_those_of(parts, known)
        )

    def is_far_enough(self, page: Page) -> bool:
        """Whether the look-back ends within this page."""
        if page.end >= self._look_back_messages or page.whole is None or page.end >= page.whole:
            return True
        oldest = pc.min(self._last_times).as_py() if self._last_times is not None else None
        return oldest is not None and oldest < self._look_back_from

    def expect(self, live: Seen, repeats: int) -> None:
        """Let the walk end where it meets what the lake has, if the counts agree.

        Args:
            live: What the lake has.
            repeats: How often the gateway's list is known to repeat a message of it.
        """
        self._live = live
        self._repeats = repeats

    def new_pages(self, head: Page) -> float:
        """How many pages are new, by the counts."""
        return ((head.whole or 0) - len(self._live or ())) / max(1, len(head.ids))

    def head_once(self, skip: int) -> Page | None:
        """The head that was read already, the first time it is asked for."""
        head, self._head = self._head, None
        return head if skip == 0 else None

    def take(self, page: Page) -> None:
        """Turn a page of the walk into rows."""
        if self._head_rows is not None:
            rows, self._head_rows = self._head_rows, None
        else:
            rows = rows_of_page(page, self._origin)
        self.collected.add(rows)
        self._last_times = rows.column("created_at")
        if self._live is not None:
            self._new.add(self._live.unmet(page.ids))
        if page.skip == 0:
            self._whole = page.whole
            self.newest_id = page.ids[0] if page.ids else None
            self.head_messages = len(page.ids)
            self.head_hash = content_hash(rows)
            self.head_etag = page.etag

    def is_enough(self, page: Page) -> bool:
        """Whether everything below this page is in the lake, as far as position and count can tell.

        Raises:
            _CountsDiffer: Position says so, and the count does not.
        """
        if self._live is None or not self.is_far_enough(page):
            return False
        if self._live.isdisjoint(page.ids) or not page.is_exact:
            return False
        if not page.whole == self._whole == len(self._live) + len(self._new) + self._repeats:
            raise _CountsDiffer
        return True


def _are_those_of(parts: Sequence[Part], known: ConversationEntry) -> bool:
    """Whether the lake has the parts that it had when the conversation was last proven."""
    return [(part.key, part.size_bytes) for part in parts] == [
        (part.key, part.size_bytes) for part in known.parts
    ]


def _least(one: datetime | None, other: datetime | None) -> datetime | None:
    return min(one, other) if one is not None and other is not None else one or other
