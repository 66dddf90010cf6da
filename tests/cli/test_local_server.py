"""The command line's own Prefect server: one real one for the whole module."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import sqlite3
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import httpx
import pytest

from imbrace_cli import local_server
from imbrace_cli.local_server import LocalServer, ensure_server, keep_alive, server_status, stop_server
from imbrace_cli.server_files import (
    ServerFiles,
    ServerState,
    is_locked,
    prefect_version,
    read_state,
    try_lock,
)
from imbrace_cli.server_supervisor import is_answering
from imbrace_lake.errors import SettingsError
from tests.deployments.operator import until
from tests.prefect_homes import make_home

pytestmark = pytest.mark.server

A_RUN = """
import asyncio, logging, sys
from pathlib import Path
from imbrace_cli.local_server import ensure_server, keep_alive
from imbrace_cli.prefect_environment import prepare_client

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


def test_only_its_owner_can_read_what_the_server_keeps(home: Path, first_two: list[LocalServer]) -> None:
    folder = first_two[0].directory

    kept = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (folder, *folder.iterdir())}

    assert {"server.log", "state.json", "prefect.db", "supervisor.lock", "lease.lock"} <= {*kept}
    assert {name: oct(mode) for name, mode in kept.items() if mode & 0o077} == {}


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


def test_a_start_that_fails_says_why_and_where_its_log_is(tmp_path: Path) -> None:
    (tmp_path / "prefect" / "state.new").mkdir(parents=True)

    with pytest.raises(SettingsError, match=r"did not start: it ended with .*IsADirectoryError.*server\.log"):
        ensure_server(tmp_path)

    assert not is_locked(ServerFiles(tmp_path / "prefect").supervisor_lock)


def make_newer(database: Path) -> None:
    """Let a database be of a version that does not exist yet."""
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = '0123456789ab'")


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (make_newer, "its database was made by a newer version of Prefect: install a newer imbrace-lake"),
        (lambda path: path.write_bytes(b"no database" * 1_000), "its database is damaged: move "),
        (lambda path: (path.unlink(), path.mkdir()), "it may not write to "),
    ],
)
def test_a_database_that_cannot_be_used_is_named(
    spoil: Callable[[Path], object], reason: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    home = make_home(tmp_path_factory, "spoilt")
    spoil(home / "prefect" / "prefect.db")

    with pytest.raises(SettingsError, match=f"the local Prefect server did not start: {reason}") as failure:
        ensure_server(home)

    assert str(home / "prefect" / "server.log") in str(failure.value)
    assert not is_locked(ServerFiles(home / "prefect").supervisor_lock)


def test_the_reason_of_an_earlier_failure_is_not_given_again(tmp_path: Path) -> None:
    (tmp_path / "prefect" / "state.new").mkdir(parents=True)
    (tmp_path / "prefect" / "server.log").write_text("OSError: [Errno 28] No space left on device\n")

    with pytest.raises(SettingsError, match="IsADirectoryError"):
        ensure_server(tmp_path)


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

        assert local_server._find_server(files, lambda: waits.append(1.0)) is None

    assert waits


def test_a_folder_without_locks_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)

    with pytest.raises(SettingsError, match=r"No locks available.*set IMBRACE_HOME"):
        ensure_server(tmp_path)


def test_a_big_log_begins_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_server, "MAX_LOG_BYTES", 3)
    (tmp_path / "prefect" / "state.new").mkdir(parents=True)
    log = tmp_path / "prefect" / "server.log"
    log.write_text("long")

    with pytest.raises(SettingsError):
        ensure_server(tmp_path)

    assert log.with_suffix(".log.1").read_text() == "long"
    assert "long" not in log.read_text()


def test_a_supervisor_that_does_not_even_end_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_server, "START_SECONDS", 0.0)
    monkeypatch.setattr(local_server, "STOP_SECONDS", 0.0)

    with pytest.raises(SettingsError, match="did not start"):
        ensure_server(tmp_path)

    monkeypatch.undo()
    stop_server(tmp_path)


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


def test_a_lease_that_is_locked_by_another_program_is_reported(
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


def test_a_home_that_cannot_be_made_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(SettingsError, match="set IMBRACE_HOME"):
        ensure_server(tmp_path / "file" / "home")


def test_a_server_that_neither_answers_nor_works_counts_as_broken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_server, "BUSY_SECONDS", 0.2)
    waits: list[bool] = []
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as idle:
        state = ServerState(pid=1, port=9, version="3", is_ready=True, server_pid=idle.pid)
        answering = local_server._is_answering_soon(ServerFiles(tmp_path), state, lambda: waits.append(True))
        idle.kill()

    assert not answering
    assert waits


def test_a_server_that_is_too_busy_to_answer_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_server, "BUSY_SECONDS", 0.5)
    monkeypatch.setattr(local_server, "BUSIEST_SECONDS", 3.0)
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as busy:
        state = ServerState(pid=1, port=9, version="3", is_ready=True, server_pid=busy.pid)
        began = time.monotonic()
        local_server._is_answering_soon(ServerFiles(tmp_path), state, lambda: None)
        busy.kill()

    assert time.monotonic() - began >= 3.0


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc")
def test_neither_server_nor_supervisor_has_the_users_secrets(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    secrets = {
        "IMBRACE_TOKEN": "api_secret",
        "IMBRACE_PHONE_KEY": "phone secret",
        "AWS_SECRET_ACCESS_KEY": "aws secret",
        "AZURE_STORAGE_KEY": "azure secret",
        "GOOGLE_API_KEY": "google secret",
        "PREFECT_API_KEY": "prefect secret",
        "DATABASE_URL": "postgresql://user:url secret@host/",
        "https_proxy": "http://user:proxy secret@proxy/",
        "SOME_TOKEN": "some secret",
    }
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    home = make_home(tmp_path_factory, "clean")
    try:
        server = ensure_server(home)
        state = read_state(ServerFiles(server.directory).state)
        assert state is not None
        for pid in (state.pid, state.server_pid):
            environment = Path(f"/proc/{pid}/environ").read_text(encoding="utf-8").split("\0")
            assert any(variable.startswith("PATH=") for variable in environment)
            assert not [variable for variable in environment if "secret" in variable]
    finally:
        stop_server(home)


def test_the_home_is_the_one_of_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMBRACE_HOME", str(tmp_path))
    assert local_server.default_home() == tmp_path
    assert server_status() is None

    monkeypatch.delenv("IMBRACE_HOME")
    assert local_server.default_home() == Path.home() / ".imbrace-lake"
