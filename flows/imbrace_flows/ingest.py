"""The ingestion: adds new messages of every conversation that the lake knows, run after run."""

# No `from __future__ import annotations`: `flow.serve()` sends the flow to the run's process without the
# globals that annotations in text would name, and no parameter is valid there.
from collections.abc import Awaitable
from typing import Any

from prefect.client.schemas.objects import State

from imbrace_flows.blocks import ConversationLake, ImbraceCredentials, connect
from imbrace_flows.flow import flow
from imbrace_flows.observer import Observer, RunResult
from imbrace_flows.params import ChangedParams, IngestParams
from imbrace_flows.pipeline import Selection, read_conversations, run_flow
from imbrace_flows.run_name import run_name
from imbrace_lake.export.visits import BudgetGiven


@flow(
    name="ingest-conversations",
    flow_run_name=run_name,
    description="Adds new messages of every conversation the lake knows, and of those of a list of numbers.",
    persist_result=False,
    validate_parameters=True,
)
async def ingest_conversations(
    params: IngestParams,
    credentials: ImbraceCredentials | None = None,
    lake: ConversationLake | None = None,
) -> State[Any]:
    """Add new messages of every conversation that the lake knows, and of those of a list of numbers.

    Args:
        params: The list, if any; new conversations are found only through it.
        credentials: Organization and token; by default from the settings of the worker.
        lake: The lake; by default from the settings of the worker.
    """

    def work(observer: Observer) -> Awaitable[RunResult]:
        connection = connect(credentials, lake, **params.settings())
        selection = Selection(
            phones=params.phones,
            column=params.column,
            sheet=params.sheet,
            is_everything=True,
            budget=BudgetGiven(connection.settings.budget, params.minutes, is_automatic=True),
        )
        return read_conversations(selection, params, connection, observer)

    return await run_flow(work)


@flow(
    name="ingest-changed-conversations",
    flow_run_name=run_name,
    description="Adds new messages of the conversations that an event names, before the next ingestion.",
    persist_result=False,
    validate_parameters=True,
)
async def ingest_changed(
    params: ChangedParams,
    credentials: ImbraceCredentials | None = None,
    lake: ConversationLake | None = None,
) -> State[Any]:
    """Add new messages of some conversations at once.

    Args:
        params: Conversations whose new messages are read before the next ingestion.
        credentials: Organization and token; by default from the settings of the worker.
        lake: The lake; by default from the settings of the worker.
    """
    return await run_flow(
        lambda observer: read_conversations(
            Selection(ids=params.ids()), params, connect(credentials, lake, **params.settings()), observer
        )
    )
