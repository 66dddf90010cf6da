"""The command line's own Prefect server: one real one for the whole module."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from cli import local_server
from cli.local_server import LocalServer, ensure_server, keep_alive, server_status, stop_server
from cli.server_files import ServerFiles, ServerState, is_locked, prefect_version, read_state, try_lock
from cli.server_supervisor import is_answering
from imbrace_lake.errors import SettingsError
from tests.deployments.operator import until

A_RUN = """
import asyncio, logging, sys
from pathlib import Path
from cli.local_server import ensure_server, keep_alive
from cli.prefect_environment import prepare_client

home = Path(sys.argv[1])
server = ensure_server(home)
with keep_alive(home):
    prepare_client(server.api_url, server.directory)
    from prefect import flow, task

    logging.getLogger("imbrace_lake").setLevel(logging.INFO)

    @task
    async def step(number: int) -> int:
        return number

    @flow
    async def run() -> None:
        logging.getLogger("imbrace_lake.export.chunk").info("exported rows=1")
        await asyncio.gather(*[step(number) for number in range(100)])

    asyncio.run(run())
"""


def wait_until_free(path: Path, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while is_locked(path):
        assert time.monotonic() < deadline, f"{path} is still locked"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home whose path has a space, and whose server never lives longer than the module."""
    home = tmp_path_factory.mktemp("a home")
    try:
        yield home
    finally:
        stop_server(home)


@pytest.fixture(scope="module")
def first_two(home: Path) -> list[LocalServer]:
    """What two commands got that asked for a server at the same time."""
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(ensure_server, [home, home]))


def test_two_commands_at_once_start_one_server(home: Path, first_two: list[LocalServer]) -> None:
    one, two = first_two

    assert one.log.exists()
    assert (one.pid, one.port) == (two.pid, two.port)
    assert sorted([one.was_running, two.was_running]) == [False, True]
    assert is_answering(one.port, prefect_version())


def test_the_next_command_finds_the_same_server(home: Path, first_two: list[LocalServer]) -> None:
    found = ensure_server(home)

    assert found.was_running
    assert found.pid == first_two[0].pid
    assert found == server_status(home)


def test_a_run_prints_nothing_and_all_of_it_is_recorded(home: Path, first_two: list[LocalServer]) -> None:
    api = first_two[0].api_url

    run = subprocess.run(
        [sys.executable, "-c", A_RUN, str(home)], capture_output=True, text=True, check=False
    )

    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")
    completed = {"task_runs": {"state": {"type": {"any_": ["COMPLETED"]}}}}
    deadline = time.monotonic() + 30
    while (count := httpx.post(f"{api}/task_runs/count", json=completed).json()) < 100:
        assert time.monotonic() < deadline, f"only {count} task runs were recorded"
        time.sleep(0.2)
    logs = [entry["message"] for entry in httpx.post(f"{api}/logs/filter", json={}).json()]
    assert "exported rows=1" in logs


def test_a_server_of_another_version_is_replaced_unless_it_is_in_use(
    home: Path, first_two: list[LocalServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_server, "prefect_version", lambda: "0.0.0")
    stopped: list[ServerFiles] = []

    def stop(files: ServerFiles) -> None:
        stopped.append(files)
        monkeypatch.setattr(local_server, "prefect_version", prefect_version)

    monkeypatch.setattr(local_server, "_stop", stop)

    with keep_alive(home), pytest.raises(SettingsError, match="another command is using"):
        ensure_server(home)
    assert not stopped
    assert ensure_server(home).was_running
    assert len(stopped) == 1


def test_a_killed_supervisor_takes_its_server_along_and_is_replaced(
    home: Path, first_two: list[LocalServer]
) -> None:
    lost = ensure_server(home)
    os.kill(lost.pid, signal.SIGKILL)
    wait_until_free(ServerFiles(home / "prefect").supervisor_lock)

    assert server_status(home) is None
    found = ensure_server(home)

    assert not found.was_running
    assert found.pid != lost.pid
    # It ends by itself, in its own time where the machine is busy.
    is_gone = lost.port == found.port or until(
        lambda: not is_answering(lost.port, prefect_version()) or None, "the end of the lost server", 60.0
    )
    assert is_gone


def test_a_stopped_server_is_gone(home: Path, first_two: list[LocalServer]) -> None:
    server = ensure_server(home)
    # The server is in use, so nobody waits for what it has still to record.
    with keep_alive(home):
        assert stop_server(home)

    assert server_status(home) is None
    assert not stop_server(home)
    assert not is_answering(server.port, prefect_version())
    assert not is_locked(ServerFiles(home / "prefect").supervisor_lock)


def test_a_start_that_fails_says_where_the_reason_is(tmp_path: Path) -> None:
    (tmp_path / "prefect" / "state.new").mkdir(parents=True)

    with pytest.raises(SettingsError, match=r"did not start; its log says why: .*server\.log"):
        ensure_server(tmp_path)

    log = tmp_path / "prefect" / "server.log"
    # The last line may still be on its way.
    until(lambda: "IsADirectoryError" in log.read_text() or None, "the reason in the log")
    assert not is_locked(ServerFiles(tmp_path / "prefect").supervisor_lock)


def test_an_interrupted_start_leaves_no_process(tmp_path: Path) -> None:
    files = ServerFiles(tmp_path / "prefect")
    ports: list[int] = []

    def interrupt(seconds: float) -> None:
        state = read_state(files.state)
        if state is not None:
            ports.append(state.port)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ensure_server(tmp_path, interrupt)

    assert ports
    assert not is_locked(files.supervisor_lock)
    assert not files.state.exists()


def test_a_start_by_another_command_is_waited_for_but_not_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = ServerFiles(tmp_path)
    monkeypatch.setattr(local_server, "START_SECONDS", 0.2)
    monkeypatch.setattr(local_server, "STOP_SECONDS", 0.1)
    waits: list[float] = []

    with try_lock(files.supervisor_lock) as starting:  # type: ignore[union-attr]
        assert starting is not None
        monkeypatch.setattr(local_server, "_stop", lambda _: starting.close())

        assert local_server._find(files, lambda: waits.append(1.0)) is None

    assert waits


def test_a_folder_without_locks_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)

    with pytest.raises(SettingsError, match=r"No locks available.*set IMBRACE_HOME"):
        ensure_server(tmp_path)


def test_windows_is_told_to_start_a_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")

    with pytest.raises(SettingsError, match="PREFECT_API_URL"):
        ensure_server(tmp_path)


def test_a_big_log_begins_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_server, "MAX_LOG_BYTES", 3)
    (tmp_path / "prefect" / "state.new").mkdir(parents=True)
    log = tmp_path / "prefect" / "server.log"
    log.write_text("long")

    with pytest.raises(SettingsError):
        ensure_server(tmp_path)

    assert log.with_suffix(".log.1").read_text() == "long"
    assert "long" not in log.read_text()


def test_a_start_that_takes_for_ever_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_server, "START_SECONDS", 0.0)

    with pytest.raises(SettingsError, match="did not start"):
        ensure_server(tmp_path)

    assert not is_locked(ServerFiles(tmp_path / "prefect").supervisor_lock)


def test_waiting_for_another_start_has_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_server, "START_SECONDS", 0.0)
    monkeypatch.setattr(local_server, "STOP_SECONDS", 0.2)
    (tmp_path / "prefect").mkdir()
    waits: list[float] = []

    with try_lock(tmp_path / "prefect" / "start.lock") as lock:  # type: ignore[union-attr]
        assert lock is not None
        with pytest.raises(SettingsError, match="another command has been starting"):
            ensure_server(tmp_path, waits.append)

    assert waits


def test_a_lease_that_is_locked_by_another_program_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_server, "STOP_SECONDS", 0.15)
    (tmp_path / "prefect").mkdir()

    with (
        try_lock(tmp_path / "prefect" / "lease.lock"),  # type: ignore[union-attr]
        pytest.raises(SettingsError, match="locked by another program"),
        keep_alive(tmp_path),
    ):
        pass


@pytest.mark.parametrize("minutes", ["soon", "0", "-1", "nan", "inf"])
def test_an_idle_time_that_is_no_time_is_refused(
    minutes: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IMBRACE_SERVER_IDLE_MINUTES", minutes)

    with pytest.raises(SettingsError, match=f"not '{minutes}'"):
        ensure_server(tmp_path)


def test_a_home_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(SettingsError, match="set IMBRACE_HOME"):
        ensure_server(tmp_path / "file" / "home")


def test_a_server_that_answers_no_more_is_taken_for_broken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_server, "BUSY_SECONDS", 0.2)
    waits: list[bool] = []

    answering = local_server._is_answering_soon(
        ServerState(pid=1, port=9, version="3", is_ready=True), lambda: waits.append(True)
    )

    assert not answering
    assert waits


def test_the_home_is_the_one_of_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMBRACE_HOME", str(tmp_path))
    assert local_server.default_home() == tmp_path
    assert server_status() is None

    monkeypatch.delenv("IMBRACE_HOME")
    assert local_server.default_home() == Path.home() / ".imbrace-lake"
