"""Export a window of time of one conversation, without reading down to it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import pyarrow as pa
import pyarrow.compute as pc

from imbrace_lake.errors import WalkIncomplete
from imbrace_lake.export.export_run import ExportRun
from imbrace_lake.gateway.models import Page
from imbrace_lake.gateway.paging import Proof, walk
from imbrace_lake.lake.ledger import WINDOW, ConversationEntry, part_entries
from imbrace_lake.lake.publish import Held, Publication
from imbrace_lake.lake.schema import Origin, content_hash, in_order, to_rows, without_repeats
from imbrace_lake.policy import Window

# A list that moves so much that its window is not found where it was a moment ago.
START_TRIES = 5


async def export_window(run: ExportRun, conversation_id: str, window: Window) -> ConversationEntry:
    """Bring the messages of a window into the lake, and claim nothing about the others.

    Raises:
        WalkIncomplete: The window could not be proven whole; nothing was written.
        ImbraceLakeError: As its class says.
    """
    reading = _WindowReading(run, conversation_id, window)
    proof = await reading.walk()
    if not proof.is_complete:
        raise WalkIncomplete(
            f"conversation {conversation_id} is not proven whole in {window}: {proof.reason}"
        )
    rows = reading.rows()
    held = await Held.read(run.lake, run.partitions.of(run.organization_id, conversation_id))
    publication = Publication(run.lake, run.journal, run.organization_id, conversation_id, run.clock())
    published = await publication.publish(rows, held, judged=None)
    times = pc.min_max(rows.column("created_at")).as_py()
    entry = ConversationEntry(
        run_id=run.run_id,
        organization_id=run.organization_id,
        conversation_id=conversation_id,
        status="complete" if published.size_bytes else "unchanged",
        server_count=proof.server_count,
        distinct_messages=rows.num_rows,
        new_messages=published.new.num_rows if published.new is not None else 0,
        edited_messages=sum(table.num_rows for table in published.replaced),
        first_message_at=times["min"],
        last_message_at=times["max"],
        proven_from=window.since or times["min"],
        proven_until=min(window.until or reading.started_at, reading.started_at),
        proof_method=WINDOW,
        is_still=proof.is_still,
        content_hash=content_hash(rows),
        parts=part_entries(published.parts),
        requests=reading.requests,
        started_at=reading.started_at,
        finished_at=run.clock(),
    )
    run.progress.note(entry, published)
    return entry


class _WindowReading:
    """Finds the window in the list, and reads it with a page's rim on either side."""

    def __init__(self, run: ExportRun, conversation_id: str, window: Window) -> None:
        self.started_at = run.clock()
        self.requests = 0
        self._run = run
        self._id = conversation_id
        self._window = window
        self._origin = Origin(run.organization_id, conversation_id, run.run_id, self.started_at)
        self._pages: list[pa.Table] = []

    def rows(self) -> pa.Table:
        """The window's messages, each once, oldest first, with digests."""
        rows = in_order(without_repeats(pa.concat_tables(self._pages)))
        times = rows.column("created_at")
        is_inside = pc.is_valid(times)
        kind = times.type
        if self._window.since is not None:
            is_inside = pc.and_(is_inside, pc.greater_equal(times, pa.scalar(self._window.since, kind)))
        if self._window.until is not None:
            is_inside = pc.and_(is_inside, pc.less(times, pa.scalar(self._window.until, kind)))
        return rows.filter(pc.fill_null(is_inside, False))

    async def walk(self) -> Proof:
        """Read from above the window to below it."""
        start = await self._find_start()
        for _ in range(START_TRIES):
            self._pages = []
            proof = await walk(
                self._fetch,
                self._take,
                limit=self._run.page_size,
                ahead=self._run.pages_ahead,
                is_enough=self._is_below,
                start=start,
            )
            if start == 0 or not proof.is_complete or self._has_newer(self._pages):
                return proof
            # Deletions pulled the window up past the place where it was found.
            start = max(0, start - self._run.page_size)
        raise WalkIncomplete(f"conversation {self._id} moves too fast to find {self._window} in it")

    async def _find_start(self) -> int:
        """A position at which a message newer than the window stands, close above it; 0 if none is.

        Bisects the positions, which are in the order of time: one request halves what is left.
        """
        if self._window.until is None:
            return 0
        page = await self._fetch(0, self._run.page_size)
        lowest, highest = 0, page.whole if page.whole is not None else page.end
        while page.ids:
            newest, oldest = self._span(page)
            if oldest is not None and oldest >= self._window.until:
                lowest = max(lowest, page.end - 1)
            elif newest is not None and newest < self._window.until:
                highest = min(highest, page.skip)
            else:
                return page.skip
            if highest - lowest <= 1:
                break
            page = await self._fetch((lowest + highest) // 2, self._run.page_size)
        return lowest

    def _span(self, page: Page) -> tuple[datetime | None, datetime | None]:
        times = pc.min_max(to_rows(page.items, page.ids, self._origin).column("created_at")).as_py()
        return times["max"], times["min"]

    async def _fetch(self, skip: int, limit: int) -> Page:
        self.requests += 1
        return await self._run.gateway.get_page(self._id, skip=skip, limit=limit)

    def _take(self, page: Page) -> None:
        self._run.look_at_shapes(self._id, page)
        self._pages.append(to_rows(page.items, page.ids, self._origin))

    def _is_below(self, page: Page) -> bool:
        """Whether the page ends below the window."""
        oldest = pc.min(self._pages[-1].column("created_at")).as_py()
        return self._window.since is not None and oldest is not None and oldest < self._window.since

    def _has_newer(self, pages: Sequence[pa.Table]) -> bool:
        """Whether the window's upper edge was read."""
        newest = pc.max(pa.concat_tables(pages).column("created_at")).as_py()
        return self._window.until is None or (newest is not None and newest >= self._window.until)
