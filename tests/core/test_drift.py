"""Messages of new shapes are found, and reported without their content."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from imbrace_lake.export.drift import MAX_NEW, Shapes
from imbrace_lake.lake.ledger_schema import SHAPES

TEXT: dict[str, Any] = {
    "_id": "m1",
    "public_id": "m1",
    "type": "text",
    "content": {"text": "hello", "is_mail": False},
    "created_at": "2025-01-01T00:00:00.000Z",
}


def new(item: dict[str, Any], known: list[str] | None = None) -> list[str]:
    return Shapes(known or []).observe("c1", [item])


def test_documented_shapes_are_not_new() -> None:
    documented = [
        TEXT,
        {"type": "image", "content": {"url": "u", "caption": "c"}},
        {"type": "image", "content": {"url": "u", "caption": None}},
        {"type": "response", "content": {"title": "t", "text": "x", "quick_replies": [{"id": 1}]}},
        {"type": "whatsapp.template", "content": {"text": "t", "variables": []}},
        {"type": "text", "content": None},
    ]

    assert [new(item) for item in documented] == [[]] * len(documented)


def test_a_new_type_a_new_field_and_another_kind_of_value_are_new() -> None:
    assert new(TEXT | {"type": "poll"}) == [
        "poll",
        "poll.content:object",
        "poll.content.text:string",
        "poll.content.is_mail:boolean",
    ]
    assert new(TEXT | {"comments": []}) == ["item.comments"]
    assert new(TEXT | {"content": {"text": 7}}) == ["text.content.text:number"]
    assert new(TEXT | {"content": "hello"}) == ["text.content:string"]
    assert new(TEXT | {"content": ["hello"]}) == ["text.content:array"]
    assert new(TEXT | {"content": {"text": "x", "via": {"app": 1}}}) == ["text.content.via:object"]


def test_a_message_with_a_missing_or_non_string_type_has_a_shape_too() -> None:
    assert "null" in new({"_id": "m1", "content": None})
    assert "number" in new({"type": 3, "content": {}})
    assert "object" in new({"type": {"a": 1}, "content": {}})


def test_a_shape_that_was_seen_or_is_in_the_ledger_is_not_new() -> None:
    shapes = Shapes()
    item = TEXT | {"comments": []}

    assert shapes.observe("c1", [item, item]) == ["item.comments"]
    assert not shapes.observe("c2", [item])
    assert shapes.new == {"item.comments": "c1"}
    assert not new(item, known=["item.comments"])


def test_a_shape_that_is_not_kept_is_new_each_time() -> None:
    shapes = Shapes()
    item = TEXT | {"comments": []}

    assert shapes.observe("c1", [item], is_kept=False) == ["item.comments"]
    assert shapes.observe("c2", [item], is_kept=False) == ["item.comments"]


_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text("SECRET0123456789", min_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("abc"), inner, max_size=2),
    max_leaves=4,
)


@given(_values, _values)
def test_no_value_of_a_message_is_in_a_shape(content: object, other: object) -> None:
    shapes = new({"type": "text", "content": content, "from": other, "comments": other})

    assert not any(mark in shape for shape in shapes for mark in "SECRT0123456789")


def test_new_shapes_are_rows_of_their_ledger() -> None:
    shapes = Shapes()
    shapes.observe("c1", [TEXT | {"comments": []}])
    seen_at = datetime(2026, 1, 1, tzinfo=UTC)

    rows = shapes.rows("run", "org", seen_at)

    assert rows.schema.equals(SHAPES)
    assert rows.to_pylist() == [
        {
            "run_id": "run",
            "organization_id": "org",
            "shape": "item.comments",
            "conversation_id": "c1",
            "seen_at": seen_at,
        }
    ]


def test_names_that_may_be_values_are_masked_and_bounded() -> None:
    phones = {f"8869{number:08}": 1 for number in range(5_000)}
    markup = {"type": "<img src=x onerror=alert(1)>\x1b[2J" + "x" * 100_000, "content": phones}
    shapes = Shapes()

    shapes.observe("conv_1", [markup])
    for number in range(MAX_NEW):
        shapes.observe(
            "conv_1", [{"type": "text", "content": {f"key {chr(97 + number % 26) * (number + 1)}": 1}}]
        )
        shapes.observe("conv_1", [{"type": f"type-{number}-of-many", "content": None}])

    assert len(shapes.new) <= MAX_NEW
    assert all(len(shape) < 250 and shape.isprintable() and "<" not in shape for shape in shapes.new)
    assert not [shape for shape in shapes.new if "8869" in shape]
