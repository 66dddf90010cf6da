"""Ctrl-C during a run: acknowledged at once, and the run ends as cancelled; a second one ends the process."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

INTERRUPTED = 130
_SHOW_CURSOR = b"\x1b[?25h"
_ACKNOWLEDGED = b"\ninterrupted: the run is stopping; press Ctrl-C again to end it at once\n"


class Interrupt:
    """What a first Ctrl-C does.

    Attributes:
        is_requested: Whether there was one.
    """

    def __init__(self) -> None:
        self.is_requested = False
        self._cancel: Callable[[], None] | None = None

    @contextmanager
    def cancels(self, cancel: Callable[[], None]) -> Iterator[None]:
        """Let Ctrl-C call a function as long as the block lasts; elsewhere it raises KeyboardInterrupt."""
        self._cancel = cancel
        try:
            yield
        finally:
            self._cancel = None

    def on_signal(self, *_: object) -> None:
        """Handle SIGINT, at any moment in the main thread."""
        if self.is_requested:
            # Without waiting for threads or for a server: what was written is safe, as after any kill.
            if os.isatty(2):
                os.write(2, _SHOW_CURSOR)
            os._exit(INTERRUPTED)
        self.is_requested = True
        # Not by a stream, whose buffer this signal may have interrupted.
        os.write(2, _ACKNOWLEDGED)
        if self._cancel is None:
            raise KeyboardInterrupt
        self._cancel()


@contextmanager
def interruptible() -> Iterator[Interrupt]:
    """Handle Ctrl-C as long as the block lasts; only the main thread of a process gets it."""
    interrupt = Interrupt()
    is_main = threading.current_thread() is threading.main_thread()
    # `nohup` and shells that start a command in the background let it ignore Ctrl-C.
    if not is_main or signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        yield interrupt
        return
    before = signal.signal(signal.SIGINT, interrupt.on_signal)
    try:
        yield interrupt
    finally:
        signal.signal(signal.SIGINT, before)
