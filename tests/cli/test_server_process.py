"""The process of the local server, with a small application instead of Prefect's."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, MutableMapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from imbrace_cli import server_process
from imbrace_cli.local_server import LocalServer, ServerFiles, is_answering, read_server
from imbrace_cli.server_process import IdleServer, listen, poll_less, server_environment, watch_process
from tests.ports import free_port

A_CLIENT = """
import sys, time
from pathlib import Path
from imbrace_cli.local_server import keep_alive
with keep_alive(Path(sys.argv[1])):
    print("uses it", flush=True)
    time.sleep(60)
"""


async def healthy(
    scope: MutableMapping[str, Any], receive: Callable[[], Any], send: Callable[..., Any]
) -> None:
    """Answer every request as Prefect's health check does."""
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"true"})


def wait_until(is_true: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not is_true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@contextmanager
def running(
    home: Path,
    *,
    idle_seconds: float = 60.0,
    recording_seconds: float = 0.0,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[tuple[IdleServer, Future[None], int]]:
    """Run a server in a thread until it is ready; yield the server, the future of its end and its port."""
    directory = home / "prefect"
    directory.mkdir(exist_ok=True)
    ServerFiles(directory).use_lock.touch()
    # Not the port at which the servers of other tests start to look for theirs.
    with ThreadPoolExecutor(1) as pool, listen(free_port()) as listener:
        port = listener.getsockname()[1]
        described = LocalServer(directory, os.getpid(), port, "3", is_ready=False)
        described.write()
        server = IdleServer(
            healthy,
            described,
            idle_seconds,
            tick_seconds=0.05,
            recording_seconds=recording_seconds,
            clock=clock,
        )
        end = pool.submit(server.run, [listener])
        try:
            ready = replace(described, is_ready=True)
            wait_until(lambda: end.done() or read_server(ServerFiles(directory)) == ready)
            yield server, end, port
        finally:
            server.handle_exit(signal.SIGTERM, None)


def test_an_unused_server_ends(tmp_path: Path) -> None:
    with running(tmp_path, idle_seconds=0.2) as (_, end, port):
        end.result(120)

    assert not ServerFiles(tmp_path / "prefect").state.exists()
    assert not is_answering(port)


def test_a_server_answers_as_soon_as_it_is_described_as_ready(tmp_path: Path) -> None:
    files = ServerFiles(tmp_path / "prefect")
    with running(tmp_path) as (_, _, port):
        ready = LocalServer(files.directory, os.getpid(), port, "3", is_ready=True)
        wait_until(lambda: read_server(files) == ready)
        assert is_answering(port)


@pytest.mark.slow
def test_a_client_keeps_the_server_alive_until_it_is_killed(tmp_path: Path) -> None:
    (tmp_path / "prefect").mkdir()
    command = [sys.executable, "-c", A_CLIENT, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as client:
        assert client.stdout is not None
        assert client.stdout.readline() == "uses it\n"
        with running(tmp_path, idle_seconds=0.3) as (_, end, port):
            time.sleep(1.0)
            assert is_answering(port)

            client.kill()

            end.result(120)


def test_a_server_does_not_end_while_a_command_is_about_to_use_it(tmp_path: Path) -> None:
    files = ServerFiles(tmp_path / "prefect")
    with running(tmp_path) as (server, end, _):
        before = server._last_use()

        with FileLock(files.start_lock):
            assert not server._withdraw(before)
        os.utime(files.use_lock, (1, 1))
        assert not server._withdraw(before)
        assert files.state.exists()
        assert server._withdraw(1.0)
        assert not files.state.exists()
        end.result(120)


def test_a_new_command_restarts_the_idle_time(tmp_path: Path) -> None:
    seconds, looks = 0.0, 0

    def clock() -> float:
        nonlocal looks
        now = seconds
        looks += 1
        return now

    def wait_for_a_look() -> None:
        # The first of the two may have begun before.
        seen = looks
        wait_until(lambda: looks >= seen + 2)

    with running(tmp_path, idle_seconds=3.0, clock=clock) as (_, end, _):
        for second in range(4):
            os.utime(ServerFiles(tmp_path / "prefect").use_lock, (second, second))
            wait_for_a_look()
            seconds += 2.0
            wait_for_a_look()
        assert not end.done()

        seconds += 1.0
        end.result(120)


def test_a_server_that_was_just_used_records_before_it_ends(tmp_path: Path) -> None:
    files = ServerFiles(tmp_path / "prefect")
    with running(tmp_path, recording_seconds=0.5) as (server, end, _):
        os.utime(files.use_lock)
        began = time.monotonic()
        server.handle_exit(signal.SIGTERM, None)

        # Meanwhile the next command does not find the server.
        wait_until(lambda: not files.state.exists())
        assert not server.should_exit
        end.result(120)
        assert time.monotonic() - began >= 0.4


def test_a_server_that_was_not_just_used_ends_at_once(tmp_path: Path) -> None:
    with running(tmp_path, recording_seconds=60.0) as (server, end, _):
        os.utime(ServerFiles(tmp_path / "prefect").use_lock, (1, 1))
        server.handle_exit(signal.SIGTERM, None)

        end.result(30)


def test_a_removed_folder_ends_the_server(tmp_path: Path) -> None:
    with running(tmp_path) as (_, end, _):
        for path in (tmp_path / "prefect").iterdir():
            path.unlink()
        (tmp_path / "prefect").rmdir()

        end.result(120)


def test_a_folder_removed_during_the_start_ends_the_server(tmp_path: Path) -> None:
    removed = LocalServer(tmp_path / "prefect", os.getpid(), free_port(), "3", is_ready=False)
    server = IdleServer(healthy, removed, idle_seconds=60.0, tick_seconds=0.05)
    with ThreadPoolExecutor(1) as pool, listen() as listener:
        pool.submit(server.run, [listener]).result(120)


def test_another_program_on_the_usual_port_is_avoided(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        monkeypatch.setattr(server_process, "FIRST_PORT", taken)
        with listen() as listener:
            assert listener.getsockname()[1] != taken
        monkeypatch.setattr(server_process, "PORTS_TRIED", 1)
        with listen() as listener:
            assert listener.getsockname()[1] != taken


def test_servers_that_start_together_choose_different_ports() -> None:
    with listen() as one, listen() as other:
        assert one.getsockname() != other.getsockname()


def test_answers_are_sent_at_once() -> None:
    with listen() as listener, socket.create_connection(listener.getsockname()):
        connection, _ = listener.accept()
        with connection:
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


@pytest.fixture
def own_ports(monkeypatch: pytest.MonkeyPatch) -> None:
    """Listen on ports that the servers of other tests leave alone."""
    monkeypatch.setattr(server_process, "FIRST_PORT", free_port())


def test_the_next_server_has_the_port_of_the_last(own_ports: None) -> None:
    with listen() as free:
        port = free.getsockname()[1]
        # A connection that the server closes first keeps the port for a minute.
        with socket.create_connection(("127.0.0.1", port)) as client:
            free.accept()[0].close()
            client.recv(1)

    with listen() as again:
        assert again.getsockname()[1] == port


def test_a_server_takes_its_last_port_although_another_one_has_become_free(own_ports: None) -> None:
    with listen() as first, listen() as last:
        port = last.getsockname()[1]
        first.close()
        last.close()

    with listen(port) as again, listen(port) as other:
        assert again.getsockname()[1] == port
        assert other.getsockname()[1] != port


@pytest.mark.parametrize(("text", "port"), [("4283", 4283), ("", None), ("x", None), ("70000", None)])
def test_a_damaged_port_file_is_ignored(tmp_path: Path, text: str, port: int | None) -> None:
    (tmp_path / "port").write_text(text)

    assert server_process._read_port(tmp_path / "port") == port
    assert server_process._read_port(tmp_path / "missing") is None


def test_the_server_keeps_its_data_in_its_folder_and_its_answers_from_other_pages(tmp_path: Path) -> None:
    environment = server_environment(tmp_path, 4280, 30 * 86_400.0)

    assert environment["PREFECT_HOME"] == str(tmp_path)
    assert environment["PREFECT_API_URL"] == "http://127.0.0.1:4280/api"
    assert environment["PREFECT_SERVER_CORS_ALLOWED_ORIGINS"].split(",") == [
        "http://127.0.0.1:4280",
        "http://localhost:4280",
        "http://[::1]:4280",
    ]


def test_prefect_knows_the_settings_of_the_server(tmp_path: Path) -> None:
    from prefect.settings import Settings

    os.environ.update(server_environment(tmp_path, 4280, 12 * 86_400.0))
    services = Settings().server.services

    assert services.db_vacuum.enabled_vacuum_types == {"events", "flow_runs", "orphans"}
    assert services.db_vacuum.retention_period == timedelta(days=12)
    slowed = (services.cleanup_reconciler, services.foreman, services.late_runs, services.pause_expirations)
    assert [service.loop_seconds for service in slowed] == [60, 30, 30, 60]
    assert services.repossessor.loop_seconds == 30
    assert services.scheduler.recent_deployments_loop_seconds == 15
    # Cancelled runs with shards wait for this one.
    assert services.cancellation_cleanup.loop_seconds == 20


@pytest.mark.slow
def test_the_server_polls_for_its_own_work_every_three_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    from burner_redis import BurnerRedis, PubSub
    from docket import Docket, Worker
    from prefect.server.api import background_workers

    # Fails if a module no longer has the name that is replaced.
    monkeypatch.setattr(background_workers, "Worker", Worker)
    monkeypatch.setattr(PubSub, "get_message", PubSub.get_message)
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr(asyncio, "sleep", sleep)

    poll_less()

    worker = vars(background_workers)["Worker"](Docket("any", "memory://"))
    assert worker.minimum_check_interval == worker.scheduling_resolution == timedelta(seconds=3)

    async def listen_to_all() -> list[Any]:
        channels = BurnerRedis().pubsub()
        await channels.psubscribe("*")
        messages = [await channels.get_message(timeout=0.1) for _ in range(2)]
        await channels.aclose()
        return messages

    subscribed, nothing = asyncio.run(listen_to_all())
    assert subscribed["type"] == "psubscribe"
    assert nothing is None
    assert slept == [3.0]


def test_a_working_process_touches_its_state_file_and_a_hanging_one_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = tmp_path / "state.json"
    state.touch()
    cpu = iter([1.0, 1.0, 2.0, 2.0])
    touched: list[int] = []
    slept: list[float] = []
    exits: list[int] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if not state.exists():
            return
        touched.append(state.stat().st_mtime_ns)
        os.utime(state, ns=(0, 0))
        if len(touched) == 4:
            state.unlink()

    monkeypatch.setattr(time, "sleep", sleep)
    monkeypatch.setattr(time, "process_time", lambda: next(cpu, 3.0))

    monkeypatch.setattr(os, "_exit", exits.append)

    watch_process(state)

    # Idle after the first tick, at work in the second, idle in the third.
    assert [time_ns > 0 for time_ns in touched[1:]] == [False, True, False]
    assert slept == [5.0, 5.0, 5.0, 5.0, 25.0]
    assert exits == [1]


@pytest.mark.slow
def test_a_second_server_of_one_folder_gives_up(tmp_path: Path) -> None:
    files = ServerFiles(tmp_path)

    with FileLock(files.lock):
        command = [sys.executable, "-m", "imbrace_cli.server_process", str(tmp_path), "60", "86400"]
        second = subprocess.run(command, capture_output=True, text=True, check=False)

    assert second.returncode == 1
    assert "server.lock" in second.stderr
    assert not files.state.exists()
