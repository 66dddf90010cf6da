"""The verification: compares the objects of a lake with their hashes, and counts with the gateway."""

# No `from __future__ import annotations`: `flow.serve()` sends the flow to the run's process without the
# globals that annotations in text would name, and no parameter is valid there.
from datetime import timedelta
from typing import Any

from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from imbrace_flows.best_effort import best_effort
from imbrace_flows.blocks import Connection, ConversationLake, ImbraceCredentials, connect
from imbrace_flows.events import emit_stale, warn_of_expiry
from imbrace_flows.flow import flow
from imbrace_flows.log import logger_of
from imbrace_flows.params import VerifyParams
from imbrace_flows.pipeline import failed_early, show_log_lines, with_retries
from imbrace_flows.report import publish_freshness, publish_verification
from imbrace_flows.run_name import run_name
from imbrace_lake.export.run import utc_now
from imbrace_lake.export.visits import BudgetGiven, VisitReport, read_visits
from imbrace_lake.lake.freshness import count_stale, read_freshness
from imbrace_lake.lake.lake import Lake, open_lake
from imbrace_lake.printable import plural, printable
from imbrace_lake.settings import Settings
from imbrace_lake.verify.findings import Verification
from imbrace_tasks.budget import read_shared_limit
from imbrace_tasks.retry import TaskError, result_of
from imbrace_tasks.verify import verify_lake_counts, verify_lake_objects

logger = logger_of("runs")


@flow(
    name="verify-lake",
    flow_run_name=run_name,
    description="Compares every object of the lake with its hash, and on request counts with the gateway.",
    persist_result=False,
    validate_parameters=True,
)
async def verify_lake(
    params: VerifyParams,
    credentials: ImbraceCredentials | None = None,
    lake: ConversationLake | None = None,
) -> State[Any]:
    """Verify the objects of the lake, and find out how old its proofs are.

    Args:
        params: Whether to compare counts with the gateway, and the age of a stale proof.
        credentials: Organization and token; by default from the settings of the worker.
        lake: The lake; by default from the settings of the worker.
    """
    show_log_lines()
    try:
        needed = ("token", "organization") if params.counts else ("organization",)
        return await _verify(params, connect(credentials, lake, needed))
    except Exception as exc:  # noqa: BLE001 - nothing but its class may reach the orchestrator
        return failed_early(exc)


async def _verify(params: VerifyParams, connection: Connection) -> State[Any]:
    settings = connection.settings
    organization = settings.require("organization")
    async with open_lake(settings.require("lake"), now=None, options=connection.store) as lake:
        logger.info("organization %s, lake %s", printable(organization), lake.url)
        states = [await with_retries(verify_lake_objects, settings)(lake, return_state=True)]
        if params.counts:
            warn_of_expiry(settings)
            counting = with_retries(verify_lake_counts, settings)
            states.append(await counting(lake, settings, return_state=True))
        objects, *counts = [result_of(state) for state in states]
        if isinstance(objects, TaskError):
            return Failed(message=str(objects.error))
        # The result of the hash check is shown also without an answer of the gateway.
        uncounted = "".join(
            f"{one.error}. {one.error.advice}" for one in counts if isinstance(one, TaskError)
        )
        ages = await read_freshness(lake, organization, utc_now())
        found = _merge_results([objects, *(one for one in counts if not isinstance(one, TaskError))])
        with best_effort("the report of this verification"):
            await publish_verification(lake.url, found, ages, uncounted)
        visits = None
        with best_effort("the forecast of the next runs"):
            visits = await _look_ahead(lake, organization, settings)
            await publish_freshness(visits)
        stale = 0
        if params.stale_hours is not None:
            limit = timedelta(hours=params.stale_hours)
            stale = count_stale(ages, limit)
            if stale:
                with best_effort("the event about stale proofs"):
                    emit_stale(lake.url, organization, ages, limit)
        state = _ended(found, stale, params.stale_hours)
        if uncounted:
            name = state.name if state.is_failed() else "Failed"
            message = f"the counts could not be compared with the gateway: {uncounted} {state.message}"
            return Failed(name=name, message=message)
        if visits is not None:
            state.message = "; ".join([str(state.message), *visits.ages()])
        return state


async def _look_ahead(lake: Lake, organization: str, settings: Settings) -> VisitReport:
    """Return the ages of all proofs, and what the next ingestions achieve."""
    limits = [settings.requests_per_second, await read_shared_limit(settings)]
    policy, now = settings.revisit_policy(), utc_now()
    given = BudgetGiven(settings.budget, is_automatic=True)
    requests, _ = given.limits(min((one for one in limits if one), default=None), policy)
    return (await read_visits(lake, organization, policy, now, requests)).report(now, (), (), "")


def _merge_results(results: list[Verification]) -> Verification:
    """Merge the results of several checks."""
    return Verification(
        parts=sum(one.parts for one in results),
        ledger_objects=sum(one.ledger_objects for one in results),
        unrecorded=sum(one.unrecorded for one in results),
        table_files=sum(one.table_files for one in results),
        tables_not_verified=next(
            (one.tables_not_verified for one in results if one.tables_not_verified), None
        ),
        counts=next((one.counts for one in results if one.counts is not None), None),
        without_count=sum(one.without_count for one in results),
        not_of_organization=next((one.not_of_organization for one in results if one.not_of_organization), {}),
        differences=[difference for one in results for difference in one.differences],
    )


def _ended(found: Verification, stale: int, stale_hours: float | None) -> State[Any]:
    """Return the final state, with the result in one sentence."""
    objects = found.parts + found.ledger_objects
    message = ""
    if stale:
        hours = "hour" if stale_hours == 1 else f"{stale_hours:g} hours"
        conversations = plural(stale, "conversation has", "conversations have")
        message = f"; {conversations} no proof of the last {hours}"
    if found.is_sound:
        as_written = plural(objects, "object is as it was", "objects are as they were")
        return Completed(message=f"{as_written} written{message}")
    named = plural(len(found.differences), "thing differs", "things differ")
    return Failed(name="Differs", message=f"{named}, see the table of this run{message}")
