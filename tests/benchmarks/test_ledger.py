"""The number of ledger objects that a command reads does not grow with the lake's age."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.ledger import COMMANDS, MAX_OBJECTS, make_lake, measure

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ledger") / "lake"
    make_lake(folder, runs=300, conversations=20)
    return folder


@pytest.mark.parametrize("command", COMMANDS)
def test_after_300_runs_a_command_reads_at_most_30_ledger_objects(lake: Path, command: str) -> None:
    assert 0 < measure(command, lake).objects <= MAX_OBJECTS


def test_each_of_several_idle_runs_reads_at_most_30_ledger_objects(lake: Path) -> None:
    costs = [measure("idle run", lake).objects for _ in range(12)]

    assert max(costs) <= MAX_OBJECTS
