"""The rate that a gateway supports, learned from its answers, since it sends no hint.

Nothing is assumed before the first refusal. From then on an `AdaptiveRate` starts a little under what was
accepted lately and grows with every answer: fast while it is far below the rate that was refused,
hardly at all near it, and ever faster once it has been accepted for hundreds of answers, because the
budget must have grown. Steps go by answers and not by seconds, so that refusals are the same small
share, about 0.5 %, of a budget of two requests a second and of two hundred.
"""

from __future__ import annotations

import math

DECREASE = 0.95
# What one closing of the limiter leaves at least, however many requests it met.
LEAST_LEFT = 0.25
SLOWEST_PER_SECOND = 0.1
# Growth with each answer: always, more of it the longer there was no refusal, and on the way back.
GROWTH = 0.0003
STEADY_ANSWERS = 250
RETURN = 0.01
# Under a budget that somebody set, a refusal is more likely chance: requests that bunched on the way.
KNOWN_FACTOR = 3.0
# Until the second refusal, because the first says little: somebody else may have used the budget up.
SEARCH = 0.1
FIRST_PER_SECOND = 1.0
MEMORY_SECONDS = 5.0


class RateMeter:
    """Events a second of the last few seconds; older ones fade."""

    def __init__(self) -> None:
        self._began: float | None = None
        self._seen_at = 0.0
        self._weight = 0.0

    def count(self, now: float) -> None:
        """One more, now."""
        if self._began is None:
            self._began = self._seen_at = now
        self._weight = self.weight(now) + 1.0
        self._seen_at = now

    def weight(self, now: float) -> float:
        """How many events are still remembered."""
        return self._weight * math.exp((self._seen_at - now) / MEMORY_SECONDS)

    def per_second(self, now: float) -> float:
        """Their rate; 0.0 until some time has passed since the first."""
        if self._began is None or now <= self._began:
            return 0.0
        remembered_seconds = MEMORY_SECONDS * -math.expm1((self._began - now) / MEMORY_SECONDS)
        return self.weight(now) / remembered_seconds


class AdaptiveRate:
    """The rate that the gateway supports; `per_second` is inf until the first 429."""

    def __init__(self) -> None:
        self.per_second = math.inf
        self._accepted = RateMeter()
        self._rate_limited_at = math.inf
        self._lowest = 0.0  # how far this closing may lead down
        self._answers = 0  # since the last refusal
        self._is_searching = False

    def on_success(self, now: float, *, is_known: bool = False) -> None:
        """The gateway answered a request; `is_known` if a budget was set, which is believed sooner."""
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
        """The gateway refused the first of the requests that are under way."""
        if self.per_second == math.inf:
            return
        self._is_searching = False
        lately = self._accepted.per_second(now)
        self._rate_limited_at = self.per_second
        # What was accepted on average, closed times included, can be had without any.
        lowest = max(SLOWEST_PER_SECOND, self.per_second * LEAST_LEFT, lately * DECREASE)
        self._lowest = min(self.per_second, lowest)
        self.per_second = min(self.per_second, max(lately, self._lowest))
        self._answers = 0
        self.on_rate_limited_again()

    def on_recovered(self, now: float) -> None:
        """The gateway answers again, after it refused."""
        if self.per_second == math.inf:
            self.per_second = max(self._accepted.per_second(now), FIRST_PER_SECOND)
            self._is_searching = True

    def on_rate_limited_again(self) -> None:
        """The gateway refused another request of those."""
        if self.per_second < math.inf:
            self.per_second = max(self._lowest, self.per_second * DECREASE)
