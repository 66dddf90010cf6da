"""How long the tests wait: longer for slow progress, not for a standstill."""

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


def test_the_wait_starts_again_with_every_sign_of_progress() -> None:
    signs = itertools.count()

    assert until(found_after(60), "it", 0.2, lambda: next(signs))


def test_the_wait_ends_without_a_sign_of_progress() -> None:
    with pytest.raises(TimeoutError, match="for it"):
        until(found_after(60), "it", 0.2)


def test_a_slow_look_does_not_count_as_waiting() -> None:
    count = itertools.count()

    def look() -> bool | None:
        time.sleep(0.1)
        return True if next(count) > 5 else None

    assert until(look, "it", 0.2)


def test_the_wait_has_a_ceiling_despite_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operator, "CEILING_SECONDS", 0.5)
    signs = itertools.count()

    with pytest.raises(TimeoutError):
        until(lambda: None, "it", 0.2, lambda: next(signs))
