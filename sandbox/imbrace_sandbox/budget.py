"""How many requests a client IP may make."""

from __future__ import annotations

import time
from collections.abc import Callable

from imbrace_sandbox.options import SandboxOptions


class Budget:
    """Counts the requests of each client; a refused request costs nothing and helps nothing.

    Args:
        options: Of which the `budget_…` ones matter.
        clock: Seconds that never go back; a test may bring its own.
    """

    def __init__(self, options: SandboxOptions, clock: Callable[[], float] = time.monotonic) -> None:
        self._requests = options.budget_requests
        self._window = options.budget_window_seconds
        self._is_bucket = options.budget_kind == "bucket"
        self._clock = clock
        # Fixed window: its start and the requests made. Bucket: the last look and the tokens left then.
        self._clients: dict[str, tuple[float, float]] = {}

    def wait_seconds(self, client: str) -> float:
        """Spend one request of the client; return 0.0, or how long it has to wait if it has none left."""
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
