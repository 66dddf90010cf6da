"""Fake gateways for tests, and clients that retry without waiting."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import ExitStack, asynccontextmanager
from typing import Any

import httpx
import pytest
from multidict import CIMultiDict
from pydantic import SecretStr
from yarl import URL

from imbrace_lake.gateway import limiter
from imbrace_lake.gateway.client import GatewayClient, GatewayOptions
from imbrace_lake.gateway.http_client import OpenSession
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


class Played:
    """A session whose answers come from an `httpx` transport."""

    def __init__(self, transport: httpx.AsyncBaseTransport) -> None:
        self._transport = transport

    @asynccontextmanager
    async def get(self, url: URL, *, headers: Mapping[str, str], **_: Any) -> AsyncIterator[PlayedAnswer]:
        request = httpx.Request("GET", str(url), headers=headers)
        yield PlayedAnswer(await self._transport.handle_async_request(request))

    async def close(self) -> None:
        pass


class PlayedAnswer:
    """The attributes of an `aiohttp.ClientResponse` that the client uses."""

    def __init__(self, response: httpx.Response) -> None:
        self.status = response.status_code
        self.headers = CIMultiDict(response.headers.multi_items())
        self.content = self
        self._response = response

    async def iter_any(self) -> AsyncIterator[bytes]:
        assert isinstance(self._response.stream, httpx.AsyncByteStream)
        async for data in self._response.stream:
            yield data


def played(play: Any) -> OpenSession:
    """Return what opens a session that calls a function for each request."""
    return lambda: Played(httpx.MockTransport(play))  # type: ignore[return-value]


def client_of(
    box: Sandbox,
    limiter: RequestLimiter | None = None,
    open_session: OpenSession | None = None,
    **options: Any,
) -> GatewayClient:
    """Return a client with tiny delays for a fake gateway, or for a session that plays one."""
    given: dict[str, Any] = {
        "url": box.url,
        "token": SecretStr(box.options.token),
        "organization": box.options.organization_id,
        "timeout_seconds": 5.0,
        "first_delay_seconds": 0.001,
        "longest_delay_seconds": 0.002,
    }
    return GatewayClient(GatewayOptions(**{**given, **options}), limiter or RequestLimiter(), open_session)
