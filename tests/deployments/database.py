"""The same server on PostgreSQL, when an environment variable names one; on SQLite otherwise."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch
from uuid import uuid4

import asyncpg

from imbrace_cli import local_server
from imbrace_cli.local_server import LocalServer, ensure_server, keep_alive, stop_server
from imbrace_cli.processes import inherited_environment

VARIABLE = "IMBRACE_TEST_DATABASE"
"""Names a server whose role may create databases: `postgresql+asyncpg://role:password@host/postgres`."""


@dataclass(frozen=True)
class PostgresServer(LocalServer):
    """A running server on PostgreSQL; `database` is the address of the server's database."""

    database: str = ""


@contextmanager
def server_on(postgres: str, home: Path) -> Iterator[PostgresServer]:
    """Run a Prefect server on a separate database, and remove both."""
    name = f"imbrace_test_{uuid4().hex[:12]}"
    address, _, _ = postgres.replace("+asyncpg", "").rpartition("/")
    _execute(f"{address}/postgres", f"CREATE DATABASE {name}")
    database = address.replace("://", "+asyncpg://") + f"/{name}"
    environment = {**inherited_environment(), "PREFECT_SERVER_DATABASE_CONNECTION_URL": database}
    try:
        with patch.object(local_server, "inherited_environment", lambda: environment):
            server = ensure_server(home)
        with keep_alive(home):
            yield PostgresServer(**vars(server), database=f"{address}/{name}")
            stop_server(home)
    finally:
        _execute(f"{address}/postgres", f"DROP DATABASE {name} WITH (FORCE)")


def dump(server: LocalServer) -> Iterator[str]:
    """Every row of the server's database, as a line that begins with ``INSERT INTO "<table>" VALUES``."""
    if isinstance(server, PostgresServer):
        yield from asyncio.run(_rows(server.database))
        return
    path = server.directory / "prefect.db"
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        yield from connection.iterdump()


def database_of_tests() -> str | None:
    """The PostgreSQL server for the tests; None to use SQLite."""
    return os.environ.get(VARIABLE) or None


def _execute(address: str, statement: str) -> None:
    async def execute() -> None:
        connection = await asyncpg.connect(address)
        try:
            await connection.execute(statement)
        finally:
            await connection.close()

    asyncio.run(execute())


async def _rows(address: str) -> list[str]:
    connection = await asyncpg.connect(address)
    try:
        tables = await connection.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
        lines = []
        for (table,) in tables:
            rows = await connection.fetch(f'SELECT t::text FROM "{table}" AS t')  # noqa: S608  (its own names)
            lines += [f'INSERT INTO "{table}" VALUES{row}' for (row,) in rows]
        return lines
    finally:
        await connection.close()
