"""The tables of a comparison show medians, ratios, and every fault of a competitor."""

from __future__ import annotations

import pytest

from benchmarks.comparison import moving_table, speed_table
from benchmarks.expected import Verdict
from benchmarks.metrics import Metrics
from benchmarks.runner import Round

COMPLETE = Verdict(rows=100, lost=0, doubled=0, unknown=0)
LOSSY = Verdict(rows=98, lost=2, doubled=0, unknown=0)


def one_round(
    name: str,
    seconds: float = 1.0,
    verdict: Verdict | None = COMPLETE,
    outcome: str = "success",
    cpu_seconds: float = 0.5,
    memory_bytes: int = 200_000_000,
) -> Round:
    return Round(name, Metrics(seconds, cpu_seconds, outcome), memory_bytes, requests=7, verdict=verdict)


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_speed_table_has_medians_and_ratios_of_time_cpu_and_memory_to_the_baseline() -> None:
    rounds = [one_round("flow", seconds, cpu_seconds=1.0) for seconds in (4.0, 9.0, 5.0)]
    rounds += [one_round("script", 2.5, memory_bytes=100_000_000), one_round("dlt", 15.0)]

    header, _, flow, script, dlt = map(cells, speed_table(rounds, 10, ["script"]).splitlines())

    assert dict(zip(header, flow, strict=True)) == {
        "": "flow",
        "time": "5.00 s",
        "spread": "4.00 to 9.00 s",
        "to script": "2.00",
        "CPU per conversation": "100.0 ms",
        "CPU to script": "2.00",
        "peak memory": "200 MB",
        "memory to script": "2.00",
        "requests": "7",
        "result": "complete",
    }
    assert [script[header.index(name)] for name in header if " to " in name] == ["1.00", "1.00"]
    assert dlt[header.index("to script")] == "6.00"


def test_times_have_a_ratio_to_each_baseline_that_took_part() -> None:
    rounds = [
        one_round("script", 2.0),
        one_round("import prefect", 4.0, verdict=None),
        one_round("export", 8.0),
    ]

    header, *lines = map(cells, speed_table(rounds, 1, ["script", "import prefect", "flow"]).splitlines())

    ratios = [header.index(name) for name in ("to script", "to import prefect")]
    assert [lines[3][index] for index in ratios] == ["4.00", "2.00"]
    assert [lines[2][index] for index in ratios] == ["2.00", "1.00"]
    assert lines[2][-1] == ""
    assert "to flow" not in header


def test_without_a_baseline_there_is_no_ratio() -> None:
    header, _, line = map(cells, speed_table([one_round("dlt", 15.0)], 10, ["script"]).splitlines())

    assert header == ["", "time", "spread", "CPU per conversation", "peak memory", "requests", "result"]
    assert len(line) == len(header)


@pytest.mark.parametrize(
    ("verdict", "outcome", "expected"),
    [
        (COMPLETE, "success", "complete"),
        (LOSSY, "success", "lost 2, and it reported success"),
        (LOSSY, "partial", "lost 2"),
        (COMPLETE, "partial", "complete, and it reported partial"),
    ],
)
def test_the_outcome_that_a_competitor_reported_is_shown_where_it_is_wrong(
    verdict: Verdict, outcome: str, expected: str
) -> None:
    assert one_round("dlt", verdict=verdict, outcome=outcome).result == expected


def test_a_fault_of_one_round_is_not_hidden_by_the_others() -> None:
    rounds = [one_round("dlt"), one_round("dlt", verdict=LOSSY), one_round("dlt")]

    table = speed_table(rounds, 10, ["script"])

    assert "complete; lost 2, and it reported success" in table


def test_the_table_of_moving_lists_has_a_column_per_movement() -> None:
    movements = {"arrive": [one_round("flow")], "deleted": [one_round("flow", verdict=LOSSY)]}

    lines = moving_table(movements).splitlines()

    assert cells(lines[0]) == ["", "arrive", "deleted"]
    assert cells(lines[2]) == ["flow", "complete", "lost 2, and it reported success"]
