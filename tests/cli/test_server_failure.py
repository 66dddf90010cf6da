"""What is said about a local Prefect server that did not start."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path

import pytest

from imbrace_cli.server_failure import explain_failure, last_relevant_line
from imbrace_cli.server_files import ServerFiles
from imbrace_cli.server_progress import Progress, cpu_seconds, parse_cpu_time

TRACEBACK = """ERROR:    Traceback (most recent call last):
  File "/lib/python3.11/site-packages/starlette/routing.py", line 1, in lifespan
    yield
{line}
[SQL: SELECT version_num FROM alembic_version]
(Background on this error at: https://sqlalche.me/e/21/e3q8)

ERROR:    Application startup failed. Exiting.
2026-11-27 11:06:58 supervisor: the server did not start: it ended with code 3
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
        (
            "ERROR:    [Errno 98] error while attempting to bind on address ('127.0.0.1', 4280): address"
            " already in use",
            "another program took its port",
        ),
        ("[Errno 48] Address already in use".lower(), "another program took its port"),
        ("PermissionError: [Errno 13] Permission denied: '/home/prefect/storage'", "it may not write to"),
        ("(sqlite3.OperationalError) attempt to write a readonly database", "it may not write to"),
        ("(sqlite3.OperationalError) unable to open database file", "it may not write to"),
        ("(sqlite3.DatabaseError) file is not a database", "its database is damaged"),
        ("(sqlite3.DatabaseError) database disk image is malformed", "its database is damaged"),
        ("(sqlite3.OperationalError) database is locked", "keeps its database locked"),
        ("MemoryError", "ran out of memory"),
        ("supervisor: the server did not start: it was killed by signal 9", "ran out of memory"),
        ("supervisor: the server did not start: no progress for 90 s", "it made no progress"),
        ("supervisor: the server did not start within 1800 s", "it made no progress"),
    ],
)
def test_each_cause_is_named_with_what_to_do(line: str, reason: str, tmp_path: Path) -> None:
    explained = explain_failure(TRACEBACK.format(line=line), tmp_path)

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
    assert explain_failure(TRACEBACK.format(line=line), tmp_path) == f"it ended with {line!r}"


def test_a_quoted_line_is_short_and_printable(tmp_path: Path) -> None:
    line = last_relevant_line("ValueError: \x1b[31m" + "long " * 1_000)

    assert len(line) <= 300
    assert line.isprintable()


def test_a_full_disk_is_named_although_nothing_could_be_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9, 4096))

    assert "the disk is full" in explain_failure("", tmp_path)


def test_an_empty_log_is_said_to_be_empty(tmp_path: Path) -> None:
    assert explain_failure("\n", tmp_path) == "it wrote nothing into its log"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("00:00:07", 7), ("01:02:03", 3723), ("2-00:00:01", 172_801), (" 3:04.50\n", 184.5), ("", 0)],
)
def test_the_cpu_time_of_ps_is_understood(text: str, seconds: float) -> None:
    assert parse_cpu_time(text) == seconds


@pytest.mark.slow
def test_work_and_writing_are_progress_and_sleep_is_none(tmp_path: Path) -> None:
    files = ServerFiles(tmp_path)
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as idle:
        time.sleep(1.0)
        progress = Progress(idle.pid, files)
        time.sleep(0.3)
        assert progress.stalled_seconds() >= 0.3

        (tmp_path / "prefect.db-wal").write_bytes(b"a migration")
        assert progress.stalled_seconds() < 0.2
        idle.kill()
    assert cpu_seconds(idle.pid) == 0.0

    progress = Progress(os.getpid(), files)
    end = time.process_time() + 0.3
    while time.process_time() < end:
        pass
    assert progress.stalled_seconds() < 0.2
