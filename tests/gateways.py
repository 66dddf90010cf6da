"""Gateways and runs for tests without a Prefect server, which do not share a budget."""

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
    """Open a client with the limit of the settings."""
    return open_gateway(options or settings.gateway_options(), settings.new_limiter(), nullcontext())


def opener_of(settings: Settings) -> OpenGateway:
    """Return a function that opens such a client with other options."""
    return lambda options: gateway_of(settings, options)


@asynccontextmanager
async def open_run(settings: Settings, run_id: str, **more: Any) -> AsyncIterator[RunContext]:
    """Open a gateway and a run that reads from it."""
    async with gateway_of(settings) as gateway, run_module.open_run(settings, gateway, run_id, **more) as run:
        yield run
