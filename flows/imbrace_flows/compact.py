"""The compaction: brings the tables of a lake up to date."""

# No `from __future__ import annotations`: `flow.serve()` sends the flow to the run's process without the
# globals that annotations in text would name, and no parameter is valid there.
from contextlib import nullcontext
from typing import Any
from uuid import uuid4

from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from prefect.states import Completed, Failed

from imbrace_flows.best_effort import best_effort
from imbrace_flows.blocks import Connection, ConversationLake, connect
from imbrace_flows.deployment_run import is_deployment_run
from imbrace_flows.flow import flow
from imbrace_flows.log import logger_of
from imbrace_flows.params import CompactParams
from imbrace_flows.pipeline import failed_early, show_log_lines, with_retries
from imbrace_flows.report import publish_compaction
from imbrace_flows.run_name import run_name
from imbrace_lake.errors import InputError
from imbrace_lake.lake.lake import open_lake
from imbrace_lake.printable import plural
from imbrace_lake.tables.delta_log import require_deltalake
from imbrace_lake.tables.report import describe
from imbrace_lake.tuning import TABLE_ALLOCATOR, tuned_process
from imbrace_tasks.compact import compact_tables
from imbrace_tasks.retry import TaskError, result_of

logger = logger_of("runs")


@flow(
    name="compact-tables",
    flow_run_name=run_name,
    description="Brings the tables of the lake up to date, from what has changed since the last compaction.",
    persist_result=False,
    validate_parameters=True,
)
async def compact_lake_tables(
    params: CompactParams,
    lake: ConversationLake | None = None,
) -> State[Any]:
    """Bring the tables of the lake up to date.

    Args:
        params: All fields can stay as they are.
        lake: The lake; by default from the settings of the worker.
    """
    show_log_lines()
    try:
        require_deltalake()
    except InputError as exc:
        # The schedule of a worker without the package is not a failure every hour.
        return Completed(name="Skipped", message=str(exc))
    try:
        # A worker starts a process for each run.
        with tuned_process(TABLE_ALLOCATOR) if is_deployment_run() else nullcontext():
            return await _compact(params, connect(None, lake, ()))
    except Exception as exc:  # noqa: BLE001 - nothing but its class may reach the orchestrator
        return failed_early(exc)


async def _compact(params: CompactParams, connection: Connection) -> State[Any]:
    settings = connection.settings
    async with open_lake(settings.require("lake"), now=None, options=connection.store) as lake:
        logger.info("lake %s", lake.url)
        run_id = str(flow_run.id or uuid4())
        compacting = with_retries(compact_tables, settings)
        state = await compacting(lake, run_id, params.dry_run, params.keep_hours, return_state=True)
        reports = result_of(state)
        if isinstance(reports, TaskError):
            return Failed(message=str(reports.error))
        with best_effort("the report of this compaction"):
            await publish_compaction(lake.url, reports)
    differences = sum(len(one.differences) for one in reports)
    if differences:
        named = plural(differences, "thing")
        return Failed(name="Differs", message=f"{named} differed, see the summary of this run")
    return Completed(message=describe(reports[0]))
