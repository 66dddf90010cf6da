"""A newest-first list in memory that changes while it is read, for the tests of the walk."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from imbrace_lake.gateway.models import Item, Page


@dataclass
class MovingList:
    """Serves pages as the gateway does, and changes between any two of them.

    Attributes:
        ids: The list now, newest first.
        cap: The most messages of a page, whatever the requested limit; None for no cap.
        caps: Values to which the cap changes now and then.
        arrive, vanish: The chance that messages arrive at the head, or that messages anywhere are
            deleted, before a page is served.
        swap: The chance that as many messages arrive as are deleted, which the count does not show.
        flicker: The chance that a message arrives, or that the last one to do so is deleted again.
        burst: The most messages that arrive or vanish at once.
        counts: ``right`` (`count` is the total count), ``swapped``, ``both`` (both are), ``none``.
        count_error: Added to the total count of the answer.
        has_more: Whether the answer has the field.
        is_lying: Whether the field is always true.
        backdated: The share of arrivals that are inserted anywhere in the list.
        delay: The most turns of the event loop that an answer takes.
        on_move: Called before each page is served, after everything above.
    """

    ids: list[str]
    rng: random.Random
    cap: int | None = None
    caps: Sequence[int | None] = ()
    arrive: float = 0.0
    vanish: float = 0.0
    swap: float = 0.0
    flicker: float = 0.0
    burst: int = 1
    counts: str = "right"
    count_error: int = 0
    has_more: bool = True
    is_lying: bool = False
    backdated: float = 0.0
    delay: int = 2
    on_move: Callable[[MovingList], None] | None = None
    is_frozen: bool = False
    requests: int = 0
    under_way: int = 0
    most_under_way: int = 0
    asked: list[int] = field(default_factory=list)
    deleted: set[str] = field(default_factory=set)
    at_start: list[str] | None = None
    _arrived: int = 0

    @classmethod
    def of(cls, length: int, seed: int = 0, **options: object) -> MovingList:
        return cls([f"m{n}" for n in range(length)], random.Random(seed), **options)  # type: ignore[arg-type]

    def must_see(self) -> set[str]:
        """Return the messages that were there when the first page was served and were never deleted."""
        assert self.at_start is not None
        return set(self.at_start) - self.deleted

    def insert(self, position: int = 0) -> None:
        self._arrived += 1
        self.ids.insert(position, f"new{self._arrived}")

    def delete(self, position: int) -> None:
        self.deleted.add(self.ids.pop(position))

    def move(self) -> None:
        if self.is_frozen:
            return
        if self.rng.random() < self.swap:
            for _ in range(min(len(self.ids), self.rng.randint(1, self.burst))):
                self.delete(self.rng.randrange(len(self.ids)))
                self.insert()
        if self.rng.random() < self.flicker:
            if self.ids and self.ids[0].startswith("new"):
                self.delete(0)
            else:
                self.insert()
        self._grow_and_shrink()
        if self.caps and self.rng.random() < 0.05:
            self.cap = self.rng.choice(self.caps)
        if self.on_move is not None:
            self.on_move(self)

    def _grow_and_shrink(self) -> None:
        if self.rng.random() < self.arrive:
            for _ in range(self.rng.randint(1, self.burst)):
                is_backdated = self.rng.random() < self.backdated
                self.insert(self.rng.randint(0, len(self.ids)) if is_backdated else 0)
        if self.rng.random() < self.vanish:
            for _ in range(min(len(self.ids), self.rng.randint(1, self.burst))):
                # Deletions at the head are the worst: all unread messages move up.
                self.delete(0 if self.rng.random() < 0.5 else self.rng.randrange(len(self.ids)))

    async def fetch(self, skip: int, limit: int) -> Page:
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            # Concurrent requests are answered in any order.
            for _ in range(self.rng.randint(0, self.delay)):
                await asyncio.sleep(0)
            return self.serve(skip, limit)
        finally:
            self.under_way -= 1

    def serve(self, skip: int, limit: int) -> Page:
        self.requests += 1
        self.asked.append(skip)
        self.move()
        if self.at_start is None:
            self.at_start = list(self.ids)
        ids = self.ids[skip : skip + min(limit, self.cap or limit)]
        items: list[Item] = [{"_id": message_id} for message_id in ids]
        is_whole = len(ids) == len(self.ids)
        return Page(
            skip=skip,
            items=items,
            ids=ids,
            total_count=None if self.counts == "none" else max(0, len(self.ids) + self.count_error),
            has_more=(self.is_lying or skip + len(ids) < len(self.ids)) if self.has_more else None,
            count_matches=self.counts in ("right", "swapped") or (self.counts == "both" and is_whole),
        )

    def fewest(self, limit: int) -> int:
        return max(1, math.ceil(len(self.ids) / min(limit, self.cap or limit)))


async def plain_offset_walk(moving: MovingList, limit: int) -> list[str]:
    """Walk as a generic offset paginator: add up what came, stop at the total count."""
    seen: list[str] = []
    while True:
        # Such a paginator would follow a growing list for ever, so this one has a limit.
        moving.is_frozen = moving.requests > 100
        page = await moving.fetch(len(seen), limit)
        seen += page.ids
        if not page.ids or page.next_skip >= (page.total_count or 0):
            return seen
