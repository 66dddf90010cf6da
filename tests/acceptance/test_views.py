"""All query engines return the same rows for every view, from the files of their languages."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from imbrace_lake.lake.schema import SCHEMA, Origin, to_rows
from imbrace_lake.query.dialects import DIALECTS
from imbrace_lake.query.views import ViewSettings, script, views
from imbrace_sandbox import Sandbox, SandboxOptions
from tests.acceptance.exporter import ROOT
from tests.acceptance.scale import IS_FULL
from tests.core.test_views import SETTINGS
from tests.talks import make_entries, make_phones, make_rows, write_lake

CONVERSATIONS = 2_000 if IS_FULL else 20
PLACES = [*SETTINGS] if IS_FULL else ["Berlin"]
BY_NAME = {dialect.name: dialect for dialect in DIALECTS}
VIEWS = [view.name for view in views(BY_NAME["duckdb"], ViewSettings())]
MODULES = {"clickhouse": "chdb", "datafusion": "datafusion", "spark": "pyspark"}
# Spark takes 25 s of CPU for the smallest lake; a page of the documentation also runs its file.
ENGINES = [one for one in MODULES if IS_FULL or one != "spark"]


@pytest.fixture(scope="module", params=["generated", "real"] if IS_FULL else ["generated"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a lake: small objects, or for full runs one object with all messages."""
    folder = tmp_path_factory.mktemp("talks")
    rows = make_rows(11, CONVERSATIONS)
    write_lake(folder / "lake", [] if IS_FULL else rows, make_entries(CONVERSATIONS), make_phones())
    if IS_FULL:
        messages = pa.Table.from_pylist(rows, schema=SCHEMA)
        if request.param == "real":
            messages = read_real(request.getfixturevalue("real_conversations"))
        path = folder / "lake/messages/org=all/conv=all/part-00000.parquet"
        path.parent.mkdir(parents=True)
        pq.write_table(messages, path)
    return folder


def read_real(file: Path) -> pa.Table:
    """Return the real messages as rows of a lake."""
    pages = []
    with Sandbox(SandboxOptions(file=file)) as box:
        for conversation in box.conversations:
            items = box.truth(conversation)
            origin = Origin(
                box.options.organization_id, conversation, "run", datetime(2026, 1, 1, tzinfo=UTC)
            )
            pages.append(to_rows(items, [item["_id"] for item in items], origin))
    return pa.concat_tables(pages).select(SCHEMA.names)


@pytest.fixture(scope="module")
def expected(folder: Path) -> dict[str, dict[str, list[str]]]:
    """Return the rows of DuckDB, which `tests/core/test_views.py` compares with plain Python."""
    return {place: rows_of("duckdb", SETTINGS[place], folder) for place in PLACES}


def rows_of(engine: str, settings: ViewSettings, folder: Path) -> dict[str, list[str]]:
    """Return the rows of each view as sorted texts; the order and the zone of engines do not matter."""
    path = folder / "sql" / f"{engine}.sql"
    path.parent.mkdir(exist_ok=True)
    path.write_text(script(BY_NAME[engine], settings), "utf-8")
    command = [sys.executable, "-m", "tests.acceptance.view_engines", engine, str(path), *VIEWS]
    result = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=1_500,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-3_000:]
    found: dict[str, list[dict[str, Any]]] = json.loads(result.stdout.splitlines()[-1])
    return {name: sorted(map(_text, rows)) for name, rows in found.items()}


def _text(row: dict[str, Any]) -> str:
    if "conversation_ids" in row:
        # ClickHouse has empty lists instead of null.
        row["conversation_ids"] = row["conversation_ids"] or []
    return json.dumps(row, sort_keys=True).replace("+00:00", "")


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("engine", ENGINES)
def test_all_engines_return_the_same_rows(
    engine: str, place: str, folder: Path, expected: dict[str, dict[str, list[str]]]
) -> None:
    if find_spec(MODULES[engine]) is None:
        pytest.skip(f"{MODULES[engine]} is not installed: `.uv/bin/uv sync --group engines` installs it")
    if engine == "spark" and shutil.which("java") is None:
        pytest.skip("Spark needs Java 17 on the PATH (Debian: apt install openjdk-17-jre-headless)")

    found = rows_of(engine, SETTINGS[place], folder)

    for name in VIEWS:
        assert found[name] == expected[place][name], name
        # The real conversations have no offers of quick replies.
        assert found[name] or IS_FULL
