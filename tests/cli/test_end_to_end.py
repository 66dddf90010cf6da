"""The commands as people run them: processes of their own, with pipes, signals and exit codes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cli.local_server import LocalServer
from sandbox import Sandbox

COMMAND = [sys.executable, "-m", "cli.main"]


@pytest.fixture(autouse=True)
def environment(place: Path, prefect_server: LocalServer) -> None:
    """Let the processes find the tests' Prefect server as their own."""
    os.environ["IMBRACE_HOME"] = str(prefect_server.directory.parent)


def test_the_demo_in_a_pipe_is_free_of_noise(place: Path) -> None:
    done = subprocess.run(
        [*COMMAND, "demo", "--conversations", "5"], capture_output=True, text=True, check=False
    )

    assert done.returncode == 0
    assert "What landed:" in done.stdout
    assert "\x1b" not in done.stdout + done.stderr
    assert [line for line in done.stderr.splitlines() if not line.startswith("input: line ")] == []


@pytest.mark.usefixtures("settings")
def test_json_is_all_there_is_on_standard_output_of_a_partial_run(
    box: Sandbox, phones: Path, place: Path
) -> None:
    broken = next(one for ids in box.links.values() for one in ids)
    box.break_conversation(broken, "400")

    with phones.open("rb") as numbers:
        done = subprocess.run(
            [*COMMAND, "export", "--phones", "-", "--json"],
            stdin=numbers,
            capture_output=True,
            text=True,
            check=False,
        )

    summary = json.loads(done.stdout)
    assert done.returncode == 3
    assert summary["status"] == "partial"
    assert [letter["conversation_id"] for letter in summary["dead_letters"]] == [broken]
    assert {line.partition(":")[0] for line in done.stderr.splitlines()} == {"input", "warning"}
    assert not any(number in done.stdout + done.stderr for number in box.phones)


@pytest.mark.usefixtures("settings")
def test_ctrl_c_ends_a_process_with_one_sentence(box: Sandbox, phones: Path) -> None:
    for ids in box.links.values():
        for conversation_id in ids:
            box.break_conversation(conversation_id, "stall")

    process = subprocess.Popen(
        [*COMMAND, "export", "--phones", str(phones)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while not box.stats().requests["messages"] and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)

    assert process.returncode == 130
    assert out == ""
    assert err.splitlines() == [
        "interrupted: 0 conversations are whole in the lake, and the same command goes on with the rest"
    ]
