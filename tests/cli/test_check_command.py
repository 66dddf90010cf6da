"""`imbrace-lake check`: a list of findings, and an exit code."""

from __future__ import annotations

import json
import os
from importlib.metadata import version

import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from imbrace_cli.local_server import LocalServer
from imbrace_sandbox import Sandbox
from tests.cli.conftest import Run, prefect_leaks
from tests.cli.fake_server import fake_server

pytestmark = [pytest.mark.usefixtures("settings"), prefect_leaks]


def test_in_a_pipe_each_finding_is_a_line(run: Run, box: Sandbox) -> None:
    number = next(phone for phone, ids in box.links.items() if ids)

    result = run("check", "--phone", number)

    assert (result.code, result.err) == (0, "")
    lines = result.out.splitlines()
    assert all(line.startswith(("ok ", "note ", "skipped ")) for line in lines)
    assert f"Prefect {version('prefect')}" in result.out
    assert "a local one starts with the first run" in result.out
    assert number not in result.out


@pytest.mark.usefixtures("terminal")
def test_on_a_terminal_the_output_is_a_checklist(run: Run) -> None:
    os.environ["IMBRACE_ORGANIZATION"] = "org_wrong"

    result = run("check")

    assert result.code == 1
    assert "✓" in result.out
    assert "✗" in result.out


def test_json_output_is_one_object(run: Run) -> None:
    os.environ["IMBRACE_TOKEN"] = "api_wrong"
    del os.environ["IMBRACE_LAKE"]

    result = run("check", "--json")

    found = json.loads(result.out)
    assert result.code == 1
    assert found["ok"] is False
    assert {each["name"] for each in found["findings"] if each["verdict"] == "error"} == {"token", "lake"}


def test_each_missing_setting_is_reported(run: Run, settings: dict[str, str]) -> None:
    for name in settings:
        del os.environ[name]

    result = run("check")

    assert result.code == 1
    assert result.out.count("error ") == 3


def test_an_invalid_number_is_wrong_use(run: Run) -> None:
    assert run("check", "--phone", "12").code == 2


def test_the_local_server_is_reported(run: Run, prefect: LocalServer) -> None:
    assert f"a local one runs at {prefect.ui_url}" in run("check").out


@pytest.mark.parametrize(
    ("status", "body", "reported", "code"),
    [
        (200, f'"{version("prefect")}"', f"answers, version {version('prefect')}", 0),
        (200, '"3.0.0"', "has version 3.0.0", 0),
        (200, '"2.20.9"', "use a server of the same major version", 1),
        (200, "<html>Sign in, 3.8</html>", "does not answer as a Prefect server (status 200)", 1),
        (302, "", "does not answer as a Prefect server (status 302)", 1),
        (503, "", "does not answer as a Prefect server (status 503)", 1),
        (404, "", "/api answers\n", 0),
        (401, "", "set PREFECT_API_AUTH_STRING", 1),
    ],
)
def test_a_configured_server_is_tested(status: int, body: str, reported: str, code: int, run: Run) -> None:
    with fake_server(status, body) as url:
        os.environ["PREFECT_API_URL"] = url.replace("//", "//user:secret@")
        os.environ["PREFECT_API_KEY"] = "pnu_secret"
        # Prefect has already read its settings.
        with temporary_settings({PREFECT_API_URL: url}):
            result = run("check")

    assert result.code == code
    assert reported in result.out
    assert "secret" not in result.out


@pytest.mark.parametrize(
    ("url", "advice"),
    [
        ("http://127.0.0.1:9/api", "start it, or unset PREFECT_API_URL"),
        ("http://host:port/api", "write PREFECT_API_URL as http://host:4200/api"),
    ],
)
def test_a_configured_server_that_does_not_answer_is_reported(url: str, advice: str, run: Run) -> None:
    os.environ["PREFECT_API_URL"] = url

    result = run("check")

    assert result.code == 1
    assert advice in result.out
