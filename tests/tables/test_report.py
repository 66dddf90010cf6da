"""A report in one line."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from imbrace_lake.tables.report import TableReport, describe

AS_OF = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("report", "line"),
    [
        (
            TableReport("messages", is_dry_run=True, changed=1, objects_read=2, files_removed=1, requests=1),
            "messages: would read 2 objects of 1 conversation and 1 file of the table (0.0 MB), and"
            " write about 0.0 MB, with about 1 request",
        ),
        (
            TableReport("runs", "ledger objects", is_dry_run=True, changed=1, objects_read=1, requests=1_006),
            "runs: would read 1 new ledger object and 0 files of the table (0.0 MB), and write about 0.0 MB,"
            " with about 1,006 requests",
        ),
        (
            TableReport("runs", "ledger objects", rows=1, files=1, as_of=AS_OF),
            "runs: up to date, 1 row in 1 file (0.0 MB), as of 2026-01-01 00:00:00 UTC",
        ),
        (
            TableReport("messages", rows=2_000, files=2, changed=1, commits=1, rows_added=1, rows_removed=3),
            "messages: 1 conversation read, 1 row added, 3 removed; 2,000 rows in 2 files (0.0 MB)",
        ),
        (
            TableReport("phones", "ledger objects", changed=2, commits=1),
            "phones: 2 new ledger objects, 0 rows added, 0 removed; 0 rows in 0 files (0.0 MB)",
        ),
    ],
)
def test_a_report_is_one_line(report: TableReport, line: str) -> None:
    assert describe(report) == line
