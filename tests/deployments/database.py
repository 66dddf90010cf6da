"""The same server on PostgreSQL, when an environment variable names one; on SQLite otherwise."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import asyncpg

from imbrace_cli.local_server import LocalServer
from imbrace_cli.server_files import prefect_version
from imbrace_cli.server_supervisor import (
    START_SECONDS,
    STOP_SECONDS,
    free_port,
    is_answering,
    server_command,
    server_environment,
)

VARIABLE = "IMBRACE_TEST_DATABASE"
"""Names a server whose role may create databases: `postgresql+asyncpg://role:password@host/postgres`."""


@dataclass(frozen=True)
class PostgresServer(LocalServer):
    """A running server on PostgreSQL; `database` is the address of its own database."""

    database: str


@contextmanager
def server_on(postgres: str, home: Path) -> Iterator[PostgresServer]:
    """Run a Prefect server on a database of its own, which goes with it."""
    name = f"imbrace_test_{uuid4().hex[:12]}"
    address, _, _ = postgres.replace("+asyncpg", "").rpartition("/")
    _execute(f"{address}/postgres", f"CREATE DATABASE {name}")
    try:
        with free_port() as port, (home / "server.log").open("wb") as log:
            database = address.replace("://", "+asyncpg://") + f"/{name}"
            process = subprocess.Popen(
                server_command(port),
                cwd=home,
                env={
                    **server_environment(home, port),
                    "PREFECT_SERVER_DATABASE_CONNECTION_URL": database,
                },
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
            try:
                _wait_until_answering(process, port, home)
                yield PostgresServer(home, port, process.pid, False, f"{address}/{name}")
            finally:
                process.terminate()
                try:
                    process.wait(STOP_SECONDS)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
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
    """The PostgreSQL server that the tests are to use."""
    return os.environ.get(VARIABLE) or None


def _wait_until_answering(process: subprocess.Popen[bytes], port: int, home: Path) -> None:
    # A new database is migrated first, which takes longer than with SQLite.
    deadline = time.monotonic() + 2 * START_SECONDS
    while not is_answering(port, prefect_version()):
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"the server did not start:\n{(home / 'server.log').read_text()[-2000:]}")
        time.sleep(0.2)


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
