"""The commands as processes, with pipes, signals and exit codes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest

from imbrace_cli.local_server import LocalServer
from imbrace_sandbox import Sandbox
from tests.deployments.operator import CERTIFICATES, until

COMMAND = [sys.executable, "-m", "imbrace_cli"]


@pytest.fixture(autouse=True)
def environment(workdir: Path, prefect_server: LocalServer) -> None:
    """Make the tests' Prefect server the local server of the processes."""
    os.environ["IMBRACE_HOME"] = str(prefect_server.directory.parent)


def test_the_output_of_the_demo_in_a_pipe_has_no_noise(workdir: Path) -> None:
    done = subprocess.run(
        [*COMMAND, "demo", "--conversations", "5"], capture_output=True, text=True, check=False
    )

    assert done.returncode == 0
    assert "What landed:" in done.stdout
    assert "\x1b" not in done.stdout + done.stderr
    assert [line for line in done.stderr.splitlines() if not line.startswith("input: line ")] == []


@pytest.mark.usefixtures("settings")
def test_a_partial_run_writes_only_json_to_standard_output(box: Sandbox, phones: Path, workdir: Path) -> None:
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


def export_until_stuck(box: Sandbox, phones: Path, command: Sequence[str] = COMMAND) -> subprocess.Popen[str]:
    """Start an export whose gateway does not answer, and wait until it has requested messages."""
    for ids in box.links.values():
        for conversation_id in ids:
            box.break_conversation(conversation_id, "stall")
    process = subprocess.Popen(
        [*command, "export", "--phones", str(phones)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    until(lambda: box.stats().requests["messages"] or None, "the run to be stuck")
    return process


def last_run(server: LocalServer) -> dict[str, Any]:
    """Return the latest run."""
    body = {"sort": "START_TIME_DESC", "limit": 1}
    (found,) = httpx.post(f"{server.api_url}/flow_runs/filter", json=body, verify=CERTIFICATES).json()
    return dict(found)


@pytest.mark.usefixtures("settings")
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_and_sigterm_are_acknowledged_and_end_the_run_as_cancelled(
    box: Sandbox, phones: Path, prefect_server: LocalServer, sent: signal.Signals
) -> None:
    process = export_until_stuck(box, phones)
    assert process.stderr is not None
    assert process.stdout is not None

    process.send_signal(sent)

    # These lines come while the gateway still does not answer.
    assert process.stderr.readline() == "\n"
    assert process.stderr.readline() == ("interrupted: stopping; press Ctrl-C again to end at once\n")
    out, err = process.communicate(timeout=300)
    assert process.returncode == 130
    assert out == ""
    assert err.splitlines() == [
        "interrupted: 0 conversations are complete in the lake; run the same command to export the others"
    ]
    run = last_run(prefect_server)
    assert (run["state"]["type"], run["state"]["name"]) == ("CANCELLED", "Cancelled")


@pytest.mark.usefixtures("settings")
def test_ctrl_c_before_a_run_has_begun_ends_it_as_cancelled_too(
    box: Sandbox, phones: Path, prefect_server: LocalServer
) -> None:
    earlier = last_run(prefect_server)["id"]
    program = f"""
import os, signal, sys
from prefect.client.orchestration import PrefectClient
create = PrefectClient.create_flow_run
async def interrupted(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGINT)
    return await create(*args, **kwargs)
PrefectClient.create_flow_run = interrupted
from imbrace_cli.main import main
sys.exit(main(["export", "--phones", {str(phones)!r}]))
"""
    environment = {**os.environ, "PREFECT_API_URL": prefect_server.api_url}

    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, env=environment
    )

    assert done.returncode == 130, done.stderr
    assert "0 conversations are complete in the lake" in done.stderr
    run = last_run(prefect_server)
    assert run["id"] != earlier
    assert run["state"]["type"] == "CANCELLED"
    assert not box.stats().requests["messages"]


@pytest.mark.usefixtures("settings")
def test_a_server_that_does_not_answer_does_not_keep_an_interrupted_run(
    box: Sandbox, phones: Path, prefect_server: LocalServer
) -> None:
    program = (
        "import sys; from imbrace_cli import interrupt; interrupt.PATIENCE_SECONDS = 1.0;"
        "from imbrace_cli.__main__ import main; sys.exit(main())"
    )
    process = export_until_stuck(box, phones, [sys.executable, "-c", program])
    os.kill(prefect_server.pid, signal.SIGSTOP)
    try:
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=300)
    finally:
        os.kill(prefect_server.pid, signal.SIGCONT)

    assert process.returncode == 130
    assert "interrupted: ended without waiting any longer for the lake or the Prefect server" in err
    assert "Traceback" not in err


@pytest.mark.usefixtures("settings")
def test_a_second_ctrl_c_ends_the_process_at_once(
    box: Sandbox, phones: Path, prefect_server: LocalServer
) -> None:
    process = export_until_stuck(box, phones)
    assert process.stderr is not None
    # A server that does not answer must not keep the command from ending.
    os.kill(prefect_server.pid, signal.SIGSTOP)
    try:
        process.send_signal(signal.SIGINT)
        assert process.stderr.readline() == "\n"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=300)
    finally:
        os.kill(prefect_server.pid, signal.SIGCONT)

    assert process.returncode == 130
    assert out == ""
    assert "Traceback" not in err
