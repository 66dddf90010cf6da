"""The local Prefect server, which the command line uses when no other server is configured.

Prefect itself would start a server per run and end it with the run, which costs 10 to 20 seconds, loses task
runs that are not yet recorded, and leaves nothing to look at. This server outlives the command, the next
command finds it, and it ends when it is idle::

    server = ensure_server()
    with keep_alive():
        prepare_client(server.api_url, server.directory)
        import prefect

Commands and server (`server_process`) share one folder, ``$IMBRACE_HOME/prefect``, by default
``~/.imbrace-lake/prefect``:

===================  ==================================================================================
``server.lock``      locked by the server while it lives, so that the kernel knows whether there is one
``start.lock``       locked by a command that looks for a server or starts it, and by a server for the
                     instant in which it decides to end
``use.lock``         locked, shared, by each command that uses the server; its time is the last use
``port``             the last port of the server, which the next one takes if it is free
``state.json``       where the server is; removed when the server begins to end, and touched while it works
``server.log``       what the server writes
===================  ==================================================================================
"""

from __future__ import annotations

import contextlib
import fcntl
import http.client
import importlib.metadata
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from filelock import FileLock, Timeout

from imbrace_cli.prefect_environment import check_network
from imbrace_cli.processes import inherited_environment
from imbrace_cli.server_failure import NO_PROGRESS, explain_failure
from imbrace_lake.errors import ImbraceLakeError, SettingsError

POLL_SECONDS = 0.1
START_SECONDS = 1_800.0
"""The longest start, with progress; 10 s are usual, minutes on a very busy machine."""
START_STALL_SECONDS = 90.0
"""A start that shows no progress for this long has failed."""
BUSY_SECONDS = 300.0
"""The longest wait for the answer of a server that works; it may have thousands of task runs to record."""
BUSY_STALL_SECONDS = 20.0
"""A server that neither answers nor works for this long is broken."""
RECORDING_SECONDS = 10.0
"""How long a server records task runs after its last use before it ends; 2 s for 1,000 were measured."""
STOP_SECONDS = 15.0
"""A server that ends later than this after it recorded everything is killed."""

DEFAULT_IDLE_MINUTES = 60.0
DEFAULT_KEEP_DAYS = 30.0
MAX_LOG_BYTES = 10_000_000


class ServerUnavailable(ImbraceLakeError):
    """The Prefect server does not start or does not answer."""


class ServerFiles:
    """The files of one server."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.lock = directory / "server.lock"
        self.start_lock = directory / "start.lock"
        self.use_lock = directory / "use.lock"
        self.state = directory / "state.json"
        self.port = directory / "port"
        self.log = directory / "server.log"


@dataclass(frozen=True)
class LocalServer:
    """A local server: its folder, process and port, the version of its Prefect, whether it is ready."""

    directory: Path
    pid: int
    port: int
    version: str
    is_ready: bool = True

    @property
    def ui_url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def api_url(self) -> str:
        return f"{self.ui_url}/api"

    @property
    def log(self) -> Path:
        return ServerFiles(self.directory).log

    def write(self) -> None:
        """Write the state file, in one atomic step."""
        path = ServerFiles(self.directory).state
        draft = path.with_suffix(".new")
        draft.write_text(json.dumps(asdict(self), default=str), encoding="utf-8")
        draft.replace(path)


def read_server(files: ServerFiles) -> LocalServer | None:
    """Read the state file; return None if it is missing or has another form."""
    try:
        state = json.loads(files.state.read_text(encoding="utf-8"))
        return LocalServer(**{**state, "directory": files.directory})
    except (OSError, ValueError, TypeError):
        return None


def default_home() -> Path:
    """Return the folder in which the command line keeps files."""
    chosen = os.environ.get("IMBRACE_HOME")
    return Path(chosen).expanduser().absolute() if chosen else Path.home() / ".imbrace-lake"


def ensure_server(home: Path | None = None, on_wait: Callable[[float], None] | None = None) -> LocalServer:
    """Find the server of a home, or start it; its idle time begins again.

    Args:
        home: The folder of the server's files; `default_home` by default.
        on_wait: Called ten times per second during a wait, with the seconds waited so far.

    Raises:
        ServerUnavailable: The server did not start or cannot be used. A start that fails or is interrupted
            leaves no process behind.
        SettingsError: The certificates that the user has chosen cannot be read.
    """
    check_network()
    files = _make_files(home)
    idle_seconds = _setting("IMBRACE_SERVER_IDLE_MINUTES", DEFAULT_IDLE_MINUTES) * 60
    keep_seconds = _setting("IMBRACE_SERVER_KEEP_DAYS", DEFAULT_KEEP_DAYS, least=1.0) * 86_400
    began = time.monotonic()

    def waiting() -> bool:
        if on_wait is not None:
            on_wait(time.monotonic() - began)
        return False

    start_lock = FileLock(files.start_lock, mode=0o600)
    try:
        with start_lock.acquire(START_SECONDS + STOP_SECONDS, POLL_SECONDS, cancel_check=waiting):
            files.use_lock.touch()
            return _find(files, waiting) or _start(files, idle_seconds, keep_seconds, waiting)
    except Timeout:
        raise ServerUnavailable(
            f"another command has been starting the Prefect server for too long: {files.log}"
        ) from None
    except OSError as exc:
        raise _not_writable(files, exc) from exc


@contextlib.contextmanager
def keep_alive(home: Path | None = None) -> Iterator[None]:
    """Keep the server of a home from ending while the block runs; a killed command releases it, too."""
    files = _make_files(home)
    with files.use_lock.open("r+") as lock:
        deadline = time.monotonic() + STOP_SECONDS
        while not _try_flock(lock.fileno(), fcntl.LOCK_SH):
            if time.monotonic() > deadline:
                raise ServerUnavailable(f"{files.use_lock} is locked by another program")
            time.sleep(POLL_SECONDS)
        try:
            yield
        finally:
            # By the open file: its folder may have been removed meanwhile.
            os.utime(lock.fileno())


def server_status(home: Path | None = None) -> LocalServer | None:
    """Return the server of a home if it is running and ready."""
    files = _files(home)
    server = read_server(files)
    return server if server is not None and server.is_ready and is_locked(files.lock) else None


def stop_server(home: Path | None = None) -> bool:
    """End the server of a home and wait for its end; return whether there was one.

    An unused server first records the task runs of the last ten seconds, a server in use ends at once.
    """
    files = _files(home)
    was_running = is_locked(files.lock)
    if was_running:
        _stop(files)
    return was_running


def release_server(home: Path | None = None) -> bool:
    """End the server of a home at once, unless a command is using it; return whether it has ended."""
    files = _files(home)
    if is_in_use(files):
        return False
    server = read_server(files)
    # A server in use does not wait for task runs to record.
    with keep_alive(home):
        stop_server(home)
    # It frees its lock before its process ends.
    deadline = time.monotonic() + STOP_SECONDS
    while server is not None and _is_alive(server.pid) and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
    return True


def is_locked(path: Path) -> bool:
    """Return whether a process has locked a file; the check itself locks it for an instant."""
    # filelock would create the file.
    if not path.exists():
        return False
    try:
        with FileLock(path, timeout=0, mode=0o600):
            return False
    except Timeout:
        return True


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def is_in_use(files: ServerFiles) -> bool:
    """Return whether a command is using the server."""
    try:
        with files.use_lock.open("r+") as lock:
            return not _try_flock(lock.fileno(), fcntl.LOCK_EX)
    except FileNotFoundError:
        return False


def is_answering(port: int, timeout_seconds: float = 5.0) -> bool:
    """Return whether a healthy Prefect server listens on a port of this machine."""
    # http.client ignores HTTP_PROXY, so that the request stays on this machine.
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout_seconds)
    try:
        connection.request("GET", "/api/health")
        return connection.getresponse().read(1000) == b"true"
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def prefect_version() -> str:
    """Return the version of the installed Prefect without importing it, which takes seconds."""
    return importlib.metadata.version("prefect")


def _try_flock(descriptor: int, kind: int) -> bool:
    # filelock has no shared lock of this kind that ends with its process.
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _files(home: Path | None) -> ServerFiles:
    return ServerFiles((home or default_home()).absolute() / "prefect")


def _make_files(home: Path | None) -> ServerFiles:
    files = _files(home)
    try:
        # The server's database contains the parameters of runs, so only the owner has access.
        files.directory.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        files.directory.mkdir(mode=0o700, exist_ok=True)
        files.directory.chmod(0o700)
        files.use_lock.touch(0o600)
        # For the exception: a network folder may not support locks.
        is_in_use(files)
    except OSError as exc:
        raise _not_writable(files, exc) from exc
    return files


def _not_writable(files: ServerFiles, exc: OSError) -> ServerUnavailable:
    return ServerUnavailable(
        f"cannot write to {files.directory} ({exc.strerror}): set IMBRACE_HOME to another folder"
    )


def _setting(name: str, default: float, least: float = 0.0) -> float:
    text = os.environ.get(name) or str(default)
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    # NaN compares false with every number.
    if not 0 < value < 1e6 or value < least:
        wanted = f"of at least {least:g}" if least else "above 0"
        raise SettingsError(f"{name} must be a number {wanted}, not {text!r}")
    return value


def _find(files: ServerFiles, waiting: Callable[[], object]) -> LocalServer | None:
    """Return the running server; wait for one that starts or ends, and end one that is unusable."""
    while is_locked(files.lock):
        server = _wait_until_ready(files, lambda: is_locked(files.lock), waiting)
        if server is not None:
            answers = partial(is_answering, server.port)
            if server.version == prefect_version() and _wait(
                files, answers, BUSY_STALL_SECONDS, BUSY_SECONDS, waiting
            ):
                return server
            if is_in_use(files):
                raise ServerUnavailable(
                    f"another command is using a Prefect server that this command cannot use (Prefect"
                    f" {server.version} on port {server.port}): wait for its end, or run"
                    " `imbrace-lake server stop`"
                )
        _stop(files)
    return None


def _start(
    files: ServerFiles, idle_seconds: float, keep_seconds: float, waiting: Callable[[], object]
) -> LocalServer:
    files.state.unlink(missing_ok=True)
    if files.log.exists() and files.log.stat().st_size > MAX_LOG_BYTES:
        files.log.replace(files.log.with_suffix(".log.1"))
    with open(files.log, "ab", opener=lambda path, flags: os.open(path, flags, 0o600)) as log:
        earlier_bytes = log.tell()
        process = subprocess.Popen(  # noqa: S603  (our own module, no shell)
            [
                *(sys.executable, "-m", "imbrace_cli.server_process"),
                *(str(files.directory), str(idle_seconds), str(keep_seconds)),
            ],
            # In its own folder, Prefect finds no settings file of the user's working directory.
            cwd=files.directory,
            env=inherited_environment(),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            umask=0o077,
            # Neither Ctrl-C nor the end of the terminal ends the server.
            start_new_session=True,
        )
    # It outlives this process; where this process lives longer, it leaves no zombie.
    threading.Thread(target=process.wait, daemon=True).start()
    try:
        server = _wait_until_ready(files, lambda: process.poll() is None, waiting)
    except BaseException:
        _end(process)
        raise
    if server is not None:
        return server
    is_alive = process.poll() is None
    _end(process)
    with files.log.open("rb") as log:
        log.seek(earlier_bytes)
        written = log.read().decode(errors="replace")
    reason = NO_PROGRESS if is_alive else explain_failure(written, process.returncode, files.directory)
    raise ServerUnavailable(f"the local Prefect server did not start: {reason} (log: {files.log})")


def _wait_until_ready(
    files: ServerFiles, is_alive: Callable[[], bool], waiting: Callable[[], object]
) -> LocalServer | None:
    """Wait for a server that starts or ends; return None if it does not live or makes no progress."""

    def is_decided() -> bool:
        server = read_server(files)
        return (server is not None and server.is_ready) or not is_alive()

    _wait(files, is_decided, START_STALL_SECONDS, START_SECONDS, waiting)
    server = read_server(files)
    return server if server is not None and server.is_ready and is_alive() else None


def _wait(
    files: ServerFiles,
    is_done: Callable[[], bool],
    stall_seconds: float,
    patience_seconds: float,
    waiting: Callable[[], object],
) -> bool:
    """Wait as long as the server makes progress; return whether the wait succeeded."""
    began = progressed = time.monotonic()
    seen = _worked_at(files)
    while not is_done():
        now, worked_at = time.monotonic(), _worked_at(files)
        if worked_at != seen:
            progressed, seen = now, worked_at
        if now - progressed > stall_seconds or now - began > patience_seconds:
            return False
        waiting()
        time.sleep(POLL_SECONDS)
    return True


def _worked_at(files: ServerFiles) -> float:
    """Return the time of the state file, which the server touches when it has used CPU time."""
    try:
        return files.state.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a server that is not ready, so that there is nothing to record."""
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _stop(files: ServerFiles) -> None:
    """End the server; kill it if it does not end."""
    server = None
    for request, patience in (
        (signal.SIGTERM, RECORDING_SECONDS + STOP_SECONDS),
        (signal.SIGKILL, STOP_SECONDS),
    ):
        deadline = time.monotonic() + patience
        is_sent = False
        while is_locked(files.lock) and time.monotonic() < deadline:
            # A server that has just begun has no state file yet, and one that ends has none any more.
            server = server or read_server(files)
            if server is not None and not is_sent:
                is_sent = True
                with contextlib.suppress(ProcessLookupError):
                    os.kill(server.pid, request)
            time.sleep(POLL_SECONDS)
