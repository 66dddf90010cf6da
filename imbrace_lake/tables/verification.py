"""Compare the tables of a lake with their logs, and the table of messages with its state."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import uuid4

import pyarrow as pa
import pyarrow.parquet as pq

from imbrace_lake.errors import DamagedObject, InputError, StoreError
from imbrace_lake.lake.lake import Lake, partition_key
from imbrace_lake.lake.ledger_schema import LEDGER_SCHEMAS
from imbrace_lake.lake.schema import with_digests
from imbrace_lake.tables.cleaning import STATE_PROPERTY
from imbrace_lake.tables.delta_log import DeltaLog, TableFile, require_deltalake
from imbrace_lake.tables.ledgers import LEDGER_TABLES
from imbrace_lake.tables.messages import FOLDER, messages_log
from imbrace_lake.tables.report import TableDifference
from imbrace_lake.tables.rows import in_lake_schema, iter_file, table_schema
from imbrace_lake.tables.state import NOTHING, Sums, plus, read_state, sums_by_conversation

TABLES = "tables/"
_AGAIN = "delete the folder tables, and run `imbrace-lake compact`"


@dataclass(slots=True)
class TableVerification:
    """The result of a verification of tables.

    Attributes:
        files: The number of files that were read.
        differences: What is wrong.
        not_verified: Why nothing was read; None if the tables were read.
    """

    files: int = 0
    differences: list[TableDifference] = field(default_factory=list)
    not_verified: str | None = None

    def add(self, name: str, problem: str) -> None:
        """Add a difference."""
        self.differences.append(TableDifference(name, problem))


async def verify_tables(lake: Lake) -> TableVerification:
    """Read every file of the tables.

    Each must have the rows that the log states. Number and content hash of the messages of each conversation
    must be those that its parts had when they were read. That the tables are older than the lake is not a
    difference.
    """
    found = TableVerification()
    logs = {f"{TABLES}{one.name}/": _ledger_log(lake, one.name, one.ledger) for one in LEDGER_TABLES}
    folders = [FOLDER, *logs]
    there = {folder for folder in folders if await lake.store.list(folder, most=1)}
    if not there:
        return found
    try:
        require_deltalake()
    except InputError as exc:
        found.not_verified = str(exc)
        return found
    if FOLDER in there:
        await _verify(lake, FOLDER, messages_log(lake), found)
    for folder, log in logs.items():
        if folder in there:
            await _verify(lake, folder, log, found)
    return found


def _ledger_log(lake: Lake, name: str, ledger: str) -> DeltaLog:
    return DeltaLog(lake.store, f"{TABLES}{name}/", table_schema(LEDGER_SCHEMAS[ledger]), {})


async def _verify(lake: Lake, folder: str, log: DeltaLog, found: TableVerification) -> None:
    try:
        snapshot = await log.read()
    except DamagedObject as exc:
        found.add(folder, str(exc))
        return
    if snapshot is None:
        # A first compaction was killed before its first commit.
        return
    sums: dict[str, Sums] = {}
    with TemporaryDirectory(prefix="verify-tables-", dir=lake.store.temporary_directory()) as temporary:
        for file in snapshot.files:
            problem = await _file_problem(
                lake, folder, file, Path(temporary), sums if folder == FOLDER else None
            )
            found.files += 1
            if problem is not None:
                found.add(f"{folder}{file.path}", problem)
                return
    if folder != FOLDER:
        return
    state = await read_state(lake.store, snapshot.configuration.get(STATE_PROPERTY, "-"))
    if state is None:
        found.add(folder, "its state is missing or damaged: the next `imbrace-lake compact` writes it again")
        return
    expected = {key: value for key, value in state.conversation_sums().items() if value != NOTHING}
    for name in sorted(expected.keys() | sums.keys()):
        if sums.get(name) != expected.get(name):
            counts = [values.get(name, NOTHING)[0] for values in (sums, expected)]
            found.add(name, f"has {counts[0]} rows in the table, of {counts[1]}, or others: {_AGAIN}")


async def _file_problem(
    lake: Lake, folder: str, file: TableFile, temporary: Path, sums: dict[str, Sums] | None
) -> str | None:
    """Read a file, and return what is wrong with it; None if nothing is."""
    path = temporary / uuid4().hex
    try:
        await lake.store.download(f"{folder}{file.path}", path)
        await asyncio.to_thread(_read, path, file, sums)
    except FileNotFoundError:
        return f"is missing: {_AGAIN}"
    except StoreError as exc:
        if exc.is_transient:
            raise
        return f"cannot be read: {exc}"
    except (pa.ArrowException, OSError, ValueError):
        return f"is damaged: {_AGAIN}"
    return None


def _read(path: Path, file: TableFile, sums: dict[str, Sums] | None) -> None:
    """Read a file, and add the sums of its conversations.

    Raises:
        ValueError, OSError, pa.ArrowException: It is damaged, or is not the file that the log names.
    """
    if pq.read_metadata(path).num_rows != file.rows or path.stat().st_size != file.size_bytes:
        raise ValueError("not the file that the log names")
    keys: dict[tuple[str, str], str] = {}
    for rows in iter_file(path):
        if sums is None:
            continue
        for batch in rows.to_batches(max_chunksize=4_096):
            digests = with_digests(in_lake_schema(pa.Table.from_batches([batch])))
            for names, values in sums_by_conversation(digests).items():
                if names not in keys:
                    keys[names] = partition_key(*names)
                sums[keys[names]] = plus(sums.get(keys[names], NOTHING), values)
    path.unlink()
