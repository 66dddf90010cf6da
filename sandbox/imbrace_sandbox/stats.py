"""Counts of requests and answers."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field, fields
from typing import Any


@dataclass(slots=True)
class Stats:
    """Counts since the start or the last reset.

    Attributes:
        requests: By endpoint, `links` and `messages`, including rate-limited ones.
        statuses: By status code, or `cut`, `stalled` or `dropped` for an answer without one.
        faults: By the fault's name.
        pages: Requests by conversation id, without rate-limited ones.
        accepted: Requests within the budget.
        `refused`: Requests beyond the budget.
        accepted_by_second: Accepted requests, by seconds since the epoch.
        refused_by_second: Rate-limited requests, by the same seconds.
        bytes_sent: Of bodies.
        in_flight: Requests that are being answered.
        max_in_flight: The most requests in flight at a time.
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
        """Reset all counts but `in_flight`, which would become negative when requests end."""
        fresh = Stats(in_flight=self.in_flight, max_in_flight=self.in_flight)
        for each in fields(self):
            setattr(self, each.name, getattr(fresh, each.name))

    def as_dict(self) -> dict[str, Any]:
        """Return the counts as JSON values."""
        # Not asdict(), which does not copy a Counter correctly.
        counts = {each.name: getattr(self, each.name) for each in fields(self)}
        for name in ("accepted_by_second", "refused_by_second"):
            counts[name] = {str(second): many for second, many in sorted(counts[name].items())}
        return counts
