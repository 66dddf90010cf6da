"""Runs, plans and looks of the core for tests, which have no server to share a budget through."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from typing import Any

from imbrace_lake.export import run as run_module
from imbrace_lake.export.run import RunContext
from imbrace_lake.gateway.client import GatewayClient, GatewayOptions
from imbrace_lake.gateway.factory import OpenGateway, open_gateway
from imbrace_lake.settings import Settings


def gateway_of(
    settings: Settings, options: GatewayOptions | None = None
) -> AbstractAsyncContextManager[GatewayClient]:
    """Open a client that keeps to the settings' own limit."""
    return open_gateway(options or settings.gateway_options(), settings.new_limiter(), nullcontext())


def opener_of(settings: Settings) -> OpenGateway:
    """Give what opens such a client with options that are chosen later."""
    return lambda options: gateway_of(settings, options)


@asynccontextmanager
async def open_run(settings: Settings, run_id: str, **more: Any) -> AsyncIterator[RunContext]:
    """Open a gateway and a run that reads from it."""
    async with gateway_of(settings) as gateway, run_module.open_run(settings, gateway, run_id, **more) as run:
        yield run
