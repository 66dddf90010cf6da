"""A part has its rows in one order and each message once, in whatever order they arrived."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from imbrace_lake.gateway.models import Item, Page
from imbrace_lake.lake.schema import Origin, rows_of_page, to_rows
from imbrace_lake.lake.sorting import in_order, without_repeats

ORIGIN = Origin("org_1", "conv_1", "run_1", datetime(2026, 1, 2, 3, 4, 5, 678_000, UTC))


def item(message_id: str, minute: int = 0, **fields: Any) -> Item:
    at = datetime(2025, 1, 1, tzinfo=UTC) + timedelta(minutes=minute)
    text = at.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return {"_id": message_id, "type": "text", "created_at": text, "updated_at": text, **fields}


def from_gateway(items: Sequence[Item]) -> pa.Table:
    return to_rows(items, [one["_id"] for one in items], ORIGIN)


SOME = [item(f"m{n}", minute=n // 2) for n in range(12)] + [{"_id": "timeless"}]


@pytest.mark.slow
@given(st.permutations(SOME), st.lists(st.sampled_from(SOME)))
def test_rows_ignore_arrival_order_and_repeats(shuffled: list[Item], repeats: list[Item]) -> None:
    rows = in_order(without_repeats(from_gateway([*shuffled, *repeats])))

    assert rows.equals(in_order(from_gateway(SOME)))
    assert rows.column("message_id").to_pylist()[-1] == "timeless"


@pytest.mark.slow
@given(st.permutations(SOME))
def test_a_part_is_sorted_by_time_and_then_by_id_also_from_a_page(shuffled: list[Item]) -> None:
    ids = [one["_id"] for one in shuffled]
    page = Page(0, shuffled, ids, None, None, count_matches=True)
    expected = sorted(
        ids, key=lambda one: (one == "timeless", int(one[1:]) // 2 if one != "timeless" else 0, one)
    )

    assert in_order(from_gateway(shuffled)).column("message_id").to_pylist() == expected
    assert in_order(rows_of_page(page, ORIGIN)).equals(in_order(from_gateway(shuffled)))


def test_a_page_with_an_id_twice_keeps_the_order_of_the_gateway() -> None:
    upper = item("a", minute=5, content="upper", updated_at="2025-01-01T00:00:00.000Z")
    lower = item("a", minute=9, content="lower", updated_at="2025-01-01T00:00:00.000Z")
    page = Page(0, [upper, lower], ["a", "a"], None, None, count_matches=True)

    kept = without_repeats(rows_of_page(page, ORIGIN), is_latest_first=True)

    assert kept.column("text").to_pylist() == ["lower"]


def test_a_page_in_order_is_not_copied() -> None:
    # Messages of the same minute are in the order of their ids, which reversing the page would reverse.
    newest_first = sorted(SOME[:-1], key=lambda one: (-(int(one["_id"][1:]) // 2), one["_id"]))
    page = Page(0, newest_first, [one["_id"] for one in newest_first], None, None, count_matches=True)
    rows = rows_of_page(page, ORIGIN)

    assert in_order(rows).column("message_id").chunk(0).buffers()[2].address == (
        rows.column("message_id").chunk(0).buffers()[2].address
    )


def test_of_two_versions_the_one_updated_last_counts_or_else_the_one_read_last() -> None:
    old = item("a", content="old")
    edited = item("a", minute=1, content="edited")
    again = item("a", minute=1, content="read later")

    def kept(*items: Item) -> list[str]:
        texts = without_repeats(from_gateway(items)).column("text").to_pylist()
        upwards = without_repeats(from_gateway(items[::-1]), is_latest_first=True)
        assert upwards.column("text").to_pylist() == texts
        return texts  # type: ignore[no-any-return]

    assert kept(old, edited) == kept(edited, old) == ["edited"]
    assert kept(edited, old, again) == ["read later"]
    assert kept({"_id": "a", "content": "1"}, {"_id": "a", "content": "2"}) == ["2"]
