"""The index finds rows by their strings, even if hashes collide."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imbrace_lake.lake import hash_index
from imbrace_lake.lake.hash_index import HashIndex

_texts = st.lists(st.text("abc", max_size=3), max_size=30)


@given(_texts, _texts)
def test_the_rows_of_some_strings_are_found_in_order(column: list[str], wanted: list[str]) -> None:
    expected = [row for row, text in enumerate(column) if text in wanted]

    assert HashIndex(column, len(column)).find(wanted).tolist() == expected


@pytest.mark.parametrize("hash_of", [len, lambda text: 7])
def test_strings_with_the_same_hash_are_all_found(
    monkeypatch: pytest.MonkeyPatch, hash_of: Callable[[str], int]
) -> None:
    monkeypatch.setattr(hash_index, "hash", hash_of, raising=False)
    column = ["a", "b", "cc", "a"]

    found = HashIndex(column, len(column)).find(["a"]).tolist()

    assert {0, 3} <= {*found}
    assert found == sorted(found)
