"""Events for automations to act on; none holds a phone number or the text of a message.

Prefect relates each to the flow run that emits it. Their resources keep their ids from run to run::

    imbrace.lake.<hash of its address>
    imbrace.organization.<id>
    imbrace.conversation.<id>
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from datetime import date, timedelta
from hashlib import sha256

from prefect.events import emit_event

from imbrace_lake.export.run import RunSummary
from imbrace_lake.export.run_context import MOST_LISTED
from imbrace_lake.gateway.ids import canonical_conversation_id
from imbrace_lake.lake.freshness import Freshness, count_stale
from imbrace_lake.printable import printable

EXPORT_COMPLETED = "imbrace.export.completed"
CONVERSATION_INCOMPLETE = "imbrace.conversation.incomplete"
SCHEMA_DRIFT = "imbrace.schema.drift"
LAKE_STALE = "imbrace.lake.stale"
TOKEN_EXPIRING = "imbrace.token.expiring"  # noqa: S105 - the name of an event
MOST_CONVERSATIONS = 100


def emit_run_events(summary: RunSummary) -> None:
    """Say how an export or backfill ended, what it could not export, and what it saw for the first time."""
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
    for letter in summary.dead_letters[:MOST_CONVERSATIONS]:
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
                "new_shapes": summary.new_shapes[:MOST_LISTED],
                "count": len(summary.new_shapes),
            },
        )


def emit_stale(lake: str, organization: str, ages: Sequence[Freshness], limit: timedelta) -> None:
    """Say that proofs are older than `limit`; `ages` begins with the stalest."""
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


def emit_token_expiring(organization: str, expires: date, warning: str) -> None:
    """Say that the token of an organization expires within two weeks, or has expired."""
    emit_event(
        TOKEN_EXPIRING,
        resource={"prefect.resource.id": f"imbrace.organization.{organization}"},
        payload={"organization": organization, "expires": expires.isoformat(), "warning": warning},
    )


def lake_resource(url: str) -> dict[str, str]:
    """A lake as the resource of events; `url` is free of credentials."""
    digest = sha256(url.encode()).hexdigest()[:16]
    return {"prefect.resource.id": f"imbrace.lake.{digest}", "prefect.resource.name": url}


def _organization(organization_id: str) -> dict[str, str]:
    return {
        "prefect.resource.id": f"imbrace.organization.{organization_id}",
        "prefect.resource.role": "organization",
    }
