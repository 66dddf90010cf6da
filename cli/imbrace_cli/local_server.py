"""The Prefect server of its own that the command line uses when no other is configured.

Prefect would start one for each run and end it with the run, which costs 10 to 20 seconds, loses most
of the task runs it was still to record, and leaves nothing to look at. Ours outlives the command, is
found by the next one, and ends by itself when it has not been used for a while::

    server = ensure_server()
    with keep_alive():
        prepare_client(server.api_url, server.directory)
        import prefect

All of it is in ``$IMBRACE_HOME/prefect``, by default ``~/.imbrace-lake/prefect``.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from imbrace_cli.server_failure import explain_failure
from imbrace_cli.server_files import (
    POLL_SECONDS,
    ServerFiles,
    ServerState,
    is_locked,
    prefect_version,
    private,
    read_state,
    wait_for_lock,
)
from imbrace_cli.server_progress import Progress
from imbrace_cli.server_supervisor import RECORDING_SECONDS, START_SECONDS, STOP_SECONDS, is_answering
from imbrace_lake.errors import SettingsError
from imbrace_lake.processes import inherited_environment

DEFAULT_IDLE_MINUTES = 60.0
BUSY_SECONDS = 20.0
"""How long a server may neither answer nor work before it counts as broken."""

BUSIEST_SECONDS = 300.0
"""How long a server may work without an answer before it counts as broken."""

MAX_LOG_BYTES = 10_000_000


@dataclass(frozen=True)
class LocalServer:
    """A running server; `pid` is its supervisor's, `was_running` whether an earlier command started it."""

    directory: Path
    port: int
    pid: int
    was_running: bool

    @property
    def ui_url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def api_url(self) -> str:
        return f"{self.ui_url}/api"

    @property
    def log(self) -> Path:
        return ServerFiles(self.directory).log


def default_home() -> Path:
    """Return the folder for what the command line keeps between two calls."""
    chosen = os.environ.get("IMBRACE_HOME")
    return Path(chosen).expanduser().absolute() if chosen else Path.home() / ".imbrace-lake"


def ensure_server(home: Path | None = None, on_wait: Callable[[float], None] | None = None) -> LocalServer:
    """Find the server of that home, or start it; its idle time begins again.

    Args:
        home: Where the server keeps everything; `default_home` unless given.
        on_wait: Called ten times a second while waiting, with the seconds waited so far.

    Raises:
        SettingsError: No server could be started, or the one there is cannot be used. A start that
            fails or is interrupted leaves no process behind.
    """
    files = _make_files(home)
    began = time.monotonic()

    def waiting() -> None:
        if on_wait is not None:
            on_wait(time.monotonic() - began)

    idle_seconds = _idle_seconds()
    lock = wait_for_lock(files.start_lock, START_SECONDS + STOP_SECONDS, on_wait=waiting)
    if lock is None:
        raise SettingsError(f"another command has been starting the Prefect server for too long: {files.log}")
    with lock, _writable(files):
        files.lease.touch()
        state = _find_server(files, waiting)
        was_running = state is not None
        if state is None:
            state = _start(files, idle_seconds, waiting)
    return LocalServer(files.directory, state.port, state.pid, was_running)


@contextlib.contextmanager
def keep_alive(home: Path | None = None) -> Iterator[None]:
    """Keep the server of that home from ending for lack of use; being killed ends this like leaving it."""
    files = _make_files(home)
    lease = wait_for_lock(files.lease, STOP_SECONDS, shared=True)
    if lease is None:
        raise SettingsError(f"{files.lease} is locked by another program")
    with lease:
        try:
            yield
        finally:
            # Through the open file, so that a folder that was removed meanwhile is no error.
            os.utime(lease.fileno())


def server_status(home: Path | None = None) -> LocalServer | None:
    """Return the server of that home if it is running and ready."""
    files = _files(home)
    state = read_state(files.state)
    if state is None or not state.is_ready or not is_locked(files.supervisor_lock):
        return None
    return LocalServer(files.directory, state.port, state.pid, was_running=True)


def stop_server(home: Path | None = None) -> bool:
    """End the server of that home and wait for its end; say whether there was one.

    Ten seconds after its last use at the earliest, because it would lose the task runs it has not
    recorded yet; at once while a command is using it.
    """
    files = _files(home)
    if not is_locked(files.supervisor_lock):
        return False
    _stop(files)
    return True


def _files(home: Path | None) -> ServerFiles:
    return ServerFiles((home or default_home()).absolute() / "prefect")


def _make_files(home: Path | None) -> ServerFiles:
    files = _files(home)
    with _writable(files):
        # What runs were asked for is in the server's database, so the folder is its owner's alone.
        files.directory.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        files.directory.mkdir(mode=0o700, exist_ok=True)
        files.directory.chmod(0o700)
        files.lease.touch(0o600)
        # Asked for the exception: a folder on a network may know no locks.
        is_locked(files.lease)
    return files


@contextlib.contextmanager
def _writable(files: ServerFiles) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        raise SettingsError(
            f"cannot write to {files.directory} ({exc.strerror}): set IMBRACE_HOME to a folder of yours"
        ) from exc


def _idle_seconds() -> float:
    text = os.environ.get("IMBRACE_SERVER_IDLE_MINUTES") or str(DEFAULT_IDLE_MINUTES)
    try:
        minutes = float(text)
    except ValueError:
        minutes = 0.0
    # Not a number compares false with everything.
    if not 0 < minutes < 1e6:
        raise SettingsError(f"IMBRACE_SERVER_IDLE_MINUTES must be a number above 0, not {text!r}")
    return minutes * 60


def _find_server(files: ServerFiles, waiting: Callable[[], None]) -> ServerState | None:
    """Return the server there is; wait for one that is starting, make room for one that is of no use."""
    deadline = time.monotonic() + START_SECONDS + STOP_SECONDS
    while is_locked(files.supervisor_lock):
        state = read_state(files.state)
        if state is not None and state.is_ready:
            if state.version == prefect_version() and _is_answering_soon(files, state, waiting):
                return state
            if is_locked(files.lease):
                raise SettingsError(
                    "another command is using a Prefect server that this one cannot use "
                    f"(Prefect {state.version} on port {state.port}): "
                    "wait for its end, or run `imbrace-lake server stop`"
                )
            _stop(files)
        elif time.monotonic() > deadline:
            _stop(files)
        else:
            waiting()
            time.sleep(POLL_SECONDS)
    return None


def _is_answering_soon(files: ServerFiles, state: ServerState, waiting: Callable[[], None]) -> bool:
    """Wait for an answer as long as the server is at work, which on a busy machine can be for minutes."""
    progress = Progress(state.server_pid, files)
    deadline = time.monotonic() + BUSIEST_SECONDS
    while not is_answering(state.port, state.version):
        if progress.stalled_seconds() > BUSY_SECONDS or time.monotonic() > deadline:
            return False
        waiting()
        time.sleep(POLL_SECONDS)
    return True


def _start(files: ServerFiles, idle_seconds: float, waiting: Callable[[], None]) -> ServerState:
    files.state.unlink(missing_ok=True)
    if files.log.exists() and files.log.stat().st_size > MAX_LOG_BYTES:
        files.log.replace(files.log.with_suffix(".log.1"))
    earlier_bytes = files.log.stat().st_size if files.log.exists() else 0
    try:
        with open(files.log, "ab", opener=private) as log:
            command = [sys.executable, "-m", "imbrace_cli.server_supervisor", "supervise"]
            subprocess.run(  # noqa: S603  (our own module, no shell)
                [*command, str(files.directory), str(idle_seconds)],
                cwd=files.directory,
                env=inherited_environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # The database of the server, too.
                umask=0o077,
                # Its own session, or Ctrl-C and the end of the terminal would end the server too.
                start_new_session=True,
                check=False,
            )
        # The supervisor ends when the server makes no progress, and only here when it cannot even do that.
        deadline = time.monotonic() + START_SECONDS + STOP_SECONDS
        while is_locked(files.supervisor_lock) and time.monotonic() < deadline:
            state = read_state(files.state)
            if state is not None and state.is_ready:
                return state
            waiting()
            time.sleep(POLL_SECONDS)
    except BaseException:
        _stop(files)
        raise
    _stop(files)
    with files.log.open("rb") as log:
        log.seek(earlier_bytes)
        written = log.read().decode(errors="replace")
    reason = explain_failure(written, files.directory)
    raise SettingsError(f"the local Prefect server did not start: {reason} (log: {files.log})")


def _stop(files: ServerFiles) -> None:
    """End a supervisor, at first gently; without one, do nothing."""
    gentle_seconds = RECORDING_SECONDS + STOP_SECONDS + 5
    for request, patience in ((signal.SIGTERM, gentle_seconds), (signal.SIGKILL, STOP_SECONDS)):
        deadline = time.monotonic() + patience
        asked = False
        while is_locked(files.supervisor_lock) and time.monotonic() < deadline:
            state = read_state(files.state)
            # A supervisor that has just begun has not told its id yet; one that is ending, no more.
            if state is not None and not asked:
                asked = True
                with contextlib.suppress(ProcessLookupError):
                    os.kill(state.pid, request)
            time.sleep(POLL_SECONDS)
