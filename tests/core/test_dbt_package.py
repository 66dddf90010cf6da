"""The dbt package has the queries of the views; tests/acceptance/test_dbt.py runs it with dbt."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import dbt_package
import duckdb
import pytest
from dbt_package import BY_HAND, FOLDER
from jinja2 import Environment
from ruamel.yaml import YAML
from views import KEYS

from imbrace_lake.query.dialects import Dialect, DuckDB, Spark
from imbrace_lake.query.views import ViewSettings, views
from tests.core.test_views import SETTINGS


def render(name: str, engine: str, variables: dict[str, Any]) -> str:
    """Return a model as dbt compiles it, with names of views and sources instead of tables."""
    environment = Environment(extensions=["jinja2.ext.do"])  # noqa: S701 - not HTML
    macros: Any = None

    def dispatch(macro: str, _package: str) -> Callable[..., str]:
        found: Callable[..., str] = getattr(macros, f"{engine}__{macro}")
        return found

    known = {"adapter": SimpleNamespace(dispatch=dispatch), "return": str}
    macros = environment.from_string((FOLDER / "macros/engines.sql").read_text("utf-8")).make_module(known)
    text = "VARCHAR" if engine == "duckdb" else "STRING"
    rendered = environment.from_string((FOLDER / f"models/{name}.sql").read_text("utf-8")).render(
        imbrace_lake=macros,
        dbt=SimpleNamespace(type_string=lambda: text),
        ref=str,
        source=lambda source, table: f"{source}_{table}",
        var=variables.__getitem__,
    )
    return rendered.strip()


def variables_of(settings: ViewSettings) -> dict[str, Any]:
    """Return settings as dbt's variables."""
    hours = [
        "" if one is None else "-".join(f"{minutes // 60:02}:{minutes % 60:02}" for minutes in one)
        for one in settings.business_hours
    ]
    return {
        "time_zone": settings.time_zone,
        "gap_minutes": settings.gap // timedelta(minutes=1),
        "business_hours": hours,
        "bots": [*settings.bots],
        "document_characters": settings.document_characters,
    }


@pytest.mark.parametrize("dialect", [DuckDB(), Spark()], ids=lambda dialect: dialect.name)
def test_models_have_the_queries_of_the_views(dialect: Dialect) -> None:
    for view in views(dialect, ViewSettings()):
        if view.name not in BY_HAND:
            assert render(view.name, dialect.name, {}) == view.query


@pytest.mark.parametrize("place", SETTINGS)
def test_variables_make_the_rows_of_the_settings(place: str) -> None:
    settings = replace(SETTINGS[place], gap=timedelta(minutes=90))
    queries = {view.name: view.query for view in views(DuckDB(), settings)}

    for name in BY_HAND:
        rendered = render(name, "duckdb", variables_of(settings))
        with duckdb.connect() as connection:
            expected = connection.execute(queries[name]).fetchall()
            assert sorted(connection.execute(rendered).fetchall()) == sorted(expected)


def test_variables_have_the_defaults_of_the_settings() -> None:
    project = YAML(typ="safe").load(FOLDER / "dbt_project.yml")
    ours = {"lake": "lake", "schema": "lake"}

    assert project["vars"]["imbrace_lake"] == ours | variables_of(ViewSettings())


def test_the_package_has_no_other_files_and_describes_every_model() -> None:
    generated = dict(dbt_package.files())
    described = YAML(typ="safe").load(FOLDER / "models/views.yml")["models"]

    models = {*FOLDER.glob("models/*.sql")}
    assert models == {path for path in generated if path.suffix == ".sql" and path in models} | {
        FOLDER / f"models/{name}.sql" for name in BY_HAND
    }
    for path, text in generated.items():
        assert path.read_text("utf-8") == text
    assert [model["name"] for model in described] == [*KEYS]
    assert not re.search("QUALIFY", "".join(generated.values()))
    for model in described:
        assert all(column["description"] for column in [model, *model["columns"]])
