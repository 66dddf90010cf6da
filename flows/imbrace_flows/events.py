"""Events for automations; none contains a phone number or the text of a message.

Prefect relates each to the flow run that emits it. Their resources keep their ids from run to run::

    imbrace.lake.<hash of its address>
    imbrace.organization.<id>
    imbrace.conversation.<id>
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import date, timedelta
from hashlib import sha256
from typing import NamedTuple

from prefect.events import emit_event

from imbrace_flows.best_effort import best_effort
from imbrace_flows.log import logger_of
from imbrace_lake.export.failures import MAX_LISTED
from imbrace_lake.export.run import RunSummary, utc_now
from imbrace_lake.gateway.ids import canonical_conversation_id
from imbrace_lake.lake.freshness import Freshness, count_stale
from imbrace_lake.printable import printable
from imbrace_lake.settings import Settings, expiry_warning

logger = logger_of("expiry")

EXPORT_COMPLETED = "imbrace.export.completed"
CONVERSATION_INCOMPLETE = "imbrace.conversation.incomplete"
SCHEMA_DRIFT = "imbrace.schema.drift"
LAKE_STALE = "imbrace.lake.stale"
TOKEN_EXPIRING = "imbrace.token.expiring"  # noqa: S105 - the name of an event
MAX_CONVERSATIONS = 100


class Event(NamedTuple):
    """Describes an event for authors of automations; `docs/events.md` is generated from it."""

    when: str
    resource: str
    payload: Mapping[str, str]


_LAKE = "the lake's address, without credentials"
EVENTS: Mapping[str, Event] = {
    EXPORT_COMPLETED: Event(
        "an export or a backfill has ended, whatever its status; a run with shards emits one event for all",
        "imbrace.lake",
        {
            "run_id": "the run's id",
            "status": "`complete`, `partial`, `failed` or `cancelled`",
            "reason": "why the run is not complete, in one sentence; or null",
            "lake": _LAKE,
            "organization": "the organization's id",
            "dead_letters": "number of conversations that the run could not export",
            "unreadable": "number of input entries that are not phone numbers",
            "totals": "counts of what the run found, read and wrote, as in the ledger `runs`",
        },
    ),
    CONVERSATION_INCOMPLETE: Event(
        f"a run could not export this conversation; at most {MAX_CONVERSATIONS} events per run",
        "imbrace.conversation",
        {
            "run_id": "the run's id",
            "status": "the conversation's status, as in the ledger `conversations`",
            "reason": "why the run could not export it, in one sentence",
        },
    ),
    SCHEMA_DRIFT: Event(
        "the gateway sent shapes that it had never sent before",
        "imbrace.lake",
        {
            "run_id": "the run's id",
            "new_shapes": f"the shapes, at most {MAX_LISTED}",
            "count": "the number of new shapes",
        },
    ),
    LAKE_STALE: Event(
        "`verify-lake` found proofs older than its parameter `stale_hours`",
        "imbrace.lake",
        {
            "lake": _LAKE,
            "stale_hours": "the value of the parameter",
            "conversations": "number of conversations with an older proof or none",
            "never_proven": "number of conversations without a proof",
            "oldest_hours": "age of the oldest proof in hours; null if there is none",
        },
    ),
    TOKEN_EXPIRING: Event(
        "a run began with a token that expires within two weeks, or has expired",
        "imbrace.organization",
        {
            "organization": "the organization's id",
            "expires": "the last day of the token, such as `2027-01-31`",
            "warning": "a sentence for people, with what to do",
        },
    ),
}


def emit_run_events(summary: RunSummary) -> None:
    """Emit the events about the end of a run: its result, its failures and its new shapes."""
    lake, organization = lake_resource(summary.lake), _organization(summary.organization)
    emit_event(
        EXPORT_COMPLETED,
        resource=lake,
        related=[organization],
        payload={
            "run_id": summary.run_id,
            "status": summary.status,
            "reason": summary.reason,
            "lake": summary.lake,
            "organization": summary.organization,
            "dead_letters": summary.dead_letter_count,
            "unreadable": summary.unreadable_count,
            "totals": asdict(summary.totals),
        },
    )
    for letter in summary.dead_letters[:MAX_CONVERSATIONS]:
        conversation_id = printable(canonical_conversation_id(letter.conversation_id), most=200)
        emit_event(
            CONVERSATION_INCOMPLETE,
            resource={"prefect.resource.id": f"imbrace.conversation.{conversation_id}"},
            related=[{**lake, "prefect.resource.role": "lake"}, organization],
            payload={"run_id": summary.run_id, "status": letter.status, "reason": letter.reason},
        )
    if summary.new_shapes:
        emit_event(
            SCHEMA_DRIFT,
            resource=lake,
            related=[organization],
            payload={
                "run_id": summary.run_id,
                "new_shapes": summary.new_shapes[:MAX_LISTED],
                "count": len(summary.new_shapes),
            },
        )


def emit_stale(lake: str, organization: str, ages: Sequence[Freshness], limit: timedelta) -> None:
    """Emit the event about proofs older than `limit`; `ages` begins with the oldest."""
    oldest = next((one.age for one in ages if one.age is not None), None)
    emit_event(
        LAKE_STALE,
        resource=lake_resource(lake),
        related=[_organization(organization)],
        payload={
            "lake": lake,
            "stale_hours": limit / timedelta(hours=1),
            "conversations": count_stale(ages, limit),
            "never_proven": sum(one.age is None for one in ages),
            "oldest_hours": None if oldest is None else round(oldest / timedelta(hours=1), 1),
        },
    )


def warn_of_expiry(settings: Settings) -> str | None:
    """Log a warning and emit an event if the token has expired or soon will; return the warning."""
    warning = expiry_warning(settings.token_expires, utc_now().date())
    if warning is not None and settings.token_expires is not None:
        logger.warning("%s", warning)
        with best_effort("the event about the token"):
            emit_token_expiring(settings.require("organization"), settings.token_expires, warning)
    return warning


def emit_token_expiring(organization: str, expires: date, warning: str) -> None:
    """Emit the event about a token that expires within two weeks, or has expired."""
    emit_event(
        TOKEN_EXPIRING,
        resource={"prefect.resource.id": f"imbrace.organization.{organization}"},
        payload={"organization": organization, "expires": expires.isoformat(), "warning": warning},
    )


def lake_resource(url: str) -> dict[str, str]:
    """Return a lake as the resource of events; `url` contains no credentials."""
    digest = sha256(url.encode()).hexdigest()[:16]
    return {"prefect.resource.id": f"imbrace.lake.{digest}", "prefect.resource.name": url}


def _organization(organization_id: str) -> dict[str, str]:
    return {
        "prefect.resource.id": f"imbrace.organization.{organization_id}",
        "prefect.resource.role": "organization",
    }
