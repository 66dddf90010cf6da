"""A gateway that answers 429 without Retry-After, and its clients, on the event loop's clock."""

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
    """The accepted requests per second, and the share of requests answered by 429."""

    per_second: float
    limited_share: float


class Load:
    """A gateway that answers 429 without Retry-After, and its clients.

    Args:
        requests: The gateway's limit per window; 0 for none.
        window_seconds: The length of a window.
        kind: ``fixed`` window or ``bucket``.
        stray_share: The share of requests that are answered by 429 at any rate.
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

    def set_limit(self, requests: int) -> None:
        """Change the gateway's limit."""
        options = self._options.changed({"budget_requests": requests})
        self._budget = Budget(options, asyncio.get_running_loop().time)

    async def press(self, *limiters: RequestLimiter, until: float, many: int = 100) -> None:
        """Send requests as fast as the limiters admit them, until a time of the loop's clock."""
        if not self.answers:
            self.set_limit(self._options.budget_requests)
        clients = [asyncio.create_task(self._client(limiter)) for limiter in limiters for _ in range(many)]
        await asyncio.sleep(until - asyncio.get_running_loop().time())
        for client in clients:
            client.cancel()
        await asyncio.gather(*clients, return_exceptions=True)

    def use(self, since: float, until: float) -> Use:
        """Return the rate and the share of 429 answers between two times."""
        answers = [is_limited for at, is_limited in self.answers if since <= at < until]
        accepted = answers.count(False)
        return Use(accepted / (until - since), (len(answers) - accepted) / len(answers))

    async def _client(self, limiter: RequestLimiter) -> None:
        clock = asyncio.get_running_loop().time
        while True:
            ticket = await limiter.acquire()
            try:
                await asyncio.sleep(self._rng.uniform(0.0, 0.01))  # the network's latency
                is_limited = self._budget.wait_seconds("us") > 0 or self._rng.random() < self._stray_share
                self.answers.append((clock(), is_limited))
                await asyncio.sleep(0.002 if is_limited else LATENCY_SECONDS)
                if is_limited:
                    limiter.on_rate_limited(ticket, None)
                else:
                    limiter.on_success(ticket)
            finally:
                limiter.release()
