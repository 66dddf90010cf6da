"""A shard: the part of a large run that a manifest in the lake describes, exported by a run of its own."""

# No `from __future__ import annotations`: `flow.serve()` sends the flow to the run's process without the
# globals that annotations in text would name, and no parameter is valid there.
from collections import Counter
from typing import Any

from prefect.client.schemas.objects import State, StateType
from prefect.runtime import flow_run

from imbrace_flows.blocks import Connection, ConversationLake, ImbraceCredentials, connect
from imbrace_flows.cancellation import cancelled_with
from imbrace_flows.flow import flow
from imbrace_flows.observer import Observer, RunResult
from imbrace_flows.params import ShardParams
from imbrace_flows.pipeline import attempted, closed, export_chunks, run_flow
from imbrace_lake.errors import UsageError
from imbrace_lake.export.recovery import work_fingerprint
from imbrace_lake.export.run import RunContext, RunSummary, close_run, open_run
from imbrace_lake.export.shards import Manifest, read_manifest
from imbrace_lake.lake.lake import open_lake
from imbrace_lake.settings import Settings
from imbrace_tasks.budget import open_gateway


@flow(
    name="export-shard",
    description="Exports one shard of a large run; started by that run.",
    persist_result=False,
    validate_parameters=True,
)
async def export_shard(
    params: ShardParams,
    credentials: ImbraceCredentials | None = None,
    lake: ConversationLake | None = None,
) -> State[Any]:
    """Export one shard of a large run, which starts it and says how all of them ended.

    Args:
        params: Which shard.
        credentials: As the run has them; the worker's settings if left out.
        lake: As the run has it; the worker's settings if left out.
    """

    async def work(observer: Observer) -> RunResult:
        return await _export(params, connect(credentials, lake), observer)

    return await run_flow(work)


async def _export(params: ShardParams, connection: Connection, observer: Observer) -> RunResult:
    """Export what the manifest names.

    Raises:
        ImbraceLakeError: The run could not begin; nothing was written.
    """
    settings = connection.settings
    # Not made: a lake without the manifest is not the lake of the run.
    async with open_lake(settings.require("lake"), now=None, options=connection.store) as lake:
        manifest = await read_manifest(lake, params.manifest)
    check_manifest(manifest, params, settings.require("organization"))
    async with (
        # A run that was killed while it was being cancelled could not cancel its shards.
        cancelled_with(manifest.run_id, StateType.FAILED),
        open_gateway(settings) as gateway,
        open_run(
            settings,
            gateway,
            str(flow_run.id),
            window=manifest.window,
            policy=manifest.policy,
            drift=manifest.drift,
            accept_repeats=manifest.accept_repeats,
            progress=observer.progress,
            store_options=connection.store,
        ) as run,
    ):
        failure, is_cancelled = await attempted(_read(run, settings, manifest), run.progress)
        closing = _close(run, manifest, failure, is_cancelled=is_cancelled)
        summary = await closed(run, closing, failure, is_cancelled=is_cancelled)
        return RunResult(summary)


async def _close(
    run: RunContext, manifest: Manifest, failure: str | None, *, is_cancelled: bool
) -> RunSummary:
    if run.accounts.found is None:
        await run.recall()
        await run.found(manifest.conversation_ids)
    return await close_run(
        run,
        {"run": manifest.run_id, "shard": manifest.shard},
        Counter(),
        tolerated_share=manifest.tolerated_share,
        failure=failure,
        is_cancelled=is_cancelled,
        keep_days=True,
    )


async def _read(run: RunContext, settings: Settings, manifest: Manifest) -> None:
    ids = manifest.conversation_ids
    await run.load_prior_state(work_fingerprint(ids, run.organization_id, run.window, run.policy))
    await export_chunks(run, settings, await run.found(ids), manifest.chunk_size)
    if run.fatal is not None:
        raise run.fatal


def check_manifest(manifest: Manifest, params: ShardParams, organization: str) -> None:
    """Make sure that the worker reads what the run would read.

    Raises:
        UsageError: It would not.
    """
    if manifest.organization_id != organization:
        raise UsageError(
            f"this worker reads the organization {organization}, and the run of this shard reads"
            f" {manifest.organization_id}: give both the same credentials"
        )
    if manifest.shard != params.shard:
        raise UsageError(f"{params.manifest} is of shard {manifest.shard}, not of shard {params.shard}")
