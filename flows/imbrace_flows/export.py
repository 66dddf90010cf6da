"""The export: reads the conversations of phone numbers into the lake."""

# No `from __future__ import annotations`: `flow.serve()` sends the flow to the run's process without the
# globals that annotations in text would name, and no parameter is valid there.
from typing import Any

from prefect.client.schemas.objects import State

from imbrace_flows.blocks import ConversationLake, ImbraceCredentials, connect
from imbrace_flows.flow import flow
from imbrace_flows.params import ExportParams, RetryParams, UploadParams
from imbrace_flows.pipeline import Selection, read_conversations, run_flow
from imbrace_flows.run_name import run_name


@flow(
    name="export-conversations",
    flow_run_name=run_name,
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
        params: Fill in one of the first two fields. Everything else can stay as it is.
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


@flow(
    name="export-uploaded-list",
    flow_run_name=run_name,
    description="Exports the list of phone numbers that an event names.",
    persist_result=False,
    validate_parameters=True,
)
async def export_uploaded_list(
    params: UploadParams,
    credentials: ImbraceCredentials | None = None,
    lake: ConversationLake | None = None,
) -> State[Any]:
    """Export every conversation of the list that an event names.

    Args:
        params: A list of phone numbers.
        credentials: Organization and token; by default from the settings of the worker.
        lake: The lake; by default from the settings of the worker.
    """
    return await run_flow(
        lambda observer: read_conversations(
            Selection(phones=params.phones, column=params.column, sheet=params.sheet),
            params,
            connect(credentials, lake, **params.settings()),
            observer,
        )
    )


@flow(
    name="retry-failures",
    flow_run_name=run_name,
    description="Exports again what an earlier run could not export.",
    persist_result=False,
    validate_parameters=True,
)
async def retry_failures(
    params: RetryParams,
    credentials: ImbraceCredentials | None = None,
    lake: ConversationLake | None = None,
) -> State[Any]:
    """Export again what an earlier run could not export.

    Args:
        params: A run that ended as Partial or Failed, or a backfill that was cancelled.
        credentials: Organization and token; by default from the settings of the worker.
        lake: The lake; by default from the settings of the worker.
    """
    return await run_flow(
        lambda observer: read_conversations(
            Selection(rerun=params.rerun),
            params,
            connect(credentials, lake, **params.settings()),
            observer,
        )
    )
