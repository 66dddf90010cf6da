"""`imbrace-lake server`: status, start and stop of the local Prefect server."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from imbrace_cli import local_server
from imbrace_cli.local_server import LocalServer
from tests.cli.conftest import Run


def test_a_missing_server_is_reported(run: Run) -> None:
    result = run("server", "status")

    assert (result.code, result.out) == (1, "not running\n")
    assert run("server", "stop").out == "not running\n"


@pytest.mark.parametrize("watched", [False, True])
def test_a_running_server_is_described(
    watched: bool, run: Run, prefect: LocalServer, request: pytest.FixtureRequest
) -> None:
    if watched:
        request.getfixturevalue("terminal")

    status = run("server", "status")
    start = run("server", "start")

    assert (status.code, start.code) == (0, 0)
    assert status.out == start.out
    assert f"running at {prefect.ui_url}" in status.out
    assert str(prefect.pid) in status.out


@pytest.mark.parametrize("watched", [False, True])
def test_a_running_server_is_stopped(
    watched: bool, run: Run, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    if watched:
        request.getfixturevalue("terminal")
    monkeypatch.setattr(local_server, "stop_server", lambda: True)

    assert run("server", "stop").out == "stopped\n"


def test_a_configured_server_is_mentioned(run: Run, workdir: Path) -> None:
    os.environ["PREFECT_API_URL"] = "http://prefect.test/api"

    assert "PREFECT_API_URL is configured" in run("server", "status").err
