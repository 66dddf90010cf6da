"""The pages of a run: verdict, numbers that add up to the ledgers, causes of failures, the next step."""

from __future__ import annotations

import json
import logging
import re
from base64 import b64decode
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import pytest
from prefect.states import Cancelled, Completed, Crashed, Failed, Running, Suspended
from pydantic import SecretStr

from imbrace_flows.approval import plan_markdown
from imbrace_flows.flow import _calm_end
from imbrace_flows.input_report import input_markdown
from imbrace_flows.params import BackfillParams, ExportParams
from imbrace_flows.pipeline import Selection, show_log_lines
from imbrace_flows.report import (
    compaction_markdown,
    counts_in_words,
    failures_markdown,
    next_steps,
    summary_markdown,
)
from imbrace_flows.words import add_up, as_code
from imbrace_lake.errors import BadRequest, ConversationNotFound, NotReached
from imbrace_lake.export.plan import Plan
from imbrace_lake.export.run import DeadLetter, RunStatus, RunSummary
from imbrace_lake.lake.ledger_schema import RunTotals
from imbrace_lake.policy import Window
from imbrace_lake.tables.report import TableDifference, TableReport
from imbrace_sandbox import Sandbox, SandboxOptions
from imbrace_tasks.retry import _is_shown
from tests.flows.offline import Offline

PHONES = {
    "with conversations": "resolved",
    "without": "none",
    "repeated": "duplicate",
    "unreadable": "invalid",
    "not resolved": "error",
}


@pytest.fixture
def box() -> Iterator[Sandbox]:
    """Twelve conversations, two of which cannot be read."""
    with Sandbox(SandboxOptions(conversations=12, messages_mean=3)) as started:
        for one in [*started.conversations][:2]:
            started.break_conversation(one, "400")
        yield started


@pytest.fixture
def offline(box: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Offline:
    """Runs without a server."""
    return Offline(box, tmp_path / "lake", monkeypatch)


def export(offline: Offline) -> dict[str, str]:
    """Export all numbers, one of them twice, and two unreadable entries; return the pages by their keys."""
    given = [*offline.box.phones, offline.box.phones[0], "none", "12"]
    offline._run("run_1", Selection(numbers=given), ExportParams(numbers=SecretStr("+886911425977")))
    shown = (one for one in offline.shown if isinstance(one, tuple))
    return {options["key"]: str(args[0]) for args, options in shown if "key" in options and args}


def sum_of(page: str, what: str) -> tuple[int, dict[str, int]]:
    """The total on a page, and its parts by their names."""
    (line,) = re.findall(rf"([\d,]+) {what} = (.+)", page)
    parts = {name: _number(count) for count, name in re.findall(r"([\d,]+) ([a-z ]+?)(?: \+|$)", line[1])}
    return _number(line[0]), parts


def _number(text: str) -> int:
    return int(text.replace(",", ""))


def test_the_numbers_of_each_page_add_up_to_those_of_the_ledgers(offline: Offline) -> None:
    pages = export(offline)

    outcomes = offline.outcomes("run_1")
    found, statuses = sum_of(pages["export-summary"], "found")
    assert found == sum(statuses.values()) == outcomes.total() == 12
    assert statuses == {"complete": 10, "failed": 2} == outcomes
    entries = Counter(row["status"] for row in offline.rows("phones"))
    given, phones = sum_of(pages["export-summary"], "given")
    assert given == sum(phones.values()) == entries.total() == len(offline.box.phones) + 3
    assert {PHONES[name]: count for name, count in phones.items()} == entries
    listed, parts = sum_of(pages["export-input"], "entries")
    assert listed == given == sum(parts.values())
    assert (parts["repeated"], parts["unreadable"]) == (entries["duplicate"], entries["invalid"]) == (1, 2)
    assert sum(map(int, re.findall(r"\*\*(\d+) × ", pages["export-input"]))) == parts["unreadable"]
    failed = [_number(one) for one in re.findall(r"## ([\d,]+) conversation", pages["export-failures"])]
    assert "# Not exported: 2 conversations\n" in pages["export-failures"]
    assert sum(failed) == outcomes["failed"]
    query = pages["export-failures"].partition("```sql\n")[2].partition("```")[0]
    assert "QUALIFY" not in query
    missing = duckdb.execute(query).fetchall()
    assert [status for _, status, _ in missing] == ["failed"] * 2
    assert all(one in pages["export-failures"] for one, _, _ in missing)
    chart = b64decode(pages["export-picture"].partition("base64,")[2].rstrip(")")).decode()
    new = sum(row["new_messages"] for row in offline.rows("conversations"))
    assert f">{new:,} new messages" in chart
    assert ">12 conversations<" in chart
    assert re.findall(r">([\d,]+) (?:complete|failed)<", chart) == ["10", "2"]
    assert f"- **Messages:** {new:,} new" in pages["export-summary"]
    assert not any(phone.lstrip("+") in page for phone in offline.box.phones for page in pages.values())


def test_a_window_proves_nothing_about_other_messages(offline: Offline, box: Sandbox) -> None:
    window = Window(datetime(2001, 1, 1, tzinfo=UTC), datetime(2001, 2, 1, 8, tzinfo=UTC))
    ids = [*box.conversations][2:]

    state = offline._run("run_1", Selection(ids=ids, window=window), BackfillParams(everything=True))

    read = "very message from 2001-01-01 00:00 UTC until 2001-02-01 08:00 UTC was read; nothing is proven"
    assert state.is_completed()
    assert str(state.message).startswith(f"e{read}")
    assert offline.result is not None
    summary = offline.result.summary
    page = summary_markdown(summary)
    assert page.splitlines()[2] == f"E{read} about others."
    assert "- **Conversations:** 10 found = 10 without news\n" in page
    assert "- **Messages:** 0 new, 0 in this span\n" in page
    assert counts_in_words(summary).startswith("10 conversations found = 10 without news; ")


def test_the_summary_begins_with_the_verdict_and_shows_the_next_step_and_a_query(offline: Offline) -> None:
    lines = export(offline)["export-summary"].splitlines()

    assert lines[0] == "# ⚠️ Partial"
    assert lines[2].startswith("2 conversations failed; the others are in the lake; ")
    (retry, correct) = (line for line in lines if line.startswith("**Next:** "))
    assert "`retry-failed`" in retry
    assert "`run_1`" in retry
    assert "`export-input`" in correct
    assert lines.index(retry) < lines.index("```sql")
    # A screen of 1,200 by 900 pixels, beside the details of the new UI.
    assert len(lines) <= 24
    assert max(len(line) for line in lines[lines.index("```sql") :] if "read_parquet" not in line) <= 64


def test_both_pages_of_a_cancelled_backfill_advise_to_retry_it_by_its_id() -> None:
    advice = NotReached.advice_if_cancelled
    given: dict[str, Any] = {"status": "cancelled", "dead_letter_count": 1, "causes": {advice: 1}}
    cancelled = summary(**given, is_backfill=True, totals=RunTotals(found=2))

    step = "start `retry-failed` with this run to export the rest: `run_1`"
    assert f"**Next:** {step}" in summary_markdown(cancelled)
    assert f"The run was cancelled: {step}" in failures_markdown(cancelled)
    # It had not found its conversations.
    assert "start it again to export the rest." in summary_markdown(summary(**given, is_backfill=True))


def summary(**values: Any) -> RunSummary:
    return RunSummary("run_1", "org_1", "./lake", datetime(2026, 1, 1, tzinfo=UTC), **values)


@pytest.mark.parametrize(
    ("values", "step"),
    [
        ({"status": "complete"}, "query the lake, for example with DuckDB:"),
        (
            {"status": "complete", "causes": {ConversationNotFound.advice: 1}},
            "query the lake, for example with DuckDB:",
        ),
        ({"status": "cancelled", "causes": {"Look.": 1}}, "start it again to export the rest."),
        ({"status": "failed", "totals": RunTotals(found=0)}, "fix the cause, and start it again."),
        ({"status": "failed", "number_errors": {"broken": 1}}, "fix the cause, then start it again: `retry-"),
        ({"status": "partial", "reason": "start run_0 again"}, "do what the sentence above advises"),
        ({"status": "failed", "totals": RunTotals(found=0), "remedy": "Save a token."}, "Save a token.\n"),
        (
            {"status": "failed", "remedy": "Save a token."},
            "Save a token. Then start it again: `retry-failed`",
        ),
        ({"status": "complete", "token_warning": "the token expires"}, "⏳ the token expires"),
        ({"status": "partial", "number_errors": {"broken": 1}}, "`export-failures` shows what is missing"),
    ],
)
def test_the_next_step_follows_from_the_end(values: dict[str, Any], step: str) -> None:
    assert f"**Next:** {step}" in summary_markdown(summary(**values))


@pytest.mark.parametrize(
    ("count", "words"),
    [
        (1, "1 ledger object is damaged, and the run continued without it: run `verify` to see which one"),
        (2, "2 ledger objects are damaged, and the run continued without them: run `verify` to see which"),
    ],
)
def test_damaged_objects_are_counted_in_the_next_step(count: int, words: str) -> None:
    (step,) = next_steps(summary(status="complete", damaged=[f"runs/{one}.parquet" for one in range(count)]))

    assert step.startswith(words)


@pytest.mark.parametrize("is_repaired", [False, True])
@pytest.mark.parametrize(
    ("count", "title"),
    [(5, "**Differences**:"), (1_234, "**Differences** (5 of 1,234; the log has all of them):")],
)
def test_a_compaction_shows_the_first_differences(count: int, title: str, is_repaired: bool) -> None:
    differences = [TableDifference(f"conv={one}", "has no rows") for one in range(count)]
    report = TableReport(
        "messages", changed=5, conversations=7, differences=differences, is_repaired=is_repaired
    )

    lines = compaction_markdown("./lake", [report]).splitlines()

    assert "- **Read:** 5 of 7 conversations" in lines
    first = lines.index(title) + 2
    assert lines[first : first + 5] == [f"- `conv={one}`: has no rows" for one in range(5)]
    repaired = ["", "The compaction has replaced rows of the tables that were wrong."]
    assert lines[first + 5 : -2] == (repaired if is_repaired else [])
    assert lines[-1] == "**Next:** start `verify`, and find the cause."


def test_a_list_without_a_readable_number_has_one_next_step(offline: Offline) -> None:
    offline._run("run_1", Selection(numbers=["none", "12"]), ExportParams(numbers=SecretStr("none, 12")))

    assert offline.result is not None
    page = summary_markdown(offline.result.summary)
    assert page.startswith("# ❌ Failed")
    assert re.findall(r"\*\*Next:\*\* (`[a-z-]+`)?", page) == ["`export-input`"]
    shown = (one for one in offline.shown if isinstance(one, tuple))
    pages = {options["key"]: args[0] for args, options in shown if "key" in options and args}
    assert "the typed numbers" in str(pages["export-input"])
    assert "the arguments" not in str(pages["export-input"])


def test_both_pages_of_a_cancelled_run_advise_to_start_it_again() -> None:
    advice = NotReached.advice_if_cancelled
    cancelled = summary(
        status="cancelled",
        dead_letters=[DeadLetter("conv_1", "not_reached", "not reached: the run was cancelled", advice)],
        dead_letter_count=1,
        causes={advice: 1},
        number_errors={"not reached: the run ended before it was resolved": 1},
    )

    page = failures_markdown(cancelled).partition("```sql")[0]
    assert "**Next:** start it again to export the rest." in summary_markdown(cancelled)
    assert page.lower().count("start it again to export the rest.") == 2
    assert "**What to do:** Retry the run by its id to export the rest; an export can be" in page
    assert "ix the cause" not in page


def test_an_ingestion_that_found_nothing_because_of_its_token_is_started_again(
    offline: Offline, box: Sandbox, tmp_path: Path
) -> None:
    numbers = tmp_path / "all.csv"
    numbers.write_text("\n".join(["phone", *box.phones]))

    assert offline.ingest("run_1", phones=numbers, token=SecretStr("api_wrong")).is_failed()

    assert offline.result is not None
    summary = offline.result.summary
    assert summary.number_errors
    for page in (summary_markdown(summary, "ingest"), failures_markdown(summary, "ingest")):
        assert "start `ingest` again: `retry-failed` would miss" in page
        assert "run_1" not in page.partition("```sql")[0]
    retried = offline.run("run_2", rerun="run_1")
    assert retried.name == "Partial"
    assert "of run run_1: it ended before it had found all its conversations: start it" in str(
        retried.message
    )


def test_the_numbers_that_an_export_could_not_resolve_because_of_its_token_are_retried(
    offline: Offline, box: Sandbox
) -> None:
    for one in [*box.conversations][:2]:
        box.repair(one)
    assert offline.run("run_1", token=SecretStr("api_wrong")).is_failed()

    assert offline.result is not None
    assert "start `retry-failed` with this run: `run_1`" in summary_markdown(offline.result.summary)
    assert offline.run("run_2", rerun="run_1").is_completed()


@pytest.mark.parametrize("remedy", [None, "Save a valid token."])
def test_numbers_that_an_error_of_the_run_left_unresolved_show_what_to_do_about_it(
    remedy: str | None,
) -> None:
    page = failures_markdown(summary(status="failed", number_errors={"broken": 2}, remedy=remedy))

    assert f"**What to do:** {remedy or 'Fix the cause, then retry.'}\n" in page


@pytest.mark.parametrize("status", ["complete", "partial", "failed"])
def test_a_page_of_conversations_that_do_not_exist_advises_no_retry(status: RunStatus) -> None:
    gone: dict[str, Any] = {"dead_letter_count": 2, "causes": {ConversationNotFound.advice: 2}}
    gone["totals"] = RunTotals(found=2)

    assert "\nA retry would not change this.\n" in failures_markdown(summary(status=status, **gone))
    (step,) = next_steps(summary(status=status, **gone))
    assert step.startswith("query the lake" if status == "complete" else "nothing: `export-failures` shows")
    tolerated = {**gone, "causes": {**gone["causes"], "Look.": 1}}
    assert "start `retry-failed`" in failures_markdown(summary(status="complete", **tolerated))


def test_failures_are_grouped_by_what_to_do_with_causes_and_examples() -> None:
    rejected = [
        DeadLetter(f"conv_{n}", "failed", f"rejected (GET /conv_{n}, request id id-{n})", BadRequest.advice)
        for n in range(6)
    ]
    # Without an answer, there is no id of its request.
    rejected.append(DeadLetter("conv_6", "failed", str(BadRequest("/conv_6", "rejected")), BadRequest.advice))
    others = [DeadLetter(f"other_{n}", "failed", f"other_{n} has drift {n}", "Look.") for n in range(7)]
    page = failures_markdown(
        summary(
            status="partial",
            dead_letters=rejected + others,
            dead_letter_count=1_007,
            causes={BadRequest.advice: 1_000, "Look.": 7},
            number_errors={"broken": 2},
        )
    )

    assert page.startswith("# Not exported: 1,007 conversations and 2 phone numbers\n")
    assert re.findall(r"## ([\d,]+) ", page) == ["1,000", "7", "2"]
    first, second, third = page.split("\n## ")[1:]
    assert f"**What to do:** {BadRequest.advice}\n\n**Why:** rejected\n" in first
    assert "`conv_4` and 995 more" in first
    assert "**For the vendor:** `GET /conv_0, request id id-0`" in first
    assert "- 1 × … has drift 0\n" in second
    assert "- 2 × other reasons, in the lake" in second
    assert "**Why:** broken" in third
    assert failures_markdown(summary(status="complete")) == ""


def test_text_from_a_list_has_no_effect_in_the_report_of_the_input() -> None:
    file = {
        "name": "<img src=x>`a`.csv", "rows": 3, "description": "CSV, column [a](javascript:b)",
        "left_out": [{"column": "**fax**", "cells": 2}], "other_sheets": ["<b>"], "titles_skipped": 1,
        "comments": 1, "rows_without_text": {"count": 1, "positions": [2]},
    }  # fmt: skip
    report = {
        "numbers": {"given": 3, "valid": 1, "duplicate": 0, "invalid": 2}, "files": [file], "file_count": 3,
        "skipped_files": [".hidden"],
        "rejected": [{"reason": "it has letters", "count": 2, "where": ["<i>"]}],
    }  # fmt: skip

    page = input_markdown(report)

    assert page.startswith("# 3 entries = 1 to be read + 2 unreadable\n")
    assert "- **2 × it has letters:** `<i>` and 1 more" in page
    assert "- `<img src=x>?a?.csv`: 3 rows, `CSV, column [a](javascript:b)`" in page
    assert "    - column `**fax**` not read, though 2 cells may be numbers" in page
    assert "    - 1 without a number: entry 2" in page
    assert "    - 1 comment line skipped" in page
    assert "- and 2 more files" in page


def test_a_total_without_parts_or_unknown_is_shown_as_such() -> None:
    assert add_up(0, "found", [(0, "complete")]) == "0 found"
    assert add_up(None, "found", [(2, "failed"), (0, "complete")]) == "2 failed"
    assert add_up(None, "found", []) == "unknown"
    assert as_code("a`b\n") == "`a?b?`"


def test_a_plan_names_list_lake_and_organization() -> None:
    plan = Plan(
        numbers={"resolved": 2, "none": 0, "duplicate": 0, "invalid": 0, "error": 0}, lake_exists=False,
        conversations=2, new=2, known=0, sampled=2, messages=60, page_size=100, requests=3, per_second=20.0,
        pace="the limit in force", seconds=0.2, planning_requests=4,
    )  # fmt: skip

    page = plan_markdown(plan, reads="customers.csv", lake="s3://bucket/lake", organization="org_1")

    assert (
        "- **conversations of:** `customers.csv`\n- **lake:** `s3://bucket/lake` (does not exist yet)\n"
        in page
    )
    assert "- **organization:** `org_1`\n" in page
    assert "at 20 requests per second (the limit in force)" in page
    assert "requested by" not in page


@pytest.mark.parametrize(("number", "percent"), [("+886911425977", 100.0), (None, 83.3)])
def test_the_progress_ends_with_the_percentage_of_the_conversations(
    offline: Offline, monkeypatch: pytest.MonkeyPatch, number: str | None, percent: float
) -> None:
    shown: list[float] = []

    async def update(artifact: object, progress: float, **options: object) -> None:
        shown.append(progress)

    monkeypatch.setattr("imbrace_flows.pipeline.aupdate_progress_artifact", update)
    if number is None:  # Two of the twelve conversations are not reached.
        monkeypatch.setattr("imbrace_lake.export.progress.Progress.conversations_done", 10)
    given = [number] if number else [*offline.box.phones]
    offline._run("run_1", Selection(numbers=given), ExportParams(numbers=SecretStr("+886911425977")))

    assert shown[-1] == percent


@pytest.mark.parametrize(
    ("selection", "name"),
    [
        (Selection(numbers=["1"]), "typed numbers"),
        (Selection(phones="s3://b/+886911425977.csv"), "list"),
        (Selection(conversations="ids.txt"), "ids.txt"),
        (Selection(is_everything=True), "everything in the lake"),
        (Selection(rerun="run_1"), "the failures of run run_1"),
    ],
)
def test_a_plan_names_what_it_reads_without_phone_numbers(selection: Selection, name: str) -> None:
    assert selection.name() == name


# -- logs -----------------------------------------------------------------------------------------


def test_a_run_logs_input_lake_found_conversations_and_verdict(
    offline: Offline, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "imbrace_lake.runs"):
        export(offline)

    lines = [one.getMessage() for one in caplog.records if one.name == "imbrace_lake.runs"]
    assert re.fullmatch(r"given: [\d,]+ phone numbers · 1 repeated · 2 unreadable", lines[0])
    assert lines[1] == f"organization {offline.box.options.organization_id}, lake {offline.lake}"
    assert lines[2] == f"made a new lake at {offline.lake}"
    assert lines[3] == "found: 12 conversations"
    assert lines[4].startswith("partial: 12 conversations found = 10 complete + 2 failed; ")
    assert all(one.levelno < logging.ERROR for one in caplog.records)


def test_the_verdict_of_a_run_that_found_nothing_states_that() -> None:
    assert counts_in_words(summary(totals=RunTotals(found=0))).startswith("0 conversations found; 0 new")


def test_prefects_lines_about_tasks_are_left_out_unless_an_operator_wants_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tasks = logging.getLogger("prefect.task_runs")
    for before, after in ((logging.NOTSET, logging.WARNING), (logging.INFO, logging.INFO)):
        monkeypatch.setattr(tasks, "level", before)
        show_log_lines()
        assert tasks.level == after


@pytest.mark.parametrize(
    ("state", "level"),
    [
        (Suspended(), "INFO"),
        (Cancelled(), "INFO"),
        (Cancelled(name="Declined", message="declined: x"), "INFO"),
        (Completed(), "ERROR"),  # never logged as one
        (Failed(message="a, type=CANCELLED)"), "ERROR"),
        (Failed(name="Partial", message="Cancelled("), "ERROR"),
        (Crashed(), "ERROR"),
    ],
)
def test_only_ends_that_are_errors_are_logged_as_errors(state: Any, level: str) -> None:
    record = logging.LogRecord("a", logging.ERROR, "", 1, f"Finished in state {state}", (), None)

    assert _calm_end(record)
    assert record.levelname == level
    record.msg = f"Finished in state {Running()}"  # Cancelled by its worker.
    assert not _calm_end(record)


@pytest.mark.parametrize(
    ("message", "error", "is_shown"),
    [
        ("Finished in state Failed('2 failed')", None, True),
        ("Task run failed with state: Failed() - Retries are exhausted", (None, None, None), False),
        ("Crash detected! Execution was cancelled by the runtime environment.", None, False),
        ("Finished in state Crashed('Execution was cancelled by the runtime environment.')", None, False),
        ("Crash detected! Execution was aborted by a termination signal.", None, False),
        ("Finished in state Crashed('Execution was aborted')", None, True),
    ],
)
def test_a_task_logs_its_failure_once_and_not_that_its_run_was_cancelled(
    message: str, error: Any, is_shown: bool
) -> None:
    assert _is_shown(logging.LogRecord("a", logging.ERROR, "", 1, message, (), error)) == is_shown


def test_the_summary_is_plain_json() -> None:
    assert json.loads(json.dumps(summary(causes={"Look.": 2}).as_json()))["causes"] == {"Look.": 2}
