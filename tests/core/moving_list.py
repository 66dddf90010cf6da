"""A newest-first list that moves while it is read, in memory, for the walk's tests."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from imbrace_lake.models import Item, Page


@dataclass
class MovingList:
    """Serves pages as the contract says, and moves between any two of them.

    Attributes:
        ids: The list now, newest first.
        cap: The most messages that a page holds, whatever was asked; None for no cap.
        arrive, vanish: The chance that, before a page is served, messages arrive at the head, or
            that messages anywhere are deleted.
        burst: The most that arrive or vanish at once.
        counts: ``right`` (count is the whole), ``swapped``, ``both`` (both are the whole), ``none``.
        has_more: Whether the answer carries the field.
        backdated: The share of arrivals that land anywhere in the list.
    """

    ids: list[str]
    rng: random.Random
    cap: int | None = None
    arrive: float = 0.0
    vanish: float = 0.0
    burst: int = 1
    counts: str = "right"
    has_more: bool = True
    backdated: float = 0.0
    requests: int = 0
    deleted: set[str] = field(default_factory=set)
    is_frozen: bool = False
    on_move: Callable[[], None] | None = None
    _arrived: int = 0

    @classmethod
    def of(cls, length: int, seed: int, **options: object) -> MovingList:
        return cls([f"m{n}" for n in range(length)], random.Random(seed), **options)  # type: ignore[arg-type]

    def move(self) -> None:
        if self.is_frozen:
            return
        if self.rng.random() < self.arrive:
            for _ in range(self.rng.randint(1, self.burst)):
                self._arrived += 1
                place = self.rng.randint(0, len(self.ids)) if self.rng.random() < self.backdated else 0
                self.ids.insert(place, f"new{self._arrived}")
        if self.rng.random() < self.vanish:
            for _ in range(min(len(self.ids), self.rng.randint(1, self.burst))):
                # Where deletions hurt most is at the head: everything unread is pulled up.
                at = 0 if self.rng.random() < 0.5 else self.rng.randrange(len(self.ids))
                self.deleted.add(self.ids.pop(at))

    async def fetch(self, skip: int, limit: int) -> Page:
        # Requests that are under way together are answered in any order.
        for _ in range(self.rng.randint(0, 2)):
            await asyncio.sleep(0)
        self.requests += 1
        self.move()
        length = min(limit, self.cap or limit)
        ids = self.ids[skip : skip + length]
        whole = {"right": len(self.ids), "swapped": len(self.ids), "both": len(self.ids), "none": None}
        items: list[Item] = [{"_id": message_id} for message_id in ids]
        return Page(
            skip=skip,
            items=items,
            ids=ids,
            whole=whole[self.counts],
            has_more=skip + len(ids) < len(self.ids) if self.has_more else None,
            is_exact=self.counts in ("right", "swapped")
            or (self.counts == "both" and len(ids) == len(self.ids)),
        )

    def fewest(self, limit: int) -> int:
        return max(1, math.ceil(len(self.ids) / min(limit, self.cap or limit)))


async def plain_offset_walk(moving: MovingList, limit: int) -> list[str]:
    """What generic offset paginators do: add up what came, stop when there is no more."""
    seen: list[str] = []
    while True:
        page = await moving.fetch(len(seen), limit)
        seen += page.ids
        if not page.ids or page.end >= (page.whole or 0):
            return seen
