"""The local server removes old runs."""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import pytest

from imbrace_cli.local_server import ensure_server, stop_server
from tests.prefect_homes import DATABASE, make_home

TABLES = ("flow_run", "flow_run_state", "task_run", "task_run_state", "log", "artifact")


def insert_run(
    database: sqlite3.Connection, name: str, state: str, age: timedelta, children: int = 1
) -> None:
    """Insert a run, with states, tasks, logs and artifacts; it began, and ended if it did, `age` ago."""
    then = datetime.now(UTC) - age
    at = then.strftime("%Y-%m-%d %H:%M:%S.%f")
    ended = at if state == "COMPLETED" else None
    flow, run = "00000000-0000-0000-0000-000000000001", str(uuid4())

    def insert(table: str, **row: str | int | None) -> None:
        names, marks = ", ".join(row), ", ".join("?" * len(row))
        database.execute(f"INSERT INTO {table} ({names}) VALUES ({marks})", tuple(row.values()))  # noqa: S608

    database.execute("INSERT OR IGNORE INTO flow (id, name) VALUES (?, 'any')", (flow,))
    insert("flow_run", id=run, name=name, flow_id=flow, state_type=state, start_time=at, end_time=ended)
    insert("flow_run_state", flow_run_id=run, type=state, name=state.title(), timestamp=at)
    for number in range(children):
        task = str(uuid4())
        insert("task_run", id=task, name="t", flow_run_id=run, task_key="t", dynamic_key=str(number))
        insert("task_run_state", task_run_id=task, type=state, name=state.title(), timestamp=at)
        insert("log", name="l", level=20, message="m" * 100, flow_run_id=run, timestamp=at)
        insert("artifact", id=str(uuid4()), key=f"export-{number}", flow_run_id=run, data='"…"')


def count(database: Path) -> dict[str, int]:
    with closing(sqlite3.connect(database)) as connection:
        counted = (connection.execute(f"SELECT count(*) FROM {table}") for table in TABLES)  # noqa: S608
        return {table: one.fetchone()[0] for table, one in zip(TABLES, counted, strict=True)}


@pytest.mark.server
def test_old_runs_are_removed_and_recent_and_unfinished_ones_stay(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = make_home(tmp_path_factory, "old-runs")
    with closing(sqlite3.connect(home / DATABASE)) as database, database:
        for number in range(250):
            insert_run(database, f"old {number}", "COMPLETED", timedelta(days=10.1))
        insert_run(database, "recent", "COMPLETED", timedelta(days=9.9))
        insert_run(database, "running", "RUNNING", timedelta(days=20))
    monkeypatch.setenv("IMBRACE_SERVER_KEEP_DAYS", "10")

    ensure_server(home)
    try:
        deadline = time.monotonic() + 60
        while set(count(home / DATABASE).values()) != {2} and time.monotonic() < deadline:
            time.sleep(0.2)
    finally:
        stop_server(home)

    assert count(home / DATABASE) == dict.fromkeys(TABLES, 2)
    with closing(sqlite3.connect(home / DATABASE)) as database:
        names = {name for (name,) in database.execute("SELECT name FROM flow_run")}
    assert names == {"recent", "running"}
