"""A run over a thousand conversations is killed at random moments and started again."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random

import pytest

from imbrace_sandbox import Sandbox, SandboxOptions
from tests.acceptance.scale import IS_FULL
from tests.core.kills import Killing
from tests.core.lake_runs import Bench
from tests.core.timeline import Amounts, Timeline

KILLS = 100 if IS_FULL else 2
MAX_READ_AGAIN = 0.10


@pytest.mark.timeout(3_600)
def test_a_killed_run_that_is_started_again_leaves_the_lake_as_without_the_kill(
    tmp_path: Path,
) -> None:
    with Sandbox(SandboxOptions(conversations=970, sizes=(350,) * 30, messages_max=400)) as box:
        # Before the runs that are killed, which have the real clock.
        bench = Bench(box, str(tmp_path / "base"), now=datetime.now(UTC) - timedelta(hours=2))
        bench.run(list(box.conversations)[:-50])
        Timeline(box, Random(4), Amounts(grow=50, edit_near=20, edit_far=0, lose=10, vanish=5)).next_round()
        killing = Killing(bench, tmp_path)

        rng = Random(5)
        for _ in range(KILLS):
            killing.kill_once(rng)

    again = sorted(killing.read_again)
    # The pages under way at a kill are random, so the promise is about all kills together.
    assert sum(again) / len(again) <= MAX_READ_AGAIN, again
    assert killing.polls > KILLS
