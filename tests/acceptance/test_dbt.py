"""dbt builds its package on DuckDB, its tests pass, and the models have the rows of the views."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import duckdb
import pytest

from imbrace_lake.query.dialects import DuckDB
from imbrace_lake.query.views import script, views
from tests.acceptance.exporter import ROOT
from tests.acceptance.scale import IS_FULL
from tests.core.test_dbt_package import variables_of
from tests.core.test_views import SETTINGS
from tests.talks import make_entries, make_phones, make_rows, write_lake

CONVERSATIONS = 500
# From 1.12 on, dbt-core downloads a parser that the package index does not have; and it needs an older
# pathspec than mypy does, so it cannot be in the project's environment.
PACKAGES = ("dbt-core>=1.11,<1.12", "dbt-duckdb>=1.10")


@pytest.fixture(scope="module")
def dbt(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return dbt's program, installed into a new environment."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    install = [str(folder / "bin/python"), "-m", "pip", "install", "--quiet", *PACKAGES]
    subprocess.run(install, check=True)
    return str(folder / "bin/dbt")


def rows_of(connection: duckdb.DuckDBPyConnection) -> dict[str, list[Any]]:
    connection.execute("SET TimeZone = 'UTC'")
    names = [view.name for view in views(DuckDB(), SETTINGS["Taipei"])]
    return {name: sorted(connection.sql(f"FROM {name}").fetchall(), key=str) for name in names}


@pytest.mark.skipif(not IS_FULL, reason="installs dbt: IMBRACE_ACCEPTANCE=full")
@pytest.mark.parametrize("place", ["Taipei", "Berlin"])
def test_models_have_the_rows_of_the_views(place: str, dbt: str, tmp_path: Path) -> None:
    settings = SETTINGS[place]
    write_lake(tmp_path / "lake", make_rows(5, CONVERSATIONS), make_entries(CONVERSATIONS), make_phones())
    values = json.dumps({"lake": str(tmp_path / "lake"), **variables_of(settings)})
    database = tmp_path / "views.duckdb"
    package = str(ROOT / "dbt")
    options = ["--project-dir", package, "--profiles-dir", package, "--vars", values]
    options += ["--target-path", str(tmp_path / "target"), "--log-path", str(tmp_path)]

    built = subprocess.run(
        [dbt, "build", *options],
        env={**os.environ, "LAKE_DATABASE": str(database), "DO_NOT_TRACK": "1"},
        capture_output=True,
        text=True,
        check=False,
    )

    assert built.returncode == 0, built.stdout
    assert "WARN=0 ERROR=0 SKIP=0" in built.stdout
    with duckdb.connect(str(database)) as connection:
        found = rows_of(connection)
    with duckdb.connect() as connection:
        text = script(DuckDB(), settings).replace("'lake/", f"'{tmp_path}/lake/")
        connection.execute(text)
        assert found == rows_of(connection)
    assert found["episodes"]
