"""The rate limiter that all requests of one process share.

A `RequestLimiter` bounds the requests in flight and the requests per second, and admits none during a pause.
The gateway does not state what it supports, so both bounds adapt to its answers: the number in flight to
time-outs and overload (additive increase, multiplicative decrease), the rate to 429 answers (`AdaptiveRate`).
A 429 pauses all requests, because others would meet it too. After the pause a single request is sent, and
only its success opens the limiter for the others.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections import deque
from typing import Literal

from imbrace_lake.gateway.adaptive_rate import AdaptiveRate, RateMeter

FIRST_PAUSE_SECONDS = 1.0
# If the rate is nearly right, the gateway has room again after the time of one request.
FIRST_PAUSE_REQUESTS = 1.0
SHORTEST_PAUSE_SECONDS = 0.04
LONGEST_PAUSE_SECONDS = 60.0
# A process that was busy for a moment may catch up by this much.
LATE_SECONDS = 0.05
# Requests that are sent evenly arrive less evenly, and one too many in the gateway's window meets a 429.
USED_SHARE = 0.98


# Why requests wait: an operator's limit, a 429, the learned rate, an overloaded gateway, or answers.
Bound = Literal["budget", "rate-limited", "accepted rate", "overload", "in flight"]


class WaitersRejected(Exception):
    """The limiter stays closed for longer than the request may wait."""


class RequestLimiter:
    """Admits requests of one event loop, first come, first served.

    Args:
        max_in_flight: The most requests in flight, and the number to start with.
        per_second: The most requests per second; 0 admits none, None is unlimited.

    Attributes:
        rate_limited: The number of 429 answers.
        shared_limit: The limit of all processes together, of which `per_second` is this process's share.
    """

    def __init__(self, *, max_in_flight: int = 32, per_second: float | None = None) -> None:
        self.rate_limited = 0
        self.shared_limit: float | None = None
        self._most = float(max_in_flight)
        self._limit = float(max_in_flight)
        self._per_second = per_second
        self._adaptive = AdaptiveRate()
        self._admitted = RateMeter()
        self._was_throttled = False
        self._in_flight = 0
        self._waiting: deque[asyncio.Future[int]] = deque()
        self._spent_at = -math.inf  # the time for which the rate counts the last request
        self._closed_until = 0.0
        self._rate_limited_since: float | None = None
        self._pauses = 0
        self._is_probing = False
        self._epoch = 0  # a 429 of a request admitted before the last pause is not new evidence
        self._rate_limited_epoch = -1  # of the requests whose 429 closed the limiter
        self._timer: asyncio.TimerHandle | None = None

    @property
    def in_flight_limit(self) -> int:
        """The most requests in flight at the moment."""
        return 1 if self._is_probing else max(1, int(self._limit))

    @property
    def in_flight(self) -> int:
        """The number of requests in flight."""
        return self._in_flight

    @property
    def per_second(self) -> float | None:
        """The most requests per second; may be set while requests wait."""
        return self._per_second

    @per_second.setter
    def per_second(self, value: float | None) -> None:
        self._per_second = value
        if self._waiting:
            self._admit()

    @property
    def rate(self) -> float:
        """The requests per second at the moment: the smaller of the allowed and the learned rate, or inf."""
        return min(self._allowed(), self._adaptive.per_second)

    def demand(self) -> float:
        """Return the requests per second that the process could use.

        Returns:
            inf if `per_second` has delayed requests since the last call, else the rate of admitted requests.
        """
        was_throttled, self._was_throttled = self._was_throttled, False
        if was_throttled:
            return math.inf
        return self._admitted.per_second(asyncio.get_running_loop().time())

    def rate_limited_seconds(self) -> float:
        """Return the time since the first of consecutive 429 answers; 0.0 after any other answer."""
        if self._rate_limited_since is None:
            return 0.0
        return asyncio.get_running_loop().time() - self._rate_limited_since

    def pause_seconds(self) -> float:
        """Return how long the limiter stays closed after a 429; 0.0 when it is open."""
        return max(0.0, self._closed_until - asyncio.get_running_loop().time())

    def bound(self) -> Bound | None:
        """Return what requests wait for at the moment; None if none waits."""
        if self._per_second == 0:
            return "budget"
        if self._rate_limited_since is not None:
            return "rate-limited"
        if not self._waiting:
            return None
        if self._in_flight >= self.in_flight_limit:
            return "in flight" if self._limit == self._most else "overload"
        return "budget" if self.rate == self._allowed() else "accepted rate"

    async def acquire(self) -> int:
        """Wait for permission to send a request.

        Returns:
            A ticket, for the method that reports the outcome.

        Raises:
            WaitersRejected: The pause is longer than the request may wait.
        """
        if self._waiting or not self._is_admitting():
            turn: asyncio.Future[int] = asyncio.get_running_loop().create_future()
            self._waiting.append(turn)
            self._admit()
            try:
                return await turn
            except asyncio.CancelledError:
                if turn.done() and not turn.cancelled() and turn.exception() is None:
                    self.release()  # admitted at the time of the cancellation: pass the turn on
                raise
        self._count_in()
        return self._epoch

    def reject_waiters(self) -> None:
        """Let all waiting requests fail, because the limiter stays closed for longer than they may wait."""
        for turn in self._waiting:
            if not turn.done():
                turn.set_exception(WaitersRejected())
        self._waiting.clear()

    def release(self) -> None:
        """Report the end of a request, with any outcome."""
        self._in_flight -= 1
        if self._waiting:
            self._admit()

    def on_success(self, ticket: int) -> None:
        """Report that the gateway answered."""
        now = asyncio.get_running_loop().time()
        self._adaptive.on_success(now, is_known=self._per_second is not None)
        if self._is_probing:
            if ticket != self._epoch:
                return  # sent before the limiter closed
            self._adaptive.on_recovered(now)
            self._is_probing = False
            self._epoch += 1
        elif ticket == self._epoch:
            self._pauses = 0
        self._rate_limited_since = None
        if self._limit < self._most:
            self._limit = min(self._most, self._limit + 1.0 / max(1.0, self._limit))

    def on_overload(self, ticket: int) -> None:
        """Report an overloaded gateway; lowers the bound in flight once for all requests that met it."""
        if ticket == self._epoch:
            self._epoch += 1
            self._limit = max(1.0, self._limit * 0.7)

    def on_rate_limited(self, ticket: int, retry_after_seconds: float | None) -> None:
        """Report a 429: closes the limiter for `retry_after_seconds`, or longer after each further 429.

        After a second 429, the pause is not shorter than it would be without the gateway's hint.
        """
        self.rate_limited += 1
        now = asyncio.get_running_loop().time()
        if self._rate_limited_since is None:
            self._rate_limited_since = now
        if ticket != self._epoch:
            if ticket == self._rate_limited_epoch:
                self._adaptive.on_rate_limited_again()
            return
        # A single request after a pause shows whether the pause was long enough, but does not measure a rate.
        if not self._is_probing:
            self._rate_limited_epoch = ticket
            self._adaptive.on_rate_limited(now)
        self._epoch += 1
        first = FIRST_PAUSE_SECONDS
        if self.rate < math.inf:
            first = min(first, max(SHORTEST_PAUSE_SECONDS, FIRST_PAUSE_REQUESTS * self._spacing()))
        pause = min(LONGEST_PAUSE_SECONDS, first * 2.0**self._pauses)
        # Processes that met a 429 together must not return together.
        pause *= random.uniform(0.75, 1.25)  # noqa: S311 - jitter, not a secret
        if retry_after_seconds is not None:
            pause = max(retry_after_seconds, pause if self._pauses else 0.0)
        self._pauses += 1
        self._is_probing = True
        self._closed_until = now + pause

    def _spacing(self) -> float:
        """Return the seconds between two requests."""
        return 1.0 / self.rate if self.rate else math.inf

    def _allowed(self) -> float:
        return math.inf if self._per_second is None else self._per_second * USED_SHARE

    def _due(self) -> float:
        """Return when the rate admits the next request; inf for never."""
        return self._spent_at + self._spacing() if self.rate else math.inf

    def _is_admitting(self) -> bool:
        now = asyncio.get_running_loop().time()
        return self._in_flight < self.in_flight_limit and now >= self._closed_until and now >= self._due()

    def _count_in(self) -> None:
        self._in_flight += 1
        now = asyncio.get_running_loop().time()
        self._admitted.count(now)
        # The rate catches up on a short delay, but not on a long silence, nor on a pause: a second request
        # right after the probe would meet the next 429.
        late = 0.0 if self._is_probing else max(LATE_SECONDS, self._spacing())
        self._spent_at = max(self._due(), now - late)

    def _admit(self) -> None:
        while self._waiting and self._is_admitting():
            turn = self._waiting.popleft()
            if not turn.done():
                self._count_in()
                # The epoch of the admission: the limiter may close before the request runs.
                turn.set_result(self._epoch)
        if not self._waiting or self._in_flight >= self.in_flight_limit:
            return
        # No request in flight will wake the next one when it ends, so a timer must.
        loop = asyncio.get_running_loop()
        due = self._due()
        self._was_throttled |= self.rate == self._allowed() and due > max(loop.time(), self._closed_until)
        if self._timer is not None:
            self._timer.cancel()
        self._timer = (
            None if due == math.inf else loop.call_at(max(due, self._closed_until, loop.time()), self._admit)
        )
