"""The explanation of a local Prefect server that did not start."""

from __future__ import annotations

import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from imbrace_cli.server_failure import explain_failure

TRACEBACK = """ERROR:    Traceback (most recent call last):
  File "/lib/python3.11/site-packages/starlette/routing.py", line 1, in lifespan
    yield
{line}
[SQL: SELECT version_num FROM alembic_version]
(Background on this error at: https://sqlalche.me/e/21/e3q8)

ERROR:    Application startup failed. Exiting.
"""


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (
            "alembic.util.exc.CommandError: Can't locate revision identified by '0123'",
            "a newer version of Prefect",
        ),
        (
            "sqlalchemy.exc.OperationalError: (sqlite3.OperationalError) database or disk is full",
            "disk is full",
        ),
        ("OSError: [Errno 28] No space left on device: '/home/prefect/state.new'", "disk is full"),
        ("OSError: [Errno 122] Disk quota exceeded", "disk is full"),
        ("PermissionError: [Errno 13] Permission denied: '/home/prefect/storage'", "it may not write to"),
        ("(sqlite3.OperationalError) attempt to write a readonly database", "it may not write to"),
        ("(sqlite3.OperationalError) unable to open database file", "it may not write to"),
        ("(sqlite3.DatabaseError) file is not a database", "its database is damaged"),
        ("(sqlite3.DatabaseError) database disk image is malformed", "its database is damaged"),
        ("(sqlite3.OperationalError) database is locked", "keeps its database locked"),
        ("MemoryError", "ran out of memory"),
    ],
)
def test_each_cause_is_reported_with_advice(line: str, reason: str, tmp_path: Path) -> None:
    explained = explain_failure(TRACEBACK.format(line=line), 3, tmp_path)

    assert reason in explained
    assert ": " in explained
    assert "Traceback" not in explained


@pytest.mark.parametrize(
    "line",
    [
        "ModuleNotFoundError: No module named 'uvicorn'",
        "ImportError: cannot import name 'x' from 'y'",
        "pydantic_core._pydantic_core.ValidationError: 1 validation error for Settings",
        "RuntimeError",
    ],
)
def test_for_any_other_cause_the_line_that_names_it_is_quoted(line: str, tmp_path: Path) -> None:
    assert explain_failure(TRACEBACK.format(line=line), 3, tmp_path) == f"it ended with {line!r}"


def test_a_quoted_line_is_short_and_printable(tmp_path: Path) -> None:
    line = explain_failure("ValueError: \x1b[31m" + "long " * 1_000, 1, tmp_path)

    assert "ValueError: " in line
    assert len(line) <= 330
    assert "x1b" not in line


def test_a_full_disk_is_reported_although_nothing_could_be_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9, 4096))

    assert "the disk is full" in explain_failure("", 1, tmp_path)


def test_without_any_line_in_the_log_the_exit_code_is_reported(tmp_path: Path) -> None:
    assert explain_failure("\n", 3, tmp_path) == "it wrote nothing into its log and ended with code 3"


def test_a_kill_is_reported(tmp_path: Path) -> None:
    assert "ran out of memory or was killed" in explain_failure("a line", -9, tmp_path)
