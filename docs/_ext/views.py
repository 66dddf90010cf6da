"""Descriptions of the columns of the views, in Markdown, from which `docs/views.md` is generated."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import duckdb
from columns import DESCRIPTIONS

from imbrace_lake.lake.ledger_schema import LEDGER_SCHEMAS
from imbrace_lake.lake.schema import SCHEMA
from imbrace_lake.query.dialects import DuckDB
from imbrace_lake.query.views import View, ViewSettings, views

# Columns of which each row of a view has different values.
_EPISODE = ("organization_id", "conversation_id", "episode")
KEYS: Mapping[str, Sequence[str]] = {
    "settings": ("time_zone",),
    "bots": ("sender_id",),
    "business_hours": ("weekday",),
    "messages": ("organization_id", "conversation_id", "message_id"),
    "turns": (*_EPISODE, "turn_number"),
    "episodes": _EPISODE,
    "replies": (*_EPISODE, "reply_number"),
    "response_times": ("organization_id", "week_start"),
    "daily_volumes": ("organization_id", "day"),
    "busiest_hours": ("organization_id", "weekday", "hour_of_day"),
    "quick_reply_funnel": ("organization_id",),
    "conversations": ("organization_id", "conversation_id"),
    "phones": ("organization_id", "phone_hash"),
    "documents": (*_EPISODE, "chunk"),
}
# Columns with one meaning in every view that has them.
_COMMON: Mapping[str, str] = {
    **DESCRIPTIONS["phones"],
    **DESCRIPTIONS["messages"],
    "conversation_id": "the id as the lake spells it",
    "organization_id": "the organization's id",
    "sender_role": "`contact`, `user`, `bot` or `unknown`",
    "is_machine": "whether it is a machine message: a bot's text that is nothing but JSON",
    "local_at": "`created_at` in the time zone of the settings, without a zone",
    "episode": "number of the episode in its conversation, from 1",
    "turn_number": "number of the message in its episode, from 1",
    "contacts_so_far": "messages of the contact up to this one, in the episode",
    "replies_before": "messages of persons before this one, in the episode",
    "started_at": "time of the first message",
    "ended_at": "time of the last message",
    "duration_ms": "from the first message to the last, in milliseconds; not handling time",
    "messages": "messages that are not deleted",
    "deleted_messages": "messages that are deleted upstream",
    "contact_messages": "messages of the contact",
    "user_messages": "messages of persons of the team",
    "bot_messages": "messages of bots, without machine messages",
    "machine_messages": "machine messages",
    "unknown_messages": "messages of unknown senders",
    "users": "distinct persons of the team who wrote",
    "opened_by": "role of the first message's sender",
    "closed_by": "role of the last message's sender",
    "last_role": "role of the sender of the last message of the last episode",
    "is_waiting": "whether that is the contact",
    "first_contact_at": "time of the contact's first message: the clock starts",
    "first_contact_message_id": "id of this message",
    "first_reply_at": "time of the first reply after it by a person: the clock stops",
    "first_reply_message_id": "id of this message",
    "first_reply_with_bots_at": "time of the first reply after it by a person or a bot",
    "first_reply_with_bots_message_id": "id of this message",
    "first_response_ms": "first response, in milliseconds; null without a reply by a person",
    "first_response_with_bots_ms": "the same with bots",
    "first_response_business_ms": "first response by a person, in milliseconds of business hours",
    "longest_first_response_ms": "the longest first response of all episodes",
    "reply_number": "number of the wait in its episode, from 1",
    "contact_message_id": "id of the contact's first message that no person had answered",
    "contact_at": "time of this message",
    "reply_message_id": "id of the next message of a person; null without one",
    "reply_at": "time of this message",
    "reply_sender_id": "who replied",
    "reply_ms": "from `contact_at` to `reply_at`, in milliseconds",
    "reply_business_ms": "as `reply_ms`, counting only business hours",
    "reply_with_bots_message_id": "id of the next message of a person or a bot",
    "reply_with_bots_at": "time of this message",
    "reply_with_bots_role": "`user` or `bot`",
    "reply_with_bots_ms": "from `contact_at` to `reply_with_bots_at`, in milliseconds",
    "week_start": "the Monday of the local week",
    "answered": "of these, those that a person answered",
    "share_unanswered": "share that no person answered, from 0 to 1",
    "answered_with_bots": "those that a person or a bot answered",
    "share_unanswered_with_bots": "share that neither answered",
    "median_ms": "median first response by a person, in milliseconds",
    "p90_ms": "90th percentile of it",
    "median_with_bots_ms": "median first response by a person or a bot",
    "p90_with_bots_ms": "90th percentile of it",
    "median_business_ms": "median first response by a person in business hours",
    "p90_business_ms": "90th percentile of it",
    "day": "local day; null for messages without a readable time",
    "conversations": "distinct conversations",
    "new_conversations": "conversations whose first message is of this day",
    "weekday": "from Monday (1) to Sunday (7)",
    "hour_of_day": "local hour, from 0 to 23",
    "offers": "messages that offered quick replies",
    "picked": "the contact picked one",
    "typed_instead": "the contact wrote something else",
    "overtaken": "a person or a bot wrote before the contact did",
    "ended": "the episode ended",
    "episodes": "episodes",
    "contact_episodes": "episodes in which the contact wrote",
    "answered_episodes": "episodes in which a person answered the contact",
    "first_message_at": "time of the first message",
    "last_message_at": "time of the last message",
    "chunk": "number of the chunk in its episode, from 1",
    "first_message_id": "id of the chunk's first message",
    "last_message_id": "id of the chunk's last message",
    "time_zone": "the zone of days, weeks and hours",
    "gap_ms": "a longer silence begins a new episode",
    "document_characters": "about how many characters a document has",
    "opens_ms": "milliseconds from midnight to the opening",
    "closes_ms": "milliseconds from midnight to the closing; equal to `opens_ms` on a closed day",
    "before_ms": "open time of the week before this day",
    "week_ms": "open time of the week",
    "proof_method": "how it was proven ([proofs](completeness.md))",
    "is_dead_letter": "whether the run should have exported it and could not",
    "server_count": "the gateway's count of messages",
    "verified_at": "when the run finished the conversation",
}
# Columns whose meaning depends on the view.
_OWN: Mapping[tuple[str, str], str] = {
    ("conversations", "status"): "status of the latest ledger entry; null if there is none",
    ("conversations", "reason"): "why it is incomplete, failed or gone",
    (
        "conversations",
        "first_response_ms",
    ): "first response of the first episode in which the contact wrote; null"
    " without a reply by a person in it",
    ("response_times", "episodes"): "episodes in which the contact wrote",
    ("documents", "text"): "lines of local time, role and text",
    ("bots", "sender_id"): "the id of the sender",
    ("phones", "conversation_ids"): "the conversations of this number",
}


def described_views() -> Iterator[tuple[View, list[tuple[str, str, str]]]]:
    """Yield each view with its columns: name, type and meaning."""
    schemas = {"messages": SCHEMA, **LEDGER_SCHEMAS}
    with duckdb.connect() as connection:
        for name in ("messages", "conversations", "phones"):
            connection.register(f"lake_{name}", schemas[name].empty_table())
        for view in views(DuckDB(), ViewSettings()):
            connection.execute(f"CREATE VIEW {view.name} AS {view.query}")
            found = connection.sql(f"DESCRIBE {view.name}").fetchall()
            yield (
                view,
                [
                    (name, _kind(kind), _OWN.get((view.name, name)) or _COMMON[name])
                    for name, kind, *_ in found
                ],
            )


def _kind(kind: str) -> str:
    kinds = {"TIMESTAMP WITH TIME ZONE": "timestamp, UTC", "VARCHAR[]": "list of varchar"}
    return kinds.get(kind, kind.lower())
