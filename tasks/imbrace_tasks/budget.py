"""The budget of requests that all workers share: a global concurrency limit of the Prefect server.

The limit only says how many requests a second there may be, and its slots stay empty: to take them
would cost a call of the server for every few requests. Each process leases a share in a variable of
its own instead (`imbrace_lake.gateway.shared_limit`), which the server stamps with its own clock.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from uuid import uuid4

import httpx
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.actions import VariableCreate, VariableUpdate
from prefect.client.schemas.objects import Variable
from prefect.exceptions import ObjectNotFound
from pydantic import TypeAdapter, ValidationError

from imbrace_lake.gateway import factory
from imbrace_lake.gateway.client import GatewayClient, GatewayOptions
from imbrace_lake.gateway.limiter import RequestLimiter
from imbrace_lake.gateway.shared_limit import Lease, LeasesUnreachable, share_limit
from imbrace_lake.settings import Settings

LEASE_TAG = "imbrace-request-share"
# A process that has not been heard of for so long is not there any more.
LEASE_LIFE = timedelta(seconds=30)
# Nor does anybody miss what it left behind.
LEASE_RETENTION = timedelta(minutes=10)
SERVER_TIMEOUT_SECONDS = 8.0
LEASE = TypeAdapter(Lease)


@asynccontextmanager
async def open_gateway(
    settings: Settings, options: GatewayOptions | None = None
) -> AsyncIterator[GatewayClient]:
    """Open a client that keeps to the budget of the Prefect server; flows and commands have no other.

    Args:
        settings: Name the limit, and the most that this process may use of it.
        options: How to reach the gateway; as the settings say by default.

    Raises:
        SettingsError: Token or organization is missing, or a setting cannot be used.
    """
    options = options or settings.gateway_options()
    limiter = settings.new_limiter()
    async with factory.open_gateway(options, limiter, shared_budget(limiter, settings)) as gateway:
        yield gateway


@asynccontextmanager
async def shared_budget(limiter: RequestLimiter, settings: Settings) -> AsyncIterator[None]:
    """Keep the limiter within this process's share of the server's limit as long as the block lasts."""
    if not settings.request_limit:
        yield
        return
    async with get_client() as client:
        leases = PrefectLeases(client, settings.request_limit)
        async with share_limit(limiter, leases, settings.request_limit, settings.requests_per_second):
            yield


class PrefectLeases:
    """A global concurrency limit, and one variable per process for its lease.

    Args:
        client: Of the server that has both.
        limit: The limit's name.
    """

    def __init__(self, client: PrefectClient, limit: str) -> None:
        self._client = client
        self._limit = limit
        self._name = f"{LEASE_TAG}-{uuid4().hex[:12]}"
        self._has_lease = False

    async def read_limit(self) -> float | None:
        """The smaller of the limit and its slot decay a second; None if there is none or it is inactive.

        An operator sets both to 10 for ten requests a second. Going by the smaller one, a change of
        either downwards is obeyed. Without any decay the limit counts alone.
        """
        async with _prefect_errors():
            try:
                found = await self._client.read_global_concurrency_limit_by_name(self._limit)
            except ObjectNotFound:
                return None
        if not found.active:
            return None
        return min(float(found.limit), found.slot_decay_per_second or float(found.limit))

    async def read_leases(self) -> Sequence[Lease]:
        """The leases that other processes renewed in the last 30 seconds."""
        wanted = {"variables": {"tags": {"all_": [LEASE_TAG, self._limit]}}}
        async with _prefect_errors():
            answer = await self._client.request("POST", "/variables/filter", json=wanted)
            found = [Variable.model_validate(each) for each in answer.json()]
            # The server's clock wrote all of these times, so no other clock has to be right.
            now = max((each.updated for each in found if each.updated), default=None)
            leases = []
            for each in found:
                if each.name == self._name or now is None or each.updated is None:
                    continue
                if now - each.updated <= LEASE_LIFE:
                    leases.append(_parse_lease(each))
                elif now - each.updated > LEASE_RETENTION:
                    await self._delete(each.name)
        return leases

    async def write_lease(self, lease: Lease) -> None:
        """Write this process's variable; it is made again if somebody deleted it."""
        value = {"rate": round(lease.rate, 3), "wanted": round(lease.wanted, 3)}
        async with _prefect_errors():
            if self._has_lease:
                try:
                    await self._client.update_variable(VariableUpdate(name=self._name, value=value))
                except httpx.HTTPStatusError as exc:
                    if exc.response.status_code != httpx.codes.NOT_FOUND:
                        raise
                else:
                    return
            tags = [LEASE_TAG, self._limit]
            await self._client.create_variable(VariableCreate(name=self._name, value=value, tags=tags))
            self._has_lease = True

    async def drop_lease(self) -> None:
        """Delete this process's variable."""
        if self._has_lease:
            async with _prefect_errors():
                await self._delete(self._name)

    async def _delete(self, name: str) -> None:
        with suppress(ObjectNotFound):  # somebody was faster
            await self._client.delete_variable_by_name(name)


def _parse_lease(variable: Variable) -> Lease:
    try:
        return LEASE.validate_python(variable.value)
    except ValidationError:
        raise LeasesUnreachable(f"the variable {variable.name} holds no claim, delete it") from None


@asynccontextmanager
async def _prefect_errors() -> AsyncIterator[None]:
    """Wait some seconds for the server, and turn its failures into `LeasesUnreachable`."""
    try:
        async with asyncio.timeout(SERVER_TIMEOUT_SECONDS):
            yield
    except TimeoutError:
        raise LeasesUnreachable(
            f"the Prefect server did not answer in {SERVER_TIMEOUT_SECONDS:g} s"
        ) from None
    except httpx.HTTPStatusError as exc:
        status = exc.response.status_code
        raise LeasesUnreachable(f"the Prefect server answered with status {status}") from exc
    except ValueError as exc:
        raise LeasesUnreachable("the Prefect server sent an answer of another form") from exc
    except httpx.HTTPError as exc:
        raise LeasesUnreachable(f"the Prefect server is away ({type(exc).__name__})") from exc
