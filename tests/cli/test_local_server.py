"""The local Prefect server of the command line: one real server for the whole module."""

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
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import httpx
import pytest

from imbrace_cli import local_server
from imbrace_cli.local_server import (
    LocalServer,
    ServerFiles,
    ServerUnavailable,
    ensure_server,
    is_answering,
    is_locked,
    keep_alive,
    prefect_version,
    read_server,
    server_status,
    stop_server,
)
from imbrace_lake.errors import SettingsError
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


def wait_until_ended(pid: int, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        assert time.monotonic() < deadline, f"process {pid} still lives"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Make a home with a space in its path; its server ends with the module."""
    home = tmp_path_factory.mktemp("a home")
    try:
        yield home
    finally:
        stop_server(home)


@pytest.fixture(scope="module")
def first_two(home: Path) -> list[LocalServer]:
    """Return the servers of two commands that asked for one at the same time."""
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(ensure_server, [home, home]))


def test_two_commands_at_once_start_one_server(home: Path, first_two: list[LocalServer]) -> None:
    one, two = first_two

    assert one == two
    assert one.log.exists()
    assert one.version == prefect_version()
    assert is_answering(one.port)


def test_the_next_command_finds_the_same_server(home: Path, first_two: list[LocalServer]) -> None:
    assert ensure_server(home) == first_two[0]
    assert server_status(home) == first_two[0]


def test_only_the_owner_can_read_the_files_of_the_server(home: Path, first_two: list[LocalServer]) -> None:
    folder = first_two[0].directory

    kept = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (folder, *folder.iterdir())}

    assert {"server.log", "state.json", "prefect.db", "server.lock", "use.lock"} <= {*kept}
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

    with keep_alive(home), pytest.raises(ServerUnavailable, match="another command is using"):
        ensure_server(home)
    assert not stopped
    assert ensure_server(home) == first_two[0]
    assert len(stopped) == 1


def test_a_killed_server_is_replaced(home: Path, first_two: list[LocalServer]) -> None:
    lost = ensure_server(home)
    os.kill(lost.pid, signal.SIGKILL)
    wait_until_free(ServerFiles(home / "prefect").lock)

    assert server_status(home) is None
    assert ensure_server(home).pid != lost.pid


def test_a_stopped_server_leaves_no_process(home: Path, first_two: list[LocalServer]) -> None:
    server = ensure_server(home)
    # The server is in use, so it ends without recording.
    with keep_alive(home):
        assert stop_server(home)

    assert server_status(home) is None
    assert not stop_server(home)
    assert not is_locked(ServerFiles(home / "prefect").lock)
    # Not by its port: the server of another test may have taken it.
    wait_until_ended(server.pid)


def test_a_failed_start_reports_the_reason_and_its_log(tmp_path: Path) -> None:
    (tmp_path / "prefect" / "state.new").mkdir(parents=True)

    with pytest.raises(
        ServerUnavailable, match=r"did not start: it ended with .*IsADirectoryError.*server\.log"
    ):
        ensure_server(tmp_path)

    assert not is_locked(ServerFiles(tmp_path / "prefect").lock)


def make_newer(database: Path) -> None:
    """Give a database a version that does not exist yet."""
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
def test_an_unusable_database_is_reported(
    spoil: Callable[[Path], object], reason: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    home = make_home(tmp_path_factory, "spoilt")
    spoil(home / "prefect" / "prefect.db")

    with pytest.raises(
        ServerUnavailable, match=f"the local Prefect server did not start: {reason}"
    ) as failure:
        ensure_server(home)

    assert str(home / "prefect" / "server.log") in str(failure.value)
    assert not is_locked(ServerFiles(home / "prefect").lock)


def test_the_reason_of_an_earlier_failure_is_not_given_again(tmp_path: Path) -> None:
    (tmp_path / "prefect" / "state.new").mkdir(parents=True)
    (tmp_path / "prefect" / "server.log").write_text("OSError: [Errno 28] No space left on device\n")

    with pytest.raises(ServerUnavailable, match="IsADirectoryError"):
        ensure_server(tmp_path)


def test_an_interrupted_start_leaves_no_process(tmp_path: Path) -> None:
    files = ServerFiles(tmp_path / "prefect")
    pids: list[int] = []

    def interrupt(seconds: float) -> None:
        server = read_server(files)
        if server is not None:
            pids.append(server.pid)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ensure_server(tmp_path, interrupt)

    assert not is_locked(files.lock)
    with pytest.raises(ProcessLookupError):
        os.kill(pids[0], 0)


@contextmanager
def process_with_lock(files: ServerFiles, program: str = "time.sleep(60)") -> Iterator[subprocess.Popen[str]]:
    """Run a process that holds the lock of a server."""
    lines = f"""
import pathlib, signal, sys, time
from filelock import FileLock
with FileLock({str(files.lock)!r}):
    print("locked", flush=True)
    {program}
"""
    command = [sys.executable, "-c", lines]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "locked\n"
        try:
            yield process
        finally:
            process.kill()


def describe(files: ServerFiles, process: subprocess.Popen[str], *, is_ready: bool = True) -> None:
    LocalServer(files.directory, process.pid, 9, prefect_version(), is_ready).write()


def test_a_command_waits_for_the_start_by_a_killed_command(tmp_path: Path) -> None:
    files = ServerFiles(tmp_path)
    waits: list[float] = []

    with process_with_lock(files) as starting:
        describe(files, starting, is_ready=False)

        def waiting() -> None:
            waits.append(1.0)
            if len(waits) == 3:
                starting.kill()

        assert local_server._find(files, waiting) is None

    assert len(waits) >= 3


def test_a_start_that_makes_no_progress_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_server, "START_STALL_SECONDS", 0.3)
    files = ServerFiles(tmp_path)

    with process_with_lock(files) as starting:
        describe(files, starting, is_ready=False)

        assert local_server._find(files, lambda: None) is None
        assert starting.wait(10) == -signal.SIGTERM


def test_a_command_waits_for_a_start_as_long_as_it_makes_progress(tmp_path: Path) -> None:
    files = ServerFiles(tmp_path)
    files.state.touch()
    touches = iter(range(1, 6))
    began = time.monotonic()

    def work() -> None:
        if (touch := next(touches, None)) is not None:
            os.utime(files.state, (touch, touch))

    assert not local_server._wait(files, lambda: False, 0.4, 60.0, work)
    # Five touches in half a second, and then the stall.
    assert 0.8 < time.monotonic() - began < 30


def test_a_start_that_makes_progress_for_ever_is_ended(tmp_path: Path) -> None:
    files = ServerFiles(tmp_path)
    files.state.touch()

    def work() -> None:
        os.utime(files.state, ns=(0, time.time_ns()))

    assert not local_server._wait(files, lambda: False, 60.0, 0.3, work)


def test_a_server_that_ignores_the_request_to_end_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_server, "RECORDING_SECONDS", 0.2)
    monkeypatch.setattr(local_server, "STOP_SECONDS", 5.0)
    (tmp_path / "prefect").mkdir()
    files = ServerFiles(tmp_path / "prefect")
    # The server begins to end, and hangs.
    stubborn = (
        f"signal.signal(signal.SIGTERM, lambda *_: pathlib.Path({str(files.state)!r}).unlink());"
        " print('deaf', flush=True); [time.sleep(1) for _ in range(60)]"
    )

    with process_with_lock(files, stubborn) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "deaf\n"
        describe(files, process)

        assert stop_server(tmp_path)
        assert process.wait(10) == -signal.SIGKILL
    assert not files.state.exists()


def test_a_folder_without_locks_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", unsupported)

    with pytest.raises(ServerUnavailable, match=r"No locks available.*set IMBRACE_HOME"):
        ensure_server(tmp_path)


def test_a_large_log_is_rotated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_server, "MAX_LOG_BYTES", 3)
    (tmp_path / "prefect" / "state.new").mkdir(parents=True)
    log = tmp_path / "prefect" / "server.log"
    log.write_text("long")

    with pytest.raises(ServerUnavailable):
        ensure_server(tmp_path)

    assert log.with_suffix(".log.1").read_text() == "long"
    assert "long" not in log.read_text()


def test_a_start_of_this_command_that_takes_too_long_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_server, "START_STALL_SECONDS", 0.0)

    with pytest.raises(ServerUnavailable, match="did not start: it made no progress"):
        ensure_server(tmp_path)

    assert not is_locked(ServerFiles(tmp_path / "prefect").lock)


def locked_by_another_process(path: Path) -> subprocess.Popen[bytes]:
    lines = (
        "import fcntl, sys, time",
        "file = open(sys.argv[1], 'a')",
        "fcntl.flock(file, fcntl.LOCK_EX)",
        "print(flush=True)",
        "time.sleep(60)",
    )
    command = [sys.executable, "-c", "\n".join(lines), str(path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    return process


def test_waiting_for_another_start_has_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_server, "START_SECONDS", 0.0)
    monkeypatch.setattr(local_server, "STOP_SECONDS", 0.2)
    (tmp_path / "prefect").mkdir()
    waits: list[float] = []

    with locked_by_another_process(tmp_path / "prefect" / "start.lock") as other:
        with pytest.raises(ServerUnavailable, match="another command has been starting"):
            ensure_server(tmp_path, waits.append)
        other.kill()

    assert waits


def test_a_use_lock_of_another_program_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_server, "STOP_SECONDS", 0.15)
    (tmp_path / "prefect").mkdir()

    with locked_by_another_process(tmp_path / "prefect" / "use.lock") as other:
        with pytest.raises(ServerUnavailable, match="locked by another program"), keep_alive(tmp_path):
            pass
        other.kill()


@pytest.mark.parametrize("name", ["IMBRACE_SERVER_IDLE_MINUTES", "IMBRACE_SERVER_KEEP_DAYS"])
@pytest.mark.parametrize("value", ["soon", "0", "-1", "nan", "inf"])
def test_an_invalid_number_is_rejected(
    name: str, value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)

    with pytest.raises(SettingsError, match=f"{name} must be a number .* not '{value}'"):
        ensure_server(tmp_path)


def test_a_home_that_cannot_be_created_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(ServerUnavailable, match="set IMBRACE_HOME"):
        ensure_server(tmp_path / "file" / "home")


def test_a_server_that_neither_answers_nor_works_is_replaced_unless_it_is_in_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_server, "BUSY_STALL_SECONDS", 0.3)
    (tmp_path / "prefect").mkdir()
    files = ServerFiles(tmp_path / "prefect")

    with process_with_lock(files) as broken:
        describe(files, broken)

        with keep_alive(tmp_path), pytest.raises(ServerUnavailable, match="another command is using"):
            local_server._find(files, lambda: None)
        assert broken.poll() is None
        assert local_server._find(files, lambda: None) is None
        assert broken.wait(10) == -signal.SIGTERM


def test_a_command_waits_for_a_server_that_is_too_busy_to_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_server, "BUSY_STALL_SECONDS", 0.5)
    answers = iter([False] * 15 + [True])
    monkeypatch.setattr(local_server, "is_answering", lambda _: next(answers))
    files = ServerFiles(tmp_path)

    with process_with_lock(files) as busy:
        describe(files, busy)

        assert local_server._find(files, lambda: os.utime(files.state)) == read_server(files)
    assert not list(answers)


def processes_of(leader: int) -> list[int]:
    """Return the processes of a server, which is the leader of their session."""
    found = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdecimal()]
    sessions = {}
    for pid in found:
        with suppress(ProcessLookupError):
            sessions[pid] = os.getsid(pid)
    return [pid for pid, session in sessions.items() if session == leader]


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc")
def test_no_process_of_the_server_has_the_users_secrets(
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
        assert server.pid in processes_of(server.pid)
        for pid in processes_of(server.pid):
            environment = Path(f"/proc/{pid}/environ").read_text(encoding="utf-8").split("\0")
            assert any(variable.startswith("PATH=") for variable in environment)
            assert not [variable for variable in environment if "secret" in variable]
    finally:
        stop_server(home)


def test_the_home_comes_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMBRACE_HOME", str(tmp_path))
    assert local_server.default_home() == tmp_path
    assert server_status() is None

    monkeypatch.delenv("IMBRACE_HOME")
    assert local_server.default_home() == Path.home() / ".imbrace-lake"
