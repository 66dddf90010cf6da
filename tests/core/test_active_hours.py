"""The ledger's columns about active hours: those of all messages, however many runs found them."""

from __future__ import annotations

import shutil
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from imbrace_lake.gateway.walk import REACHED_KNOWN
from imbrace_lake.lake.checkpoint import read_state
from imbrace_lake.lake.conversation_states import ConversationStates
from imbrace_lake.revisit import LISTED_HOURS
from imbrace_sandbox import Sandbox, SandboxOptions
from tests.core.conftest import StartBox
from tests.core.lake_runs import START, Bench
from tests.core.test_old_lake import EDITED, EMPTY, TRUTH
from tests.fixtures.make_lake import LAKE


def hours_of(items: list[dict[str, Any]]) -> list[int]:
    times = {datetime.fromisoformat(one["created_at"].replace("Z", "+00:00")).timestamp() for one in items}
    return sorted({int(time // 3600) for time in times})


def last_entries(bench: Bench) -> dict[str, dict[str, Any]]:
    rows = sorted(bench.ledger("conversations"), key=lambda row: row["finished_at"])
    return {row["conversation_id"]: row for row in rows}


@pytest.mark.slow
@pytest.mark.parametrize("memory_megabytes", [16, pytest.param(0.01, marks=pytest.mark.slow)])
def test_the_ledger_lists_and_counts_the_hours_of_all_messages(
    start: StartBox, tmp_path: Path, memory_megabytes: float
) -> None:
    box = start(conversations=2, sizes=(0, 1, 650))
    bench = Bench(box, str(tmp_path / "lake"), settings={"memory_megabytes": memory_megabytes})
    methods = set()
    for arrivals in (0, 0, 3, 130, 0):
        for one in box.conversations:
            box.append(one, arrivals)
        bench.run()

        for one, row in last_entries(bench).items():
            hours = hours_of(box.truth(one))
            assert row["active_hours"] == hours[-LISTED_HOURS:]
            assert row["active_hour_count"] == len(hours)
            methods.add((row["status"], row["proof_method"] == REACHED_KNOWN))

    assert {("complete", True), ("complete", False), ("unchanged", False), ("unchanged", True)} <= methods


def test_a_run_begins_with_the_listed_hours_of_the_last(start: StartBox, tmp_path: Path) -> None:
    box = start(conversations=2)
    bench = Bench(box, str(tmp_path / "lake"))
    bench.run()

    async def states(lake: Any) -> ConversationStates:
        return (await read_state(lake, box.options.organization_id)).states

    for entry in bench.look(states):
        assert entry.active_hours == tuple(hours_of(box.truth(entry.conversation_id))[-LISTED_HOURS:])


def test_in_a_lake_of_an_earlier_version_they_are_null_until_a_full_walk(tmp_path: Path) -> None:
    shutil.copytree(LAKE, tmp_path / "lake")
    with Sandbox(SandboxOptions(conversations=0)) as box:
        for one in (EMPTY, EDITED):
            box.put(TRUTH[one], conversation_id=one)
        bench = Bench(box, str(tmp_path / "lake"), now=START.replace(day=2))
        box.append(EDITED, 2)

        bench.run()
        rows = last_entries(bench)
        assert {(rows[one]["active_hours"], rows[one]["active_hour_count"]) for one in (EMPTY, EDITED)} == {
            (None, None)
        }

        bench.now += timedelta(days=31)
        bench.run()
        rows = last_entries(bench)
        for one in (EMPTY, EDITED):
            assert rows[one]["active_hours"] == hours_of(box.truth(one))[-LISTED_HOURS:]
