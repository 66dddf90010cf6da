"""The revisit policy in the simulator: near the limit, and never older than the promise."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from benchmarks.revisit import (
    PATTERNS,
    SCHEDULES,
    Ages,
    Bursts,
    Lake,
    Messages,
    Recorded,
    Visits,
    _choose_in_process,
    simulate,
)
from imbrace_lake.revisit import Outlook, RevisitPolicy

pytestmark = pytest.mark.slow

POLICY = RevisitPolicy()
CONVERSATIONS, REQUESTS = 2_000, 150


def ages_of(pattern: str, schedule: str, policy: RevisitPolicy = POLICY) -> Ages:
    conversations = PATTERNS[pattern](CONVERSATIONS, 1)
    return simulate(conversations, SCHEDULES[schedule], REQUESTS, policy, days=12, history_days=90)


def mean(ages: Ages) -> float:
    return ages.total / ages.count


@pytest.mark.parametrize("pattern", ["exponential", "office", "bursts", "seasonal"])
def test_where_few_conversations_write_most_the_policy_is_near_the_limit(pattern: str) -> None:
    lake, limit, turns = (ages_of(pattern, name) for name in ("lake", "limit", "round robin"))

    assert mean(lake) < mean(limit) / 0.85
    assert mean(lake) < mean(turns) / 2.5
    assert lake.oldest <= 24 * 7


def test_where_all_conversations_are_alike_the_policy_is_as_good_as_a_round_robin() -> None:
    assert mean(ages_of("equal", "lake")) < 1.03 * mean(ages_of("equal", "round robin"))


def test_a_short_promise_holds_although_it_needs_most_of_the_budget() -> None:
    # 2,000 in nine tenths of 18 hours are 124 of 150 visits.
    assert ages_of("exponential", "lake", RevisitPolicy(timedelta(hours=18))).oldest <= 18


def test_every_message_has_one_age() -> None:
    written: list[float] = []

    class Counted(Bursts):
        def step(self, begin: float, end: float) -> Messages:
            rows, times = super().step(begin, end)
            assert not len(times) or (times.min() >= begin and times.max() < end)
            written.extend(times[times >= 0])
            return rows, times

    ages = simulate(Counted(200, 3), SCHEDULES["round robin"], 10, POLICY, days=10, history_days=5)

    assert ages.count == len(written)
    # 200 conversations in turn, 10 per hour.
    assert 8 < mean(ages) < 12


def test_times_are_read_from_a_file_and_nothing_else(tmp_path: Path) -> None:
    begin, path = datetime(2020, 5, 12, 9, tzinfo=UTC), tmp_path / "some.jsonl"
    lines = [
        {
            "messages": [
                {"text": "a", "at": (begin + timedelta(hours=hour)).isoformat()},
                {"text": "b", "at": None},
            ]
        }
        for hour in range(8)
    ]
    path.write_text("\n".join(map(json.dumps, lines)))

    pattern = Recorded(50, 1, path)
    times = np.concatenate([pattern.step(24.0 * day, 24.0 * (day + 1))[1] for day in range(70)])

    # Three messages per week of each conversation, at the recorded hours, and up to an hour later.
    assert 1_200 < len(times) < 1_800
    assert ((times % 24 >= 9) & (times % 24 < 17)).all()


def test_the_forecast_is_that_of_the_simulation() -> None:
    outlooks: list[Outlook] = []

    class Observed(Lake):
        def visit(self, now: float) -> Visits:
            if now == 24 * 6:
                outlooks.append(self.outlook(now))
            return super().visit(now)

    ages = simulate(PATTERNS["exponential"](CONVERSATIONS, 1), Observed, REQUESTS, POLICY, days=12)
    forecast = outlooks[0].forecast()

    assert forecast.mean == pytest.approx(mean(ages), rel=0.2)
    assert forecast.fresh == pytest.approx(ages.fresh / ages.count, rel=0.2)


def test_the_visits_of_an_hour_are_chosen_from_a_million_conversations_in_seconds_and_little_memory() -> None:
    found = _choose_in_process(1_000_000, 1)

    numbers = re.fullmatch(
        r"72,000 of 1,000,000 chosen in .* s \((.*) s of CPU\); peak memory (.*) MB, with .*", found
    )
    assert numbers is not None, found
    assert float(numbers[1]) < 10
    assert float(numbers[2]) < 512
