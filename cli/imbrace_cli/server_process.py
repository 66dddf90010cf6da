"""The process of the local Prefect server.

``python -m imbrace_cli.server_process FOLDER IDLE_SECONDS KEEP_SECONDS`` starts it.

`prefect server start --background` cannot start it: that server answers to any Host header, accepts
websockets of any page and has no hook for a guard (`server_guard`), and it logs to a pipe that ends with the
command, so that a failed start leaves no reason.
"""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn
from filelock import FileLock, Timeout

from imbrace_cli.__main__ import LOADING_THRESHOLD
from imbrace_cli.local_server import (
    RECORDING_SECONDS,
    STOP_SECONDS,
    LocalServer,
    ServerFiles,
    is_in_use,
    prefect_version,
)
from imbrace_cli.server_database import create_database
from imbrace_cli.server_guard import Guard, own_origins

FIRST_PORT = 4280
PORTS_TRIED = 20
TICK_SECONDS = 5.0
LEAST_CPU_SECONDS = 0.01
"""CPU time per tick that counts as work; the event loop alone uses more, a hanging one less."""

POLL_INTERVAL = timedelta(seconds=3)
"""The longest time that the due work of the server's services waits."""

SERVER_SETTINGS = {
    # Row by row, the recorder needs four times the CPU and locks SQLite against the runs' own states.
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE": "200",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_FLUSH_INTERVAL": "2",
    "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_BATCH_SIZE": "200",
    # By default, a server without any work searches for some with 1.5 % of a core. Starts, cancellations and
    # schedules do not depend on these services: they note what is late, offline, expired or lost.
    "PREFECT_SERVER_SERVICES_CLEANUP_RECONCILER_LOOP_SECONDS": "60",
    "PREFECT_SERVER_SERVICES_FOREMAN_LOOP_SECONDS": "30",
    "PREFECT_SERVER_SERVICES_LATE_RUNS_LOOP_SECONDS": "30",
    "PREFECT_SERVER_SERVICES_PAUSE_EXPIRATIONS_LOOP_SECONDS": "60",
    "PREFECT_SERVER_SERVICES_REPOSSESSOR_LOOP_SECONDS": "30",
    "PREFECT_SERVER_SERVICES_SCHEDULER_RECENT_DEPLOYMENTS_LOOP_SECONDS": "15",
    "PREFECT_SERVER_EVENTS_PROACTIVE_GRANULARITY": "PT10S",
    # Without flow_runs, runs stay for ever, with their tasks, states, logs and artifacts.
    "PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED": "events,flow_runs",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
    "PREFECT_LOGGING_COLORS": "false",
    "DO_NOT_TRACK": "1",
    "NO_COLOR": "1",
}


def listen(last_port: int | None = None) -> socket.socket:
    """Listen on a free port, the same each time if possible, so that UI and runs find their server again."""
    for port in (last_port, *range(FIRST_PORT, FIRST_PORT + PORTS_TRIED)):
        with suppress(OSError):
            if port is not None:
                return _listen_on(port)
    return _listen_on(0)


def _listen_on(port: int) -> socket.socket:
    listener = socket.create_server(("127.0.0.1", port))
    # Connections inherit it. Without it each answer takes 40 ms longer, because its body waits until the
    # client has confirmed its headers; asyncio sets it only for sockets that name their protocol.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def _read_port(path: Path) -> int | None:
    try:
        port = int(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return port if 0 < port < 65_536 else None


def server_environment(directory: Path, port: int, keep_seconds: float) -> dict[str, str]:
    """Return what `os.environ` needs before the first import of Prefect's server."""
    return SERVER_SETTINGS | {
        "PREFECT_SERVER_SERVICES_DB_VACUUM_RETENTION_PERIOD": str(round(keep_seconds)),
        "PREFECT_HOME": str(directory),
        "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
        # By default, every page on the web may read the answers of a server on this machine.
        "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": ",".join(own_origins(port)),
    }


class IdleServer(uvicorn.Server):
    """Serves an application until SIGTERM, until it is idle, or until its folder is removed.

    Args:
        application: An ASGI application.
        server: The server as its state file describes it.
        idle_seconds: How long it stays after the last use.
    """

    def __init__(
        self,
        application: Any,
        server: LocalServer,
        idle_seconds: float,
        *,
        tick_seconds: float = TICK_SECONDS,
        recording_seconds: float = RECORDING_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        # A page of the UI keeps connections open, for which the end of the server would wait without a limit.
        super().__init__(
            uvicorn.Config(application, log_level="warning", timeout_graceful_shutdown=int(STOP_SECONDS // 2))
        )
        self._server = server
        self._files = ServerFiles(server.directory)
        self._idle_seconds = idle_seconds
        self._tick_seconds = tick_seconds
        self._recording_seconds = recording_seconds
        self._clock = clock
        self._is_asked_to_end = threading.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, and write that the server is ready."""
        await super().startup(sockets)
        # A server whose folder was removed meanwhile ends with its first look at the state file.
        with suppress(FileNotFoundError):
            replace(self._server, is_ready=True).write()
        threading.Thread(target=self._end_when_unused, daemon=True).start()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to end at a signal."""
        self._is_asked_to_end.set()

    def _end_when_unused(self) -> None:
        used, last_use = self._clock(), self._last_use()
        while not self._is_asked_to_end.wait(min(self._tick_seconds, self._idle_seconds)):
            if not self._files.state.exists():
                break
            if is_in_use(self._files) or self._last_use() != last_use:
                used, last_use = self._clock(), self._last_use()
            elif self._clock() - used >= self._idle_seconds and self._withdraw(last_use):
                break
        # No command finds the server from here on.
        self._files.state.unlink(missing_ok=True)
        # Prefect loses task runs that it has not recorded when it ends.
        since_use = time.time() - self._last_use()
        if not is_in_use(self._files) and 0 <= since_use < self._recording_seconds:
            time.sleep(self._recording_seconds - since_use)
        self.should_exit = True

    def _withdraw(self, last_use: float) -> bool:
        """Remove the state file, unless a command is about to use the server."""
        try:
            with FileLock(self._files.start_lock, timeout=0, mode=0o600):
                if is_in_use(self._files) or self._last_use() != last_use:
                    return False
                self._files.state.unlink(missing_ok=True)
                return True
        except Timeout:
            return False

    def _last_use(self) -> float:
        try:
            return self._files.use_lock.stat().st_mtime
        except FileNotFoundError:
            return 0.0


def watch_process(state: Path) -> None:
    """Touch the state file when this process has used CPU time, and end a process that does not end in time.

    Commands wait for a server that works. Once the state file is gone, no command can find the process to
    end it.
    """
    before = time.process_time()
    while state.exists():
        time.sleep(TICK_SECONDS)
        if (now := time.process_time()) - before >= LEAST_CPU_SECONDS:
            before = now
            with suppress(FileNotFoundError):
                os.utime(state)
    time.sleep(RECORDING_SECONDS + STOP_SECONDS)
    os._exit(1)


def poll_less() -> None:
    """Make the services of Prefect's server look for due work every three seconds, not four times per second.

    Prefect has no setting for it. Work that is due at once does not wait. The services also ask ten times per
    second for jobs of theirs to cancel, each time in a thread; Prefect cancels none (runs are cancelled
    otherwise).
    """
    from burner_redis import PubSub
    from docket import Worker
    from prefect.server.api import background_workers

    get_message = PubSub.get_message

    async def get_message_less_often(self: PubSub, *args: Any, **options: Any) -> Any:
        message = await get_message(self, *args, **options)
        if message is None:
            await asyncio.sleep(POLL_INTERVAL.total_seconds())
        return message

    PubSub.get_message = get_message_less_often
    background_workers.Worker = partial(  # type: ignore[assignment, attr-defined]
        Worker, minimum_check_interval=POLL_INTERVAL, scheduling_resolution=POLL_INTERVAL
    )


def serve(files: ServerFiles, idle_seconds: float, keep_seconds: float) -> None:
    """Be the local Prefect server of a folder until its end; remove runs that ended so long ago."""
    threshold = gc.get_threshold()
    # A process that checks whether there is a server holds the lock for an instant.
    with FileLock(files.lock, timeout=2.0, mode=0o600), listen(_read_port(files.port)) as listener:
        port = listener.getsockname()[1]
        files.port.write_text(str(port), encoding="utf-8")
        server = LocalServer(files.directory, os.getpid(), port, prefect_version(), is_ready=False)
        server.write()
        threading.Thread(target=watch_process, args=(files.state,), daemon=True).start()
        os.environ.update(server_environment(files.directory, port, keep_seconds))
        gc.set_threshold(LOADING_THRESHOLD)
        create_database(files.directory)
        from prefect.server.api.server import create_app

        poll_less()
        # As `prefect server start` does it; Prefect itself calls its application unguarded, in this process.
        application = Guard(create_app(final=True), port)
        gc.freeze()
        gc.set_threshold(*threshold)
        try:
            IdleServer(application, server, idle_seconds).run([listener])
        finally:
            files.state.unlink(missing_ok=True)


if __name__ == "__main__":  # pragma: no cover  (another process)
    serve(ServerFiles(Path(sys.argv[1])), float(sys.argv[2]), float(sys.argv[3]))
    # Everything is recorded; the interpreter would free its memory for a second or more.
    os._exit(0)
