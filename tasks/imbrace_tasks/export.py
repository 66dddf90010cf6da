"""The task that exports a chunk of conversations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from imbrace_lake.errors import ImbraceLakeError
from imbrace_lake.export.chunk import export_chunk
from imbrace_lake.export.run import RunContext
from imbrace_lake.printable import plural
from imbrace_tasks.retry import attempt, is_last_try


class ChunkUnfinished(ImbraceLakeError):
    """Some conversations of the chunk are to be retried; the others are published."""

    is_transient = True


@task(
    name="export-conversations",
    task_run_name="export-{name}",
    cache_policy=NO_CACHE,
    persist_result=False,
    retry_jitter_factor=0.3,
)
@attempt
async def export_conversations_chunk(
    run: RunContext, name: str, conversation_ids: Sequence[str]
) -> State[Any]:
    """Export a chunk of conversations; its entries go to the run's journal, not to Prefect."""
    result = await export_chunk(run, name, conversation_ids, is_last_try=is_last_try())
    if result.is_worth_retrying and not is_last_try():
        done = sum(result.statuses.values())
        raise ChunkUnfinished(
            f"{done} of {plural(len(conversation_ids), 'conversation')} done, the others will be retried"
        )
    message = ", ".join(f"{count} {status}" for status, count in sorted(result.statuses.items()))
    return Failed(message=message) if result.dead_letters else Completed(message=message)
