"""Read lists that contain messages more than once, so that no pass can match their count."""

from __future__ import annotations

from hashlib import blake2b

from imbrace_lake.gateway.message_list import MessageList
from imbrace_lake.gateway.models import Page
from imbrace_lake.gateway.passes import Moved


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
        elif self._last.next_skip >= self._total_count:
            await self._check_bottom(self._last)
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

    async def _check_bottom(self, last: Page) -> None:
        if last.has_more or (last.has_more is None and (await self._list.fetch(last.next_skip)).ids):
            raise Moved
