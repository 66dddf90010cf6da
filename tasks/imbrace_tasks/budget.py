"""The request budget that all workers share: a global concurrency limit of the Prefect server.

Processes read the limit and do not occupy its slots, for the reasons in docs/budget.md. Each process leases a
share (`imbrace_lake.gateway.shared_limit`) in a separate Prefect variable; the server's clock dates it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from math import ceil
from uuid import uuid4

import httpx
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.actions import (
    GlobalConcurrencyLimitCreate,
    GlobalConcurrencyLimitUpdate,
    VariableCreate,
    VariableUpdate,
)
from prefect.client.schemas.objects import Variable
from prefect.exceptions import ObjectNotFound
from pydantic import TypeAdapter, ValidationError

from imbrace_lake.gateway import factory
from imbrace_lake.gateway.client import GatewayClient, GatewayOptions
from imbrace_lake.gateway.limiter import RequestLimiter
from imbrace_lake.gateway.shared_limit import Lease, LeasesUnreachable, share_limit
from imbrace_lake.settings import Settings

LEASE_TAG = "imbrace-request-share"
# The process has ended if it has not renewed its lease for this time.
LEASE_LIFE = timedelta(seconds=30)
# Other processes delete a lease of this age.
LEASE_RETENTION = timedelta(minutes=10)
SERVER_TIMEOUT_SECONDS = 8.0
LEASE = TypeAdapter(Lease)


@asynccontextmanager
async def open_gateway(
    settings: Settings, options: GatewayOptions | None = None
) -> AsyncIterator[GatewayClient]:
    """Open a client that keeps to the budget of the Prefect server; flows and commands use only this one.

    Args:
        settings: The name of the limit, and a bound for this process.
        options: How to reach the gateway; from the settings by default.

    Raises:
        SettingsError: Token or organization is missing, or a setting is invalid.
    """
    options = options or settings.gateway_options()
    limiter = settings.new_limiter()
    async with factory.open_gateway(options, limiter, shared_budget(limiter, settings)) as gateway:
        yield gateway


@asynccontextmanager
async def shared_budget(limiter: RequestLimiter, settings: Settings) -> AsyncIterator[None]:
    """Keep the limiter within this process's share of the server's limit while the block runs."""
    if not settings.request_limit:
        yield
        return
    async with get_client() as client:
        leases = PrefectLeases(client, settings.request_limit)
        async with share_limit(limiter, leases, settings.request_limit, settings.requests_per_second):
            yield


async def read_shared_limit(settings: Settings) -> float | None:
    """Return the requests per second of all runs together; None without a limit.

    Raises:
        LeasesUnreachable: The server does not answer.
    """
    if not settings.request_limit:
        return None
    async with get_client() as client:
        return await PrefectLeases(client, settings.request_limit).read_limit()


async def set_limit(client: PrefectClient, name: str, per_second: float) -> None:
    """Set the requests per second of all runs together; create the limit if there is none.

    Raises:
        httpx.HTTPError: The server does not answer, or rejects the request.
    """
    # The smaller of the two counts, and a slot cannot be divided.
    values = {"limit": ceil(per_second), "slot_decay_per_second": per_second, "active": True}
    try:
        change = GlobalConcurrencyLimitUpdate.model_validate(values)
        await client.update_global_concurrency_limit(name, change)
    except ObjectNotFound:
        limit = GlobalConcurrencyLimitCreate.model_validate({"name": name, **values})
        await client.create_global_concurrency_limit(limit)


class PrefectLeases:
    """A global concurrency limit, and one variable per process for its lease.

    Args:
        client: A client of their server.
        limit: The limit's name.
    """

    def __init__(self, client: PrefectClient, limit: str) -> None:
        self._client = client
        self._limit = limit
        self._name = f"{LEASE_TAG}-{uuid4().hex[:12]}"
        self._has_lease = False

    async def read_limit(self) -> float | None:
        """Return the smaller of the limit and its slot decay; None if the limit is missing or inactive.

        An operator sets both to 10 for ten requests per second. Since the smaller one counts, lowering one
        of them is enough. A decay of 0 is ignored.
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
        """Return the leases that other processes renewed in the last 30 seconds; delete very old ones."""
        wanted = {"variables": {"tags": {"all_": [LEASE_TAG, self._limit]}}}
        async with _prefect_errors():
            answer = await self._client.request("POST", "/variables/filter", json=wanted)
            found = [Variable.model_validate(each) for each in answer.json()]
            # The server set all of these times, so clocks of other machines do not matter.
            now = max([_date_of(answer), *(each.updated for each in found if each.updated)])
            leases = []
            for each in found:
                if each.name == self._name or each.updated is None:
                    continue
                if now - each.updated <= LEASE_LIFE:
                    leases.append(_parse_lease(each))
                elif now - each.updated > LEASE_RETENTION:
                    await self._delete(each.name)
        return leases

    async def write_lease(self, lease: Lease) -> None:
        """Write this process's variable, or create it again if it was deleted."""
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
        with suppress(ObjectNotFound):  # deleted by another process or an operator
            await self._client.delete_variable_by_name(name)


def _date_of(answer: httpx.Response) -> datetime:
    """Return the time of an answer by the server's clock; the distant past if the server does not send it."""
    try:
        return parsedate_to_datetime(answer.headers["date"])
    except (KeyError, ValueError):
        return datetime.min.replace(tzinfo=UTC)


def _parse_lease(variable: Variable) -> Lease:
    try:
        return LEASE.validate_python(variable.value)
    except ValidationError:
        raise LeasesUnreachable(f"the variable {variable.name} is not a lease: delete it") from None


@asynccontextmanager
async def _prefect_errors() -> AsyncIterator[None]:
    """Bound the time of a call of the server, and turn its failures into `LeasesUnreachable`."""
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
        raise LeasesUnreachable("the Prefect server sent an unexpected answer") from exc
    except httpx.HTTPError as exc:
        raise LeasesUnreachable(f"the Prefect server cannot be reached: {type(exc).__name__}") from exc
