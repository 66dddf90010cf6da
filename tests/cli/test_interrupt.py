"""Ctrl-C at any moment of a command: acknowledged, and the end of the process."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

import httpx
import pytest

from imbrace_cli import interrupt as module
from imbrace_cli import prefect_session
from imbrace_cli.exit_codes import INTERRUPTED
from imbrace_cli.interrupt import (
    ACKNOWLEDGED,
    Interrupt,
    at_prompt,
    current_interrupt,
    interruptible,
    run_interruptibly,
)
from imbrace_cli.local_server import LocalServer
from imbrace_cli.prefect_session import Session
from tests.cli.conftest import prefect_leaks
from tests.cli.fake_server import fake_server
from tests.prefect_api import send

ROOT = Path(__file__).parents[2]


def start(program: str) -> subprocess.Popen[str]:
    """Start a program in another process."""
    # What starts the tests may ignore it, as `nohup` does.
    program = f"import signal\nsignal.signal(signal.SIGHUP, signal.SIG_DFL)\n{program}"
    return subprocess.Popen(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("sent", ["SIGINT", "SIGTERM", "SIGHUP"])
@pytest.mark.parametrize("loaded", ["imbrace_cli.interrupt", "imbrace_cli.main", "imbrace_cli.demo"])
def test_a_signal_while_modules_are_loaded_ends_the_program_with_a_sentence(loaded: str, sent: str) -> None:
    program = start(f"""
import os, signal, sys
from imbrace_cli.__main__ import main
class Interrupting:
    def find_spec(self, name, *_):
        if name == "{loaded}":
            os.kill(os.getpid(), signal.{sent})
sys.meta_path.insert(0, Interrupting())
sys.argv[1:] = ["demo", "--help"]
sys.exit(main())
""")

    out, err = program.communicate(timeout=300)

    assert (program.returncode, out, err) == (
        INTERRUPTED,
        "",
        "\ninterrupted: run the same command to start again\n",
    )


@pytest.mark.slow
def test_ctrl_c_is_acknowledged_while_a_library_keeps_the_main_thread_busy_and_a_second_one_ends_it() -> None:
    program = start("""
import hashlib
from imbrace_cli.interrupt import interruptible
with interruptible():
    print("busy", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 500_000_000)
""")
    assert program.stdout is not None
    assert program.stderr is not None
    assert program.stdout.readline() == "busy\n"
    time.sleep(0.2)

    program.send_signal(signal.SIGINT)
    acknowledged = [program.stderr.readline(), program.stderr.readline()]
    program.send_signal(signal.SIGINT)
    program.communicate(timeout=300)

    assert acknowledged == ["\n", f"{ACKNOWLEDGED}\n"]
    assert program.returncode == INTERRUPTED


def test_a_terminal_that_closes_ends_the_command_in_order_however_often_it_says_so() -> None:
    program = start("""
import os, time
from contextlib import suppress
from imbrace_cli.interrupt import interruptible
with interruptible():
    with suppress(KeyboardInterrupt):
        print("busy", flush=True)
        time.sleep(60)
    time.sleep(1)
    os.write(1, b"in order")
""")
    assert program.stdout is not None
    assert program.stdout.readline() == "busy\n"

    program.send_signal(signal.SIGHUP)
    time.sleep(0.2)
    program.send_signal(signal.SIGHUP)
    out, _ = program.communicate(timeout=300)

    assert (program.returncode, out) == (0, "in order")


def test_ctrl_c_that_is_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interruptible() as interrupt:
            os.kill(os.getpid(), signal.SIGINT)
        assert not interrupt.is_requested
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_command_that_runs_until_ctrl_c_handles_it_itself() -> None:
    with interruptible(until_interrupted=True) as interrupt, pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)

    assert not interrupt.is_requested


def test_at_a_prompt_ctrl_c_does_not_end_the_command(capfd: pytest.CaptureFixture[str]) -> None:
    with interruptible() as interrupt:
        with at_prompt():
            for _ in range(2):
                with pytest.raises(KeyboardInterrupt):
                    signal.raise_signal(signal.SIGINT)
            assert not interrupt.is_requested
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGTERM)
        assert interrupt.is_requested

    assert capfd.readouterr().err == ""


def test_a_coroutine_is_cancelled_and_can_clean_up(capfd: pytest.CaptureFixture[str]) -> None:
    steps = []

    async def work() -> None:
        try:
            os.kill(os.getpid(), signal.SIGINT)
            await asyncio.sleep(60)
        finally:
            steps.append("cleaned up")

    with interruptible(), pytest.raises(KeyboardInterrupt):
        run_interruptibly(work())

    assert steps == ["cleaned up"]
    assert current_interrupt().is_requested
    assert ACKNOWLEDGED in capfd.readouterr().err


def test_a_cancellation_without_ctrl_c_stays_one() -> None:
    async def work() -> None:
        raise asyncio.CancelledError

    with interruptible(), pytest.raises(asyncio.CancelledError):
        run_interruptibly(work())


def test_a_cancellation_that_comes_after_ctrl_c_is_called_at_once() -> None:
    interrupt = Interrupt()
    calls: list[str] = []
    interrupt.is_requested = True

    with interrupt.cancels(lambda: calls.append("cancelled")):
        assert calls == ["cancelled"]


@pytest.mark.parametrize("gives_up", [True, False])
def test_a_process_that_does_not_stop_in_time_is_ended(
    gives_up: bool, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    ended: list[str] = []

    def end(sentence: str = "") -> None:
        ended.append(sentence)
        raise SystemExit

    monkeypatch.setattr(module, "PATIENCE_SECONDS", 0.1)
    monkeypatch.setattr(module, "end_process", end)
    interrupt = Interrupt()
    if gives_up:
        interrupt.give_up = lambda: ended.append("gave up")
    signals, wakeup = os.pipe()

    def watch() -> None:
        with suppress(SystemExit):
            interrupt.watch(signals)

    watching = threading.Thread(target=watch)
    watching.start()
    # Another signal that Python handles does not count.
    os.write(wakeup, bytes([signal.SIGWINCH, signal.SIGINT]))
    watching.join(30)
    os.close(wakeup)
    os.close(signals)

    assert ended[:-1] == ["gave up"] * gives_up
    assert "ended without waiting any longer" in ended[-1]
    assert capfd.readouterr().err.count(ACKNOWLEDGED) == 1


@prefect_leaks
def test_the_last_attempt_sets_the_state_of_the_run(prefect: LocalServer) -> None:
    flow = send("POST", f"{prefect.api_url}/flows/", {"name": f"flow-{uuid4()}"}).json()
    body = {"flow_id": flow["id"], "state": {"type": "RUNNING"}}
    run_id = send("POST", f"{prefect.api_url}/flow_runs/", body).json()["id"]

    Session(prefect.api_url, prefect.ui_url).cancel_run(run_id)

    state = httpx.get(f"{prefect.api_url}/flow_runs/{run_id}").json()["state"]
    assert (state["type"], state["name"]) == ("CANCELLED", "Cancelled")


def test_the_last_attempt_is_repeated_while_the_database_of_the_server_is_locked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(prefect_session, "BUSY_PAUSE_SECONDS", 0.01)
    answers = iter([503, 503, 201, 201])
    with fake_server(404, "{}", first=answers) as api_url:
        Session(api_url, "http://ui").cancel_run(str(uuid4()))

    assert [*answers] == [201]


@prefect_leaks
def test_the_last_attempt_is_silent_without_a_run_or_a_server(prefect: LocalServer) -> None:
    Session(prefect.api_url, prefect.ui_url).cancel_run(None)
    Session("http://127.0.0.1:9/api", None).cancel_run(str(uuid4()))
