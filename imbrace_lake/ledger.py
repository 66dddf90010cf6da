"""What is known: input numbers, conversations and runs, as append-only Parquet beside the messages.

While a run is under way it writes what it has done into `journal/<run>/`; when it ends, one object
a ledger is made of that and the journal goes. A killed run leaves its journal, and whoever asks for
the state of a conversation reads ledgers and journals alike.

The name of a ledger object ends with the hash of its content, so a copy that differs shows.
"""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import datetime
from hashlib import sha256
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from imbrace_lake.errors import ObjectExists, StoreError, UsageError
from imbrace_lake.lake import Lake
from imbrace_lake.schema import to_parquet

_TIME = pa.timestamp("ms", "UTC")

PHONES = pa.schema(
    [
        pa.field("run_id", pa.string(), nullable=False),
        pa.field("organization_id", pa.string(), nullable=False),
        pa.field("position", pa.int64(), nullable=False),
        pa.field("phone_hash", pa.string()),
        pa.field("phone_masked", pa.string()),
        pa.field("phone", pa.string()),
        pa.field("status", pa.string(), nullable=False),
        pa.field("reason", pa.string()),
        pa.field("duplicate_of", pa.int64()),
        pa.field("conversation_ids", pa.list_(pa.string())),
        pa.field("resolved_at", _TIME),
    ]
)

CONVERSATIONS = pa.schema(
    [
        pa.field("run_id", pa.string(), nullable=False),
        pa.field("organization_id", pa.string(), nullable=False),
        pa.field("conversation_id", pa.string(), nullable=False),
        pa.field("status", pa.string(), nullable=False),
        pa.field("reason", pa.string()),
        pa.field("is_dead_letter", pa.bool_(), nullable=False),
        pa.field("server_count", pa.int64()),
        pa.field("distinct_messages", pa.int64()),
        pa.field("new_messages", pa.int64(), nullable=False),
        pa.field("first_message_at", _TIME),
        pa.field("last_message_at", _TIME),
        pa.field("proven_from", _TIME),
        pa.field("proven_until", _TIME),
        pa.field("proof_method", pa.string()),
        pa.field("is_still", pa.bool_()),
        pa.field("content_hash", pa.string()),
        pa.field("newest_message_id", pa.string()),
        pa.field("head_messages", pa.int64()),
        pa.field("head_hash", pa.string()),
        pa.field("full_walk_at", _TIME),
        pa.field(
            "parts",
            pa.list_(
                pa.struct(
                    [
                        pa.field("key", pa.string()),
                        pa.field("size_bytes", pa.int64()),
                        pa.field("rows", pa.int64()),
                        pa.field("sha256", pa.string()),
                    ]
                )
            ),
        ),
        pa.field("requests", pa.int64(), nullable=False),
        pa.field("started_at", _TIME),
        pa.field("finished_at", _TIME, nullable=False),
    ]
)

RUNS = pa.schema(
    [
        pa.field("run_id", pa.string(), nullable=False),
        pa.field("organization_id", pa.string(), nullable=False),
        pa.field("status", pa.string(), nullable=False),
        pa.field("reason", pa.string()),
        pa.field("parameters", pa.string()),
        pa.field("versions", pa.string()),
        pa.field("started_at", _TIME),
        pa.field("finished_at", _TIME),
        pa.field("totals", pa.string()),
        pa.field("objects", pa.list_(pa.string())),
    ]
)

_SCHEMAS = {"phones": PHONES, "conversations": CONVERSATIONS, "runs": RUNS}
Ledger = Literal["phones", "conversations", "runs"]
JOURNAL = "journal/"

ConversationStatus = Literal["complete", "unchanged", "incomplete", "gone", "failed"]
PROVEN: tuple[ConversationStatus, ...] = ("complete", "unchanged")


@dataclass(frozen=True, slots=True)
class PartEntry:
    """One part of a partition as the ledger knows it; without a hash if another run wrote it unseen."""

    key: str
    size_bytes: int
    rows: int | None
    sha256: str | None


@dataclass(frozen=True, slots=True)
class ConversationEntry:
    """How one conversation stands after one run touched it; the columns of `CONVERSATIONS`."""

    run_id: str
    organization_id: str
    conversation_id: str
    status: ConversationStatus
    finished_at: datetime
    reason: str | None = None
    is_dead_letter: bool = False
    server_count: int | None = None
    distinct_messages: int | None = None
    new_messages: int = 0
    first_message_at: datetime | None = None
    last_message_at: datetime | None = None
    proven_from: datetime | None = None
    proven_until: datetime | None = None
    proof_method: str | None = None
    is_still: bool | None = None
    content_hash: str | None = None
    newest_message_id: str | None = None
    head_messages: int | None = None
    head_hash: str | None = None
    full_walk_at: datetime | None = None
    parts: tuple[PartEntry, ...] = ()
    requests: int = 0
    started_at: datetime | None = None


@dataclass(slots=True)
class RunTotals:
    """What a run adds up to; the `totals` of the ledger and of every summary."""

    phones: dict[str, int] = field(default_factory=dict)
    conversations: dict[str, int] = field(default_factory=dict)
    messages_new: int = 0
    messages_total: int = 0
    requests: int = 0
    retries: int = 0
    refusals: int = 0
    received_bytes: int = 0
    written_bytes: int = 0
    seconds: float = 0.0


class Journal:
    """What one run writes down while it is under way, and the ledger objects it ends with."""

    def __init__(self, lake: Lake, run_id: str, started_at: datetime) -> None:
        self._lake = lake
        self._run_id = run_id
        self._started_at = started_at
        self._prefix = f"{JOURNAL}{run_id}/"

    async def note(self, ledger: Ledger, name: str, rows: pa.Table) -> None:
        """Write rows down under a name; the same name again replaces them."""
        await self._lake.store.put(f"{self._prefix}{ledger}/{name}.parquet", _to_bytes(rows))

    async def close(self, ledger: Ledger) -> str | None:
        """Make one ledger object of all that was noted; its key, or None if there was nothing."""
        noted = await self._lake.store.list(f"{self._prefix}{ledger}/")
        if not noted:
            return None
        rows = pa.concat_tables(await read_objects(self._lake, [stored.key for stored in noted]))
        key = await self.add(ledger, rows)
        await asyncio.gather(*(self._lake.store.delete(stored.key) for stored in noted))
        return key

    async def add(self, ledger: Ledger, rows: pa.Table) -> str:
        """Add one object to a ledger and return its key."""
        body = _to_bytes(rows)
        stamp = self._started_at.strftime("%Y%m%dT%H%M%SZ")
        key = f"{ledger}/{stamp}-{self._run_id}-{sha256(body).hexdigest()[:16]}.parquet"
        # The name holds the content's hash, so what is there already is this very object.
        with suppress(ObjectExists):
            await self._lake.store.put_new(key, body)
        return key


def _to_bytes(rows: pa.Table) -> bytes:
    few = ["run_id", "organization_id", "status", "reason", "proof_method"]
    return to_parquet(rows, {}, few)


async def read_objects(
    lake: Lake, keys: Iterable[str], columns: Sequence[str] | None = None
) -> list[pa.Table]:
    """Read ledger objects, each in one request.

    Raises:
        StoreError: One cannot be read; the message names it.
    """

    async def read(key: str) -> pa.Table | None:
        try:
            body = await lake.store.get(key)
        except FileNotFoundError:
            return None  # a journal that its run has just turned into a ledger object
        schema = _SCHEMAS[_ledger_of(key)]
        if columns is not None:
            schema = pa.schema([schema.field(name) for name in columns])
        try:
            return pq.read_table(io.BytesIO(body), schema=schema, columns=columns)
        except (pa.ArrowInvalid, OSError) as exc:
            raise StoreError(f"{lake.url}/{key} cannot be read: restore it from a copy") from exc

    return [table for table in await asyncio.gather(*(read(key) for key in keys)) if table is not None]


def _ledger_of(key: str) -> str:
    return key.split("/")[2 if key.startswith(JOURNAL) else 0]


async def read_ledger(lake: Lake, ledger: Ledger, *, columns: Sequence[str] | None = None) -> pa.Table:
    """All rows of a ledger, those of runs under way or killed included."""
    # Journals first: what a run closes between the two listings is then seen twice, never not at all.
    journals = [stored.key for stored in await lake.store.list(JOURNAL) if f"/{ledger}/" in f"/{stored.key}"]
    objects = [stored.key for stored in await lake.store.list(f"{ledger}/")]
    tables = await read_objects(lake, [*objects, *journals], columns)
    if tables:
        return pa.concat_tables(tables)
    schema = _SCHEMAS[ledger]
    return pa.schema([schema.field(name) for name in columns or schema.names]).empty_table()


_STATE = ["run_id", "organization_id", "conversation_id", "status", "server_count", "distinct_messages",
          "first_message_at", "last_message_at", "proven_from", "proven_until", "proof_method", "is_still",
          "content_hash", "newest_message_id", "head_messages", "head_hash", "full_walk_at", "parts",
          "finished_at", "new_messages", "is_dead_letter", "requests"]  # fmt: skip


class KnownConversations:
    """How each conversation stood when it was last proven, in little memory."""

    def __init__(self, rows: pa.Table) -> None:
        proven = rows.filter(pc.is_in(rows.column("status"), pa.array([*PROVEN, "gone"])))
        order = pc.sort_indices(proven, sort_keys=[("finished_at", "ascending")])
        self._rows = proven.take(order)
        # Later rows win; a dictionary of row numbers is all that is kept per conversation.
        ids = self._rows.column("conversation_id").to_pylist()
        self._row_of = {conversation_id: row for row, conversation_id in enumerate(ids)}

    @classmethod
    def none(cls) -> KnownConversations:
        """Nothing known, as in a new lake."""
        return cls(pa.schema([CONVERSATIONS.field(name) for name in _STATE]).empty_table())

    @classmethod
    async def read(cls, lake: Lake, organization_id: str) -> KnownConversations:
        """Read the state of every conversation of an organization."""
        rows = await read_ledger(lake, "conversations", columns=_STATE)
        return cls(rows.filter(pc.equal(rows.column("organization_id"), organization_id)))

    def of(self, conversation_id: str) -> ConversationEntry | None:
        """The last entry that proved the conversation complete, unchanged or gone."""
        row = self._row_of.get(conversation_id)
        if row is None:
            return None
        values: dict[str, Any] = self._rows.slice(row, 1).to_pylist()[0]
        values["parts"] = tuple(PartEntry(**part) for part in values["parts"] or ())
        return ConversationEntry(**values)

    def ids(self) -> list[str]:
        """Every conversation that the lake knows."""
        return list(self._row_of)


def conversation_rows(entries: Iterable[ConversationEntry]) -> pa.Table:
    """Entries as rows of the ledger."""
    return pa.Table.from_pylist([asdict(entry) for entry in entries], schema=CONVERSATIONS)


def run_row(values: Mapping[str, Any], totals: RunTotals) -> pa.Table:
    """One run as a row of the ledger; mappings among the values become JSON."""
    row = {name: json.dumps(value) if isinstance(value, dict) else value for name, value in values.items()}
    return pa.Table.from_pylist([{**row, "totals": json.dumps(asdict(totals))}], schema=RUNS)


async def read_dead_letters(lake: Lake, run_id: str) -> tuple[list[str], list[str]]:
    """What a run left undone: conversations that failed, and numbers that could not be resolved.

    Returns:
        Conversation ids, and phone numbers in E.164; numbers of a lake that masks them are left out.

    Raises:
        UsageError: The lake knows no such run.
    """
    columns = ["run_id", "conversation_id", "is_dead_letter"]
    conversations = await read_ledger(lake, "conversations", columns=columns)
    phones = await read_ledger(lake, "phones", columns=["run_id", "phone", "status"])
    is_its = [pc.equal(rows.column("run_id"), run_id) for rows in (conversations, phones)]
    if not any(pc.any(mask).as_py() for mask in is_its):
        raise UsageError(f"the lake at {lake.url} knows no run {run_id}: look for its id in runs/")
    dead = conversations.filter(pc.and_(is_its[0], conversations.column("is_dead_letter")))
    failed = phones.filter(pc.and_(is_its[1], pc.equal(phones.column("status"), "error")))
    return dead.column("conversation_id").unique().to_pylist(), failed.column("phone").drop_null().to_pylist()
