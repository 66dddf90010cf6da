"""The dbt package in `dbt/`: the views as models, from the same source as the files in `sql/`.

A model has the query of its view, with a macro where the languages of engines differ. The models of the
settings are written by hand, because their values are dbt's variables.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from views import KEYS, described_views

from imbrace_lake.query.dialects import Dialect, DuckDB, Spark
from imbrace_lake.query.views import SOURCES, ViewSettings, views

FOLDER = Path(__file__).resolve().parents[2] / "dbt"
BY_HAND = ("settings", "bots", "business_hours")
MACROS = ("milliseconds", "local", "days", "lines", "minute", "bare")
_WRITTEN = "Written by `./dev docs --write` from imbrace_lake/query/views.py."
# Values that a column can have.
_ROLES = ("contact", "user", "bot")
_VALUES: Mapping[tuple[str, str], Sequence[str]] = {
    ("messages", "sender_role"): (*_ROLES, "unknown"),
    ("turns", "sender_role"): _ROLES,
    ("episodes", "opened_by"): _ROLES,
    ("episodes", "closed_by"): _ROLES,
    ("replies", "reply_with_bots_role"): ("user", "bot"),
    ("phones", "status"): ("resolved", "none", "error"),
}
# Columns of keys that can be null.
_NULLABLE = (("daily_volumes", "day"),)


class Dbt(Dialect):
    """The language of dbt's models: macros, which call the language of the adapter."""

    name = "dbt"

    def milliseconds(self, start: str, end: str) -> str:
        """Return the milliseconds from one time to another."""
        return _call("milliseconds", start, end)

    def local(self, moment: str, time_zone: str) -> str:
        """Return a moment as the local time of a zone, without a zone."""
        return _call("local", moment, time_zone)

    def days(self, local: str) -> str:
        """Return the days from the first Monday to a local time."""
        return _call("days", local)

    def lines(self, line: str, order: str) -> str:
        """Return the aggregate that joins lines in an order."""
        return _call("lines", line, order)

    def minute(self, local: str) -> str:
        """Return a local time as a text to the minute."""
        return _call("minute", local)

    def bare(self, text: str) -> str:
        """Return a text without the white space around it."""
        return _call("bare", text)


def _call(macro: str, *arguments: str) -> str:
    return "{{ imbrace_lake." + macro + "(" + ", ".join(map(json.dumps, arguments)) + ") }}"


def files() -> Iterator[tuple[Path, str]]:
    """Yield the generated files of the package."""
    yield FOLDER / "macros" / "engines.sql", _macros()
    yield FOLDER / "models" / "views.yml", _properties()
    names = {view.name for view in views(Dbt(), ViewSettings())}
    for view in views(Dbt(), ViewSettings()):
        if view.name not in BY_HAND:
            query = view.query.replace("{%", "{{ '{%' }}")
            query = re.sub(rf"\b(FROM|JOIN) ({'|'.join(names)})\b", r"\1 {{ ref('\2') }}", query)
            query = re.sub(rf"\blake_({'|'.join(SOURCES)})\b", r"{{ source('lake', '\1') }}", query)
            yield FOLDER / "models" / f"{view.name}.sql", f"{{# {_WRITTEN} #}}\n{query}\n"


def _macros() -> str:
    """Return a macro for each difference between engines, and its SQL for each engine."""
    parts = [f"{{# {_WRITTEN} #}}"]
    for name in MACROS:
        arguments = [*inspect.signature(getattr(Dialect, name)).parameters][1:]
        given = ", ".join(arguments)
        dispatched = f"{{{{ return(adapter.dispatch('{name}', 'imbrace_lake')({given})) }}}}"
        parts.append(f"{{% macro {name}({given}) %}}{dispatched}{{% endmacro %}}")
        for dialect in (DuckDB(), Spark()):
            sql = getattr(dialect, name)(*(f"{{{{ {argument} }}}}" for argument in arguments))
            parts.append(f"{{% macro {dialect.name}__{name}({given}) %}}{sql}{{% endmacro %}}")
    return "\n\n".join(parts) + "\n"


def _properties() -> str:
    """Return the descriptions and tests of all models, as YAML, of which JSON is a part."""
    lines = [f"# {_WRITTEN}", "version: 2", "", "models:"]
    for view, columns in described_views():
        key = KEYS[view.name]
        lines += [f"  - name: {view.name}", f"    description: {json.dumps(view.definition)}"]
        if len(key) > 1:
            lines += ["    data_tests:", f"      - unique_together: {_arguments(columns=key)}"]
        lines.append("    columns:")
        for name, _, meaning in columns:
            lines += [f"      - name: {name}", f"        description: {json.dumps(_plain(meaning))}"]
            if tests := [*_tests(view.name, name)]:
                lines.append("        data_tests:")
                lines += [f"          - {test}" for test in tests]
    return "\n".join(lines) + "\n"


def _tests(view: str, column: str) -> Iterator[str]:
    if column in KEYS[view] and (view, column) not in _NULLABLE:
        yield "not_null"
    if [*KEYS[view]] == [column]:
        yield "unique"
    if values := _VALUES.get((view, column)):
        yield f"accepted_values: {_arguments(values=values)}"
    if column.endswith("_ms"):
        yield "not_negative"


def _arguments(**arguments: Sequence[str]) -> str:
    return json.dumps({"arguments": arguments})


def _plain(meaning: str) -> str:
    """Return a description without links, which lead nowhere in dbt's pages."""
    return re.sub(r"\[([^]]+)\]\([^)]+\)", r"\1", meaning).replace("`", "")
