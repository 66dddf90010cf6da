"""The dbt package has the queries of the views; tests/acceptance/test_dbt.py runs it with dbt."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from types import SimpleNamespace
from typing import Any
from zoneinfo import available_timezones

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


class CompilationError(Exception):
    """What dbt's macro for errors raises."""


def render(name: str, engine: str, variables: dict[str, Any]) -> str:
    """Return a model as dbt compiles it, with names of views and sources instead of tables."""
    environment = Environment(extensions=["jinja2.ext.do"])  # noqa: S701 - not HTML
    macros: Any = None

    def dispatch(macro: str, _package: str) -> Callable[..., str]:
        found: Callable[..., str] = getattr(macros, f"{engine}__{macro}")
        return found

    known = {"adapter": SimpleNamespace(dispatch=dispatch), "return": str}
    macros = environment.from_string((FOLDER / "macros/engines.sql").read_text("utf-8")).make_module(known)

    def reject(sentence: str) -> None:
        raise CompilationError(sentence)

    text = "VARCHAR" if engine == "duckdb" else "STRING"
    rendered = environment.from_string((FOLDER / f"models/{name}.sql").read_text("utf-8")).render(
        imbrace_lake=macros,
        dbt=SimpleNamespace(type_string=lambda: text),
        ref=str,
        source=lambda source, table: f"{source}_{table}",
        var=variables.__getitem__,
        exceptions=SimpleNamespace(raise_compiler_error=reject),
        modules=SimpleNamespace(re=re, pytz=SimpleNamespace(all_timezones_set=available_timezones())),
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


@pytest.mark.slow
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


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("time_zone", "Mars", "time_zone: Mars is not a time zone: write UTC, or Asia/Taipei"),
        ("gap_minutes", 0, "gap_minutes: 0 is not a number above 0"),
        ("gap_minutes", "60", "gap_minutes: 60 is not a number above 0"),
        ("document_characters", 0, "document_characters: 0 is not a number from 1"),
        ("business_hours", ["9-5"], "business_hours: ['9-5'] are not 7 texts, from Monday to Sunday"),
        ("business_hours", "9-5", "business_hours: 9-5 are not 7 texts, from Monday to Sunday"),
        ("business_hours", ["9-5"] * 7, "business_hours: 9-5 are not business hours: write 09:00-18:00"),
        ("business_hours", ["18:00-09:00"] * 7, "18:00-09:00 are not business hours"),
        ("business_hours", ["09:00-24:30"] * 7, "09:00-24:30 are not business hours"),
        ("bots", "u_1", "bots: u_1 is not a list of ids, such as [u_1]"),
        ("bots", [""], "bots: [''] is not a list of ids"),
    ],
)
def test_variables_that_cannot_be_used_are_one_sentence(name: str, value: Any, sentence: str) -> None:
    model = name if name in BY_HAND else "settings"

    with pytest.raises(CompilationError, match=re.escape(sentence)):
        render(model, "duckdb", variables_of(ViewSettings()) | {name: value})


def test_variables_have_the_defaults_of_the_settings() -> None:
    project = YAML(typ="safe").load(FOLDER / "dbt_project.yml")
    ours = {"lake": "lake", "schema": "lake"}

    assert project["vars"]["imbrace_lake"] == ours | variables_of(ViewSettings())


def test_only_the_target_for_s3_needs_extensions_and_credentials() -> None:
    profile = YAML(typ="safe").load(FOLDER / "profiles.yml")["imbrace_lake"]
    local, remote = (profile["outputs"][name] for name in ("duckdb", "s3"))

    assert profile["target"] == "duckdb"
    assert remote == local | {
        "extensions": ["httpfs", "aws"],
        "secrets": [{"type": "s3", "provider": "credential_chain"}],
    }


@pytest.mark.slow
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
