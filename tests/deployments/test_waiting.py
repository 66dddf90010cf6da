"""The tests' own patience: with what is slow, without what has stopped."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable

import pytest

from tests.deployments import operator
from tests.deployments.operator import until


@pytest.fixture(autouse=True)
def _quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operator, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(operator, "SIGNS_SECONDS", 0.05)


def found_after(looks: int) -> Callable[[], bool | None]:
    count = itertools.count(1)
    return lambda: True if next(count) > looks else None


def test_patience_starts_again_with_every_sign_of_progress() -> None:
    signs = itertools.count()

    assert until(found_after(60), "it", 0.2, lambda: next(signs))


def test_patience_ends_without_a_sign_of_progress() -> None:
    with pytest.raises(TimeoutError, match="for it"):
        until(found_after(60), "it", 0.2)


def test_a_look_that_takes_long_costs_no_patience() -> None:
    count = itertools.count()

    def look() -> bool | None:
        time.sleep(0.1)
        return True if next(count) > 5 else None

    assert until(look, "it", 0.2)


def test_progress_without_an_end_ends_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operator, "CEILING_SECONDS", 0.5)
    signs = itertools.count()

    with pytest.raises(TimeoutError):
        until(lambda: None, "it", 0.2, lambda: next(signs))
