"""Automations for runs whose worker or process dies.

An open-source server leaves a run "Running" for ever when its worker dies. When only its process dies, the
worker reports that twice (in Prefect 3.9 too), the second time after it has loaded the flow for its hooks.
The second report would end a run that was restarted meanwhile, so a crashed run waits in a separate state
until the second report has come.
"""

from __future__ import annotations

from datetime import timedelta
from uuid import UUID

from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture

TAG = "imbrace-lake"
# Three times the PREFECT_FLOWS_HEARTBEAT_FREQUENCY of prefect.yaml.
SILENCE = timedelta(seconds=90)
# On a busy machine, 12 s were measured between the two reports of a dead process.
PAUSE = timedelta(seconds=30)
LONGEST_RUN = timedelta(days=7)
WAITING = "AwaitingRestart"

# Only runs of our deployments have the tag.
OURS = {"prefect.resource.role": "tag", "prefect.resource.id": f"prefect.tag.{TAG}"}
_ENDS = (
    "Completed", "Completed with unreadable input", "Failed", "Partial", "Differs", "TimedOut", "Cancelled",
    "Declined", "Crashed",
)  # fmt: skip
# What follows the crash of a run that is started again, by an automation or by hand.
RESTARTED = (WAITING, "Restarting", "AwaitingRetry", "Scheduled", "Pending", "Running")
# A run that waits for an answer or for a worker has no process and sends no heartbeat.
_SILENT = (*_ENDS, "Suspended", "Restarting")


def automations(silence: timedelta = SILENCE, pause: timedelta = PAUSE) -> list[AutomationCore]:
    """Return the automations that let a run survive its worker.

    Args:
        silence: How long a run may send no heartbeat before it is considered dead.
        pause: How long a crashed run waits before it is restarted.
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
                match_related=OURS,
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
            description="A run that crashes in its first attempt is to be restarted.",
            tags=[TAG],
            trigger=EventTrigger(
                posture=Posture.Reactive,
                threshold=1,
                within=LONGEST_RUN,
                # A second attempt has count 2. An attempt that crashes before it runs still has count 1, but
                # no state Running before: without `after`, it would be restarted for ever.
                match={"prefect.resource.id": "prefect.flow-run.*", "prefect.run-count": "1"},
                match_related=OURS,
                for_each={"prefect.resource.id"},
                after={"prefect.flow-run.Running"},
                expect={"prefect.flow-run.Crashed"},
            ),
            actions=[
                ChangeFlowRunState(
                    state=StateType.CRASHED,
                    name=WAITING,
                    message=f"The run crashed, and is restarted in {pause.total_seconds():g} s.",
                    # Only by force can a crashed state follow another.
                    force=True,
                )
            ],
        ),
        AutomationCore(
            name="imbrace-lake-restart-runs",
            description="A crashed run is restarted after a pause and continues its work.",
            tags=[TAG],
            trigger=EventTrigger(
                posture=Posture.Proactive,
                threshold=1,
                within=pause,
                match={"prefect.resource.id": "prefect.flow-run.*"},
                match_related=OURS,
                for_each={"prefect.resource.id"},
                after={f"prefect.flow-run.{WAITING}"},
                # An operator may have started it by hand.
                expect={"prefect.flow-run.Pending", "prefect.flow-run.Running"},
            ),
            actions=[
                ChangeFlowRunState(
                    state=StateType.SCHEDULED,
                    name="Restarting",
                    message="The run crashed, and is restarted once; it continues its work.",
                )
            ],
        ),
    ]


async def replace_automation(client: PrefectClient, automation_id: UUID, wanted: AutomationCore) -> None:
    """Replace an automation by another.

    Raises:
        httpx.HTTPStatusError: The server rejected it; the automation is unchanged.
    """
    # The client sends only the fields that were set, without the types of triggers and actions, which are
    # defaults: the server then rejects a trigger of triggers.
    complete = AutomationCore.model_validate(wanted.model_dump(exclude={"owner_resource"}))
    await client.update_automation(automation_id, complete)
