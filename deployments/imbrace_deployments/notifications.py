"""Messages to people about runs that failed or are partial, and about stale lakes: e-mail, Slack, Teams.

A channel is a block, which contains the secret, and an automation, which sends the messages by that block.
The server sends them itself, so they need no worker.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, get_args
from uuid import UUID, uuid4

from prefect.blocks.notifications import AppriseNotificationBlock, MicrosoftTeamsWebhook, SlackWebhook
from prefect.client.orchestration import PrefectClient, get_client
from prefect.events.actions import SendNotification
from prefect.events.schemas.automations import (
    Automation,
    AutomationCore,
    CompoundTrigger,
    EventTrigger,
    Posture,
)
from prefect.events.schemas.events import Event, RelatedResource, Resource
from prefect.exceptions import ObjectNotFound
from pydantic import SecretStr

from imbrace_deployments.automations import OURS, RESTARTED, TAG, replace_automation
from imbrace_deployments.mail import Mail
from imbrace_flows.events import LAKE_STALE
from imbrace_lake.errors import SettingsError

Channel = Literal["slack", "teams", "email"]
CHANNELS: tuple[Channel, ...] = get_args(Channel)
TEST = "imbrace.notification.test"
RESTART_PATIENCE = timedelta(seconds=60)
"""A run that crashed and was not restarted within this time has ended."""
TEST_SECONDS = 60.0
POLL_SECONDS = 0.5

_ABOUT = "Sends messages about partial, failed and crashed runs and stale lakes: "
_SLACK = re.compile(r"https://hooks\.slack(-gov)?\.com/(services|workflows|triggers)/\S+")
_STATES = ("Failed", "Partial", "Differs", "TimedOut")
_SUBJECT = (
    f"{{% if event.event == '{TEST}' %}}Test of imbrace-lake"
    f"{{% elif event.event == '{LAKE_STALE}' %}}Stale lake"
    "{% else %}{{ flow_run.name }}: {{ flow_run.state.name }}{% endif %}"
)
# The message of a state is the sentence that the run ended with, which contains no phone number.
_BODY = (
    f"{{% if event.event == '{TEST}' %}}Notifications of imbrace-lake arrive here."
    f"{{% elif event.event == '{LAKE_STALE}' %}}"
    "{% set count, hours = event.payload.conversations|int, event.payload.stale_hours|round|int %}"
    "{{ count }} conversation{{ '' if count == 1 else 's' }} of {{ event.payload.lake }}"
    " {{ 'has' if count == 1 else 'have' }} no proof of the last"
    " {{ 'hour' if hours == 1 else hours ~ ' hours' }}."
    "{% else %}{{ flow_run.state.message }}"
    # Prefect's message has no next step.
    "{% if flow_run.state.name == 'Crashed' %}\n\nIt is not started again by itself: look at the last lines"
    " of its log, then start the same work again. What was complete is in the lake.{% endif %}{% endif %}"
    "{% if flow_run %}\n\n{{ flow_run|ui_url }}{% endif %}"
)


@dataclass(frozen=True, slots=True)
class Status:
    """A channel: what it is, in words, and whether it is enabled; no text if it is not set up."""

    channel: Channel
    description: str | None
    is_enabled: bool = False


def slack_block(url: str) -> AppriseNotificationBlock:
    """Return the block of an incoming webhook of Slack.

    Raises:
        SettingsError: The address is not that of a webhook.
    """
    if not _SLACK.fullmatch(url):
        raise SettingsError(
            "this is not the address of an incoming webhook of Slack: it begins with"
            " https://hooks.slack.com/services/"
        )
    return SlackWebhook(url=SecretStr(url), notify_type="warning")


def teams_block(url: str) -> AppriseNotificationBlock:
    """Return the block of a workflow of Microsoft Teams that posts what its webhook receives.

    Raises:
        SettingsError: The address is not that of a workflow.
    """
    try:
        return MicrosoftTeamsWebhook(url=SecretStr(url), include_image=False, notify_type="warning")
    except ValueError:
        # Its text could contain the address.
        raise SettingsError(
            "this is not the address of a workflow of Teams: copy it from the trigger *When a Teams webhook"
            " request is received*; it contains /workflows/ and ends with a signature, sig=…"
        ) from None


def email_block(mail: Mail, password: str | None) -> AppriseNotificationBlock:
    """Return the block of an SMTP server.

    Prefect has no block for SMTP. Its block for Slack passes other addresses to the library apprise, which
    sends e-mail.
    """
    return SlackWebhook(url=SecretStr(mail.url(password)))


def notification(
    channel: Channel, block_id: UUID, description: str, patience: timedelta = RESTART_PATIENCE
) -> AutomationCore:
    """Return the automation that sends the messages of a channel.

    Args:
        channel: The channel.
        block_id: The block that sends.
        description: How it sends, without a secret.
        patience: How long a crashed run may wait for its restart.
    """
    ended = EventTrigger(
        posture=Posture.Reactive,
        threshold=1,
        match={"prefect.resource.id": ["prefect.flow-run.*", "imbrace.lake.*", _resource(channel)]},
        match_related=OURS,
        for_each={"prefect.resource.id"},
        expect={TEST, LAKE_STALE, *(f"prefect.flow-run.{name}" for name in _STATES)},
    )
    lost = EventTrigger(
        posture=Posture.Proactive,
        threshold=1,
        within=patience,
        match={"prefect.resource.id": "prefect.flow-run.*"},
        match_related=OURS,
        for_each={"prefect.resource.id"},
        after={"prefect.flow-run.Crashed"},
        # A restart follows the first crash of a run, which then continues.
        expect={f"prefect.flow-run.{name}" for name in RESTARTED},
    )
    return AutomationCore(
        name=_name(channel),
        description=f"{_ABOUT}{description}",
        tags=[TAG],
        trigger=CompoundTrigger(require="any", triggers=[ended, lost]),
        actions=[SendNotification(block_document_id=block_id, subject=_SUBJECT, body=_BODY)],
    )


async def set_up_channel(channel: Channel, block: AppriseNotificationBlock, description: str) -> None:
    """Save the block of a channel, and make or replace its automation.

    Raises:
        httpx.HTTPStatusError: The server rejected the automation; an existing channel is unchanged.
    """
    async with get_client() as client:
        found = await _find(client, channel)
        block_id = await _saved_block(client, channel, block)
        if found is not None and block_id is not None:
            # Before the block, because the server accepts any block, but tests an automation.
            await replace_automation(client, found.id, notification(channel, block_id, description))
            await block.asave(_name(channel), overwrite=True, client=client)
            return
        await block.asave(_name(channel), overwrite=True, client=client)
        if block._block_document_id is None:
            raise RuntimeError(f"the block {_name(channel)} has no id")
        wanted = notification(channel, block._block_document_id, description)
        if found is None:
            await client.create_automation(wanted)
        else:
            await replace_automation(client, found.id, wanted)


async def _saved_block(
    client: PrefectClient, channel: Channel, block: AppriseNotificationBlock
) -> UUID | None:
    """Return the id of the block that an earlier call saved, if there is one."""
    try:
        saved = await client.read_block_document_by_name(_name(channel), block.get_block_type_slug())
    except ObjectNotFound:
        return None
    return saved.id


async def remove_channel(channel: Channel) -> bool:
    """Delete the automation and the block of a channel; return whether there was one."""
    async with get_client() as client:
        found = await _find(client, channel)
        if found is None:
            return False
        await client.delete_automation(found.id)
        for action in found.actions:
            if isinstance(action, SendNotification):
                try:
                    await client.delete_block_document(action.block_document_id)
                except ObjectNotFound:
                    continue
        return True


async def statuses() -> list[Status]:
    """Return the state of every channel."""
    async with get_client() as client:
        found = {channel: await _find(client, channel) for channel in CHANNELS}
    return [
        Status(channel, None)
        if one is None
        else Status(channel, one.description.removeprefix(_ABOUT), one.enabled)
        for channel, one in found.items()
    ]


async def send_test(channel: Channel) -> str | None:
    """Let the server send a test message; return why it failed, or None if it was sent.

    Raises:
        SettingsError: The channel is not set up or disabled, or the server did not report a result in time.
    """
    async with get_client() as client:
        found = await _find(client, channel)
        if found is None or not found.enabled:
            state = "is not set up" if found is None else "is disabled in the UI"
            raise SettingsError(f"{channel} {state}: call `imbrace-lake notify {channel}`")
        began = datetime.now(UTC)
        event = Event(
            event=TEST,
            id=uuid4(),
            resource=Resource({"prefect.resource.id": _resource(channel)}),
            related=[RelatedResource(OURS)],
        )
        await client._client.post("/events", json=[event.model_dump(mode="json")])
        deadline = time.monotonic() + TEST_SECONDS
        while time.monotonic() < deadline:
            result = await _result(client, found.id, began)
            if result is not None:
                return None if result["event"].endswith(".executed") else _reason(result["payload"])
            await asyncio.sleep(POLL_SECONDS)
    raise SettingsError(
        f"the server did not send the test message within {TEST_SECONDS:g} s: look at the events of the"
        f" automation {_name(channel)}"
    )


async def _result(client: PrefectClient, automation: UUID, since: datetime) -> dict[str, Any] | None:
    """Return the event about the last action of an automation."""
    names = ["prefect.automation.action.executed", "prefect.automation.action.failed"]
    body = {
        "filter": {
            "occurred": {"since": since.isoformat()},
            "event": {"name": names},
            "resource": {"id": [f"prefect.automation.{automation}"]},
        },
        "limit": 1,
    }
    answer = await client._client.post("/events/filter", json=body)
    events = answer.json()["events"]
    return dict(events[0]) if events else None


def _reason(payload: Mapping[str, Any]) -> str:
    log = str(payload.get("notification_log") or payload.get("reason") or "no reason was given")
    return " ".join(log.split())


async def _find(client: PrefectClient, channel: Channel) -> Automation | None:
    found = await client.read_automations_by_name(_name(channel))
    return found[0] if found else None


def _name(channel: Channel) -> str:
    return f"imbrace-lake-notify-{channel}"


def _resource(channel: Channel) -> str:
    return f"imbrace.notification.{channel}"
