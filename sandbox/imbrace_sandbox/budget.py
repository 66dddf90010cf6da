"""The request budget of each client IP."""

from __future__ import annotations

import time
from collections.abc import Callable

from imbrace_sandbox.options import SandboxOptions


class Budget:
    """Counts the requests of each client; a rate-limited request does not count.

    Args:
        options: Those named `budget_…` are used.
        clock: Monotonic seconds; tests may replace it.
    """

    def __init__(self, options: SandboxOptions, clock: Callable[[], float] = time.monotonic) -> None:
        self._requests = options.budget_requests
        self._window = options.budget_window_seconds
        self._is_bucket = options.budget_kind == "bucket"
        self._clock = clock
        # Fixed window: its start and its requests. Bucket: the time of the last request, and the tokens left.
        self._clients: dict[str, tuple[float, float]] = {}

    def wait_seconds(self, client: str) -> float:
        """Spend one request of the client's budget; return 0.0, or the seconds to wait if none is left."""
        if not self._requests:
            return 0.0
        return self._take_token(client) if self._is_bucket else self._count(client)

    def _count(self, client: str) -> float:
        now = self._clock()
        start, made = self._clients.get(client, (now, 0.0))
        if now - start >= self._window:
            start, made = now, 0.0
        if made >= self._requests:
            return start + self._window - now
        self._clients[client] = (start, made + 1)
        return 0.0

    def _take_token(self, client: str) -> float:
        now = self._clock()
        rate = self._requests / self._window
        seen, tokens = self._clients.get(client, (now, float(self._requests)))
        tokens = min(self._requests, tokens + (now - seen) * rate)
        if tokens < 1:
            self._clients[client] = (now, tokens)
            return (1 - tokens) / rate
        self._clients[client] = (now, tokens - 1)
        return 0.0
