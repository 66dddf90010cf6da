"""The export: reads the conversations of phone numbers into the lake."""

# No `from __future__ import annotations`: `flow.serve()` sends the flow to the run's process without the
# globals that annotations in text would name, and no parameter is valid there.
from datetime import UTC, datetime
from typing import Any

from prefect.client.schemas.objects import State
from prefect.runtime import flow_run

from imbrace_flows.blocks import ConversationLake, ImbraceCredentials, connect, organization_in_force
from imbrace_flows.flow import flow
from imbrace_flows.params import ExportParams
from imbrace_flows.pipeline import Selection, read_conversations, run_flow


def _run_name() -> str:
    return f"export-{organization_in_force(flow_run.parameters)}-{datetime.now(UTC):%Y-%m-%d-%H%M%S}"


@flow(
    name="export-conversations",
    flow_run_name=_run_name,
    description="Exports every conversation of a list of phone numbers into the lake, proven complete.",
    persist_result=False,
    validate_parameters=True,
)
async def export_conversations(
    params: ExportParams,
    credentials: ImbraceCredentials | None = None,
    lake: ConversationLake | None = None,
) -> State[Any]:
    """Export every conversation of a list of phone numbers into the lake, proven complete.

    Args:
        params: The numbers.
        credentials: Organization and token; by default from the settings of the worker.
        lake: The lake; by default from the settings of the worker.
    """
    return await run_flow(
        lambda observer: read_conversations(
            Selection(
                phones=params.phones,
                numbers=params.typed(),
                rerun=params.rerun,
                column=params.column,
                sheet=params.sheet,
            ),
            params,
            connect(credentials, lake, **params.settings()),
            observer,
            ask_first=params.ask_first,
        )
    )
