"""Walk a newest-first list that moves while it is read, and prove that no message was missed.

The list is read by position (`skip`), and positions shift: a new message moves all others one position down
(one is seen twice), a deletion moves them one up (one is never seen). The *order* of the remaining messages
never changes. So a page with a message that was seen before is contiguous with the pages before it: every
message that existed between that message and the page's last one is in the page. A pass from the top to the
bottom in which each page is tied to the one above like this has seen every message that existed when the
pass began and was not deleted.

Overlapping pages cost requests. If they would cost more than one in twenty, the first pass reads edge to
edge instead and relies on the gateway's count. If the count stayed the same on every page, no
message came twice, and the count matches the messages found, then none is missing: new messages come at the
head, so the messages found existed when the walk began. The first sign of movement ends such a pass, and the
list is read again with overlap.

A list that is longer than the number of messages found may contain messages more than once. Then no pass can
match the count, so the walk reads every position of the list twice (`PositionReading`). If the same positions
repeat messages both times, the list really contains repeats, and the caller may accept it.

A pass never trusts `limit`: positions follow from the pages received.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass, replace

from imbrace_lake.gateway.message_list import DEFAULT_BOUNDS, Bounds, Endless, Fetch, MessageList
from imbrace_lake.gateway.models import Page
from imbrace_lake.gateway.passes import Moved, Pass, PositionReading
from imbrace_lake.gateway.read_ahead import ReadAhead

# The method of a walk that ended at messages that are known already.
REACHED_KNOWN = "joined"
# The method of a walk of a list that contains messages more than once.
REPEATS = "repeats"


@dataclass(frozen=True, slots=True)
class Proof:
    """The result of a walk.

    Attributes:
        is_complete: Every message that existed when the walk began, and was not deleted, was seen.
        reason: Why the walk is not complete; for a complete one empty, or a description of the repeats.
        server_count: The gateway's count, as the head last stated it.
        distinct: The number of different messages seen.
        method: ``overlap`` (pages that share messages), ``count`` (edge to edge, count unchanged),
            ``joined`` (read down to known messages), or ``repeats`` (every position of the list read
            twice, and some positions repeat a message).
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

    A message can be in several pages; the last page has its newest version. The walk keeps 16 bytes per
    message in memory, and twice that if the list has to be read again. The end of the block cancels requests
    that are under way.

    Args:
        fetch: Fetches one page. Called concurrently for pages of a long conversation.
        head: The first page, if the caller has read it already.
        limit: The number of messages to request at a time.
        read_ahead: The number of pages of a long conversation that are under way at once.
        start: The position of the first page. From any position but 0 the proof covers only the messages
            from there on, and is not compared with the count.
        bounds: The bounds beyond which a walk ends as incomplete.
        accept_repeats: Whether a list that repeats messages, at the same positions in every reading, counts
            as complete.
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
        # The count covers the whole list, so it proves nothing about a part.
        self._pass = Pass(self._list, self._ahead, start, relies_on_count=not start)
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
        """The proof, once all pages have been yielded."""
        if self._proof is None:
            raise RuntimeError("the walk has not ended")
        return self._proof

    def stop(self) -> None:
        """End the walk after the page that was yielded last, because all messages below are known.

        The walk may begin again if a closing look at the head shows that the list moved. It does not stop
        while it checks a list for repeats, which takes all positions.
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
                self._pass = Pass(self._list, self._ahead, self._start, relies_on_count=False)
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
            # If this ended the check for repeats, the earlier proof remains valid.
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
        if self._list.distinct() != listed:
            # A message was deleted during the walk, so the difference from the count is not the repeats.
            return proof
        proof = replace(self._new_proof(""), method="overlap", did_not_move=True)
        if not missing:
            return proof
        reason = (
            f"{missing:,} of the {count:,} positions in the gateway's list repeat a message, the same in two"
            f" readings, so its count cannot match the {listed:,} different messages"
        )
        return replace(proof, is_complete=self._accept_repeats, reason=reason, method=REPEATS)
