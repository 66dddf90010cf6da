"""Shows each report of a run once, although a run can start more than once.

A run that is resumed, restarted after a crash or started over by Prefect's *Retry* keeps the artifacts of its
earlier starts, and its page lists them in no order: the summary of a complete run beside an earlier one with
the verdict *Partial*.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId
from prefect.client.schemas.objects import Artifact
from prefect.context import FlowRunContext

from imbrace_flows.best_effort import best_effort
from imbrace_flows.deployment_run import is_deployment_run

PLAN, PROGRESS, SUMMARY = "export-plan", "-progress", "-summary"


@asynccontextmanager
async def earlier_reports_replaced() -> AsyncIterator[None]:
    """Remove the reports of earlier starts of this run that those of the block replace.

    A start that ends before it shows a report leaves them as they are.
    """
    context = FlowRunContext.get()
    found = context.flow_run if context is not None else None
    # The count includes this start, but not the resumption of a run. Only runs of deployments can be resumed.
    if found is None or (found.run_count <= 1 and not is_deployment_run()):
        yield
        return
    before: set[UUID] = set()
    with best_effort("which reports are those of earlier starts"):
        earlier = await _reports(found.id)
        before = {one.id for one in earlier}
        # The new one comes at the beginning.
        await _remove([one for one in earlier if (one.key or "").endswith(PROGRESS)])
    try:
        yield
    finally:
        with best_effort("the removal of earlier reports"):
            shown = await _reports(found.id)
            keys = {one.key or "" for one in shown if one.id not in before}
            is_closed = any(key.endswith(SUMMARY) for key in keys)
            # A resumed run does not make its plan again.
            replaced = [one for one in shown if one.key in keys or (is_closed and one.key != PLAN)]
            await _remove([one for one in replaced if one.id in before])


async def _reports(run_id: UUID) -> list[Artifact]:
    async with get_client() as client:
        return await client.read_artifacts(
            artifact_filter=ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run_id]))
        )


async def _remove(reports: list[Artifact]) -> None:
    async with get_client() as client:
        for one in reports:
            await client.delete_artifact(one.id)
