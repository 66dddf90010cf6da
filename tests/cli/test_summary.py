"""The summary of a run."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from imbrace_cli.run import Outcome
from imbrace_cli.summary import show_outcome
from imbrace_lake.errors import ConversationNotFound
from imbrace_lake.export.run import DeadLetter, RunSummary
from imbrace_lake.lake.ledger_schema import RunTotals
from tests.cli.conftest import prefect_leaks

pytestmark = [pytest.mark.usefixtures("prefect"), prefect_leaks]


def summary(failures: int = 0) -> RunSummary:
    letters = [DeadLetter(f"conv_{number}", "failed", "broken", "Fix it.") for number in range(failures)]
    return RunSummary(
        run_id="run",
        organization="org",
        lake="./lake",
        started_at=datetime(2026, 1, 1, tzinfo=UTC),
        status="partial" if failures else "complete",
        totals=RunTotals(
            phones={"resolved": 1_234, "invalid": 25},
            conversations={"complete": 9},
            requests=50,
            retries=3,
            refusals=2,
        ),
        dead_letters=letters,
        dead_letter_count=failures,
        causes={"Fix it.": failures} if failures else {},
    )


def test_long_lists_are_cut_and_counted(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    show_outcome(
        Outcome(summary(failures=12), [f"line {number}: none" for number in range(100)]),
        "imbrace-lake export",
    )

    out, err = capsys.readouterr()
    assert out.count("failed: broken") == 10
    assert "  and 2 more\n" in out
    assert "what to do:\n  12 × Fix it.\n" in out
    assert err.count("input: line") == 20
    assert err.endswith("input: and 5 more\n")


def test_conversations_that_are_gone_need_no_second_export(
    workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = replace(summary(failures=2), causes={ConversationNotFound.advice: 2})
    show_outcome(Outcome(replace(gone, status="complete"), []), "imbrace-lake export")
    show_outcome(Outcome(replace(gone, status="failed"), []), "imbrace-lake export")
    assert "Once the cause is fixed" not in capsys.readouterr().out
    tolerated = replace(gone, status="complete", causes={**gone.causes, "Fix it.": 1})
    show_outcome(Outcome(tolerated, []), "imbrace-lake export")

    assert "Once the cause is fixed: " in capsys.readouterr().out


def test_a_run_without_accounts_shows_only_what_it_knows(
    workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    totals = RunTotals(conversations={"complete": 14, "failed": 35}, found=60)
    show_outcome(Outcome(replace(summary(), totals=totals), []), "imbrace-lake export")

    out = capsys.readouterr().out
    assert "  conversations  60 found: 14 complete · 35 failed\n" in out
    assert "numbers" not in out
    assert "time" not in out


def test_counts_of_zero_are_not_shown(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    show_outcome(Outcome(summary(), []), "imbrace-lake export")

    out = capsys.readouterr().out
    assert "  numbers        1,234 with conversations · 25 invalid\n" in out
    assert "  requests       50 (3 tried again · 2 rate-limited), " in out
    assert "not exported" not in out
