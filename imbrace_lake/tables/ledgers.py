"""Compact the ledgers of a lake into tables: all rows, and the current row of each conversation and number.

Ledger objects are never changed, so a table of all rows only grows: a compaction reads the objects that the
table does not have yet. A table of current rows is one file, which is written again with each change.
"""

from __future__ import annotations

import asyncio
import io
import json
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import uuid4

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from imbrace_lake.errors import DamagedObject, ObjectExists, StoreUnavailable
from imbrace_lake.lake.lake import Lake
from imbrace_lake.lake.ledger import DAMAGED, has_hash, last_of_each, named_by_hash, read_objects, run_of
from imbrace_lake.lake.ledger_schema import LEDGER_SCHEMAS, Ledger
from imbrace_lake.lake.parquet import encode
from imbrace_lake.store.contract import ObjectMeta
from imbrace_lake.tables.cleaning import (
    AS_OF,
    GRACE,
    RUN,
    STATE_FOLDER,
    STATE_PROPERTY,
    TRIES,
    clean_up,
    recorded,
)
from imbrace_lake.tables.delta_log import DeltaLog, Snapshot, TableFile
from imbrace_lake.tables.report import TableDifference, TableReport
from imbrace_lake.tables.rows import (
    FILE_BYTES,
    STATISTICS,
    FileWriter,
    iter_file,
    properties_of,
    table_schema,
)

logger = logging.getLogger(__name__)

# Ledger objects that are read at a time.
GROUP_BYTES, GROUP_OBJECTS = 4 * 2**20, 64
MOST_SMALL_FILES = 8


def _current_conversations(rows: pa.Table) -> pa.Table:
    """Return the latest row of each conversation."""
    # Of rows with the same time, the last one counts.
    return last_of_each(rows.sort_by("run_id"), ["organization_id", "conversation_id"], "finished_at")


def _current_phones(rows: pa.Table) -> pa.Table:
    """Return the latest row of each number."""
    is_number = pc.and_(
        pc.is_valid(rows.column("phone_hash")), pc.not_equal(rows.column("status"), "duplicate")
    )
    rows = rows.filter(is_number).sort_by([("run_id", "ascending"), ("position", "descending")])
    return last_of_each(rows, ["organization_id", "phone_hash"], "resolved_at")


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


@dataclass(slots=True)
class LedgerTableState:
    """The ledger objects that a table contains, and the objects that only its earlier versions need."""

    keys: set[str] = field(default_factory=set)
    removed: dict[str, datetime] = field(default_factory=dict)
    key: str = ""


class LedgerCompaction:
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
        self._lake = lake
        self._store = lake.store
        self._table = table
        self._clock = clock
        self._grace = grace
        self._folder = f"tables/{table.name}/"
        self._schema = table_schema(LEDGER_SCHEMAS[table.ledger])
        columns = [name for name in STATISTICS if name in self._schema.names]
        self._log = DeltaLog(lake.store, self._folder, self._schema, properties_of(columns))
        self.report = TableReport(table.name, unit="ledger objects")

    async def plan(self) -> TableReport:
        """Find out what a compaction would read and write, and write nothing."""
        snapshot = await self._log.read()
        state = await self._read_state(snapshot) or LedgerTableState()
        new = await self._new_objects(state)
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

    async def run(self) -> TableReport:
        """Add the new objects, prove it, and delete what no reader needs any more."""
        for _ in range(TRIES):
            try:
                await self._run_once()
            except ObjectExists:
                self.report.conflicts += 1
                logger.info("another compaction committed first table=%s", self._table.name)
            else:
                break
        else:
            raise StoreUnavailable(
                f"{self._store.url}/{self._folder}: other compactions kept committing, so try again"
            )
        snapshot = await self._log.read()
        state = await self._read_state(snapshot)
        if snapshot is not None and state is not None:
            self.report.files_deleted += await clean_up(
                self._store, self._log, self._folder, snapshot, state.removed, self._clock(), self._grace
            )
        return self.report

    async def _run_once(self) -> None:
        now = self._clock()
        runs = [meta.key for meta in await self._store.list("runs/")]
        last_run = (run_of(runs[-1]) if runs else None) or ""
        before = await self._log.read()
        state = await self._read_state(before)
        # A table whose state is lost is built again.
        gone = list(before.files) if before is not None and state is None else []
        state = state or LedgerTableState()
        new = await self._new_objects(state)
        done = {} if before is None else recorded(before.configuration)
        if not new and not gone and done.get(RUN) == last_run:
            self.report.describe(before)
            return
        with TemporaryDirectory(prefix="tables-", dir=self._store.temporary_directory()) as temporary:
            folder = Path(temporary)
            added, expected, covered = await self._write(folder, before, gone, new, now)
            for file, path in added:
                await self._store.create(f"{self._folder}{file.path}", path)
                self.report.written_bytes += file.size_bytes
            properties = {AS_OF: now.isoformat(timespec="milliseconds"), RUN: last_run}
            files = [file for file, _ in added]
            after_state = LedgerTableState(state.keys | covered, dict(state.removed))
            await self._commit(before, after_state, files, gone, properties, now)
            after = await self._log.read()
            found: Counter[str] = Counter()
            for file in files:
                found += await self._runs_of(file, folder)
            if found != expected:
                runs_of = sorted((found - expected) | (expected - found))
                self._differs(f"rows of {len(runs_of)} runs differ from the ledger: delete {self._folder}")
        self.report.changed += len(new)
        self.report.rows_added += sum(expected.values())
        self.report.rows_removed += sum(one.rows for one in gone)
        self.report.describe(after)

    async def _write(
        self,
        folder: Path,
        before: Snapshot | None,
        gone: list[TableFile],
        new: Sequence[ObjectMeta],
        now: datetime,
    ) -> tuple[list[tuple[TableFile, Path]], Counter[str], set[str]]:
        """Write the new files; add to `gone` the files that they replace.

        Returns:
            The files, the number of their rows for each run, and the ledger objects that were read.
        """
        files = _Files(folder, self._schema)
        choose = self._table.choose
        current: list[pa.Table] = []
        old = [] if before is None or gone else list(before.files)
        small = [one for one in old if one.size_bytes < FILE_BYTES // 4]
        replaced = old if choose is not None else small if len(small) > MOST_SMALL_FILES else []
        for file in replaced:
            path = await self._download(file, folder)
            self.report.read_bytes += file.size_bytes
            for rows in iter_file(path):
                # A later version may have added columns to the ledger.
                for one in self._schema:
                    if one.name not in rows.schema.names:
                        rows = rows.append_column(one, pa.nulls(rows.num_rows, one.type))
                rows = rows.select(self._schema.names).cast(self._schema)
                if choose is None:
                    await asyncio.to_thread(files.add, rows)
                else:
                    current.append(rows)
        gone += replaced
        covered: set[str] = set()
        for group in _groups(new):
            keys = [one.key for one in group]
            tables = await read_objects(self._lake, keys)
            covered.update(key for key in keys if key not in self._lake.damaged)
            self.report.objects_read += len(keys)
            self.report.read_bytes += sum(one.size_bytes for one in group)
            self.report.requests += len(keys)
            for rows in tables:
                rows = rows.cast(self._schema)
                if choose is None:
                    await asyncio.to_thread(files.add, rows)
                else:
                    current = [await asyncio.to_thread(choose, pa.concat_tables([*current, rows]))]
        for rows in current:
            files.add(rows)
        return files.close(now), files.runs, covered

    async def _commit(
        self,
        before: Snapshot | None,
        state: LedgerTableState,
        added: Sequence[TableFile],
        gone: Sequence[TableFile],
        properties: dict[str, str],
        now: datetime,
    ) -> None:
        if before is not None and before.configuration.get(STATE_PROPERTY):
            state.removed[before.configuration[STATE_PROPERTY]] = now
        state.removed = {key: at for key, at in state.removed.items() if now - at <= self._grace + GRACE}
        state.removed |= {f"{self._folder}{one.path}": now for one in gone}
        key = await self._write_state(state)
        await self._log.commit(before, added, gone, {**properties, STATE_PROPERTY: key}, now)
        self.report.commits += 1
        self.report.requests += 2
        self.report.files_added += len(added)
        self.report.files_removed += len(gone)

    async def _new_objects(self, state: LedgerTableState) -> list[ObjectMeta]:
        """Return the objects of the ledger that the table does not have."""
        listing = await self._store.list(f"{self._table.ledger}/")
        return [meta for meta in listing if meta.key not in state.keys and not meta.key.endswith(DAMAGED)]

    async def _read_state(self, snapshot: Snapshot | None) -> LedgerTableState | None:
        """Return the state of a version; None if it is lost, an empty one if there is no table."""
        if snapshot is None:
            return LedgerTableState()
        key = snapshot.configuration.get(STATE_PROPERTY, "")
        try:
            body = await self._store.get(key) if key else b""
        except FileNotFoundError:
            return None
        if not key or not has_hash(key, body):
            return None
        rows = pq.read_table(io.BytesIO(body))
        removed = json.loads(pq.read_metadata(io.BytesIO(body)).metadata[b"removed"])
        return LedgerTableState(
            {*rows.column("key").to_pylist()},
            {one: datetime.fromisoformat(moment) for one, moment in removed.items()},
            key,
        )

    async def _write_state(self, state: LedgerTableState) -> str:
        removed = json.dumps({key: moment.isoformat() for key, moment in state.removed.items()})
        rows = pa.table({"key": pa.array(sorted(state.keys), pa.string())})
        body = encode(rows, {"removed": removed}, compression="zstd")
        key = named_by_hash(f"{STATE_FOLDER}{self._table.name}", body)
        await self._store.overwrite(key, body)
        return key

    async def _download(self, file: TableFile, folder: Path) -> Path:
        path = folder / f"read-{uuid4().hex}"
        try:
            await self._store.download(f"{self._folder}{file.path}", path)
        except FileNotFoundError:
            raise DamagedObject(
                f"{self._store.url}/{self._folder}{file.path} is missing: delete {self._folder}, which"
                " `imbrace-lake compact` then writes again"
            ) from None
        self.report.requests += 1
        return path

    async def _runs_of(self, file: TableFile, folder: Path) -> Counter[str]:
        """Return the number of rows for each run in a file, as it is in the store."""
        path = await self._download(file, folder)
        found: Counter[str] = Counter()
        for rows in iter_file(path):
            found += _count_runs(rows)
        return found

    def _differs(self, problem: str) -> None:
        self.report.differences.append(TableDifference(self._table.name, problem))
        logger.warning("table differs name=%s problem=%s", self._table.name, problem)


class _Files:
    """Writes rows into data files of limited size, in their order.

    Attributes:
        runs: The number of rows for each run.
    """

    def __init__(self, folder: Path, schema: pa.Schema) -> None:
        self._folder = folder
        self._schema = schema
        self._writers: list[FileWriter] = []
        self.runs: Counter[str] = Counter()

    def add(self, rows: pa.Table) -> None:
        """Write rows."""
        if not rows.num_rows:
            return
        if not self._writers or self._writers[-1].size_bytes >= FILE_BYTES:
            if self._writers:
                self._writers[-1].flush()
            self._writers.append(FileWriter(self._folder / f"file-{uuid4().hex}", self._schema))
        self._writers[-1].add(rows)
        self.runs += _count_runs(rows)

    def close(self, now: datetime) -> list[tuple[TableFile, Path]]:
        """Finish all files."""
        return [(writer.close(now), writer.path) for writer in self._writers]


def _count_runs(rows: pa.Table) -> Counter[str]:
    pairs = pc.value_counts(rows.column("run_id")).to_pylist()
    return Counter({pair["values"] or "": pair["counts"] for pair in pairs})


def _groups(objects: Iterable[ObjectMeta]) -> Iterator[list[ObjectMeta]]:
    """Yield objects that are read at the same time."""
    group: list[ObjectMeta] = []
    size_bytes = 0
    for meta in objects:
        if group and (size_bytes + meta.size_bytes > GROUP_BYTES or len(group) >= GROUP_OBJECTS):
            yield group
            group, size_bytes = [], 0
        group.append(meta)
        size_bytes += meta.size_bytes
    if group:
        yield group
