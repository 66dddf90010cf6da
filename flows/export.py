"""The export: phone numbers in, a complete lake out, seen in Prefect while it works and after."""

# No `from __future__ import annotations`: `flow.serve()` sends the flow to the run's process without the
# globals that annotations in text would name, and no parameter is valid there.
from datetime import UTC, datetime
from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run

from flows.observer import Observer
from flows.params import ExportParams
from flows.pipeline import Selection, read_conversations, run_flow
from imbrace_lake.export.runs import RunSummary
from imbrace_lake.settings import load_settings


def _run_name() -> str:
    organization = flow_run.parameters["params"].organization or "default"
    return f"export-{organization}-{datetime.now(UTC):%Y-%m-%d-%H%M%S}"


@flow(
    name="export-conversations",
    flow_run_name=_run_name,
    description="Exports every conversation of a list of phone numbers into the lake, proven complete.",
    persist_result=False,
    validate_parameters=True,
)
async def export_conversations(params: ExportParams) -> State[Any]:
    """Export every conversation of a list of phone numbers into the lake, proven complete.

    Args:
        params: Which numbers, from which gateway, into which lake.
    """

    async def work(observer: Observer) -> RunSummary:
        settings = load_settings(
            organization=params.organization,
            lake=params.lake,
            gateway=params.gateway,
            region=params.region,
            chunk_size=params.chunk_size,
        )
        selection = Selection(phones=params.phones, rerun=params.rerun, column=params.column)
        return await read_conversations(selection, params, settings, observer)

    return await run_flow(params, work)
