"""All commands together respect the limit that the operator set in Prefect."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import pytest

from imbrace_cli.local_server import LocalServer
from imbrace_sandbox import Sandbox, SandboxOptions
from tests.cli.conftest import Run, prefect_leaks
from tests.prefect_api import send

pytestmark = [prefect_leaks, pytest.mark.timeout(900)]

LIMIT = 3
WINDOW_SECONDS = 4.0
# Processes space their requests, but not in step with each other.
MEETING = 3


@contextmanager
def limited(server: LocalServer, per_second: int) -> Iterator[str]:
    """Create a limit that no other test uses, and yield its name."""
    url = f"{server.api_url}/v2/concurrency_limits/"
    name = f"limit-{uuid4().hex[:8]}"
    body = {"name": name, "limit": per_second, "slot_decay_per_second": per_second}
    send("POST", url, body)
    yield name
    send("DELETE", f"{url}{name}")


@contextmanager
def command(*arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command in a separate process, which ends with the block."""
    process = subprocess.Popen(
        [str(Path(sys.executable).parent / "imbrace-lake"), *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def most_in_a_window(box: Sandbox, seconds: float) -> int:
    """Watch the gateway, and return the most requests that it received within a window."""
    seen: list[tuple[float, int]] = []
    until = time.monotonic() + seconds
    while (now := time.monotonic()) < until:
        seen.append((now, box.stats().requests.total()))
        time.sleep(0.1)
    return max(
        later - earlier
        for at, earlier in seen
        for after, later in seen
        if 0.0 <= after - at <= WINDOW_SECONDS
    )


def test_a_concurrent_export_verification_and_plan_respect_one_limit(
    run: Run, workdir: Path, prefect: LocalServer
) -> None:
    with Sandbox(SandboxOptions(conversations=150, messages_mean=3)) as box:
        os.environ |= {
            "IMBRACE_TOKEN": box.options.token,
            "IMBRACE_ORGANIZATION": box.options.organization_id,
            "IMBRACE_GATEWAY": box.url,
        }
        phones = workdir / "phones.txt"
        phones.write_text("\n".join(box.phones), encoding="utf-8")
        lake = str(workdir / "lake")
        assert run("export", "--phones", str(phones), "--lake", lake).code == 0
        os.environ["PREFECT_API_URL"] = prefect.api_url
        with limited(prefect, LIMIT) as os.environ["IMBRACE_REQUEST_LIMIT"]:
            box.reset_stats()
            with (
                command("verify", "--counts", "--lake", lake) as verifying,
                command("plan", "--phones", str(phones), "--lake", str(workdir / "another")),
                command("export", "--phones", str(phones), "--lake", str(workdir / "third")) as exporting,
            ):
                until = time.monotonic() + 300
                while box.stats().requests.total() < 2 * LIMIT and time.monotonic() < until:
                    time.sleep(0.1)
                most = most_in_a_window(box, 30)
                are_working = verifying.poll() is None and exporting.poll() is None

    assert are_working
    assert 0 < most <= LIMIT * WINDOW_SECONDS + MEETING


@pytest.mark.usefixtures("settings")
def test_a_single_plan_respects_the_limit(
    run: Run, workdir: Path, prefect: LocalServer, box: Sandbox
) -> None:
    numbers = [f"+8869114260{number:02}" for number in range(20)]
    for number in numbers:
        box.put([], phone=number)
    (workdir / "numbers.txt").write_text("\n".join(numbers))
    with limited(prefect, LIMIT) as os.environ["IMBRACE_REQUEST_LIMIT"]:
        began = time.monotonic()
        result = run("plan", "--phones", "numbers.txt")
        seconds = time.monotonic() - began

    assert result.code == 0, result.err
    assert box.stats().requests.total() > 20
    # After a pause, two requests may follow each other at once.
    assert box.stats().requests.total() <= LIMIT * seconds + 2


def test_a_server_that_does_not_answer_stops_a_plan_but_not_a_check(
    run: Run, settings: dict[str, str], box: Sandbox
) -> None:
    os.environ["PREFECT_API_URL"] = "http://127.0.0.1:9/api"

    planned = run("plan", "+886911425977")
    checked = run("check")

    assert planned.code == 1
    assert planned.err.startswith("error: the Prefect server at http://127.0.0.1:9/api does not answer")
    assert checked.code == 1
    assert "prefect server: http://127.0.0.1:9/api does not answer" in checked.out
    assert "token: accepted" in checked.out
