"""Numbers and durations in readable form."""

from __future__ import annotations

import pytest

from imbrace_lake.export.humanize import duration


@pytest.mark.parametrize(
    ("seconds", "reported"),
    [(0.2, "1 s"), (90.0, "90 s"), (600.0, "10 min"), (7_200.0, "2 h"), (260_000.0, "3 days")],
)
def test_a_duration_is_reported_in_the_unit_that_fits(seconds: float, reported: str) -> None:
    assert duration(seconds) == reported
