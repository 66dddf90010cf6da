"""`imbrace-lake demo` makes a lake, and a second demo leaves it unchanged."""

from __future__ import annotations

import builtins
import os
import socket
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Run, prefect_leaks

pytestmark = [pytest.mark.usefixtures("prefect"), prefect_leaks]


def test_the_demo_ends_with_a_queried_lake_and_a_second_one_changes_nothing(run: Run, workdir: Path) -> None:
    os.environ["IMBRACE_TOKEN"] = "api_of_somebody"

    first = run("demo", "--conversations", "9")
    written = {path: path.stat().st_mtime_ns for path in (workdir / "lake" / "messages").rglob("*.parquet")}
    second = run("demo", "--conversations", "9")

    assert (first.code, second.code) == (0, 0)
    assert "9 complete" in first.out
    assert "9 unchanged" in second.out
    assert "… 7 more" in first.out
    assert "demo --conversations 9      (finds everything unchanged)" in first.out
    assert "FROM read_parquet('./lake/messages/**/*.parquet')" in first.out
    assert "\n text " in first.out
    assert "See the run:    http://127.0.0.1:" in first.out
    assert first.err.count("input: ") == 3
    assert written
    assert written == {
        path: path.stat().st_mtime_ns for path in (workdir / "lake" / "messages").rglob("*.parquet")
    }
    assert os.environ["IMBRACE_TOKEN"] == "api_of_somebody"


def test_without_duckdb_pandas_answers(run: Run, workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without_duckdb(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "duckdb":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    lake = workdir / "a lake"
    with_duckdb = run("demo", "--conversations", "2", "--lake", str(lake))
    monkeypatch.setattr(builtins, "__import__", without_duckdb)

    result = run("demo", "--conversations", "2", "--lake", str(lake))

    assert result.code == 0
    assert "pd.read_parquet(" in result.out
    assert len(_table(result.out)) == 8
    assert _table(result.out)[:2] == _table(with_duckdb.out)[:2]


def _table(out: str) -> list[list[str]]:
    lines = out.rpartition(" latest ")[2].partition("See the run")[0].splitlines()[1:]
    return [line.split() for line in lines if line.strip(" ─")]


def test_a_lake_on_another_machine_is_for_the_export(run: Run) -> None:
    result = run("demo", "--lake", "s3://bucket/lake")

    assert result.code == 2
    assert "the demo writes only to a local folder" in result.err


def test_a_port_in_use_is_reported(run: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]

        result = run("demo", "--port", str(port))

    assert result.code == 1
    assert f"port {port} is taken" in result.err


def test_a_failed_demo_reports_the_failure(run: Run, workdir: Path) -> None:
    (workdir / "lake").write_text("in the way")

    result = run("demo", "--conversations", "1")

    assert result.code == 1
    assert "is a file where the lake needs a folder" in result.err
    assert "What landed" not in result.out
