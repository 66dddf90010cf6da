"""Fixtures of the tests of the commands: one Prefect server, fake gateways, a clean environment."""

from __future__ import annotations

import gc
import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from imbrace_cli.local_server import LocalServer, ensure_server, keep_alive, stop_server
from imbrace_cli.main import main
from imbrace_cli.prefect_environment import prepare_client
from imbrace_sandbox import Sandbox, SandboxOptions
from tests.environment import restored_environment
from tests.prefect_homes import make_home
from tests.prefect_threads import end_threads


@dataclass(frozen=True)
class Result:
    """The exit code and the output of a command."""

    code: int
    out: str
    err: str


Run = Callable[..., Result]

# Prefect leaves some of its connections to the garbage collector.
prefect_leaks = pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)


@pytest.fixture
def workdir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in an empty folder without any configuration."""
    for name in list(os.environ):
        if name.startswith(("PREFECT_", "IMBRACE_", "AWS_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("IMBRACE_HOME", str(tmp_path / "home"))
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def run(workdir: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Call a command in this process."""

    def call(*arguments: str) -> Result:
        code = main(arguments)
        out, err = capsys.readouterr()
        return Result(code, out, err)

    return call


@pytest.fixture
def terminal(workdir: Path) -> None:
    """Make standard output and standard error terminals."""
    os.environ.update(TTY_COMPATIBLE="1", TTY_INTERACTIVE="1", TERM="xterm-256color", COLUMNS="100")


@pytest.fixture
def box() -> Iterator[Sandbox]:
    """Serve a small fake gateway."""
    with Sandbox(SandboxOptions(conversations=12, sizes=(130,))) as box:
        yield box


@pytest.fixture
def settings(workdir: Path, box: Sandbox) -> dict[str, str]:
    """Point the settings at the fake gateway and at a lake that does not exist yet."""
    values = {
        "IMBRACE_TOKEN": box.options.token,
        "IMBRACE_ORGANIZATION": box.options.organization_id,
        "IMBRACE_GATEWAY": box.url,
        "IMBRACE_LAKE": str(workdir / "lake"),
        "IMBRACE_TASK_RETRY_SECONDS": "0.1",
        # Three of the eighteen entries of the list are unreadable.
        "IMBRACE_TOLERATED_UNREADABLE": "0.5",
    }
    os.environ.update(values)
    return values


@pytest.fixture
def phones(workdir: Path, box: Sandbox) -> Path:
    """Write a list of all numbers in usual notations, three of them invalid."""
    path = workdir / "phones.txt"
    path.write_text("\n".join(box.messy_phones()), encoding="utf-8")
    return path


# Not for the session: Prefect's connection draws a random number every 20 seconds, which would become part of
# a Hypothesis example of a later test.
@pytest.fixture(scope="package")
def prefect_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServer]:
    """One real Prefect server for all tests of the commands; Prefect's threads end with them."""
    home = make_home(tmp_path_factory, "prefect")
    server = ensure_server(home)
    with keep_alive(home):
        with restored_environment():
            prepare_client(server.api_url, server.directory)
            # Its settings are fixed by the first import, in whichever test that is.
            import prefect  # noqa: F401
        _collect_leaks()
        yield server
        end_threads()
        _collect_leaks()
        stop_server(home)


def _collect_leaks() -> None:
    """Keep warnings about connections that Prefect leaves open from later tests."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()
    # The next time, only what is new is looked at, which takes 10 ms instead of 200.
    gc.freeze()


@pytest.fixture
def prefect(prefect_server: LocalServer, workdir: Path) -> Iterator[LocalServer]:
    """Make that server the local server of commands in this process."""
    from prefect.settings import PREFECT_API_URL, PREFECT_SERVER_ALLOW_EPHEMERAL_MODE, temporary_settings

    os.environ["IMBRACE_HOME"] = str(prefect_server.directory.parent)
    with temporary_settings(
        {PREFECT_API_URL: prefect_server.api_url, PREFECT_SERVER_ALLOW_EPHEMERAL_MODE: False}
    ):
        yield prefect_server
    _collect_leaks()
