"""The log of a Delta table: read a snapshot, commit files, write checkpoints, delete old entries.

A commit is a JSON object with the number of the next version, created by the lake's own conditional write, so
exactly one of two writers of a version wins. `deltalake` reads the log and writes checkpoints on a copy in a
temporary folder: the lake's store is the only connection, with its credentials, retries and time limits.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import pyarrow as pa

from imbrace_lake.concurrency import run_bounded
from imbrace_lake.errors import DamagedObject, InputError, ObjectExists
from imbrace_lake.store.contract import ObjectMeta, Store
from imbrace_lake.tables.temporary import reading_folder

# A checkpoint after this many commits, so that readers open few objects of the log.
COMMITS_PER_CHECKPOINT = 10
READ_TRIES = 5
DOWNLOADED_AT_A_TIME = 32

_COMMIT = re.compile(r"(\d{20})\.json")
_CHECKPOINT = re.compile(r"(\d{20})\.checkpoint\.parquet")
_DELTA_TYPES = {
    pa.string(): "string",
    pa.bool_(): "boolean",
    pa.int32(): "integer",
    pa.int64(): "long",
    pa.float64(): "double",
    pa.timestamp("us", "UTC"): "timestamp",
}


@dataclass(frozen=True, slots=True)
class TableFile:
    """A data file of a table.

    Attributes:
        path: Its path in the folder of the table.
        size_bytes: Its length.
        rows: The number of rows.
        modified_at: When it was written.
        first_month, last_month: The months of its rows, `2026-01`; None if the table has no such column, or
            no row has a month.
        has_no_month: Whether rows have no month.
        stats: Numbers of rows and nulls, minima and maxima, as the log has them; empty as read from a log.
    """

    path: str
    size_bytes: int
    rows: int
    modified_at: datetime
    first_month: str | None = None
    last_month: str | None = None
    has_no_month: bool = False
    stats: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One version of a table.

    Attributes:
        version: Its number.
        files: The data files.
        configuration: The properties of the table.
        table_id: The id of the table.
        created_ms: When the table was created, in milliseconds since 1970.
        commits: The number of commits since the last checkpoint.
    """

    version: int
    files: tuple[TableFile, ...]
    configuration: Mapping[str, str]
    table_id: str
    created_ms: int
    commits: int


def require_deltalake() -> None:
    """Raise an error in one sentence if the package `deltalake` is missing.

    Raises:
        InputError: It is.
    """
    try:
        import deltalake  # noqa: F401
    except ImportError:
        raise InputError(
            "tables need the package deltalake: install imbrace-lake[tables], or deltalake itself"
        ) from None


class DeltaLog:
    """The log of one table.

    Args:
        store: The store of the lake.
        folder: The folder of the table, with a slash at the end.
        schema: The columns.
        configuration: Properties that the table always has.
    """

    def __init__(
        self, store: Store, folder: str, schema: pa.Schema, configuration: Mapping[str, str]
    ) -> None:
        self._store = store
        self.folder = folder
        self._prefix = f"{folder}_delta_log/"
        self._schema = schema
        self._configuration = configuration

    async def read(self) -> Snapshot | None:
        """Return the newest version; None if there is no table.

        Raises:
            DamagedObject: The log cannot be read.
        """
        for _ in range(READ_TRIES):
            # An object of the log is missing if another process has just deleted old ones.
            with self._temporary_folder() as folder, suppress(FileNotFoundError):
                commits = await self._copy(Path(folder))
                return None if commits is None else await asyncio.to_thread(self._load, folder, commits)
        raise self._damaged()

    async def commit(
        self,
        before: Snapshot | None,
        added: Iterable[TableFile],
        removed: Iterable[TableFile],
        properties: Mapping[str, str],
        now: datetime,
        *,
        operation: str = "WRITE",
    ) -> None:
        """Commit the version after a snapshot.

        Args:
            before: The snapshot; None creates the table.
            added, removed: Data files.
            properties: Properties of the new version, besides those that the table always has.
            now: The time.
            operation: `WRITE`, or `OPTIMIZE` if the rows stay the same.

        Raises:
            ObjectExists: Another writer committed this version first; nothing was changed.
        """
        moment = _milliseconds(now)
        fields = [
            {"name": one.name, "type": _delta_type(one.type), "nullable": one.nullable, "metadata": {}}
            for one in self._schema
        ]
        actions: list[dict[str, Any]] = []
        if before is None:
            actions.append({"protocol": {"minReaderVersion": 1, "minWriterVersion": 2}})
        actions.append(
            {
                "metaData": {
                    "id": str(uuid4()) if before is None else before.table_id,
                    "format": {"provider": "parquet", "options": {}},
                    "schemaString": json.dumps({"type": "struct", "fields": fields}),
                    "partitionColumns": [],
                    "configuration": {**self._configuration, **properties},
                    "createdTime": moment if before is None else before.created_ms,
                }
            }
        )
        is_change = operation == "WRITE"
        for one in removed:
            remove = {
                "path": one.path,
                "deletionTimestamp": moment,
                "dataChange": is_change,
                "extendedFileMetadata": True,
                "partitionValues": {},
                "size": one.size_bytes,
            }
            actions.append({"remove": remove})
        for one in added:
            add = {
                "path": one.path,
                "partitionValues": {},
                "size": one.size_bytes,
                "modificationTime": _milliseconds(one.modified_at),
                "dataChange": is_change,
                "stats": json.dumps(one.stats),
            }
            actions.append({"add": add})
        info = {
            "timestamp": moment,
            "operation": operation,
            "operationParameters": {},
            "engineInfo": "imbrace-lake",
        }
        actions.append({"commitInfo": info})
        version = 0 if before is None else before.version + 1
        body = "\n".join(json.dumps(action, separators=(",", ":")) for action in actions).encode()
        await self._store.create(f"{self._prefix}{version:020d}.json", body)

    async def checkpoint(self, snapshot: Snapshot) -> None:
        """Write a checkpoint of the newest version if there were many commits since the last one."""
        if snapshot.commits < COMMITS_PER_CHECKPOINT:
            return
        from deltalake import DeltaTable

        with self._temporary_folder() as folder:
            commits = await self._copy(Path(folder))
            # Another compaction may have written a checkpoint since.
            if commits is None or commits < COMMITS_PER_CHECKPOINT:
                return
            table = await asyncio.to_thread(DeltaTable, folder)
            await asyncio.to_thread(table.create_checkpoint)
            name = f"{table.version():020d}.checkpoint.parquet"
            log = Path(folder, "_delta_log")
            # Another compaction may have written the checkpoint of this version, with the same content.
            with suppress(ObjectExists):
                await self._store.create(f"{self._prefix}{name}", (log / name).read_bytes())
            await self._store.overwrite(
                f"{self._prefix}_last_checkpoint", (log / "_last_checkpoint").read_bytes()
            )

    async def delete_old(self, now: datetime, grace: timedelta) -> int:
        """Delete objects of the log before the last checkpoint that are older than the grace period."""
        listing = await self._store.list(self._prefix)
        newest = max((number for _, number in _numbered(listing, self._prefix, _CHECKPOINT)), default=None)
        if newest is None:
            return 0
        old = [
            meta.key
            for pattern in (_COMMIT, _CHECKPOINT)
            for meta, number in _numbered(listing, self._prefix, pattern)
            if number < newest and now - meta.modified_at > grace
        ]
        # From the oldest on: what is left after a kill is still a complete log.
        for key in sorted(old):
            await self._store.delete(key)
        return len(old)

    def _temporary_folder(self) -> AbstractContextManager[str]:
        """Return a temporary folder for a copy of the log.

        The package `deltalake` takes `%20` in a path for a space, and a backslash for a slash.
        """
        return reading_folder(self._store, "delta-log-", without="%\\")

    async def _copy(self, folder: Path) -> int | None:
        """Copy the last checkpoint and the commits after it; return their number, None without a table."""
        listing = await self._store.list(self._prefix)
        checkpoints = _numbered(listing, self._prefix, _CHECKPOINT)
        newest = max((number for _, number in checkpoints), default=-1)
        commits = [meta for meta, number in _numbered(listing, self._prefix, _COMMIT) if number > newest]
        wanted = [*(meta for meta, number in checkpoints if number == newest), *commits]
        if not wanted:
            return None
        log = folder / "_delta_log"
        log.mkdir()
        await run_bounded(
            DOWNLOADED_AT_A_TIME,
            (partial(self._store.download, meta.key, log / meta.key.rpartition("/")[2]) for meta in wanted),
        )
        return len(commits)

    def _load(self, folder: str, commits: int) -> Snapshot:
        from deltalake import DeltaTable
        from deltalake.exceptions import DeltaError

        try:
            table = DeltaTable(folder)
            metadata = table.metadata()
            rows = pa.table(table.get_add_actions(flatten=True)).to_pylist()
            created_ms = metadata.created_time
            files = tuple(_file_of(row) for row in rows)
        except (DeltaError, OSError, ValueError, KeyError, TypeError) as exc:
            raise self._damaged() from exc
        return Snapshot(
            table.version(), files, metadata.configuration, str(metadata.id), int(created_ms or 0), commits
        )

    def _damaged(self) -> DamagedObject:
        return DamagedObject(
            f"the log {self._store.url}/{self._prefix} cannot be read: delete {self.folder}, which"
            " `imbrace-lake compact` then writes again"
        )


def _numbered(
    listing: Iterable[ObjectMeta], prefix: str, pattern: re.Pattern[str]
) -> list[tuple[ObjectMeta, int]]:
    matches = ((meta, pattern.fullmatch(meta.key.removeprefix(prefix))) for meta in listing)
    return [(meta, int(match[1])) for meta, match in matches if match is not None]


def _file_of(row: Mapping[str, Any]) -> TableFile:
    """Return a data file.

    Raises:
        KeyError, TypeError: The log does not state all of it.
    """
    modified_at = datetime.fromtimestamp(row["modification_time"] / 1000).astimezone()
    return TableFile(
        row["path"],
        int(row["size_bytes"]),
        int(row["num_records"]),
        modified_at,
        row.get("min.month"),
        row.get("max.month"),
        bool(row.get("null_count.month")),
    )


def _delta_type(kind: pa.DataType) -> Any:
    """Return the name of a type in the schema of a Delta table."""
    if pa.types.is_list(kind):
        return {"type": "array", "elementType": _delta_type(kind.value_type), "containsNull": True}
    if pa.types.is_struct(kind):
        fields = [
            {"name": one.name, "type": _delta_type(one.type), "nullable": True, "metadata": {}}
            for one in kind
        ]
        return {"type": "struct", "fields": fields}
    return _DELTA_TYPES[kind]


def _milliseconds(moment: datetime) -> int:
    return int(moment.timestamp() * 1000)
