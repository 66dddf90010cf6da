"""The columns of the ledgers, and the records that become their rows."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime
from typing import Any, Literal, get_args

import orjson
import pyarrow as pa
import pyarrow.json

from imbrace_lake.gateway.exact_json import encodable
from imbrace_lake.gateway.walk import REPEATS
from imbrace_lake.lake.lake import Part
from imbrace_lake.lake.schema import SCHEMA

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
        # Null in rows of earlier releases.
        pa.field("entry", pa.int64()),
    ]
)
# The rows of one run that are equal in these columns are versions of one row.
SAME_PHONE = ["position", "entry", "phone_hash", "duplicate_of"]

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
        pa.field("edited_messages", pa.int64(), nullable=False),
        pa.field("deleted_messages", pa.int64(), nullable=False),
        pa.field("first_message_at", _TIME),
        pa.field("last_message_at", _TIME),
        pa.field("active_hours", pa.list_(pa.int32())),
        pa.field("active_hour_count", pa.int64()),
        pa.field("proven_from", _TIME),
        pa.field("proven_until", _TIME),
        pa.field("proof_method", pa.string()),
        pa.field("is_still", pa.bool_()),
        pa.field("content_hash", pa.string()),
        pa.field("newest_message_id", pa.string()),
        pa.field("head_messages", pa.int64()),
        pa.field("head_hash", pa.string()),
        pa.field("head_etag", pa.string()),
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

# The times in JSON have microseconds, which Arrow does not parse as milliseconds.
_AS_LINES = pa.schema(
    [field.with_type(pa.timestamp("us", "UTC")) if field.type == _TIME else field for field in CONVERSATIONS]
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
        pa.field("parent_run_id", pa.string()),
    ]
)

# A replaced version of a message: its row, the run that replaced it, and when.
REVISIONS = SCHEMA.append(pa.field("replaced_at", _TIME, nullable=False)).append(
    pa.field("replaced_by_run_id", pa.string(), nullable=False)
)

SHAPES = pa.schema(
    [
        pa.field("run_id", pa.string(), nullable=False),
        pa.field("organization_id", pa.string(), nullable=False),
        pa.field("shape", pa.string(), nullable=False),
        pa.field("conversation_id", pa.string()),
        pa.field("seen_at", _TIME, nullable=False),
    ]
)

LEDGER_SCHEMAS = {
    "phones": PHONES,
    "conversations": CONVERSATIONS,
    "runs": RUNS,
    "revisions": REVISIONS,
    "shapes": SHAPES,
}
Ledger = Literal["phones", "conversations", "runs", "revisions", "shapes"]
LEDGERS: tuple[Ledger, ...] = get_args(Ledger)
ConversationStatus = Literal["complete", "unchanged", "gone", "incomplete", "failed", "not_reached"]
# The outcomes of a conversation that a run found, in the order of the counts for people.
OUTCOMES: tuple[ConversationStatus, ...] = get_args(ConversationStatus)
PROVEN: tuple[ConversationStatus, ...] = ("complete", "unchanged")
# The proof method of a run that read only a span of time.
WINDOW = "window"
# Of an id that the gateway does not have, and that nothing but the input of a run names.
NEVER_FOUND = "never_found"


@dataclass(frozen=True, slots=True)
class ConversationEntry:
    """One conversation's outcome in one run; a row of the ledger `conversations`."""

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
    edited_messages: int = 0
    deleted_messages: int = 0
    first_message_at: datetime | None = None
    last_message_at: datetime | None = None
    active_hours: tuple[int, ...] | None = None
    active_hour_count: int | None = None
    proven_from: datetime | None = None
    proven_until: datetime | None = None
    proof_method: str | None = None
    is_still: bool | None = None
    content_hash: str | None = None
    newest_message_id: str | None = None
    head_messages: int | None = None
    head_hash: str | None = None
    head_etag: str | None = None
    full_walk_at: datetime | None = None
    parts: tuple[Part, ...] = ()
    requests: int = 0
    started_at: datetime | None = None

    def __post_init__(self) -> None:
        """Make the reason storable: the text of an error can contain lone surrogates."""
        if self.reason is not None:
            object.__setattr__(self, "reason", encodable(self.reason))

    @property
    def repeats(self) -> int:
        """The number of positions in the gateway's list that repeat a message and were accepted."""
        if self.proof_method != REPEATS or self.server_count is None or self.distinct_messages is None:
            return 0
        return self.server_count - self.distinct_messages

    @property
    def is_counted(self) -> bool:
        """Whether the gateway's count equals the messages in the lake plus accepted repeats."""
        if self.server_count is None or self.distinct_messages is None:
            return False
        return self.server_count == self.distinct_messages + self.repeats


@dataclass(slots=True)
class RunTotals:
    """The totals of a run, as in the ledger and in every summary.

    The counts in `conversations` add up to `found`.
    """

    phones: dict[str, int] = field(default_factory=dict)
    # The number of conversations found; None if the run ended before it had found them all.
    found: int | None = None
    conversations: dict[str, int] = field(default_factory=dict)
    messages_new: int = 0
    messages_total: int = 0
    requests: int = 0
    retries: int = 0
    refusals: int = 0
    received_bytes: int = 0
    written_bytes: int = 0
    seconds: float = 0.0
    # Messages added, by the day of their creation (ISO 8601); only for a shard, whose parent draws the chart.
    days: dict[str, int] = field(default_factory=dict)

    def __add__(self, other: RunTotals) -> RunTotals:
        """Add the totals of another run, field by field."""
        total = RunTotals()
        for each in fields(RunTotals):
            one, two = getattr(self, each.name), getattr(other, each.name)
            if isinstance(one, dict):
                setattr(total, each.name, dict(Counter(one) + Counter(two)))
            else:
                setattr(total, each.name, (one or 0) + (two or 0))
        return total


def entry_of(row: Mapping[str, Any]) -> ConversationEntry:
    """Return a row of the ledger, or some of its columns, as an entry."""
    parts = tuple(Part(**part) for part in row.get("parts") or ())
    hours = row.get("active_hours")
    return ConversationEntry(
        **{**row, "parts": parts, "active_hours": None if hours is None else tuple(hours)}
    )


def conversation_rows(entries: Iterable[ConversationEntry]) -> pa.Table:
    """Return entries as rows of the ledger."""
    # Column by column and without dataclasses.asdict(), whose deep copies would take most of the time here.
    entry_list = list(entries)
    columns = {field.name: [getattr(entry, field.name) for entry in entry_list] for field in CONVERSATIONS}
    columns["parts"] = [
        [
            {"key": part.key, "size_bytes": part.size_bytes, "rows": part.rows, "sha256": part.sha256}
            for part in parts
        ]
        for parts in columns["parts"]
    ]
    arrays = [pa.array(columns[field.name], field.type) for field in CONVERSATIONS]
    return pa.Table.from_arrays(arrays, schema=CONVERSATIONS)


def entry_line(entry: ConversationEntry) -> bytes:
    """Return one entry as a line of JSON, which takes a twentieth of the time of Parquet.

    Raises:
        TypeError: A value cannot be written as JSON in UTF-8.
    """
    return orjson.dumps(entry, option=orjson.OPT_UTC_Z)


def rows_of_lines(body: bytes) -> pa.Table:
    """Return lines from `entry_line` as rows of the ledger."""
    read = pyarrow.json.ReadOptions(use_threads=False, block_size=len(body) + 1)
    parse = pyarrow.json.ParseOptions(explicit_schema=_AS_LINES, unexpected_field_behavior="ignore")
    rows = pyarrow.json.read_json(io.BytesIO(body), read_options=read, parse_options=parse)
    return rows.select(CONVERSATIONS.names).cast(CONVERSATIONS, safe=False)


def run_row(values: Mapping[str, Any], totals: RunTotals) -> pa.Table:
    """Return one run as a row of the ledger; dicts among the values become JSON."""
    row = {name: json.dumps(value) if isinstance(value, dict) else value for name, value in values.items()}
    return pa.Table.from_pylist([{**row, "totals": json.dumps(asdict(totals))}], schema=RUNS)


def empty_ledger(ledger: Ledger, columns: Sequence[str] | None = None) -> pa.Table:
    """Return a ledger without rows."""
    schema = LEDGER_SCHEMAS[ledger]
    return pa.schema([schema.field(name) for name in columns or schema.names]).empty_table()
