"""Sphinx extension: generates the reference tables from the code, and adapts links.

A page names its table in a comment:

    <!-- generated: settings -->
    …
    <!-- end -->

The table between the comments is in the repository too, for readers on GitHub. The build fails if it
differs from the code; `./dev docs --write` updates it, and the files in `sql/` and `dbt/`, and
diagrams.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from columns import DESCRIPTIONS, SCHEMAS

if TYPE_CHECKING:
    from docutils import nodes
    from sphinx.application import Sphinx

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
REPOSITORY = "https://github.com/imbraceltd/imbrace-lake/blob/main/"
WRITE = "./dev docs --write"
_REGION = re.compile(
    r"(?P<start><!-- generated: (?P<name>[a-z-]+)(?P<arguments>[^>]*?) -->\n).*?(?P<end><!-- end -->)",
    re.DOTALL,
)


def settings(*only: str) -> str:
    """Return the table of all settings, or of some of them."""
    from imbrace_lake.settings import PREFIX, PRODUCTION, Settings

    fields = Settings.model_fields
    rows = []
    for name in only or fields:
        field = fields[name]
        default = "production" if field.default == PRODUCTION else _value(field.default)
        meaning = _sentence(field.description)
        row = (f"`{PREFIX}{name.upper()}`", default, meaning)
        rows.append(row if only else (*row[:2], _allowed(field), meaning))
    heads = ("variable", "default", "what") if only else ("variable", "default", "values", "what")
    return _table(heads, rows)


def _allowed(field: Any) -> str:
    """Return the allowed values of a setting; empty if it can have any."""
    if field.annotation is bool:
        return "`true`, `false`"
    bounds = {
        key: getattr(rule, key)
        for rule in field.metadata
        for key in ("ge", "gt", "le", "min_length")
        if getattr(rule, key, None) is not None
    }
    match bounds:
        case {"ge": low, "le": high}:
            return f"{low:,} to {high:,}"
        case {"gt": low, "le": high}:
            return f"over {low}, up to {high:,}"
        case {"ge": low}:
            return f"from {low}"
        case {"gt": low}:
            return f"over {low}"
        case {"min_length": length}:
            return f"{length} characters or more"
    return ""


def commands() -> str:
    """Return a section for each command: help, arguments, options and examples."""
    import typer.main

    from imbrace_cli.main import make_app
    from imbrace_cli.terminal import PROGRAM

    children = _visible_children(typer.main.get_command(make_app()))
    summary = [
        (f"[`{name}`](#{PROGRAM}-{name})", _sentence(child.short_help)) for name, child in children.items()
    ]
    sections = [
        part for name, child in children.items() for part in _command(child, f"{PROGRAM} {name}", "##")
    ]
    return "\n\n".join([_table(("command", "what"), summary), *sections])


def _command(command: Any, path: str, heading: str) -> Iterator[str]:
    yield f"{heading} `{path}`"
    yield _prose(inspect.cleandoc(command.help or command.short_help or ""))
    yield from _parameters(command)
    if examples := (command.epilog or "").replace("\b\n", "").strip():
        yield f"```text\n{examples}\n```"
    for name, child in _visible_children(command).items():
        yield from _command(child, f"{path} {name}", f"{heading}#")


def _visible_children(command: Any) -> dict[str, Any]:
    return {name: child for name, child in getattr(command, "commands", {}).items() if not child.hidden}


def _parameters(command: Any) -> Iterator[str]:
    rows = []
    for parameter in command.params:
        if getattr(parameter, "hidden", False):
            continue
        names = [parameter.metavar] if parameter.param_type_name == "argument" else parameter.opts
        value = "" if parameter.param_type_name == "argument" or parameter.is_flag else _metavar(parameter)
        meaning = _prose(re.sub(r"\s*\[(IMBRACE_\w+)\]$", r" Setting: `\1`.", parameter.help or ""))
        has_default = parameter.show_default and parameter.default not in (None, False, (), [])
        default = f" Default: `{parameter.default}`." if has_default else ""
        rows.append((", ".join(f"`{name}{value}`" for name in names), meaning + default))
    if rows:
        yield _table(("argument or option", "what"), rows)


def _metavar(parameter: Any) -> str:
    return f" {parameter.metavar or parameter.type.name.upper()}"


def exit_codes() -> str:
    """Return the exit codes, which the docstring of their module lists."""
    from imbrace_cli import exit_codes

    rows = re.findall(r"^(\d+) +(.+)$", inspect.getdoc(exit_codes) or "", re.MULTILINE)
    return _table(("exit code", "means"), rows)


def columns(table: str, *only: str) -> str:
    """Return all columns of a table of the lake, or some of them."""
    rows = []
    for name in only or SCHEMAS[table].names:
        field = SCHEMAS[table].field(name)
        kind = _kind(field.type) + ("" if field.nullable else ", never null")
        rows.append((f"`{name}`", kind, DESCRIPTIONS[table][name]))
    if only:
        return _table(("column", "what"), [(name, meaning) for name, _, meaning in rows])
    return _table(("column", "type", "what"), rows)


def _kind(kind: pa.DataType) -> str:
    if pa.types.is_list(kind):
        return f"list of {_kind(kind.value_type)}"
    if pa.types.is_struct(kind):
        return "struct of " + ", ".join(f"`{part.name}` {_kind(part.type)}" for part in kind)
    return "timestamp(ms, UTC)" if pa.types.is_timestamp(kind) else str(kind)


def events() -> str:
    """Return a section for each event: when it is emitted, resource, payload."""
    from imbrace_flows.events import EVENTS

    parts = []
    for name, event in EVENTS.items():
        parts += [
            f"## `{name}`",
            f"When: {event.when}. Resource: `{event.resource}.…`.",
            _table(("field", "what"), [(f"`{field}`", what) for field, what in event.payload.items()]),
        ]
    return "\n\n".join(parts)


def views() -> str:
    """Return a section for each view: its definition and its columns."""
    from views import described_views

    parts = []
    for view, found in described_views():
        parts += [
            f"## `{view.name}`",
            re.sub(r"\b([a-z]+_[a-z_]*[a-z]|pub_)(?![a-z])", r"`\1`", view.definition),
            _table(("column", "type", "what"), [(f"`{name}`", kind, what) for name, kind, what in found]),
        ]
    return "\n\n".join(parts)


def dictionary() -> str:
    """Return what a row of each table and view is, and where each column is."""
    import entities

    return entities.dictionary()


TABLES: Mapping[str, Callable[..., str]] = {
    "settings": settings,
    "commands": commands,
    "exit-codes": exit_codes,
    "columns": columns,
    "events": events,
    "views": views,
    "dictionary": dictionary,
}


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def _value(value: object) -> str:
    text = (
        str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else value
    )
    return "" if value is None or value == "" else f"`{text}`"


def _sentence(text: str | None) -> str:
    return (text or "").removesuffix(".")


def _prose(text: str) -> str:
    """Mark variables and options as code in a help text, which is not Markdown."""
    return re.sub(r"(?<![`\w-])(IMBRACE_\w+|--[a-z][a-z-]+)(?![`\w])", r"`\1`", text)


def refreshed(text: str) -> str:
    """Return a page with its tables generated again."""

    def table(match: re.Match[str]) -> str:
        made = TABLES[match["name"]](*match["arguments"].split())
        return f"{match['start']}\n{made}\n\n{match['end']}"

    return _REGION.sub(table, text)


def outdated() -> Iterator[tuple[Path, str]]:
    """Yield each page or file that differs from the code, and its new text."""
    for page in PAGES:
        text = page.read_text("utf-8")
        if (fresh := refreshed(text)) != text:
            yield page, fresh
    for path, fresh in files():
        if not path.exists() or path.read_text("utf-8") != fresh:
            yield path, fresh


def files() -> Iterator[tuple[Path, str]]:
    """Yield the files that are generated as a whole."""
    import dbt_package
    import entities

    from imbrace_lake.query.views import scripts

    yield from ((ROOT / "sql" / name, text) for name, text in scripts().items())
    yield from dbt_package.files()
    yield from entities.files()


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the extension."""
    app.connect("builder-inited", _check)
    app.connect("doctree-read", _adapt_links)
    return {"parallel_read_safe": True}


def _check(_app: Sphinx) -> None:
    from sphinx.util import logging

    for page, _fresh in outdated():
        logging.getLogger(__name__).warning("%s differs from the code: %s", page.relative_to(ROOT), WRITE)


def _adapt_links(_app: Sphinx, doctree: nodes.document) -> None:
    """Make links that GitHub understands fit the site.

    Links to files outside `docs/` lead to the repository. A link with the name of a file as its text
    (`[lake.md](lake.md)`) shows the title of the page instead.
    """
    from docutils import nodes
    from sphinx import addnodes

    for link in [*doctree.findall(addnodes.pending_xref)]:
        if link.get("reftype") != "myst":
            continue
        # MyST removes the suffix of a link to a page.
        is_page = link["refdomain"] == "doc"
        path = ROOT / (link["reftarget"] + (".md" if is_page else ""))
        if path.is_file() and DOCS not in path.parents:
            address = REPOSITORY + path.relative_to(ROOT).as_posix()
            link.replace_self(nodes.reference("", "", *link.children, refuri=address, internal=False))
        elif is_page and link.astext().endswith(".md"):
            link["refexplicit"] = False


if __name__ == "__main__":
    for changed, content in outdated():
        changed.write_text(content, "utf-8")
        sys.stdout.write(f"wrote {changed.relative_to(ROOT)}\n")
