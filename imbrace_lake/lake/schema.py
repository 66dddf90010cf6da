"""The columns of a message, and the conversion from the gateway's JSON object to a row and back.

`SCHEMA` is the same in every object of the lake, because engines drop or reject columns that differ between
files. Values that a column cannot store as received are in `extra`, so nothing is lost.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.compute as pc

from imbrace_lake.gateway.exact_json import (
    SURELY_STRICT,
    RepeatedKeys,
    encodable,
    is_strict,
    may_be_loose,
    parse,
    strict,
    write,
)
from imbrace_lake.gateway.models import Item, Page
from imbrace_lake.lake.hashes import DIGEST, EXACT, item_digests

SCHEMA_VERSION = 1

_TIME = pa.timestamp("ms", "UTC")
# Other times are null: Spark 3 rejects earlier ones, and later ones do not fit into nanoseconds. Times in the
# years 1 and 9999 have no local time in half of the world, and queries that display it fail.
# Not Arrow scalars: the first one would import pandas.
FIRST_TIME = datetime(1900, 1, 1, tzinfo=UTC)
END_OF_TIME = datetime(2262, 1, 1, tzinfo=UTC)
# The beginning of canonical times.
_LEAST_YEAR, _END_YEAR = f"{FIRST_TIME.year}", f"{END_OF_TIME.year}"

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

EMPTY = pa.Table.from_batches([], SCHEMA)

# Rows of a walk.
WITH_DIGEST = SCHEMA.append(pa.field(DIGEST, pa.binary(16), nullable=False))

# The fields with a separate column. All others are in `extra`.
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
# The role of a sender, by the prefix of the id. Parts written before `pub_` was known have `unknown`.
_ROLES = {"con_": "contact", "u_": "user", "pub_": "bot"}
# In `extra`: the fields of `_COLUMN_OF` that the item does not have (null is a value).
ABSENT = "$absent"
# In `extra`: JSON, as text, of the fields that strict JSON cannot represent as received, also of `content`.
ORIGINAL = "$original"


@dataclass(frozen=True, slots=True)
class Origin:
    """The origin of a row: organization, conversation, run and time of reading."""

    organization_id: str
    conversation_id: str
    run_id: str
    seen_at: datetime


def rows_of_page(page: Page, origin: Origin) -> pa.Table:
    """Return the rows of a page, nearly always in the order of a part (sorting.py)."""
    oldest_first = range(len(page.ids) - 1, -1, -1)
    if len({*page.ids}) < len(page.ids):
        # Of two versions, the one further down in the page counts as read later.
        return to_rows(page.items[::-1], page.ids[::-1], origin)
    keys = [
        (item.get("created_at"), message_id) for item, message_id in zip(page.items, page.ids, strict=True)
    ]
    try:
        # Canonical times have the order of their texts.
        order: Sequence[int] = sorted(oldest_first, key=keys.__getitem__)
    except TypeError:
        order = oldest_first
    return to_rows([page.items[index] for index in order], [page.ids[index] for index in order], origin)


def to_rows(items: Sequence[Item], ids: Sequence[str], origin: Origin) -> pa.Table:
    """Return the rows of messages, in their order, with the columns of `SCHEMA` and `DIGEST`.

    Args:
        items: The gateway's objects.
        ids: Their ids.
        origin: The origin of all rows.
    """
    values, extras = _split(items)
    count = len(items)
    message_ids = [*map(encodable, ids)]
    _keep_other_ids(values, message_ids, origin, extras)
    senders = _string_column("from", values, extras)
    seen_at = pa.repeat(pa.scalar(origin.seen_at, _TIME), count)
    columns = {
        "message_id": pa.array(message_ids, pa.string()),
        "conversation_id": pa.repeat(origin.conversation_id, count),
        "organization_id": pa.repeat(origin.organization_id, count),
        "business_unit_id": _string_column("business_unit_id", values, extras),
        "sender_id": senders,
        "sender_role": _roles(senders),
        "type": _string_column("type", values, extras),
        "text": _content_texts(values["content"]),
        **_time_columns(values, extras),
        # After the others, which add the values that they cannot store to `extra`.
        **_json_columns(items, extras),
        "is_deleted": pa.repeat(False, count),
        "deleted_at": pa.nulls(count, _TIME),
        "first_seen_at": seen_at,
        "last_changed_at": seen_at,
        "run_id": pa.repeat(origin.run_id, count),
        DIGEST: pa.array(item_digests(items), pa.binary(16)),
    }
    return pa.Table.from_arrays([columns[name] for name in WITH_DIGEST.names], schema=WITH_DIGEST)


_Values = Mapping[str, Sequence[Any]]
_Extras = Sequence[dict[str, Any]]


def _split(items: Sequence[Item]) -> tuple[_Values, _Extras]:
    """Return the values of each field with a column, and for each item its other fields."""
    shapes = set(map(tuple, items))
    if len(shapes) != 1:
        values: _Values = {field: [item.get(field) for item in items] for field in _COLUMN_OF}
        return values, [_extra_of(item) for item in items]
    # Nearly always all items have the same fields in the same order, so that none needs a separate look.
    (shape,) = shapes
    values = dict(zip(shape, zip(*map(dict.values, items), strict=True), strict=True))
    others = [field for field in shape if field not in _COLUMN_OF]
    names = [*map(_escaped, others)]
    extras: list[dict[str, Any]] = [{} for _ in items]
    if others:
        rows = zip(*(values[field] for field in others), strict=True)
        extras = [dict(zip(names, row, strict=True)) for row in rows]
    absent = [field for field in _COLUMN_OF if field not in values]
    if absent:
        values |= dict.fromkeys(absent, (None,) * len(items))
        for extra in extras:
            extra[ABSENT] = absent
    return values, extras


def _extra_of(item: Item) -> dict[str, Any]:
    """Return the fields without a column."""
    extra = {_escaped(key): value for key, value in item.items() if key not in _COLUMN_OF}
    if len(item) - len(extra) < len(_COLUMN_OF):
        extra[ABSENT] = [field for field in _COLUMN_OF if field not in item]
    return extra


def _escaped(field: str) -> str:
    """Return the name of a field in `extra`, different from `ABSENT` and `ORIGINAL`."""
    return field if field[:1] != "$" else f"${field}"


def _unescaped(name: str) -> str:
    return name[1:] if name[:1] == "$" else name


def _keep_other_ids(values: _Values, message_ids: Sequence[str], origin: Origin, extras: _Extras) -> None:
    """Keep ids that differ from those in the columns, which are the requested ones."""
    count = len(message_ids)
    for field, in_lake in (
        ("_id", message_ids),
        ("conversation_id", [origin.conversation_id] * count),
        ("organization_id", [origin.organization_id] * count),
    ):
        if [*values[field]] == in_lake:
            continue
        for value, expected, extra in zip(values[field], in_lake, extras, strict=True):
            if value != expected and field not in extra.get(ABSENT, ()):
                extra[field] = value


def _string_column(field: str, values: _Values, extras: _Extras) -> pa.Array:
    """Return the values of one field; `extra` gets values that the column cannot store as received."""
    try:
        return pa.array(values[field], pa.string())
    except (TypeError, UnicodeEncodeError):
        texts = [encodable(value) if isinstance(value, str) else None for value in values[field]]
        for text, value, extra in zip(texts, values[field], extras, strict=True):
            if text is not value:
                extra[field] = value
        return pa.array(texts, pa.string())


def _roles(senders: pa.Array) -> pa.Array:
    texts = senders.to_pylist()
    roles = {sender: _role(sender) for sender in set(texts)}
    return pa.array([roles[sender] for sender in texts], pa.string())


def _time_columns(values: _Values, extras: _Extras) -> dict[str, pa.Array]:
    """Return both columns of times; `extra` gets values that a column would not give back as received."""
    fields, count = ("created_at", "updated_at"), len(extras)
    texts = [text for field in fields for text in values[field]]
    try:
        # Together, because a cast takes longer than the texts of a page.
        times = pa.array(texts, pa.string()).cast(_TIME)
        if _are_canonical(texts):
            return {field: times.slice(index * count, count) for index, field in enumerate(fields)}
    except (pa.ArrowInvalid, TypeError, UnicodeEncodeError):
        pass  # a value is not a time, or is more precise than the column
    return {field: _time_column(field, values, extras) for field in fields}


def _time_column(field: str, values: _Values, extras: _Extras) -> pa.Array:
    texts = _string_column(field, values, extras)
    for value, extra in zip(values[field], extras, strict=True):
        if isinstance(value, str) and not _is_canonical(value):
            extra[field] = value
    try:
        return _times(texts)
    except pa.ArrowInvalid:
        kept = [text if text and _is_time(text) else None for text in texts.to_pylist()]
        for text, value, extra in zip(kept, values[field], extras, strict=True):
            if text is None and value is not None:
                extra[field] = value
        return _times(pa.array(kept, pa.string()))


def _times(texts: pa.Array) -> pa.Array:
    # A cast rejects more than six decimals, which .NET and Go write, instead of rounding.
    texts = pc.replace_substring_regex(texts, r"(\.[0-9]{6})[0-9]+", r"\1")
    # By way of microseconds, because a cast to milliseconds rejects microseconds even with `safe=False`.
    times = pc.cast(texts, pa.timestamp("us", "UTC")).cast(_TIME, safe=False)
    first, end = pa.scalar(FIRST_TIME, _TIME), pa.scalar(END_OF_TIME, _TIME)
    is_readable = pc.and_(pc.greater_equal(times, first), pc.less(times, end))
    return pc.if_else(is_readable, times, pa.scalar(None, _TIME))


def _is_time(text: str) -> bool:
    try:
        _times(pa.array([text], pa.string()))
    except pa.ArrowInvalid:
        return False
    return True


def _is_canonical(text: str) -> bool:
    """Whether a time has the form in which a column's time is written: ``2024-12-10T09:53:17.127Z``."""
    is_form = len(text) == 24 and text[23] == "Z" and text[19] == "." and text[10] == "T"
    return is_form and _LEAST_YEAR <= text < _END_YEAR


def _are_canonical(times: Sequence[Any]) -> bool:
    """Whether all of these texts, which are times, are canonical; checks them together."""
    count = len(times)
    if not count or None in times:
        return False
    text = "".join(times)
    # A Z can only end a time, so with a Z at every 24th position each time has 24 characters.
    is_form = text[23::24] == "Z" * count and text[19::24] == "." * count and text[10::24] == "T" * count
    return is_form and bool(min(times) >= _LEAST_YEAR and max(times) < _END_YEAR)


def _role(sender: str | None) -> str:
    for prefix, role in _ROLES.items():
        if sender is not None and sender.startswith(prefix):
            return role
    return "unknown"


def _content_texts(contents: Sequence[Any]) -> pa.Array:
    """Return the `text_of` each content."""
    texts = [content.get("text") if content.__class__ is dict else None for content in contents]
    if None in texts or "" in texts:
        texts = [text or text_of(content) for text, content in zip(texts, contents, strict=True)]
    try:
        return pa.array(texts, pa.string())
    except (TypeError, UnicodeEncodeError):
        return pa.array(map(text_of, contents), pa.string())


def text_of(content: Any) -> str | None:
    """Return the text that a person would read of a message; None if there is none."""
    if isinstance(content, str):
        return encodable(content)
    if not isinstance(content, dict):
        return None
    text = content.get("text")
    if isinstance(text, str) and text:
        return encodable(text)
    texts = [content[name] for name in ("text", "title", "caption", "description") if name in content]
    texts = [text for text in texts if isinstance(text, str)]
    return encodable(next(filter(None, texts), texts[0])) if texts else None


def _json_columns(items: Sequence[Item], extras: _Extras) -> dict[str, pa.Array]:
    """Return the columns `content` and `extra`, strict JSON in every row."""
    try:
        # Without a function of ours, which would be called 200 times per page.
        contents = [
            orjson.dumps(item["content"], None, EXACT) if "content" in item else None for item in items
        ]
        others = [orjson.dumps(extra, None, EXACT) if extra else None for extra in extras]
    except TypeError:
        rows = [*map(_strict_texts, items, extras)]
        contents, others = [content for content, _ in rows], [other for _, other in rows]
    else:
        doubtful = {*_doubtful(contents), *_doubtful(others)}
        if {*map(type, items)} != {dict}:
            doubtful.update(row for row, item in enumerate(items) if isinstance(item, RepeatedKeys))
        for row in doubtful:
            contents[row], others[row] = _strict_texts(items[row], extras[row])
    return {"content": pa.array(contents, pa.string()), "extra": pa.array(others, pa.string())}


def _doubtful(texts: Sequence[bytes | None]) -> Iterator[int]:
    """Yield the indexes of texts from orjson that may not be strict JSON."""
    for index, text in enumerate(texts):
        if text is not None and len(text) > SURELY_STRICT and may_be_loose(text):
            yield index


def _strict_texts(item: Item, extra: Mapping[str, Any]) -> tuple[bytes | None, bytes | None]:
    """Return `content` and `extra` of one row; fields that are not strict JSON are also in `ORIGINAL`."""
    pairs = item.pairs if isinstance(item, RepeatedKeys) else [*item.items()]
    loose = {field for field, count in Counter(field for field, _ in pairs).items() if count > 1}
    if "content" in item and not is_strict(item["content"]):
        loose.add("content")
    kept: dict[str, Any] = {}
    for name, value in extra.items():
        if is_strict({name: value}):
            kept[name] = value
            continue
        loose.add(_unescaped(name))
        strictly = strict({name: value})
        # A field with a changed name would come back beside the one in `ORIGINAL`.
        if name in strictly:
            kept |= strictly
    if loose:
        # Sorted, because a row does not keep the order of the message's fields.
        own = sorted((pair for pair in pairs if pair[0] in loose), key=lambda pair: pair[0])
        kept[ORIGINAL] = write(RepeatedKeys(own))
    content = orjson.dumps(strict(item["content"])) if "content" in item else None
    return content, orjson.dumps(kept) if kept else None


# Two versions of a message differ in these columns; the others are added by the lake or derived.
CONTENT = ["business_unit_id", "sender_id", "type", "content", "created_at", "updated_at", "extra"]


def as_written_today(rows: pa.Table) -> pa.Table:
    """Return rows of one conversation, from any release, in the form that this release writes."""
    if not rows.num_rows:
        return rows
    first = rows.slice(0, 1).to_pylist()[0]
    origin = Origin(first["organization_id"], first["conversation_id"], "", FIRST_TIME)
    written = to_rows(_to_items(rows), rows.column("message_id").to_pylist(), origin)
    for name in (*CONTENT, "text"):
        rows = rows.set_column(SCHEMA.names.index(name), SCHEMA.field(name), written.column(name))
    return rows


def with_digests(rows: pa.Table) -> pa.Table:
    """Return rows of the lake with the digests of their messages, which takes 10 µs per row."""
    digests = pa.array(item_digests(_to_items(rows)), pa.binary(16))
    return rows.append_column(WITH_DIGEST.field(DIGEST), digests)


def _to_items(rows: pa.Table) -> list[Item]:
    """Return the `to_item` of each row."""
    rows = rows.select([*_COLUMN_OF.values(), "extra"])
    for index, kind in enumerate(rows.schema.types):
        if pa.types.is_timestamp(kind):
            # As in `to_item`; a `datetime` for each row would take half of all the time.
            texts = pc.utf8_replace_slice(rows.column(index).cast(pa.string()), 10, 11, "T")
            rows = rows.set_column(index, rows.schema.names[index], texts)
    return [*map(to_item, rows.to_pylist())]


def to_item(row: Mapping[str, Any]) -> Item:
    """Rebuild the gateway's object from a row of the lake, value for value (times as instants)."""
    extra: dict[str, Any] = parse(row["extra"].encode()) if row["extra"] else {}
    absent = extra.pop(ABSENT, ())
    original = parse(extra.pop(ORIGINAL).encode()) if ORIGINAL in extra else {}
    item: Item = {field: row[column] for field, column in _COLUMN_OF.items()}
    if item["content"] is not None:
        item["content"] = parse(item["content"].encode())
    for field in ("created_at", "updated_at"):
        value = item[field]
        if isinstance(value, datetime):
            item[field] = value.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    for field in absent:
        del item[field]
    if extra:
        item.update({_unescaped(name): value for name, value in extra.items()})
    item.update(original)
    if not isinstance(original, RepeatedKeys):
        return item
    return RepeatedKeys(
        [*((key, value) for key, value in item.items() if key not in original), *original.pairs]
    )
