"""The database of a new local Prefect server.

Prefect would run its migrations since 2022 one after the other, which takes longer than the rest of its
start. `prefect_schema.sql` is what these migrations make (`tools/prefect_schema.py` writes it). Prefect runs
the migrations that are newer.
"""

from __future__ import annotations

import re
import sqlite3
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path

DATABASE_NAME = "prefect.db"
SCHEMA = Path(__file__).with_name("prefect_schema.sql")

_REVISION = re.compile(r"""INSERT INTO "alembic_version" VALUES\('(\w+)'\)""")
_MIGRATIONS = Path("server", "database", "_migrations", "versions", "sqlite")


def create_database(directory: Path) -> bool:
    """Create the database of a server in one atomic step; return whether it was created.

    An existing database stays, and an older Prefect than that of the schema makes its own.
    """
    database = directory / DATABASE_NAME
    statements = SCHEMA.read_text(encoding="utf-8")
    if database.exists() or not _is_known(statements):
        return False
    draft = database.with_suffix(".new")
    # From a start that was killed.
    draft.unlink(missing_ok=True)
    with closing(sqlite3.connect(draft)) as connection:
        connection.executescript(statements)
    draft.replace(database)
    return True


def _is_known(statements: str) -> bool:
    """Return whether the installed Prefect has the migration with which the schema ends."""
    revision = _REVISION.search(statements)
    # The specification of a package is found without its import, which takes seconds.
    prefect = find_spec("prefect")
    if revision is None or prefect is None or not prefect.submodule_search_locations:
        return False
    migrations = Path(prefect.submodule_search_locations[0]) / _MIGRATIONS
    return any(migrations.glob(f"*_{revision[1]}_*.py"))
