"""The task that finds the conversations of a slice of the phone numbers."""

from __future__ import annotations

import asyncio
import math
import time
from typing import Any

import pyarrow as pa
from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.states import Completed

from imbrace_lake.errors import TimeOver, as_own_error
from imbrace_lake.export.resolve import Recording, resolve_numbers
from imbrace_lake.export.run import RunContext
from imbrace_lake.printable import plural
from imbrace_tasks.retry import attempt, is_last_try


@task(
    name="resolve-phones",
    task_run_name="resolve-{name}",
    cache_policy=NO_CACHE,
    persist_result=False,
    retry_jitter_factor=0.3,
)
@attempt
async def resolve_phones(run: RunContext, recording: Recording, name: str, numbers: pa.Table) -> State[Any]:
    """Resolve a slice of the numbers; the result is a `ResolveResult`."""
    try:
        async with asyncio.timeout(None if run.until == math.inf else run.until - time.monotonic()):
            result = await resolve_numbers(run.gateway, run.journal, recording, name, numbers)
    except TimeoutError:
        raise TimeOver from None
    if result.error is not None and not is_last_try():
        raise as_own_error(result.error)
    run.progress.numbers_resolved += sum(result.statuses[status] for status in ("resolved", "none", "error"))
    counts = ", ".join(f"{count} {status}" for status, count in sorted(result.statuses.items()))
    found = plural(len(result.conversation_ids), "conversation")
    return Completed(message=f"{counts}; {found}", data=result)
