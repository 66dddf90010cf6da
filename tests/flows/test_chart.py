"""The picture of a run."""

from __future__ import annotations

from datetime import date, timedelta
from xml.etree import ElementTree

from imbrace_flows.chart import MAX_BARS, chart

NAMESPACE = "{http://www.w3.org/2000/svg}"
FIRST = date(2026, 1, 1)


def read(svg: str) -> tuple[list[str], list[ElementTree.Element]]:
    """The texts of a picture, and its bars."""
    root = ElementTree.fromstring(svg)  # noqa: S314 - our own
    bars = [one for one in root.iter(f"{NAMESPACE}rect") if one.find(f"{NAMESPACE}title") is not None]
    return [one.text or "" for one in root.iter(f"{NAMESPACE}text")], bars


def test_each_day_has_a_bar_and_each_status_its_count() -> None:
    texts, bars = read(
        chart({FIRST: 4, FIRST + timedelta(days=2): 1}, [(7, "complete"), (2, "without news"), (0, "gone")])
    )

    assert texts == [
        "5 new messages; a bar for every day, at most 4 in one",
        "2026-01-01",
        "2026-01-03",
        "9 conversations",
        "7 complete",
        "2 without news",
    ]
    assert [one[0].text for one in bars] == ["2026-01-01: 4", "2026-01-02: 0", "2026-01-03: 1"]
    highest, none, low = (float(one.attrib["height"]) for one in bars)
    assert highest == 4 * low
    assert none == 0


def test_the_chart_of_a_long_time_has_several_days_per_bar_and_stays_small() -> None:
    svg = chart({FIRST + timedelta(days=day): 1 for day in range(3_650)}, [])

    texts, bars = read(svg)

    assert texts[0] == "3,650 new messages; a bar for every 61 days, at most 61 in one"
    assert len(bars) <= MAX_BARS
    assert len(svg) < 20_000


def test_a_run_without_new_messages_has_a_chart_too() -> None:
    assert read(chart({}, [])) == (["No new messages", "0 conversations"], [])
