"""A fake gateway for each test that asks for one, and clients that lose no time in waiting."""

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
    """Start fake gateways with options of one's own; they stop with the test."""
    with ExitStack() as opened:
        yield lambda **options: opened.enter_context(Sandbox(SandboxOptions(**options)))


@pytest.fixture
def quick_gate(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a closed limiter open again after milliseconds."""
    monkeypatch.setattr(limiter, "FIRST_PAUSE_SECONDS", 0.005)


def client_of(
    box: Sandbox,
    limiter: RequestLimiter | None = None,
    transport: httpx.AsyncBaseTransport | None = None,
    **options: Any,
) -> GatewayClient:
    """A client with tiny delays of a fake gateway, or of what a transport plays."""
    given: dict[str, Any] = {
        "url": box.url,
        "token": SecretStr(box.options.token),
        "organization": box.options.organization_id,
        "timeout_seconds": 5.0,
        "first_delay_seconds": 0.001,
        "longest_delay_seconds": 0.002,
    }
    return GatewayClient(GatewayOptions(**{**given, **options}), limiter or RequestLimiter(), transport)
