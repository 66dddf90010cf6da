"""Five rounds of changes to a thousand conversations, by default a hundred: their cost and their result."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from imbrace_sandbox import Sandbox, SandboxOptions
from tests.acceptance.scale import IS_FULL
from tests.core.lake_runs import Bench
from tests.core.timeline import Amounts, Timeline, live_through

THOUSAND = Amounts(grow=50, edit_near=20, edit_far=10, lose=10, vanish=5)
HUNDRED = Amounts(grow=6, edit_near=3, edit_far=2, lose=2, vanish=1)


@pytest.mark.timeout(900)
def test_after_five_rounds_at_little_cost_the_lake_equals_the_gateway(
    tmp_path: Path,
) -> None:
    long = 30 if IS_FULL else 2
    options = SandboxOptions(conversations=long * 97 // 3, sizes=(350,) * long, messages_max=400)
    with Sandbox(options) as box:
        bench = Bench(box, str(tmp_path / "lake"))

        costs = live_through(bench, Timeline(box, Random(11), THOUSAND if IS_FULL else HUNDRED), rounds=5)

    assert all(requests <= most for requests, most in costs), costs
