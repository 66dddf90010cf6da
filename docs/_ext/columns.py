"""Descriptions of all columns of the lake, in Markdown, from which `docs/columns.md` is generated."""

from __future__ import annotations

from collections.abc import Mapping

from imbrace_lake.lake.ledger_schema import LEDGER_SCHEMAS
from imbrace_lake.lake.schema import SCHEMA

SCHEMAS = {"messages": SCHEMA, **LEDGER_SCHEMAS}

_RUN = "the run that wrote this row"
_ORGANIZATION = "the organization's id"
_MESSAGES = {
    "message_id": (
        "distinct within a conversation, over all its parts; an `_id` that is not a text, or that UTF-8"
        " cannot encode, is `$` and its JSON: `$0`"
    ),
    "conversation_id": (
        "as requested ([spellings](lake.md#ids-of-conversations)); a different value of the"
        " item is in `extra`"
    ),
    "organization_id": "as requested; a different value of the item is in `extra`",
    "business_unit_id": "as received",
    "sender_id": "as received",
    "sender_role": (
        "`contact` (`con_…`), `user` (`u_…`), `bot` (`pub_…`) or `unknown`"
        " ([earlier versions](lake.md#messages))"
    ),
    "type": "as received",
    "text": "the text that a person would read; null if there is none",
    "content": "`content` as strict JSON; nearly always as received ([exceptions](lake.md#strict-json))",
    "created_at": "null if the received value is not a time from 1900 to 2261; then `extra` has it",
    "updated_at": "as `created_at`",
    "extra": (
        "strict JSON: an object of all other fields, and of received values that do not fit their column"
    ),
    "is_deleted": "whether the message is deleted upstream",
    "deleted_at": "when a run noticed the deletion",
    "first_seen_at": "when a run first read the message",
    "last_changed_at": "when a run first read this version of it",
    "run_id": "the run that wrote this version",
}

DESCRIPTIONS: Mapping[str, Mapping[str, str]] = {
    "messages": _MESSAGES,
    "phones": {
        "run_id": _RUN,
        "organization_id": _ORGANIZATION,
        "position": "line, row or argument of the number in the input, from 1",
        "phone_hash": "HMAC-SHA256 of the E.164 form, by the key in `lake.json` or `IMBRACE_PHONE_KEY`",
        "phone_masked": "the number with most of its digits hidden",
        "phone": "the number in E.164 form; null with `IMBRACE_MASK_PHONES`",
        "status": "`resolved`, `none` (no conversation), `invalid`, `duplicate` or `error`",
        "reason": "why the number is invalid, or which error occurred",
        "duplicate_of": "the position of the first entry with the same number",
        "conversation_ids": "the conversations of this number; after an `error`, those that could be read",
        "resolved_at": "when the gateway reported these conversations",
        "entry": "the number of the entry among those of its row, from 1; null in rows of earlier releases",
    },
    "conversations": {
        "run_id": _RUN,
        "organization_id": _ORGANIZATION,
        "conversation_id": "the id as the lake spells it ([spellings](lake.md#ids-of-conversations))",
        "status": (
            "`complete`, `unchanged`, `gone`, `incomplete`, `failed` or `not_reached` (the run ended"
            " before it reached the conversation)"
        ),
        "reason": "why the conversation is incomplete, failed or gone, or what the run accepted",
        "is_dead_letter": "whether the run should have exported the conversation and could not",
        "server_count": "the gateway's count of messages",
        "distinct_messages": (
            "messages in the lake that are not marked deleted; of a `window`, those in its span of time"
        ),
        "new_messages": "messages that this run added",
        "edited_messages": "messages that this run replaced by a newer version",
        "deleted_messages": "messages that this run marked deleted",
        "first_message_at": "when the oldest message was created",
        "last_message_at": "when the newest message was created",
        "active_hours": (
            "the last 20 hours, counted from 1970 in UTC, in which messages were created; null if an earlier"
            " version made the last full walk"
        ),
        "active_hour_count": "the number of all hours in which messages were created",
        "proven_from": "the start of the span of time for which the lake has everything",
        "proven_until": "the end of this span",
        "proof_method": (
            "`overlap`: overlapping pages; `count`: pages read edge to edge, with an unchanged count;"
            " `joined`: read down to the messages that the lake had; `repeats`: a list that repeats messages,"
            " accepted as it is; `window`: a span of time only; `never_found`: no proof, and neither the"
            " gateway nor the lake has this id"
        ),
        "is_still": "whether the list was unchanged while the run read it",
        "content_hash": (
            "the sum of the messages' digests, which does not depend on how they are split into parts"
        ),
        "newest_message_id": "the id of the newest message",
        "head_messages": "number of messages in the newest page",
        "head_hash": "digest of these messages; if it and the count are equal, a run finds `unchanged`",
        "head_etag": "hash of the answer with these messages; an equal answer is not parsed",
        "full_walk_at": "when the last full walk of the conversation began",
        "parts": "key, size, rows and SHA-256 of each part",
        "requests": "pages that this run requested for the conversation, without retries",
        "started_at": "when this run began to read the conversation",
        "finished_at": "when this run finished the conversation",
    },
    "runs": {
        "run_id": "id of the run and of its flow run in Prefect",
        "organization_id": _ORGANIZATION,
        "status": "`complete`, `partial`, `failed` or `cancelled`",
        "reason": "why the run is not complete",
        "parameters": (
            "JSON: the parameters of the run; `input` reports what was read from its list; of a killed run,"
            " only the window of time and whether it read complete conversations"
        ),
        "versions": "JSON: the versions of the schema, of Python, of this project and of its libraries",
        "started_at": "when the run began",
        "finished_at": "when the run ended",
        "totals": "JSON: counts of what the run found, read and wrote ([more](lake.md#the-ledgers))",
        "objects": "the objects of the run in the other ledgers",
        "parent_run_id": "of a shard: the run that it is a part of; rows of earlier versions do not have it",
    },
    "revisions": {
        **_MESSAGES,
        "replaced_at": "when a newer version replaced this one",
        "replaced_by_run_id": "the run that replaced it",
    },
    "shapes": {
        "run_id": "the run that received this shape first",
        "organization_id": _ORGANIZATION,
        "shape": "a message type, field or kind of value, such as `text.content.mood:string`",
        "conversation_id": "the conversation with this shape",
        "seen_at": "when the run received it",
    },
}
