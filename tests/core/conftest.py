"""Fake gateways for tests, and clients that retry without waiting."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from imbrace_lake.gateway import limiter
from imbrace_lake.gateway.client import GatewayClient, GatewayOptions
from imbrace_lake.gateway.limiter import RequestLimiter
from imbrace_sandbox import Sandbox, SandboxOptions

StartBox = Callable[..., Sandbox]


@pytest.fixture
def start() -> Iterator[StartBox]:
    """Start fake gateways with the options of the test; they stop when it ends."""
    with ExitStack() as opened:
        yield lambda **options: opened.enter_context(Sandbox(SandboxOptions(**options)))


@pytest.fixture
def quick_gate(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a paused limiter continue after milliseconds."""
    monkeypatch.setattr(limiter, "FIRST_PAUSE_SECONDS", 0.005)


def client_of(
    box: Sandbox,
    limiter: RequestLimiter | None = None,
    transport: httpx.AsyncBaseTransport | None = None,
    **options: Any,
) -> GatewayClient:
    """Return a client with tiny delays for a fake gateway, or for an `httpx` transport."""
    given: dict[str, Any] = {
        "url": box.url,
        "token": SecretStr(box.options.token),
        "organization": box.options.organization_id,
        "timeout_seconds": 5.0,
        "first_delay_seconds": 0.001,
        "longest_delay_seconds": 0.002,
    }
    return GatewayClient(GatewayOptions(**{**given, **options}), limiter or RequestLimiter(), transport)
