"""Fixtures that several test modules share."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from uuid import uuid4

import botocore.session
import pytest
from hypothesis import HealthCheck, settings

from imbrace_lake import writer_process
from imbrace_lake.gateway import http_client
from tests.environment import restored_environment
from tools.seaweed import Seaweed

# On a busy machine an example may take seconds.
settings.register_profile("unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unhurried")


# A local server of a test run that was killed ends soon. No server of a test is unused for so long.
os.environ["IMBRACE_SERVER_IDLE_MINUTES"] = "5"


# `./dev` sets it; the tests compare the program's usual name.
os.environ.pop("IMBRACE_CALLED_AS", None)


# A shell that starts the tests in the background lets them ignore Ctrl-C, which some of them send.
signal.signal(signal.SIGINT, signal.default_int_handler)


# Long modules first, so that no worker is left with one at the end; the other folders follow. The browser and
# the documentation's commands ("tests") have the longest, of minutes, which cannot be divided.
FIRST = (
    "browser",
    "tests",
    "deployments",
    "acceptance",
    "packaging",
    "tasks",
    "flows",
    "cli",
    "benchmarks",
    "core",
)


# Fixtures that start a Prefect server, an S3 server or a browser.
SERVERS = frozenset({"s3", "prefect_server", "server", "composed", "browser"})
SLOW_FOLDERS = frozenset({"acceptance", "packaging"})

CERTIFICATES = ("SSL_CERT_FILE", "SSL_CERT_DIR")


@pytest.hookimpl(tryfirst=True)  # before pytest selects tests by their marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests, and begin with the folders whose modules take long."""
    for item in items:
        if isinstance(item, pytest.Function) and SERVERS & set(item.fixturenames):
            item.add_marker("server")
        if item.path.parent.name in SLOW_FOLDERS:
            item.add_marker("slow")
    rank = {name: position for position, name in enumerate(FIRST)}
    items.sort(key=lambda item: rank.get(item.path.parent.name, len(rank)))


@pytest.fixture(scope="session", autouse=True)
def _measure_only_this_process() -> None:
    """Start processes without coverage: they add almost nothing to it."""
    os.environ.pop("COVERAGE_PROCESS_CONFIG", None)


@pytest.fixture(autouse=True)
def _no_second_process(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write in threads in the fast tests: the second process, which writes the same, takes 0.4 s to start."""
    if not any(request.node.get_closest_marker(name) for name in ("slow", "server")):
        monkeypatch.setattr(writer_process, "START_AFTER", sys.maxsize)


@pytest.fixture(scope="session", autouse=True)
def _read_files_of_clients_once() -> Iterator[None]:
    """Share what each client reads: certificates (20 ms), and for S3 the description of the API (60 ms)."""
    certificates = http_client._certificates
    read = cache(lambda *paths: certificates())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(http_client, "_certificates", lambda: read(*map(os.environ.get, CERTIFICATES)))
        patch.setattr(botocore.session, "create_loader", cache(botocore.session.create_loader))
        yield


@pytest.fixture(autouse=True)
def _own_environment() -> Iterator[None]:
    """Restore the environment variables after each test."""
    with restored_environment():
        yield


@pytest.fixture(scope="session")
def s3() -> Iterator[Seaweed]:
    """Run a real S3 server for the whole test run."""
    # pytest's own folders can have names too long for a socket.
    with Seaweed(Path(tempfile.mkdtemp(prefix="s3-"))) as server:
        yield server


@pytest.fixture
def bucket(s3: Seaweed) -> str:
    """Make an empty bucket; return its name."""
    name = f"test-{uuid4().hex[:12]}"
    s3.create_bucket(name)
    return name
