"""The supervisor, with a little program in the place of the Prefect server."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from imbrace_cli import server_supervisor
from imbrace_cli.server_files import ServerFiles, is_locked, prefect_version, read_state, try_lock
from imbrace_cli.server_progress import Progress
from imbrace_cli.server_supervisor import (
    Supervisor,
    free_port,
    is_answering,
    main,
    server_environment,
    stop_on_sigterm,
)

SERVER = """
import http.server, json, signal, sys
answers = {"/api/health": True, "/api/admin/version": sys.argv[2]}
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(answers[self.path]).encode())
    def log_message(self, *_):
        pass
if "stubborn" in sys.argv:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""
A_CLIENT = """
import sys, time
from pathlib import Path
from imbrace_cli.local_server import keep_alive
with keep_alive(Path(sys.argv[1])):
    print("holds", flush=True)
    time.sleep(60)
"""


def fake_server(*words: str) -> Callable[[int], list[str]]:
    return lambda port: [sys.executable, "-c", SERVER, str(port), prefect_version(), *words]


def supervisor(home: Path, *words: str, idle_seconds: float = 60.0) -> Supervisor:
    directory = home / "prefect"
    directory.mkdir(exist_ok=True)
    return Supervisor(
        ServerFiles(directory), idle_seconds, fake_server(*words), tick_seconds=0.05, recording_seconds=0.0
    )


def wait_until(is_true: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not is_true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def is_ready(files: ServerFiles) -> bool:
    state = read_state(files.state)
    return state is not None and state.is_ready


def port_of(files: ServerFiles) -> int:
    wait_until(lambda: is_ready(files))
    state = read_state(files.state)
    assert state is not None
    return state.port


def test_a_server_that_nobody_uses_ends(tmp_path: Path) -> None:
    chosen = supervisor(tmp_path, idle_seconds=0.2)

    with ThreadPoolExecutor(1) as pool:
        code = pool.submit(chosen.run, threading.Event())
        port = port_of(chosen.files)

        assert code.result(20) == 0
    assert not chosen.files.state.exists()
    assert not is_answering(port, prefect_version())


@pytest.mark.slow
def test_a_client_keeps_the_server_alive_until_it_is_killed(tmp_path: Path) -> None:
    chosen = supervisor(tmp_path, idle_seconds=0.3)
    command = [sys.executable, "-c", A_CLIENT, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as client:
        assert client.stdout is not None
        assert client.stdout.readline() == "holds\n"
        with ThreadPoolExecutor(1) as pool:
            code = pool.submit(chosen.run, threading.Event())
            port = port_of(chosen.files)
            time.sleep(1.0)
            assert is_answering(port, prefect_version())

            client.kill()

            assert code.result(20) == 0


def test_a_server_does_not_end_under_a_command_that_is_just_arriving(tmp_path: Path) -> None:
    chosen = supervisor(tmp_path)
    chosen.files.lease.touch()
    before = chosen._touched_at()

    with try_lock(chosen.files.start_lock):  # type: ignore[union-attr]
        assert not chosen._withdraw(before)
    os.utime(chosen.files.lease, ns=(1, 1))
    assert not chosen._withdraw(before)
    assert chosen._withdraw(1)


def test_to_be_asked_to_end_ends_even_a_stubborn_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_supervisor, "STOP_SECONDS", 0.2)
    chosen = supervisor(tmp_path, "stubborn")
    chosen.recording_seconds = 0.3
    chosen.files.lease.touch()
    stop = threading.Event()

    with ThreadPoolExecutor(1) as pool:
        code = pool.submit(chosen.run, stop)
        port = port_of(chosen.files)
        stop.set()

        assert code.result(20) == 0
    assert not is_answering(port, prefect_version())


def test_what_was_just_done_is_recorded_before_the_end(tmp_path: Path) -> None:
    chosen = supervisor(tmp_path)
    chosen.recording_seconds = 0.3
    chosen.files.lease.touch()
    began = time.monotonic()
    chosen._let_record()
    assert time.monotonic() - began > 0.2

    os.utime(chosen.files.lease, (1, 1))
    chosen.recording_seconds = 60.0
    began = time.monotonic()
    chosen._let_record()
    assert time.monotonic() - began < 30


def test_a_server_that_dies_ends_its_supervisor(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chosen = supervisor(tmp_path)
    chosen.command = lambda port: [
        sys.executable,
        "-c",
        f"{SERVER}".replace("serve_forever", "handle_request"),
        str(port),
        prefect_version(),
    ]
    # The first question is the last one it answers, so it never is ready.
    assert chosen.run(threading.Event()) == 1

    assert "supervisor: the server did not start" in capsys.readouterr().err


def test_a_server_that_ends_by_itself_is_noticed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chosen = supervisor(tmp_path)
    twice = SERVER.replace(".serve_forever()", "").replace(
        "http.server.HTTPServer((", "s = http.server.HTTPServer(("
    )
    chosen.command = lambda port: [
        sys.executable,
        "-c",
        f"{twice}\nfor _ in range(2): s.handle_request()",
        str(port),
        prefect_version(),
    ]

    assert chosen.run(threading.Event()) == 1

    assert "the server ended by itself: it ended with code 0" in capsys.readouterr().err
    assert not chosen.files.state.exists()


def test_a_removed_folder_ends_the_server(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chosen = supervisor(tmp_path)

    with ThreadPoolExecutor(1) as pool:
        code = pool.submit(chosen.run, threading.Event())
        port_of(chosen.files)
        chosen.files.state.unlink()

        assert code.result(20) == 1
    assert "was removed" in capsys.readouterr().err


def test_a_start_can_be_interrupted(tmp_path: Path) -> None:
    chosen = supervisor(tmp_path)
    chosen.command = lambda _: [sys.executable, "-c", "import time; time.sleep(60)"]
    stop = threading.Event()
    stop.set()

    assert chosen.run(stop) == 0


def test_another_program_on_the_usual_port_is_stepped_around(monkeypatch: pytest.MonkeyPatch) -> None:
    with free_port() as taken:
        monkeypatch.setattr(server_supervisor, "FIRST_PORT", taken)
    command = [sys.executable, "-c", SERVER, str(taken), "another program"]
    with subprocess.Popen(command) as other:
        wait_until(lambda: is_answering(taken, "another program"))

        with free_port() as port:
            assert port != taken
        monkeypatch.setattr(server_supervisor, "PORTS_TRIED", 1)
        with free_port() as port:
            assert port != taken
        assert not is_answering(taken, prefect_version())
        other.kill()


def test_two_supervisors_that_start_together_choose_two_ports() -> None:
    with free_port() as one, free_port() as other:
        assert one != other


def test_the_users_settings_for_prefect_stay_outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_SERVER_DATABASE_CONNECTION_URL", "postgresql+asyncpg://production/prefect")
    monkeypatch.setenv("TZ", "UTC")

    environment = server_environment(tmp_path, 4280)

    assert "PREFECT_SERVER_DATABASE_CONNECTION_URL" not in environment
    assert environment["TZ"] == "UTC"
    assert environment["PREFECT_HOME"] == str(tmp_path)
    assert environment["PREFECT_API_URL"] == "http://127.0.0.1:4280/api"


def test_sigterm_becomes_an_event() -> None:
    before = signal.getsignal(signal.SIGTERM)

    with stop_on_sigterm() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.wait(5)

    assert signal.getsignal(signal.SIGTERM) is before


def test_a_second_supervisor_of_one_folder_goes_away(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = ServerFiles(tmp_path)

    with try_lock(files.supervisor_lock):  # type: ignore[union-attr]
        assert main(["supervise", str(tmp_path), "1"]) == 1

    assert "there is another supervisor" in capsys.readouterr().err
    assert not is_locked(files.supervisor_lock)


def test_to_supervise_is_to_detach_and_to_hold_the_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def leave(code: int) -> None:
        raise SystemExit(code)

    monkeypatch.setattr(os, "_exit", leave)
    monkeypatch.setattr(os, "fork", lambda: 1)
    with pytest.raises(SystemExit, match="0"):
        main(["supervise", str(tmp_path), "0.2"])

    held: list[bool] = []

    def run(chosen: Supervisor, _: threading.Event) -> int:
        held.append(is_locked(chosen.files.supervisor_lock) and chosen.idle_seconds == 0.2)
        return 7

    monkeypatch.setattr(os, "fork", lambda: 0)
    monkeypatch.setattr(Supervisor, "run", run)
    assert main(["supervise", str(tmp_path), "0.2"]) == 7
    assert held == [True]


def test_a_start_is_given_up_only_when_it_makes_no_progress(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = supervisor(tmp_path)
    chosen.command = lambda _: [sys.executable, "-c", "import time; time.sleep(60)"]
    stalled = iter([0.0, 60.0, 0.0, 89.0, 91.0])
    monkeypatch.setattr(Progress, "stalled_seconds", lambda _: next(stalled))

    assert chosen.run(threading.Event()) == 1

    assert "the server did not start: no progress for 90 s" in capsys.readouterr().err
    assert not list(stalled)


def test_a_start_that_makes_progress_for_ever_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(server_supervisor, "START_SECONDS", 0.5)
    chosen = supervisor(tmp_path)
    chosen.command = lambda _: [sys.executable, "-c", "while True: pass"]

    assert chosen.run(threading.Event()) == 1

    assert "the server did not start within 0.5 s" in capsys.readouterr().err


def test_a_server_ends_when_its_supervisor_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    parents = iter([5, 5, 1])
    ends: list[object] = []
    monkeypatch.setattr(os, "getppid", lambda: next(parents))
    monkeypatch.setattr(os, "kill", lambda _, number: ends.append(number))
    monkeypatch.setattr(os, "_exit", lambda code: ends.append(code))
    monkeypatch.setattr(time, "sleep", lambda _: None)

    server_supervisor._end_with_parent(5)

    assert ends == [signal.SIGTERM, 1]
