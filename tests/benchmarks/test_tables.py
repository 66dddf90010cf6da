"""The benchmark of tables compacts a lake that the ledger proves, and asks both layouts the same."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.tables import Bench, promises, run_queries
from imbrace_sandbox import SandboxOptions
from imbrace_sandbox.generated import iter_generated

pytestmark = pytest.mark.slow


def test_a_change_of_the_lake_reaches_the_table_and_queries_agree(tmp_path: Path) -> None:
    bench = Bench(str(tmp_path / "lake"))
    asyncio.run(bench.write(iter_generated(SandboxOptions(conversations=12, messages_mean=5.0))))

    first = bench.compact()
    asyncio.run(bench.grow())
    asyncio.run(bench.edit())
    changed = bench.compact()

    assert first.report["rows"] == first.report["rows_added"] > 12
    assert not first.report["unproven"]
    assert changed.report["rows"] == first.report["rows"] + 1
    assert changed.report["rows_removed"]
    assert first.memory_bytes > 0
    assert bench.line_of("first", first, first).startswith("| first | 12 |")
    # It raises an error if table and parts give different answers.
    queries = [*run_queries(bench.url, bench.conversations[0])]
    assert len(queries) == 9
    assert queries[0].line().startswith("| count and latest per conversation | DuckDB")
    start = replace(first, wall_seconds=first.wall_seconds / 2)
    slow = replace(changed, wall_seconds=first.wall_seconds / 1.5, cpu_seconds=first.cpu_seconds / 4)
    measured = {"start": start, "first": first, "1 % grown": start, "1 % edited": slow}
    lines = [*promises(measured, queries)]
    assert [line.partition(":")[0] for line in lines] == ["kept", "NOT KEPT", "NOT KEPT", "NOT KEPT"]
    assert "66.7% of the first time, of 5% (33.3% without the start; 25.0% of its CPU time)" in lines[2]
