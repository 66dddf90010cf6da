"""The ledgers of input numbers, conversations and runs: append-only Parquet beside the messages.

A run writes its results into `journal/<run>/`. When it ends, it turns the journal into one object per ledger
and deletes the journal. A killed run leaves its journal, so readers of a ledger also read the journals.

Outcomes of conversations are written as lines of JSON, because a run writes them often and a few at a time;
everything else is Parquet. The name of an object ends with the hash of its content, which reveals damage.
"""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from itertools import islice
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from imbrace_lake.concurrency import run_bounded
from imbrace_lake.errors import DamagedObject, ObjectExists, StoreError, StoreUnavailable
from imbrace_lake.lake.lake import MARKER, Lake, body_hash
from imbrace_lake.lake.ledger_schema import (
    LEDGER_SCHEMAS,
    SAME_PHONE,
    ConversationEntry,
    Ledger,
    RunTotals,
    empty_ledger,
    entry_line,
    rows_of_lines,
    run_row,
)
from imbrace_lake.lake.memory import in_groups
from imbrace_lake.lake.parquet import encode
from imbrace_lake.store.contract import Body, ObjectMeta

# Rows of a journal that are equal in these columns are versions of one row, of which the one with the latest
# time counts. An earlier attempt of the run may have left versions too.
_VERSIONS: dict[Ledger, tuple[list[str], str]] = {
    "phones": (SAME_PHONE, "resolved_at"),
    "conversations": (["organization_id", "conversation_id"], "finished_at"),
    "revisions": (["conversation_id", "message_id", "last_changed_at"], "replaced_at"),
    "shapes": (["shape"], "seen_at"),
}
JOURNAL = "journal/"
# The most bytes of a journal that become one object; in memory they are about ten times as many.
GROUP_BYTES = 4 * 2**20
LINES = ".jsonl"
# The suffix of a journal's object that was damaged when the journal was closed.
DAMAGED = ".damaged"
READ_AT_A_TIME = 64
ROWS_AT_A_TIME = 4_096
# The object of a journal that describes its run (recovery.py).
HEADER = "run.json"
# The folder of a journal with the ids of the conversations that the run found.
FOUND = "found"


@dataclass(slots=True)
class PublishedJournal:
    """The ledger objects of one run.

    Attributes:
        keys: Their keys.
        statuses: The number of rows by status, for the ledgers with a status.
    """

    keys: list[str] = field(default_factory=list)
    statuses: dict[Ledger, Counter[str]] = field(
        default_factory=lambda: {"phones": Counter(), "conversations": Counter()}
    )


# Runs seldom end in another order than they began.
LAST_RUNS = 16
# The time in the key of an object: when its run began.
STAMP = "%Y%m%dT%H%M%SZ"
_KEY = re.compile(r"[a-z]+/\d{8}T\d{6}Z-(?P<run>.+)-(?P<hash>[0-9a-f]{16})\.[a-z]+", re.DOTALL)


class Journal:
    """The journal of one run while it is under way, and its ledger objects at the end."""

    def __init__(self, lake: Lake, run_id: str, started_at: datetime) -> None:
        self.run_id = run_id
        self._lake = lake
        # The beginning of the names of the run's objects in the ledgers.
        self._name = f"{started_at.strftime(STAMP)}-{run_id}"
        self._prefix = f"{JOURNAL}{run_id}/"
        self._noted: dict[tuple[Ledger, str], str] = {}

    async def note(self, ledger: Ledger, name: str, rows: pa.Table) -> None:
        """Write rows under a name; the same name again replaces them."""
        await self._note(ledger, name, _to_bytes(rows), ".parquet")

    async def note_entries(self, name: str, entries: Iterable[ConversationEntry]) -> None:
        """Write entries of `conversations` under a name; the same name again replaces them."""
        await self.note_lines(name, map(entry_line, entries))

    async def note_lines(self, name: str, lines: Iterable[bytes]) -> None:
        """Write entries of `conversations`, as lines from `entry_line`, like `note_entries`."""
        await self._note("conversations", name, b"\n".join(lines), LINES)

    async def note_found(self, conversation_ids: Iterable[str]) -> None:
        """Write which conversations the run found, so that none is lost if the run is killed."""
        body = _to_bytes(pa.table({"conversation_id": pa.array(conversation_ids, pa.string())}))
        await self._lake.store.overwrite(named_by_hash(f"{self._prefix}{FOUND}/ids", body), body)

    async def _note(self, ledger: Ledger, name: str, body: bytes, suffix: str) -> None:
        key = named_by_hash(f"{self._prefix}{ledger}/{name}", body, suffix)
        await self._lake.store.overwrite(key, body)
        before = self._noted.get((ledger, name), key)
        self._noted[ledger, name] = key
        if before != key:
            await self._lake.store.delete(before)

    async def close(self, row: Mapping[str, Any], totals: RunTotals) -> None:
        """Publish the journal, add the run's row and drop the journal; see `publish` and `finish`."""
        published = await self.publish()
        await self.finish(row, totals, published)
        await self.drop()

    async def publish(self) -> PublishedJournal:
        """Turn the journal into ledger objects: one per ledger, or several if it is large.

        Meanwhile readers see rows twice, but never miss one. After a kill, another run does this again.
        """
        noted = await self._lake.store.list(self._prefix)
        published = PublishedJournal()
        for ledger in _VERSIONS:
            own = [meta for meta in noted if meta.key.startswith(f"{self._prefix}{ledger}/")]
            async for rows in self._latest(ledger, own):
                published.keys.append(await self.add(ledger, rows))
                if ledger in published.statuses:
                    published.statuses[ledger].update(rows.column("status").to_pylist())
            await self._keep_damaged(ledger, [one.key for one in own if one.key in self._lake.damaged])
        return published

    async def finish(self, row: Mapping[str, Any], totals: RunTotals, published: PublishedJournal) -> None:
        """Add the run's row to `runs`, which marks the run as ended.

        Args:
            row: The row of `runs`, without its `objects`.
            totals: The run's totals.
            published: The objects of the other ledgers.
        """
        await self.add("runs", run_row({**row, "objects": published.keys}, totals))

    async def _latest(self, ledger: Ledger, own: Sequence[ObjectMeta]) -> AsyncIterator[pa.Table]:
        """Yield the latest version of each row in the journal, as many at a time as fit into memory."""
        groups = [[meta.key for meta in group] for group in groups_of(own)]
        same, at = _VERSIONS[ledger]
        marks = None
        if len(groups) > 1:
            slim = [table for group in groups for table in await read_objects(self._lake, group, [*same, at])]
            marks = _marks(last_of_each(pa.concat_tables(slim), same, at), same, at)
        for group in groups:
            # No object is left if another run closes the same journal.
            rows = pa.concat_tables([empty_ledger(ledger), *await read_objects(self._lake, group)])
            rows = rows if marks is None else rows.filter(np.isin(_marks(rows, same, at), marks))
            if rows.num_rows:
                yield last_of_each(rows, same, at)

    async def drop(self) -> None:
        """Delete the journal, whose content is in the ledgers."""
        noted = [meta.key for meta in await self._lake.store.list(self._prefix)]
        # The header last, because it shows whose journal it is.
        header = f"{self._prefix}{HEADER}"
        lines = (partial(self._lake.store.delete, key) for key in noted if key != header)
        await run_bounded(min(READ_AT_A_TIME, len(noted)), lines)
        await self._lake.store.delete(header)

    async def add(self, ledger: Ledger, rows: pa.Table) -> str:
        """Add one object to a ledger and return its key."""
        body = _to_bytes(rows)
        key = named_by_hash(f"{ledger}/{self._name}", body)
        # The key has the hash of the content, so an object with this key is the same object.
        with suppress(ObjectExists):
            await self._lake.store.create(key, body)
        return key

    async def _keep_damaged(self, ledger: Ledger, keys: Iterable[str]) -> None:
        """Keep damaged objects of the journal in the ledger.

        A rerun of this run then reports that something is missing, and `verify` names the object.
        """
        for key in keys:
            try:
                body = await self._lake.store.get(key)
            except FileNotFoundError:
                continue  # another run closes this journal too
            except StoreError as exc:
                if exc.is_transient:
                    raise
                body = b""
            # With the hash of the key, so that two runs that close the journal keep the same object.
            kept = named_by_hash(f"{ledger}/{self._name}", key.encode(), DAMAGED)
            with suppress(ObjectExists):
                await self._lake.store.create(kept, body)


def _marks(rows: pa.Table, same: list[str], at: str) -> npt.NDArray[np.int64]:
    """Return a hash per row of what identifies this version of the row.

    An older version with the hash of a latest one would be kept, which readers tolerate.
    """
    versions = rows.select([*same, at])
    versions = versions.set_column(len(same), at, versions.column(at).cast(pa.int64()))
    return np.fromiter(map(hash, _tuples(versions)), np.int64, rows.num_rows)


def groups_of(objects: Iterable[ObjectMeta], most_bytes: int = GROUP_BYTES) -> Iterator[list[ObjectMeta]]:
    """Yield ledger objects in groups that fit into memory.

    Args:
        objects: Objects of one ledger.
        most_bytes: The size of a group's objects in the store, which one large object alone may exceed.
    """
    # Lines have less than half as many rows as Parquet of the same size.
    return in_groups(
        objects,
        lambda meta: meta.size_bytes * 2 // 5 if meta.key.endswith(LINES) else meta.size_bytes,
        most_bytes,
    )


def last_of_each(rows: pa.Table, same: list[str], at: str) -> pa.Table:
    """Return, of rows that are equal in the columns `same`, the one with the latest time `at`, or the last.

    The rows keep their order. Arrow's own grouping takes 600 bytes per row.
    """
    times = rows.column(at).cast(pa.int64()).fill_null(np.iinfo(np.int64).min).to_numpy()
    keys = np.fromiter(map(hash, _tuples(rows.select(same))), np.int64, rows.num_rows)
    order = np.lexsort((times, keys))
    is_other = keys[order][1:] != keys[order][:-1]
    if is_other.all():
        return rows
    # Of rows with the same hash, which nearly always are equal, the last of each kind.
    is_single = np.append(True, is_other) & np.append(is_other, True)
    several = order[~is_single]
    last = dict(zip(_tuples(rows.select(same).take(pa.array(several))), several.tolist(), strict=True))
    return rows.take(pa.array(np.sort(np.append(order[is_single], [*last.values()]).astype(np.int64))))


class CondensedRows:
    """Rows that are added table by table, and of which a function keeps few, such as `last_of_each`.

    The function is called when the rows have grown by half, so the time per row does not depend on the number
    of tables.

    Args:
        keep: Chooses from rows; of chosen and added rows, it must choose as from all.
        empty: A table without rows, with the schema of all rows.
    """

    def __init__(self, keep: Callable[[pa.Table], pa.Table], empty: pa.Table) -> None:
        self._keep = keep
        self._tables = [empty]
        self._added_rows = 0
        self._kept_rows = 0

    def add(self, rows: pa.Table) -> None:
        """Add rows."""
        self._tables.append(rows)
        self._added_rows += rows.num_rows
        if self._added_rows >= max(ROWS_AT_A_TIME, self._kept_rows // 2):
            self.rows()

    def rows(self) -> pa.Table:
        """Return the chosen rows."""
        if len(self._tables) > 1:
            self._tables = [self._keep(pa.concat_tables(self._tables))]
            self._added_rows, self._kept_rows = 0, self._tables[0].num_rows
        return self._tables[0]


def _tuples(rows: pa.Table) -> Iterator[tuple[Any, ...]]:
    """Yield the rows as tuples of values."""
    for batch in rows.to_batches(max_chunksize=ROWS_AT_A_TIME):
        yield from zip(*(column.to_pylist() for column in batch.columns), strict=True)


def named_by_hash(name: str, body: Body, suffix: str = ".parquet") -> str:
    """Return a key with the hash of the object, which reveals damage."""
    return f"{name}-{body_hash(body)[:16]}{suffix}"


def has_hash(key: str, body: Body) -> bool:
    """Whether a key ends with the hash of the object, as all keys in ledgers and journals but `HEADER`."""
    name = PurePosixPath(key)
    return name.stem.endswith(f"-{body_hash(body)[:16]}") and name.suffix != DAMAGED


def _to_bytes(rows: pa.Table) -> bytes:
    few_values = ["run_id", "organization_id", "status", "reason", "proof_method"]
    return encode(rows, {}, compression="zstd", use_dictionary=few_values)


async def read_objects(
    lake: Lake, keys: Iterable[str], columns: Sequence[str] | None = None, *, is_strict: bool = False
) -> list[pa.Table]:
    """Read ledger objects with one request each, and combine them into few tables.

    Args:
        lake: The lake.
        keys: The objects; those of journals may have been deleted since they were listed.
        columns: The columns to read; all by default.
        is_strict: Raise for a damaged object. Otherwise it is skipped and recorded in `lake.damaged`.

    Raises:
        DamagedObject: With `is_strict`, an object is damaged.
    """

    async def read(key: str) -> pa.Table | None:
        try:
            return await _read_object(lake, key, columns)
        except DamagedObject as exc:
            if is_strict:
                raise
            lake.skip_damaged(key, str(exc))
            return None

    tables = []
    remaining = iter(keys)
    while some := [*islice(remaining, READ_AT_A_TIME)]:
        read_now = await run_bounded(len(some), (partial(read, key) for key in some))
        found = [table for table in read_now if table is not None]
        if found:
            # Small tables take several times the memory of their rows, and a journal has thousands.
            tables.append(pa.concat_tables(found).combine_chunks() if len(found) > 1 else found[0])
    return tables


async def _read_object(lake: Lake, key: str, columns: Sequence[str] | None) -> pa.Table | None:
    """Read one ledger object; None if a run has just closed its journal."""
    try:
        body = await lake.store.get(key)
    except FileNotFoundError:
        if key.startswith(JOURNAL):
            return None
        raise DamagedObject(f"{lake.url}/{key} is missing: restore it from a copy") from None
    except StoreError as exc:
        # If another object can be read, the fault is in this one.
        if exc.is_transient or not await _can_read(lake):
            raise
        raise DamagedObject(f"{lake.url}/{key} cannot be read: {exc}") from exc
    try:
        return parse_object(key, body, columns)
    except ValueError as exc:
        raise DamagedObject(f"{lake.url}/{key} {exc}: restore it from a copy") from exc


async def _can_read(lake: Lake) -> bool:
    try:
        await lake.store.get(MARKER)
    except (StoreError, FileNotFoundError):
        return False
    return True


def parse_object(key: str, body: bytes, columns: Sequence[str] | None = None) -> pa.Table:
    """Return the rows of a ledger object, or some columns of them.

    Raises:
        ValueError: The object is damaged; the message states how, without its key.
        StoreUnavailable: The process gets no more threads.
    """
    if not has_hash(key, body):
        raise ValueError("differs from the hash in its name")
    try:
        schema = LEDGER_SCHEMAS[ledger_of(key) or ""]
        if columns is not None:
            schema = pa.schema([schema.field(name) for name in columns])
        if key.endswith(LINES):
            rows = rows_of_lines(body).select(schema.names)
        else:
            rows = pq.read_table(io.BytesIO(body), schema=schema, columns=schema.names)
        rows.validate(full=True)
        for one in schema:
            if pa.types.is_timestamp(one.type):
                # An error if these times are outside of the limits of Python's datetime.
                pc.min_max(rows.column(one.name)).as_py()
    except pa.ArrowMemoryError:
        raise  # a fault of this process, and not of the object
    except (pa.ArrowException, OSError, ValueError, LookupError, TypeError, OverflowError) as exc:
        if "launch worker thread" in str(exc):
            reason = "this process gets no more threads or memory: raise its limits, or free memory"
            raise StoreUnavailable(reason) from None
        raise ValueError("is not an object of this ledger") from exc
    # A missing column is read as nulls.
    if any(rows.column(one.name).null_count for one in schema if not one.nullable):
        raise ValueError("is not an object of this ledger")
    return rows


def ledger_of(key: str) -> str | None:
    """Return the ledger of an object in a ledger or a journal; None for any other key."""
    names = key.split("/")
    if key.startswith(JOURNAL):
        return names[2] if len(names) == 4 else None
    return names[0] if len(names) == 2 else None


def run_of(key: str) -> str | None:
    """Return the run that wrote a ledger object, from the object's key; None for any other key."""
    match = _KEY.fullmatch(key)
    return None if match is None else match["run"]


async def list_journals(lake: Lake) -> dict[str, list[ObjectMeta]]:
    """Return the objects in the journals of runs under way or killed, by run."""
    journals: dict[str, list[ObjectMeta]] = {}
    for meta in await lake.store.list(JOURNAL):
        if meta.key.count("/") < 2:
            lake.skip_damaged(meta.key, f"{lake.url}/{meta.key} is not part of a journal: remove it")
            continue
        journals.setdefault(meta.key.split("/")[1], []).append(meta)
    return journals


async def list_ledger(lake: Lake, ledger: Ledger) -> list[str]:
    """Return the keys of all objects with a ledger's rows, including those of runs under way or killed."""
    # Journals first: if a run closes its journal between the two listings, its rows are seen twice, but not
    # missed.
    noted = [meta.key for meta in await lake.store.list(JOURNAL) if ledger_of(meta.key) == ledger]
    return [*(meta.key for meta in await lake.store.list(f"{ledger}/")), *noted]


async def read_ledger(
    lake: Lake,
    ledger: Ledger,
    *,
    columns: Sequence[str] | None = None,
    run_ids: Collection[str] | None = None,
    is_strict: bool = False,
) -> pa.Table:
    """Return all rows of a ledger, or those of some runs, whether a run is under way, killed or ended.

    The name of each object contains its run, so no objects of other runs are read.

    Raises:
        DamagedObject: With `is_strict`, one of the objects is damaged.
    """
    own = [
        meta.key
        for run_id, objects in (await list_journals(lake)).items()
        if run_ids is None or run_id in run_ids
        for meta in objects
    ]
    noted = [key for key in own if ledger_of(key) == ledger]
    # Before the ledger is listed, so that rows of a journal closed meanwhile are seen twice, but not missed.
    unfinished = await read_objects(lake, noted, columns, is_strict=is_strict)
    keys = [meta.key for meta in await lake.store.list(f"{ledger}/")]
    keys = [key for key in keys if run_ids is None or run_of(key) in run_ids]
    ended = await read_objects(lake, keys, columns, is_strict=is_strict)
    return pa.concat_tables([empty_ledger(ledger, columns), *ended, *unfinished])


async def read_run(
    lake: Lake,
    ledger: Ledger,
    run_id: str,
    columns: Sequence[str] | None = None,
    *,
    is_strict: bool = False,
) -> pa.Table:
    """Return the rows that one run has in a ledger; see `read_ledger`."""
    return await read_ledger(lake, ledger, columns=columns, run_ids={run_id}, is_strict=is_strict)


async def list_runs(lake: Lake, begun: datetime, until: datetime) -> list[str]:
    """Return the objects of the ledger `runs` about runs that began in a span of time."""
    first, last = (f"runs/{time.strftime(STAMP)}" for time in (begun, until))
    listing = await lake.store.list("runs/", start_after=first)
    return [meta.key for meta in listing if meta.key[: len(last)] <= last]


async def read_last_end(lake: Lake) -> datetime | None:
    """Return when the last run ended; None if none has.

    Of the ledger, only the objects of the runs that began last, and those written last, are read.
    """
    listing = await lake.store.list(JOURNAL) + await lake.store.list("runs/")
    listing = [meta for meta in listing if ledger_of(meta.key) == "runs"]
    written_last = sorted(listing, key=lambda meta: meta.modified_at)[-LAST_RUNS:]
    keys = {meta.key for meta in [*listing[-LAST_RUNS:], *written_last]}
    tables = await read_objects(lake, sorted(keys), ["finished_at"])
    ends = [end for rows in tables for end in rows.column("finished_at").to_pylist() if end is not None]
    return max(ends, default=None)


async def knows_run(lake: Lake, run_id: str) -> bool:
    """Whether a run has left anything in the ledgers or a journal."""
    if run_id in await list_journals(lake):
        return True
    listings = [await lake.store.list(folder) for folder in ("runs/", "conversations/", "phones/")]
    return any(run_of(meta.key) == run_id for listing in listings for meta in listing)


async def read_found(lake: Lake, run_id: str) -> list[str] | None:
    """Return the conversations in a run's journal that its attempts found.

    Returns:
        Their ids, each once; None if the run ended before it had found them all, or if an object is damaged.
    """
    ids: dict[str, None] = {}
    found = await lake.store.list(f"{JOURNAL}{run_id}/{FOUND}/")
    for meta in found:
        try:
            body = await lake.store.get(meta.key)
        except FileNotFoundError:
            return None  # another run has just closed this journal
        except StoreError as exc:
            if exc.is_transient:
                raise
            body = b""
        if not has_hash(meta.key, body):
            lake.skip_damaged(meta.key, f"the conversations that run {run_id} found are not known")
            return None
        ids |= dict.fromkeys(pq.read_table(io.BytesIO(body)).column("conversation_id").to_pylist())
    return list(ids) if found else None
