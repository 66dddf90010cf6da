"""One pass over a list that may move meanwhile: from its newest message to its oldest, without a gap.

There are two ways to tie a page to the pages above it. By overlap: the page shares a message with them. By
the count: the page begins where the last one ended, shares no message, and the list has not moved.
A pass that may rely on the count prefers the way that costs fewer requests.
"""

from __future__ import annotations

import math
from hashlib import blake2b

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
MAX_IDLE = 20


class Moved(Exception):
    """The list moved, and nothing ties a page to the pages above it."""

    def __str__(self) -> str:
        return "the list moved, and its pages are too short to be tied together"


class Pass:
    """Reads the pages of one pass, and then those of a last look at the head if the list moved.

    Args:
        messages: Fetches the pages, and remembers the messages.
        read_ahead: Requests pages before they are needed.
        start: The position of the first page.
        relies_on_count: Tie pages by the count if an overlap would cost more than one request in twenty.
            Otherwise each page is tied by overlap, unless it is too short to share a message.

    Attributes:
        did_not_move: The list did not move so far.
        is_stopped: Set this to end the pass after the last page, because all messages below are known.
        count_ties: The number of pages that only the count ties to the one above.
    """

    def __init__(
        self, messages: MessageList, read_ahead: ReadAhead, start: int, *, relies_on_count: bool
    ) -> None:
        self.did_not_move = True
        self.is_stopped = False
        self.count_ties = 0
        self._list = messages
        self._ahead = read_ahead
        self._start = start
        self._relies_on_count = relies_on_count
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
        last, older = self._last, self._older
        has_met = older is not None and last is not None and not older.isdisjoint(last.ids)
        if last is None:
            self._list.begin_pass()
            page = self._head = await self._list.fetch(self._start)
        elif not self.is_stopped and not has_met and not await self._is_bottom(last):
            page = await self._fetch_below(last)
        else:
            await self._ahead.drop()
            if older is not None or self._start:
                if older is not None and older is not self._list.ids:
                    self._list.ids.update(older)
                return None
            if self._must_close:
                await self._close()
            if self.did_not_move or self.is_stopped:
                return None
            page = await self._fetch_new_head()
        self._list.add(page)
        self._last = page
        return page

    async def _fetch_below(self, last: Page) -> Page:
        """Fetch the page below the last one, from those read ahead if possible, and tie it to the others."""
        overlap = self._overlap(last)
        skip = last.next_skip - overlap
        await self._ahead.expect(skip)
        stride = self._list.page_size - overlap
        total_count = last.total_count or 0
        is_long = math.ceil(total_count / max(1, self._list.page_size)) >= LONG_PAGES
        # Pages are read ahead only if that is safe.
        if stride > 0 and (is_long or (self._relies_on_count and overlap > 0)):
            self._ahead.aim(range(skip, total_count - overlap, stride), last)
        if overlap == 0 and skip in self._ahead:
            self._must_close = True
        page = await self._ahead.get(skip)
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
        if self._idle > MAX_IDLE:
            raise Endless("the gateway states that there are older messages, but lists none")
        if (stated := _states_end(page)) is not None:
            return stated
        is_short = len(page.ids) < self._list.page_size
        return self._idle >= 2 and is_short and not (await self._list.fetch(page.next_skip)).ids

    def _overlap(self, page: Page) -> int:
        """Return the number of messages that the next page should share with this one."""
        size = max(1, self._list.page_size)
        most = min(OVERLAP, size - 1, page.next_skip)
        if not self._relies_on_count or page.total_count is None or not page.count_matches:
            return most
        fewest = math.ceil(page.total_count / size)
        for overlap in range(most, 0, -1):
            if 1 + math.ceil((page.total_count - size) / (size - overlap)) <= fewest * (1 + EXTRA_SHARE):
                return overlap
        return 0


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


class PositionReading:
    """Reads every position of the list, and records the positions that repeat a message.

    Each page begins with the last message of the page above, which shows that the list did not move.
    """

    def __init__(self, messages: MessageList) -> None:
        self._list = messages
        self._last: Page | None = None
        self._total_count = 0
        self._repeats = blake2b(digest_size=16)

    async def next_page(self) -> Page | None:
        """Return the next page; None after the last one.

        Raises:
            Moved: The list moved, or its pages are too short to show that it did not.
        """
        shared: list[str] = []
        if self._last is None:
            self._list.begin_pass()
            page = await self._list.fetch(0)
            if page.total_count is None:
                raise Moved
            self._total_count = page.total_count
        elif (end := self._last.next_skip) >= self._total_count:
            has_more = self._last.has_more
            if has_more or (has_more is None and (await self._list.fetch(end)).ids):
                raise Moved
            return None
        else:
            shared = self._last.ids[1:][-1:]
            if not shared:
                raise Moved
            page = await self._list.fetch(self._last.next_skip - 1)
        added = page.ids[len(shared) :]
        if page.total_count != self._total_count or page.ids[: len(shared)] != shared or not added:
            raise Moved
        self._note_repeats(added, page.next_skip - len(added))
        self._list.add(page)
        self._last = page
        return page

    def digest(self) -> bytes:
        """Return a digest of the positions that repeat a message, equal for two readings of one list."""
        return self._repeats.digest()

    def _note_repeats(self, added: list[str], skip: int) -> None:
        unseen = {*self._list.ids.difference(added)}
        for position, message_id in enumerate(added, skip):
            if message_id in unseen:
                unseen.remove(message_id)
            else:
                # Counted from the end of the list, where new messages do not change positions.
                self._repeats.update(f"{self._total_count - position} {message_id}\0".encode())
