"""What the comparison with peers says of their rounds."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.expected import Verdict
from benchmarks.metrics import Metrics
from benchmarks.peers.environment import peers_python
from benchmarks.peers.report import Result, moving_table, speed_table
from benchmarks.runner import Competitor, Round

pytestmark = pytest.mark.slow

COMPLETE = Verdict(rows=100, lost=0, doubled=0, unknown=0)
LOSSY = Verdict(rows=98, lost=2, doubled=0, unknown=0)


def result(
    name: str, seconds: float, verdict: Verdict = COMPLETE, outcome: str = "success", requests: int = 7
) -> Result:
    metrics = Metrics(seconds, cpu_seconds=0.5, memory_bytes=200_000_000, outcome=outcome)
    return Result(Round(Competitor(name, ()), metrics, requests), verdict)


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_speed_table_has_medians_ratios_and_the_share_of_prefect() -> None:
    rounds = [result("flow", seconds) for seconds in (4.0, 9.0, 5.0)]
    rounds += [result("core, no Prefect", 4.0), result("bare aiohttp", 2.5), result("dlt", 15.0)]

    lines = speed_table(rounds, conversations=10, messages=100).splitlines()

    assert {len(cells(line)) for line in lines[:6]} == {10}
    assert cells(lines[2])[:6] == ["flow", "5.00 s", "4.00 to 9.00 s", "2.00", "1.00", "20"]
    assert cells(lines[2])[6:] == ["50.0 ms", "200 MB", "7", "complete"]
    assert cells(lines[5])[3:5] == ["6.00", "3.00"]
    assert lines[-1] == "Prefect takes 20% of the flow's time."


def test_without_a_baseline_there_is_no_ratio() -> None:
    line = speed_table([result("dlt", 15.0)], conversations=10, messages=100).splitlines()[2]

    assert cells(line)[3:5] == ["", ""]


@pytest.mark.parametrize(
    ("verdict", "outcome", "said"),
    [
        (COMPLETE, "success", "complete"),
        (LOSSY, "success", "lost 2, and it reported success"),
        (LOSSY, "partial", "lost 2"),
        (COMPLETE, "partial", "complete, and it reported partial"),
    ],
)
def test_what_a_competitor_said_is_reported_where_it_is_wrong(
    verdict: Verdict, outcome: str, said: str
) -> None:
    assert result("dlt", 1.0, verdict, outcome).said() == said


def test_a_fault_of_one_round_is_not_hidden_by_the_others() -> None:
    rounds = [result("dlt", 1.0), result("dlt", 1.0, LOSSY), result("dlt", 1.0)]

    table = speed_table(rounds, conversations=10, messages=100)

    assert "complete; lost 2, and it reported success" in table


def test_the_table_of_moving_lists_has_a_column_a_movement() -> None:
    movements = {"arrive": [result("flow", 1.0)], "deleted": [result("flow", 1.0, LOSSY)]}

    lines = moving_table(movements).splitlines()

    assert cells(lines[0]) == ["", "arrive", "deleted"]
    assert cells(lines[2]) == ["flow", "complete", "lost 2, and it reported success"]


def test_an_environment_that_has_what_is_listed_is_not_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = tmp_path / "requirements.txt"
    wanted.write_text("# nothing\n")
    folder = tmp_path / "environment"
    # An empty PATH has no uv, so this is the way of those who have none.
    monkeypatch.setenv("PATH", "")
    python = peers_python(folder, wanted)
    (folder / "mark").touch()

    assert peers_python(folder, wanted) == python
    assert (folder / "mark").exists()

    wanted.write_text("# something else\n")
    peers_python(folder, wanted)
    assert not (folder / "mark").exists()
