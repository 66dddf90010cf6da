"""A gateway that refuses without a hint, and everybody who wants something from it; time is the loop's."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass

from imbrace_lake.gateway.limiter import RequestLimiter
from imbrace_sandbox.budget import Budget
from imbrace_sandbox.options import SandboxOptions

LATENCY_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class Use:
    """What came of a minute: accepted requests a second, and the share of refusals."""

    per_second: float
    refused_share: float


class Load:
    """Everybody who wants something from a gateway that refuses without a hint.

    Args:
        requests: What the gateway bears in a window; 0 for everything.
        window_seconds: Its length.
        kind: ``fixed`` window or ``bucket``.
        stray_share: Requests that are refused whatever the rate.
    """

    def __init__(
        self, requests: int, window_seconds: float = 1.0, kind: str = "fixed", *, stray_share: float = 0.0
    ) -> None:
        self._options = SandboxOptions(
            budget_requests=requests, budget_window_seconds=window_seconds, budget_kind=kind
        )
        self._stray_share = stray_share
        self._rng = random.Random(7)
        self.answers: list[tuple[float, bool]] = []

    def bears(self, requests: int) -> None:
        """From now on the gateway bears so many."""
        options = self._options.changed({"budget_requests": requests})
        self._budget = Budget(options, asyncio.get_running_loop().time)

    async def press(self, *gates: RequestLimiter, until: float, many: int = 100) -> None:
        """Ask through the gates, as fast as they let, until the clock says so."""
        if not self.answers:
            self.bears(self._options.budget_requests)
        clients = [asyncio.create_task(self._client(limiter)) for limiter in gates for _ in range(many)]
        await asyncio.sleep(until - asyncio.get_running_loop().time())
        for client in clients:
            client.cancel()
        await asyncio.gather(*clients, return_exceptions=True)

    def use(self, since: float, until: float) -> Use:
        """What came of a span of time."""
        answers = [is_refused for at, is_refused in self.answers if since <= at < until]
        accepted = answers.count(False)
        return Use(accepted / (until - since), (len(answers) - accepted) / len(answers))

    async def _client(self, limiter: RequestLimiter) -> None:
        clock = asyncio.get_running_loop().time
        while True:
            ticket = await limiter.acquire()
            try:
                await asyncio.sleep(self._rng.uniform(0.0, 0.01))  # on the way
                is_refused = self._budget.wait_seconds("us") > 0 or self._rng.random() < self._stray_share
                self.answers.append((clock(), is_refused))
                await asyncio.sleep(0.002 if is_refused else LATENCY_SECONDS)
                if is_refused:
                    limiter.on_rate_limited(ticket, None)
                else:
                    limiter.on_success(ticket)
            finally:
                limiter.release()
