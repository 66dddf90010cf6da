"""Open a client of the gateway within a budget of requests."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TypeAlias

from imbrace_lake.gateway.client import GatewayClient, GatewayOptions
from imbrace_lake.gateway.limiter import RequestLimiter

OpenGateway: TypeAlias = Callable[[GatewayOptions], AbstractAsyncContextManager[GatewayClient]]
"""Opens a client within a budget that the function has chosen."""


@asynccontextmanager
async def open_gateway(
    options: GatewayOptions, limiter: RequestLimiter, budget: AbstractAsyncContextManager[None]
) -> AsyncIterator[GatewayClient]:
    """Open a client whose requests stay within a budget.

    Args:
        options: Address, token and retries.
        limiter: Admits the requests of this client.
        budget: While open, keeps the limiter's rate within a limit that several processes share;
            ``nullcontext()`` without a server, so that only the limiter's own rate is the limit.
    """
    async with budget, GatewayClient(options, limiter) as gateway:
        yield gateway
