"""Read-ahead: the pages of a long conversation that are requested before the walk needs them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from imbrace_lake.gateway.models import Page

# Larger pages are not read ahead, and not kept if they were: eight such pages per conversation would not fit
# into memory.
MAX_AHEAD_BYTES = 1 << 20


class ReadAhead:
    """Requests several pages at a time, at the next positions if the list does not move."""

    def __init__(self, fetch: Callable[[int], Awaitable[Page]], most: int) -> None:
        self._fetch = fetch
        self._most = most
        self._breadth = most  # pages under way at once, at present
        self._pending: dict[int, asyncio.Task[Page | None]] = {}

    def __contains__(self, skip: int) -> bool:
        return skip in self._pending

    async def expect(self, skip: int) -> None:
        """Drop the pages under way if the next position is not among them, because the list moved."""
        if self._pending and skip not in self._pending:
            await self.narrow()

    def aim(self, positions: Sequence[int], last: Page) -> None:
        """Request pages that are not under way yet.

        Args:
            positions: The positions of the next pages, in order; as many are requested as may be under way.
            last: The page before; if it is large, the next ones probably are too, and only one is requested.
        """
        breadth = self._breadth if last.size_bytes <= MAX_AHEAD_BYTES else 1
        for skip in positions[:breadth]:
            if skip not in self._pending:
                self._pending[skip] = asyncio.ensure_future(self._request(skip, is_next=skip == positions[0]))

    async def get(self, skip: int) -> Page:
        """Return the page at a position, from those under way or by a request."""
        task = self._pending.pop(skip, None)
        page = await task if task is not None else None
        return page if page is not None else await self._fetch(skip)

    def widen(self) -> None:
        """Allow one more page under way, after a page was at its expected position."""
        self._breadth = min(self._most, self._breadth + 1)

    async def narrow(self) -> None:
        """Drop the pages under way, and allow half as many, because the list moved."""
        self._breadth = max(1, self._breadth // 2)
        await self.drop()

    def stop(self) -> None:
        """Request one page at a time from now on."""
        self._breadth = self._most = 1

    async def drop(self) -> None:
        """Cancel the requests under way."""
        tasks = [*self._pending.values()]
        self._pending.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _request(self, skip: int, *, is_next: bool) -> Page | None:
        page = await self._fetch(skip)
        return page if is_next or page.size_bytes <= MAX_AHEAD_BYTES else None
