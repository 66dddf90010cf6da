"""What the commands and the supervisor of their Prefect server share: one folder of a few files.

===================  ================================================================================
``supervisor.lock``  locked by the supervisor for as long as it lives, so "is there one?" asks the
                     kernel, which answers rightly even after a crash
``start.lock``       locked by the command that looks for a server or starts one, and for the instant
                     in which an unused server decides to end
``lease.lock``       locked, shared, by every command that is using the server; touched by each
``state.json``       where the server is: there from its start until it begins to end
``server.log``       what the server and its supervisor have to say
===================  ================================================================================
"""

from __future__ import annotations

import fcntl
import importlib.metadata
import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

POLL_SECONDS = 0.1


@dataclass(frozen=True)
class ServerFiles:
    """The paths of the files of one server; `directory` also is its PREFECT_HOME."""

    directory: Path

    @property
    def supervisor_lock(self) -> Path:
        return self.directory / "supervisor.lock"

    @property
    def start_lock(self) -> Path:
        return self.directory / "start.lock"

    @property
    def lease(self) -> Path:
        return self.directory / "lease.lock"

    @property
    def state(self) -> Path:
        return self.directory / "state.json"

    @property
    def log(self) -> Path:
        return self.directory / "server.log"


@dataclass(frozen=True)
class ServerState:
    """Where a server is: `pid` is its supervisor's, `version` is Prefect's.

    A supervisor of an earlier version of this package writes no `server_pid`.
    """

    pid: int
    port: int
    version: str
    is_ready: bool
    server_pid: int | None = None

    def write(self, path: Path) -> None:
        """Replace the file at once, so that nobody reads half of it."""
        draft = path.with_suffix(".new")
        draft.write_text(json.dumps(asdict(self)), encoding="utf-8")
        draft.replace(path)


def read_state(path: Path) -> ServerState | None:
    """Read what a supervisor wrote; nothing if there is none, or it has another form."""
    try:
        return ServerState(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def private(path: str, flags: int) -> int:
    """Open a file for `open`, readable by its owner only if it is new."""
    return os.open(path, flags, 0o600)


def try_lock(path: Path, *, shared: bool = False) -> IO[str] | None:
    """Lock a file without waiting; the lock lasts until the file is closed or the process has ended."""
    file = open(path, "a", encoding="utf-8", opener=private)  # noqa: SIM115
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    except BaseException:
        file.close()
        raise
    return file


def wait_for_lock(
    path: Path, patience_seconds: float, *, shared: bool = False, on_wait: Callable[[], None] | None = None
) -> IO[str] | None:
    """Lock a file, waiting that long at most for those who hold it; nothing when they keep it longer."""
    deadline = time.monotonic() + patience_seconds
    while (lock := try_lock(path, shared=shared)) is None and time.monotonic() < deadline:
        if on_wait is not None:
            on_wait()
        time.sleep(POLL_SECONDS)
    return lock


def is_locked(path: Path) -> bool:
    """Say whether a process holds the lock of a file, shared or not.

    To ask is to hold the lock for an instant, so whoever wants it must be ready to wait that long.
    """
    if not path.exists():
        return False
    lock = try_lock(path)
    if lock is None:
        return True
    lock.close()
    return False


def prefect_version() -> str:
    """Return the version of the installed Prefect without importing it, which would take two seconds."""
    return importlib.metadata.version("prefect")
