"""One pass over a list that may move meanwhile: from its newest message to its oldest, without a gap.

There are two ways to tie a page to the pages above it. By overlap: the page shares a message with them. By
the count: the page begins where the last one ended, shares no message, and the list has not moved.
`CountPass` and `OverlapPass` differ in which of the two they prefer.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

from imbrace_lake.gateway.id_set import IdSet
from imbrace_lake.gateway.message_list import Endless, MessageList
from imbrace_lake.gateway.models import Page
from imbrace_lake.gateway.read_ahead import ReadAhead

# The number of messages that a page shares with the one above it.
OVERLAP = 2
# The additional requests that the overlap may cost if the count can replace it.
EXTRA_SHARE = 0.05
# From this length on, a closing look at the head costs less than that, so even pages tied by the count may be
# read ahead.
LONG_PAGES = 20
# The most pages in a row without an older message, though the gateway states that there are more.
MOST_IDLE = 20


class Moved(Exception):
    """The list moved, and nothing ties a page to the pages above it."""

    def __str__(self) -> str:
        return "the list moved, and its pages are too short to be tied together"


class Pass(ABC):
    """Reads the pages of one pass, and then those of a last look at the head if the list moved.

    Attributes:
        did_not_move: The list did not move so far.
        is_stopped: Set this to end the pass after the last page, because all messages below are known.
        count_ties: The number of pages that only the count ties to the one above.
    """

    def __init__(self, messages: MessageList, read_ahead: ReadAhead, start: int) -> None:
        self.did_not_move = True
        self.is_stopped = False
        self.count_ties = 0
        self._list = messages
        self._ahead = read_ahead
        self._start = start
        self._head: Page | None = None
        self._last: Page | None = None
        self._idle = 0  # pages in a row without an older message
        self._must_close = False
        self._older: IdSet | None = None  # what the pass had seen before its last look at the head

    async def next_page(self) -> Page | None:
        """Return the next page; None after the last one.

        Raises:
            Moved: Nothing ties it to the pages above.
            Endless: The list does not end within its bounds.
        """
        # Not `__anext__`: a `StopAsyncIteration` from a request would then look like the end of the list.
        page = await self._fetch_next()
        if page is not None:
            self._list.add(page)
            self._last = page
        return page

    async def _fetch_next(self) -> Page | None:
        last, older = self._last, self._older
        if last is None:
            self._list.begin_pass()
            self._head = await self._list.fetch_first(self._start)
            return self._head
        has_met = older is not None and not older.isdisjoint(last.ids)
        if not self.is_stopped and not has_met and not await self._is_bottom(last):
            return await self._fetch_below(last)
        await self._ahead.drop()
        if older is None and self._start == 0:
            if self._must_close:
                await self._close()
            return None if self.did_not_move or self.is_stopped else await self._fetch_new_head()
        if older is not None and older is not self._list.ids:
            self._list.ids.update(older)
        return None

    async def _fetch_below(self, last: Page) -> Page:
        """Fetch the page below the last one, and tie it to what was seen."""
        overlap = self._overlap(last)
        page = await self._fetch_ahead(last, overlap)
        shared = self._list.ids.count(page.ids)
        if shared != min(overlap, len(page.ids)) or page.total_count != last.total_count:
            self.did_not_move = False
        if overlap == 0:
            if not self.did_not_move or not page.ids or page.total_count is None:
                raise Moved
            self.count_ties += 1
        if overlap and not shared:
            page = await self._step_back(page)
        elif len(page.ids) == self._list.page_size:
            self._ahead.widen()
        # A page that ends with the same message as the last one brought nothing older.
        self._idle = self._idle + 1 if page.ids and page.ids[-1] == self._list.oldest_id else 0
        return page

    async def _fetch_ahead(self, last: Page, overlap: int) -> Page:
        """Fetch the page below, and read further ones ahead if that is safe."""
        skip = last.next_skip - overlap
        await self._ahead.expect(skip)
        stride = self._list.page_size - overlap
        total_count = last.total_count or 0
        is_long = math.ceil(total_count / max(1, self._list.page_size)) >= LONG_PAGES
        if stride > 0 and (is_long or self._reads_ahead(overlap)):
            self._ahead.aim(range(skip, total_count - overlap, stride), last)
        if overlap == 0 and skip in self._ahead:
            self._must_close = True
        return await self._ahead.get(skip)

    async def _step_back(self, page: Page) -> Page:
        """Deletions moved the list up past the overlap: go up until a page shares a message with the pass."""
        self.did_not_move = False
        await self._ahead.narrow()
        back = max(1, self._list.page_size // 2)
        while True:
            page = await self._list.fetch(max(0, page.skip - back))
            if not self._list.ids.isdisjoint(page.ids):
                return page
            if page.skip == 0:
                # No message of this pass is near the head any more, so the pass begins here.
                self._list.begin_pass()
                return page
            back *= 2

    async def _close(self) -> None:
        """Look at the head again, because pages that were read ahead are not proven by the count alone.

        A late page may contain only new messages, as many as were deleted: the count stays the same, no
        message comes twice, and older messages are missed.
        """
        first = self._head
        head = await self._list.fetch(0) if self.did_not_move else None
        if head is None or first is None or (head.ids, head.total_count) != (first.ids, first.total_count):
            raise Moved

    async def _fetch_new_head(self) -> Page:
        """Look at the head a last time, for new messages, which the current count includes."""
        self._older, self._idle = self._list.ids, 0
        head = await self._list.fetch(0)
        if self._older.isdisjoint(head.ids):
            # More arrived than fit into a page: read from the new head down to the old one.
            self._list.begin_pass()
            self._ahead.stop()
        return head

    async def _is_bottom(self, page: Page) -> bool:
        """Whether the page reaches the end of the list.

        If the gateway's statements do not decide, a short page after two pages without an older message is a
        sign of the end, and another request decides. A full page is not: new messages may have moved the list
        down by a page.
        """
        if not page.ids and page.skip == 0:
            return True
        if self._idle > MOST_IDLE:
            raise Endless("the gateway states that there are older messages, but lists none")
        if (stated := _states_end(page)) is not None:
            return stated
        is_short = len(page.ids) < self._list.page_size
        return self._idle >= 2 and is_short and not (await self._list.fetch(page.next_skip)).ids

    def _most_overlap(self, page: Page) -> int:
        return min(OVERLAP, max(1, self._list.page_size) - 1, page.next_skip)

    @abstractmethod
    def _overlap(self, page: Page) -> int:
        """Return the number of messages that the next page should share with this one."""

    @abstractmethod
    def _reads_ahead(self, overlap: int) -> bool:
        """Whether to read ahead in a list that is not long."""


class OverlapPass(Pass):
    """Ties each page by overlap, unless a page is too short to share a message."""

    def _overlap(self, page: Page) -> int:
        return self._most_overlap(page)

    def _reads_ahead(self, overlap: int) -> bool:
        return False


class CountPass(Pass):
    """Ties pages by the count if an overlap would cost more than one request in twenty."""

    def _overlap(self, page: Page) -> int:
        most = self._most_overlap(page)
        if page.total_count is None or not page.count_matches:
            return most
        size = max(1, self._list.page_size)
        fewest = math.ceil(page.total_count / size)
        for overlap in range(most, 0, -1):
            if 1 + math.ceil((page.total_count - size) / (size - overlap)) <= fewest * (1 + EXTRA_SHARE):
                return overlap
        return 0

    def _reads_ahead(self, overlap: int) -> bool:
        return overlap > 0


def _states_end(page: Page) -> bool | None:
    """Whether the gateway states that a page is the last; None if it states nothing or contradicts itself."""
    counted = None
    if page.total_count is not None and (page.count_matches or page.next_skip >= page.total_count):
        counted = page.next_skip >= page.total_count
    if page.has_more is None:
        return counted
    if page.has_more:
        return None if counted else False
    return True if counted is not False else None
