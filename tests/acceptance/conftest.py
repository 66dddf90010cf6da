"""Fixtures of the acceptance tests: a Prefect server, a process that runs flows, the real conversations."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from imbrace_cli.local_server import LocalServer, ensure_server, keep_alive, stop_server
from tests.acceptance.exporter import ROOT, Exporter
from tests.prefect_homes import make_home

DATA_VARIABLE = "IMBRACE_ACCEPTANCE_DATA"
DATA_PATH = "../shared/data/support-conversations.jsonl.gz"


@pytest.fixture(scope="package")
def prefect_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServer]:
    """Run the local Prefect server of the command line, in a home of the test run."""
    home = make_home(tmp_path_factory, "home")
    server = ensure_server(home)
    with keep_alive(home):
        yield server
        stop_server(home)


@pytest.fixture(scope="package")
def exporter(prefect_server: LocalServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Exporter]:
    """Keep one process ready to run flows."""
    with Exporter(prefect_server, tmp_path_factory.mktemp("exporter")) as process:
        yield process


@pytest.fixture(scope="package")
def real_conversations() -> Path:
    """Return the file of real conversations, which is not part of the project."""
    path = Path(os.environ.get(DATA_VARIABLE) or ROOT / DATA_PATH)
    if not path.is_file():
        pytest.skip(f"the real conversations are missing: put them at {DATA_PATH} or set {DATA_VARIABLE}")
    return path
