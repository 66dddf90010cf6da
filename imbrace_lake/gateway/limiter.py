"""The rate limiter that everything in one process shares.

A `RequestLimiter` admits requests: no more than so many at a time, no more than so many a second, none while
the gateway refuses. What the gateway supports is learned from its answers, since it sends no hint: from
its strain how many at a time (additive increase, multiplicative decrease), from its refusals how many
a second (`AdaptiveRate`). A refusal closes the limiter for everybody: requests made meanwhile do not help.
After the wait one request goes ahead alone, and only its success opens the limiter to the others.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections import deque
from dataclasses import dataclass

from imbrace_lake.gateway.adaptive_rate import AdaptiveRate, RateMeter

FIRST_PAUSE_SECONDS = 1.0
# At a rate that is nearly right, a budget has room again after a request.
FIRST_PAUSE_REQUESTS = 1.0
SHORTEST_PAUSE_SECONDS = 0.04
LONGEST_PAUSE_SECONDS = 60.0
# A process that was busy for a moment makes up for it.
LATE_SECONDS = 0.05
# Requests that are sent evenly arrive less evenly, and a window that gets one too many refuses it.
USED_SHARE = 0.98


@dataclass(slots=True)
class LimiterCounts:
    """What the limiter saw: refusals (answers with 429) and seconds during which it was closed."""

    rate_limited: int = 0
    closed_seconds: float = 0.0


class WaitersRejected(Exception):
    """The limiter stays closed for longer than is worth waiting for."""


class RequestLimiter:
    """Admits requests of one event loop, first come, first served.

    Args:
        max_in_flight: Most requests under way at a time; where the limiter starts.
        per_second: Most requests a second; 0 lets nobody in, None is no such limit.
    """

    def __init__(self, *, max_in_flight: int = 32, per_second: float | None = None) -> None:
        self.counts = LimiterCounts()
        self._most = float(max_in_flight)
        self._limit = float(max_in_flight)
        self._per_second = per_second
        self._adaptive = AdaptiveRate()
        self._admitted = RateMeter()
        self._was_throttled = False
        self._in_flight = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._spent_at = -math.inf  # the moment that the rate counts the last request for
        self._closed_until = 0.0
        self._rate_limited_since: float | None = None
        self._pauses = 0
        self._is_probing = False
        self._epoch = 0  # refusals of requests admitted before the last closing say nothing new
        self._rate_limited_epoch = -1  # of the requests whose refusal closed the limiter
        self._timer: asyncio.TimerHandle | None = None

    @property
    def in_flight_limit(self) -> int:
        """How many requests the limiter admits at a time just now."""
        return 1 if self._is_probing else max(1, int(self._limit))

    @property
    def in_flight(self) -> int:
        """How many requests are under way."""
        return self._in_flight

    @property
    def per_second(self) -> float | None:
        """How many requests a second the limiter may admit; may be set while requests wait."""
        return self._per_second

    @per_second.setter
    def per_second(self, value: float | None) -> None:
        self._per_second = value
        if self._waiting:
            self._admit()

    @property
    def rate(self) -> float:
        """How many requests a second the limiter admits just now: as allowed, or as learned; may be inf."""
        return min(self._allowed(), self._adaptive.per_second)

    def demand(self) -> float:
        """How many requests a second would be made if `per_second` allowed it; inf if it held some back.

        Held back since the last question, that is.
        """
        was_throttled, self._was_throttled = self._was_throttled, False
        if was_throttled:
            return math.inf
        return self._admitted.per_second(asyncio.get_running_loop().time())

    def rate_limited_seconds(self) -> float:
        """For how long the gateway has refused everything; 0.0 when it last answered."""
        if self._rate_limited_since is None:
            return 0.0
        return asyncio.get_running_loop().time() - self._rate_limited_since

    def pause_seconds(self) -> float:
        """For how long the limiter stays closed after a refusal; 0.0 when it is open."""
        return max(0.0, self._closed_until - asyncio.get_running_loop().time())

    async def acquire(self) -> int:
        """Wait for permission; the ticket is returned with the request's outcome.

        Raises:
            WaitersRejected: The pause is longer than the request may wait.
        """
        if self._waiting or not self._is_admitting():
            turn = asyncio.get_running_loop().create_future()
            self._waiting.append(turn)
            self._admit()
            try:
                await turn
            except asyncio.CancelledError:
                if turn.done() and not turn.cancelled() and turn.exception() is None:
                    self.release()  # admitted in the moment of the cancellation: pass the turn on
                raise
        else:
            self._count_in()
        return self._epoch

    def reject_waiters(self) -> None:
        """Fail all waiting requests: the limiter stays closed for longer than they may wait."""
        for turn in self._waiting:
            if not turn.done():
                turn.set_exception(WaitersRejected())
        self._waiting.clear()

    def release(self) -> None:
        """The request has ended, however it did."""
        self._in_flight -= 1
        if self._waiting:
            self._admit()

    def on_success(self, ticket: int) -> None:
        """The gateway answered."""
        now = asyncio.get_running_loop().time()
        self._adaptive.on_success(now, is_known=self._per_second is not None)
        if self._is_probing:
            if ticket != self._epoch:
                return  # sent before the limiter closed, so it says nothing of now
            self._adaptive.on_recovered(now)
            self._is_probing = False
            self._epoch += 1
        elif ticket == self._epoch:
            self._pauses = 0
        self._rate_limited_since = None
        if self._limit < self._most:
            self._limit = min(self._most, self._limit + 1.0 / max(1.0, self._limit))

    def on_overload(self, ticket: int) -> None:
        """The gateway was too slow or overloaded: fewer at a time, once for all that met it."""
        if ticket == self._epoch:
            self._epoch += 1
            self._limit = max(1.0, self._limit * 0.7)

    def on_rate_limited(self, ticket: int, retry_after_seconds: float | None) -> None:
        """The gateway refused (429): close for everybody, as long as it said or ever longer.

        A gateway that refuses again after the wait it asked for is not believed in a hurry twice.
        """
        self.counts.rate_limited += 1
        now = asyncio.get_running_loop().time()
        if self._rate_limited_since is None:
            self._rate_limited_since = now
        if ticket != self._epoch:
            if ticket == self._rate_limited_epoch:
                self._adaptive.on_rate_limited_again()
            return
        # A request that goes ahead alone says whether the wait is over, and nothing of a rate.
        if not self._is_probing:
            self._rate_limited_epoch = ticket
            self._adaptive.on_rate_limited(now)
        self._epoch += 1
        pause = min(LONGEST_PAUSE_SECONDS, self._first_pause() * 2.0**self._pauses)
        # Several processes that were refused together must not come back together.
        pause *= random.uniform(0.75, 1.25)  # noqa: S311 - jitter, not a secret
        if retry_after_seconds is not None:
            pause = max(retry_after_seconds, pause if self._pauses else 0.0)
        self._pauses += 1
        self._is_probing = True
        self._closed_until = now + pause
        self.counts.closed_seconds += pause

    def _first_pause(self) -> float:
        if self.rate == math.inf:
            return FIRST_PAUSE_SECONDS
        requests = max(SHORTEST_PAUSE_SECONDS, FIRST_PAUSE_REQUESTS * self._spacing())
        return min(FIRST_PAUSE_SECONDS, requests)

    def _spacing(self) -> float:
        """Seconds between two requests."""
        return 1.0 / self.rate if self.rate else math.inf

    def _allowed(self) -> float:
        return math.inf if self._per_second is None else self._per_second * USED_SHARE

    def _due(self) -> float:
        """When the rate admits the next request; inf for never."""
        return self._spent_at + self._spacing() if self.rate else math.inf

    def _is_admitting(self) -> bool:
        now = asyncio.get_running_loop().time()
        return self._in_flight < self.in_flight_limit and now >= self._closed_until and now >= self._due()

    def _count_in(self) -> None:
        self._in_flight += 1
        now = asyncio.get_running_loop().time()
        self._admitted.count(now)
        # A turn that comes a little late is made up for; a long silence is not.
        self._spent_at = max(self._due(), now - max(LATE_SECONDS, self._spacing()))

    def _admit(self) -> None:
        while self._waiting and self._is_admitting():
            turn = self._waiting.popleft()
            if not turn.done():
                self._count_in()
                turn.set_result(None)
        if not self._waiting or self._in_flight >= self.in_flight_limit:
            return
        # Nothing under way will wake the next one, so the clock must.
        loop = asyncio.get_running_loop()
        due = self._due()
        self._was_throttled |= self.rate == self._allowed() and due > max(loop.time(), self._closed_until)
        if self._timer is not None:
            self._timer.cancel()
        self._timer = (
            None if due == math.inf else loop.call_at(max(due, self._closed_until, loop.time()), self._admit)
        )
