"""Start and stop, in a thread and as a process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import httpx
import pytest

from imbrace_sandbox import Sandbox, SandboxOptions, serve
from tests.sandbox.conftest import Connect, StartBox
from tests.sandbox.reading import first_of, get_page

ALONE = """
from imbrace_sandbox import SandboxOptions, serve
serve(SandboxOptions(conversations=2), port=0, on_start=lambda url: print(url, flush=True))
"""


def test_a_stopped_sandbox_still_has_its_state(connect: Connect) -> None:
    with Sandbox(SandboxOptions(conversations=2)) as box:
        get_page(connect(box), first_of(box))

    box.reset_stats()

    assert box.stats().accepted == 0
    assert len(box.truth(first_of(box))) == box.conversations[first_of(box)]


def test_stopping_ends_endless_requests(stack: ExitStack) -> None:
    box = Sandbox(SandboxOptions(conversations=1, rates={"stall": 1.0}))
    with ThreadPoolExecutor(1) as pool:
        arrived = threading.Event()
        with box:
            box.set_options(rates={})
            box.before_page(lambda _each, _number: arrived.set())
            box.fail_next("stall_body")
            client = stack.enter_context(
                httpx.Client(base_url=box.url, headers={"x-access-token": box.options.token}, timeout=60)
            )
            waiting = pool.submit(get_page, client, first_of(box))
            assert arrived.wait(10)

        with pytest.raises(httpx.TransportError):
            waiting.result(10)


def test_a_port_in_use_is_reported(box: Sandbox) -> None:
    taken = int(box.control_url.rsplit(":", 1)[1])

    with pytest.raises(OSError, match="address"), Sandbox(SandboxOptions(conversations=1), port=taken):
        pytest.fail("two servers listen on one port")


def test_after_an_outage_it_listens_on_the_same_port(connect: Connect) -> None:
    box = Sandbox(SandboxOptions(conversations=2))
    with box:
        client = connect(box)
        before = get_page(client, first_of(box))

    with pytest.raises(httpx.ConnectError):
        get_page(client, first_of(box))
    with box:
        after = get_page(client, first_of(box))

    assert before.json() == after.json()


def test_it_listens_on_this_machine_only(box: Sandbox) -> None:
    assert box.url.startswith("http://127.0.0.1:")
    assert box.url.endswith("/3rd")


def test_the_most_requests_in_flight_are_counted(start: StartBox, connect: Connect) -> None:
    box = start(latency_seconds=0.2)
    client = connect(box)

    with ThreadPoolExecutor(4) as pool:
        answers = [*pool.map(lambda _: get_page(client, first_of(box)), range(4))]

    assert [answer.status_code for answer in answers] == [200] * 4
    assert box.stats().max_in_flight == 4
    assert box.stats().in_flight == 0


def test_serving_reports_its_start_and_ends_with_a_signal() -> None:
    urls: list[str] = []

    def interrupt(url: str) -> None:
        urls.append(url)
        os.kill(os.getpid(), signal.SIGINT)

    serve(SandboxOptions(conversations=1), port=0, on_start=interrupt)

    (url,) = urls
    assert url.startswith("http://127.0.0.1:")
    with pytest.raises(httpx.ConnectError):
        httpx.get(url)


@pytest.mark.slow
def test_the_server_of_the_command_line_stops_without_output() -> None:
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-c", ALONE],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        phones = httpx.get(url.replace("/3rd", "/_sandbox/phones")).text
        process.send_signal(signal.SIGTERM)
        _, complaints = process.communicate(timeout=300)

    assert phones.startswith("+")
    assert (process.returncode, complaints) == (0, "")
