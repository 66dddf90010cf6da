"""Messages become rows and messages again without loss, in one schema."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from imbrace_lake.gateway.models import Item, parse_page
from imbrace_lake.lake.hashes import DIGEST, content_hash, item_digest
from imbrace_lake.lake.lake import read_rows
from imbrace_lake.lake.parquet import to_parquet
from imbrace_lake.lake.schema import (
    SCHEMA,
    SCHEMA_VERSION,
    Origin,
    text_of,
    to_item,
    to_rows,
)
from imbrace_lake.lake.sorting import in_order
from imbrace_sandbox import Sandbox, SandboxOptions

SEEN_AT = datetime(2026, 1, 2, 3, 4, 5, 678_000, UTC)
ORIGIN = Origin("org_1", "conv_1", "run_1", SEEN_AT)

ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=12)
NUMBERS = st.integers() | st.integers(-(2**90), 2**90) | st.floats(allow_nan=False, allow_infinity=False)
ANY_JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | ANY_TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(ANY_TEXT, inner, max_size=3),
    max_leaves=8,
)
TIMES = (
    st.datetimes().map(lambda at: at.isoformat(timespec="milliseconds") + "Z")
    | st.datetimes().map(lambda at: at.isoformat() + "+08:00")
    | st.from_regex(r"\A[0-9]{4}-[01][0-9]-[0-3][0-9]T[0-2][0-9]:[0-6][0-9]:[0-6][0-9]\.[0-9]{3}Z\Z")
    | ANY_JSON
)
IDS = st.text(st.characters(exclude_categories=()), min_size=1, max_size=12)
KNOWN_FIELDS = {
    "public_id": ANY_TEXT,
    "organization_id": st.just("org_1") | ANY_JSON,
    "conversation_id": st.just("conv_1") | ANY_JSON,
    "business_unit_id": ANY_JSON,
    "from": st.just("con_1") | ANY_JSON,
    "type": ANY_JSON,
    "content": ANY_JSON,
    "created_at": TIMES,
    "updated_at": TIMES,
    "$absent": ANY_JSON,
    "$$": ANY_JSON,
    "digest": ANY_JSON,
    "extra": ANY_JSON,
}
ITEMS = st.builds(
    lambda others, known, message_id: {**others, **known, "_id": message_id},
    st.dictionaries(ANY_TEXT, ANY_JSON, max_size=3),
    st.fixed_dictionaries({}, optional=KNOWN_FIELDS),
    IDS,
)


def from_gateway(items: Sequence[Item]) -> pa.Table:
    """Return the rows of these items as the gateway sends them."""
    body = json.dumps({"items": items, "count": len(items), "total": len(items)}).encode()
    page = parse_page(body, 0)
    return to_rows(page.items, page.ids, ORIGIN)


def stored(rows: pa.Table) -> pa.Table:
    return read_rows(to_parquet(rows.drop_columns([DIGEST]), {}))


def rebuilt(rows: pa.Table) -> list[Item]:
    return [to_item(row) for row in stored(rows).to_pylist()]


def spelled(items: Sequence[Item]) -> list[str]:
    """Return texts that are equal exactly if the items are; 1, 1.0 and True are different."""
    return [json.dumps(json.loads(json.dumps(item)), sort_keys=True) for item in items]


def item(message_id: str, minute: int = 0, **fields: Any) -> Item:
    at = datetime(2025, 1, 1, tzinfo=UTC) + timedelta(minutes=minute)
    text = at.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return {"_id": message_id, "type": "text", "created_at": text, "updated_at": text, **fields}


# -- items ----------------------------------------------------------------------------------------


@pytest.mark.slow
@given(st.lists(ITEMS, min_size=1, max_size=3))
@example([{"_id": "half \ud800"}])
@example([{"_id": "a", "created_at": "\ud800" * 24}])
@example([{"_id": "a", "created_at": "2024-\ud8001-01T00:00:00.000Z"}])
@example([{"_id": "a", "created_at": "0000-01-01T00:00:00.000Z"}])
@example([{"_id": "a", "created_at": "0000-12-31T23:59:59.999-14:00"}])
@example([{"_id": "a", "created_at": "9999-12-31T23:59:59.999Z", "updated_at": "9999-12-31T23:59:59-12:00"}])
@example([{"_id": "a", "created_at": "2016-12-31T23:59:60.000Z", "updated_at": "2024-02-30T00:00:00.000Z"}])
def test_any_item_comes_back_value_for_value(items: list[Item]) -> None:
    assert spelled(rebuilt(from_gateway(items))) == spelled(items)


@pytest.mark.parametrize(
    "fields",
    [
        {"_id": 7},
        {"_id": 2**70},
        {"_id": ["a", {"b": None}]},
        {"_id": None, "public_id": "msg_1"},
        {"_id": "", "public_id": "msg_1"},
        {"public_id": "msg_1"},
    ],
)
def test_an_id_of_any_shape_comes_back(fields: Item) -> None:
    rows = from_gateway([fields])

    assert rows.column("message_id")[0].as_py()
    assert spelled(rebuilt(rows)) == spelled([fields])


def test_every_edge_case_of_the_fake_gateway_comes_back() -> None:
    with Sandbox(SandboxOptions(conversations=1, sizes=(120,), surprises=0.5)) as box:
        truths = [box.truth(each) for each in box.conversations]

    for truth in truths:
        assert spelled(rebuilt(from_gateway(truth))) == spelled(truth)


def test_a_value_that_differs_from_its_column_is_kept() -> None:
    other = item("a", conversation_id="conv_other", organization_id=None)

    row = stored(from_gateway([other])).to_pylist()[0]

    assert (row["conversation_id"], row["organization_id"]) == ("conv_1", "org_1")
    assert json.loads(row["extra"])["conversation_id"] == "conv_other"
    assert to_item(row) == other


# -- times ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "instant"),
    [
        ("2024-12-10T09:53:17.127Z", "2024-12-10T09:53:17.127+00:00"),
        ("2024-12-10T09:53:17.127+00:00", "2024-12-10T09:53:17.127+00:00"),
        ("2024-12-10T17:53:17.127+08:00", "2024-12-10T09:53:17.127+00:00"),
        ("2024-12-10T09:53:17Z", "2024-12-10T09:53:17.000+00:00"),
        ("2024-12-10T09:53:17.127999Z", "2024-12-10T09:53:17.127+00:00"),
        ("2024-12-10T09:53:17.127123456Z", "2024-12-10T09:53:17.127+00:00"),
        ("2024-12-10T17:53:17.9999999+08:00", "2024-12-10T09:53:17.999+00:00"),
        ("2024-12-10 09:53:17.127Z", "2024-12-10T09:53:17.127+00:00"),
        ("1969-12-31T23:59:59.999Z", "1969-12-31T23:59:59.999+00:00"),
        ("yesterday", None),
        ("", None),
        (None, None),
        (1_733_824_397_127, None),
        ({"$date": 1}, None),
        ("0000-01-01T00:00:00.000Z", None),
    ],
)
def test_a_time_of_any_shape_is_an_instant_or_null_and_is_kept(text: Any, instant: str | None) -> None:
    sent = item("a") | {"created_at": text}

    row = stored(from_gateway([sent, item("b")])).to_pylist()[0]

    assert row["created_at"] == (instant and datetime.fromisoformat(instant))
    assert to_item(row) == sent


@pytest.mark.slow
@given(st.lists(ITEMS, min_size=1, max_size=2))
def test_every_row_can_be_read_as_python_values(items: list[Item]) -> None:
    rows = from_gateway(items)

    for name in ("created_at", "updated_at"):
        for value in rows.column(name).to_pylist():
            assert value is None or value.tzinfo is not None


# -- text and role --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ({"text": "Hello", "is_mail": False}, "Hello"),
        ({"title": "Yes", "payload": "yes", "description": "agree"}, "Yes"),
        ({"title": "Choose", "text": "What now?", "quick_replies": [{"id": 1, "title": "A"}]}, "What now?"),
        ({"url": "https://x/y.png", "caption": "a cat"}, "a cat"),
        ({"url": "https://x/y.png"}, None),
        ({"url": "https://x/y.mp4", "text": "a film"}, "a film"),
        ({"text": "Hi {{1}}", "variables": ["Ann"]}, "Hi {{1}}"),
        ({"text": "", "title": "second best"}, "second best"),
        ({"text": None, "caption": "third"}, "third"),
        ({"text": ""}, ""),
        ({"text": 7, "description": "fourth"}, "fourth"),
        ({"text": 7}, None),
        ({}, None),
        ("a bare string", "a bare string"),
        ("half \ud83d", "half ?"),
        ({"text": "half \ud83d"}, "half ?"),
        (None, None),
        ([{"text": "no"}], None),
        (42, None),
    ],
)
def test_the_text_is_the_readable_part_of_the_content(content: Any, text: str | None) -> None:
    assert text_of(content) == text


@pytest.mark.parametrize(
    ("sender", "role"),
    [
        ("con_1", "contact"),
        ("pub_1", "bot"),
        ("u_1", "user"),
        ("bot", "unknown"),
        (None, "unknown"),
        (7, "unknown"),
    ],
)
def test_the_role_follows_from_the_senders_id(sender: Any, role: str) -> None:
    assert from_gateway([item("a") | {"from": sender}]).column("sender_role").to_pylist() == [role]


# -- one schema -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "items", [[], [{"_id": "only an id"}], [item("a", content=None)], [item("b") | {"from": "c"}]]
)
def test_the_schema_does_not_depend_on_the_rows(items: list[Item]) -> None:
    body = to_parquet(from_gateway(items).drop_columns([DIGEST]), {"run_id": "r"})

    schema = pq.read_schema(io.BytesIO(body))
    assert schema.remove_metadata() == SCHEMA
    assert [schema.field(name).nullable for name in SCHEMA.names] == [field.nullable for field in SCHEMA]
    metadata = pq.read_metadata(io.BytesIO(body)).metadata
    assert metadata == {b"run_id": b"r", b"schema_version": str(SCHEMA_VERSION).encode()}
    assert {str(kind) for kind in SCHEMA.types} == {"string", "bool", "timestamp[ms, tz=UTC]"}


@pytest.fixture
def part(tmp_path: Path) -> tuple[Path, list[Item]]:
    """Make a part with all unusual values but lone surrogates in texts, which no engine supports."""
    with Sandbox(SandboxOptions(conversations=1, sizes=(150,), surprises=0.3)) as box:
        items = [each for found in box.conversations for each in box.truth(found)]
    path = tmp_path / "part-00000.parquet"
    path.write_bytes(to_parquet(in_order(from_gateway(items)).drop_columns([DIGEST]), {}))
    return path, items


def texts_of(items: Sequence[Item]) -> dict[str, str | None]:
    return {each["_id"]: text_of(each.get("content")) for each in items}


def test_duckdb_reads_the_part_as_written(part: tuple[Path, list[Item]]) -> None:
    path, items = part

    with duckdb.connect() as connection:
        rows = connection.read_parquet(str(path))
        kinds = dict(zip(rows.columns, map(str, rows.types), strict=True))
        found = dict(rows.project("message_id, text").fetchall())

    assert found == texts_of(items)
    assert kinds["created_at"] == "TIMESTAMP WITH TIME ZONE"
    assert kinds["content"] == "VARCHAR"
    assert kinds["is_deleted"] == "BOOLEAN"


def test_polars_reads_the_part_as_written(part: tuple[Path, list[Item]]) -> None:
    path, items = part

    frame = pl.read_parquet(path)

    assert dict(frame.select("message_id", "text").iter_rows()) == texts_of(items)
    assert frame.schema["created_at"] == pl.Datetime("ms", "UTC")


def test_pandas_reads_the_part_as_written(part: tuple[Path, list[Item]]) -> None:
    path, items = part

    frame = pd.read_parquet(path)

    texts = frame["text"].astype(object).where(frame["text"].notna(), None)
    assert dict(zip(frame["message_id"], texts, strict=True)) == texts_of(items)
    assert str(frame["created_at"].dtype) == "datetime64[ms, UTC]"


# -- hashes ----------------------------------------------------------------------------------------

SOME = [item(f"m{n}", minute=n // 2) for n in range(12)] + [{"_id": "timeless"}]


@pytest.mark.slow
@given(st.permutations(SOME), st.integers(0, len(SOME)))
def test_the_content_hash_ignores_the_order_and_the_pages_of_messages(shuffled: list[Item], cut: int) -> None:
    pages = [from_gateway(shuffled[:cut]), from_gateway(shuffled[cut:])]

    assert content_hash(pa.concat_tables(pages)) == content_hash(from_gateway(SOME))
    assert content_hash(pa.concat_tables(pages).slice(cut)) == content_hash(pages[1])


@pytest.mark.slow
@given(st.lists(ITEMS, min_size=2, max_size=2))
def test_different_content_has_a_different_digest_and_equal_content_the_same(items: list[Item]) -> None:
    first, second = items
    turned = dict(reversed(first.items()))

    assert item_digest(first) == item_digest(turned)
    assert (item_digest(first) == item_digest(second)) == (spelled([first]) == spelled([second]))


@pytest.mark.parametrize(
    "change", [{"content": "y"}, {"updated_at": "z"}, {"extra field": None}, {"from": None}]
)
def test_any_change_of_a_message_changes_the_content_hash(change: Item) -> None:
    before = from_gateway([item("a", content="x"), item("b")])
    after = from_gateway([item("a", content="x") | change, item("b")])

    assert content_hash(before) != content_hash(after)
    assert len(content_hash(before)) == 32


def test_an_empty_table_has_a_hash_too() -> None:
    assert content_hash(from_gateway([])) == "0" * 32
