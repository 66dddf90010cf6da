"""The process that owns the command line's own Prefect server: starts it, watches it, ends it when unused.

It is detached from the command that started it and outlives it. The supervisor imports nothing but the
standard library, because it runs for hours and does almost nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from imbrace_cli.server_files import (
    POLL_SECONDS,
    ServerFiles,
    ServerState,
    is_locked,
    prefect_version,
    try_lock,
    wait_for_lock,
)
from imbrace_cli.server_guard import Guard, own_origins
from imbrace_cli.server_progress import Progress
from imbrace_lake.processes import inherited_environment

STALL_SECONDS = 90.0
"""How long a starting server may show no sign of progress before it is given up."""

START_SECONDS = 1_800.0
"""How long a start may take at most, with progress; 10 s are usual, minutes where a machine is very busy."""

STOP_SECONDS = 15.0
"""How long a server that was asked to end may take before it is killed."""

RECORDING_SECONDS = 10.0
"""How long after its last use a server is left to record task runs; 2 s for 1,000 were measured."""

FIRST_PORT = 4280
PORTS_TRIED = 20
CLAIM_OFFSET = 100
"""A supervisor that has chosen port 4280 holds port 4380, on which nobody listens."""

TICK_SECONDS = 2.0

SERVER_SETTINGS = {
    # Row by row, the recorder needs four times the CPU and locks SQLite against the runs' own states.
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE": "200",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_FLUSH_INTERVAL": "2",
    "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_BATCH_SIZE": "200",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
    "PREFECT_LOGGING_COLORS": "false",
    "DO_NOT_TRACK": "1",
    "NO_COLOR": "1",
}


def is_answering(port: int, version: str, timeout_seconds: float = 5.0) -> bool:
    """Say whether a healthy Prefect server of that version listens on the port of this machine."""
    # http.client knows no proxies, so HTTP_PROXY cannot send a question to ourselves around the world.
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout_seconds)
    try:
        for path, answer in (("/api/health", True), ("/api/admin/version", version)):
            connection.request("GET", path)
            if json.loads(connection.getresponse().read(1000)) != answer:
                return False
    except (OSError, http.client.HTTPException, ValueError):
        return False
    else:
        return True
    finally:
        connection.close()


@contextlib.contextmanager
def free_port() -> Iterator[int]:
    """Choose a free port, which no other supervisor takes while the block runs.

    The same one each time if that is possible, so that an open UI finds its server.
    """
    for port in range(FIRST_PORT, FIRST_PORT + PORTS_TRIED):
        if claim := _claim(port):
            with claim:
                yield port
            return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    yield port


def _claim(port: int) -> socket.socket | None:
    """Hold a port for a server that will listen there in some seconds, unless it is taken."""
    claim = socket.socket()
    try:
        # The port itself cannot be held, because then the server could not have it.
        claim.bind(("127.0.0.1", port + CLAIM_OFFSET))
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
    except OSError:
        claim.close()
        return None
    return claim


def server_environment(directory: Path, port: int) -> dict[str, str]:
    """Return the environment of a server whose data are in that folder.

    It has none of the user's secrets, and no setting of the user's for Prefect: this server would migrate a
    database that is meant for another one.
    """
    own = {
        "PREFECT_HOME": str(directory),
        "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
        # By default every page on the web may read the answers of a server on this machine.
        "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": ",".join(own_origins(port)),
    }
    return {**inherited_environment(), **SERVER_SETTINGS, **own}


def server_command(port: int) -> list[str]:
    """Return the command of the server itself."""
    return [sys.executable, "-m", "imbrace_cli.server_supervisor", "serve", str(port)]


@dataclass
class Supervisor:
    """Runs one server until it is not used for `idle_seconds`, is asked to end, or dies."""

    files: ServerFiles
    idle_seconds: float
    command: Callable[[int], Sequence[str]] = server_command
    tick_seconds: float = TICK_SECONDS
    recording_seconds: float = RECORDING_SECONDS

    def run(self, stop: threading.Event) -> int:
        """Run the server until `stop` is set; return the exit code of the supervisor."""
        with contextlib.ExitStack() as stack:
            port = stack.enter_context(free_port())
            # In its own folder the server meets no settings file of the place the command was called from.
            server = stack.enter_context(
                subprocess.Popen(  # noqa: S603  (our own module, no shell)
                    self.command(port),
                    cwd=self.files.directory,
                    env=server_environment(self.files.directory, port),
                    stdin=subprocess.DEVNULL,
                )
            )
            try:
                return self._watch(server, port, stop)
            finally:
                self.files.state.unlink(missing_ok=True)
                _end(server)

    def _watch(self, server: subprocess.Popen[bytes], port: int, stop: threading.Event) -> int:
        version = prefect_version()
        state = ServerState(os.getpid(), port, version, is_ready=False, server_pid=server.pid)
        state.write(self.files.state)
        reason = self._wait_until_answering(server, port, version, stop)
        if stop.is_set():
            return 0
        if reason is not None:
            return _report(reason)
        replace(state, is_ready=True).write(self.files.state)
        last_used, touched = time.monotonic(), self._touched_at()
        while not stop.wait(min(self.tick_seconds, self.idle_seconds)):
            if server.poll() is not None:
                return _report(f"the server ended by itself: {_ended(server)}")
            if not self.files.state.exists():
                return _report("the folder of the server was removed")
            if is_locked(self.files.lease) or self._touched_at() != touched:
                last_used, touched = time.monotonic(), self._touched_at()
            elif time.monotonic() - last_used >= self.idle_seconds and self._withdraw(touched):
                return 0
        self._let_record()
        return 0

    def _wait_until_answering(
        self, server: subprocess.Popen[bytes], port: int, version: str, stop: threading.Event
    ) -> str | None:
        """Wait for the first answer, as long as the start makes progress; return why there is none."""
        progress = Progress(server.pid, self.files)
        deadline = time.monotonic() + START_SECONDS
        while not is_answering(port, version):
            if server.poll() is not None:
                return f"the server did not start: {_ended(server)}"
            if progress.stalled_seconds() > STALL_SECONDS:
                return f"the server did not start: no progress for {STALL_SECONDS:g} s"
            if time.monotonic() > deadline:
                return f"the server did not start within {START_SECONDS:g} s"
            if stop.wait(POLL_SECONDS):
                break
        return None

    def _touched_at(self) -> int:
        return self.files.lease.stat().st_mtime_ns if self.files.lease.exists() else 0

    def _let_record(self) -> None:
        """Wait until what the last command did is recorded: a server that ends throws the rest away."""
        self.files.state.unlink(missing_ok=True)
        since_use = time.time() - self._touched_at() / 1e9
        if not is_locked(self.files.lease) and 0 <= since_use < self.recording_seconds:
            time.sleep(self.recording_seconds - since_use)

    def _withdraw(self, touched: int) -> bool:
        """Take back the state, unless a command is just about to use it."""
        start = try_lock(self.files.start_lock)
        if start is None:
            return False
        with start:
            if is_locked(self.files.lease) or self._touched_at() != touched:
                return False
            self.files.state.unlink(missing_ok=True)
        return True


def _end(server: subprocess.Popen[bytes]) -> None:
    server.terminate()
    try:
        server.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        server.kill()


def _ended(server: subprocess.Popen[bytes]) -> str:
    code = server.returncode
    return f"it was killed by signal {-code}" if code < 0 else f"it ended with code {code}"


def _report(sentence: str) -> int:
    sys.stderr.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} supervisor: {sentence}\n")
    sys.stderr.flush()
    return 1


@contextlib.contextmanager
def stop_on_sigterm() -> Iterator[threading.Event]:
    """Turn SIGTERM into an event."""
    stop = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda *_: stop.set())
    try:
        yield stop
    finally:
        signal.signal(signal.SIGTERM, before)


def supervise(files: ServerFiles, idle_seconds: float) -> int:
    """Become the supervisor, detached; the caller's process ends as soon as the lock is held."""
    # Who only asks whether there is a supervisor holds its lock for an instant.
    lock = wait_for_lock(files.supervisor_lock, 2.0)
    if lock is None:
        return _report("there is another supervisor")
    with lock:
        # The lock belongs to the open file, which the child shares: it is never free in between.
        if os.fork():
            os._exit(0)
        with stop_on_sigterm() as stop:
            return Supervisor(files, idle_seconds).run(stop)


def serve(port: int) -> None:
    """Be the Prefect server, guarded, and end when the supervisor does, however that happened."""
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
    # Not in the supervisor, which would become as large as a server.
    import uvicorn
    from prefect.server.api.server import create_app

    # As `prefect server start` does it; Prefect calls its own application unguarded, in this process.
    uvicorn.run(Guard(create_app(final=True), port), host="127.0.0.1", port=port, log_level="warning")


def _end_with_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1.0)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(STOP_SECONDS)
    os._exit(1)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run as one of the two processes: ``supervise <folder> <idle seconds>`` or ``serve <port>``."""
    parser = argparse.ArgumentParser(prog="python -m imbrace_cli.server_supervisor")
    roles = parser.add_subparsers(dest="role", required=True)
    role = roles.add_parser("supervise")
    role.add_argument("directory", type=Path)
    role.add_argument("idle_seconds", type=float)
    roles.add_parser("serve").add_argument("port", type=int)
    chosen = parser.parse_args(arguments)
    if chosen.role == "supervise":
        return supervise(ServerFiles(chosen.directory), chosen.idle_seconds)
    serve(chosen.port)
    return 0


if __name__ == "__main__":  # pragma: no cover  (another process, whose parts are tested)
    sys.exit(main())
