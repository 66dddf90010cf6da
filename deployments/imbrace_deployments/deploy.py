"""Create the deployments of `prefect.yaml` on the server, and remove those of earlier releases.

A schedule belongs to the operator as soon as it exists: what was paused or changed stays so.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from uuid import UUID

from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.actions import (
    DeploymentScheduleUpdate,
    DeploymentUpdate,
    VariableCreate,
    VariableUpdate,
)
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterTags
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.schedules import CronSchedule

import imbrace_flows
from imbrace_deployments.automations import TAG
from imbrace_lake.errors import ImbraceLakeError

# A wheel contains a copy; in a clone, the file is at the top of the repository.
_COPY = Path(__file__).with_name("prefect.yaml")
PREFECT_FILE = _COPY if _COPY.exists() else Path(__file__).parents[2] / "prefect.yaml"

INGEST = "ingest"
FIRST_RUN = timedelta(minutes=2)
SUCCESSORS = {
    "export-on-demand": "export",
    "ingest-hourly": INGEST,
    "backfill-on-demand": "backfill",
    "export-on-phones-uploaded": "export-on-upload",
    "rerun-failed": "retry-failed",
    "verify-nightly": "verify",
}
"""Deployments of earlier releases, and those that replace them."""
DEPLOYED = "imbrace_deployed"
"""The variable with the state of the last call."""
LONGEST_REASON = 400
_ERROR = re.compile(r"[A-Za-z_][\w.]*(Error|Exception|Exit)\b.*: ")


class DeploymentFailed(ImbraceLakeError):
    """Prefect did not accept the deployments."""


async def deploy(
    client: PrefectClient, prefect_file: Path = PREFECT_FILE, first_schedule: str | None = None
) -> list[str]:
    """Create or update the deployments; return a sentence for each notable change.

    Args:
        client: The server.
        prefect_file: The file of the deployments.
        first_schedule: The cron schedule of a new `ingest`; by default hourly, for the first time in two
            minutes.

    Raises:
        DeploymentFailed: Prefect did not accept the deployments; those of earlier releases stay.
    """
    found = await _our_deployments(client)
    fingerprint = await _fingerprint(client, prefect_file)
    if await _saved_state(client) == _state(fingerprint, found):
        await _reject_unknown_parameters(client, found)
        return [f"found {_names(found)}"]
    # Only this command leads from the file to the server.
    await _call_prefect("deploy", "--all", "--prefect-file", str(prefect_file))
    before = {one.id: one for one in found}
    outdated, deployed = _parted(before, await _our_deployments(client))
    earlier = {SUCCESSORS.get(one.name, one.name): one for one in outdated}
    earlier |= {one.name: before[one.id] for one in deployed if one.id in before}
    done = [f"deployed {_names(deployed)}"]
    for one in deployed:
        if one.name in earlier:
            done += await _restore_schedules(client, one, earlier[one.name])
        elif one.name == INGEST:
            await _begin_soon(client, one, first_schedule)
    await _reject_unknown_parameters(client, deployed)
    for one in outdated:
        await client.delete_resource_owned_automations(f"prefect.deployment.{one.id}")
        await client.delete_deployment(one.id)
        done.append(f"removed the deployment {one.name} of an earlier release")
    await _save_state(client, _state(fingerprint, deployed))
    return done


def _parted(
    before: Mapping[UUID, DeploymentResponse], after: Sequence[DeploymentResponse]
) -> tuple[list[DeploymentResponse], list[DeploymentResponse]]:
    """Return the deployments of earlier releases, and the others."""
    names = Counter(one.name for one in after)

    def is_outdated(one: DeploymentResponse) -> bool:
        # Those of an earlier flow have the same name, and were not updated.
        is_untouched = one.id in before and before[one.id].updated == one.updated
        return one.name in SUCCESSORS or (names[one.name] > 1 and is_untouched)

    return [one for one in after if is_outdated(one)], [one for one in after if not is_outdated(one)]


async def _fingerprint(client: PrefectClient, prefect_file: Path) -> str:
    """Return a hash of everything that the deployments are made of."""
    variables = {one.name: one.value for one in await client.read_variables() if TAG in one.tags}
    releases = version("imbrace-lake"), version("prefect")
    parts = [json.dumps([releases, variables], sort_keys=True, default=str), *_contents(prefect_file)]
    return sha256("\0".join(parts).encode()).hexdigest()


def _contents(prefect_file: Path) -> list[str]:
    """Read the file of the deployments, and the flows, from which the forms are made."""
    flows = sorted(Path(imbrace_flows.__path__[0]).glob("*.py"))
    return [file.read_text(encoding="utf-8") for file in (prefect_file, *flows)]


def _state(fingerprint: str, deployments: list[DeploymentResponse]) -> dict[str, str]:
    """Return what the deployments are made of, and those on the server with their limits of concurrent runs.

    A limit can be deleted or changed alone: without one, two backfills would run at the same time.
    """
    state = {"made of": fingerprint}
    for one in deployments:
        limit = one.global_concurrency_limit
        state[str(one.id)] = one.name if limit is None else f"{one.name}, at most {limit.limit} at a time"
    return state


async def _saved_state(client: PrefectClient) -> object:
    saved = await client.read_variable_by_name(DEPLOYED)
    return None if saved is None else saved.value


async def _save_state(client: PrefectClient, state: dict[str, str]) -> None:
    if await client.read_variable_by_name(DEPLOYED) is None:
        await client.create_variable(VariableCreate(name=DEPLOYED, value=state))
    else:
        await client.update_variable(VariableUpdate(name=DEPLOYED, value=state))


def _names(deployments: list[DeploymentResponse]) -> str:
    return ", ".join(sorted(one.name for one in deployments))


async def _our_deployments(client: PrefectClient) -> list[DeploymentResponse]:
    ours = DeploymentFilter(tags=DeploymentFilterTags(all_=[TAG]))
    return await client.read_deployments(deployment_filter=ours)


async def _restore_schedules(
    client: PrefectClient, deployment: DeploymentResponse, before: DeploymentResponse
) -> list[str]:
    """Give a deployment the schedules that it, or its predecessor, had on the server."""
    earlier = {one.slug: one for one in before.schedules}
    kept = [earlier.get(one.slug, one) for one in deployment.schedules]
    changes = [
        DeploymentScheduleUpdate(slug=one.slug, schedule=was.schedule, active=was.active)
        for one, was in zip(deployment.schedules, kept, strict=True)
        if (was.schedule, was.active) != (one.schedule, one.active)
    ]
    if changes:
        await client.update_deployment(deployment.id, DeploymentUpdate(schedules=changes))
    if before.paused:
        await client.pause_deployment(deployment.id)
    if kept and (before.paused or not all(one.active for one in kept)):
        return [f"left the schedule of {deployment.name} paused"]
    return []


async def _reject_unknown_parameters(
    client: PrefectClient, deployments: Sequence[DeploymentResponse]
) -> None:
    """Let the server reject parameters that the flows do not have: runs with them would fail.

    `prefect deploy` removes this again, because its class of a schema has no field for it.
    """
    rule = {"additionalProperties": False}
    for one in deployments:
        schema = one.parameter_openapi_schema or {}
        if not rule.items() <= schema.items():
            changed = DeploymentUpdate(parameter_openapi_schema={**schema, **rule})
            await client.update_deployment(one.id, changed)


async def _begin_soon(
    client: PrefectClient, deployment: DeploymentResponse, first_schedule: str | None
) -> None:
    """Let a new schedule begin soon, so that the first run shows whether everything works."""
    minute = (datetime.now(UTC) + FIRST_RUN).minute
    schedule = CronSchedule(cron=first_schedule or f"{minute} * * * *", timezone="UTC")
    changes = [DeploymentScheduleUpdate(slug=one.slug, schedule=schedule) for one in deployment.schedules]
    # After a change of the deployment the server makes its runs within seconds, of a schedule within minutes.
    await client.update_deployment(deployment.id, DeploymentUpdate(schedules=changes))


async def _call_prefect(*arguments: str) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-P", "-m", "prefect", "--no-prompt", *arguments,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        # Without colors and logs, and out of reach of the terminal's Ctrl-C.
        env={**os.environ, "NO_COLOR": "1", "TERM": "dumb"},
        start_new_session=True,
    )  # fmt: skip
    try:
        output, _ = await process.communicate()
    except asyncio.CancelledError:
        process.kill()
        await process.wait()
        raise
    if process.returncode:
        lines = output.decode(errors="replace").splitlines()
        errors = [line for line in lines if _ERROR.match(line)] or [line for line in lines if line] or [""]
        raise DeploymentFailed(f"Prefect did not accept the deployments: {errors[-1][:LONGEST_REASON]}")
