"""The budget of a run, the conversations that it visits, and what it reports."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pyarrow as pa
import pytest

from imbrace_lake.export.humanize import span
from imbrace_lake.export.visits import BudgetGiven, RunBudget, VisitReport, Visits, choose_visits
from imbrace_lake.gateway.client import Traffic
from imbrace_lake.lake.conversation_states import STATE, ConversationStates
from imbrace_lake.lake.ledger_schema import ConversationEntry, conversation_rows
from imbrace_lake.revisit import RevisitPolicy, as_hours, as_time

NOW = datetime(2026, 3, 4, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
POLICY = RevisitPolicy()
UUID = "0f8fad5b-d9cb-469f-a165-70867728950e"


def entry(conversation_id: str, hours: float, *active: float) -> ConversationEntry:
    """Return the state of a conversation that was proven some hours ago, with hours of activity."""
    at = NOW - hours * HOUR
    listed = tuple(sorted(int(as_hours(NOW - ago * HOUR)) for ago in active))
    return ConversationEntry(
        "run", "org", conversation_id, "unchanged", at, proven_until=at, distinct_messages=len(active),
        first_message_at=NOW - 2_000 * HOUR, last_message_at=at, active_hours=listed,
        active_hour_count=len(listed),
    )  # fmt: skip


def states_of(*entries: ConversationEntry) -> ConversationStates:
    return ConversationStates(conversation_rows(entries).select(STATE))


def a_lake(count: int) -> ConversationStates:
    """Return conversations of which the last ones were active last."""
    return states_of(*(entry(f"conv_{number:03}", 5, 2 + 10 * (count - number)) for number in range(count)))


def choose(
    states: ConversationStates,
    requests: int | None,
    *,
    first: tuple[str, ...] = (),
    more: tuple[str, ...] = (),
) -> Visits:
    return choose_visits(states, more, first, POLICY, NOW, requests)


# -- the budget -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "per_second", "limits"),
    [
        (BudgetGiven(is_automatic=True), 20.0, (64_800, 57.0)),
        (BudgetGiven(is_automatic=True), None, (None, None)),
        (BudgetGiven(is_automatic=True), 0.0, (None, None)),
        (BudgetGiven(), 20.0, (None, None)),
        (BudgetGiven(500, is_automatic=True), 20.0, (500, None)),
        (BudgetGiven(500, 10.0), 20.0, (500, 10.0)),
        (BudgetGiven(minutes=10.0), 20.0, (12_000, 10.0)),
        (BudgetGiven(minutes=10.0), None, (None, 10.0)),
    ],
)
def test_the_limits_of_a_run_follow_from_what_was_given(
    given: BudgetGiven, per_second: float | None, limits: tuple[int | None, float | None]
) -> None:
    assert given.limits(per_second, POLICY) == limits


def test_a_visit_that_has_begun_reserves_a_request() -> None:
    traffic = Traffic(requests=4, retries=1)
    budget = RunBudget(traffic, requests=7)

    assert budget.begin("a")
    assert budget.begin("b")
    budget.count_page("b")
    traffic.requests += 1
    assert budget.used == 6
    assert budget.begin("c")
    assert not budget.begin("d")
    budget.end("a")
    assert budget.begin("d")


def test_retries_and_the_pieces_of_large_answers_count() -> None:
    traffic = Traffic()
    budget = RunBudget(traffic, requests=10)
    budget.begin("a")
    budget.count_page("a")
    traffic.requests, traffic.retries = 3, 2

    assert budget.used == 3
    traffic.requests = 9
    assert budget.used == 9
    assert not budget.is_used_up
    assert budget.ended() == "within the budget"


def test_a_visit_waits_while_those_under_way_may_use_the_rest_of_the_budget() -> None:
    asyncio.run(visits_in_turn())


async def visits_in_turn() -> None:
    """Begin four visits with 30 requests, of which each is expected to use ten."""
    budget = RunBudget(Traffic(), requests=30)

    async def visit(name: str) -> None:
        await budget.wait_for_room()
        assert budget.begin(name)
        async with budget.visit(name):
            begun.append(name)
            await may_end[name].wait()

    names, begun = ["a", "b", "c", "d"], list[str]()
    may_end = {name: asyncio.Event() for name in names}
    visits = [asyncio.create_task(visit(name)) for name in names]
    await asyncio.sleep(0.01)
    assert begun == ["a", "b", "c"]
    may_end["b"].set()
    await asyncio.sleep(0.01)
    assert begun == names
    for one in may_end.values():
        one.set()
    await asyncio.gather(*visits)
    assert budget.has_room


def test_no_visit_begins_after_the_time_is_over() -> None:
    budget = RunBudget(Traffic(), until=0.0)

    assert not budget.begin("a")
    assert budget.ended() == "time used"


# -- clocks ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sent", "received", "ahead"),
    [(0, 9, 0), (-40, 9, 0), (500, 509, 500), (-900, -300, -300), (0.5, 0.6, 0.5)],
)
def test_the_time_of_an_answer_shows_whether_this_clock_is_wrong(
    sent: float, received: float, ahead: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs, traffic = NOW.timestamp(), Traffic()
    monkeypatch.setattr(time, "time", lambda: theirs + received)

    traffic.compare_clocks("Wed, 04 Mar 2026 12:00:00 GMT", theirs + sent)

    assert traffic.seconds_ahead == ahead


class Clocks:
    """The clock of this machine and one that does not jump; in seconds, and the gateway is right."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.true, self.ahead = NOW.timestamp(), 0.0
        monkeypatch.setattr(time, "time", lambda: self.true + self.ahead)
        monkeypatch.setattr(time, "monotonic", lambda: self.true - NOW.timestamp() + 50.0)

    def answer(self, traffic: Traffic, *, late: float = 0.0, age: str = "", took: float = 0.0) -> None:
        """Let an answer arrive a minute after the last one, made `late` seconds ago."""
        self.true += 60
        date = format_datetime(as_time((self.true - late) / 3600))
        traffic.compare_clocks(date, time.time() - took, age)


HOUR_SECONDS = 3_600.0


@pytest.mark.parametrize("ages", [("10800", "0", "7200"), ("", "", "7200"), ("10800",), ("7200", "10800")])
def test_the_age_of_an_answer_from_a_cache_is_added_to_its_time(
    ages: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    traffic, clocks = Traffic(), Clocks(monkeypatch)
    for age in ages:
        clocks.answer(traffic, late=float(age or 0), age=age)

    assert traffic.seconds_ahead == pytest.approx(0, abs=2)


@pytest.mark.parametrize("order", [(3.0, 0.0), (0.0, 3.0), (3.0, 2.0, 0.0, 5.0), (1.0, 0.0, 0.0)])
@pytest.mark.parametrize("ahead", [0.0, 2.0, -2.0])
def test_an_old_time_that_another_answer_contradicts_shows_no_wrong_clock(
    order: tuple[float, ...], ahead: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    traffic, clocks = Traffic(), Clocks(monkeypatch)
    clocks.ahead = ahead * HOUR_SECONDS
    for hours in order:
        clocks.answer(traffic, late=hours * HOUR_SECONDS)

    # No cache hides a clock that is wrong, either.
    assert traffic.seconds_ahead == pytest.approx(ahead * HOUR_SECONDS, abs=2)


@pytest.mark.parametrize("jumps", [(2.0, 0.0), (0.0, 2.0), (0.0, 2.0, 0.0), (0.0, -2.0), (-2.0, 0.0)])
def test_a_clock_that_jumps_during_a_run_is_noticed(
    jumps: tuple[float, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    traffic, clocks = Traffic(), Clocks(monkeypatch)
    for hours in jumps:
        clocks.ahead = hours * HOUR_SECONDS
        clocks.answer(traffic, took=20.0)

    # The gateway may have answered at any time of the 20 seconds.
    assert traffic.seconds_ahead == pytest.approx(sum({*jumps}) * HOUR_SECONDS, abs=21)


def test_the_largest_difference_of_clocks_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    traffic, clocks = Traffic(), Clocks(monkeypatch)
    for clocks.ahead in (3.0, -7_200.0, 60.0):
        clocks.answer(traffic)

    assert traffic.seconds_ahead == pytest.approx(-7_200, abs=2)


@pytest.mark.parametrize("age", ["-5", "soon", "1e9", "²", "9" * 11, "5, 7", ""])
def test_an_age_that_is_no_number_of_seconds_does_not_count(
    age: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    traffic, clocks = Traffic(), Clocks(monkeypatch)
    clocks.ahead = HOUR_SECONDS
    clocks.answer(traffic, age=age)

    assert traffic.seconds_ahead == pytest.approx(HOUR_SECONDS, abs=2)


@pytest.mark.parametrize("date", ["", "soon", "Wed, 99 Mar 2026 12:00:00 GMT", "\x00" * 90])
def test_answers_without_a_time_say_nothing_about_clocks(date: str) -> None:
    traffic = Traffic()

    traffic.compare_clocks(date, 0.0)

    assert traffic.seconds_ahead == 0


# -- the choice -------------------------------------------------------------------------------------


def test_conversations_of_a_list_that_the_lake_lacks_come_first() -> None:
    visits = choose(a_lake(20), 10, first=("conv_new", "conv_003"), more=("conv_failed",))

    assert visits.ids[:2] == ["conv_new", "conv_failed"]
    assert (len(visits.ids), visits.first, visits.outlook.unproven) == (10, 1, 1)


def test_conversations_of_a_list_that_failed_before_keep_no_others_waiting() -> None:
    failed = tuple(f"conv_failed_{number}" for number in range(20))

    visits = choose(a_lake(20), 10, first=("conv_new", *failed), more=failed)

    assert visits.ids[0] == "conv_new"
    assert (visits.first, len(visits.choice.unproven), len(visits.choice.rows)) == (1, 4, 5)


def test_without_a_limit_everything_is_visited_in_the_order_of_the_policy() -> None:
    busy = entry("conv_busy", 5, *range(6, 200, 2))
    lake = states_of(*a_lake(20), busy)

    visits = choose(lake, None)

    assert sorted(visits.ids) == sorted(lake.ids())
    assert visits.ids[0] == "conv_busy"


def test_a_conversation_in_two_spellings_is_chosen_once() -> None:
    states = states_of(entry(f"tcu_{UUID}", 500, 600), entry(f"conv_{UUID}", 1, 600), entry("other", 2, 600))

    visits = choose(states, 3, more=(UUID.upper(),))

    assert sorted(visits.ids) == [f"conv_{UUID}", "other"]


def test_a_lake_without_conversations_has_no_visits() -> None:
    visits = choose(ConversationStates.empty(), 10)

    assert visits.ids == []
    report = visits.report(NOW, (), (), "within the budget")
    assert report.oldest is None
    assert report.sentence() == "within the budget: 0 visited, 0 due and not reached"


# -- the report -------------------------------------------------------------------------------------


def test_the_report_has_the_ages_after_the_visits() -> None:
    visits = choose(a_lake(20), 10)

    before = visits.report(NOW, (), (), "budget used")
    after = visits.report(NOW, visits.ids, visits.ids[1:], "budget used")

    assert (before.visited, before.conversations) == (0, 20)
    assert before.active_age == pytest.approx(5)
    assert (after.visited, after.due, after.not_reached) == (10, before.due, before.due - 10)
    assert after.oldest == pytest.approx(5)
    # Of 16 active conversations, nine have a new proof.
    assert after.active == 16
    later = visits.report(NOW + 2 * HOUR, visits.ids, visits.ids, "budget used")
    assert later.oldest == pytest.approx(7)


def test_no_age_includes_conversations_that_are_gone() -> None:
    gone = replace(entry("conv_gone", 900, 1_000), status="gone", finished_at=NOW - 3 * HOUR)
    visits = choose(states_of(*(entry(f"conv_{number}", 5, 30) for number in range(9)), gone), None)

    before = visits.report(NOW, (), (), "")
    everything = visits.ids
    after = visits.report(NOW, everything, everything, "", {"conv_gone", "conv_3"})
    restored = visits.report(NOW, everything, everything, "")

    assert (before.conversations, before.gone, sum(before.by_age.values())) == (10, 1, 9)
    assert before.oldest == pytest.approx(5)
    assert (after.gone, after.by_age["under an hour"]) == (2, 8)
    assert (restored.gone, restored.by_age["under an hour"]) == (0, 10)


def test_conversations_that_are_first_reported_as_gone_were_not_proven() -> None:
    visits = choose(a_lake(5), None, first=("conv_new", "conv_missing"), more=("conv_failed",))

    report = visits.report(NOW, visits.ids, visits.ids, "", {"conv_missing"})

    assert (report.conversations, report.gone, report.unproven) == (8, 1, 0)
    assert sum(report.by_age.values()) == 7


def test_a_list_with_more_new_conversations_than_the_budget_does_not_break_the_promise() -> None:
    new = tuple(f"conv_new_{number:02}" for number in range(30))

    report = choose(a_lake(20), 10, first=new).report(NOW, (), (), "budget used")

    assert report.warnings() == []
    assert report.promise() == "7 days: kept, needs 1 visit per run"
    assert (report.requests, report.due) == (10, 50)


def test_proofs_that_are_too_old_are_late_although_the_budget_is_sufficient() -> None:
    lake = states_of(*(entry(f"conv_{number:03}", 175, 900) for number in range(20)))

    report = choose(lake, 4).report(NOW, (), (), "")

    late = "20 proofs are older, or will be, and runs catch up in about 10.0 h"
    assert report.promise() == f"7 days: not kept yet, needs 1 visit per run; {late}"
    assert report.warnings() == [f"the promise of 7 days is not kept yet: {late}"]


def test_a_promise_that_is_shorter_than_the_time_between_runs_needs_another_schedule() -> None:
    policy = RevisitPolicy(period=timedelta(days=9))

    report = choose_visits(a_lake(20), (), (), policy, NOW, 10).report(NOW, (), (), "")

    assert report.promise() == "7 days: broken, because runs begin less often"
    assert "IMBRACE_PERIOD_MINUTES" in report.warnings()[0]


def test_a_conversation_without_a_proof_and_one_that_the_lake_does_not_know_differ() -> None:
    visits = choose(a_lake(3), 2, more=(f"conv_{UUID}",))

    assert visits.is_unproven(UUID.upper())
    assert visits.explain(f"conv_{UUID}") is None
    assert not visits.is_unproven("conv_000")
    assert not visits.is_unproven("conv_nope")


def test_the_report_is_one_sentence_with_what_an_operator_needs() -> None:
    report = replace(
        choose(a_lake(20), 10).report(NOW, (), (), "budget used"),
        visited=71_980, not_reached=5_210, oldest=146.4, active=20_000, active_age=3.2, unproven=0,
    )  # fmt: skip

    assert report.sentence() == (
        "budget used: 71,980 visited, 5,210 due and not reached; oldest proof 6.1 days; 95 % of 20,000 active"
        " conversations seen within 3.2 h"
    )


def test_the_report_warns_of_a_broken_promise_and_of_clocks() -> None:
    report = choose(a_lake(20), 10).report(NOW, (), (), "")

    assert report.warnings() == []
    worse: VisitReport = replace(report, is_promise_kept=False, needed=12, ahead=3)
    assert worse.warnings() == [
        "the promise of 7 days needs 12 visits per run, and the budget allows 10",
        "3 proofs are from the future, because a clock was or is wrong: check the clocks of the workers",
    ]


@pytest.mark.parametrize(
    ("hours", "text"),
    [(146.4, "6.1 days"), (3.21, "3.2 h"), (0.2, "12 min"), (0.0, "less than a minute"), (30, "30.0 h")],
)
def test_hours_are_written_for_people(hours: float, text: str) -> None:
    assert span(hours) == text


def test_states_are_read_without_a_copy() -> None:
    states = a_lake(3)

    table = states.table(["conversation_id", "active_hours"])

    assert table.num_rows == 3
    assert table.column_names == ["conversation_id", "active_hours"]
    assert isinstance(table, pa.Table)
