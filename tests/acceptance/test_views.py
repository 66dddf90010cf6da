"""Spark and DuckDB return the same rows for every view, from the files of their engines."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import duckdb
import pytest

from imbrace_lake.query.dialects import Dialect, DuckDB, Spark
from imbrace_lake.query.views import ViewSettings, script, views
from tests.acceptance.exporter import ROOT
from tests.core.test_views import SETTINGS
from tests.talks import make_entries, make_phones, make_rows, write_lake

CONVERSATIONS = 40
VIEWS = [view.name for view in views(DuckDB(), ViewSettings())]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("talks")
    write_lake(folder / "lake", make_rows(11, CONVERSATIONS), make_entries(CONVERSATIONS), make_phones())
    return folder


def script_for(dialect: Dialect, settings: ViewSettings, folder: Path) -> str:
    text = script(dialect, settings)
    assert "lake/" in text
    return (
        text.replace("lake/messages", f"{folder}/lake/messages")
        .replace("lake/conversations", f"{folder}/lake/conversations")
        .replace("lake/phones", f"{folder}/lake/phones")
    )


def in_duckdb(settings: ViewSettings, folder: Path) -> dict[str, Any]:
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'America/New_York'")
        connection.execute(script_for(DuckDB(), settings, folder))
        connection.execute("SET TimeZone = 'UTC'")
        return {name: connection.sql(f"FROM {name}").to_arrow_table().to_pylist() for name in VIEWS}


def in_spark(settings: ViewSettings, folder: Path) -> dict[str, Any]:
    path = folder / "spark.sql"
    path.write_text(script_for(Spark(), settings, folder))
    command = [sys.executable, "-m", "tests.acceptance.views_in_spark", str(path), *VIEWS]
    environment = {**os.environ, "TZ": "UTC"}
    result = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900, check=False
    )
    assert result.returncode == 0, result.stderr[-3_000:]
    found: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return found


def in_order(rows: list[dict[str, Any]]) -> list[str]:
    """Return rows as sorted texts, so that the order and the zone of engines do not matter."""
    return sorted(json.dumps(row, default=str, sort_keys=True).replace("+00:00", "") for row in rows)


@pytest.mark.parametrize("place", ["Berlin"])
def test_spark_and_duckdb_return_the_same_rows(place: str, folder: Path) -> None:
    if find_spec("pyspark") is None:
        pytest.skip("pyspark is not installed: `.uv/bin/uv sync --group engines` installs it")
    if shutil.which("java") is None:
        pytest.skip("Spark needs Java 17 on the PATH (Debian: apt install openjdk-17-jre-headless)")
    here = in_duckdb(SETTINGS[place], folder)

    there = in_spark(SETTINGS[place], folder)

    for name in VIEWS:
        assert in_order(there[name]) == in_order(here[name]), name
        assert here[name]
