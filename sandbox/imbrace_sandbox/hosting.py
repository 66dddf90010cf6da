"""Runs the server in a thread, or in the foreground until a signal."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from aiohttp import web

from imbrace_sandbox.app import BASE_PATH, make_app
from imbrace_sandbox.options import SandboxOptions
from imbrace_sandbox.state import SandboxState

T = TypeVar("T")

LOCALHOST = "127.0.0.1"
_START_SECONDS = 60.0
# Longer than our own limit, which answers 414; aiohttp's would answer 400.
_MAX_LINE_BYTES = 1 << 20


async def _start(state: SandboxState, host: str, port: int) -> tuple[web.AppRunner, int]:
    """Listen; return the runner, which stops it, and its port."""
    runner = web.AppRunner(
        make_app(state),
        access_log=None,
        # A stalled handler ends when its client disconnects.
        handler_cancellation=True,
        handle_signals=False,
        # Stalls are endless, so every stop would wait for them.
        shutdown_timeout=0.05,
        max_line_size=_MAX_LINE_BYTES,
    )
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
    except OSError:
        await runner.cleanup()
        raise
    return runner, int(runner.addresses[0][1])


class ServerThread:
    """A server with its own thread and event loop.

    The state belongs to that thread, so the server needs no locks; other threads use the state by `call`.

    Raises:
        OSError: The port is taken.
    """

    def __init__(self, state: SandboxState, port: int) -> None:
        started: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event, int]] = Future()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(_serve_until_stopped(state, port, started)),
            name="sandbox",
            daemon=True,
        )
        self._thread.start()
        self._loop, self._stop, self.port = started.result(timeout=_START_SECONDS)

    def call(self, job: Callable[[], T]) -> T:
        """Run a job in the server's thread; return its result."""
        if self._thread is threading.current_thread():
            return job()
        done: Future[T] = Future()
        self._loop.call_soon_threadsafe(_settle, done, job)
        return done.result()

    def stop(self) -> None:
        """Close every connection, and wait until the thread ends."""
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()


async def _serve_until_stopped(
    state: SandboxState, port: int, started: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event, int]]
) -> None:
    try:
        runner, chosen = await _start(state, LOCALHOST, port)
    except OSError as exc:
        started.set_exception(exc)
        return
    stop = asyncio.Event()
    started.set_result((asyncio.get_running_loop(), stop, chosen))
    await stop.wait()
    await runner.cleanup()


def _settle(done: Future[T], job: Callable[[], T]) -> None:
    try:
        done.set_result(job())
    except BaseException as exc:  # noqa: BLE001 - raised again in the thread of the caller
        done.set_exception(exc)


def serve(
    options: SandboxOptions,
    host: str = LOCALHOST,
    port: int = 8899,
    on_start: Callable[[str], object] = lambda _url: None,
) -> None:
    """Serve until SIGINT or SIGTERM; for the command line.

    Args:
        options: What to serve.
        host: Any other address than loopback admits other machines, which need no token for `/_sandbox`.
        port: 0 lets the kernel choose.
        on_start: Called with the base URL as soon as the server listens.

    Raises:
        OSError: The port is taken, or the host is not this machine's.
        ValueError: The file of the options cannot be read.
    """
    asyncio.run(_serve_until_signal(SandboxState(options), host, port, on_start))


async def _serve_until_signal(
    state: SandboxState, host: str, port: int, on_start: Callable[[str], object]
) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        # Where a loop does not support signals, Ctrl-C still ends asyncio.run() by a KeyboardInterrupt.
        with contextlib.suppress(NotImplementedError):
            loop.add_signal_handler(number, stop.set)
    runner, chosen = await _start(state, host, port)
    try:
        on_start(f"http://{host}:{chosen}{BASE_PATH}")
        await stop.wait()
    finally:
        await runner.cleanup()
