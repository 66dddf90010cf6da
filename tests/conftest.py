"""Fixtures that several test modules share."""

from __future__ import annotations

import gc
import os
import signal
import ssl
import sys
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any
from uuid import uuid4

import botocore.session
import certifi
import pytest
from hypothesis import HealthCheck, settings
from xdist.scheduler import LoadScopeScheduling

from imbrace_lake import writer_process
from tests.acceptance.scale import IS_FULL
from tests.environment import restored_environment
from tools.seaweed import Seaweed

# On a busy machine an example may take seconds.
settings.register_profile(
    "unhurried",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    max_examples=500 if IS_FULL else 60,
)
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


# Modules that one worker runs, one after the other, because they share what takes long to start: a Prefect
# server (5 s of CPU), its deployments (10 s), a process that runs flows (2 s). They follow the second of
# `FIRST`.
TOGETHER = tuple(
    tuple(f"{folder}/test_{name}.py" for name in names.split())
    for folder, names in (
        ("deployments", "setup deployments approval"),
        ("deployments", "shards death cancel notifications"),
        ("acceptance", "accounts privacy hostile_answers real_conversations dead_letters idle_reruns"),
        ("acceptance", "budget kills memory backfill_modes faults"),
        ("cli", "up"),
        (
            "cli",
            "events shared_budget end_to_end export_command backfill_command budget_command check_command"
            " demo interrupt prefect_session server_command summary",
        ),
    )
)


# Fixtures that start a Prefect server, an S3 server or a browser.
SERVERS = frozenset({"s3", "prefect_server", "server", "composed", "browser"})
SLOW_FOLDERS = frozenset({"acceptance", "packaging"})


@pytest.hookimpl(tryfirst=True)  # before pytest selects tests by their marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests, and begin with the folders whose modules take long."""
    for item in items:
        if isinstance(item, pytest.Function) and SERVERS & set(item.fixturenames):
            item.add_marker("server")
        if item.path.parent.name in SLOW_FOLDERS:
            item.add_marker("slow")
    rank = {name: position for position, name in enumerate(FIRST)}
    group = {module: number for number, modules in enumerate(TOGETHER) for module in modules}

    def position(item: pytest.Item) -> tuple[int, int]:
        folder = item.path.parent.name
        module = f"{folder}/{item.path.name}"
        return (1, group[module]) if module in group else (rank.get(folder, len(rank)), -1)

    items.sort(key=position)


def pytest_collection_finish() -> None:
    """Keep the garbage collector away from the many objects of the collected tests: 6 % of the CPU time."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish() -> None:
    """Let it collect them at the end: DuckDB reports objects that are never collected."""
    gc.unfreeze()


@pytest.fixture
def unfrozen() -> Iterator[None]:
    """Unfreeze what `pytest_collection_finish` has frozen, for tests that count frozen objects."""
    gc.unfreeze()
    yield
    gc.freeze()


class ModuleScheduling(LoadScopeScheduling):  # type: ignore[misc] # xdist has no types
    """Gives each worker a module at a time, or one of the groups `TOGETHER`."""

    def _split_scope(self, nodeid: str) -> str:
        module = nodeid.partition("::")[0]
        groups = (group[0] for group in TOGETHER if module.endswith(group))
        return next(groups, module)


def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> ModuleScheduling:
    """Replace the scheduler of `--dist`."""
    return ModuleScheduling(config, log)


@pytest.fixture(scope="session", autouse=True)
def _measure_only_this_process() -> None:
    """Start processes without coverage: they add almost nothing to it."""
    os.environ.pop("COVERAGE_PROCESS_CONFIG", None)


@pytest.fixture(autouse=True)
def _no_second_process(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write in threads: the second process, which writes the same, takes 0.1 s to start.

    It has separate tests; the acceptance tests, and all processes that tests start, have it, too.
    """
    if request.path.parent.name != "acceptance" and request.path.name != "test_writer_process.py":
        monkeypatch.setattr(writer_process, "START_AFTER", sys.maxsize)


@pytest.fixture(scope="session", autouse=True)
def _read_files_of_clients_once() -> Iterator[None]:
    """Share what each client of S3 reads, the description of the API (60 ms), and each of HTTP: the
    certificates of all authorities (20 ms)."""
    create_context = ssl.create_default_context
    # The second one is that of the machine; tests have others.
    usual = {certifi.where(), os.environ.get("SSL_CERT_FILE")}
    shared = cache(create_context)

    def create_default_context(*args: Any, **options: Any) -> ssl.SSLContext:
        is_usual = not args and [*options] == ["cafile"] and options["cafile"] in usual
        return (shared if is_usual else create_context)(*args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(botocore.session, "create_loader", cache(botocore.session.create_loader))
        patch.setattr(ssl, "create_default_context", create_default_context)
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
