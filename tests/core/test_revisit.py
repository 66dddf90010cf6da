"""The revisit policy: which conversations a run visits within its budget, when, and why."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from imbrace_lake.revisit import (
    ABSENT,
    COLUMNS,
    ESTIMATES,
    LISTED_HOURS,
    Known,
    Organization,
    Outlook,
    RevisitPolicy,
    add_active_hours,
    as_hours,
    as_time,
    count_hours,
    estimate,
    known_of,
    messages_per_active_hour,
    pick,
    rates,
    values,
    weigh_hours,
)

POLICY = RevisitPolicy()
NOW = datetime(2026, 3, 4, 12, tzinfo=UTC)
HOUR = as_hours(NOW)
TIME = pa.timestamp("ms", "UTC")


def known(seen: Any, lists: list[list[float]], since: float = 2_000.0) -> Known:
    """Return conversations; all times are hours before `NOW`."""
    hours = np.full((len(lists), LISTED_HOURS), ABSENT, np.int32)
    for row, listed in enumerate(lists):
        for place, ago in enumerate(sorted(listed)[:LISTED_HOURS], 1):
            hours[row, -place] = int(HOUR - ago)
    active = np.array([len(one) for one in lists], np.int32)
    ids = pa.chunked_array([[f"conv_{number:06}" for number in range(len(lists))]])
    seen_at, since_at = HOUR - np.broadcast_to(seen, len(lists)), np.full(len(lists), HOUR - since)
    return Known(seen_at, since_at, hours, 3 * active, active, ids)


def a_lake(count: int, seed: int = 0) -> Known:
    """Return conversations of which few write most."""
    random = np.random.default_rng(seed)
    gaps = np.exp(3 + 2 * random.standard_normal(count))
    lists = [list(np.cumsum(random.exponential(gap, 30)) + 60) for gap in gaps]
    return known(random.uniform(0, 60, count), [[ago for ago in one if ago < 2_000] for one in lists])


def outlook(lake: Known, requests: int, now: datetime = NOW, **changes: Any) -> Outlook:
    return Outlook.of(lake, now, changes.pop("policy", POLICY), requests, **changes)


def chosen_ids(lake: Known, requests: int, now: datetime = NOW) -> list[str]:
    assert lake.ids is not None
    rows = pa.array(outlook(lake, requests, now).choose().rows)
    return [str(one) for one in lake.ids.take(rows)]


def visit(lake: Known, rows: Any, at: float) -> Known:
    """Return the lake after visits that found nothing."""
    seen = lake.seen.copy()
    seen[rows] = at
    return replace(lake, seen=seen)


# -- small lakes, order, determinism ----------------------------------------------------------------


def test_a_run_whose_budget_is_sufficient_visits_everything() -> None:
    lake = a_lake(500)

    choice = outlook(lake, 510, unproven=10).choose()

    assert sorted(choice.rows) == [*range(500)]
    assert sorted(choice.unproven) == [*range(10)]
    assert choice.due == 510


def test_a_conversation_with_more_recent_activity_is_visited_before_others_of_the_same_age() -> None:
    lists = [[900.0, 950, 990], [3.0, 5, 8, 9, 20], [100.0, 150, 210]] * 10
    lake = known(2.0, lists)

    # One is visited for the promise, as all proofs have the same age.
    assert {row % 3 for row in outlook(lake, 11).choose().rows[:10]} == {1}
    assert {row % 3 for row in outlook(lake, 20).choose().rows[10:19]} == {2}


def test_the_longer_a_conversation_waits_the_sooner_it_is_visited() -> None:
    lake = known([30.0, 10, 20, 40], [[50.0, 70, 90]] * 4)

    assert [*outlook(lake, 3).choose().rows] == [3, 0, 2]


def test_proofs_that_must_be_renewed_come_first_and_then_the_most_expected_messages() -> None:
    lake = a_lake(2_000)
    lake = visit(lake, [1_000, 1_001], HOUR - 160)
    found = outlook(lake, 300)

    rows = found.choose().rows

    assert {*rows[:2].tolist()} == {1_000, 1_001}
    assert (np.diff((found.rate * found.counted)[rows[2:]]) <= 0).all()


def test_an_equal_state_and_time_give_an_equal_choice_whatever_the_order_of_the_rows() -> None:
    lake = a_lake(2_000)
    # Of many equal values, some are beyond the budget.
    equal = known(5.0, [[30.0]] * 2_000)
    order = np.random.default_rng(1).permutation(2_000)

    for one in (lake, equal):
        assert one.ids is not None
        shuffled = replace(one.rows(order), ids=one.ids.take(pa.array(order)))
        assert chosen_ids(one, 300) == chosen_ids(one, 300) == chosen_ids(shuffled, 300)


def test_a_run_that_visits_nothing_leaves_its_choice_to_the_next() -> None:
    lake = a_lake(2_000)

    killed = set(chosen_ids(lake, 300))
    later = set(chosen_ids(lake, 300, NOW + timedelta(hours=1)))

    assert len(killed & later) > 280


def test_without_differences_conversations_are_visited_in_turn() -> None:
    random = np.random.default_rng(2)
    seen = random.uniform(0, 40, 3_000)
    # All write about every 50 hours.
    lists = [list(ago + np.cumsum(random.exponential(50, 60))) for ago in seen]
    lake = known(seen, [[ago for ago in one if ago < 2_000] for one in lists])

    rows = outlook(lake, 300).choose().rows

    assert lake.seen[rows].max() < np.sort(lake.seen)[400]


# -- the promise ------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("lost", [0.0, 0.15])
def test_no_proof_is_older_than_the_promise_although_runs_are_skipped_or_killed(lost: float) -> None:
    policy = RevisitPolicy(promise=timedelta(days=4))
    random, lake, oldest = np.random.default_rng(3), known(0.0, a_lake_lists(1_000)), 0.0
    for hour in range(24 * 10):
        now = HOUR + hour
        oldest = max(oldest, now + 1 - lake.seen.min())
        if random.random() < lost:
            continue
        rows = outlook(lake, 20, as_time(now), policy=policy).choose().rows
        if random.random() < lost:
            rows = rows[: random.integers(len(rows))]
        lake = visit(lake, rows, now + 0.5)

    assert 60 < oldest <= 96


def a_lake_lists(count: int) -> list[list[float]]:
    """Return lists of active hours: a tenth of the conversations write all the time."""
    return [[float(ago) for ago in range(1, 21)] if row < count / 10 else [1_500.0] for row in range(count)]


@pytest.mark.slow
def test_proofs_of_the_same_age_are_renewed_evenly_before_the_promise() -> None:
    lake = known(0.0, a_lake_lists(1_000))
    promised = []
    for hour in range(24 * 7):
        choice = outlook(lake, 50, as_time(HOUR + hour)).choose()
        promised.append(choice.promised)
        lake = visit(lake, choice.rows, HOUR + hour + 0.5)

    # 1,000 in nine tenths of 168 hours are 7 per hour.
    assert 7 <= max(promised) <= 9


def test_a_budget_that_cannot_hold_the_promise_is_spent_on_it_by_half() -> None:
    lake = known(200.0, a_lake_lists(3_000))

    # 3,000 in nine tenths of 168 hours.
    outlooks = [outlook(lake, requests) for requests in (10, 20)]

    assert [one.forecast().requests for one in outlooks] == [20, 20]
    assert [one.forecast().is_promise_kept for one in outlooks] == [False, True]
    assert [one.choose().promised for one in outlooks] == [5, 20]


def test_after_an_outage_active_conversations_do_not_wait_until_all_others_are_visited() -> None:
    lake = known(24 * 9.0, a_lake_lists(3_000))

    choice = outlook(lake, 200).choose()

    assert choice.promised == 100
    assert (choice.rows < 300).sum() >= 100


# -- clocks -----------------------------------------------------------------------------------------


def test_a_proof_from_the_future_is_noticed_and_renewed() -> None:
    lake = known([5.0, -24 * 365, 6], [[30.0]] * 3)

    found = outlook(lake, 2)

    assert found.known.ahead(found.now) == 1
    assert found.choose().rows[0] == 1
    assert found.explain(1).reason == "ahead"


def test_a_proof_that_is_less_than_an_hour_ahead_is_noticed_and_not_renewed_in_each_run() -> None:
    # In the ledger, it counts as newer than a proof of now until the clock has passed it.
    lake = known([5.0, -0.5, 6], [[30.0]] * 3)

    found = outlook(lake, 2)

    assert found.known.ahead(found.now) == 1
    assert sorted(found.choose().rows) == [0, 2]


def test_clocks_that_differ_by_seconds_are_not_noticed() -> None:
    assert known([5.0, -10 / 3600], [[30.0]] * 2).ahead(HOUR) == 0


def test_a_clock_that_jumps_ahead_and_back_delays_no_conversation_beyond_the_promise() -> None:
    lake = known(0.0, a_lake_lists(1_000))
    wrong = outlook(lake, 100, NOW + timedelta(days=365)).choose().rows
    lake = visit(lake, wrong, HOUR + 365 * 24)

    for hour in range(20):
        lake = visit(lake, outlook(lake, 100, as_time(HOUR + hour)).choose().rows, HOUR + hour + 0.5)

    assert lake.ahead(HOUR + 20) == 0


# -- conversations without a proof ------------------------------------------------------------------


def test_conversations_that_were_never_proven_come_first_but_take_at_most_half() -> None:
    choice = outlook(a_lake(500), 100, unproven=20).choose()
    assert (len(choice.unproven), len(choice.rows)) == (20, 80)

    choice = outlook(a_lake(500), 100, unproven=300).choose()
    assert (len(choice.unproven), len(choice.rows)) == (50, 50)


def test_conversations_that_fail_in_every_run_take_turns() -> None:
    lake, reached = a_lake(500), set()
    for hour in range(6):
        reached |= {*outlook(lake, 100, NOW + timedelta(hours=hour), unproven=300).choose().unproven.tolist()}

    assert reached == {*range(300)}


@pytest.mark.slow
def test_proven_conversations_that_fail_in_every_run_keep_no_others_waiting() -> None:
    lake = known(5.0, a_lake_lists(200))
    failing = np.arange(60)
    # Their old proofs are the oldest for ever.
    lake = visit(lake, failing, HOUR - 1_000)
    oldest = 0.0
    for hour in range(600):
        now = HOUR + hour
        rows = outlook(lake, 40, as_time(now)).choose().rows
        lake = visit(lake, np.setdiff1d(rows, failing), now)
        oldest = max(oldest, now - lake.seen[60:].min())

    assert oldest <= 168


@pytest.mark.slow
def test_a_run_of_a_single_visit_keeps_the_promise_too() -> None:
    lake, oldest = known(5.0, a_lake_lists(100)), 0.0
    for hour in range(600):
        now = HOUR + hour
        lake = visit(lake, outlook(lake, 1, as_time(now)).choose().rows, now)
        oldest = max(oldest, now - lake.seen.min())

    assert oldest <= 168


def test_proofs_that_are_older_than_the_promise_are_late_until_runs_have_renewed_them() -> None:
    # 300 conversations, of which ten visits per run may be for the promise.
    lake = visit(known(5.0, a_lake_lists(300)), np.arange(45), HOUR - 175)

    found = outlook(lake, 20).forecast()

    assert (found.requests, found.is_promise_kept) == (2, True)
    assert (found.late, found.catches_up) == (45, 5.0)
    assert outlook(visit(lake, np.arange(45), HOUR), 20).forecast().late == 0
    # Soon, more will be as old as promised than runs can renew until then.
    lake = visit(known(5.0, a_lake_lists(300)), np.arange(200), HOUR - 163)
    assert 0 < outlook(lake, 20).forecast().late < 200
    # Without a limit, one run renews all.
    assert outlook(lake, 300).forecast().late == 0


def test_a_run_visits_no_conversation_twice_so_no_promise_needs_more_visits_than_conversations() -> None:
    lake = known(5.0, a_lake_lists(25))
    day = RevisitPolicy(promise=timedelta(days=1), period=timedelta(days=1))
    assert outlook(lake, 25, policy=day).forecast().requests == 25
    assert outlook(lake, 25, policy=day).forecast().is_promise_kept

    rare = RevisitPolicy(period=timedelta(days=69))
    found = outlook(lake, 25, policy=rare).forecast()
    assert (found.requests, found.is_promise_kept, rare.is_possible) == (25, False, False)


def test_new_conversations_are_visits_of_this_run_and_not_of_every_run() -> None:
    found = outlook(a_lake(500), 30, new=28)

    assert len(found.choose().rows) == 2
    assert (found.forecast().requests, found.forecast().is_promise_kept) == (4, True)
    assert len(outlook(a_lake(500), 10, new=28).choose().rows) == 0


def test_the_conversations_that_are_due_are_counted() -> None:
    lake = known(100.0, a_lake_lists(1_000))

    found = outlook(lake, 50, unproven=5)

    assert found.choose().due == found.is_due().sum() + 5 > 50


# -- rates and hours of the day ---------------------------------------------------------------------


def test_the_example_of_the_documentation_is_right() -> None:
    noon = as_hours(datetime(2026, 3, 4, 12, tzinfo=UTC))
    # Of the 20, six are within two hours of 13:00: one at 11:00, one at 12:00 and four at 15:00.
    listed = [
        1.0,
        3,
        4,
        21,
        *(24.0 * day - 3 for day in (2, 3, 4)),
        *(24.0 * day + 5 for day in range(3, 15)),
    ]
    one = known(0.0, [[*listed, 360.0]])
    one = replace(one, seen=np.array([noon]), messages=np.array([400]), active=np.array([100]))
    day = np.where((np.arange(24) >= 12) & (np.arange(24) < 17), 1.8, 0.79)
    organization = Organization(0.004, 5.0, 0.99, 0.4, day, np.sqrt([1.0, 1, 1, 1, 1, 1, 1.21]))

    assert len(listed) == 19
    assert [estimate(one, number, organization)[0] for number, _ in ESTIMATES] == pytest.approx(
        [1, 4 / 21, 20 / 360]
    )
    assert messages_per_active_hour(one, organization)[0] == pytest.approx(4.04, abs=0.005)
    rate = rates(one, organization)[0]
    assert rate == pytest.approx(0.480, abs=0.001)
    interval = (2 * 4 / rate) ** 0.5
    assert interval == pytest.approx(4.08, abs=0.005)
    added = weigh_hours(one.hours, organization)
    assert added[0, 14] - added[0, 13] == pytest.approx(1.27, abs=0.005)
    counted = [count_hours(added, organization, noon + hours)[0] for hours in (0, 1, 2)]
    assert counted[2] - counted[1] == pytest.approx(1.40, abs=0.005)


def test_the_estimates_of_a_conversation_with_few_active_hours() -> None:
    # Active in the hours that began 2, 3, 5, 30 and 50 hours ago; first message 1,000 hours ago.
    lake = known(1.0, [[2.0, 3, 5, 30, 50, 1_000]], since=1_000)

    found = outlook(lake, 0).explain(0)

    # The last active hour, the last four, and since the first message those after it.
    assert found.estimates == pytest.approx((1 / 1, 4 / 29, 5 / 999))
    assert found.listed == 6


def test_silent_conversations_are_expected_to_write_as_often_as_others_did_after_the_same_silence() -> None:
    # Of those silent for 672 hours before the last 672, a quarter then wrote in two hours.
    lists = [[1_344.0, *([5.0, 400] if row % 4 == 0 else [])] for row in range(400)]
    lake = known(0.0, lists, since=1_344)

    found = outlook(lake, 10)

    assert found.organization.unseen == pytest.approx((200 + 2.5) / (400 + 10))
    # The last active hour began with the first message.
    first, four, all_listed = found.explain(1).estimates
    assert first == pytest.approx(1 / 1_344)
    assert four == all_listed == pytest.approx(found.organization.unseen / 1_344)


def test_a_lake_that_does_not_show_what_follows_silence_expects_a_quarter() -> None:
    lake = known(0.0, [[700.0], [700.0, 3]], since=700)

    assert outlook(lake, 1).organization.unseen == 0.25


def test_of_conversations_that_are_active_as_often_those_with_more_messages_are_visited_first() -> None:
    lake = known(2.0, [[5.0, 20, 60]] * 40)
    messages = np.where(np.arange(40) % 4 == 3, 60, 6)

    rows = outlook(replace(lake, messages=messages), 11).choose().rows

    assert {row % 4 for row in rows[:10]} == {3}


def test_a_silent_conversation_is_visited_ever_less_often() -> None:
    lake = known(0.0, [[float(ago)] * 1 for ago in (10, 100, 1_000)] * 100)
    lake = replace(lake, since=lake.hours[:, -1].astype(float))

    interval = outlook(lake, 30).interval

    assert interval[0] < interval[1] < interval[2]


def office(days: int, hour: int) -> list[float]:
    """Return the same hour of each day, as hours before `NOW` (12:00)."""
    return [24.0 * day + 12 - hour for day in range(1, days)]


def test_hours_in_which_a_conversation_is_not_active_count_less() -> None:
    midnight = as_hours(datetime(2026, 3, 4, tzinfo=UTC))
    lake = known(0.0, [office(20, 9), office(20, 21), *[[1_500.0]] * 200])
    lake = visit(lake, slice(None), midnight + 7)

    # From 7:00 to 12:00.
    counted = outlook(lake, 1, as_time(midnight + 12)).counted

    assert counted[0] > 1.5 * counted[1]


def test_weekdays_are_those_of_the_organization() -> None:
    # Conversations of different ages that write on Wednesdays only; 2026-03-04 is one.
    lists = [[168.0 * week + 3 for week in range(1, 12)] for _ in range(200)]
    organization = Organization.of(known(1.0, lists), HOUR, POLICY)

    assert organization.week.argmax() == 6
    assert organization.week[6] > 2 * organization.week[5]


@pytest.mark.parametrize("days", [8, 10, 13, 19, 20])
def test_a_lake_of_a_few_days_has_no_weekday_that_it_never_saw(days: int) -> None:
    # Active at every full hour for some days.
    lists = [[24.0 * days, *range(first, 24 * days, 40)] for first in range(1, 41)] * 20
    organization = Organization.of(known(1.0, lists, since=24 * days), HOUR, POLICY)

    assert organization.week == pytest.approx(1, abs=0.05)


# -- explanations -----------------------------------------------------------------------------------


def test_the_numbers_of_an_explanation_are_those_of_the_choice() -> None:
    lake = a_lake(1_000)
    found = outlook(lake, 100)
    choice = found.choose()
    value = values(found.rate, found.counted)
    by_value = np.setdiff1d(choice.rows, np.argsort(lake.seen)[: choice.promised])

    assert len(by_value) == 100 - choice.promised
    assert value[by_value].min() >= np.delete(value, choice.rows).max()
    for row in range(0, 1_000, 97):
        one = found.explain(row)
        shrunk = (
            found.organization.rate
            * (
                sum(weight * rate for (_, weight), rate in zip(ESTIMATES, one.estimates, strict=True))
                / found.organization.rate
            )
            ** found.organization.contrast
        )
        assert one.rate == pytest.approx(shrunk * one.messages)
        assert one.value == pytest.approx(one.rate * one.counted**2 / 2) == pytest.approx(value[row])
        assert one.interval == pytest.approx(np.clip((2 * one.price / one.rate) ** 0.5, 1, POLICY.longest))
        assert (one.reason == "value") == (one.counted >= one.interval)


def test_a_reader_of_the_documentation_can_work_out_the_next_visit() -> None:
    """docs/freshness.md once more, hour by hour and without arrays."""
    found = outlook(a_lake(1_000), 100)
    organization, price = found.organization, found.price

    for row in range(0, 1_000, 37):
        proof, first = float(found.known.seen[row]), float(found.known.since[row])
        listed = [int(hour) for hour in found.known.hours[row] if hour > ABSENT]
        messages, active = int(found.known.messages[row]), int(found.known.active[row])
        estimates = [
            number / max(1, proof - listed[-number])
            if len(listed) >= number
            else max(len(listed) - 1, organization.unseen) / max(1, proof - first)
            for number in (1, 4, 20)
        ]
        weighted = 0.05 * estimates[0] + 0.15 * estimates[1] + 0.8 * estimates[2]
        rate = organization.rate * (weighted / organization.rate) ** organization.contrast
        rate *= (messages + 4 * organization.messages) / (active + 4)
        interval = min(max(math.sqrt(2 * price / rate), 1), 0.9 * 168)

        def weight(hour: int, listed: list[int] = listed) -> float:
            near = sum((one - hour + 2) % 24 <= 4 for one in listed)
            day = 20 * organization.day[hour % 24] + organization.contrast * 24 * near / 5
            day /= 20 + organization.contrast * len(listed)
            return math.sqrt(day) * float(organization.week[hour // 24 % 7])

        time, counted = proof, 0.0
        while counted < interval and time < proof + 0.9 * 168:
            end = math.floor(time) + 1
            step = min(end - time, (interval - counted) / weight(math.floor(time)))
            counted, time = counted + step * weight(math.floor(time)), time + step

        one = found.explain(row)
        assert one.rate == pytest.approx(rate)
        assert as_hours(one.next_visit) == pytest.approx(min(time, proof + 0.9 * 168), abs=0.02)


def test_a_conversation_is_due_from_its_next_visit_on() -> None:
    found = outlook(a_lake(1_000), 100)
    rows = [row for row in range(1_000) if not found.is_due()[row]][::50]

    assert rows
    for row in rows:
        at = as_hours(found.explain(row).next_visit)
        one = found.known.rows(slice(row, row + 1))
        added = weigh_hours(one.hours, found.organization)
        counted = [
            count_hours(added, found.organization, time)[0] for time in (one.seen[0], at - 0.01, at + 0.01)
        ]
        is_renewed = at >= one.seen[0] + POLICY.longest
        assert is_renewed or counted[1] - counted[0] < found.interval[row] < counted[2] - counted[0]


def test_a_budget_is_used_up_by_the_conversations_that_become_due() -> None:
    lake, requests, due = a_lake(1_000), 50, []
    for hour in range(60):
        found = outlook(lake, requests, as_time(HOUR + hour))
        due.append(found.choose().due)
        lake = visit(lake, found.choose().rows, HOUR + hour + 0.5)

    # Runs also visit conversations that are not due yet, as long as the budget lasts.
    assert 0.6 * requests < np.mean(due[24:]) < 1.4 * requests


# -- the ledger's columns ---------------------------------------------------------------------------


def states(**columns: Any) -> pa.Table:
    count = len(next(iter(columns.values())))
    columns.setdefault("status", ["unchanged"] * count)
    types: dict[str, pa.DataType] = {
        "status": pa.string(),
        "conversation_id": pa.string(),
        "distinct_messages": pa.int64(),
    }
    types |= {"active_hours": pa.list_(pa.int32()), "active_hour_count": pa.int64()}
    return pa.table(
        {name: pa.array(columns.get(name, [None] * count), types.get(name, TIME)) for name in COLUMNS}
    )


def test_what_the_ledger_states_is_known() -> None:
    table = states(
        conversation_id=["a", "b", "c"],
        proven_until=[NOW, None, NOW],
        finished_at=[NOW, NOW - timedelta(hours=2), NOW],
        first_message_at=[NOW - timedelta(days=1), None, NOW],
        distinct_messages=[9, 0, 90],
        active_hours=[[5, 7], [], [*range(30)]],
        active_hour_count=[2, 0, 45],
    )

    found = known_of(table, POLICY)

    assert found.ids is not None
    assert found.ids.to_pylist() == ["a", "b", "c"]
    assert found.seen.tolist() == [HOUR, HOUR - 2, HOUR]
    assert found.since.tolist() == [HOUR - 24, HOUR - 2 - POLICY.longest, HOUR]
    assert found.hours[0].tolist() == [ABSENT] * 18 + [5, 7]
    assert found.hours[1].tolist() == [ABSENT] * 20
    assert found.hours[2].tolist() == [*range(10, 30)]
    assert (found.messages.tolist(), found.active.tolist()) == ([9, 0, 90], [2, 0, 45])


def test_active_hours_of_an_earlier_version_are_spread_over_the_time_of_its_messages() -> None:
    first, last = NOW - timedelta(hours=1_000), NOW - timedelta(hours=100)
    table = states(
        conversation_id=["few", "many", "none"],
        finished_at=[NOW] * 3,
        first_message_at=[first, first, None],
        last_message_at=[last, last, None],
        distinct_messages=[3, 400, 0],
    )

    found = known_of(table, POLICY)

    assert found.hours[0, -3:].tolist() == [HOUR - 700, HOUR - 400, HOUR - 100]
    assert (found.hours[0, :-3] == ABSENT).all()
    assert found.hours[1, [0, -1]].tolist() == [HOUR - 955, HOUR - 100]
    assert (found.hours[2] == ABSENT).all()
    # Nothing is known about their messages per active hour.
    assert (found.messages.tolist(), found.active.tolist()) == ([0, 0, 0], [0, 0, 0])


def test_a_conversation_that_was_deleted_upstream_is_visited_for_the_promise_only() -> None:
    hours = [*range(int(HOUR) - 20, int(HOUR))]
    table = states(
        conversation_id=["gone", "active"],
        status=["gone", "complete"],
        proven_until=[NOW - timedelta(hours=3)] * 2,
        first_message_at=[NOW - timedelta(days=9)] * 2,
        active_hours=[hours, hours],
    )

    organization = Organization(0.01, 1.0, 1.0, 0.25, np.ones(24), np.ones(7))
    gone, active = rates(known_of(table, POLICY), organization)

    assert gone < active / 100_000


def test_a_look_at_a_conversation_that_was_deleted_upstream_is_enough_until_the_promise_needs_another() -> (
    None
):
    table = states(
        conversation_id=["gone", "active"],
        status=["gone", "unchanged"],
        # The last proof of a conversation that is gone never becomes newer.
        proven_until=[NOW - timedelta(days=30)] * 2,
        finished_at=[NOW - timedelta(hours=1)] * 2,
    )

    found = known_of(table, POLICY)

    assert found.seen.tolist() == [HOUR - 1, HOUR - 720]
    assert found.is_gone.tolist() == [True, False]
    explained = Outlook.of(found, NOW, POLICY, 1).explain(0)
    assert (explained.is_gone, explained.reason) == (True, "waits")
    # By its last proof, it would be visited in every run.
    assert found.rows([0]).seen[0] + POLICY.longest > HOUR


def test_an_hour_is_listed_and_counted_once_however_many_messages_and_visits_it_has() -> None:
    random = np.random.default_rng(4)
    times = np.sort(random.integers(0, 400 * 3_600_000, 100))
    hours = sorted({*(times // 3_600_000).tolist()})

    one_by_one: tuple[tuple[int, ...], int] = ((), 0)
    for number in range(100):
        one_by_one = add_active_hours(*one_by_one, times[number : number + 1])

    assert one_by_one == add_active_hours(None, None, times) == (tuple(hours[-LISTED_HOURS:]), len(hours))


def test_old_messages_do_not_displace_listed_hours() -> None:
    times = np.array([0, 3_600_000 * 50])

    assert add_active_hours([*range(100, 119)], 19, times) == ((50, *range(100, 119)), 21)
    assert add_active_hours([*range(100, 120)], 20, times) == ((*range(100, 120),), 22)
    assert add_active_hours(None, None, np.empty(0, np.int64)) == ((), 0)


def test_no_conversations_and_no_requests_are_no_special_case() -> None:
    empty = known([], [])

    assert len(outlook(empty, 10).choose().rows) == 0
    assert outlook(empty, 10, unproven=3).choose().unproven.tolist() == [0, 1, 2]
    assert len(outlook(a_lake(10), 0).choose().rows) == 0
    assert pick(np.empty(0), np.empty(0), np.empty(0), POLICY, 5)[0].tolist() == []
