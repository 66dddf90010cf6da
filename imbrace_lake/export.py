"""Export one conversation, and a chunk of them: read, prove, publish, say how it stands."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

import pyarrow as pa
import pyarrow.compute as pc

from imbrace_lake.errors import (
    ConversationNotFound,
    ImbraceLakeError,
    ObjectExists,
    StoreUnavailable,
    WalkIncomplete,
)
from imbrace_lake.gateway import GatewayClient
from imbrace_lake.lake import Lake, Part, Partitions, PublishedPart
from imbrace_lake.ledger import (
    PROVEN,
    ConversationEntry,
    Journal,
    KnownConversations,
    PartEntry,
    conversation_rows,
)
from imbrace_lake.models import Page
from imbrace_lake.paging import Proof, walk
from imbrace_lake.progress import Progress
from imbrace_lake.schema import DIGEST, Origin, content_hash, in_order, to_parquet, to_rows, without_repeats

logger = logging.getLogger(__name__)

# Each lost race means that another writer has just added a part, so only a crowd loses this often.
PUBLISH_TRIES = 20


def utc_now() -> datetime:
    """The time, in UTC; the default clock of a run."""
    return datetime.now(UTC)


@dataclass(slots=True)
class ExportRun:
    """What all conversations of one run in one process share.

    Attributes:
        run_id: Names the run in the lake.
        organization_id: Whose conversations they are.
        lake, gateway: Open, of this event loop.
        journal: Where the run writes down what it has done.
        slots: Bounds the conversations that are in memory at a time.
        known: How each conversation stood when it was last proven; see `learn`.
        partitions: Which parts each conversation has, as listed when the run began.
        page_size, pages_ahead: As in `walk`.
        progress: Counted on as conversations end.
        clock: Tells the time.
        started_at: When the run began.
        dead_letters: What could not be exported, as long as the run is under way.
        fatal: What ends the run because every further request would meet it as well.
    """

    run_id: str
    organization_id: str
    lake: Lake
    gateway: GatewayClient
    journal: Journal
    slots: asyncio.Semaphore
    known: KnownConversations = field(default_factory=KnownConversations.none)
    partitions: Partitions = field(default_factory=Partitions.none)
    page_size: int = 100
    pages_ahead: int = 8
    progress: Progress = field(default_factory=Progress)
    clock: Callable[[], datetime] = utc_now
    started_at: datetime = field(default_factory=utc_now)
    dead_letters: list[ConversationEntry] = field(default_factory=list)
    fatal: ImbraceLakeError | None = None
    # What a chunk has got done so far, by its name: needs no second look when the chunk is tried again.
    _half_done: dict[str, dict[str, ConversationEntry]] = field(default_factory=dict)

    async def learn(self) -> None:
        """Read what the lake has and knows of the organization's conversations; once a run."""
        self.known, self.partitions = await asyncio.gather(
            KnownConversations.read(self.lake, self.organization_id),
            self.lake.list_partitions(self.organization_id),
        )


@dataclass(frozen=True, slots=True)
class ChunkResult:
    """What became of a chunk: its conversations by status, those that failed, and whether to retry."""

    statuses: Counter[str]
    dead_letters: tuple[ConversationEntry, ...]
    is_worth_retrying: bool


async def export_chunk(
    run: ExportRun, name: str, conversation_ids: Sequence[str], *, is_last_try: bool = True
) -> ChunkResult:
    """Export conversations side by side; one that fails costs itself and no other.

    Args:
        run: What they share.
        name: Names the chunk in the run's journal.
        conversation_ids: Which.
        is_last_try: Believe what fails for now. Otherwise a second call with the same name goes on
            with what this one leaves.

    Raises:
        ImbraceLakeError: One that every other conversation would meet as well (`is_fatal`).
    """
    done = run._half_done.setdefault(name, {})
    failed: dict[str, ImbraceLakeError] = {}

    async def export(conversation_id: str) -> None:
        async with run.slots:
            try:
                done[conversation_id] = await export_conversation(run, conversation_id)
            except ImbraceLakeError as exc:
                if exc.is_fatal:
                    raise
                failed[conversation_id] = exc

    try:
        async with asyncio.TaskGroup() as group:
            for conversation_id in conversation_ids:
                if conversation_id not in done:
                    group.create_task(export(conversation_id))
    except BaseExceptionGroup as failures:
        # Callers write `except ImbraceLakeError`, and a group would slip past them.
        raise failures.exceptions[0] from None
    finally:
        # Also when the run is cancelled: what is published need not be looked at again.
        if done:
            await run.journal.note("conversations", name, conversation_rows(done.values()))
    is_worth_retrying = any(error.is_transient for error in failed.values())
    if is_worth_retrying and not is_last_try:
        return ChunkResult(_statuses(done.values()), (), is_worth_retrying=True)
    entries = [*done.values(), *(_failed(run, one, error) for one, error in failed.items())]
    if failed:
        await run.journal.note("conversations", name, conversation_rows(entries))
    del run._half_done[name]
    dead = tuple(entry for entry in entries if entry.is_dead_letter)
    run.dead_letters.extend(dead)
    return ChunkResult(_statuses(entries), dead, is_worth_retrying)


def _statuses(entries: Iterable[ConversationEntry]) -> Counter[str]:
    return Counter(entry.status for entry in entries)


def _failed(run: ExportRun, conversation_id: str, error: ImbraceLakeError) -> ConversationEntry:
    entry = ConversationEntry(
        run_id=run.run_id,
        organization_id=run.organization_id,
        conversation_id=conversation_id,
        status="incomplete" if isinstance(error, WalkIncomplete) else "failed",
        reason=str(error),
        is_dead_letter=True,
        finished_at=run.clock(),
    )
    logger.warning("not exported conversation=%s status=%s reason=%s", conversation_id, entry.status, error)
    run.progress.note(entry)
    return entry


async def export_conversation(run: ExportRun, conversation_id: str) -> ConversationEntry:
    """Read a conversation, prove that it was read whole, and add what the lake lacks of it.

    Returns:
        Its entry, ``complete``, ``unchanged`` or ``gone``. For one that stands as it stood it cost
        one request and no read of the lake's messages.

    Raises:
        WalkIncomplete: It could not be proven whole; nothing was written.
        ImbraceLakeError: As its class says; nothing was written, or a whole part.
    """
    started_at = run.clock()
    parts = run.partitions.of(run.organization_id, conversation_id)
    known = run.known.of(conversation_id)
    blank = ConversationEntry(
        run_id=run.run_id,
        organization_id=run.organization_id,
        conversation_id=conversation_id,
        status="complete",
        started_at=started_at,
        finished_at=started_at,
    )
    try:
        head = await run.gateway.get_page(conversation_id, limit=run.page_size)
        reading = _Reading(run, conversation_id, head)
        if known is not None and reading.stands_as(known, parts):
            entry = replace(
                known, run_id=run.run_id, status="unchanged", started_at=started_at, finished_at=run.clock(),
                requests=1, new_messages=0, is_dead_letter=False,
            )  # fmt: skip
            run.progress.note(entry)
            return entry
        proof = await walk(reading.fetch, reading.take, limit=run.page_size, ahead=run.pages_ahead)
    except ConversationNotFound as exc:
        entry = replace(
            known or blank, run_id=run.run_id, status="gone", reason=str(exc), new_messages=0, requests=1,
            started_at=started_at, finished_at=run.clock(),
            # Said once: what is known to be gone fails no later run, and what the lake has, it keeps.
            is_dead_letter=known is None and not parts,
        )  # fmt: skip
        run.progress.note(entry)
        return entry
    if not proof.is_complete:
        raise WalkIncomplete(f"conversation {conversation_id} is not proven whole: {proof.reason}")
    rows = reading.rows()
    published, had = await _publish(run, conversation_id, rows, parts)
    entry = _proven(blank, proof, reading, rows, known, published, had)
    entry = replace(entry, finished_at=run.clock())
    run.progress.note(entry, published.part.size_bytes if published else 0)
    logger.info(
        "exported conversation=%s messages=%d new=%d requests=%d method=%s",
        conversation_id, proof.distinct, entry.new_messages, proof.requests, proof.method,
    )  # fmt: skip
    return entry


class _Reading:
    """Collects the pages of one walk as rows, so that the pages themselves need not be kept."""

    def __init__(self, run: ExportRun, conversation_id: str, head: Page) -> None:
        self._run = run
        self._conversation_id = conversation_id
        self._head: Page | None = head  # read already, to see whether a walk is needed
        self._origin = Origin(run.organization_id, conversation_id, run.run_id, run.clock())
        self._pages: list[pa.Table] = []
        self.newest_id: str | None = None
        self.head_hash = ""
        self.head_messages = 0
        self._is_exact = head.is_exact
        self._whole = head.whole
        self._head_rows = to_rows(head.items, head.ids, self._origin)

    def stands_as(self, known: ConversationEntry, parts: Sequence[Part]) -> bool:
        """Whether head and count are those of the last proof, and the lake has what it had then."""
        count = known.head_messages or 0
        return (
            known.status in PROVEN
            and self._is_exact
            and self._whole == known.server_count == known.distinct_messages
            and self._head_rows.num_rows >= count
            and content_hash(self._head_rows.slice(0, count)) == known.head_hash
            and [(part.key, part.size_bytes) for part in parts]
            == [(part.key, part.size_bytes) for part in known.parts]
        )

    async def fetch(self, skip: int, limit: int) -> Page:
        head, self._head = self._head, None
        if head is not None and skip == 0:
            return head
        return await self._run.gateway.get_page(self._conversation_id, skip=skip, limit=limit)

    def take(self, page: Page) -> None:
        """Turn a page of the walk into rows."""
        rows = to_rows(page.items, page.ids, self._origin) if self._pages else self._head_rows
        self._pages.append(rows)
        if page.skip == 0:
            self.newest_id = page.ids[0] if page.ids else None
            self.head_messages = len(page.ids)
            self.head_hash = content_hash(rows)

    def rows(self) -> pa.Table:
        """Each message once, oldest first, with its digest."""
        return in_order(without_repeats(pa.concat_tables(self._pages)))


async def _publish(
    run: ExportRun, conversation_id: str, rows: pa.Table, parts: Sequence[Part]
) -> tuple[PublishedPart | None, Sequence[Part]]:
    """Add the rows that no part holds as one part; the part, if there were any, and the earlier ones."""
    for _ in range(PUBLISH_TRIES):
        new = rows
        if parts:
            held = (await run.lake.read_parts(parts)).column("message_id").combine_chunks()
            new = rows.filter(pc.invert(pc.is_in(rows.column("message_id"), held)))
        if not new.num_rows:
            return None, parts
        metadata = {"run_id": run.run_id, "conversation_id": conversation_id}
        body = await asyncio.to_thread(to_parquet, new.drop_columns([DIGEST]), metadata)
        number = max((part.number for part in parts), default=-1) + 1
        try:
            added = await run.lake.add_part(run.organization_id, conversation_id, number, body, new.num_rows)
        except ObjectExists:
            parts = await run.lake.list_parts(run.organization_id, conversation_id)
        else:
            return added, parts
    raise StoreUnavailable(f"conversation {conversation_id}: other runs kept adding parts, so try again")


def _proven(
    blank: ConversationEntry,
    proof: Proof,
    reading: _Reading,
    rows: pa.Table,
    known: ConversationEntry | None,
    published: PublishedPart | None,
    had: Sequence[Part],
) -> ConversationEntry:
    """The entry of a conversation that was walked to its bottom."""
    times = pc.min_max(rows.column("created_at")).as_py()
    entries = [*_entries_of(had, known)]
    if published is not None:
        part = published.part
        entries.append(PartEntry(part.key, part.size_bytes, published.rows, published.sha256))
    return replace(
        blank,
        server_count=proof.server_count,
        distinct_messages=proof.listed,
        new_messages=published.rows if published else 0,
        first_message_at=times["min"],
        last_message_at=times["max"],
        proven_from=times["min"],
        proven_until=blank.started_at,
        proof_method=proof.method,
        is_still=proof.is_still,
        content_hash=content_hash(rows),
        newest_message_id=reading.newest_id,
        head_messages=reading.head_messages,
        head_hash=reading.head_hash,
        full_walk_at=blank.started_at,
        parts=tuple(entries),
        requests=proof.requests,
    )


def _entries_of(parts: Iterable[Part], known: ConversationEntry | None) -> Iterable[PartEntry]:
    """Earlier parts, with what the ledger says of them where it speaks of the same object."""
    told = {(part.key, part.size_bytes): part for part in known.parts} if known else {}
    for part in parts:
        yield told.get(
            (part.key, part.size_bytes), PartEntry(part.key, part.size_bytes, rows=None, sha256=None)
        )


def chunk_size(conversations: int, chosen: int | None = None) -> int:
    """How many conversations one task exports: at most about 200 tasks, of 10 to 500 each.

    A task run costs the orchestrator 30 ms of CPU, and more than about 1,000 in a burst are lost by
    its in-memory broker; smaller chunks only buy finer rows in its view.
    """
    return chosen or min(500, max(10, -(-conversations // 200)))
