"""Generated lakes with everything that the views must tell apart, written without the project's writers.

Bots and machine messages, senders of unknown kind, equal times, deleted messages, messages without a time,
several organizations, and conversations across changes of clocks.
"""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from imbrace_lake.lake.lake import open_lake, partition_key
from imbrace_lake.lake.ledger import Journal
from imbrace_lake.lake.ledger_schema import CONVERSATIONS, PHONES
from imbrace_lake.lake.schema import SCHEMA

NOW = datetime(2026, 1, 1, tzinfo=UTC)
EXTRA_BOT = "u_helper"
# Clocks change in Berlin and New York within these days, and never in Taipei.
CHANGES = (datetime(2025, 3, 8, 20, tzinfo=UTC), datetime(2025, 3, 29, 22, tzinfo=UTC),
           datetime(2025, 10, 25, 20, tzinfo=UTC), datetime(2025, 11, 1, 23, tzinfo=UTC))  # fmt: skip
_OFFER = '{"title":"?","quick_replies":[{"id":1,"title":"Yes"}]}'
# A bot's text, and whether it is nothing but JSON.
BOT_TEXTS = {
    '{"step": 1}': True, ' \n[{"a":1}]\t': True, '["a", "b"]': True, "[]": True, "{}": True,
    '\u00a0\ufeff{"a": "\u00a0"}\u3000\r\n': True, "\u2003{}": False, "\u3800[]": False, '["a"]\u200b': False,
    "Hello {name}": False, "[photo]": False, "{half": False, "早安 🙂": False, "": False,
}  # fmt: skip
_STEPS = (0, 0, 1, 999, 1_000, 60_000, 3_600_000, 7 * 3_600_000, 86_400_000, 86_400_001, 3 * 86_400_000)

Row = dict[str, Any]


def make_rows(seed: int, conversations: int) -> list[Row]:
    """Return the rows of all messages."""
    rng = Random(seed)
    return [row for number in range(conversations) for row in _conversation(rng, number)]


def _conversation(rng: Random, number: int) -> list[Row]:
    moment = rng.choice(CHANGES) + timedelta(milliseconds=rng.randrange(4 * 3_600_000))
    rows = []
    for _ in range(rng.choice((1, 2, 3, 8, 20))):
        moment += timedelta(milliseconds=rng.choice(_STEPS))
        sender, role = rng.choice(
            (("con_1", "contact"), ("con_1", "contact"), ("u_ann", "user"), ("u_bob", "user"),
             ("pub_1", "bot"), ("pub_1", "unknown"), (EXTRA_BOT, "user"), ("sys", "unknown"),
             (None, "unknown"))
        )  # fmt: skip
        kind: str | None = "text"
        text: str | None = rng.choice([*BOT_TEXTS])
        content = "{}"
        if role == "contact" and rng.random() < 0.4:
            kind = "quick_reply"
        elif rng.random() < 0.2:
            kind, text, content = "response", "?", _OFFER
        elif rng.random() < 0.1:
            kind, text = rng.choice(("image", None)), None
        is_deleted = rng.random() < 0.1
        rows.append(
            dict.fromkeys(SCHEMA.names)
            | {
                # Random, so that equal times are not in the order in which they were made.
                "message_id": f"msg_{rng.randrange(10**12):012}",
                "conversation_id": f"conv_{number}",
                "organization_id": f"org_{number % 2}",
                "sender_id": sender,
                "sender_role": role,
                "type": kind,
                "text": text,
                "content": content,
                "created_at": None if rng.random() < 0.03 else moment,
                "extra": json.dumps({"comments": [{"content": "note", "from": {"_id": "u_ann"}}]}),
                "is_deleted": is_deleted,
                "deleted_at": NOW if is_deleted else None,
                "first_seen_at": NOW,
                "last_changed_at": NOW,
                "run_id": "run",
            }
        )
    return rows


def write_lake(folder: Path, rows: list[Row], entries: list[Row], phones: list[Row]) -> None:
    """Write a lake with these messages, and with rows of two ledgers."""

    async def write() -> None:
        async with open_lake(str(folder), now=NOW) as lake:
            journal = Journal(lake, "run", NOW)
            for entry in entries:
                await journal.add("conversations", _table(CONVERSATIONS, [entry]))
            await journal.add("phones", _table(PHONES, phones))

    asyncio.run(write())
    partitions: dict[str, list[Row]] = {}
    for row in rows:
        key = partition_key(row["organization_id"], row["conversation_id"])
        partitions.setdefault(key, []).append(row)
    for key, own in partitions.items():
        (folder / key).mkdir(parents=True)
        half = len(own) // 2
        for number, part in enumerate(filter(None, (own[:half], own[half:]))):
            path = folder / key / f"part-{number:05d}.parquet"
            pq.write_table(pa.Table.from_pylist(part, schema=SCHEMA), path)


def _table(schema: pa.Schema, rows: list[Row]) -> pa.Table:
    return pa.Table.from_pylist([dict.fromkeys(schema.names) | row for row in rows], schema=schema)


def make_entries(conversations: int) -> list[Row]:
    """Return rows of the ledger `conversations`: two for each, one about a window, one without messages."""
    base = {
        "is_dead_letter": False,
        "new_messages": 0,
        "edited_messages": 0,
        "deleted_messages": 0,
        "requests": 1,
    }
    entries = []
    for number in range(0, conversations, 2):
        one = base | {"organization_id": f"org_{number % 2}", "conversation_id": f"conv_{number}"}
        for run, status, method, hours in (
            ("run_1", "incomplete", None, 0),
            ("run_2", "complete", "overlap", 1),
            ("run_3", "complete", "window", 2),
        ):
            entries.append(
                one
                | {"run_id": run, "status": status, "proof_method": method, "server_count": 7}
                | {"finished_at": NOW + timedelta(hours=hours)}
            )
    failed = {
        "organization_id": "org_0",
        "conversation_id": "conv_none",
        "run_id": "run_1",
        "status": "failed",
    }
    return [*entries, base | failed | {"is_dead_letter": True, "reason": "400", "finished_at": NOW}]


def make_phones() -> list[Row]:
    """Return rows of the ledger `phones`: a number that changed, failures, one invalid, a duplicate."""
    base = {"organization_id": "org_0"}
    rows: list[Row] = [
        {"run_id": "run_1", "position": 1, "phone_hash": "a", "status": "none", "resolved_at": NOW},
        {"run_id": "run_2", "position": 1, "phone_hash": "a", "status": "resolved",
         "conversation_ids": ["conv_0"], "resolved_at": NOW + timedelta(hours=1)},
        {"run_id": "run_2", "position": 2, "phone_hash": "a", "status": "duplicate", "duplicate_of": 1},
        {"run_id": "run_2", "position": 3, "status": "invalid", "reason": "too short"},
        {"run_id": "run_2", "position": 4, "phone_hash": "b", "status": "error", "resolved_at": None},
        {"run_id": "run_3", "position": 1, "phone_hash": "a", "status": "error", "reason": "500",
         "resolved_at": NOW + timedelta(hours=2)},
        {"run_id": "run_3", "position": 2, "phone_hash": "b", "status": "error", "reason": "400",
         "resolved_at": NOW + timedelta(hours=2)},
    ]  # fmt: skip
    return [base | row for row in rows]
