"""The backfill: reads conversations again, completely or for a window of time."""

# No `from __future__ import annotations`: `flow.serve()` sends the flow to the run's process without the
# globals that annotations in text would name, and no parameter is valid there.
from typing import Any

from prefect.client.schemas.objects import State

from imbrace_flows.blocks import ConversationLake, ImbraceCredentials, connect
from imbrace_flows.cancellation import shard_cancelled
from imbrace_flows.flow import flow
from imbrace_flows.params import BackfillParams, ShardParams
from imbrace_flows.pipeline import Selection, read_conversations, run_flow
from imbrace_flows.run_name import run_name
from imbrace_lake.export.visits import BudgetGiven
from imbrace_lake.policy import Window


@flow(
    name="backfill-conversations",
    flow_run_name=run_name,
    description="Reads conversations again, completely or for a window of time, and updates the lake.",
    persist_result=False,
    validate_parameters=True,
)
async def backfill_conversations(
    params: BackfillParams,
    credentials: ImbraceCredentials | None = None,
    lake: ConversationLake | None = None,
) -> State[Any]:
    """Read conversations again and update the lake.

    Args:
        params: Switch Everything on, or fill in one of the next three fields; a window of time is optional.
        credentials: Organization and token; by default from the settings of the worker.
        lake: The lake; by default from the settings of the worker.
    """
    # After zero days, every conversation is due for a full walk.
    rewalk_days = 0.0 if params.walk_whole else None
    return await run_flow(
        lambda observer: read_conversations(
            Selection(
                phones=params.phones,
                numbers=params.typed(),
                conversations=params.conversations,
                rerun=params.rerun,
                is_everything=params.everything,
                column=params.column,
                sheet=params.sheet,
                window=Window(params.since, params.until),
                is_new_only=not params.walk_whole,
                budget=BudgetGiven(params.budget, params.minutes),
            ),
            params,
            connect(credentials, lake, **params.settings(), rewalk_days=rewalk_days),
            observer,
            ask_first=params.ask_first,
        )
    )


@flow(
    name="export-shard",
    description="Exports one shard of a large run, which starts it.",
    persist_result=False,
    validate_parameters=True,
)
async def export_shard(
    params: ShardParams,
    credentials: ImbraceCredentials | None = None,
    lake: ConversationLake | None = None,
) -> State[Any]:
    """Export one shard of a large run.

    Args:
        params: The run, and its list of conversations.
        credentials: Organization and token; by default from the settings of the worker.
        lake: The lake; by default from the settings of the worker.
    """
    rewalk_days = 0.0 if params.walk_whole else None
    return await run_flow(
        lambda observer: read_conversations(
            Selection(
                conversations=params.conversations,
                parent_run=params.parent_run,
                window=Window(params.since, params.until),
            ),
            params,
            connect(credentials, lake, **params.settings(), rewalk_days=rewalk_days),
            observer,
        ),
        shard_cancelled(params.parent_run),
    )
