"""Write the schema with which a local Prefect server begins, `imbrace_cli/prefect_schema.sql`.

    .venv/bin/python -m tools.prefect_schema

Run it after an upgrade of Prefect that adds migrations; a test compares the file with the migrated schema.
"""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import tempfile
from contextlib import closing
from pathlib import Path

from imbrace_cli.server_database import SCHEMA


def migrate(database: Path) -> None:
    """Run Prefect's migrations on a SQLite database, which need not exist."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")} | {
        "PREFECT_HOME": str(database.parent),
        "PREFECT_API_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{database}",
    }
    command = [sys.executable, "-m", "prefect", "server", "database", "upgrade", "--yes"]
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)


def dump(database: Path) -> str:
    """Return the statements that make an equal database."""
    with closing(sqlite3.connect(database)) as connection:
        return "\n".join((*connection.iterdump(), ""))


def schema(database: Path) -> dict[str, list[str]]:
    """Return the lines of each table and index, for comparison: migrations order constraints at random."""
    with closing(sqlite3.connect(database)) as connection:
        found = connection.execute("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL")
        return {name: sorted(line.strip(" \t,") for line in sql.splitlines()) for name, sql in found}


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        migrated = Path(folder, "prefect.db")
        migrate(migrated)
        SCHEMA.write_text(dump(migrated), encoding="utf-8")
