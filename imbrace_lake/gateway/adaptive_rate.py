"""The request rate that a gateway supports, learned from its answers, because it does not state its limit.

An `AdaptiveRate` has no bound before the first 429. After it, the rate starts slightly below that of recently
accepted requests and grows with each answer: fast while it is far below the rate that met a 429, slowly near
that rate, and faster after some hundred answers without a 429, because the gateway's limit has probably been
raised. Growth depends on the number of answers and not on time, so that the share of 429 answers is the same,
about 0.5 %, under a limit of two or of two hundred requests per second.
"""

from __future__ import annotations

import math

DECREASE = 0.95
# The least share of the rate that remains after one pause, however many requests met a 429.
LEAST_LEFT = 0.25
SLOWEST_PER_SECOND = 0.1
# Growth per answer: a base, which increases with the answers since the last 429, and a faster return
# to the rate that met it.
GROWTH = 0.0003
STEADY_ANSWERS = 250
RETURN = 0.01
# Under a budget that an operator set, a 429 is more likely due to chance: requests that arrived together.
KNOWN_FACTOR = 3.0
# Until the second 429. The first measures little: another process may have used up the gateway's limit.
SEARCH = 0.1
FIRST_PER_SECOND = 1.0
MEMORY_SECONDS = 5.0


class RateMeter:
    """Events per second over the last few seconds, with exponentially decreasing weights."""

    def __init__(self) -> None:
        self._began: float | None = None
        self._seen_at = 0.0
        self._weight = 0.0

    def count(self, now: float) -> None:
        """Count one event."""
        if self._began is None:
            self._began = self._seen_at = now
        self._weight = self.weight(now) + 1.0
        self._seen_at = now

    def weight(self, now: float) -> float:
        """Return the sum of the events' weights."""
        return self._weight * math.exp((self._seen_at - now) / MEMORY_SECONDS)

    def per_second(self, now: float) -> float:
        """Return the rate; 0.0 until some time has passed since the first event."""
        if self._began is None or now <= self._began:
            return 0.0
        remembered_seconds = MEMORY_SECONDS * -math.expm1((self._began - now) / MEMORY_SECONDS)
        return self.weight(now) / remembered_seconds


class AdaptiveRate:
    """The request rate that the gateway supports; `per_second` is inf until the first 429."""

    def __init__(self) -> None:
        self.per_second = math.inf
        self._accepted = RateMeter()
        self._rate_limited_at = math.inf  # the rate that met the last 429
        self._lowest = 0.0  # the bound for further decreases in this pause
        self._answers = 0  # since the last 429
        self._is_searching = False

    def on_success(self, now: float, *, is_known: bool = False) -> None:
        """Raise the rate after an answer, faster if `is_known`: an operator has set a budget."""
        self._accepted.count(now)
        # A rate that is not used has not been tested.
        if self.per_second < 2.0 * self._accepted.per_second(now):
            self._answers += 1
            way_back = max(0.0, 1.0 - self.per_second / (DECREASE * self._rate_limited_at))
            growth = GROWTH * (1.0 + (self._answers / STEADY_ANSWERS) ** 2) + RETURN * way_back
            if is_known:
                growth *= KNOWN_FACTOR
            self.per_second *= 1.0 + (SEARCH if self._is_searching else growth)

    def on_rate_limited(self, now: float) -> None:
        """Lower the rate after the first 429 of the requests in flight."""
        if self.per_second == math.inf:
            return
        self._is_searching = False
        lately = self._accepted.per_second(now)
        self._rate_limited_at = self.per_second
        # The average rate of accepted requests, pauses included, needs no pauses.
        lowest = max(SLOWEST_PER_SECOND, self.per_second * LEAST_LEFT, lately * DECREASE)
        self._lowest = min(self.per_second, lowest)
        self.per_second = min(self.per_second, max(lately, self._lowest))
        self._answers = 0
        self.on_rate_limited_again()

    def on_recovered(self, now: float) -> None:
        """Start to learn a rate at the first answer after a pause."""
        if self.per_second == math.inf:
            self.per_second = max(self._accepted.per_second(now), FIRST_PER_SECOND)
            self._is_searching = True

    def on_rate_limited_again(self) -> None:
        """Lower the rate after another 429 of the same requests."""
        if self.per_second < math.inf:
            self.per_second = max(self._lowest, self.per_second * DECREASE)
