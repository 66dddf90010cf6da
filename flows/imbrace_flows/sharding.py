"""The shards of a run as runs of a deployment: started, followed, and cancelled with their run."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence

import httpx
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterIdempotencyKey
from prefect.client.schemas.objects import DeploymentStatus, FlowRun, StateType
from prefect.client.schemas.responses import DeploymentResponse
from prefect.deployments import arun_deployment
from prefect.exceptions import ObjectNotFound
from prefect.runtime import flow_run
from prefect.states import Cancelled, Cancelling, Scheduled

from imbrace_flows.deployment_run import is_deployment_run
from imbrace_flows.log import logger_of
from imbrace_flows.params import ShardParams
from imbrace_lake.errors import InputError, StoreUnavailable, as_own_error
from imbrace_lake.export.recovery import read_header
from imbrace_lake.export.run import RunContext
from imbrace_lake.export.shards import Shard, collect_results, shard_count
from imbrace_lake.lake.ledger_schema import RunTotals
from imbrace_lake.printable import plural, without_numbers
from imbrace_lake.settings import Settings

DEPLOYMENT = "export-shard/export-shard"
POLL_SECONDS = 5.0
# An automation of `imbrace-lake setup` restarts a crashed run after 30 s; without it, the run that
# waits for the shard does. A run that is silent but has not crashed has lost its worker unnoticed.
CRASHED_SECONDS = 60.0
SILENT_SECONDS = 1_800.0
WAITING_SECONDS = 300.0
MAX_TRIES = 2
# For shards that are cancelled with their run to write their rows. Prefect kills the process of a cancelled
# run after 30 s, and this one is still to count their results and to close its accounts.
ENDING_SECONDS = 15.0
ENDING_POLL_SECONDS = 0.5
LONGEST_MESSAGE = 500

logger = logger_of("shards")


async def check_can_shard(settings: Settings) -> None:
    """If a shard size was chosen, make sure before reading anything that shards can run.

    Raises:
        InputError: There is no deployment, or it has no worker.
    """
    if settings.shard_size is None:
        return
    instead = "or leave `shard_size` out to export in one process"
    found = await _find_deployment()
    if found is None:
        raise InputError(
            f"the Prefect server has no deployment {DEPLOYMENT} to run shards: create it by `imbrace-lake"
            f" setup`, {instead}"
        )
    # The only worker may be the one of this run, which has perhaps stopped meanwhile.
    if not is_deployment_run() and found.status == DeploymentStatus.NOT_READY:
        raise InputError(
            f"no worker asks for runs of {DEPLOYMENT}: start one by `imbrace-lake up --pool"
            f" {found.work_pool_name}`, {instead}"
        )


async def needs_shards(run: RunContext, settings: Settings, conversations: int) -> bool:
    """Whether a run is to be split into shards; sends no request unless it is large.

    Raises:
        InputError: A shard size was chosen, and the store supports one run at a time.
    """
    if run.parent_run_id is not None or shard_count(conversations, settings.shard_size) == 1:
        return False
    if settings.shard_size is None:
        # Without a chosen size, a run is split only where its shards are sure to run.
        can_start = is_deployment_run() and bool(run.lake.store.is_conditional)
        return can_start and await _find_deployment() is not None
    if not run.lake.store.is_conditional:
        raise InputError(
            f"the store of {run.lake.url} has no conditional writes and supports one run at a time: leave"
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
    run: RunContext,
    shards: Sequence[Shard],
    blocks: Mapping[str, object],
    *,
    chunk_size: int | None = None,
    tolerated_failures: float = 0.0,
) -> None:
    """Export each shard by a run of its deployment, and count the results as those of the run.

    A run that is cancelled or fails cancels its unfinished shards, and waits for their rows, for up to
    `ENDING_SECONDS`. Conversations that they have not recorded by then count as not reached.

    Args:
        run: The run.
        shards: Its shards, whose lists are in the lake.
        blocks: References to the blocks of the run, for its shards.
        chunk_size, tolerated_failures: Parameters of the shards.
    """
    run.progress.conversations = sum(len(shard.conversation_ids) for shard in shards)
    _show(run, shards)
    async with get_client() as client:
        try:
            found = await _find_runs(client, shards)
            for shard in shards:
                parameters = ShardParams(
                    conversations=shard.key,
                    parent_run=run.run_id,
                    since=run.window.since,
                    until=run.window.until,
                    # Otherwise the settings of the worker apply, as in every run of a deployment.
                    walk_whole=not run.policy.rewalk_after,
                    drift=run.drift,
                    chunk_size=chunk_size,
                    tolerated_failures=tolerated_failures,
                    accept_repeats=run.accept_repeats,
                )
                # The key finds the run that an earlier attempt has started.
                started = found.get(shard.key) or await arun_deployment(
                    DEPLOYMENT,
                    client=client,
                    parameters={
                        "params": parameters.model_dump(mode="json", exclude_defaults=True),
                        **blocks,
                    },
                    timeout=0,
                    flow_run_name=f"{flow_run.name} shard {shard.number} of {len(shards)}",
                    tags=[f"imbrace-run-{run.run_id}"],
                    idempotency_key=shard.key,
                )
                if _type_of(started) == StateType.CANCELLED:
                    # With that attempt. Crashed shards are restarted while the run waits for them.
                    await _restart(client, started)
                shard.run_id, shard.heard_at = str(started.id), time.monotonic()
            await _follow(client, run, shards)
        finally:
            run.progress.waiting_shards = 0
            await _cancel(client, shards)
            unended: set[str] = {shard.key for shard in shards if not shard.is_over}
            try:
                await _wait_for_ends(client, shards, unended)
            finally:
                # Also if the wait is cancelled.
                for shard in shards:
                    if not shard.is_over:
                        await _collect(run, shard, _ending(shard, unended), is_last_try=True)
                _show(run, shards)


def _show(run: RunContext, shards: Sequence[Shard]) -> None:
    run.progress.show_shards(sum((shard.totals for shard in shards), RunTotals()))


async def _find_runs(client: PrefectClient, shards: Sequence[Shard]) -> dict[str, FlowRun]:
    """Return the runs of shards by the keys of their lists; shards that were never started have none."""
    keys = FlowRunFilterIdempotencyKey(any_=[shard.key for shard in shards])
    found = await client.read_flow_runs(flow_run_filter=FlowRunFilter(idempotency_key=keys))
    return {str(each.idempotency_key): each for each in found}


async def _restart(client: PrefectClient, found: FlowRun) -> None:
    message = "Its parent starts it again, and it continues its work."
    await client.set_flow_run_state(found.id, Scheduled(name="Restarting", message=message))


async def _follow(client: PrefectClient, run: RunContext, shards: Sequence[Shard]) -> None:
    """Wait until every shard has ended or is lost."""
    began_at, is_waiting = time.monotonic(), True
    while unfinished := [shard for shard in shards if not shard.is_over]:
        await asyncio.sleep(POLL_SECONDS)
        try:
            found = await _find_runs(client, unfinished)
        except httpx.HTTPError as exc:
            logger.warning("the Prefect server is away (%s): asking again", type(exc).__name__)
            continue
        for shard in unfinished:
            try:
                await _check(client, run, shard, found.get(shard.key))
            except httpx.HTTPError as exc:
                logger.warning("shard=%d is not restarted yet: %s", shard.number, type(exc).__name__)
        _show(run, shards)
        waiting = [each for each in found.values() if _type_of(each) == StateType.SCHEDULED]
        run.progress.waiting_shards = len(waiting)
        is_waiting = is_waiting and len(waiting) == len(found)
        if is_waiting and time.monotonic() - began_at > WAITING_SECONDS:
            logger.warning(
                "no worker has picked up a shard: raise the limit of the work pool or of its workers, or"
                " start another worker"
            )
            is_waiting = False


async def _check(client: PrefectClient, run: RunContext, shard: Shard, found: FlowRun | None) -> None:
    """Read the progress of a shard; restart it if it crashed, and collect its results if it is over."""
    state = found.state if found is not None else None
    if found is None or state is None:
        await _collect(run, shard, "its run was deleted")
        return
    if state.is_final() and not state.is_crashed():
        message = without_numbers(" ".join((state.message or "").split()))[:LONGEST_MESSAGE]
        await _collect(run, shard, f"its run ended as {state.name}", message)
        return
    try:
        header = await read_header(run.lake, shard.run_id)
    except StoreUnavailable:
        header = None  # the shard may be well
    if header is not None:
        shard.totals = header.totals
    sign = (state.id, header and header.alive_at)
    if sign != shard.sign:
        shard.sign, shard.heard_at = sign, time.monotonic()
    silence = time.monotonic() - shard.heard_at
    # A run may wait long for a worker.
    if state.is_scheduled() or silence <= (CRASHED_SECONDS if state.is_crashed() else SILENT_SECONDS):
        return
    if not state.is_crashed():
        silent = f"its run is {state.name}, and has given no sign of life for {SILENT_SECONDS:g} s"
        await _collect(run, shard, silent)
    elif found.run_count < MAX_TRIES:
        await _restart(client, found)
    else:
        await _collect(run, shard, f"its run ended as {state.name}")


async def _collect(
    run: RunContext, shard: Shard, state: str, message: str = "", *, is_last_try: bool = False
) -> None:
    """Count the results of a shard that is over, or later if the store does not answer now.

    Any other error costs this shard only: its conversations then count as not reached.
    """
    try:
        await collect_results(run, shard, state, message)
    except StoreUnavailable as exc:
        if not is_last_try and time.monotonic() - shard.heard_at <= SILENT_SECONDS:
            logger.warning("shard=%d: %s, trying again", shard.number, type(exc).__name__)
            return
        error = as_own_error(exc)
    except Exception as exc:  # noqa: BLE001 - see above
        error = as_own_error(exc)
    else:
        logger.info("shard=%d %s", shard.number, state)
        return
    problem = f"shard {shard.number} (run {shard.run_id or 'not started'}) cannot be collected: {error}"
    logger.warning("%s", problem)
    run.accounts.reasons.update(dict.fromkeys(shard.conversation_ids, f"not reached: {problem}"))
    run.failures.add_lost_shard(problem)
    shard.totals, shard.is_over = RunTotals(), True


async def _cancel(client: PrefectClient, shards: Sequence[Shard]) -> None:
    """Cancel every shard that has not ended, also one whose start the server has not confirmed."""

    async def cancel(found: FlowRun) -> None:
        # A run that waits for a worker has no process that could end it.
        ended = Cancelled if _type_of(found) == StateType.SCHEDULED else Cancelling
        await client.set_flow_run_state(found.id, ended(message="The run of this shard has ended."))

    try:
        found = (await _find_runs(client, shards)).values()
        await asyncio.gather(*(cancel(each) for each in found if each.state and not each.state.is_final()))
    except Exception as exc:  # noqa: BLE001 - each shard also checks whether its parent has ended
        logger.warning("unfinished shards are not cancelled: %s", type(exc).__name__)


async def _wait_for_ends(client: PrefectClient, shards: Sequence[Shard], unended: set[str]) -> None:
    """Wait until the cancelled runs of shards have ended, because they write their rows before that.

    Args:
        client: The client of the server.
        shards: All shards of the run.
        unended: The keys of the shards that are not over; those that end are removed.
    """
    until = time.monotonic() + ENDING_SECONDS
    while unended:
        try:
            found = await _find_runs(client, [shard for shard in shards if shard.key in unended])
        except httpx.HTTPError:
            found = None
        if found is not None:
            running = {key for key, each in found.items() if each.state and not each.state.is_final()}
            unended &= running
        if not unended or time.monotonic() >= until:
            break
        await asyncio.sleep(ENDING_POLL_SECONDS)
    if unended:
        logger.warning(
            "%s not ended within %g s: their last results are not in the counts of this run, but will be in"
            " their rows of the ledgers",
            plural(len(unended), "shard has", "shards have"),
            ENDING_SECONDS,
        )


def _ending(shard: Shard, unended: set[str]) -> str:
    """Return how a shard ended that was cancelled with its run."""
    if not shard.run_id:
        return "this run ended first"
    if shard.key in unended:
        return f"its run had not ended after {ENDING_SECONDS:g} s, so its last results are not known here"
    return "its run was ended with this one"


def _type_of(found: FlowRun) -> StateType | None:
    return found.state.type if found.state is not None else None
