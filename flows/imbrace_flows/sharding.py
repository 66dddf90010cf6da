"""The shards of a run as runs of a deployment: started, followed, and cancelled with their run."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx
import pyarrow as pa
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterIdempotencyKey
from prefect.client.schemas.objects import DeploymentStatus, FlowRun, State, StateType
from prefect.client.schemas.responses import DeploymentResponse
from prefect.deployments import arun_deployment
from prefect.exceptions import ObjectNotFound, PrefectException
from prefect.runtime import flow_run
from prefect.states import Cancelled, Cancelling, Scheduled

from imbrace_flows.deployment_run import is_deployment_run
from imbrace_lake.errors import ImbraceLakeError, StoreUnavailable, UsageError, frames_of, unexpected
from imbrace_lake.export.recovery import read_header
from imbrace_lake.export.run import RunContext, totals_of
from imbrace_lake.export.shards import Manifest, aggregate_into, collect_results, shard_count
from imbrace_lake.lake.ledger_schema import RunTotals
from imbrace_lake.settings import Settings

DEPLOYMENT = "export-shard/export-shard"
POLL_SECONDS = 5.0
# Where `setup` has made the automations, one starts a crashed run again after half a minute; elsewhere the
# run that waits for it does. A run that never crashes, although nothing is heard of it, has lost its worker
# where no automation looks for that.
CRASHED_SECONDS = 60.0
SILENT_SECONDS = 1_800.0
UNTAKEN_SECONDS = 300.0
MOST_TRIES = 2

# Of this name, lines reach the server and the terminal as those of the core do.
logger = logging.getLogger("imbrace_lake.shards")


@dataclass(slots=True)
class _Shard:
    """A shard as its run sees it."""

    manifest: Manifest
    run_id: str = ""
    totals: RunTotals = field(default_factory=RunTotals)
    dead_letters: pa.Table = None
    is_over: bool = False
    sign: object = None
    heard_at: float = 0.0


async def check_can_shard(settings: Settings) -> None:
    """If a size of shards was asked for, make sure that something can run them, before anything is read.

    Raises:
        UsageError: There is no deployment, or no worker for it.
    """
    if settings.shard_size is None:
        return
    instead = "or leave `shard_size` out to export in one process"
    found = await _find_deployment()
    if found is None:
        raise UsageError(
            f"the Prefect server has no deployment {DEPLOYMENT} to run shards: prepare it by `imbrace-lake"
            f" setup` and `prefect deploy --all`, {instead}"
        )
    # The worker of a run that is itself of a deployment may be the only one, and may have gone meanwhile.
    if not is_deployment_run() and found.status == DeploymentStatus.NOT_READY:
        raise UsageError(
            f"no worker asks for runs of {DEPLOYMENT}: start one by `prefect worker start --pool"
            f" {found.work_pool_name}`, {instead}"
        )


async def has_shards(run: RunContext, settings: Settings, conversations: int) -> bool:
    """Whether a run is to be spread over several; asks nobody unless it is large.

    Raises:
        UsageError: It was asked for, and the store supports one run at a time.
    """
    if shard_count(conversations, settings.shard_size) == 1:
        return False
    if settings.shard_size is None:
        # What nobody asked for is done only where it is sure to work.
        can_start = is_deployment_run() and bool(run.lake.store.is_conditional)
        return can_start and await _find_deployment() is not None
    if not run.lake.store.is_conditional:
        raise UsageError(
            f"the store of {run.lake.url} ignores conditional writes and supports one run at a time: leave"
            " `shard_size` out"
        )
    return True


async def _find_deployment() -> DeploymentResponse | None:
    async with get_client() as client:
        try:
            return await client.read_deployment_by_name(DEPLOYMENT)
        except ObjectNotFound:
            return None


async def export_by_shards(
    run: RunContext, manifests: Sequence[Manifest], blocks: Mapping[str, object], numbers: dict[str, int]
) -> None:
    """Have each shard exported by a run of its own, and take over what became of it.

    A run that is cancelled, or fails, cancels those of its shards that have not ended. What they have
    not recorded by then counts as not reached.

    Args:
        run: Counts what the shards have done as its own.
        manifests: One per shard, in the lake.
        blocks: References to the blocks of this run, for the shards.
        numbers: Filled with the number of each shard, by the id of its run.
    """
    run.progress.conversations = sum(len(manifest.conversation_ids) for manifest in manifests)
    own = totals_of(run.progress, run.gateway)
    shards = [_Shard(manifest) for manifest in manifests]
    async with get_client() as client:
        try:
            found = await _find_shard_runs(client, manifests)
            for shard in shards:
                await _start(client, shard, found.get(shard.manifest.key), len(shards), blocks)
                numbers[shard.run_id] = shard.manifest.shard
            await _follow(client, run, shards, own)
        finally:
            try:
                # By their keys: one may have been started whose answer has not come.
                await _cancel(client, manifests)
            except (httpx.HTTPError, PrefectException) as exc:
                # Each shard also looks for itself whether its run has ended.
                logger.warning("shards that are under way are not cancelled: %s", type(exc).__name__)
            finally:
                await _collect_rest(run, shards)
                aggregate_into(run, own, [shard.totals for shard in shards])


async def _collect_rest(run: RunContext, shards: Sequence[_Shard]) -> None:
    """Take over what the shards have recorded by now, and write down the dead letters of all."""
    for shard in shards:
        if not shard.is_over:
            try:
                await _collect_shard(run, shard, "its run was ended with this one")
            except StoreUnavailable as exc:
                _lose(run, shard, exc)
    # Not before: another try of this run may find that a shard has ended better than it stood.
    dead = [shard.dead_letters for shard in shards if shard.dead_letters is not None]
    if dead:
        await run.journal.note("conversations", "shards", pa.concat_tables(dead))


async def _find_shard_runs(client: PrefectClient, manifests: Sequence[Manifest]) -> dict[str, FlowRun]:
    """The runs of shards by the keys of their manifests; those that were never started are not there."""
    keys = FlowRunFilterIdempotencyKey(any_=[manifest.key for manifest in manifests])
    found = await client.read_flow_runs(flow_run_filter=FlowRunFilter(idempotency_key=keys))
    return {str(each.idempotency_key): each for each in found}


async def _start(
    client: PrefectClient,
    shard: _Shard,
    found: FlowRun | None,
    count: int,
    blocks: Mapping[str, object],
) -> None:
    """Start a shard, or find it where an earlier try of this run had started it."""
    manifest = shard.manifest
    if found is None:
        found = await arun_deployment(
            DEPLOYMENT,
            client=client,
            parameters={"params": {"manifest": manifest.key, "shard": manifest.shard}, **blocks},
            timeout=0,
            flow_run_name=f"{flow_run.name}-shard-{manifest.shard}-of-{count}",
            tags=[f"imbrace-run-{manifest.run_id}"],
            idempotency_key=manifest.key,
        )
    elif _type_of(found) == StateType.CANCELLED:
        # With that try. What crashed is seen to as long as the run lasts.
        await _restart(client, found)
    shard.run_id, shard.heard_at = str(found.id), time.monotonic()


async def _restart(client: PrefectClient, found: FlowRun) -> None:
    state: State[Any] = Scheduled(name="Restarting", message="Its run starts it again where it stood.")
    await client.set_flow_run_state(found.id, state)


async def _follow(client: PrefectClient, run: RunContext, shards: Sequence[_Shard], own: RunTotals) -> None:
    """Wait until each shard has ended, or will never end."""
    began_at, is_untaken = time.monotonic(), True
    while waiting := [shard for shard in shards if not shard.is_over]:
        await asyncio.sleep(POLL_SECONDS)
        try:
            found = await _find_shard_runs(client, [shard.manifest for shard in waiting])
        except httpx.HTTPError as exc:
            logger.warning("the Prefect server is away (%s): asking again", type(exc).__name__)
            continue
        for shard in waiting:
            try:
                await _check_shard(client, run, shard, found.get(shard.manifest.key))
            except (StoreUnavailable, httpx.HTTPError) as exc:
                if time.monotonic() - shard.heard_at > SILENT_SECONDS:
                    _lose(run, shard, exc)
                else:
                    logger.warning("shard=%d: %s, looking again", shard.manifest.shard, type(exc).__name__)
        aggregate_into(run, own, [shard.totals for shard in shards])
        is_untaken = is_untaken and all(_type_of(each) == StateType.SCHEDULED for each in found.values())
        if is_untaken and time.monotonic() - began_at > UNTAKEN_SECONDS:
            logger.warning("no worker has taken a shard: there must be room for more runs than this one")
            is_untaken = False


async def _check_shard(client: PrefectClient, run: RunContext, shard: _Shard, found: FlowRun | None) -> None:
    """See how a shard is getting on; start one again that crashed, collect one that is over."""
    state = found.state if found is not None else None
    is_over = state is None or (state.is_final() and not state.is_crashed())
    if state is not None and not is_over:
        try:
            header = await read_header(run.lake, shard.run_id)
        except StoreUnavailable:
            header = None  # a store that does not answer now says nothing about the shard
        if header is not None:
            shard.totals = RunTotals(**header.totals)
        sign = (state.id, None if header is None else header.alive_at)
        if sign != shard.sign:
            shard.sign, shard.heard_at = sign, time.monotonic()
        patience = CRASHED_SECONDS if state.is_crashed() else SILENT_SECONDS
        # One that waits for a worker may wait for long.
        is_lost = not state.is_scheduled() and time.monotonic() - shard.heard_at > patience
        if is_lost and state.is_crashed() and found is not None and found.run_count < MOST_TRIES:
            await _restart(client, found)
            return
        is_over = is_lost
    if is_over:
        problem = "its run was deleted" if state is None else f"its run ended as {state.name}"
        if state is not None and not state.is_final():
            problem = f"its run is {state.name}, and nothing was heard of it for {SILENT_SECONDS:g} s"
        await _collect_shard(run, shard, problem)


async def _collect_shard(run: RunContext, shard: _Shard, state: str) -> None:
    """Take over what became of a shard, which is over.

    Raises:
        StoreUnavailable: The ledgers cannot be read for now.
    """
    try:
        shard.totals, shard.dead_letters = await collect_results(run, shard.manifest, shard.run_id, state)
    except StoreUnavailable:
        raise
    except Exception as exc:  # noqa: BLE001 - whatever it is, it costs this shard only
        _lose(run, shard, exc)
        return
    shard.is_over = True
    logger.info("shard=%d %s", shard.manifest.shard, state)


def _lose(run: RunContext, shard: _Shard, exc: Exception) -> None:
    """Go on without what became of a shard: its conversations have no outcome, so they are not reached."""
    if not isinstance(exc, ImbraceLakeError):
        logger.debug("unexpected %s", frames_of(exc))
        exc = unexpected(exc)
    problem = f"shard {shard.manifest.shard} (run {shard.run_id or 'not started'}) cannot be collected: {exc}"
    logger.warning("%s", problem)
    run.problem = run.problem or problem
    run.lost_shards += 1
    shard.totals, shard.is_over = RunTotals(), True


async def _cancel(client: PrefectClient, manifests: Sequence[Manifest]) -> None:
    """Cancel every shard that has not ended."""

    async def cancel(found: FlowRun) -> None:
        # What waits for a worker has no process that could answer.
        state: State[Any] = (
            Cancelled(message="The run of this shard has ended.")
            if _type_of(found) == StateType.SCHEDULED
            else Cancelling(message="The run of this shard has ended.")
        )
        await client.set_flow_run_state(found.id, state)

    found = (await _find_shard_runs(client, manifests)).values()
    await asyncio.gather(*(cancel(each) for each in found if each.state and not each.state.is_final()))


def _type_of(found: FlowRun) -> StateType | None:
    return found.state.type if found.state is not None else None
