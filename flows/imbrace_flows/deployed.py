"""Whether a worker runs this for a deployment, or a person does on the spot."""

from __future__ import annotations

from prefect.context import FlowRunContext


def is_deployed() -> bool:
    """Whether this run is one of a deployment.

    `prefect.runtime.deployment` asks the server anew, for a seventh of a second, if it is not.
    """
    context = FlowRunContext.get()
    return bool(context and context.flow_run and context.flow_run.deployment_id)
