"""Homes for Prefect servers of tests, with finished databases: making one takes 4 s of CPU."""

from __future__ import annotations

import fcntl
import os
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from imbrace_cli.local_server import ensure_server, stop_server
from imbrace_cli.prefect_environment import CERTIFICATE, write_certificate

DATABASE = Path("prefect", "prefect.db")


def make_home(factory: pytest.TempPathFactory, name: str) -> Path:
    """Make a home like that of a server that was started and stopped."""
    home = factory.mktemp(name)
    home.joinpath(DATABASE).parent.mkdir(mode=0o700)
    _copy(_once_started(factory) / DATABASE, home / DATABASE)
    return home


def one_certificate(directory: Path) -> str:
    """A file with one certificate in a folder, for clients of servers, which speak plain HTTP.

    Each of Prefect's clients begins by reading the certificates of all authorities, which takes 20 ms or more
    of CPU, and `prefect deploy` makes 36 of them. Our commands do the same for the local server.
    """
    path = directory / CERTIFICATE
    write_certificate(path)
    return str(path)


def _once_started(factory: pytest.TempPathFactory) -> Path:
    """The home that all processes of this test run copy; the first one makes it."""
    base = factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    home, ready = shared / "once-started", shared / "once-started.ready"
    with (shared / "once-started.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not ready.exists():
            home.mkdir()
            ensure_server(home)
            stop_server(home)
            ready.touch()
    return home


def _copy(source: Path, target: Path) -> None:
    # Not as a file, because a part can still be in its write-ahead log.
    with closing(sqlite3.connect(source)) as old, closing(sqlite3.connect(target)) as new:
        old.backup(new)
