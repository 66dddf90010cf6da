"""Compare the tables of a lake with their logs and their states."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from imbrace_lake.errors import DamagedObject, InputError, StoreError
from imbrace_lake.lake.lake import Lake, partition_key
from imbrace_lake.lake.ledger import run_of
from imbrace_lake.lake.schema import with_digests
from imbrace_lake.printable import plural
from imbrace_lake.tables.cleaning import RUN, STATE_PROPERTY, again
from imbrace_lake.tables.delta_log import Snapshot, TableFile, require_deltalake
from imbrace_lake.tables.ledgers import (
    LEDGER_TABLES,
    LedgerTable,
    ledger_log,
    list_objects,
    read_ledger_state,
    rows_of_missing,
)
from imbrace_lake.tables.messages import FOLDER, messages_log
from imbrace_lake.tables.report import TableDifference
from imbrace_lake.tables.rows import in_lake_schema, iter_file
from imbrace_lake.tables.rows_hash import hash_of_file
from imbrace_lake.tables.state import NOTHING, Sums, plus, read_state, sums_by_conversation
from imbrace_lake.tables.temporary import reading_folder

_AGAIN = "the next `imbrace-lake compact` writes it again"
_UPDATED = "the next `imbrace-lake compact` updates it"
_NO_STATE = f"its state is missing or damaged: {_AGAIN}"


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
    must be those that its parts had when they were read, and the rows of the ledgers those that were written.
    That the tables are older than the lake is not a difference, but that they are newer is, as in a lake that
    was restored below them.
    """
    found = TableVerification()
    logs = {FOLDER: messages_log(lake)}
    tables = {}
    for table in LEDGER_TABLES:
        log = ledger_log(lake.store, table)
        logs[log.folder], tables[log.folder] = log, table
    there = [folder for folder in logs if await lake.store.list(folder, most=1)]
    if not there:
        return found
    try:
        require_deltalake()
    except InputError as exc:
        found.not_verified = str(exc)
        return found
    for folder in there:
        try:
            snapshot = await logs[folder].read()
        except DamagedObject as exc:
            found.add(folder, str(exc))
            continue
        # Without a snapshot, a first compaction was killed before its first commit.
        if snapshot is not None and folder == FOLDER:
            await _verify_messages(lake, snapshot, found)
        elif snapshot is not None:
            await _verify_ledger(lake, tables[folder], folder, snapshot, found)
    return found


async def _verify_messages(lake: Lake, snapshot: Snapshot, found: TableVerification) -> None:
    """Compare the rows of each conversation with its parts, as they were when they were read."""
    sums: dict[str, Sums] = {}
    are_read = [
        await _is_read(lake, FOLDER, file, found, partial(_add_sums, sums=sums)) for file in snapshot.files
    ]
    if not all(are_read):
        return
    state = await read_state(lake.store, snapshot.configuration.get(STATE_PROPERTY, "-"))
    if state is None:
        found.add(FOLDER, _NO_STATE)
        return
    run_id = snapshot.configuration.get(RUN)
    if run_id and all(run_of(meta.key) != run_id for meta in await lake.store.list("runs/")):
        found.add(FOLDER, f"has the messages until run {run_id}, which the lake does not have: {_UPDATED}")
    expected = {key: value for key, value in state.conversation_sums().items() if value != NOTHING}
    for name in sorted(expected.keys() | sums.keys()):
        if sums.get(name) != expected.get(name):
            counts = [values.get(name, NOTHING)[0] for values in (sums, expected)]
            rows = f"{plural(counts[0], 'row')} in the table, of {counts[1]:,}"
            found.add(name, f"has {rows}, or others: {again(FOLDER)}")


async def _verify_ledger(
    lake: Lake, table: LedgerTable, folder: str, snapshot: Snapshot, found: TableVerification
) -> None:
    """Compare the rows of each file with those that were written into it."""
    hashes: dict[str, str] = {}

    def add_hash(path: Path, name: str) -> None:
        hashes[name] = hash_of_file(path)

    for file in snapshot.files:
        await _is_read(lake, folder, file, found, partial(add_hash, name=file.path))
    state = await read_ledger_state(lake.store, table, snapshot)
    if state is None:
        found.add(folder, _NO_STATE)
        return
    if surplus := state.surplus(await list_objects(lake.store, table)):
        found.add(folder, f"has {rows_of_missing(surplus)}: {_AGAIN}")
    for name, rows_hash in hashes.items():
        if state.hashes.get(name) != rows_hash:
            found.add(f"{folder}{name}", f"has other rows than the ledger: {again(folder)}")


async def _is_read(
    lake: Lake, folder: str, file: TableFile, found: TableVerification, read: Callable[[Path], object]
) -> bool:
    """Read a file, and return whether it could be read; report it if not.

    Args:
        lake: The lake.
        folder: The folder of the table.
        file: The file.
        found: The result so far.
        read: Reads a downloaded file.
    """
    found.files += 1
    problem = None
    with reading_folder(lake.store, "verify-tables-") as temporary:
        path = Path(temporary, "file")
        try:
            await lake.store.download(f"{folder}{file.path}", path)
            if await asyncio.to_thread(_is_file, path, file):
                await asyncio.to_thread(read, path)
            else:
                problem = f"is not the file that the log names: {again(folder)}"
        except FileNotFoundError:
            problem = f"is missing: {again(folder)}"
        except StoreError as exc:
            if exc.is_transient:
                raise
            problem = f"cannot be read: {exc}"
        except (pa.ArrowException, OSError, ValueError):
            problem = f"is damaged: {again(folder)}"
    if problem is not None:
        found.add(f"{folder}{file.path}", problem)
    return problem is None


def _is_file(path: Path, file: TableFile) -> bool:
    """Return whether a file has the size and the number of rows that the log states."""
    return path.stat().st_size == file.size_bytes and pq.read_metadata(path).num_rows == file.rows


def _add_sums(path: Path, sums: dict[str, Sums]) -> None:
    """Add the sums of the rows of each conversation in a file, by folder."""
    keys: dict[tuple[str, str], str] = {}
    for rows in iter_file(path):
        for batch in rows.to_batches(max_chunksize=4_096):
            digests = with_digests(in_lake_schema(pa.Table.from_batches([batch])))
            for names, values in sums_by_conversation(digests).items():
                if names not in keys:
                    keys[names] = partition_key(*names)
                sums[keys[names]] = plus(sums.get(keys[names], NOTHING), values)
