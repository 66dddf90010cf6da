"""Id sets, which keep digests instead of ids when they are large."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest

from imbrace_lake.gateway import id_set
from imbrace_lake.gateway.id_set import IdSet


@pytest.mark.parametrize("most_in_set", [1, 7, 50, 10_000])
def test_an_id_set_equals_a_set_of_strings(monkeypatch: pytest.MonkeyPatch, most_in_set: int) -> None:
    monkeypatch.setattr(id_set, "MAX_IN_SET", most_in_set)
    rng = Random(most_in_set)
    found, expected = IdSet(), set[str]()
    for _ in range(200):
        page = [f"m{rng.randrange(900)}" for _ in range(rng.randrange(12))]
        if rng.random() < 0.1:
            other = [f"m{rng.randrange(900)}" for _ in range(rng.randrange(120))]
            found.update(IdSet(other))
            expected.update(other)

        assert found.difference(page) == [one for one in page if one not in expected]
        assert found.count(page) == sum(one in expected for one in page)
        assert found.isdisjoint(page) == expected.isdisjoint(page)
        assert [one in found for one in page] == [one in expected for one in page]

        found.add(page)
        expected.update(page)
        assert len(found) == len(expected)


def test_a_copy_of_a_set_grows_separately(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(id_set, "MAX_IN_SET", 4)
    first = IdSet(f"m{number}" for number in range(10))
    second = IdSet()
    second.update(first)

    first.add(["a"])
    second.add(["b", "c"])

    assert (len(first), len(second)) == (11, 12)
    assert "b" not in first
    assert "a" not in second


def test_ids_that_utf_8_cannot_encode_are_distinguished(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(id_set, "MAX_IN_SET", 1)

    found = IdSet(["\ud800", "é"])

    assert len(found) == 2
    assert found.difference(["\ud800", "\ud801", "é"]) == ["\ud801"]


def test_ids_with_half_a_digest_in_common_are_different() -> None:
    first = np.array([5, 5, 9], np.uint64)
    found = IdSet()
    found._levels = [(first, np.array([1, 2, 3], np.uint64))]

    is_there = found._are_in_levels((np.array([5, 5, 9], np.uint64), np.array([1, 7, 3], np.uint64)))

    assert is_there.tolist() == [True, False, True]
