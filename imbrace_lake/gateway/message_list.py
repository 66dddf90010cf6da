"""The gateway's list of a conversation's messages, as far as a walk has read it."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from imbrace_lake.gateway.id_set import IdSet
from imbrace_lake.gateway.models import Page

Fetch = Callable[[int, int], Awaitable[Page]]
"""`(skip, limit)` to a page."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """The most messages that a walk reads of one conversation, so that it ends even if the list does not.

    In addition, the first total count bounds the walk to 8 requests per page, plus 40.

    Attributes:
        messages: The most messages of a conversation.
        uncounted_messages: The most messages of a conversation without a total count.
    """

    messages: int = 10_000_000
    uncounted_messages: int = 100_000


DEFAULT_BOUNDS = Bounds()


class Endless(Exception):
    """The list does not end within its bounds; the argument is the reason."""


class MessageList:
    """Fetches pages within the bounds, and remembers the ids of the messages in them.

    Attributes:
        ids: The messages that this pass has seen, all contiguous.
        oldest_id: The oldest of them.
        page_size: The number of messages in the server's pages at present.
        total_count: The gateway's count, as the head last stated it.
    """

    def __init__(self, fetch: Fetch, limit: int, bounds: Bounds, head: Page | None) -> None:
        self.ids = IdSet()
        self.oldest_id = ""
        self.page_size = 0
        self.total_count: int | None = None
        self._fetch = fetch
        self._limit = limit
        self._bounds = bounds
        self._head = head
        self._earlier = IdSet()  # seen before this pass
        self._first_page: Page | None = None
        self._requests = 0
        self._most_requests = 40

    async def fetch(self, skip: int) -> Page:
        """Fetch a page, which does not belong to the pass until it is added.

        The first page is the head that the caller of the walk has read already, if there is one.

        Raises:
            Endless: The walk may not send more requests.
        """
        self._requests += 1
        if self._requests > self._most_requests:
            counted = "it stated no count"
            if self._first_page is not None and self._first_page.total_count is not None:
                first, last = self._first_page.total_count, self.total_count or 0
                counted = f"it counted {first:,} messages at first, then {last:,}"
            raise Endless(
                f"the gateway's list did not end within {self._most_requests:,} requests: {counted}, and"
                f" listed {self.distinct():,}"
            )
        head, self._head = self._head, None
        return await self._fetch(skip, self._limit) if head is None else head

    def begin_pass(self) -> None:
        """Start a pass without contiguous messages; earlier ones still count as seen."""
        self._earlier.update(self.ids)
        self.ids = IdSet()

    def distinct(self) -> int:
        """Return the number of different messages seen in this pass or before."""
        self._earlier.update(self.ids)
        return len(self._earlier)

    def add(self, page: Page) -> None:
        """Add a page to the pass.

        Raises:
            Endless: The conversation has more messages than a walk reads.
        """
        brings_older = bool(page.ids) and page.ids[-1] not in self.ids
        if brings_older:
            self.oldest_id = page.ids[-1]
        if brings_older and (page.has_more or page.next_skip < (page.total_count or 0)):
            # Older messages follow, so this is the server's longest page.
            self.page_size = len(page.ids)
        self.page_size = max(self.page_size, len(page.ids))
        self.ids.add(page.ids)
        if page.skip == 0 or self.total_count is None:
            self.total_count = page.total_count
        self._first_page = self._first_page or page

        # The count at the beginning bounds the walk, because a list may grow as fast as it is read.
        first_count, seen = self._first_page.total_count, len(self.ids)
        pages = math.ceil((seen if first_count is None else first_count) / max(1, self.page_size))
        self._most_requests = max(self._most_requests, 40 + 8 * pages)
        most, setting, uncounted = self._bounds.messages, "IMBRACE_MAX_MESSAGES", ""
        if first_count is None and self._bounds.uncounted_messages < most:
            most, setting = self._bounds.uncounted_messages, "IMBRACE_MAX_UNCOUNTED_MESSAGES"
            uncounted = " without a count"
        if seen > most:
            raise Endless(
                f"the gateway lists more than {most:,} messages{uncounted}: set {setting} to more if the"
                " conversation is that long"
            )
