"""The table of sizes compares each run with the previous size and with the first run."""

from __future__ import annotations

from benchmarks.expected import Verdict
from benchmarks.metrics import Metrics
from benchmarks.runner import Round
from benchmarks.scale import HEADER, Row, line_of

COMPLETE = Verdict(rows=100, lost=0, doubled=0, unknown=0)


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_a_line_of_scale_is_compared_with_the_size_before_and_with_the_first_run() -> None:
    def row(
        conversations: int, step: str, seconds: float, new_messages: int = 0, memory_bytes: int = 200_000_000
    ) -> Row:
        one = Round("flow", Metrics(seconds, 0.5), memory_bytes, requests=7, verdict=COMPLETE)
        return Row(conversations, "local", step, 100, new_messages, one)

    shown = [row(100, "first", 1.0, 100), row(100, "idle", 0.5), row(1_000, "first", 8.0, 1_000)]

    line = line_of(row(1_000, "idle", 2.0), shown)

    assert len(cells(line)) == len(cells(HEADER.splitlines()[0]))
    assert cells(line)[:7] == ["1,000", "local", "idle", "100", "2.0 s", "4.00", "0.25"]
    assert cells(line_of(row(100, "first", 1.0, 50), []))[5:9] == ["", "", "50", "5.0 ms"]
    assert cells(line)[-2:] == ["200 MB", "complete"]
    assert cells(line_of(row(100, "first", 1.0, 50, 512_000_001), []))[-1] == "complete; more than 512 MB"
