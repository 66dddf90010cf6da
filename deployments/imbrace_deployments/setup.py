"""Prepare a Prefect server: blocks, work pool, budget, automations, deployments.

Setup tries token, lake and list before it saves anything; if one of them does not work, it changes nothing on
the server. It leaves existing objects as they are, except blocks, automations and deployments that differ
from the desired ones. A budget and a schedule belong to the operator as soon as they exist.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.actions import (
    VariableCreate,
    VariableUpdate,
    WorkPoolCreate,
)
from prefect.events.schemas.automations import AutomationCore
from prefect.exceptions import ObjectNotFound
from pydantic import SecretStr

from imbrace_deployments.automations import TAG, automations, replace_automation
from imbrace_deployments.deploy import PREFECT_FILE, deploy
from imbrace_flows.blocks import ConversationLake, ImbraceCredentials, icon_url, is_relative
from imbrace_lake.check import Finding, check_list
from imbrace_lake.printable import rate
from imbrace_lake.settings import PREFIX, Settings
from imbrace_tasks.budget import set_limit

B = TypeVar("B", ImbraceCredentials, ConversationLake)

BUDGET = "imbrace-requests"
BLOCK = "default"
DEFAULT_REQUESTS_PER_SECOND = 20.0


@dataclass(frozen=True, slots=True)
class DesiredState:
    """The desired state of the server.

    Attributes:
        settings: Token, organization, gateway and lake become blocks; the requests per second become a new
            budget.
        pool, queue: The work pool and queue of the deployments; a new pool starts processes.
        phones: Address of the list that the hourly ingestion reads; None leaves the saved one.
        requests_per_second: The budget, also if it exists; None leaves the existing one.
        is_forced: Save also values that do not work from this machine.
        prefect_file: The file of the deployments.
        first_schedule: The cron schedule of a new `ingest`; None for every hour.
        needs_blocks: Treat missing settings as an error, unless an earlier call saved them. Those of a block
            that was deleted are always an error, because the deployments still refer to it.
    """

    settings: Settings
    pool: str
    queue: str
    phones: str | None = None
    requests_per_second: float | None = None
    is_forced: bool = False
    prefect_file: Path = PREFECT_FILE
    first_schedule: str | None = None
    needs_blocks: bool = False


@dataclass(slots=True)
class Outcome:
    """The result of setup.

    Attributes:
        findings: Results of the checks of token, organization, gateway, lake and list.
        done: What was made, changed, found or left, in one sentence each; empty if nothing was saved.
    """

    findings: list[Finding] = field(default_factory=list)
    done: list[str] = field(default_factory=list)

    @property
    def wrong(self) -> list[Finding]:
        """The findings with which a run cannot work."""
        return [one for one in self.findings if one.verdict == "error"]


async def set_up(desired: DesiredState) -> Outcome:
    """Try the desired state, and bring the configured server to it if everything works.

    Raises:
        SettingsError: A setting cannot be used; nothing was saved.
        DeploymentFailed: Prefect did not accept the deployments.
        httpx.HTTPError: The server does not answer, or rejects a request.
    """
    async with get_client() as client:
        setup = _Setup(client, desired)
        await setup.probe()
        if desired.is_forced or not setup.outcome.wrong:
            await setup.blocks()
            await setup.work_pool()
            await setup.budget()
            await setup.automations()
            await setup.deployments()
    return setup.outcome


@dataclass(slots=True)
class _BlockState:
    """A block: its name, the one on the server, the desired one, and the settings that are missing for it."""

    name: str
    found: ImbraceCredentials | ConversationLake | None
    desired: ImbraceCredentials | ConversationLake | None
    missing: list[str]

    def not_set(self) -> str:
        """Return which settings are missing, as the end of a sentence."""
        return f"{' and '.join(self.missing)} {'is' if len(self.missing) == 1 else 'are'} not set"


class _Setup:
    """One call of setup: the desired state, and the result so far."""

    def __init__(self, client: PrefectClient, desired: DesiredState) -> None:
        self.outcome = Outcome()
        self._done = self.outcome.done
        self._client = client
        self._desired = desired
        self._blocks: dict[str, _BlockState] = {}

    async def probe(self) -> None:
        """Load the saved blocks; try the blocks that the server is to have, and the list, side by side."""
        settings = self._desired.settings
        credentials = await _saved(ImbraceCredentials)
        self._blocks = {
            "imbrace_credentials": _BlockState(
                f"{ImbraceCredentials._block_type_slug}/{BLOCK}",
                credentials,
                _credentials_block(settings, credentials),
                _missing(settings, "token", "organization"),
            ),
            "imbrace_lake": _BlockState(
                f"{ConversationLake._block_type_slug}/{BLOCK}",
                await _saved(ConversationLake),
                None if settings.lake is None else lake_block(settings.lake, os.environ),
                _missing(settings, "lake"),
            ),
        }
        token, lake = (kept.desired or kept.found for kept in self._blocks.values())
        looks = await asyncio.gather(
            *([token.findings()] if isinstance(token, ImbraceCredentials) else []),
            *([lake.findings(_organization(token))] if isinstance(lake, ConversationLake) else []),
            self._check_list(),
        )
        self.outcome.findings = [finding for findings in looks for finding in findings]
        for variable, kept in self._blocks.items():
            if kept.desired is not None or kept.found is not None:
                continue
            reference = await self._client.read_variable_by_name(variable)
            if reference is not None and reference.value is not None:
                problem = f"{kept.name}, to which the deployments refer, was deleted, and {kept.not_set()}"
                self.outcome.findings.append(Finding("block", "error", problem))
            elif self._desired.needs_blocks:
                self.outcome.findings.append(Finding("settings", "error", kept.not_set()))

    async def _check_list(self) -> list[Finding]:
        phones = self._desired.phones
        if phones is None:
            variable = await self._client.read_variable_by_name("imbrace_phones")
            phones = variable.value if variable and isinstance(variable.value, str) else None
        return [await check_list(phones, self._desired.settings)] if phones else []

    async def blocks(self) -> None:
        """Save the blocks, and their ids in variables, by which the deployments refer to them."""
        for kind in (ImbraceCredentials, ConversationLake):
            kind._logo_url = icon_url()
            await kind.aregister_type_and_schema()
        for variable, kept in self._blocks.items():
            await self._keep_block(kept, variable)
        await self._keep_variable("imbrace_phones", self._desired.phones, missing="")

    async def work_pool(self) -> None:
        """Make the pool and its queue, and save their names in variables."""
        pool, queue = self._desired.pool, self._desired.queue
        try:
            found = await self._client.read_work_pool(pool)
            self._done.append(f"found the work pool {pool} ({found.type})")
        except ObjectNotFound:
            await self._client.create_work_pool(WorkPoolCreate(name=pool, type="process"))
            self._done.append(f"made the work pool {pool}")
        try:
            await self._client.read_work_queue_by_name(queue, work_pool_name=pool)
        except ObjectNotFound:
            await self._client.create_work_queue(queue, work_pool_name=pool)
            self._done.append(f"made the work queue {queue}")
        await self._keep_variable("imbrace_work_pool", pool)
        await self._keep_variable("imbrace_work_queue", queue)

    async def budget(self) -> None:
        """Make the budget of requests that all workers share, or change it if that is desired."""
        desired = self._desired.requests_per_second
        try:
            found = await self._client.read_global_concurrency_limit_by_name(BUDGET)
        except ObjectNotFound:
            first = desired or self._desired.settings.requests_per_second or DEFAULT_REQUESTS_PER_SECOND
            await set_limit(self._client, BUDGET, first)
            self._done.append(f"made the budget {BUDGET}: {rate(first, 6)}, for all workers")
            return
        if desired is None or desired == found.slot_decay_per_second:
            self._done.append(f"left the budget {BUDGET} at {rate(found.slot_decay_per_second, 6)}")
            return
        await set_limit(self._client, BUDGET, desired)
        self._done.append(f"changed the budget {BUDGET} to {rate(desired, 6)}")

    async def automations(self) -> None:
        """Make the automations; a disabled one stays disabled."""
        for wanted in automations():
            found = await self._client.read_automations_by_name(wanted.name)
            if not found:
                await self._client.create_automation(wanted)
                self._done.append(f"made the automation {wanted.name}")
                continue
            wanted = wanted.model_copy(update={"enabled": found[0].enabled})
            if _compared(found[0]) == _compared(wanted):
                state = "" if wanted.enabled else ", which is disabled"
                self._done.append(f"found the automation {wanted.name}{state}")
            else:
                await replace_automation(self._client, found[0].id, wanted)
                self._done.append(f"changed the automation {wanted.name}")

    async def deployments(self) -> None:
        """Make or update the deployments, and remove those of earlier releases."""
        desired = self._desired
        self._done += await deploy(self._client, desired.prefect_file, desired.first_schedule)

    async def _keep_block(self, kept: _BlockState, variable: str) -> None:
        name, found, desired = kept.name, kept.found, kept.desired
        if desired is None:
            # Without a block, the settings of the worker apply.
            done = f"{'left the' if found else 'made no'} block {name}, as {kept.not_set()}"
        elif found is not None and _fields(found) == _fields(desired):
            done = f"found the block {name}"
        else:
            await desired.asave(BLOCK, overwrite=True)
            done = f"{'changed' if found else 'made'} the block {name}"
            before, after = _organization(found), _organization(desired)
            if before != after and found is not None:
                done += f": from the organization {before} to {after}, which all deployments read from now on"
            found = desired
        self._done.append(done)
        reference = None if found is None else {"$ref": {"block_document_id": str(found._block_document_id)}}
        await self._keep_variable(variable, reference)

    async def _keep_variable(
        self, name: str, value: str | dict[str, Any] | None, *, missing: str | None = None
    ) -> None:
        """Set a variable of `prefect.yaml`; None leaves it, or sets one without a value to `missing`."""
        found = await self._client.read_variable_by_name(name)
        if value is None and (found is None or found.value is None):
            value = missing
        if found is None:
            await self._client.create_variable(VariableCreate(name=name, value=value, tags=[TAG]))
        elif value is not None and found.value != value:
            await self._client.update_variable(VariableUpdate(name=name, value=value))
            self._done.append(f"changed the variable {name}")


def _missing(settings: Settings, *names: str) -> list[str]:
    return [f"{PREFIX}{name.upper()}" for name in names if getattr(settings, name) is None]


async def _saved(kind: type[B]) -> B | None:
    """Load the block that an earlier call saved, if there is one."""
    try:
        return await kind.aload(BLOCK)
    except ValueError:
        return None


def _organization(block: ImbraceCredentials | ConversationLake | None) -> str | None:
    return block.organization if isinstance(block, ImbraceCredentials) else None


def _credentials_block(settings: Settings, found: ImbraceCredentials | None) -> ImbraceCredentials | None:
    """Return the block of the settings; None unless they have both token and organization."""
    if settings.token is None or settings.organization is None:
        return None
    expires = settings.token_expires
    if expires is None and found is not None and found.token == settings.token:
        # An operator entered the day in the UI.
        expires = found.expires_at
    return ImbraceCredentials(
        organization=settings.organization,
        token=settings.token,
        expires_at=expires,
        gateway=settings.gateway,
    )


def lake_block(lake: str, environment: Mapping[str, str]) -> ConversationLake:
    """Return the block of a lake, with the lasting S3 settings of the environment (`AWS_*`)."""
    if not lake.startswith(("s3://", "s3a://")):
        return ConversationLake(url=str(Path(lake).absolute()) if is_relative(lake) else lake)
    key, secret = environment.get("AWS_ACCESS_KEY_ID"), environment.get("AWS_SECRET_ACCESS_KEY")
    # Temporary credentials would be saved for longer than they are valid.
    has_lasting_keys = bool(key and secret) and not environment.get("AWS_SESSION_TOKEN")
    return ConversationLake(
        url=lake,
        endpoint=environment.get("AWS_ENDPOINT_URL_S3") or environment.get("AWS_ENDPOINT_URL"),
        region=environment.get("AWS_REGION") or environment.get("AWS_DEFAULT_REGION"),
        access_key=key if has_lasting_keys else None,
        secret_key=SecretStr(secret) if secret and has_lasting_keys else None,
    )


def _fields(block: ImbraceCredentials | ConversationLake) -> dict[str, Any]:
    return {name: getattr(block, name) for name in type(block).model_fields}


def _compared(automation: AutomationCore) -> dict[str, Any]:
    return automation.model_dump(include=set(AutomationCore.model_fields))
