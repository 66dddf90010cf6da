"""The budget of requests that all workers share: a global concurrency limit of the Prefect server.

The limit only says how many requests a second there may be, and its slots stay empty: to take them
would cost a call of the server for every few requests. Each process claims a share in a variable of
its own instead (`imbrace_lake.gateway.shares`), which the server stamps with its own clock.
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

from imbrace_lake.gateway import opening
from imbrace_lake.gateway.client import GatewayClient, GatewayOptions
from imbrace_lake.gateway.pacing import Gate
from imbrace_lake.gateway.shares import BoardUnreachable, Claim, sharing
from imbrace_lake.settings import Settings

CLAIM_TAG = "imbrace-request-share"
# A process that has not been heard of for so long is not there any more.
CLAIM_LIFE = timedelta(seconds=30)
# Nor does anybody miss what it left behind.
LITTER_AGE = timedelta(minutes=10)
PATIENCE_SECONDS = 8.0
CLAIM = TypeAdapter(Claim)


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
    gate = settings.gate()
    async with opening.open_gateway(options, gate, shared_budget(gate, settings)) as gateway:
        yield gateway


@asynccontextmanager
async def shared_budget(gate: Gate, settings: Settings) -> AsyncIterator[None]:
    """Keep the gate within this process's share of the server's limit as long as the block lasts."""
    if not settings.request_limit:
        yield
        return
    async with get_client() as client:
        board = PrefectBoard(client, settings.request_limit)
        async with sharing(gate, board, settings.request_limit, settings.requests_per_second):
            yield


class PrefectBoard:
    """A global concurrency limit, and one variable a process for its claim.

    Args:
        client: Of the server that has both.
        limit: The limit's name.
    """

    def __init__(self, client: PrefectClient, limit: str) -> None:
        self._client = client
        self._limit = limit
        self._name = f"{CLAIM_TAG}-{uuid4().hex[:12]}"
        self._is_claimed = False

    async def read_limit(self) -> float | None:
        """The smaller of the limit and its slot decay a second; None if there is none or it is inactive.

        An operator sets both to 10 for ten requests a second. Going by the smaller one, a change of
        either downwards is obeyed. Without any decay the limit counts alone.
        """
        async with _reaching():
            try:
                found = await self._client.read_global_concurrency_limit_by_name(self._limit)
            except ObjectNotFound:
                return None
        if not found.active:
            return None
        return min(float(found.limit), found.slot_decay_per_second or float(found.limit))

    async def read_claims(self) -> Sequence[Claim]:
        """The claims of the other processes that renewed theirs in the last 30 seconds."""
        wanted = {"variables": {"tags": {"all_": [CLAIM_TAG, self._limit]}}}
        async with _reaching():
            answer = await self._client.request("POST", "/variables/filter", json=wanted)
            found = [Variable.model_validate(each) for each in answer.json()]
            # The server's clock wrote all of these times, so no other clock has to be right.
            now = max((each.updated for each in found if each.updated), default=None)
            claims = []
            for each in found:
                if each.name == self._name or now is None or each.updated is None:
                    continue
                if now - each.updated <= CLAIM_LIFE:
                    claims.append(_claim_in(each))
                elif now - each.updated > LITTER_AGE:
                    await self._delete(each.name)
        return claims

    async def claim(self, claim: Claim) -> None:
        """Write this process's variable; it is made anew if somebody deleted it."""
        value = {"rate": round(claim.rate, 3), "wanted": round(claim.wanted, 3)}
        async with _reaching():
            if self._is_claimed:
                try:
                    await self._client.update_variable(VariableUpdate(name=self._name, value=value))
                except httpx.HTTPStatusError as exc:
                    if exc.response.status_code != httpx.codes.NOT_FOUND:
                        raise
                else:
                    return
            tags = [CLAIM_TAG, self._limit]
            await self._client.create_variable(VariableCreate(name=self._name, value=value, tags=tags))
            self._is_claimed = True

    async def withdraw(self) -> None:
        """Delete this process's variable."""
        if self._is_claimed:
            async with _reaching():
                await self._delete(self._name)

    async def _delete(self, name: str) -> None:
        with suppress(ObjectNotFound):  # somebody was faster
            await self._client.delete_variable_by_name(name)


def _claim_in(variable: Variable) -> Claim:
    try:
        return CLAIM.validate_python(variable.value)
    except ValidationError:
        raise BoardUnreachable(f"the variable {variable.name} holds no claim, delete it") from None


@asynccontextmanager
async def _reaching() -> AsyncIterator[None]:
    """Give the server some seconds, and turn its failures into the one that a board may have."""
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            yield
    except TimeoutError:
        raise BoardUnreachable(f"the Prefect server did not answer in {PATIENCE_SECONDS:g} s") from None
    except httpx.HTTPStatusError as exc:
        status = exc.response.status_code
        raise BoardUnreachable(f"the Prefect server answered with status {status}") from exc
    except ValueError as exc:
        raise BoardUnreachable("the Prefect server sent an answer of another form") from exc
    except httpx.HTTPError as exc:
        raise BoardUnreachable(f"the Prefect server is away ({type(exc).__name__})") from exc
