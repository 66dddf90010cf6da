"""Create the deployments of `prefect.yaml` on the server, and remove those of earlier releases.

The schedules of a deployment belong to the operator as soon as it exists: `prefect deploy` does not get those
of the file, so what was changed, replaced, added, removed or paused stays so.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from uuid import UUID

import yaml  # type: ignore[import-untyped] # no stubs
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
_HOURLY = re.compile(r"[0-5]?\d \* \* \* \*")
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
    before = {one.id: one for one in found}
    earlier = {SUCCESSORS.get(one.name, one.name): one for one in found} | {
        one.name: one for one in found if one.name not in SUCCESSORS
    }
    content = _load(prefect_file)
    with _without_schedules(content, earlier) as changed_file:
        # Only this command leads from the file to the server.
        await _call_prefect("deploy", "--all", "--prefect-file", str(changed_file))
    outdated, deployed = _parted(before, await _our_deployments(client))
    predecessors = {SUCCESSORS.get(one.name, one.name): one for one in outdated}
    done = [f"deployed {_names(deployed)}"]
    for one in deployed:
        if one.name in predecessors and not one.schedules:
            await _take_over_schedules(client, one, predecessors[one.name])
        elif one.name == INGEST and one.name not in earlier:
            await _begin_soon(client, one, first_schedule)
    new = {one.id for one in deployed}
    kept = [one for one in await _our_deployments(client) if one.id in new and one.name in earlier]
    done += _differing_schedules(kept, content, first_schedule)
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


def _load(prefect_file: Path) -> object:
    """Read the file of the deployments.

    Raises:
        DeploymentFailed: It is not valid YAML.
    """
    try:
        return yaml.safe_load(prefect_file.read_text(encoding="utf-8"))
    except yaml.YAMLError as exc:
        reason = " ".join(str(exc).split())[:LONGEST_REASON]
        raise DeploymentFailed(f"{prefect_file} is not valid YAML: {reason}") from None


def _entries(content: object) -> list[dict[str, Any]]:
    """Return the deployments of the file; Prefect rejects one that has something else."""
    return _dicts(content.get("deployments")) if isinstance(content, dict) else []


def _dicts(found: object) -> list[dict[str, Any]]:
    return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []


@contextmanager
def _without_schedules(content: object, earlier: Mapping[str, DeploymentResponse]) -> Iterator[Path]:
    """Write a file in which deployments that exist, or whose predecessor exists, have no schedules.

    Prefect leaves theirs on the server, so they stay also if this process is killed.
    """
    changed = deepcopy(content)
    for entry in _entries(changed):
        if one := earlier.get(str(entry.get("name"))):
            entry.pop("schedule", None)
            entry |= {"schedules": None, "paused": one.paused}
    with TemporaryDirectory() as folder:
        file = Path(folder) / "prefect.yaml"
        file.write_text(yaml.safe_dump(changed, allow_unicode=True), encoding="utf-8")
        yield file


async def _take_over_schedules(
    client: PrefectClient, deployment: DeploymentResponse, before: DeploymentResponse
) -> None:
    """Give a new deployment, which has no schedules yet, those of its predecessor."""
    schedules = [
        DeploymentScheduleUpdate(
            schedule=one.schedule, active=one.active, parameters=one.parameters, slug=one.slug
        )
        for one in before.schedules
    ]
    if schedules:
        await client.update_deployment(deployment.id, DeploymentUpdate(schedules=schedules))


def _differing_schedules(
    deployments: Sequence[DeploymentResponse], content: object, first_schedule: str | None
) -> list[str]:
    """Return a sentence about the schedules that are not those of the file, if there are any."""
    defaults = {}
    for entry in _entries(content):
        own = {"cron": first_schedule} if entry.get("name") == INGEST and first_schedule else {}
        given = _dicts(entry.get("schedules") or [entry.get("schedule")])
        defaults[entry.get("name")] = sorted(_words(one | own) for one in given)
    differing = []
    for one in sorted(deployments, key=lambda one: one.name):
        schedules = sorted(
            _words({**each.schedule.model_dump(), "active": each.active}) for each in one.schedules
        )
        if one.paused and schedules:
            differing.append(f"{one.name} (paused)")
        elif schedules != defaults.get(one.name):
            differing.append(f"{one.name} ({'; '.join(schedules) or 'none'})")
    return [f"left the schedules that differ from the defaults: {', '.join(differing)}"] if differing else []


def _words(schedule: Mapping[str, Any]) -> str:
    """Describe a schedule, of the file or the server; the minute of an hourly one does not matter."""
    interval = schedule.get("interval")
    if cron := schedule.get("cron"):
        when = "hourly" if _HOURLY.fullmatch(str(cron)) else str(cron)
    elif interval:
        seconds = interval.total_seconds() if isinstance(interval, timedelta) else interval
        when = f"every {f'{seconds:.15g}' if isinstance(seconds, int | float) else seconds} s"
    else:
        when = str(schedule.get("rrule"))
    paused = "" if schedule.get("active", True) else ", paused"
    return f"{when} {schedule.get('timezone') or 'UTC'}{paused}"


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
