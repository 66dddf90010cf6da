"""Runs over everything within a budget: what they visit, how they end, and what killed runs change."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, tzinfo
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from imbrace_flows.pipeline import _Job, export_chunks
from imbrace_flows.report import freshness_markdown
from imbrace_lake.export.visits import VisitReport, Visits, read_visits
from imbrace_lake.gateway.client import GatewayClient
from imbrace_lake.gateway.limiter import RequestLimiter
from imbrace_lake.gateway.models import Page
from imbrace_lake.lake.lake import open_lake
from imbrace_lake.revisit import RevisitPolicy
from imbrace_sandbox import Sandbox, SandboxOptions
from tests.flows.offline import Offline

COUNT = 40
NEW = "+886911999999"


@pytest.fixture
def box() -> Iterator[Sandbox]:
    """Forty conversations of two messages."""
    with Sandbox(SandboxOptions(conversations=0)) as started:
        for number in range(COUNT):
            started.append(started.put([], phone=f"+8869114{number:05}"), 2)
        yield started


@pytest.fixture
def offline(box: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Offline:
    """A lake with all conversations."""
    offline = Offline(box, tmp_path / "lake", monkeypatch)
    numbers = tmp_path / "all.csv"
    numbers.write_text("\n".join(["phone", *box.phones]))
    assert offline.ingest("first", phones=numbers).is_completed()
    box.reset_stats()
    return offline


def visited(offline: Offline, run_id: str) -> set[str]:
    return {row["conversation_id"] for row in offline.rows("conversations") if row["run_id"] == run_id}


def visits(offline: Offline) -> dict[str, Any]:
    assert offline.result is not None
    found: dict[str, Any] = offline.result.summary.as_json()["visits"]
    return found


@pytest.mark.slow
def test_a_run_stops_when_its_budget_is_used_and_ends_as_completed(offline: Offline, box: Sandbox) -> None:
    state = offline.ingest("second", budget=10)

    assert (state.is_completed(), state.name) == (True, "Completed")
    assert box.stats().accepted == 10
    assert len(visited(offline, "second")) == 10
    assert visits(offline)["visited"] == 10
    assert state.message is not None
    assert state.message.startswith("budget used: 10 visited, ")
    assert "due and not reached; oldest proof" in state.message


@pytest.mark.slow
def test_the_conversations_that_were_not_visited_are_no_dead_letters(offline: Offline) -> None:
    offline.ingest("second", budget=10)

    assert offline.outcomes("second") == Counter(unchanged=10)
    assert not any(row["is_dead_letter"] for row in offline.rows("conversations"))


@pytest.mark.slow
def test_later_runs_visit_the_others(offline: Offline) -> None:
    reached: set[str] = set()
    for number in range(4):
        offline.ingest(f"run-{number}", budget=12)
        reached |= visited(offline, f"run-{number}")

    assert len(reached) == COUNT


@pytest.mark.slow
def test_a_run_that_can_visit_everything_by_itself_does_so(offline: Offline, box: Sandbox) -> None:
    state = offline.ingest("second")

    assert offline.outcomes("second") == Counter(unchanged=COUNT)
    assert state.message == "every conversation is complete"
    assert visits(offline)["by_age"]["under an hour"] == COUNT


@pytest.mark.slow
def test_a_budget_follows_from_the_limit_of_requests_and_the_time_between_runs(offline: Offline) -> None:
    # 10 per second in 90 % of two seconds.
    state = offline.ingest("second", requests_per_second=10.0, period_minutes=1 / 30)

    assert state.is_completed()
    assert visits(offline)["requests"] == 18
    # The time of the run begins before its visits, and a visit without an answer then ends.
    assert 10 <= visits(offline)["visited"] <= 18


def test_a_run_stops_when_its_time_is_over(offline: Offline) -> None:
    state = offline.ingest("second", minutes=1 / 60_000)

    # Not a success, because no later run would visit anything either.
    assert state.name == "Partial"
    assert state.message is not None
    assert state.message.startswith(
        "no conversation was visited, because the time was over before the first visit: give the run more"
        " minutes; time used: 0 visited"
    )
    assert offline.outcomes("second") == Counter()


@pytest.mark.slow
def test_a_run_ends_in_time_although_the_gateway_rate_limits_every_request(
    offline: Offline, box: Sandbox
) -> None:
    box.set_options(rates={"429": 1.0})
    began = time.monotonic()

    state = offline.ingest("second", minutes=0.02)

    assert time.monotonic() - began < 10
    assert state.message is not None
    assert state.name == "Partial"
    assert state.message.startswith(
        "no conversation was visited, because the gateway rate-limited every request (429) for the last "
    )
    assert "start the run later; time used: 0 visited" in state.message
    assert offline.outcomes("second") == Counter()
    box.set_options(rates={})
    assert offline.ingest("third").is_completed()
    assert offline.outcomes("third") == Counter(unchanged=COUNT)


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["429", "stall"])
def test_visits_with_an_answer_end_with_an_outcome_after_the_time_is_over(
    offline: Offline, box: Sandbox, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    long, *others = box.conversations
    box.append(long, 250)
    for one in others:
        box.break_conversation(one, fault)
    get_page = GatewayClient.get_page

    async def get_page_late(client: GatewayClient, one: str, *, skip: int, limit: int) -> Page:
        if skip:
            await asyncio.sleep(1.5)
        return await get_page(client, one, skip=skip, limit=limit)

    monkeypatch.setattr(GatewayClient, "get_page", get_page_late)
    if fault == "429":
        # Otherwise the limiter, which all requests share, would pause that of the further page, too.
        monkeypatch.setattr(RequestLimiter, "on_rate_limited", lambda *_: None)

    offline.ingest("second", minutes=0.02)

    assert offline.outcomes("second") == Counter(complete=1)
    assert visited(offline, "second") == {long}


@pytest.mark.slow
def test_the_lookup_of_a_list_ends_with_the_time(offline: Offline, box: Sandbox, tmp_path: Path) -> None:
    box.set_options(rates={"429": 1.0})

    state = offline.ingest("second", phones=tmp_path / "all.csv", minutes=0.02)

    assert state.name == "Partial"
    assert {row["reason"] for row in offline.rows("phones") if row["run_id"] == "second"} == {
        "not reached: the time of the run was over"
    }
    assert offline.outcomes("second") == Counter()


@pytest.mark.slow
def test_a_budget_counts_all_pages_and_no_conversation_is_left_half_read(
    offline: Offline, box: Sandbox
) -> None:
    for one in box.conversations:
        box.append(one, 250)

    offline.ingest("second", budget=15, max_in_flight=1)

    # Two conversations are read at a time; each has four pages at most.
    assert 15 <= box.stats().accepted <= 15 + 2 * 4
    assert set(offline.outcomes("second")) == {"complete"}


@pytest.mark.slow
def test_a_small_budget_is_not_exceeded_by_many_long_visits_at_a_time(offline: Offline, box: Sandbox) -> None:
    for one in box.conversations:
        box.append(one, 600)

    offline.ingest("second", budget=10)

    # Two visits; each has seven pages.
    assert box.stats().accepted == 14
    assert set(offline.outcomes("second")) == {"complete"}
    assert "- **Budget:** 14 of 10 requests: visits that have begun are finished\n" in page_of(offline)
    assert (
        "**Cost:** 14 of 10 requests: visits that have begun are" in pages_of(offline, "export-summary")[-1]
    )
    assert offline.result is not None
    assert offline.result.summary.as_json()["budget"] == 10


@pytest.mark.slow
def test_conversations_that_only_the_list_has_come_first(
    offline: Offline, box: Sandbox, tmp_path: Path
) -> None:
    new = box.put([], phone=NEW)
    box.append(new, 3)
    list_of_numbers = tmp_path / "numbers.csv"
    list_of_numbers.write_text("\n".join(["phone", *[*box.phones][:3], NEW]))

    offline.ingest("second", budget=8, phones=list_of_numbers)

    found = visited(offline, "second")
    assert new in found
    # Finding the conversations of the numbers counts, too.
    assert box.stats().accepted == 8
    assert len(found) < 8
    shown = visits(offline)
    assert sum(shown["by_age"].values()) == shown["conversations"] == COUNT + 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("budget", "minutes", "why"),
    [
        (1, None, "the list of phone numbers used 1 of the 1 requests of this run: give it a shorter list"
            " or a larger budget; budget used: 0 visited, "),
        (None, 0.02, "the list of phone numbers used the time of this run: give it a shorter list or more"
            " minutes; time used: 0 visited, "),
    ],
)  # fmt: skip
def test_a_run_whose_list_uses_up_the_budget_is_not_a_success(
    offline: Offline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, budget: int, minutes: float, why: str
) -> None:
    if minutes:
        look_at = _Job._look_at

        async def look_at_late(*arguments: Any) -> Any:
            await asyncio.sleep(60 * minutes)
            return await look_at(*arguments)

        monkeypatch.setattr(_Job, "_look_at", look_at_late)

    state = offline.ingest("second", phones=tmp_path / "all.csv", budget=budget, minutes=minutes)

    assert (state.is_failed(), state.name) == (True, "Partial")
    sentence = f"no conversation was visited, because {why}"
    assert state.message is not None
    assert state.message.startswith(sentence)
    summary, *_ = (page for page in pages_of(offline, "export-summary") if "0 visited" in page)
    assert summary.startswith(f"# ⚠️ Partial\n\n{sentence[:1].upper()}{sentence[1:]}")
    assert "**Next:** do what the sentence above advises" in summary
    assert f"⚠️ {sentence[:1].upper()}{sentence[1:].partition(';')[0]}.\n" in page_of(offline)


@pytest.mark.slow
def test_a_failed_conversation_is_counted_and_the_run_is_partial(offline: Offline, box: Sandbox) -> None:
    for one in [*box.conversations][:20]:
        box.break_conversation(one, "400")

    state = offline.ingest("second", budget=30)

    assert state.name == "Partial"
    outcomes = offline.outcomes("second")
    assert outcomes["failed"] >= 10
    assert outcomes.total() == visits(offline)["visited"] == 30


@pytest.mark.slow
def test_a_new_conversation_that_the_gateway_lacks_is_gone_in_words_and_counts(
    offline: Offline, box: Sandbox, tmp_path: Path
) -> None:
    new = box.put([], phone=NEW)
    box.break_conversation(new, "404")
    list_of_numbers = tmp_path / "numbers.csv"
    list_of_numbers.write_text(f"phone\n{NEW}\n")

    state = offline.ingest("second", budget=8, phones=list_of_numbers)

    assert offline.outcomes("second") == Counter(unchanged=6, gone=1)
    assert state.message is not None
    assert state.message.startswith(
        "1 conversation is gone; the others are in the lake; budget used: 7 visited"
    )


@pytest.mark.slow
def test_a_run_says_which_budget_its_promise_needs(offline: Offline) -> None:
    # 40 conversations in 9 tenths of a day.
    state = offline.ingest("second", budget=1, promise_days=1.0)

    assert state.is_completed()
    assert state.message is not None
    assert state.message.endswith("the promise of 1 day needs 2 visits per run, and the budget allows 1")
    assert (visits(offline)["needed"], visits(offline)["is_promise_kept"]) == (2, False)


@pytest.mark.slow
def test_the_ledger_has_what_a_run_reached(offline: Offline) -> None:
    offline.ingest("second", budget=10)

    row = offline.row("second")
    assert row is not None
    assert json.loads(row["parameters"])["visits"]["visited"] == 10


# -- killed, skipped and overlapping runs, and clocks ----------------------------------------------


class Clock:
    """A clock that an operator can set; replaces `datetime` in a module."""

    ahead = timedelta()

    @classmethod
    def now(cls, zone: tzinfo) -> datetime:
        return datetime.now(zone) + cls.ahead


def kill_after(offline: Offline, monkeypatch: pytest.MonkeyPatch, run_id: str, budget: int) -> None:
    """Run until all visits are in the journal, and end as a kill does, without closing it."""
    with monkeypatch.context() as patch:

        async def die(*arguments: object, **options: object) -> None:
            raise RuntimeError

        patch.setattr("imbrace_flows.pipeline.close_run", die)
        offline.ingest(run_id, budget=budget)
    monkeypatch.setattr("imbrace_lake.export.recovery.DEAD_AFTER", timedelta(0))


@pytest.mark.slow
def test_the_visits_of_a_killed_run_count_and_the_others_stay_due(
    offline: Offline, box: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    kill_after(offline, monkeypatch, "killed", 15)
    box.reset_stats()

    offline.ingest("second", budget=30)

    assert box.stats().accepted == 30
    row = offline.row("killed")
    assert row is not None
    assert row["status"] == "failed"
    assert len(visited(offline, "killed")) == 15
    assert not any(row["is_dead_letter"] for row in offline.rows("conversations"))
    # The 25 that the killed run left, and 5 again.
    assert visited(offline, "killed") | visited(offline, "second") == {*box.conversations}


@pytest.mark.slow
def test_an_outcome_of_a_killed_run_does_not_replace_a_visit(
    offline: Offline, box: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    kill_after(offline, monkeypatch, "killed", COUNT)
    for one in box.conversations:
        box.append(one, 1)

    offline.ingest("second", budget=COUNT)

    assert offline.outcomes("second") == Counter(complete=COUNT)
    assert offline.is_complete()


@pytest.mark.slow
def test_another_attempt_of_a_run_visits_the_others(
    offline: Offline, box: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    kill_after(offline, monkeypatch, "run", 15)
    for one in [*visited_in_journal(offline, "run")][:3]:
        box.append(one, 1)
    box.reset_stats()

    offline.ingest("run", budget=25)

    assert box.stats().accepted == 25
    assert offline.outcomes("run") == Counter(unchanged=COUNT)


def visited_in_journal(offline: Offline, run_id: str) -> set[str]:
    folder = offline.lake / "journal" / run_id / "conversations"
    lines = [line for path in folder.iterdir() for line in path.read_bytes().splitlines()]
    return {json.loads(line)["conversation_id"] for line in lines}


@pytest.mark.slow
def test_two_runs_at_the_same_time_leave_a_lake_as_one_run(
    offline: Offline, box: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    for one in box.conversations:
        box.append(one, 1)

    async def export_when_another_run_has(*arguments: Any) -> None:
        monkeypatch.setattr("imbrace_flows.pipeline.export_chunks", export_chunks)
        await asyncio.to_thread(offline.ingest, "inner", budget=30)
        await export_chunks(*arguments)

    monkeypatch.setattr("imbrace_flows.pipeline.export_chunks", export_when_another_run_has)
    # The first proofs are some hours old.
    monkeypatch.setattr("imbrace_lake.export.run.datetime", Clock)
    monkeypatch.setattr(Clock, "ahead", timedelta(hours=5))
    offline.ingest("outer", budget=30)
    offline.ingest("last", budget=20)

    assert offline.outcomes("inner") == Counter(complete=30)
    # The outer run has chosen before the inner one began, so it chose the same.
    assert visited(offline, "outer") == visited(offline, "inner")
    assert visited(offline, "inner") | visited(offline, "last") == {*box.conversations}
    assert offline.is_complete()


@pytest.mark.slow
def test_a_clock_that_was_ahead_is_noticed_and_delays_no_visit(
    offline: Offline, box: Sandbox, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("imbrace_lake.export.run.datetime", Clock)
    monkeypatch.setattr(Clock, "ahead", timedelta(days=400))
    offline.ingest("ahead", budget=20)
    monkeypatch.setattr(Clock, "ahead", timedelta())
    new = box.put([], phone=NEW)
    box.append(new, 1)
    wrong = visited(offline, "ahead")
    caplog.clear()

    offline.ingest("second", budget=20)
    offline.ingest("third", budget=20)

    assert "20 entries of the ledgers are from the future" in caplog.text
    assert visited(offline, "second") | visited(offline, "third") == {*box.conversations} - {new}
    assert len(wrong) == 20


@pytest.mark.slow
@pytest.mark.parametrize(("ahead", "side"), [(30.0, "ahead of"), (-30.0, "behind")])
def test_a_clock_that_is_wrong_now_is_noticed_by_the_gateways(
    offline: Offline, monkeypatch: pytest.MonkeyPatch, ahead: float, side: str
) -> None:
    wrong = SimpleNamespace(time=lambda: time.time() + 3600 * ahead, monotonic=time.monotonic)
    monkeypatch.setattr("imbrace_lake.gateway.client.time", wrong)

    state = offline.ingest("second", budget=3)

    assert state.is_completed()
    assert state.message is not None
    assert state.message.startswith(
        f"this machine's clock was 30.0 h {side} the gateway's: check it; budget used"
    )


# -- the page of a run ------------------------------------------------------------------------------


def pages_of(offline: Offline, key: str) -> list[str]:
    pages = [one[0][0] for one in offline.shown if isinstance(one, tuple) and one[1].get("key") == key]
    return [page for page in pages if isinstance(page, str)]


def page_of(offline: Offline) -> str:
    return pages_of(offline, "freshness")[-1]


@pytest.mark.slow
def test_the_page_of_a_run_shows_ages_promise_forecast_and_what_limits_it(offline: Offline) -> None:
    offline.ingest("second", budget=10)

    page = page_of(offline)
    assert page.startswith("# Freshness\n")
    assert "\n- **Oldest proof:** " in page
    assert f"- **Visited:** 10 of {COUNT}; 0 due and not reached\n" in page
    assert "- **Promise:** 7 days: kept, needs 1 visit per run\n" in page
    assert "- **Forecast:** news is found after " in page
    assert f"- **Limited by:** the budget; {COUNT} were not due\n" in page
    assert "- **Budget:** 10 of 10 requests\n" in page
    assert f"| under an hour | {COUNT} |" in page


@pytest.mark.slow
def test_a_run_that_visits_everything_shows_the_ages_too(offline: Offline) -> None:
    offline.ingest("second")

    assert "- **Limited by:** nothing: a run visits everything\n" in page_of(offline)


@pytest.mark.slow
@pytest.mark.parametrize("budget", [None, 2 * COUNT])
def test_the_page_of_the_first_run_of_a_lake_does_not_contradict_itself(
    offline: Offline, box: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, budget: int | None
) -> None:
    first = Offline(box, tmp_path / "empty", monkeypatch)
    numbers = tmp_path / "all.csv"

    assert first.ingest("first", phones=numbers, budget=budget).is_completed()

    page = page_of(first)
    assert "- **Active conversations:** not known yet: no conversation had been proven before\n" in page
    assert "- **Oldest proof:** less than a minute\n" in page
    assert "- **Forecast:** not known yet: no conversation had been proven before\n" in page
    assert f"| under an hour | {COUNT} |" in page


@pytest.mark.slow
def test_a_page_warns_of_a_promise_that_the_budget_cannot_keep(offline: Offline) -> None:
    offline.ingest("second", budget=1, promise_days=1.0)

    assert "⚠️ The promise of 1 day needs 2 visits per run, and the budget allows 1.\n" in page_of(offline)


@pytest.mark.parametrize(
    ("oldest", "shown"), [(None, "none; 2 never proven"), (0.0, "less than a minute; 2 never proven")]
)
def test_a_page_shows_how_many_conversations_were_never_proven(oldest: float | None, shown: str) -> None:
    visits = VisitReport(
        conversations=9, gone=0, requests=10, visited=9, due=9, not_reached=0, unproven=2, oldest=oldest,
        active=0, active_age=None, promise_days=7.0, needed=1, is_promise_kept=True, is_promise_possible=True,
        late=0, catches_up=0.0, ahead=0, forecast_mean=0.0, forecast_median=0.0, forecast_95=0.0,
        forecast_hour=1.0, by_age={"never proven": 2},
    )  # fmt: skip

    assert f"- **Oldest proof:** {shown}\n" in freshness_markdown(visits)


# -- hints ------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_look_at_a_conversation_that_is_gone_renews_it_and_no_age_includes_it(
    offline: Offline, box: Sandbox
) -> None:
    began = datetime.now(UTC)
    gone = [*box.conversations][:6]
    for one in gone:
        box.vanish(one)

    offline.ingest("second")

    report = visits(offline)
    assert (report["gone"], report["conversations"], sum(report["by_age"].values())) == (6, COUNT, COUNT - 6)
    assert f"- **Deleted upstream:** {len(gone)}, which no age includes\n" in page_of(offline)

    async def look() -> Visits:
        async with open_lake(str(offline.lake), now=None) as lake:
            organization = box.options.organization_id
            return await read_visits(lake, organization, RevisitPolicy(), datetime.now(UTC), 10)

    explained = [asyncio.run(look()).explain(one) for one in gone]
    assert all(one is not None and one.is_gone and one.seen >= began for one in explained)


@pytest.mark.slow
def test_a_hint_lets_a_run_visit_a_conversation_at_once(offline: Offline, box: Sandbox) -> None:
    one, *_ = box.conversations
    box.append(one, 1)

    state = offline.ingest_changed("second", [one.replace("conv_", "tcu_"), one])

    assert state.is_completed()
    assert offline.outcomes("second") == Counter(complete=1)
    assert offline.is_complete()


def test_an_ingestion_can_be_the_first_run_of_a_lake_and_a_backfill_of_everything_cannot(
    box: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offline = Offline(box, tmp_path / "new", monkeypatch)

    backfill = offline.backfill_everything("first")

    assert (backfill.is_failed(), str(backfill.message).startswith("there is no lake at")) == (True, True)
    assert not offline.lake.exists()
    assert offline.ingest("second").is_completed()
    assert offline.backfill_everything("third").is_completed()
