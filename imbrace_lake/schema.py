"""The columns of a message, and the way from the gateway's JSON object to a row and back.

`SCHEMA` is the same in every object of the lake: engines drop or refuse what differs from file to
file. Nothing is lost on the way: what a column cannot hold as it came lies in `extra`.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import blake2b
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from imbrace_lake.models import Item

SCHEMA_VERSION = 1

_TIME = pa.timestamp("ms", "UTC")

SCHEMA = pa.schema(
    [
        pa.field("message_id", pa.string(), nullable=False),
        pa.field("conversation_id", pa.string(), nullable=False),
        pa.field("organization_id", pa.string(), nullable=False),
        pa.field("business_unit_id", pa.string()),
        pa.field("sender_id", pa.string()),
        pa.field("sender_role", pa.string(), nullable=False),
        pa.field("type", pa.string()),
        pa.field("text", pa.string()),
        pa.field("content", pa.string()),
        pa.field("created_at", _TIME),
        pa.field("updated_at", _TIME),
        pa.field("extra", pa.string()),
        pa.field("is_deleted", pa.bool_(), nullable=False),
        pa.field("deleted_at", _TIME),
        pa.field("first_seen_at", _TIME),
        pa.field("last_changed_at", _TIME),
        pa.field("run_id", pa.string()),
    ]
)

# Travels with the rows of a walk and is not written.
DIGEST = "digest"
_WITH_DIGEST = SCHEMA.append(pa.field(DIGEST, pa.binary(16), nullable=False))

# Of these a conversation has few different values; of the others a dictionary only costs.
_FEW_VALUES = ["conversation_id", "organization_id", "business_unit_id", "sender_id", "sender_role", "type",
               "first_seen_at", "last_changed_at", "run_id", "is_deleted"]  # fmt: skip
ROW_GROUP_ROWS = 50_000

# What of an item has a column of its own. All else is in `extra`.
_COLUMN_OF = {
    "_id": "message_id",
    "conversation_id": "conversation_id",
    "organization_id": "organization_id",
    "business_unit_id": "business_unit_id",
    "from": "sender_id",
    "type": "type",
    "content": "content",
    "created_at": "created_at",
    "updated_at": "updated_at",
}
# In `extra`, the fields of `_COLUMN_OF` that the item did not have (a null is not the same).
ABSENT = "$absent"


@dataclass(frozen=True, slots=True)
class Origin:
    """What a row says of itself beyond the message: where it was asked for, when, and by whom."""

    organization_id: str
    conversation_id: str
    run_id: str
    seen_at: datetime


def to_rows(items: Sequence[Item], ids: Sequence[str], origin: Origin) -> pa.Table:
    """Rows of one page, in its order: the columns of `SCHEMA` and `DIGEST`.

    Args:
        items: The gateway's objects.
        ids: Their ids.
        origin: What is the same in all rows.
    """
    extras = [_extra_of(item) for item in items]
    count = len(items)
    held = {
        field: [_held(item, field, extra) for item, extra in zip(items, extras, strict=True)]
        for field in ("business_unit_id", "from", "type", "created_at", "updated_at")
    }
    for item, message_id, extra in zip(items, ids, extras, strict=True):
        _keep_what_differs(item, message_id, origin, extra)
    seen_at = pa.repeat(pa.scalar(origin.seen_at, _TIME), count)
    columns = {
        "message_id": pa.array(map(_encodable, ids), pa.string()),
        "conversation_id": pa.repeat(origin.conversation_id, count),
        "organization_id": pa.repeat(origin.organization_id, count),
        "business_unit_id": pa.array(held["business_unit_id"], pa.string()),
        "sender_id": pa.array(held["from"], pa.string()),
        "sender_role": pa.array(map(_role, held["from"]), pa.string()),
        "type": pa.array(held["type"], pa.string()),
        "text": pa.array([text_of(item.get("content")) for item in items], pa.string()),
        "content": pa.array(
            [dump_json(item["content"]) if "content" in item else None for item in items], pa.string()
        ),
        "created_at": _time_column("created_at", held["created_at"], extras),
        "updated_at": _time_column("updated_at", held["updated_at"], extras),
        # After the times, because what is no time is kept there.
        "extra": pa.array([dump_json(extra) if extra else None for extra in extras], pa.string()),
        "is_deleted": pa.repeat(False, count),
        "deleted_at": pa.nulls(count, _TIME),
        "first_seen_at": seen_at,
        "last_changed_at": seen_at,
        "run_id": pa.repeat(origin.run_id, count),
        DIGEST: pa.array(map(item_digest, items), pa.binary(16)),
    }
    return pa.Table.from_arrays([columns[name] for name in _WITH_DIGEST.names], schema=_WITH_DIGEST)


def _extra_of(item: Item) -> dict[str, Any]:
    """The fields that have no column."""
    extra = {
        key if key[:1] != "$" else f"${key}": value for key, value in item.items() if key not in _COLUMN_OF
    }
    if len(item) - len(extra) < len(_COLUMN_OF):
        extra[ABSENT] = [field for field in _COLUMN_OF if field not in item]
    return extra


def _keep_what_differs(item: Item, message_id: str, origin: Origin, extra: dict[str, Any]) -> None:
    """Keep what the columns say otherwise than the item does: ids that were asked for, odd times."""
    for field, held in (
        ("_id", _encodable(message_id)),
        ("conversation_id", origin.conversation_id),
        ("organization_id", origin.organization_id),
    ):
        if item.get(field, held) != held:
            extra[field] = item[field]
    for field in ("created_at", "updated_at"):
        value = item.get(field)
        if isinstance(value, str) and not _is_canonical(value):
            extra[field] = value


def _time_column(field: str, texts: list[str | None], extras: list[dict[str, Any]]) -> pa.Array:
    """Times of one field; what is no time is null and stays, as it came, in `extra`."""
    try:
        return _times(pa.array(texts, pa.string()))
    except pa.ArrowInvalid:
        kept: list[str | None] = []
        for text, extra in zip(texts, extras, strict=True):
            is_time = text is None or _is_time(text)
            kept.append(text if is_time else None)
            if not is_time:
                extra[field] = text
        return _times(pa.array(kept, pa.string()))


def _times(texts: pa.Array) -> pa.Array:
    # To milliseconds directly, the cast refuses microseconds; by way of them it refuses nothing.
    return pc.cast(texts, pa.timestamp("us", "UTC")).cast(_TIME, safe=False)


def _is_time(text: str) -> bool:
    try:
        _times(pa.array([text], pa.string()))
    except pa.ArrowInvalid:
        return False
    return True


def _is_canonical(text: str) -> bool:
    """Whether a time is written as the column would be written: ``2024-12-10T09:53:17.127Z``."""
    return len(text) == 24 and text[23] == "Z" and text[19] == "." and text[10] == "T"


def _held(item: Item, field: str, extra: dict[str, Any]) -> str | None:
    """The value as a column of strings can hold it; what it cannot goes to `extra`."""
    value = item.get(field)
    if value is None:
        return None
    if isinstance(value, str):
        held = _encodable(value)
        if held is not value:
            extra[field] = value
        return held
    extra[field] = value
    return None


def _encodable(text: str) -> str:
    """The text itself, or a copy whose lone surrogates are question marks: UTF-8 has none."""
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "replace").decode()
    return text


def _role(sender: str | None) -> str:
    if sender is None:
        return "unknown"
    return "contact" if sender.startswith("con_") else "user" if sender.startswith("u_") else "unknown"


def text_of(content: Any) -> str | None:
    """What a person would read of a message; None where there is nothing to read."""
    if isinstance(content, str):
        return _encodable(content)
    if not isinstance(content, dict):
        return None
    texts = [content[name] for name in ("text", "title", "caption", "description") if name in content]
    texts = [text for text in texts if isinstance(text, str)]
    return _encodable(next(filter(None, texts), texts[0])) if texts else None


def dump_json(value: Any) -> str:
    """Compact JSON that keeps integers of any size and, escaped, lone surrogates."""
    try:
        return orjson.dumps(value).decode()
    except TypeError:
        return json.dumps(value, separators=(",", ":"))


def item_digest(item: Mapping[str, Any]) -> bytes:
    """16 bytes that stand for an item, value for value, whatever the order of its fields."""
    try:
        body = orjson.dumps(item, option=orjson.OPT_SORT_KEYS)
    except TypeError:
        body = json.dumps(item, separators=(",", ":"), sort_keys=True).encode()
    return blake2b(body, digest_size=16).digest()


def content_hash(rows: pa.Table) -> str:
    """32 hexadecimal digits that stand for a set of messages: the sum of their digests.

    A sum does not depend on the order of the messages, nor on how they are spread over parts, and
    an added part changes it by what it adds. It guards against accidents, not against an attacker.
    """
    if not rows.num_rows:
        return "0" * 32
    digests = rows.column(DIGEST).combine_chunks()
    lanes = np.frombuffer(digests.buffers()[1], "<u8").reshape(-1, 2)[digests.offset :][: len(digests)]
    return "".join(f"{int(lane):016x}" for lane in lanes.sum(axis=0, dtype=np.uint64))


# -- rows, files ----------------------------------------------------------------------------------


def in_order(table: pa.Table) -> pa.Table:
    """Rows as a part has them: `created_at`, then `message_id`, oldest first; without a time last."""
    order = pc.sort_indices(table, sort_keys=[("created_at", "ascending"), ("message_id", "ascending")])
    return table.take(order).combine_chunks()


def without_repeats(table: pa.Table) -> pa.Table:
    """Each message once, in the version that was updated last, or else read last."""
    ids = table.column("message_id")
    if pc.count_distinct(ids).as_py() == len(ids):
        return table
    updated = table.column("updated_at").cast(pa.int64()).fill_null(0).to_pylist()
    newest: dict[str, int] = {}
    for row, message_id in enumerate(ids.to_pylist()):
        known = newest.get(message_id)
        if known is None or updated[row] >= updated[known]:
            newest[message_id] = row
    return table.take(pa.array(sorted(newest.values()), pa.int64()))


def to_parquet(
    table: pa.Table, metadata: Mapping[str, str], few_values: Sequence[str] = _FEW_VALUES
) -> bytes:
    """Encode rows in memory: an object is published by one PUT or not at all.

    Zstandard at level 1 is smaller than Snappy and hardly slower on objects of this size; page
    checksums cost nothing and tell a flipped byte.
    """
    sink = io.BytesIO()
    schema = table.schema.with_metadata({**metadata, "schema_version": str(SCHEMA_VERSION)})
    with pq.ParquetWriter(
        sink,
        schema,
        compression="zstd",
        compression_level=1,
        use_dictionary=[name for name in few_values if name in table.column_names],
        write_page_checksum=True,
        store_schema=False,
    ) as writer:
        writer.write_table(table.replace_schema_metadata(schema.metadata), row_group_size=ROW_GROUP_ROWS)
    return sink.getvalue()


def to_item(row: Mapping[str, Any]) -> Item:
    """Rebuild the gateway's object from a row of the lake, value for value (times as instants)."""
    extra: dict[str, Any] = json.loads(row["extra"]) if row["extra"] else {}
    absent = set(extra.pop(ABSENT, ()))
    item: Item = {}
    for field, column in _COLUMN_OF.items():
        if field in absent:
            continue
        value = row[column]
        if field == "content":
            value = json.loads(value)
        elif isinstance(value, datetime):
            value = _written(value)
        item[field] = extra.pop(field, value)
    item.update({key[1:] if key[:1] == "$" else key: value for key, value in extra.items()})
    return item


def _written(instant: datetime) -> str:
    return instant.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
