"""The task that brings the tables of a lake up to date."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from imbrace_lake.export.run import utc_now
from imbrace_lake.lake.lake import Lake
from imbrace_lake.tables.compact import compact_lake
from imbrace_lake.tables.report import describe
from imbrace_tasks.retry import attempt


@task(name="compact-tables", cache_policy=NO_CACHE, persist_result=False, retry_jitter_factor=0.3)
@attempt
async def compact_tables(lake: Lake, run_id: str, is_dry_run: bool, keep_hours: float) -> State[Any]:
    """Bring the tables of a lake up to date; the result is a list of `TableReport`."""
    grace = timedelta(hours=keep_hours)
    reports = await compact_lake(lake, run_id, utc_now, is_dry_run=is_dry_run, grace=grace)
    message = describe(reports[0])
    if any(one.differences for one in reports):
        return Failed(name="Differs", message=message, data=reports)
    return Completed(message=message, data=reports)
