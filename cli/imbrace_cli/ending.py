"""How `imbrace-lake up` ends: the first signal ends it in order, the second one at once."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from imbrace_cli.exit_codes import INTERRUPTED

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Ending:
    """The effect of Ctrl-C, of SIGTERM (systemd, containers), and of a terminal that is closed.

    Attributes:
        is_requested: Whether a signal has come.
        describe: Returns the sentence about the first signal.
        kill: What the second signal ends before this process ends.
    """

    def __init__(self) -> None:
        self.is_requested = False
        self.describe: Callable[[], str] = lambda: "stopping"
        self.kill: list[Callable[[], None]] = []
        self._cancel: Callable[[], object] | None = None

    @contextmanager
    def cancels(self, cancel: Callable[[], object]) -> Iterator[None]:
        """Let the first signal call a function while the block runs; else it raises KeyboardInterrupt."""
        self._cancel = cancel
        try:
            yield
        finally:
            self._cancel = None

    def on_signal(self, number: int, _frame: FrameType | None) -> None:
        """Handle a signal, which can arrive at any moment in the main thread."""
        if self.is_requested:
            for end in self.kill:
                end()
            os._exit(INTERRUPTED)
        self.is_requested = True
        # Not through a stream: this signal may have interrupted its write.
        _write(f"\n{self.describe()}; press Ctrl-C again to end at once\n")
        if self._cancel is None:
            raise KeyboardInterrupt
        self._cancel()


@contextmanager
def ends_by_signal() -> Iterator[Ending]:
    """Handle the signals that end a process while the block runs, except those that it is to ignore."""
    ending = Ending()
    numbers = [number for number in _SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, ending.on_signal) for number in numbers}
    try:
        yield ending
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _write(text: str) -> None:
    try:
        os.write(2, text.encode())
    except OSError:
        # The terminal is gone.
        return
