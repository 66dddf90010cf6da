"""A second process that does short, blocking work for an event loop: it writes objects to a local disk.

In a thread, each system call gives the interpreter's lock away and has to win it back from the event loop,
which takes two switches between threads: a written part took about 30 of them.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import pickle
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from statistics import median
from typing import Any, Self, TypeVar

# The start takes 0.1 s: a run earns that back if it writes many objects in a short time, not if it writes a
# journal every second.
START_AFTER = 32
WITHIN_SECONDS = 1.0
# Larger bodies are written in a thread of this process, where they are in memory only once.
MAX_BYTES = 2**20
# On a slow disk or a network mount several threads write; on a fast disk a single one does, because threads
# that share the interpreter's lock took a fifth more of the run's time.
THREADS = 8
SLOW_SECONDS = 0.01
RECENT_WRITES = 21
END_SECONDS = 30.0

T = TypeVar("T")
# The environment of the process. It gets no others, because these can contain tokens and keys.
_VARIABLES = (
    "PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "LC_ALL", "LC_CTYPE", "LANG", "TZ",
    "COVERAGE_PROCESS_CONFIG", "COVERAGE_PROCESS_START",
)  # fmt: skip
# The number of a call, and the length of the pickled call or result that follows.
_HEADER = struct.Struct(">QQ")


class WriterProcess:
    """Runs functions in a second process once there are many calls; open it with ``async with``.

    The first calls run in threads of this process, and all others do if the second process ends early.

    Args:
        start_after: The process starts at this number of calls within ``WITHIN_SECONDS``; None means
            ``START_AFTER``.
    """

    def __init__(self, start_after: int | None = None) -> None:
        # When the latest calls came.
        self._called: deque[float] = deque(maxlen=START_AFTER if start_after is None else start_after)
        self._is_started = False
        self._numbers = itertools.count()
        # A method and its object take longer to pickle than the arguments of a call.
        self._pickled: dict[Callable[..., Any], bytes] = {}
        self._pending: dict[int, asyncio.Future[Any]] = {}
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: asyncio.WriteTransport | None = None
        self._is_ready = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    async def close(self) -> None:
        """End the process, once it has made the calls that it has received."""
        if self._process is not None:
            if self._connection is None:
                self._process.kill()
            else:
                self._connection.close()
            await asyncio.to_thread(_wait, self._process)

    async def run(self, threads: Executor | None, func: Callable[..., T], *args: object) -> T:
        """Call a function that may be called twice; arguments, result or error are pickled, and itself once.

        Args:
            threads: The threads of this process that make the call if the second process does not; None for
                those of the event loop.
            func: The function; one of few, because it is kept.
            args: Its arguments.
        """
        is_first = not self._is_started and self._is_busy()
        if is_first:
            self._is_started = True
            with suppress(OSError):  # a process cannot be started, so this one does everything
                await self._start()
        if self._connection is not None and (self._is_ready or is_first):
            with suppress(_Ended):
                result: T = await self._call(func, args)
                # Until the process has imported what its first call needs, this one makes the calls.
                self._is_ready = self._connection is not None
                return result
        return await asyncio.get_running_loop().run_in_executor(threads, func, *args)

    def _is_busy(self) -> bool:
        """Count a call; return whether many came within a short time."""
        now = time.monotonic()
        self._called.append(now)
        return len(self._called) == self._called.maxlen and now - self._called[0] <= WITHIN_SECONDS

    async def _start(self) -> None:
        environment = {name: os.environ[name] for name in _VARIABLES if name in os.environ}
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                # Not `multiprocessing`, which would also import the main module there, an orchestrator.
                self._process = subprocess.Popen(  # noqa: ASYNC220, S603 - quick; this interpreter and module
                    # Without modules of the current folder, which may belong to another project.
                    [sys.executable, "-P", "-m", __name__, str(theirs.fileno()), str(os.getpid())],
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    pass_fds=[theirs.fileno()],
                )
        except OSError:
            ours.close()
            raise
        self._connection, _ = await asyncio.get_running_loop().create_connection(
            lambda: _Results(self._pending, self._on_end), sock=ours
        )

    async def _call(self, func: Callable[..., Any], args: tuple[object, ...]) -> Any:
        number = next(self._numbers)
        result = self._pending[number] = asyncio.get_running_loop().create_future()
        assert self._connection is not None  # noqa: S101 - narrows the type for mypy
        if func not in self._pickled:
            self._pickled[func] = pickle.dumps(func, pickle.HIGHEST_PROTOCOL)
        self._connection.writelines(_framed(number, (self._pickled[func], args)))
        return await result

    def _on_end(self) -> None:
        self._connection, self._is_ready = None, False
        for result in self._pending.values():
            if not result.done():
                result.set_exception(_Ended())
        self._pending.clear()


class _Ended(Exception):
    """The process has ended without the result of a call."""


class _Results(asyncio.Protocol):
    """Receives results."""

    def __init__(self, pending: dict[int, asyncio.Future[Any]], on_end: Callable[[], None]) -> None:
        self._pending = pending
        self._on_end = on_end
        self._received = bytearray()

    def data_received(self, data: bytes) -> None:
        received = self._received
        received += data
        while len(received) >= _HEADER.size:
            number, length = _HEADER.unpack_from(received)
            end = _HEADER.size + length
            if len(received) < end:
                return
            try:
                result, error = pickle.loads(received[_HEADER.size : end])  # noqa: S301 - our own process
            except Exception as exc:  # noqa: BLE001 - an error that can be pickled need not be readable
                result, error = None, exc
            del received[:end]
            waiting = self._pending.pop(number)
            if waiting.done():
                continue  # the caller was cancelled
            if error is None:
                waiting.set_result(result)
            else:
                waiting.set_exception(error)

    def connection_lost(self, exc: Exception | None) -> None:
        self._on_end()


def _framed(number: int, message: object) -> tuple[bytes, bytes]:
    body = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
    return _HEADER.pack(number, len(body)), body


def _wait(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(END_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


# -- the second process ---------------------------------------------------------------------------


def serve(connection: socket.socket, caller: int) -> None:
    """Make calls until the other process, whose id is `caller`, closes the connection or ends."""
    lock = threading.Lock()

    def answer(number: int, func: Callable[..., object], args: tuple[object, ...]) -> None:
        if os.getppid() != caller:
            # It was killed. Its writes must not follow those of the next run, which cleans up after it.
            return
        try:
            send(number, func(*args), None)
        except Exception as exc:  # noqa: BLE001 - the caller gets every error
            send(number, None, exc)

    def send(number: int, result: object, error: Exception | None) -> None:
        try:
            frame = b"".join(_framed(number, (result, error)))
        except Exception as exc:  # noqa: BLE001 - else the caller would wait for ever
            error = RuntimeError(f"{type(error or exc).__name__} in the second process")
            frame = b"".join(_framed(number, (None, error)))
        with lock, suppress(OSError):  # the other process has ended
            connection.sendall(frame)

    function_of: Callable[[bytes], Callable[..., object]] = cache(pickle.loads)
    waits: deque[float] = deque(maxlen=RECENT_WRITES)
    is_slow = False
    with connection.makefile("rb") as calls, ThreadPoolExecutor(THREADS) as threads:
        while header := calls.read(_HEADER.size):
            number, length = _HEADER.unpack(header)
            body = calls.read(length)
            if len(body) < length:
                return  # the other process was killed in the middle of a call
            pickled, args = pickle.loads(body)  # noqa: S301 - our own process
            func = function_of(pickled)
            if is_slow:
                threads.submit(answer, number, func, args)
                continue
            began = time.monotonic() - time.thread_time()
            answer(number, func, args)
            waits.append(time.monotonic() - time.thread_time() - began)
            # The median, because on a busy machine some writes wait for a core.
            is_slow = len(waits) == RECENT_WRITES and median(waits) > SLOW_SECONDS


def main() -> None:
    """Serve the process that has started this one."""
    # Ctrl-C goes to both processes; the other one decides what remains to be written.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with socket.socket(fileno=int(sys.argv[1])) as connection:
        serve(connection, int(sys.argv[2]))


if __name__ == "__main__":
    main()
