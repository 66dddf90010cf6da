"""A run that shows its plan, and reads only after an operator has approved it.

The run is suspended and not paused: while it waits it has no process, so it occupies neither a worker nor a
slot of its deployment, and its question survives a worker that dies. When it is resumed, it starts from the
beginning and reads the answer.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Literal

from prefect.artifacts import acreate_markdown_artifact
from prefect.context import FlowRunContext
from prefect.flow_runs import asuspend_flow_run
from prefect.input import RunInput
from pydantic import Field

from imbrace_flows.deployment_run import is_deployment_run
from imbrace_flows.log import logger_of
from imbrace_flows.words import as_code
from imbrace_lake.errors import ImbraceLakeError, UsageError
from imbrace_lake.export.plan import Plan
from imbrace_lake.printable import plural

logger = logger_of("runs")

PLAN_KEY = "export-plan"
QUESTION = "approve-plan"
APPROVAL_TIMEOUT = timedelta(hours=24)


class Declined(ImbraceLakeError):
    """An operator declined the plan; nothing was read into the lake."""


class Approval(RunInput):
    """The form of the button *Resume*."""

    decision: Literal["approve", "decline"] = Field(
        title="Decision", description="approve reads as planned, decline ends the run."
    )


def require_deployment() -> None:
    """Make sure that an operator can answer, before any request to the gateway.

    Raises:
        UsageError: The run does not belong to a deployment, so no worker could continue it.
    """
    if not is_deployment_run():
        raise UsageError(
            "only a run of a deployment can ask before it reads: leave `ask_first` out, and see the plan"
            " with `imbrace-lake plan`"
        )


def was_asked() -> bool:
    """Whether this run has asked before, and is now resumed."""
    context = FlowRunContext.get()
    policy = context.flow_run.empirical_policy if context and context.flow_run else None
    return policy is not None and QUESTION in (policy.pause_keys or ())


def plan_markdown(plan: Plan, *, reads: str, lake: str, organization: str) -> str:
    """Return the page of a plan; it contains no phone number.

    It is a list, because the dialog truncates the lines of a table.

    Args:
        plan: The plan.
        reads: The name of the list, or what else the run would read.
        lake: The address of the lake, without credentials.
        organization: The id of the organization.
    """
    target = as_code(lake) + ("" if plan.lake_exists else " (does not exist yet)")
    about = [("conversations of", as_code(reads)), ("lake", target), ("organization", as_code(organization))]
    if requester := _requester():
        about.append(("requested by", as_code(requester)))
    rows = (f"- **{name}:** {value}" for name, value in [*about, *plan.rows()])
    remark = f"An estimate, which took {plural(plan.planning_requests, 'more request')}. Nothing was written."
    return "\n".join(["The run would read", "", *rows, "", remark])


def _requester() -> str | None:
    """Return who started the run, if the server knows: one without accounts knows only automations."""
    context = FlowRunContext.get()
    creator = context.flow_run.created_by if context and context.flow_run else None
    return creator.display_value or creator.type if creator is not None else None


async def publish_plan(page: str) -> None:
    """Show the plan as an artifact of the run."""
    description = "What the run would read, and what that would cost"
    await acreate_markdown_artifact(page, key=PLAN_KEY, description=description)


async def wait_for_approval(page: str | None) -> None:
    """Suspend the run until an operator answers; in a resumed run, read the answer.

    Args:
        page: The plan to approve; None in a resumed run.

    Raises:
        Declined: The answer is no.
    """
    answer = await asuspend_flow_run(
        wait_for_input=Approval.with_initial_data(description=page),
        timeout=int(APPROVAL_TIMEOUT.total_seconds()),
        key=QUESTION,
    )
    if answer.decision == "decline":
        raise Declined("declined: the plan was not approved, and nothing was read into the lake")
    logger.info("the plan was approved")
