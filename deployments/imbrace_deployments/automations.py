"""Automations for runs whose worker or process dies.

An open-source server leaves a run "Running" for ever when its worker dies. When only its process dies, the
worker says so twice (in Prefect 3.9 too), the second time after it has loaded the flow for its hooks. That
would end a run that has been started again meanwhile, so a crashed run waits in a state of its own until
nobody speaks any more.
"""

from __future__ import annotations

from datetime import timedelta

from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture

TAG = "imbrace-lake"
# Three times the PREFECT_FLOWS_HEARTBEAT_FREQUENCY of prefect.yaml.
SILENCE = timedelta(seconds=90)
# A busy machine was seen to take 12 s to say for the second time that a process had died.
PAUSE = timedelta(seconds=30)
LONGEST_RUN = timedelta(days=7)
WAITING = "AwaitingRestart"

# Only runs of our deployments have the tag.
_OURS = {"prefect.resource.role": "tag", "prefect.resource.id": f"prefect.tag.{TAG}"}
_ENDS = ("Completed", "Failed", "Partial", "Differs", "TimedOut", "Cancelled", "Declined", "Crashed")
# A run that waits for an answer has no process, and so no heartbeat.
_SILENT = (*_ENDS, "Suspended")


def automations(silence: timedelta = SILENCE, pause: timedelta = PAUSE) -> list[AutomationCore]:
    """What a server needs, so that a run outlives its worker.

    Args:
        silence: How long a run may be without a heartbeat before it counts as dead.
        pause: How long one that crashed waits before it starts again.
    """
    seconds = f"{silence.total_seconds():g} s"
    return [
        AutomationCore(
            name="imbrace-lake-mark-dead-runs",
            description=f"A run without a heartbeat for {seconds} has lost its worker: it crashed.",
            tags=[TAG],
            trigger=EventTrigger(
                posture=Posture.Proactive,
                threshold=1,
                within=silence,
                match={"prefect.resource.id": "prefect.flow-run.*"},
                match_related=_OURS,
                for_each={"prefect.resource.id"},
                after={"prefect.flow-run.heartbeat"},
                expect={"prefect.flow-run.heartbeat", *(f"prefect.flow-run.{name}" for name in _SILENT)},
            ),
            actions=[
                ChangeFlowRunState(
                    state=StateType.CRASHED, message=f"No heartbeat for {seconds}, so its worker is gone."
                )
            ],
        ),
        AutomationCore(
            name="imbrace-lake-restart-crashed-runs-once",
            description="A run that crashed at its first try is to start again.",
            tags=[TAG],
            trigger=EventTrigger(
                posture=Posture.Reactive,
                threshold=1,
                within=LONGEST_RUN,
                # A second try has count 2. One that crashes before it runs still has count 1, but no run
                # of its own before it: without `after`, it would be started again for ever.
                match={"prefect.resource.id": "prefect.flow-run.*", "prefect.run-count": "1"},
                match_related=_OURS,
                for_each={"prefect.resource.id"},
                after={"prefect.flow-run.Running"},
                expect={"prefect.flow-run.Crashed"},
            ),
            actions=[
                ChangeFlowRunState(
                    state=StateType.CRASHED,
                    name=WAITING,
                    message=f"It crashed, and starts again in {pause.total_seconds():g} s.",
                    # From one crashed state to another only by force.
                    force=True,
                )
            ],
        ),
        AutomationCore(
            name="imbrace-lake-restart-runs",
            description="A run that waits to be restarted starts again where it stood.",
            tags=[TAG],
            trigger=EventTrigger(
                posture=Posture.Proactive,
                threshold=1,
                within=pause,
                match={"prefect.resource.id": "prefect.flow-run.*"},
                match_related=_OURS,
                for_each={"prefect.resource.id"},
                after={f"prefect.flow-run.{WAITING}"},
                # Somebody may have started it by hand.
                expect={"prefect.flow-run.Pending", "prefect.flow-run.Running"},
            ),
            actions=[
                ChangeFlowRunState(
                    state=StateType.SCHEDULED,
                    name="Restarting",
                    message="It crashed, and starts again where it stood; once.",
                )
            ],
        ),
    ]
