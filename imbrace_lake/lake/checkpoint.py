"""Checkpoints: the state that the ledgers add up to, so that a run does not read the lake's whole history.

Every run adds objects to the ledgers, and every few runs one writes a checkpoint: the last proof of each
conversation, the ids of conversations without a proof, and the known shapes of messages. A reader needs the
newest checkpoint and the ledger objects after it::

    checkpoints/<time>-<hash>.parquet

A row is a conversation; without a proof, only its ids are set. The metadata `covers` names the ledger objects
that are in the checkpoint: those of runs that began before `since`, and the list `objects`. The list `missed`
has damaged objects, which readers try again. Checkpoints can be deleted at any time.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from imbrace_lake.concurrency import run_bounded
from imbrace_lake.errors import ObjectExists, StoreError
from imbrace_lake.lake.conversation_states import STATE, ConversationStates, LakeState, is_state
from imbrace_lake.lake.hash_index import Buckets
from imbrace_lake.lake.lake import Lake, organization_of
from imbrace_lake.lake.ledger import (
    HEADER,
    JOURNAL,
    STAMP,
    groups_of,
    has_hash,
    last_of_each,
    ledger_of,
    list_journals,
    named_by_hash,
    read_objects,
)
from imbrace_lake.lake.ledger_schema import CONVERSATIONS, NEVER_FOUND, Ledger
from imbrace_lake.lake.parquet import write_row_groups
from imbrace_lake.printable import printable
from imbrace_lake.store.contract import ObjectMeta

logger = logging.getLogger(__name__)

FOLDER = "checkpoints/"
# A run writes a checkpoint if there are this many ledger objects after the last one. Such a run reads them
# twice, at its start and at its end, and reads at most 30 objects in all.
MAX_AFTER_CHECKPOINT = 8
# The rows of more objects are merged in files before they are read.
MAX_AT_ONCE = 32
KEPT_CHECKPOINTS = 3
# A run can add objects for this long after the time in their keys, which is that of its start.
LONGEST_RUN = timedelta(days=7)
# The objects that are read at a time; their rows take about three times as much memory.
AT_A_TIME_BYTES = 2**20
# A time that is further ahead shows a wrong clock.
CLOCK_SKEW = timedelta(hours=1)
_LONG = 2**50  # milliseconds
# The rows of a row group of a checkpoint, and approximately those of a bucket of a merge.
GROUP_ROWS = 16_384
# The fewest new rows to merge with a checkpoint at a time.
LEAST_MERGED = 250_000
MAX_BUCKETS = 256

READ: tuple[Ledger, ...] = ("conversations", "phones", "shapes")
SAME, AT = ["organization_id", "conversation_id"], "finished_at"
# The columns that identify a conversation, its last row and a proof.
_NEEDED = [*SAME, "status", "proof_method", AT]
ROWS = pa.schema(
    [CONVERSATIONS.field(name).with_nullable(name not in SAME) for name in STATE],
)
_OPTIONS = {
    "compression": "zstd",
    "use_dictionary": ["run_id", "organization_id", "status", "proof_method"],
    "write_statistics": False,
}


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint in a local file, and the ledger objects that it covers.

    Attributes:
        path: The file; None if there is no checkpoint.
        rows: The number of conversations.
        since: All ledger objects of runs that began before this time, written as in their keys, are covered.
        objects: Further ledger objects that are covered.
        missed: Ledger objects that are not covered, because they were damaged.
        shapes: The known shapes of messages.
    """

    path: Path | None = None
    rows: int = 0
    since: str = ""
    objects: frozenset[str] = frozenset()
    missed: frozenset[str] = frozenset()
    shapes: frozenset[str] = frozenset()

    @classmethod
    def load(cls, path: Path) -> Checkpoint:
        """Open the checkpoint in a file.

        Raises:
            ValueError, LookupError, TypeError, OSError, pa.ArrowException: It is not a checkpoint.
        """
        with pq.ParquetFile(path) as file:
            schema = file.schema_arrow
            if any(one.name in schema.names and schema.field(one.name).type != one.type for one in ROWS):
                raise TypeError("columns")
            if not {*SAME, AT} <= {*schema.names}:
                raise LookupError("columns")
            covers = json.loads(schema.metadata[b"covers"])
            return cls(
                path,
                file.metadata.num_rows,
                str(covers["since"]),
                *(frozenset(map(str, covers[name])) for name in ("objects", "missed", "shapes")),
            )

    def batches(self, columns: Sequence[str] = STATE) -> Iterator[pa.Table]:
        """Yield its rows, or some columns of them, one row group at a time."""
        if self.path is None:
            return
        schema = pa.schema([ROWS.field(name) for name in columns])
        with pq.ParquetFile(self.path, pre_buffer=False) as file:
            # An earlier version may lack columns, as in objects of the ledgers.
            absent = [one for one in schema if one.name not in file.schema_arrow.names]
            for number in range(file.num_row_groups):
                rows = file.read_row_group(number, columns=[*columns], use_threads=False)
                for one in absent:
                    rows = rows.append_column(one, pa.nulls(rows.num_rows, one.type))
                yield rows.select(schema.names).cast(schema)


# -- reading --------------------------------------------------------------------------------------


async def read_states(lake: Lake, organization_id: str, columns: Sequence[str] = STATE) -> ConversationStates:
    """Return the last proof of every conversation of an organization, or some of its columns."""
    return (await read_state(lake, organization_id, columns)).states


async def read_state(
    lake: Lake, organization_id: str, columns: Sequence[str] = STATE, now: datetime | None = None
) -> LakeState:
    """Return the state that the ledgers, and the journals of runs under way or killed, add up to.

    Damaged objects are skipped and recorded in `lake.damaged`.

    Args:
        lake: The lake.
        organization_id: The organization of the conversations.
        columns: The columns of the entries, all by default; other columns are None.
        now: The time; entries that are later, because a clock was wrong, count as earlier than all others.

    Raises:
        StoreError: The store fails, or the temporary folder has no space.
    """
    needed = [*dict.fromkeys([*_NEEDED, "run_id", *columns])]
    try:
        with TemporaryDirectory(prefix="imbrace-checkpoint-") as folder:
            # Before the ledgers are listed: rows of journals closed meanwhile are seen twice, not missed.
            noted, shapes = await _read_journals(lake, needed)
            base = await _load_newest(lake, Path(folder), now)
            newer = await _list_after_checkpoint(lake, base)
            if len(newer) > MAX_AT_ONCE:
                base = await _merge(lake, base, newer, Path(folder), now)
                newer = []
            async for rows, found in _read_rows(lake, newer, needed):
                noted += rows
                shapes |= found
            return await asyncio.to_thread(
                _state_of, base, noted, organization_id, needed, base.shapes | shapes, now
            )
    except OSError as exc:
        raise StoreError(
            f"the state of {lake.url} cannot be merged ({exc.strerror or type(exc).__name__}): free space in"
            " the temporary folder (TMPDIR)"
        ) from exc


async def count_others(lake: Lake, organization_id: str) -> dict[str, int]:
    """Return the number of conversations of each other organization that has messages in the lake."""
    folders = map(organization_of, await lake.list_organizations())
    return {
        other: len((await read_state(lake, other, [])).ids()) for other in folders if other != organization_id
    }


def others_in_words(others: Mapping[str, int]) -> str:
    """Return the conversations of other organizations: ``120 of org_1 and 7 of org_2``."""
    return " and ".join(f"{count:,} of {printable(one)}" for one, count in others.items())


def _state_of(
    base: Checkpoint,
    noted: list[pa.Table],
    organization_id: str,
    columns: Sequence[str],
    shapes: frozenset[str],
    now: datetime | None,
) -> LakeState:
    """Return the state of an organization; empties the list of tables."""
    own = []
    for table in (*base.batches(columns), *noted):
        is_own = pc.equal(table.column("organization_id"), organization_id)
        rows = table if pc.all(is_own).as_py() else table.filter(is_own)
        if rows.num_rows:
            own.append(rows)
    noted.clear()
    proven, unproven = [], []
    ahead = sum(pc.sum(_is_ahead(table.column(AT), now)).as_py() or 0 for table in own)
    latest = _latest(own, now)
    while latest:
        table = latest.pop(0)
        has_proof = pc.is_valid(table.column("status"))
        unproven += table.column("conversation_id").filter(pc.invert(has_proof)).to_pylist()
        proven.append(table if pc.all(has_proof).as_py() else table.filter(has_proof))
    states = ConversationStates(pa.concat_tables(proven)) if proven else ConversationStates.empty()
    return LakeState(states, tuple(unproven), shapes, ahead)


async def _load_newest(lake: Lake, folder: Path, now: datetime | None) -> Checkpoint:
    """Download the newest checkpoint that is not damaged, and not ahead of the clock."""
    found = sorted((meta.key for meta in await lake.store.list(FOLDER)), reverse=True)
    # One that is ahead also claims to cover the ledger objects of later runs.
    keys = [key for key in found if not _is_key_ahead(key, now)]
    for number, key in enumerate(keys):
        path = folder / f"checkpoint-{number}"
        try:
            await lake.store.download(key, path)
            if await asyncio.to_thread(has_hash, key, path):
                return Checkpoint.load(path)
            problem = "it is damaged"
        except FileNotFoundError:
            continue  # another run has just written newer ones
        except StoreError as exc:
            if exc.is_transient:
                raise
            problem = str(exc)
        except (ValueError, LookupError, TypeError, OSError, pa.ArrowException):
            problem = "it is damaged"
        lake.skip_damaged(
            key, f"{lake.url}/{key} cannot be used ({problem}): delete it, runs write a new one"
        )
    return Checkpoint()


async def _list_after_checkpoint(lake: Lake, base: Checkpoint) -> list[ObjectMeta]:
    """Return the ledger objects that are not in a checkpoint."""
    found = []
    for ledger in READ:
        start_after = f"{ledger}/{base.since}" if base.since else ""
        objects = await lake.store.list(f"{ledger}/", start_after=start_after)
        found += [one for one in objects if one.key not in base.objects and one.key not in base.missed]
    missed = [await lake.store.head(key) for key in sorted(base.missed)]
    return [*found, *(one for one in missed if one is not None)]


async def _read_journals(lake: Lake, columns: Sequence[str]) -> tuple[list[pa.Table], frozenset[str]]:
    noted = [one for objects in (await list_journals(lake)).values() for one in objects]
    tables: list[pa.Table] = []
    shapes: frozenset[str] = frozenset()
    async for rows, found in _read_rows(lake, noted, columns):
        tables += rows
        shapes |= found
    return tables, shapes


async def _read_rows(
    lake: Lake, objects: Sequence[ObjectMeta], columns: Sequence[str]
) -> AsyncIterator[tuple[list[pa.Table], frozenset[str]]]:
    """Yield the content of ledger objects as rows of a checkpoint and as shapes, a few objects at a time."""
    schema = pa.schema([ROWS.field(name) for name in columns])
    for ledger, needed in (
        ("conversations", [*columns]),
        ("phones", ["organization_id", "conversation_ids"]),
        ("shapes", ["shape"]),
    ):
        own = [one for one in objects if ledger_of(one.key) == ledger]
        for group in groups_of(own, AT_A_TIME_BYTES):
            tables = await read_objects(lake, [one.key for one in group], needed)
            if ledger == "shapes":
                yield [], frozenset(one for table in tables for one in table.column("shape").to_pylist())
            elif ledger == "phones":
                yield [_linked_rows(table, schema) for table in tables], frozenset()
            else:
                yield [_state_rows(table, schema) for table in tables], frozenset()


def _state_rows(entries: pa.Table, schema: pa.Schema) -> pa.Table:
    """Return rows of the ledger `conversations` as rows of a checkpoint."""
    proofs = is_state(entries)
    if pc.all(proofs).as_py():
        return entries.cast(schema)
    # An id that may be a mistake does not become a conversation of the lake.
    is_real = pc.fill_null(pc.not_equal(entries.column("proof_method"), NEVER_FOUND), True)
    others = entries.filter(pc.and_(pc.invert(proofs), is_real))
    rows = _id_rows(others.column("organization_id"), others.column("conversation_id"), schema)
    return pa.concat_tables([entries.filter(proofs).cast(schema), rows])


def _linked_rows(phones: pa.Table, schema: pa.Schema) -> pa.Table:
    """Return the conversations in rows of the ledger `phones` as rows of a checkpoint."""
    phones = phones.combine_chunks()
    ids = pc.list_flatten(phones.column("conversation_ids"))
    organizations = phones.column("organization_id").take(
        pc.list_parent_indices(phones.column("conversation_ids"))
    )
    is_there = pc.is_valid(ids)
    return _id_rows(organizations.filter(is_there), ids.filter(is_there), schema)


def _id_rows(organizations: pa.ChunkedArray, ids: pa.ChunkedArray, schema: pa.Schema) -> pa.Table:
    """Return rows of conversations of which only the ids are known."""
    columns = dict(zip(SAME, (organizations, ids), strict=True))
    arrays = [columns[one.name] if one.name in SAME else pa.nulls(len(ids), one.type) for one in schema]
    return pa.Table.from_arrays(arrays, schema=schema)


def _is_key_ahead(key: str, now: datetime | None) -> bool:
    """Whether the time in the name of a checkpoint is ahead of the clock."""
    return now is not None and key > f"{FOLDER}{(now + CLOCK_SKEW).strftime(STAMP)}~"


def _is_ahead(times: pa.ChunkedArray, now: datetime | None) -> pa.ChunkedArray:
    """Return a mask of the times that are ahead of the clock."""
    if now is None:
        return pa.chunked_array([np.zeros(len(times), np.bool_)])
    return pc.fill_null(pc.greater(times, pa.scalar(now + CLOCK_SKEW, times.type)), False)


def _latest(tables: list[pa.Table], now: datetime | None) -> list[pa.Table]:
    """Return the last proof of each conversation, or its ids if it has none; empties the list of tables.

    Entries that are ahead of the clock count as earlier than all others, so that one run with a wrong clock
    does not hide the results of later runs.
    """
    if not tables:
        return []
    keys = pa.concat_tables([table.select([*SAME, AT]) for table in tables])
    keys = keys.append_column("row", pa.array(np.arange(keys.num_rows)))
    times = keys.column(AT)
    is_ahead = _is_ahead(times, now)
    if pc.any(is_ahead).as_py():
        milliseconds = times.cast(pa.int64())
        times = pc.if_else(is_ahead, pc.subtract(milliseconds, _LONG), milliseconds)
        keys = keys.set_column(keys.schema.get_field_index(AT), AT, times)
    kept = last_of_each(keys, SAME, AT).column("row").to_numpy()
    del keys
    found, start = [], 0
    while tables:
        table = tables.pop(0)
        begin, end = np.searchsorted(kept, [start, start + table.num_rows])
        start += table.num_rows
        if end - begin == table.num_rows:
            found.append(table)
        elif begin < end:
            found.append(table.take(pa.array(kept[begin:end] - start + table.num_rows)))
    return found


# -- writing --------------------------------------------------------------------------------------


async def write_checkpoint(lake: Lake, now: datetime) -> None:
    """Write a new checkpoint if there are many ledger objects after the last one.

    A checkpoint only saves time for later runs, so a failure to write it is only logged.
    """
    try:
        with TemporaryDirectory(prefix="checkpoint-", dir=lake.store.temporary_directory()) as folder:
            # Before the ledgers are listed: a run that closes after that has a journal now, or begins later.
            since = await _earliest_open(lake, now)
            base = await _load_newest(lake, Path(folder), now)
            newer = await _list_after_checkpoint(lake, base)
            if len([one for one in newer if one.key not in base.missed]) < MAX_AFTER_CHECKPOINT:
                return
            merged = await _merge(lake, base, newer, Path(folder), now, since=max(since, base.since))
            assert merged.path is not None  # noqa: S101 - narrows the type for mypy
            key = await asyncio.to_thread(named_by_hash, f"{FOLDER}{now.strftime(STAMP)}", merged.path)
            with suppress(ObjectExists):
                await lake.store.create(key, merged.path)
        keys = sorted(meta.key for meta in await lake.store.list(FOLDER))
        kept = [key for key in keys if key not in lake.damaged and not _is_key_ahead(key, now)]
        unneeded = {*keys} - {*kept[-KEPT_CHECKPOINTS:]}
        await run_bounded(len(unneeded), (partial(lake.store.delete, key) for key in unneeded))
    except (StoreError, OSError) as exc:
        reason = exc if isinstance(exc, StoreError) else exc.strerror or type(exc).__name__
        logger.warning("wrote no checkpoint reason=%s", reason)


async def _earliest_open(lake: Lake, now: datetime) -> str:
    """Return the time, as in the keys of objects, such that runs that began earlier add no more objects."""
    starts = [now]
    for run_id, objects in (await list_journals(lake)).items():
        started_at = min(meta.modified_at for meta in objects)
        with suppress(FileNotFoundError, ValueError, LookupError, TypeError, RecursionError):
            header: dict[str, Any] = json.loads(await lake.store.get(f"{JOURNAL}{run_id}/{HEADER}"))
            stated = datetime.fromisoformat(header["started_at"])
            # A time without a zone is not the header of a run.
            started_at = stated if stated.tzinfo is not None else started_at
        starts.append(started_at)
    return (min(starts) - LONGEST_RUN).strftime(STAMP)


async def _merge(
    lake: Lake,
    base: Checkpoint,
    objects: Sequence[ObjectMeta],
    folder: Path,
    now: datetime | None,
    *,
    since: str = "",
) -> Checkpoint:
    """Merge ledger objects into a checkpoint; neither needs to fit into memory."""
    merged, shapes = base, set(base.shapes)
    buckets = await asyncio.to_thread(_open_buckets, merged, folder)
    async for tables, found in _read_rows(lake, objects, STATE):
        shapes |= found
        await asyncio.to_thread(buckets.add, tables)
        if buckets.num_rows > _most_rows(merged):
            path = await asyncio.to_thread(_write_buckets, buckets, folder, {}, now)
            # Every run names the same conversations again, so merging now makes the buckets smaller.
            merged = Checkpoint(path, pq.read_metadata(path).num_rows)
            buckets = await asyncio.to_thread(_open_buckets, merged, folder)
    keys = {one.key for one in objects}
    missed = [key for key in keys if key in lake.damaged]
    covered = {*base.objects, *keys} - {*missed}
    covers = {
        "since": since,
        "objects": sorted(key for key in covered if key.partition("/")[2] >= since),
        "missed": sorted(missed),
        "shapes": sorted(shapes),
    }
    path = await asyncio.to_thread(_write_buckets, buckets, folder, {"covers": json.dumps(covers)}, now)
    return Checkpoint.load(path)


def _most_rows(base: Checkpoint) -> int:
    """Return the number of rows, with those of a checkpoint, from which on they are merged."""
    return base.rows + max(LEAST_MERGED, base.rows)


def _open_buckets(base: Checkpoint, folder: Path) -> Buckets:
    """Return buckets with the rows of a checkpoint, whose file is not needed afterwards."""
    count = min(MAX_BUCKETS, -(-_most_rows(base) // GROUP_ROWS))
    paths = [folder / f"bucket-{number}" for number in range(count)]
    buckets = Buckets(ROWS, "conversation_id", paths)
    buckets.add(base.batches())
    return buckets


def _write_buckets(buckets: Buckets, folder: Path, metadata: dict[str, str], now: datetime | None) -> Path:
    """Write the last proof of each conversation to a new file, and delete the buckets."""

    def groups() -> Iterator[list[pa.Table]]:
        pending: list[pa.Table] = []
        for number, path in enumerate(buckets.paths):
            pending += _latest([buckets.read(number)], now)
            path.unlink()
            if sum(table.num_rows for table in pending) >= GROUP_ROWS:
                yield [pa.concat_tables(pending)]
                pending = []
        if pending:
            yield [pa.concat_tables(pending)]

    buckets.close()
    path = folder / f"merged-{len([*folder.iterdir()])}"
    write_row_groups(path, groups(), ROWS, metadata, _OPTIONS)
    return path
