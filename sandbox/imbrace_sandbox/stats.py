"""What the fake gateway counts about its clients."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field, fields
from typing import Any


@dataclass(slots=True)
class Stats:
    """Counts since the start or the last reset.

    Attributes:
        requests: By endpoint, `links` and `messages`; refused ones included.
        statuses: By status code; what ends without one counts as `cut`, `stalled` or `dropped`.
        faults: By the fault's name.
        pages: Requests by conversation id; refused ones left out.
        accepted: Requests within the budget.
        refused: Requests beyond the budget.
        accepted_by_second: By whole seconds since the epoch.
        refused_by_second: Likewise.
        bytes_sent: Of bodies.
        in_flight: Requests that are being answered.
        max_in_flight: The most there ever were at a time.
    """

    requests: Counter[str] = field(default_factory=Counter)
    statuses: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    pages: Counter[str] = field(default_factory=Counter)
    accepted: int = 0
    refused: int = 0
    accepted_by_second: Counter[int] = field(default_factory=Counter)
    refused_by_second: Counter[int] = field(default_factory=Counter)
    bytes_sent: int = 0
    in_flight: int = 0
    max_in_flight: int = 0

    def arrive(self, endpoint: str) -> None:
        """Count a request that begins."""
        self.requests[endpoint] += 1
        self.in_flight += 1
        self.max_in_flight = max(self.max_in_flight, self.in_flight)

    def leave(self) -> None:
        """Count a request that ends, however it ends."""
        self.in_flight -= 1

    def accept(self) -> None:
        """Count a request within the budget."""
        self.accepted += 1
        self.accepted_by_second[int(time.time())] += 1

    def refuse(self) -> None:
        """Count a request beyond the budget."""
        self.refused += 1
        self.refused_by_second[int(time.time())] += 1

    def reset(self) -> None:
        """Count again; what is in flight stays in flight, or its end would make the count negative."""
        fresh = Stats(in_flight=self.in_flight, max_in_flight=self.in_flight)
        for each in fields(self):
            setattr(self, each.name, getattr(fresh, each.name))

    def as_dict(self) -> dict[str, Any]:
        """Return the counts as JSON can hold them."""
        # Not asdict(), which makes a Counter of another one's items instead of copying it.
        counts = {each.name: getattr(self, each.name) for each in fields(self)}
        for name in ("accepted_by_second", "refused_by_second"):
            counts[name] = {str(second): many for second, many in sorted(counts[name].items())}
        return counts
