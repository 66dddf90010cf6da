"""Compact the ledgers of a lake into tables: all rows, and the current row of each conversation and number.

Ledger objects are never changed, so a table of all rows only grows: a compaction reads the objects that the
table does not have yet. A table of current rows is one file, which is written again with each change.

The name of a ledger object has the hash of its bytes, and the state of a table has the hash of the rows of
each data file. A new file is read back from the store before it is committed. A file that is read because it
is replaced must have the rows that were written into it; otherwise the table is built again from its ledger.
"""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from imbrace_lake.errors import DamagedObject
from imbrace_lake.lake.lake import Lake
from imbrace_lake.lake.ledger import (
    DAMAGED,
    CondensedRows,
    has_hash,
    last_of_each,
    named_by_hash,
    read_objects,
)
from imbrace_lake.lake.ledger_schema import LEDGER_SCHEMAS, WINDOW, Ledger
from imbrace_lake.lake.memory import in_groups
from imbrace_lake.lake.parquet import encode
from imbrace_lake.printable import plural
from imbrace_lake.store.contract import ObjectMeta, Store
from imbrace_lake.tables.cleaning import GRACE, RUN, STATE_FOLDER, STATE_PROPERTY, check_files, recorded
from imbrace_lake.tables.compaction import Compaction
from imbrace_lake.tables.delta_log import DeltaLog, Snapshot, TableFile
from imbrace_lake.tables.report import TableReport
from imbrace_lake.tables.rows import (
    FILE_BYTES,
    STATISTICS,
    FileWriter,
    iter_file,
    properties_of,
    table_schema,
)
from imbrace_lake.tables.rows_hash import RowsHash, hash_of_file

# Ledger objects that are read at a time.
GROUP_BYTES, GROUP_OBJECTS = 4 * 2**20, 64
MAX_SMALL_FILES = 8
# Tables of another rule are built again: since 2, a current row is not about a window of time; since 3, the
# current row of a number is its latest answer.
_RULE = b"3"


def _current_conversations(rows: pa.Table) -> pa.Table:
    """Return the latest row of each conversation that is not only about a window of time."""
    is_window = pc.equal(rows.column("proof_method"), WINDOW).fill_null(False)
    rows = rows.filter(pc.invert(is_window))
    same = ["organization_id", "conversation_id"]
    keys = rows.select([*same, "finished_at", "run_id"])
    keys = keys.append_column("row", pa.array(np.arange(rows.num_rows)))
    # Of rows with the same time, the last one counts. Only keys are sorted: rows take most of the memory.
    kept = last_of_each(keys.sort_by("run_id"), same, "finished_at").column("row").to_numpy()
    return rows if len(kept) == rows.num_rows else rows.take(pa.array(np.sort(kept)))


def _current_phones(rows: pa.Table) -> pa.Table:
    """Return the latest answer of each number, or its latest failed request if there is no answer."""
    is_number = pc.and_(
        pc.is_valid(rows.column("phone_hash")), pc.not_equal(rows.column("status"), "duplicate")
    )
    rows = rows.filter(is_number).sort_by([("run_id", "ascending"), ("position", "descending")])
    rows = rows.append_column("is_answer", pc.not_equal(rows.column("status"), "error"))
    same = ["organization_id", "phone_hash"]
    latest = last_of_each(rows, [*same, "is_answer"], "resolved_at")
    return last_of_each(latest, same, "is_answer").drop_columns("is_answer")


@dataclass(frozen=True, slots=True)
class LedgerTable:
    """A table of a ledger.

    Attributes:
        name: Its name.
        ledger: The ledger.
        choose: Chooses the current rows; None for a table of all rows.
    """

    name: str
    ledger: Ledger
    choose: Callable[[pa.Table], pa.Table] | None = None


LEDGER_TABLES = (
    LedgerTable("conversations", "conversations"),
    LedgerTable("conversations_current", "conversations", _current_conversations),
    LedgerTable("phones", "phones"),
    LedgerTable("phones_current", "phones", _current_phones),
    LedgerTable("runs", "runs"),
    LedgerTable("revisions", "revisions"),
)


def ledger_log(store: Store, table: LedgerTable) -> DeltaLog:
    """Return the log of a table of a ledger."""
    schema = table_schema(LEDGER_SCHEMAS[table.ledger])
    columns = [name for name in STATISTICS if name in schema.names]
    return DeltaLog(store, f"tables/{table.name}/", schema, properties_of(columns))


@dataclass(slots=True)
class LedgerTableState:
    """What a version of a table of a ledger contains.

    Attributes:
        table: The name of the table.
        keys: The ledger objects.
        hashes: The hash of the rows of each data file, by path.
        damaged: The versions of damaged ledger objects, by key; their rows are not in the table.
        removed: Keys of objects that only earlier versions need, and when they were replaced.
    """

    table: str
    keys: set[str] = field(default_factory=set)
    hashes: dict[str, str] = field(default_factory=dict)
    damaged: dict[str, str] = field(default_factory=dict)
    removed: dict[str, datetime] = field(default_factory=dict)

    def lacks(self, objects: Iterable[ObjectMeta]) -> list[ObjectMeta]:
        """Return the ledger objects that the table does not have, without those known as damaged."""
        return [one for one in objects if one.key not in self.keys and self.damaged.get(one.key) != one.etag]

    def surplus(self, objects: Iterable[ObjectMeta]) -> set[str]:
        """Return the keys of ledger objects that the table has and the lake does not have."""
        return self.keys - {one.key for one in objects}

    def add(self, objects: Iterable[ObjectMeta], damaged: Collection[str]) -> None:
        """Add ledger objects that were read, and note which of them are damaged."""
        for one in objects:
            if one.key in damaged:
                self.damaged[one.key] = one.etag
            else:
                self.keys.add(one.key)
                self.damaged.pop(one.key, None)

    async def write(self, store: Store) -> str:
        """Write the state and return its key."""
        metadata = {
            "hashes": json.dumps(self.hashes),
            "damaged": json.dumps(self.damaged),
            "removed": json.dumps({key: moment.isoformat() for key, moment in self.removed.items()}),
            "rule": _RULE.decode(),
        }
        rows = pa.table({"key": pa.array(sorted(self.keys), pa.string())})
        body = encode(rows, metadata, compression="zstd")
        key = named_by_hash(f"{STATE_FOLDER}{self.table}", body)
        await store.overwrite(key, body)
        return key


async def read_ledger_state(
    store: Store, table: LedgerTable, snapshot: Snapshot | None
) -> LedgerTableState | None:
    """Return the state of a version of a table; None if it is lost, an empty one without a table."""
    if snapshot is None:
        return LedgerTableState(table.name)
    key = snapshot.configuration.get(STATE_PROPERTY, "")
    try:
        body = await store.get(key) if key else b""
    except FileNotFoundError:
        return None
    if not key or not has_hash(key, body):
        return None
    rows = pq.read_table(io.BytesIO(body))
    metadata = pq.read_metadata(io.BytesIO(body)).metadata
    if b"hashes" not in metadata or metadata.get(b"rule") != _RULE:
        # A table of an earlier version.
        return None
    removed = json.loads(metadata[b"removed"])
    return LedgerTableState(
        table.name,
        {*rows.column("key").to_pylist()},
        json.loads(metadata[b"hashes"]),
        json.loads(metadata.get(b"damaged", b"{}")),
        {one: datetime.fromisoformat(moment) for one, moment in removed.items()},
    )


async def list_objects(store: Store, table: LedgerTable) -> list[ObjectMeta]:
    """List the objects of a table's ledger."""
    listing = await store.list(f"{table.ledger}/")
    return [meta for meta in listing if not meta.key.endswith(DAMAGED)]


class _OtherRows(Exception):
    """The table has other rows than its ledger; the arguments are the name of a file or folder, and why."""


class LedgerCompaction(Compaction[LedgerTableState]):
    """One compaction of a table of a ledger.

    Args:
        lake: The lake; exports and other compactions may be under way.
        table: The table.
        clock: Returns the time.
        grace: How long files of earlier versions are kept for their readers.
    """

    def __init__(
        self, lake: Lake, table: LedgerTable, clock: Callable[[], datetime], *, grace: timedelta = GRACE
    ) -> None:
        report = TableReport(table.name, unit="ledger objects")
        super().__init__(lake, ledger_log(lake.store, table), report, clock, grace)
        self._table = table
        self._schema = table_schema(LEDGER_SCHEMAS[table.ledger])

    async def plan(self) -> TableReport:
        """Find out what a compaction would read and write, and write nothing."""
        snapshot = await self._log.read()
        await check_files(self._store, self._log, self._folder, snapshot)
        state = await read_ledger_state(self._store, self._table, snapshot)
        objects = await list_objects(self._store, self._table)
        if state is None or state.surplus(objects):
            # The table is built again.
            state = LedgerTableState(self._table.name)
        new = state.lacks(objects)
        report = self.report
        report.is_dry_run = True
        report.describe(snapshot)
        report.changed = report.objects_read = len(new)
        report.read_bytes = sum(one.size_bytes for one in new)
        report.written_bytes = report.read_bytes
        if self._table.choose is not None and new and snapshot is not None:
            report.files_removed = len(snapshot.files)
            report.read_bytes += report.size_bytes
            report.written_bytes += report.size_bytes
        report.requests = len(new) + (5 if new else 0)
        return report

    async def _run_once(self) -> tuple[Snapshot | None, LedgerTableState | None]:
        now = self._clock()
        properties = await self._properties(now)
        before = await self._log.read()
        state = await read_ledger_state(self._store, self._table, before)
        if state is not None:
            try:
                return await self._add_new(before, state, properties, now)
            except _OtherRows as exc:
                name, problem = exc.args
                self._differs(name, f"{problem}, and the table was built again")
        # The state is lost, or a file is damaged.
        removed = {} if state is None else state.removed
        empty = LedgerTableState(self._table.name, removed=removed)
        gone = () if before is None else before.files
        return await self._add_new(before, empty, properties, now, gone)

    async def _add_new(
        self,
        before: Snapshot | None,
        state: LedgerTableState,
        properties: dict[str, str],
        now: datetime,
        gone: Sequence[TableFile] | None = None,
    ) -> tuple[Snapshot | None, LedgerTableState]:
        """Add the ledger objects that a state does not have, in one commit.

        Args:
            before: The newest version of the table.
            state: Its state, or an empty one to build the table again.
            properties: Properties of the new version.
            now: The time.
            gone: All files of the table, to build it again.

        Returns:
            The new version and state; the old ones if there is nothing to do.

        Raises:
            _OtherRows: The lake does not have ledger objects of the table, or a file that is read to be
                replaced has other rows than were written.
            DamagedObject: The store returns other rows than were written.
            ObjectExists: Another compaction committed first; nothing was changed.
        """
        objects = await list_objects(self._store, self._table)
        if surplus := state.surplus(objects):
            raise _OtherRows(self._folder, f"had {rows_of_missing(surplus)}")
        new = state.lacks(objects)
        is_current = before is not None and recorded(before.configuration).get(RUN) == properties[RUN]
        if is_current and not new and gone is None:
            self._report_damaged(state)
            return before, state
        there = {one.key for one in objects}
        state = replace(
            state,
            keys={*state.keys},
            hashes=dict(state.hashes),
            damaged={key: etag for key, etag in state.damaged.items() if key in there},
            removed=dict(state.removed),
        )
        with TemporaryDirectory(prefix="tables-", dir=self._store.temporary_directory()) as temporary:
            folder = Path(temporary)
            files = _Files(folder, self._schema)
            old = () if before is None or gone is not None else before.files
            gone = [*(gone or ()), *await self._write(files, old, new, state)]
            added = []
            for written in files.close(now):
                file = await self._store_file(written, folder)
                added.append(file)
                state.hashes[file.path] = written.rows_hash
        for one in gone:
            state.hashes.pop(one.path, None)
        rows = sum(one.rows for one in added), sum(one.rows for one in gone)
        after = await self._commit(before, state, added, gone, properties, now, rows=rows)
        self.report.changed += len(new)
        self.report.is_repaired = bool(self.report.differences)
        self._report_damaged(state)
        return after, state

    def _report_damaged(self, state: LedgerTableState) -> None:
        reported = {one.name for one in self.report.differences}
        for key in sorted(state.damaged.keys() - reported):
            self._differs(key, "is damaged, so its rows are not in the table: run `imbrace-lake verify`")

    async def _write(
        self, files: _Files, old: Sequence[TableFile], new: Sequence[ObjectMeta], state: LedgerTableState
    ) -> list[TableFile]:
        """Write the rows of new ledger objects, and of old files that are too many or have outdated rows.

        Args:
            files: The new files.
            old: The files of the table.
            new: The ledger objects; those that are not damaged are added to the keys of the state.
            state: The state.

        Returns:
            The old files whose rows are in the new ones now.

        Raises:
            _OtherRows: An old file has other rows than were written.
        """
        choose = self._table.choose
        small = [one for one in old if one.size_bytes < FILE_BYTES // 4]
        replaced = [*old] if choose is not None else small if len(small) > MAX_SMALL_FILES else []
        current = None if choose is None else CondensedRows(choose, self._schema.empty_table())
        for file in replaced:
            path = await self._download(file, files.folder)
            self.report.read_bytes += file.size_bytes
            if not await _has_rows(path, state.hashes.get(file.path)):
                raise _OtherRows(f"{self._folder}{file.path}", "had other rows than the ledger")
            for rows in iter_file(path):
                rows = _in_schema(rows, self._schema)
                await self._in_thread(files.add if current is None else current.add, rows)
            path.unlink()
        for group in in_groups(new, lambda meta: meta.size_bytes, GROUP_BYTES, GROUP_OBJECTS):
            keys = [one.key for one in group]
            tables = await read_objects(self._lake, keys)
            state.add(group, self._lake.damaged)
            self.report.objects_read += len(keys)
            self.report.read_bytes += sum(one.size_bytes for one in group)
            self.report.requests += len(keys)
            for rows in tables:
                rows = rows.cast(self._schema)
                await self._in_thread(files.add if current is None else current.add, rows)
        if current is not None:
            await self._in_thread(lambda: files.add(current.rows()))
        return replaced

    async def _store_file(self, written: _Written, folder: Path) -> TableFile:
        """Write a file into the store, and prove that it has the rows that were written.

        Raises:
            DamagedObject: It had other rows twice.
        """
        for _ in range(2):
            file = replace(written.file, path=f"part-{uuid4().hex}.parquet")
            await self._upload(file, written.path)
            path = await self._download(file, folder)
            if await _has_rows(path, written.rows_hash):
                path.unlink()
                return file
            path.unlink()
            problem = "had other rows than the ledger, and was written again"
            self._differs(f"{self._folder}{file.path}", problem)
        raise DamagedObject(
            f"{self._store.url}/{self._folder}: files do not have the rows that were written into them"
        )


@dataclass(frozen=True, slots=True)
class _Written:
    """A finished file that is not in the store yet."""

    file: TableFile
    path: Path
    rows_hash: str


class _Files:
    """Writes rows into data files of limited size, in their order.

    Attributes:
        folder: A folder for temporary files.
    """

    def __init__(self, folder: Path, schema: pa.Schema) -> None:
        self.folder = folder
        self._schema = schema
        self._files: list[tuple[FileWriter, RowsHash]] = []

    def add(self, rows: pa.Table) -> None:
        """Write rows."""
        if not rows.num_rows:
            return
        if not self._files or self._files[-1][0].size_bytes >= FILE_BYTES:
            if self._files:
                self._files[-1][0].flush()
            self._files.append((FileWriter(self.folder / f"file-{uuid4().hex}", self._schema), RowsHash()))
        for one in self._files[-1]:
            one.add(rows)

    def close(self, now: datetime) -> list[_Written]:
        """Finish all files."""
        return [_Written(one.close(now), one.path, rows_hash.hexdigest()) for one, rows_hash in self._files]


def rows_of_missing(keys: Collection[str]) -> str:
    """Return what a table has that was compacted from a newer lake, or before ledger objects were deleted."""
    return f"the rows of {plural(len(keys), 'ledger object')} that the lake does not have"


async def _has_rows(path: Path, rows_hash: str | None) -> bool:
    """Return whether a data file can be read and has the rows with this hash."""
    try:
        return await asyncio.to_thread(hash_of_file, path) == rows_hash
    except (pa.ArrowException, OSError):
        return False


def _in_schema(rows: pa.Table, schema: pa.Schema) -> pa.Table:
    """Return rows with all columns, some of which a later version may have added to the ledger."""
    for one in schema:
        if one.name not in rows.schema.names:
            rows = rows.append_column(one, pa.nulls(rows.num_rows, one.type))
    return rows.select(schema.names).cast(schema)
