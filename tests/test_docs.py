"""The documentation builds without warnings, and its reference matches the code."""

from __future__ import annotations

import re
import subprocess
import sys
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import entities
import generated
import pytest
import typer.main
from columns import DESCRIPTIONS, SCHEMAS
from views import KEYS, described_views

from imbrace_cli.main import make_app
from imbrace_flows import events
from imbrace_lake.export.run import DeadLetter, RunSummary

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


def build(source: Path, place: Path) -> subprocess.CompletedProcess[str]:
    """Build pages as `./dev docs` does."""
    options = ["--builder", "html", "--fresh-env", "--fail-on-warning", "--keep-going", "--quiet"]
    command = [sys.executable, "-m", "sphinx", *options, "--conf-dir", str(DOCS), str(source), str(place)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_the_documentation_builds_without_a_warning(tmp_path: Path) -> None:
    built = build(DOCS, tmp_path)

    assert built.stderr == ""
    assert built.returncode == 0


@pytest.mark.slow
def test_broken_links_fail_the_build(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "alone.md").write_text("# No page leads here\n")
    (source / "index.md").write_text(
        "# Page\n\n[page](nowhere.md) [section](#nowhere) [section](alone.md#nowhere) ![picture](no.png)\n"
    )

    built = build(source, tmp_path / "built")

    assert built.returncode != 0
    for target in (
        "nowhere.md",
        "target not found: 'nowhere'",
        "doc 'alone': 'nowhere'",
        "no.png",
        "alone.md: WARNING",
    ):
        assert target in built.stderr


def test_a_table_that_differs_from_the_code_is_found_and_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "page.md"
    page.write_text("Before\n<!-- generated: exit-codes -->\nold\n<!-- end -->\nafter\n")
    monkeypatch.setattr(generated, "PAGES", [page])
    whole = tmp_path / "whole.sql"
    monkeypatch.setattr(generated, "files", lambda: [(whole, "SELECT 1")])

    (changed, fresh), new = generated.outdated()
    changed.write_text(fresh)
    whole.write_text("SELECT 1")

    assert re.fullmatch(r"Before\n.*\| 130 \| interrupted \|.*\nafter\n", fresh, re.DOTALL)
    assert "old" not in fresh
    assert new == (whole, "SELECT 1")
    assert [*generated.outdated()] == []


def test_events_have_the_fields_that_the_reference_names(monkeypatch: pytest.MonkeyPatch) -> None:
    emitted: dict[str, dict[str, Any]] = {}
    monkeypatch.setattr(events, "emit_event", lambda event, **parts: emitted.update({event: parts}))
    letter = DeadLetter("conv_1", "failed", "reason", "advice")
    summary = RunSummary(
        "run",
        "org",
        "lake",
        datetime.now(UTC),
        dead_letters=[letter],
        new_shapes=["text.content.mood:string"],
    )

    events.emit_run_events(summary)
    events.emit_stale("lake", "org", [], timedelta(hours=1))
    events.emit_token_expiring("org", date(2027, 1, 31), "warning")

    described = {name: {*event.payload} for name, event in events.EVENTS.items()}
    assert {name: {*parts["payload"]} for name, parts in emitted.items()} == described
    for name, parts in emitted.items():
        assert parts["resource"]["prefect.resource.id"].startswith(f"{events.EVENTS[name].resource}.")


@pytest.mark.parametrize("table", SCHEMAS)
def test_every_column_has_a_description(table: str) -> None:
    assert [*DESCRIPTIONS[table]] == SCHEMAS[table].names


@pytest.mark.slow
def test_the_dictionary_and_the_pictures_have_every_table_and_view() -> None:
    names = {view.name for view, _ in described_views()}

    assert {*entities.TABLES} == {*SCHEMAS}
    assert {*entities.VIEWS} == names == {*KEYS}
    drawn = [
        {name for column in diagram.columns for name in column} for diagram in entities.DIAGRAMS.values()
    ]
    assert drawn == [{*SCHEMAS}, names - {"settings", "bots", "business_hours"}]
    for _, picture in entities.files():
        assert ElementTree.fromstring(picture).tag.endswith("svg")  # noqa: S314 - our own


def test_the_readme_names_every_command() -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    table = readme[readme.index("| command | what |") :].split("\n\n", 1)[0]
    commands: set[str] = {*vars(typer.main.get_command(make_app()))["commands"]}

    named = {name for row in table.splitlines()[2:] for name in re.findall(r"`([a-z-]+)`", row.split("|")[1])}

    assert named == commands
