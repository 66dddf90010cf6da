"""Ctrl-C, SIGTERM and SIGHUP: acknowledged at once; the command stops in order, a second ends the process.

Python runs the handler of a signal between two instructions of the main thread, which can be busy in a
library for a long time. So a thread acknowledges the signal, and ends a process that does not end by itself.
"""

from __future__ import annotations

import asyncio
import os
import select
import signal
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NoReturn, TypeVar

from imbrace_cli.exit_codes import INTERRUPTED
from imbrace_lake.errors import ImbraceLakeError

T = TypeVar("T")

PATIENCE_SECONDS = 15.0
"""How long a command may take to stop; two seconds are usual."""
LAST_SECONDS = 5.0
"""How long the last attempt to report the end of a run may take."""
_SHOW_CURSOR = b"\x1b[?25h"
ACKNOWLEDGED = "interrupted: stopping; press Ctrl-C again to end at once"
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Ctrl-C, what systemd, containers and `timeout` send, and the end of a terminal."""
_GIVEN_UP = (
    "interrupted: ended without waiting any longer for the lake or the Prefect server; run the same"
    " command to continue"
)


class Interrupted(ImbraceLakeError):
    """Ctrl-C ended a run; the message shows what is complete."""


class Interrupt:
    """The effect of Ctrl-C on a command.

    Attributes:
        is_requested: Whether Ctrl-C was pressed.
        give_up: Called in another thread before a process is ended that has not stopped in time.
    """

    def __init__(self) -> None:
        self.is_requested = False
        self.give_up: Callable[[], None] | None = None
        self._cancel: Callable[[], object] | None = None

    @contextmanager
    def cancels(self, cancel: Callable[[], object]) -> Iterator[None]:
        """Let Ctrl-C call a function while the block runs; otherwise it raises KeyboardInterrupt."""
        self._cancel = cancel
        if self.is_requested:
            cancel()
        try:
            yield
        finally:
            self._cancel = None

    def on_signal(self, *_: object) -> None:
        """Handle a signal in the main thread."""
        if self.is_requested:
            return
        self.is_requested = True
        if self._cancel is None:
            raise KeyboardInterrupt
        self._cancel()

    def watch(self, signals: int) -> None:
        """Acknowledge each signal in a pipe, until it is closed; end a process that does not stop."""
        deadline: float | None = None
        while True:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            if not select.select([signals], [], [], left)[0]:
                self._end()
            received = os.read(signals, 1)
            if not received:
                return
            if received[0] not in _SIGNALS:
                continue
            if deadline is not None and received[0] == signal.SIGHUP:
                # When a terminal closes, both its shell and the system send one.
                continue
            if deadline is not None:
                # Without waiting for threads or a server: the lake is consistent, as after any kill.
                end_process()
            write_line(ACKNOWLEDGED)
            deadline = time.monotonic() + PATIENCE_SECONDS

    def _end(self) -> NoReturn:
        if self.give_up is not None:
            last = threading.Thread(target=self.give_up, daemon=True)
            last.start()
            last.join(LAST_SECONDS)
        end_process(_GIVEN_UP)


_current = Interrupt()


def current_interrupt() -> Interrupt:
    """Return the handling of Ctrl-C by the present command."""
    return _current


@contextmanager
def interruptible(*, until_interrupted: bool = False) -> Iterator[Interrupt]:
    """Handle Ctrl-C, SIGTERM and SIGHUP while the block runs; only the main thread of a process gets them.

    Args:
        until_interrupted: Ctrl-C is the usual end of the block, which handles it itself.
    """
    global _current
    interrupt = _current = Interrupt()
    if until_interrupted or threading.current_thread() is not threading.main_thread():
        yield interrupt
        return
    # `nohup`, and shells that start a command in the background, make it ignore Ctrl-C.
    handled = [one for one in _SIGNALS if signal.getsignal(one) is not signal.SIG_IGN]
    signals, wakeup = os.pipe()
    os.set_blocking(wakeup, False)
    thread = threading.Thread(target=interrupt.watch, args=(signals,), name="interrupt", daemon=True)
    thread.start()
    earlier_wakeup = signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)
    before = {one: signal.signal(one, interrupt.on_signal) for one in handled}
    try:
        yield interrupt
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
        signal.set_wakeup_fd(earlier_wakeup)
        os.close(wakeup)
        thread.join()
        os.close(signals)


@contextmanager
def at_prompt() -> Iterator[None]:
    """Let Ctrl-C only raise KeyboardInterrupt in the block, which can continue; SIGTERM ends the command."""
    wakeup = signal.set_wakeup_fd(-1)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)


def run_interruptibly(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine as `asyncio.run` does; Ctrl-C cancels it.

    Raises:
        KeyboardInterrupt: Ctrl-C was pressed.
    """
    interrupt = current_interrupt()

    async def watched() -> T:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None  # noqa: S101 - narrows the type for mypy
        with interrupt.cancels(lambda: loop.call_soon_threadsafe(task.cancel)):
            return await work

    try:
        return asyncio.run(watched())
    except asyncio.CancelledError:
        if interrupt.is_requested:
            raise KeyboardInterrupt from None
        raise


def write_line(sentence: str) -> None:
    """Write to standard error without a stream, whose write the signal may have interrupted."""
    # On a terminal, the cursor is behind `^C` or a progress display.
    with suppress(OSError):
        # The terminal can be gone.
        os.write(2, f"\n{sentence}\n".encode())


def end_process(sentence: str = "") -> NoReturn:
    """End the process at once, in any thread and without any cleanup."""
    if sentence:
        write_line(sentence)
    if os.isatty(2):
        with suppress(OSError):
            os.write(2, _SHOW_CURSOR)
    os._exit(INTERRUPTED)
