"""Whether this run belongs to a deployment or was started by a command."""

from __future__ import annotations

from prefect.context import FlowRunContext


def is_deployment_run() -> bool:
    """Whether this run belongs to a deployment.

    `prefect.runtime.deployment` asks the server again, for a seventh of a second, if it is not.
    """
    context = FlowRunContext.get()
    return bool(context and context.flow_run and context.flow_run.deployment_id)
