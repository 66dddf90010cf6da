"""A running fake gateway and a plain client for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import httpx
import pytest

from imbrace_sandbox import Sandbox, SandboxOptions

# Made once: reading the certificates for each client would take longer than most tests.
TLS = httpx.create_ssl_context()

StartBox = Callable[..., Sandbox]
Connect = Callable[[Sandbox], httpx.Client]


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """Stop all gateways and clients of a test."""
    with ExitStack() as opened:
        yield opened


@pytest.fixture
def start(stack: ExitStack) -> StartBox:
    """Start fake gateways with given options."""

    def begin(**options: Any) -> Sandbox:
        return stack.enter_context(Sandbox(SandboxOptions(**{"conversations": 6} | options)))

    return begin


@pytest.fixture
def connect(stack: ExitStack) -> Connect:
    """Open clients with the right token."""

    def begin(box: Sandbox) -> httpx.Client:
        headers = {"x-access-token": box.options.token}
        return stack.enter_context(httpx.Client(base_url=box.url, headers=headers, timeout=60.0, verify=TLS))

    return begin


@pytest.fixture
def box(start: StartBox) -> Sandbox:
    """A fake gateway with one conversation of 35 messages, and some more."""
    return start(sizes=(35,))


@pytest.fixture
def client(box: Sandbox, connect: Connect) -> httpx.Client:
    """A client of `box`."""
    return connect(box)
