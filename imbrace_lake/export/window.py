"""Export a window of time of one conversation, without reading down to it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from functools import partial

import pyarrow as pa
import pyarrow.compute as pc

from imbrace_lake.errors import RepeatedMessages, WalkIncomplete
from imbrace_lake.export.run import RunContext
from imbrace_lake.gateway.models import Page
from imbrace_lake.gateway.walk import REPEATS, Proof, Walk
from imbrace_lake.lake.claim import PartClaim
from imbrace_lake.lake.lake import Part
from imbrace_lake.lake.ledger_schema import WINDOW, ConversationEntry
from imbrace_lake.lake.memory import Reservation
from imbrace_lake.lake.publish import in_thread_unless, publish
from imbrace_lake.lake.rows import SortBuffer
from imbrace_lake.lake.schema import Origin, rows_of_page
from imbrace_lake.lake.snapshot import PartitionSnapshot
from imbrace_lake.policy import Window
from imbrace_lake.printable import printable

# How often to look for the window again because the list moved.
START_TRIES = 5


async def export_window(
    run: RunContext, conversation_id: str, window: Window, parts: Sequence[Part], reservation: Reservation
) -> ConversationEntry:
    """Export the messages of a window, without a statement about others.

    Raises:
        WalkIncomplete: The window could not be proven complete; nothing was written.
        ImbraceLakeError: The gateway or the store failed.
    """
    window_reader = _WindowReader(run, conversation_id, window, SortBuffer(reservation))
    proof = await window_reader.walk()
    if not proof.is_complete:
        raise incomplete(f"conversation {printable(conversation_id)} is not proven complete {window}", proof)
    buffer = window_reader.buffer
    rows = await in_thread_unless(not buffer.is_spilled, buffer.rows, window_reader.are_inside)
    snapshot = await PartitionSnapshot.read(run.lake, parts, reservation)
    claim = PartClaim(
        organization_id=run.organization_id,
        conversation_id=conversation_id,
        run_id=run.run_id,
        status="complete",
        proof_method=WINDOW,
        server_count=proof.server_count,
    )
    with run.progress.write():
        published = await publish(
            run.lake, run.journal, claim, rows, snapshot,
            is_full_walk=False, now=run.clock(), reservation=reservation,
        )  # fmt: skip
    entry = ConversationEntry(
        run_id=run.run_id,
        organization_id=run.organization_id,
        conversation_id=conversation_id,
        status="complete" if published.size_bytes else "unchanged",
        server_count=proof.server_count,
        distinct_messages=rows.num_rows,
        reason=proof.reason or None,
        new_messages=published.new.num_rows if published.new is not None else 0,
        edited_messages=published.edited,
        first_message_at=rows.first_at,
        last_message_at=rows.last_at,
        proven_from=window.since or rows.first_at,
        proven_until=min(window.until or window_reader.started_at, window_reader.started_at),
        proof_method=WINDOW,
        is_still=proof.did_not_move,
        content_hash=rows.content_hash,
        parts=published.parts,
        requests=run.accounts.pages_requested[conversation_id],
        started_at=window_reader.started_at,
        finished_at=run.clock(),
    )
    run.progress.note(entry, published)
    return entry


def incomplete(what: str, proof: Proof) -> WalkIncomplete:
    """Return the error for an incomplete walk; for repeats it describes how to accept them."""
    if proof.method == REPEATS:
        option = "--accept-repeats (in the form of export: *Accept repeated messages*)"
        return RepeatedMessages(f"{what}: {proof.reason}; export the list as it is with {option}")
    return WalkIncomplete(f"{what}: {proof.reason}")


class _WindowReader:
    """Finds the window in the list, and reads it with up to a page more on either side."""

    def __init__(self, run: RunContext, conversation_id: str, window: Window, buffer: SortBuffer) -> None:
        self.started_at = run.clock()
        self._run = run
        self._id = conversation_id
        self._fetch = partial(run.get_page, conversation_id)
        self._window = window
        self._origin = Origin(run.organization_id, conversation_id, run.run_id, self.started_at)
        self.buffer = buffer
        self._newest: datetime | None = None

    def are_inside(self, rows: pa.Table) -> pa.ChunkedArray:
        """Return for each row whether its message is in the window."""
        times = rows.column("created_at")
        is_inside = pc.is_valid(times)
        kind = times.type
        if self._window.since is not None:
            is_inside = pc.and_(is_inside, pc.greater_equal(times, pa.scalar(self._window.since, kind)))
        if self._window.until is not None:
            is_inside = pc.and_(is_inside, pc.less(times, pa.scalar(self._window.until, kind)))
        return pc.fill_null(is_inside, False)

    async def walk(self) -> Proof:
        """Walk from above the window to below it."""
        start, until = await self._find_start(), self._window.until
        for _ in range(START_TRIES):
            self.buffer.clear()
            self._newest = None
            async with Walk(
                self._fetch,
                limit=self._run.page_size,
                read_ahead=self._run.pages_ahead,
                start=start,
                bounds=self._run.bounds,
                accept_repeats=self._run.accept_repeats,
            ) as walk:
                async for page in walk:
                    if self._add(page):
                        walk.stop()
            reaches_above = until is None or (self._newest is not None and self._newest >= until)
            if start == 0 or not walk.proof.is_complete or reaches_above:
                return walk.proof
            # Deletions moved the window up past its position.
            start = max(0, start - self._run.page_size)
        raise WalkIncomplete(
            f"conversation {printable(self._id)} moves too fast to find {self._window} in it"
        )

    async def _find_start(self) -> int:
        """Return the position of a message newer than the window, close above it; 0 if there is none.

        Bisects the positions, which are in the order of time, apart from single messages: a page is above the
        window if all of its messages are.
        """
        if self._window.until is None:
            return 0
        page = await self._fetch(0, self._run.page_size)
        lowest, highest = 0, page.total_count if page.total_count is not None else page.next_skip
        while page.ids:
            _, oldest = _span_of(rows_of_page(page, self._origin))
            if oldest is not None and oldest >= self._window.until:
                lowest = max(lowest, page.next_skip - 1)
            else:
                highest = min(highest, page.skip)
            if highest - lowest <= self._run.page_size:
                break
            page = await self._fetch((lowest + highest) // 2, self._run.page_size)
        return lowest

    def _add(self, page: Page) -> bool:
        """Add a page, and return whether all of it is below the window.

        Its last message alone could be one with a wrong time.
        """
        self._run.observe_shapes(self._id, page)
        rows = rows_of_page(page, self._origin)
        newest, _ = _span_of(rows)
        self._newest = max(filter(None, (newest, self._newest)), default=None)
        self.buffer.add(rows)
        page.items.clear()  # the walk needs the ids only
        since = self._window.since
        return since is not None and newest is not None and newest < since


def _span_of(rows: pa.Table) -> tuple[datetime | None, datetime | None]:
    """Return the times of the newest and of the oldest message."""
    times = pc.min_max(rows.column("created_at")).as_py()
    return times["max"], times["min"]
