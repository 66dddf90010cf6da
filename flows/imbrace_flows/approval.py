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
from imbrace_lake.errors import ImbraceLakeError, UsageError
from imbrace_lake.export.plan import Plan

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


async def publish_plan(plan: Plan) -> None:
    """Show the plan as an artifact of the run; it contains no phone number."""
    await acreate_markdown_artifact(
        plan_markdown(plan), key=PLAN_KEY, description="What the run would read, and what that would cost"
    )


def plan_markdown(plan: Plan) -> str:
    """Return the plan as a list, because the dialog truncates the lines of a table."""
    rows = (f"- **{name}:** {value}" for name, value in plan.rows())
    remark = f"An estimate; it took {plan.planning_requests:,} of these requests. Nothing was written."
    return "\n".join(["The run would read", "", *rows, "", remark])


async def wait_for_approval(plan: Plan | None) -> None:
    """Suspend the run until an operator answers; in a resumed run, read the answer.

    Args:
        plan: The plan to approve; None in a resumed run.

    Raises:
        Declined: The answer is no.
    """
    description = None if plan is None else plan_markdown(plan)
    answer = await asuspend_flow_run(
        wait_for_input=Approval.with_initial_data(description=description),
        timeout=int(APPROVAL_TIMEOUT.total_seconds()),
        key=QUESTION,
    )
    if answer.decision == "decline":
        raise Declined("declined: the plan was not approved, and nothing was read into the lake")
