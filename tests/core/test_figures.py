"""Figures for people."""

from __future__ import annotations

import pytest

from imbrace_lake.export.figures import duration


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(0.2, "1 s"), (90.0, "90 s"), (600.0, "10 min"), (7_200.0, "2 h"), (260_000.0, "3 days")],
)
def test_a_duration_is_told_in_the_unit_that_fits(seconds: float, told: str) -> None:
    assert duration(seconds) == told
