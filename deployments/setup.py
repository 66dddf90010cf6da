"""Prepare a Prefect server for the deployments: blocks, work pool, budget, automations.

Whatever is there already is left as it is, but for blocks and automations that differ from what is
wanted now. A budget is the operator's as soon as it exists.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.actions import (
    GlobalConcurrencyLimitCreate,
    GlobalConcurrencyLimitUpdate,
    VariableCreate,
    VariableUpdate,
    WorkPoolCreate,
)
from prefect.events.schemas.automations import AutomationCore
from prefect.exceptions import ObjectNotFound
from pydantic import SecretStr

from deployments.automations import TAG, automations
from flows.blocks import ConversationLake, ImbraceCredentials, is_relative
from imbrace_lake.settings import Settings

BUDGET = "imbrace-requests"
BLOCK = "default"
DEFAULT_REQUESTS_PER_SECOND = 20.0


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the server is to have.

    Attributes:
        settings: Whose token, organization, gateway and lake become blocks, and whose requests a
            second a new budget.
        pool, queue: Where deployments send their runs; a new pool starts processes.
        phones: Address of the list that the hourly ingestion reads; None leaves what there is.
        requests_per_second: What the budget is to be even if it exists; None leaves what there is.
    """

    settings: Settings
    pool: str
    queue: str
    phones: str | None = None
    requests_per_second: float | None = None


async def set_up(wishes: Wishes) -> list[str]:
    """Bring the configured server to what is wished, and say what was done, a sentence each.

    Raises:
        httpx.HTTPError: The server does not answer, or refuses.
    """
    async with get_client() as client:
        setup = _Setup(client, wishes)
        await setup.blocks()
        await setup.work_pool()
        await setup.budget()
        await setup.automations()
    return setup.told


class _Setup:
    """One call of setup: what it wants, and what it has done so far."""

    def __init__(self, client: PrefectClient, wishes: Wishes) -> None:
        self.told: list[str] = []
        self._client = client
        self._wishes = wishes

    async def blocks(self) -> None:
        """Save the blocks, and keep their ids in variables, from which the deployments refer to them."""
        settings = self._wishes.settings
        credentials = lake = None
        if settings.token is not None and settings.organization is not None:
            credentials = ImbraceCredentials(
                organization=settings.organization, token=settings.token, gateway=settings.gateway
            )
        if settings.lake is not None:
            lake = lake_block(settings.lake, os.environ)
        await self._keep_block(
            ImbraceCredentials,
            credentials,
            "imbrace_credentials",
            "IMBRACE_TOKEN and IMBRACE_ORGANIZATION are",
        )
        await self._keep_block(ConversationLake, lake, "imbrace_lake", "IMBRACE_LAKE is")
        await self._keep_variable("imbrace_phones", self._wishes.phones)

    async def work_pool(self) -> None:
        """Make the pool and its queue, and keep their names in variables."""
        pool, queue = self._wishes.pool, self._wishes.queue
        try:
            found = await self._client.read_work_pool(pool)
            self.told.append(f"found the work pool {pool} ({found.type})")
        except ObjectNotFound:
            await self._client.create_work_pool(WorkPoolCreate(name=pool, type="process"))
            self.told.append(
                f"made the work pool {pool}: start a worker by `prefect worker start --pool {pool}`"
            )
        try:
            await self._client.read_work_queue_by_name(queue, work_pool_name=pool)
        except ObjectNotFound:
            await self._client.create_work_queue(queue, work_pool_name=pool)
            self.told.append(f"made the work queue {queue}")
        await self._keep_variable("imbrace_work_pool", pool)
        await self._keep_variable("imbrace_work_queue", queue)

    async def budget(self) -> None:
        """Make the budget of requests that all workers share, or change it if that is wished."""
        wished = self._wishes.requests_per_second
        try:
            found = await self._client.read_global_concurrency_limit_by_name(BUDGET)
        except ObjectNotFound:
            first = wished or self._wishes.settings.requests_per_second or DEFAULT_REQUESTS_PER_SECOND
            await self._client.create_global_concurrency_limit(
                GlobalConcurrencyLimitCreate(name=BUDGET, limit=_slots(first), slot_decay_per_second=first)
            )
            self.told.append(f"made the budget {BUDGET}: {first:g} requests a second, for all workers")
            return
        if wished is None or wished == found.slot_decay_per_second:
            self.told.append(f"left the budget {BUDGET} at {found.slot_decay_per_second:g} requests a second")
            return
        await self._client.update_global_concurrency_limit(
            BUDGET, GlobalConcurrencyLimitUpdate(limit=_slots(wished), slot_decay_per_second=wished)
        )
        self.told.append(f"changed the budget {BUDGET} to {wished:g} requests a second")

    async def automations(self) -> None:
        """Make the automations; one that was disabled stays so."""
        for wanted in automations():
            found = await self._client.read_automations_by_name(wanted.name)
            if not found:
                await self._client.create_automation(wanted)
                self.told.append(f"made the automation {wanted.name}")
                continue
            wanted = wanted.model_copy(update={"enabled": found[0].enabled})
            if _compared(found[0]) == _compared(wanted):
                state = "" if wanted.enabled else ", which is disabled"
                self.told.append(f"found the automation {wanted.name}{state}")
            else:
                await self._client.update_automation(found[0].id, wanted)
                self.told.append(f"changed the automation {wanted.name}")

    async def _keep_block(
        self,
        kind: type[ImbraceCredentials | ConversationLake],
        block: ImbraceCredentials | ConversationLake | None,
        variable: str,
        needed: str,
    ) -> None:
        await kind.aregister_type_and_schema()
        name = f"{kind._block_type_slug}/{BLOCK}"
        try:
            found = await kind.aload(BLOCK)
        except ValueError:
            found = None
        if block is None:
            # Without a block the worker's own settings apply.
            self.told.append(f"{'left the' if found else 'made no'} block {name}, as {needed} not set")
        elif found is not None and _fields(found) == _fields(block):
            self.told.append(f"found the block {name}; {await asyncio.to_thread(found.check)}")
        else:
            await block.asave(BLOCK, overwrite=True)
            made = "changed" if found else "made"
            self.told.append(f"{made} the block {name}; {await asyncio.to_thread(block.check)}")
            found = block
        reference = None if found is None else {"$ref": {"block_document_id": str(found._block_document_id)}}
        await self._keep_variable(variable, reference)

    async def _keep_variable(self, name: str, value: str | dict[str, Any] | None) -> None:
        """Set a variable that `prefect.yaml` names; None sets only one that is missing."""
        found = await self._client.read_variable_by_name(name)
        if found is None:
            await self._client.create_variable(VariableCreate(name=name, value=value, tags=[TAG]))
        elif value is not None and found.value != value:
            await self._client.update_variable(VariableUpdate(name=name, value=value))
            self.told.append(f"changed the variable {name}")


def lake_block(lake: str, environment: Mapping[str, str]) -> ConversationLake:
    """Describe a lake with what the environment says of S3 (`AWS_*`), as far as it lasts."""
    if not lake.startswith(("s3://", "s3a://")):
        return ConversationLake(url=str(Path(lake).absolute()) if is_relative(lake) else lake)
    key, secret = environment.get("AWS_ACCESS_KEY_ID"), environment.get("AWS_SECRET_ACCESS_KEY")
    # Temporary credentials would be kept for longer than they are good for.
    has_lasting_keys = bool(key and secret) and not environment.get("AWS_SESSION_TOKEN")
    return ConversationLake(
        url=lake,
        endpoint=environment.get("AWS_ENDPOINT_URL_S3") or environment.get("AWS_ENDPOINT_URL"),
        region=environment.get("AWS_REGION") or environment.get("AWS_DEFAULT_REGION"),
        access_key=key if has_lasting_keys else None,
        secret_key=SecretStr(secret) if secret and has_lasting_keys else None,
    )


def _slots(requests_per_second: float) -> int:
    """Slots of a budget: what comes back in a second, for the smaller of the two is what counts."""
    return ceil(requests_per_second)


def _fields(block: ImbraceCredentials | ConversationLake) -> dict[str, Any]:
    return {name: getattr(block, name) for name in type(block).model_fields}


def _compared(automation: AutomationCore) -> dict[str, Any]:
    return automation.model_dump(include=set(AutomationCore.model_fields))
