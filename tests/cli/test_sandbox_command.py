"""`imbrace-lake sandbox`: the fake gateway alone."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from imbrace_cli.sandbox import parse_options
from imbrace_lake.errors import UsageError
from imbrace_sandbox import SandboxOptions
from tests.cli.conftest import Run
from tests.ports import free_port


def test_the_sandbox_serves_until_ctrl_c(run: Run) -> None:
    port = free_port()
    seen: list[Any] = []

    def look() -> None:
        deadline = time.monotonic() + 300
        while not seen and time.monotonic() < deadline:
            try:
                seen.append(httpx.get(f"http://127.0.0.1:{port}/_sandbox/conversations").json())
            except httpx.ConnectError:
                time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=look)
    thread.start()
    result = run("sandbox", "--port", str(port), "--conversations", "3", "--option", "sizes=5,7")
    thread.join()

    assert result.code == 0
    assert len(seen[0]) == 5
    assert f"gateway       http://127.0.0.1:{port}/3rd" in result.out
    assert SandboxOptions().token in result.out
    assert "export IMBRACE_LIST_SCHEMES=http\n" in result.out
    assert "imbrace-lake export --phones" in result.out
    assert result.err == "stopped: the fake gateway has ended\n"


def test_all_options_are_listed(run: Run) -> None:
    result = run("sandbox", "--options")

    assert result.code == 0
    assert all(name in result.out for name in SandboxOptions.descriptions())


def test_options_are_read_by_their_types() -> None:
    chosen = parse_options(
        [
            "seed=3",
            "surprises=0.5",
            "prerender=yes",
            "links-shape=envelope",
            "sizes=1,2",
            "messages_mean=4",
            "file=x.jsonl",
            "rates=401=0.1, 502:html=0.2",
            "broken=conv_1=404",
        ]
    )

    assert chosen == {
        "seed": 3,
        "surprises": 0.5,
        "prerender": True,
        "links_shape": "envelope",
        "sizes": (1, 2),
        "messages_mean": 4.0,
        "file": Path("x.jsonl"),
        "rates": {"401": 0.1, "502:html": 0.2},
        "broken": {"conv_1": "404"},
    }


@pytest.mark.parametrize("pair", ["seed", "sede=3", "seed=x", "prerender=perhaps", "rates=401", "sizes=1;2"])
def test_invalid_options_are_reported(pair: str) -> None:
    with pytest.raises(UsageError, match="see imbrace-lake sandbox --options"):
        parse_options([pair])


@pytest.mark.parametrize(
    ("arguments", "reported", "code"),
    [
        (["--mixed", "3"], "mixed must be from 0 to 1", 2),
        (["--file", "missing.jsonl"], "missing.jsonl does not exist", 1),
        (["--host", "no.such.host.test"], "there is no such host", 1),
    ],
)
def test_options_that_cannot_be_served_are_reported(
    arguments: list[str], reported: str, code: int, run: Run
) -> None:
    result = run("sandbox", *arguments)

    assert result.code == code
    assert reported in result.err


def test_a_port_in_use_is_reported(run: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        result = run("sandbox", "--port", str(taken.getsockname()[1]))

    assert result.code == 1
    assert "choose another by --port" in result.err
