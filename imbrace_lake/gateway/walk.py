"""Walk a newest-first list that moves while it is read, and prove that nothing was missed.

The list is read by position (`skip`), and positions shift: a message that arrives pushes everything
one down (seen again), a deleted one pulls everything one up (never seen). What never changes is the
*order* of the messages that stay. So a page that holds a message already seen is contiguous with
what was read before, whatever happened in between: every message that existed between that one and
the page's last is in the page. A pass from the top to the bottom whose pages all hang together like
that has met every message that existed when it began and was not deleted.

Overlapping pages cost requests, and where they would cost more than one in twenty the walk reads
edge to edge instead and leans on the gateway's count: a list whose count stayed the same on every
page, of which no message came twice, and of which exactly that many were found, was found whole
(arrivals come at the head, so what is found was there when the walk began). The first sign of
movement ends such a pass, and the list is walked again with overlap.

A list that is longer than what was found in it may contain messages more than once, for ever. Then no
pass can agree with the count, so the walk reads every position of the list twice. If the same positions
repeat messages both times, that is what the list is, and the caller may accept it.

A single pass never trusts `limit`: positions follow from what came.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from hashlib import blake2b

from imbrace_lake.gateway.id_set import IdSet
from imbrace_lake.gateway.models import Page

Fetch = Callable[[int, int], Awaitable[Page]]
"""`(skip, limit)` to a page."""

OVERLAP = 2
EXTRA_SHARE = 0.05
# From here on a closing look at the head is within the share, so even edge-to-edge pages may be
# read side by side.
LONG_PAGES = 20
# A longer page is not read before its turn, nor kept for it: eight for each conversation would not fit
# into memory.
MOST_AHEAD_BYTES = 1 << 20
# So many pages in a row that bring nothing older, though the gateway says that there is more.
MOST_IDLE = 20
# The method of a walk of a list that contains messages more than once.
REPEATS = "repeats"


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much is read of one conversation at most, so that a list without end ends.

    What the gateway counts at first bounds the walk already: it sends at most 8 requests for each page
    that there was to read, and 40 more. These bounds apply beside that.

    Attributes:
        messages: Most messages of a conversation.
        uncounted_messages: Most messages of a conversation whose count the gateway does not state.
    """

    messages: int = 10_000_000
    uncounted_messages: int = 100_000


DEFAULT_BOUNDS = Bounds()


@dataclass(frozen=True, slots=True)
class Proof:
    """What a walk can say about a conversation.

    Attributes:
        is_complete: Every message that existed when the walk began, and was not deleted, was seen.
        reason: Why not; empty when complete, except that it describes a list with repeats.
        server_count: The gateway's own count, on the last look at the head.
        distinct: How many different messages were seen.
        listed: How many of them the last pass saw: `distinct` less what was deleted before it.
        requests: Pages asked for.
        method: ``overlap`` (pages that hang together), ``count`` (edge to edge, count unchanged),
            ``joined`` (read until enough was read), or ``repeats`` (every position of the list read
            twice, and some of them repeat a message).
        did_not_move: The list did not move while it was read.
    """

    is_complete: bool
    reason: str
    server_count: int | None
    distinct: int
    listed: int
    requests: int
    method: str
    did_not_move: bool


class _Moved(Exception):
    """The list moved during a pass that cannot tolerate it."""


class _Endless(Exception):
    """The pass would not end; the argument says why."""


async def walk(
    fetch: Fetch,
    accept: Callable[[Page], None],
    *,
    limit: int = 100,
    read_ahead: int = 8,
    stop_at: Callable[[Page], bool] | None = None,
    start: int = 0,
    bounds: Bounds = DEFAULT_BOUNDS,
    accept_repeats: bool = False,
) -> Proof:
    """Read a conversation from its newest message to its oldest, or until enough was read.

    Args:
        fetch: Gets one page. Called concurrently for pages of a long conversation.
        accept: Takes each page that belongs to the walk. A message can be in several; the page
            that came last has its newest version.
        limit: How many messages to ask for at a time.
        read_ahead: How many pages of a long conversation are under way at once.
        stop_at: Asked after each page that belongs to the walk; True ends it there.
        start: The position to begin at. From any but 0 the proof is of what lies between that page
            and the last one, and is compared with no count.
        bounds: Where a walk of a list without end ends, as incomplete.
        accept_repeats: A list that contains messages more than once, at the same positions each time it
            is read, is complete.

    Returns:
        The proof. Memory is 16 bytes a message, and twice that if the list has to be walked again.
    """
    walker = _Walker(fetch, accept, limit, read_ahead, stop_at or _never_stop, start, bounds, accept_repeats)
    try:
        return await walker.run()
    finally:
        await walker.cancel_read_ahead()


def _never_stop(page: Page) -> bool:
    return False


class _Walker:
    def __init__(
        self,
        fetch: Fetch,
        accept: Callable[[Page], None],
        limit: int,
        read_ahead: int,
        stop_at: Callable[[Page], bool],
        start: int,
        bounds: Bounds,
        accept_repeats: bool,
    ) -> None:
        self._fetch = fetch
        self._accept = accept
        self._limit = limit
        self._max_read_ahead = read_ahead
        self._stop_at = stop_at
        self._start = start
        self._bounds = bounds
        self._accept_repeats = accept_repeats
        self._earlier = IdSet()  # what was met before this pass
        self._pass = IdSet()  # what hangs together below the head of this pass
        self._size = 0  # how long a page is that the server really gives
        self._requests = 0
        self._budget = 40
        self._pending: dict[int, asyncio.Task[Page | None]] = {}
        self._total_count: int | None = None
        self._first_total_count: int | None = None
        self._did_not_move = True
        self._is_careful = start > 0  # the count says nothing of a part of the list
        self._reached_known = False
        self._needs_closing = False
        self._oldest_id = ""  # the oldest message of this pass
        self._edges = 0  # pages of this pass that only the count ties to the one before
        self._read_ahead = read_ahead

    # -- one walk ---------------------------------------------------------------------------------

    async def run(self) -> Proof:
        try:
            try:
                await self._pass_down()
            except _Moved:
                await self._pass_carefully()
            if self._is_unproven():
                await self._pass_carefully()
            verdict = self._verdict()
            return await self._detect_repeats(verdict) if self._missing() > 0 else verdict
        except _Moved:
            return self._proof("the list moved, and its pages hold too little to be tied together")
        except _Endless as exc:
            return self._proof(str(exc))

    async def _pass_carefully(self) -> None:
        self._is_careful = True
        await self.cancel_read_ahead()
        await self._pass_down()

    def _is_unproven(self) -> bool:
        return not self._is_careful and self._missing() != 0

    def _missing(self) -> int:
        """Messages that the gateway counts and the pass did not see; negative the other way round."""
        if self._total_count is None or self._reached_known or self._start:
            return 0
        return self._total_count - len(self._pass)

    def _verdict(self) -> Proof:
        missing = self._missing()
        if missing > 0:
            return self._proof(
                f"the gateway counts {self._total_count} messages, but lists {len(self._pass)}"
            )
        if missing < 0 and self._did_not_move:
            return self._proof(
                f"the gateway lists {len(self._pass)} messages, but counts {self._total_count}"
            )
        return self._proof("")

    def _proof(self, reason: str) -> Proof:
        method = "joined" if self._reached_known else "count" if self._edges else "overlap"
        return Proof(
            is_complete=not reason,
            reason=reason,
            server_count=self._total_count,
            distinct=self._distinct(),
            listed=len(self._pass),
            requests=self._requests,
            method=method,
            did_not_move=self._did_not_move,
        )

    # -- repeats ----------------------------------------------------------------------------------

    async def _detect_repeats(self, verdict: Proof) -> Proof:
        """Find out whether a list is shorter than its count because some of its positions repeat messages.

        Args:
            verdict: What the walk has come to; returned if it is not so, or cannot be shown.
        """
        try:
            repeats = await self._read_positions()
            is_stable = await self._read_positions() == repeats
        except (_Moved, _Endless):
            return replace(verdict, requests=self._requests)
        if not is_stable or self._distinct() != len(self._pass):
            return replace(verdict, requests=self._requests)
        if not self._missing():
            return self._verdict()
        reason = (
            f"{self._missing():,} of the {self._total_count:,} positions in the gateway's list repeat a"
            f" message, the same in two readings, so its count cannot match the {len(self._pass):,} different"
            " messages"
        )
        return replace(self._proof(reason), is_complete=self._accept_repeats, method=REPEATS)

    async def _read_positions(self) -> bytes:
        """Read every position of the list in order; each page begins with the last message of the one above.

        Returns:
            A digest of the positions that repeat a message. They count from the end of the list, where
            arrivals do not move them.

        Raises:
            _Moved: The list moved meanwhile, or its pages are too short to show that it did not.
        """
        self._restart_pass()
        self._did_not_move, self._edges = True, 0
        repeats = blake2b(digest_size=16)
        last: list[str] = []
        page = await self._fetch_page(0)
        total_count = page.total_count
        while True:
            added = page.ids[len(last) :]
            if (
                total_count is None
                or page.total_count != total_count
                or page.ids[: len(last)] != last
                or not added
            ):
                raise _Moved
            unseen = {*self._pass.difference(added)}
            for position, one in enumerate(added, page.next_skip - len(added)):
                if one in unseen:
                    unseen.remove(one)
                else:
                    repeats.update(f"{total_count - position} {one}\0".encode())
            self._take(page)
            if page.next_skip >= total_count:
                break
            last = page.ids[1:][-1:]
            if not last:
                raise _Moved
            page = await self._fetch_page(page.next_skip - 1)
        if page.has_more or (page.has_more is None and (await self._fetch_page(page.next_skip)).ids):
            raise _Moved
        return repeats.digest()

    def _distinct(self) -> int:
        self._earlier.update(self._pass)
        return len(self._earlier)

    def _restart_pass(self) -> None:
        self._earlier.update(self._pass)
        self._pass = IdSet()

    # -- one pass ---------------------------------------------------------------------------------

    async def _pass_down(self) -> None:
        """Read from the head to the bottom, then the head again if the list moved."""
        self._did_not_move = True
        self._reached_known = False
        self._needs_closing = False
        self._edges = 0
        self._restart_pass()
        head = await self._fetch_page(self._start)
        self._take(head)
        await self._descend(head, IdSet())
        if self._start:
            return
        if self._needs_closing:
            await self._close(head)
        if not self._did_not_move and not self._reached_known:
            await self._read_head()

    async def _close(self, first: Page) -> None:
        """Pages read side by side and edge to edge prove nothing unless nothing arrived meanwhile.

        One that came late may hold nothing but arrivals, as many as were deleted: the count stays the
        same, no message comes twice, and those that stood there are lost.
        """
        if not self._did_not_move:
            raise _Moved
        head = await self._fetch_page(0)
        if head.ids != first.ids or head.total_count != first.total_count:
            raise _Moved

    async def _read_head(self) -> None:
        """Add what arrived since the pass began, so that it can be compared with the current count."""
        older = self._pass
        head = await self._fetch_page(0)
        if older.isdisjoint(head.ids):
            # More arrived than a page holds: a new head that reaches down to the old one.
            self._restart_pass()
            self._read_ahead = self._max_read_ahead = 1
        self._take(head)
        await self._descend(head, older)
        if self._pass is not older:
            self._pass.update(older)

    async def _descend(self, page: Page, stop: IdSet) -> None:
        """Read on below an accepted page until the bottom, a message of `stop`, or enough."""
        idle = 0
        while not self._ends_here(page, stop) and not await self._is_bottom(page, idle):
            overlap = self._overlap(page)
            oldest_id = self._oldest_id
            last = page
            page = await self._fetch_ahead(page, overlap)
            if self._is_contiguous(last, page, overlap):
                if len(page.ids) == self._size:
                    self._read_ahead = min(self._max_read_ahead, self._read_ahead + 1)
                self._take(page)
            else:
                page = await self._step_back(page)
            # A page that ends where the last one ended brought nothing older.
            idle = idle + 1 if page.ids and page.ids[-1] == oldest_id else 0
        await self.cancel_read_ahead()

    def _ends_here(self, page: Page, stop: IdSet) -> bool:
        if self._stop_at(page):
            self._reached_known = True
        return self._reached_known or not stop.isdisjoint(page.ids)

    async def _is_bottom(self, page: Page, idle: int) -> bool:
        """Whether the page reaches the list's end, by all that the gateway says of it.

        Where `has_more` and the count contradict each other, or neither is given, only asking
        further decides: `idle` pages in a row ended with the oldest message known, and nothing lies
        below it. A full page that does so is no sign of it, for arrivals may just have pushed the
        list down by what was new.
        """
        if not page.ids and page.skip == 0:
            return True
        if idle > MOST_IDLE:
            raise _Endless("the gateway says that there are older messages, but lists none")
        counted = None
        if page.total_count is not None and (page.count_matches or page.next_skip >= page.total_count):
            counted = page.next_skip >= page.total_count
        if page.has_more is None and counted is not None:
            return counted
        if page.has_more is False and counted is not False:
            return True
        if page.has_more and not counted:
            return False
        return idle >= 2 and len(page.ids) < self._size and not (await self._fetch_page(page.next_skip)).ids

    def _is_contiguous(self, last: Page, page: Page, overlap: int) -> bool:
        shared = self._pass.count(page.ids)
        is_same_count = page.total_count == last.total_count
        if shared != min(overlap, len(page.ids)) or not is_same_count:
            self._did_not_move = False
        if overlap:
            return shared > 0
        if not self._did_not_move or not page.ids or page.total_count is None:
            raise _Moved
        self._edges += 1
        return True

    async def _step_back(self, page: Page) -> Page:
        """The list was pulled up past the overlap: go up until a page holds a message of this pass."""
        self._did_not_move = False
        self._read_ahead = max(1, self._read_ahead // 2)
        await self.cancel_read_ahead()
        back = max(1, self._size // 2)
        while True:
            skip = max(0, page.skip - back)
            back *= 2
            page = await self._fetch_page(skip)
            if not self._pass.isdisjoint(page.ids):
                self._take(page)
                return page
            if skip == 0:
                # Nothing of this pass is near the head any more, so the pass begins here.
                self._restart_pass()
                self._take(page)
                return page

    def _take(self, page: Page) -> None:
        self._accept(page)
        brings_older = bool(page.ids) and page.ids[-1] not in self._pass
        if brings_older:
            self._oldest_id = page.ids[-1]
        if brings_older and (page.has_more or page.next_skip < (page.total_count or 0)):
            # With others below it, it is as long as the server gives just now.
            self._size = len(page.ids)
        self._pass.add(page.ids)
        if page.skip == 0 or self._total_count is None:
            self._total_count = page.total_count
        self._size = max(self._size, len(page.ids))
        if self._requests == 1:
            self._first_total_count = page.total_count
        self._bound()

    def _bound(self) -> None:
        """Bound the walk by what there was to read when it began, or a list without end would never end."""
        seen, first = len(self._pass), self._first_total_count
        pages = math.ceil((seen if first is None else first) / max(1, self._size))
        self._budget = max(self._budget, 40 + 8 * pages)
        most, setting, without = self._bounds.messages, "IMBRACE_MAX_MESSAGES", ""
        if first is None and self._bounds.uncounted_messages < most:
            most, setting = self._bounds.uncounted_messages, "IMBRACE_MAX_UNCOUNTED_MESSAGES"
            without = " without a count"
        if seen > most:
            raise _Endless(
                f"the gateway lists more than {most:,} messages{without}: set {setting} to more if the"
                " conversation is that long"
            )

    # -- requests ---------------------------------------------------------------------------------

    def _overlap(self, page: Page) -> int:
        """How many messages the next page shares with this one: as many as come nearly free."""
        size = max(1, self._size)
        most = min(OVERLAP, size - 1, page.next_skip)
        if self._is_careful or page.total_count is None or not page.count_matches:
            return most
        fewest = math.ceil(page.total_count / size)
        for overlap in range(most, 0, -1):
            if 1 + math.ceil((page.total_count - size) / (size - overlap)) <= fewest * (1 + EXTRA_SHARE):
                return overlap
        return 0

    async def _fetch_ahead(self, page: Page, overlap: int) -> Page:
        """The page below this one, with further ones set under way where that is safe."""
        skip = page.next_skip - overlap
        if self._pending and skip not in self._pending:
            self._read_ahead = max(1, self._read_ahead // 2)
            await self.cancel_read_ahead()
        stride = self._size - overlap
        total_count = page.total_count or 0
        is_long = math.ceil(total_count / max(1, self._size)) >= LONG_PAGES
        if stride > 0 and (is_long or (overlap and not self._is_careful)):
            breadth = self._read_ahead if page.size_bytes <= MOST_AHEAD_BYTES else 1
            for position in range(skip, min(total_count - overlap, skip + stride * breadth), stride):
                if position not in self._pending:
                    self._pending[position] = asyncio.ensure_future(self._ask_ahead_of(skip, position))
        waiting = self._pending.pop(skip, None)
        if waiting is not None:
            self._needs_closing = self._needs_closing or overlap == 0
            if (found := await waiting) is not None:
                return found
        return await self._fetch_page(skip)

    async def _ask_ahead_of(self, due: int, skip: int) -> Page | None:
        """The page at `skip`, asked for when the one at `due` is; None if it is too long to be kept."""
        page = await self._fetch_page(skip)
        return page if skip == due or page.size_bytes <= MOST_AHEAD_BYTES else None

    async def _fetch_page(self, skip: int) -> Page:
        self._requests += 1
        if self._requests > self._budget:
            counted = "it gave no count"
            if self._first_total_count is not None:
                first, last = self._first_total_count, self._total_count or 0
                counted = f"it counted {first:,} messages at first, then {last:,}"
            raise _Endless(
                f"the gateway's list did not end within {self._budget:,} requests: {counted}, and listed"
                f" {self._distinct():,}"
            )
        return await self._fetch(skip, self._limit)

    async def cancel_read_ahead(self) -> None:
        """Give up the pages under way: the list is no longer where they were aimed."""
        tasks = list(self._pending.values())
        self._pending.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
