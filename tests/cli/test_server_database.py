"""The database of a new local server."""

from __future__ import annotations

from pathlib import Path

import pytest

from imbrace_cli import server_database
from imbrace_cli.server_database import DATABASE_NAME, SCHEMA, create_database
from tools.prefect_schema import dump, migrate, schema


def rows(database: Path) -> list[str]:
    return [line for line in dump(database).splitlines() if line.startswith("INSERT")]


@pytest.mark.server
def test_the_schema_is_what_the_migrations_make(tmp_path: Path) -> None:
    made, migrated = tmp_path / DATABASE_NAME, tmp_path / "migrated.db"
    assert create_database(tmp_path)

    migrate(migrated)

    assert schema(made) == schema(migrated), "run: .venv/bin/python -m tools.prefect_schema"
    # The only row is the revision of the newest migration.
    assert rows(made) == rows(migrated)


def test_a_start_that_was_killed_leaves_nothing_that_is_used(tmp_path: Path) -> None:
    tmp_path.joinpath("prefect.new").write_bytes(b"half of a database")

    assert create_database(tmp_path)

    assert dump(tmp_path / DATABASE_NAME) == SCHEMA.read_text(encoding="utf-8")
    assert [path.name for path in tmp_path.iterdir()] == [DATABASE_NAME]


def test_an_existing_database_stays(tmp_path: Path) -> None:
    database = tmp_path / DATABASE_NAME
    database.write_bytes(b"of an earlier server")

    assert not create_database(tmp_path)

    assert database.read_bytes() == b"of an earlier server"


def test_an_older_prefect_makes_its_own_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    newer = tmp_path / "newer.sql"
    newer.write_text("""INSERT INTO "alembic_version" VALUES('0123456789ab');""", encoding="utf-8")
    monkeypatch.setattr(server_database, "SCHEMA", newer)

    assert not create_database(tmp_path)

    assert not tmp_path.joinpath(DATABASE_NAME).exists()
