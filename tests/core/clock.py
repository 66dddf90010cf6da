"""An event loop with a simulated clock: time passes only when every task waits, so tests do not wait."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class _Selector(selectors.DefaultSelector):
    """Advances the clock instead of waiting."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is not None and timeout > 0:
            self.now += timeout
        return super().select(0)


class _Loop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._clock = _Selector()
        super().__init__(self._clock)

    def time(self) -> float:
        return self._clock.now


def run_timeless(main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine on a loop with a simulated clock; `loop.time()` starts at 0.0."""
    with asyncio.Runner(loop_factory=_Loop) as runner:
        return runner.run(main)
