"""A worker process that encodes and writes objects for one event loop.

In a thread the same work takes the interpreter's lock from the loop some fifty times an object, and
each time costs two switches between threads: together a fifth of a run on two cores
(docs/benchmarks.md). What goes to and fro is pickled, over a socket that nobody else has.

The process sends a heartbeat every second, by a thread that waits for no disk. If it is silent for
too long it is stopped, swapped out or stuck, and this process kills it and does the work itself.
"""

from __future__ import annotations

import asyncio
import io
import logging
import os
import pickle
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from statistics import median
from typing import Any, ParamSpec, TypeVar

from imbrace_lake.processes import inherited_environment
from imbrace_lake.store.contract import Body, LazyBody
from imbrace_lake.tuning import MEMORY_POOL_VARIABLE

logger = logging.getLogger(__name__)

# Starting it takes another core a quarter of a second, which some dozens of objects earn again.
START_AFTER = 16
MOST_BYTES = 2**20
CLOSE_SECONDS = 30.0
# A disk that lets most writes wait longer is written by several threads; a quick one by one, which
# has the lock of its process for itself.
SLOW_SECONDS = 0.01
LOOKED_AT = 21
THREADS = 8
HEARTBEAT_SECONDS = 1.0
# Less than what another writer waits for a lock (atomic_files.py) that the silent process may have.
SILENT_SECONDS = 15.0

P = ParamSpec("P")
T = TypeVar("T")
# Of a call or an answer: its number, and the length of what follows.
_HEAD = struct.Struct(">QQ")
# The number of a heartbeat; calls are counted from 1.
_HEARTBEAT = 0


class WorkerDied(Exception):
    """The process ended, or was killed, before it answered; what it was to do it may have done."""


class WorkerProcess:
    """The process, started when there is work enough for it and a core to do it on.

    Args:
        after: How many bodies are made without it.

    Attributes:
        is_ready: Whether it can be asked.
    """

    def __init__(self, after: int = START_AFTER) -> None:
        self._after = after if _cores() > 1 else 0
        self._asked = 0
        self._starting: asyncio.Task[None] | None = None
        self._watching: asyncio.Task[None] | None = None
        self._answers: _Answers | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._transport: asyncio.Transport | None = None
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._last = 0
        self.is_ready = False

    def accepts(self, body: Body) -> bool:
        """Whether a body is written here; only bodies that are pickled quickly are."""
        if isinstance(body, bytes):
            return self.is_ready and len(body) <= MOST_BYTES
        if not isinstance(body, LazyBody) or not body.is_portable:
            return False
        self._asked += 1
        if self._asked == self._after:
            self._starting = asyncio.ensure_future(self._start(body))
        return self.is_ready

    async def run(self, func: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a function there; all of it is pickled by name and value, and so is what it raises.

        Raises:
            WorkerDied: The process ended; there is none any more.
        """
        if self._transport is None or self._transport.is_closing():
            raise WorkerDied
        self._last += 1
        answer = self._waiting[self._last] = asyncio.get_running_loop().create_future()
        self._transport.write(_framed(self._last, partial(func, *args, **kwargs)))
        result: T = await answer
        return result

    async def close(self) -> None:
        """Finish pending calls, then end the process."""
        if self._starting is not None:
            self._starting.cancel()
            await asyncio.gather(self._starting, return_exceptions=True)
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
        if self._transport is not None:
            # What is asked already still goes there.
            self._transport.close()
        if self._process is not None:
            if not self.is_ready:
                # Nobody waits for it, and a short run should not wait until it has begun.
                self._process.kill()
            await asyncio.to_thread(_wait, self._process)
        self._process = self._transport = None

    async def _start(self, body: LazyBody) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                self._process = _spawn(theirs)
            except OSError as exc:
                ours.close()
                logger.info("no second process writes objects, this one goes on alone: %s", exc)
                return
        self._transport, self._answers = await asyncio.get_running_loop().create_connection(
            lambda: _Answers(self._waiting, self._on_death), sock=ours
        )
        try:
            # Whatever the body needs is imported there when it arrives.
            await self.run(_warm_up, body)
        except Exception as exc:  # noqa: BLE001 - whatever it is, the work is done without it
            logger.info("no second process writes objects, this one goes on alone: %r", exc)
        else:
            self.is_ready = True
            self._watching = asyncio.ensure_future(self._watch(self._process, self._answers))

    async def _watch(self, process: subprocess.Popen[bytes], answers: _Answers) -> None:
        """Kill the process when it has been silent for too long; how busy it is does not matter."""
        silent_seconds = 0.0
        # Not by the clock: a loop that was blocked, or a machine that slept, heard nothing meanwhile.
        while silent_seconds < SILENT_SECONDS:
            answers.is_heard = False
            await asyncio.sleep(HEARTBEAT_SECONDS)
            silent_seconds = 0.0 if answers.is_heard else silent_seconds + HEARTBEAT_SECONDS
        logger.warning(
            "the second process that writes objects has not reacted for %g s and is ended", SILENT_SECONDS
        )
        # Even a stopped process obeys; its end is met like any other.
        process.kill()

    def _on_death(self) -> None:
        self.is_ready = False
        waiting = [answer for answer in self._waiting.values() if not answer.done()]
        self._waiting.clear()
        for answer in waiting:
            answer.set_exception(WorkerDied())
        if waiting:
            logger.warning("the second process that writes objects has ended; this one goes on alone")


class _Answers(asyncio.Protocol):
    """What comes back; an answer that nobody waits for any more is dropped."""

    def __init__(self, waiting: dict[int, asyncio.Future[Any]], on_end: Callable[[], None]) -> None:
        self._waiting = waiting
        self._on_end = on_end
        self._received = bytearray()
        self.is_heard = False

    def data_received(self, data: bytes) -> None:
        self.is_heard = True
        self._received += data
        while len(self._received) >= _HEAD.size:
            number, length = _HEAD.unpack_from(self._received)
            end = _HEAD.size + length
            if len(self._received) < end:
                return
            if number == _HEARTBEAT:
                del self._received[:end]
                continue
            result, error = pickle.loads(self._received[_HEAD.size : end])  # noqa: S301 - our own process
            del self._received[:end]
            answer = self._waiting.pop(number)
            if answer.done():
                continue
            if error is None:
                answer.set_result(result)
            else:
                answer.set_exception(error)

    def connection_lost(self, exc: Exception | None) -> None:
        self._on_end()


def _cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _spawn(connection: socket.socket) -> subprocess.Popen[bytes]:
    # Not `multiprocessing`, which would import the main module there as well: an orchestrator.
    return subprocess.Popen(  # noqa: S603 - this interpreter and this module
        [sys.executable, "-m", __name__, str(connection.fileno())],
        env={
            MEMORY_POOL_VARIABLE: "system",
            **inherited_environment(),
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        },
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        pass_fds=[connection.fileno()],
    )


def _wait(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(CLOSE_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _framed(number: int, message: object) -> bytes:
    body = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
    return _HEAD.pack(number, len(body)) + body


# -- the other process ----------------------------------------------------------------------------


def _warm_up(body: LazyBody) -> None:
    """Import what a body needs; unpickling it does that."""


def serve(connection: socket.socket) -> None:
    """Do what is asked until nobody can ask any more."""
    lock = threading.Lock()

    def answer(number: int, call: bytes) -> None:
        reply = _framed(number, _outcome(call))
        with lock, suppress(OSError):
            connection.sendall(reply)

    def send_heartbeats() -> None:
        with suppress(OSError):  # the other end is closed
            while True:
                with lock:
                    connection.sendall(_HEAD.pack(_HEARTBEAT, 0))
                time.sleep(HEARTBEAT_SECONDS)

    threading.Thread(target=send_heartbeats, daemon=True).start()
    waits: list[float] = []
    threads: ThreadPoolExecutor | None = None
    with connection.makefile("rb") as stream:
        for number, call in _calls(stream):
            if threads is not None:
                threads.submit(answer, number, call)
                continue
            began, computed = time.monotonic(), time.thread_time()
            answer(number, call)
            waits.append((time.monotonic() - began) - (time.thread_time() - computed))
            if len(waits) == LOOKED_AT:
                # Not the mean: a busy machine lets some of them wait for a core.
                if median(waits) > SLOW_SECONDS:
                    threads = ThreadPoolExecutor(THREADS)
                waits.clear()
    if threads is not None:
        threads.shutdown()


def _calls(stream: io.BufferedReader) -> Iterator[tuple[int, bytes]]:
    while len(head := stream.read(_HEAD.size)) == _HEAD.size:
        number, length = _HEAD.unpack(head)
        if len(call := stream.read(length)) < length:
            return
        yield number, call


def _outcome(call: bytes) -> tuple[Any, Exception | None]:
    """What a call gives, and what it raises: that is raised where it was asked for."""
    try:
        return pickle.loads(call)(), None  # noqa: S301 - from the process that started this one
    except Exception as exc:  # noqa: BLE001
        try:
            pickle.loads(pickle.dumps(exc))  # noqa: S301 - our own
        except Exception:  # noqa: BLE001 - of some errors only the text can be brought over
            return None, RuntimeError(f"{type(exc).__name__}: {exc}")
        return None, exc


if __name__ == "__main__":
    # Ctrl-C in a terminal reaches it too, but the process that it helps says when to end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with socket.socket(fileno=int(sys.argv[1])) as ours:
        serve(ours)
