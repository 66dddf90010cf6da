"""The only place that makes a client of the gateway: whoever opens one names the budget it keeps to."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TypeAlias

from imbrace_lake.gateway.client import GatewayClient, GatewayOptions
from imbrace_lake.gateway.limiter import RequestLimiter

OpenGateway: TypeAlias = Callable[[GatewayOptions], AbstractAsyncContextManager[GatewayClient]]
"""Opens a client within a budget that is chosen already."""


@asynccontextmanager
async def open_gateway(
    options: GatewayOptions, limiter: RequestLimiter, budget: AbstractAsyncContextManager[None]
) -> AsyncIterator[GatewayClient]:
    """Open a client whose requests keep to a budget.

    Args:
        options: Address, token and patience.
        limiter: Admits the requests of this client.
        budget: Keeps the limiter's rate within a limit that several processes share, as long as it is
            open; ``nullcontext()`` where there is no server to share one, so that the limiter's own rate
            is the limit.
    """
    async with budget, GatewayClient(options, limiter) as gateway:
        yield gateway
