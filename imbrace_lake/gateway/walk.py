"""Walk a newest-first list that moves while it is read, and prove that no message was missed.

The list is read by position (`skip`), and positions shift: a message that arrives pushes everything
one down (seen again), a deleted one pulls everything one up (never seen). What never changes is the
*order* of the messages that stay. So a page that contains a message already seen is contiguous with
what was read before, whatever happened in between: every message that existed between that one and
the page's last is in the page. A pass from the top to the bottom whose pages are all tied together
like that has seen every message that existed when it began and was not deleted (`OverlapPass`).

Overlapping pages cost requests. Where they would cost more than one in twenty, the first pass reads
edge to edge instead and relies on the gateway's count (`CountPass`). If the count stayed the same on
every page, no message came twice, and exactly that many were found, then all were found: arrivals
come at the head, so what was found was there when the walk began. The first sign of movement ends
such a pass, and the list is read again with overlap.

A list that is longer than what was found in it may contain messages more than once. Then no pass can
agree with the count, so the walk reads every position of the list twice (`PositionReading`). If the
same positions repeat messages both times, that is what the list contains, and the caller may accept it.

A single pass never trusts `limit`: positions follow from the pages received.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass, replace

from imbrace_lake.gateway.message_list import DEFAULT_BOUNDS, Bounds, Endless, Fetch, MessageList
from imbrace_lake.gateway.models import Page
from imbrace_lake.gateway.passes import CountPass, Moved, OverlapPass, Pass
from imbrace_lake.gateway.read_ahead import ReadAhead
from imbrace_lake.gateway.repeats import PositionReading

# The method of a walk that ended at what is known already.
REACHED_KNOWN = "joined"
# The method of a walk of a list that contains messages more than once.
REPEATS = "repeats"


@dataclass(frozen=True, slots=True)
class Proof:
    """The result of a walk.

    Attributes:
        is_complete: Every message that existed when the walk began, and was not deleted, was seen.
        reason: Why not; empty when complete, except that it describes a list with repeats.
        server_count: The gateway's own count, on the last look at the head.
        distinct: The number of different messages that were seen.
        method: ``overlap`` (pages that share messages), ``count`` (edge to edge, count unchanged),
            ``joined`` (read down to what is known), or ``repeats`` (every position of the list read
            twice, and some of them repeat a message).
        did_not_move: The list did not move while it was read.
    """

    is_complete: bool
    reason: str
    server_count: int | None
    distinct: int
    method: str
    did_not_move: bool


class Walk:
    """Yields the pages of a conversation, from its newest message to its oldest, and proves it complete.

    .. code-block:: python

        async with Walk(fetch) as walk:
            async for page in walk:
                ...
        proof = walk.proof

    A message can be in several pages; the page that comes last has its newest version. Memory is 16 bytes
    per message, and twice that if the list has to be read again. The end of the block cancels requests that
    are under way.

    Args:
        fetch: Fetches one page. Called concurrently for pages of a long conversation.
        head: The first page, if the caller has read it already.
        limit: The number of messages to request at a time.
        read_ahead: The number of pages of a long conversation that are under way at once.
        start: The position to begin at. From any but 0 the proof covers what lies between that page
            and the last one, and is compared with no count.
        bounds: Where a walk of a list without end ends, as incomplete.
        accept_repeats: A list that contains messages more than once, at the same positions each time it
            is read, is complete.
    """

    def __init__(
        self,
        fetch: Fetch,
        *,
        head: Page | None = None,
        limit: int = 100,
        read_ahead: int = 8,
        start: int = 0,
        bounds: Bounds = DEFAULT_BOUNDS,
        accept_repeats: bool = False,
    ) -> None:
        self._list = MessageList(fetch, limit, bounds, head)
        self._ahead = ReadAhead(self._list.fetch, read_ahead)
        self._start = start
        self._accept_repeats = accept_repeats
        # The count covers the whole list, and proves nothing about a part of it.
        self._pass: Pass = (OverlapPass if start else CountPass)(self._list, self._ahead, start)
        self._proof: Proof | None = None
        self._pages = self._read()

    async def __aenter__(self) -> Walk:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._pages.aclose()
        await self._ahead.drop()

    def __aiter__(self) -> AsyncIterator[Page]:
        return self._pages

    @property
    def proof(self) -> Proof:
        """The proof; there is one when all pages have been yielded."""
        if self._proof is None:
            raise RuntimeError("the walk has not ended")
        return self._proof

    def stop(self) -> None:
        """Read no further than the page that was yielded last: everything below it is known.

        The walk may begin again if a closing look at the head shows that the list moved. It does not stop
        while it checks a list for repeats, which takes all of its positions.
        """
        if self._proof is None:
            self._pass.is_stopped = True

    async def _read(self) -> AsyncGenerator[Page, None]:
        try:
            try:
                while (page := await self._pass.next_page()) is not None:
                    yield page
                is_proven = self._missing() == 0
            except Moved:
                is_proven = False
            if not is_proven:
                await self._ahead.drop()
                self._pass = OverlapPass(self._list, self._ahead, self._start)
                while (page := await self._pass.next_page()) is not None:
                    yield page
            self._proof = self._compare_with_count()
            if self._missing() > 0:
                readings = PositionReading(self._list), PositionReading(self._list)
                for reading in readings:
                    while (page := await reading.next_page()) is not None:
                        yield page
                if readings[0].digest() == readings[1].digest():
                    self._proof = self._describe_repeats(self._proof)
        except (Moved, Endless) as exc:
            # What ends the check for repeats changes nothing about the proof.
            self._proof = self._proof or self._new_proof(str(exc))

    def _missing(self) -> int:
        """Return how many more messages the gateway counts than the pass saw; negative if it counts fewer."""
        if self._list.total_count is None or self._pass.is_stopped or self._start:
            return 0
        return self._list.total_count - len(self._list.ids)

    def _compare_with_count(self) -> Proof:
        missing, listed, count = self._missing(), len(self._list.ids), self._list.total_count
        if missing > 0:
            return self._new_proof(f"the gateway counts {count} messages, but lists {listed}")
        if missing < 0 and self._pass.did_not_move:
            return self._new_proof(f"the gateway lists {listed} messages, but counts {count}")
        return self._new_proof("")

    def _new_proof(self, reason: str) -> Proof:
        ties = "count" if self._pass.count_ties else "overlap"
        return Proof(
            is_complete=not reason,
            reason=reason,
            server_count=self._list.total_count,
            distinct=self._list.distinct(),
            method=REACHED_KNOWN if self._pass.is_stopped else ties,
            did_not_move=self._pass.did_not_move,
        )

    def _describe_repeats(self, proof: Proof) -> Proof:
        """Return the proof of a list whose positions were read twice, with equal results."""
        missing, listed, count = self._missing(), len(self._list.ids), self._list.total_count
        distinct = self._list.distinct()
        if distinct != listed:
            # A message was deleted during the walk, so the count less the messages is not the repeats.
            return proof
        proof = Proof(
            is_complete=True,
            reason="",
            server_count=count,
            distinct=distinct,
            method="overlap",
            did_not_move=True,
        )
        if not missing:
            return proof
        reason = (
            f"{missing:,} of the {count:,} positions in the gateway's list repeat a message, the same in two"
            f" readings, so its count cannot match the {listed:,} different messages"
        )
        return replace(proof, is_complete=self._accept_repeats, reason=reason, method=REPEATS)
