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
    """The effect of the first Ctrl-C.

    Attributes:
        is_requested: Whether Ctrl-C was pressed.
    """

    def __init__(self) -> None:
        self.is_requested = False
        self._cancel: Callable[[], None] | None = None

    @contextmanager
    def cancels(self, cancel: Callable[[], None]) -> Iterator[None]:
        """Let Ctrl-C call a function while the block runs; otherwise it raises KeyboardInterrupt."""
        self._cancel = cancel
        try:
            yield
        finally:
            self._cancel = None

    def on_signal(self, *_: object) -> None:
        """Handle SIGINT, which can arrive at any moment in the main thread."""
        if self.is_requested:
            # Without waiting for threads or a server: the lake is consistent, as after any kill.
            if os.isatty(2):
                os.write(2, _SHOW_CURSOR)
            os._exit(INTERRUPTED)
        self.is_requested = True
        # Not through a stream: this signal may have interrupted its write.
        os.write(2, _ACKNOWLEDGED)
        if self._cancel is None:
            raise KeyboardInterrupt
        self._cancel()


@contextmanager
def interruptible() -> Iterator[Interrupt]:
    """Handle Ctrl-C while the block runs; only the main thread of a process gets it."""
    interrupt = Interrupt()
    is_main = threading.current_thread() is threading.main_thread()
    # `nohup`, and shells that start a command in the background, make it ignore Ctrl-C.
    if not is_main or signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        yield interrupt
        return
    before = signal.signal(signal.SIGINT, interrupt.on_signal)
    try:
        yield interrupt
    finally:
        signal.signal(signal.SIGINT, before)
