"""What is known: input numbers, conversations and runs, as append-only Parquet beside the messages.

While a run is under way it writes what it has done into `journal/<run>/`; when it ends, one object
a ledger is made of that and the journal goes. A killed run leaves its journal, and whoever asks for
the state of a conversation reads ledgers and journals alike.

How conversations stand is noted as lines of JSON, for it is noted often and a few at a time; all
else is Parquet. The name of an object ends with the hash of its content, so a copy that differs shows.
"""

from __future__ import annotations

import asyncio
import io
import logging
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from hashlib import sha256
from itertools import islice
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from imbrace_lake.errors import ObjectExists, StoreError
from imbrace_lake.lake.entries import (
    LEDGER_SCHEMAS,
    ConversationEntry,
    Ledger,
    RunTotals,
    empty_ledger,
    entry_line,
    rows_of_lines,
    run_row,
)
from imbrace_lake.lake.lake import Lake
from imbrace_lake.lake.parquet import encode
from imbrace_lake.store.contract import Stored

logger = logging.getLogger(__name__)

# What makes two rows of one run's journal the same thing written twice, and by which of its times the
# later one is found, which counts: an earlier attempt of the run may have left some as well.
_SAME = {
    "phones": ["position"],
    "conversations": ["organization_id", "conversation_id"],
    "revisions": ["conversation_id", "message_id", "last_changed_at"],
    "shapes": ["shape"],
}
_LATEST = {
    "phones": "resolved_at",
    "conversations": "finished_at",
    "revisions": "replaced_at",
    "shapes": "seen_at",
}
JOURNALED: tuple[Ledger, ...] = ("phones", "conversations", "revisions", "shapes")
JOURNAL = "journal/"
# So much of a journal becomes one object; in memory it is some ten times as much.
GROUP_BYTES = 4 * 2**20
LINES = ".jsonl"
READ_AT_A_TIME = 64
ROWS_AT_A_TIME = 4_096
# In the journal of each run, what it says of itself (resume.py).
HEADER = "run.json"
# Likewise, which conversations it found.
FOUND = "found"


@dataclass(slots=True)
class PublishedJournal:
    """The ledger objects of one run.

    Attributes:
        keys: Their keys.
        statuses: Rows by status, for the ledgers that have one.
    """

    keys: list[str] = field(default_factory=list)
    statuses: dict[Ledger, Counter[str]] = field(
        default_factory=lambda: {"phones": Counter(), "conversations": Counter()}
    )


class Journal:
    """What one run writes down while it is under way, and the ledger objects it ends with."""

    def __init__(self, lake: Lake, run_id: str, started_at: datetime) -> None:
        self.run_id = run_id
        self._lake = lake
        self._started_at = started_at
        self._prefix = f"{JOURNAL}{run_id}/"
        self._noted: dict[tuple[Ledger, str], str] = {}

    async def note(self, ledger: Ledger, name: str, rows: pa.Table) -> None:
        """Write rows down under a name; the same name again replaces them."""
        await self._note(ledger, name, _to_bytes(rows), ".parquet")

    async def note_entries(self, name: str, entries: Iterable[ConversationEntry]) -> None:
        """Write entries of `conversations` under a name; the same name again replaces them."""
        await self.note_lines(name, map(entry_line, entries))

    async def note_lines(self, name: str, lines: Iterable[bytes]) -> None:
        """Write entries of `conversations`, each a line of `entry_line`, as `note_entries` does."""
        await self._note("conversations", name, b"\n".join(lines), LINES)

    async def note_found(self, conversation_ids: Iterable[str]) -> None:
        """Write down which conversations the run found, so that none of them is lost if it is killed."""
        body = _to_bytes(pa.table({"conversation_id": pa.array(conversation_ids, pa.string())}))
        await self._lake.store.put(named_by_hash(f"{self._prefix}{FOUND}/ids", body), body)

    async def _note(self, ledger: Ledger, name: str, body: bytes, suffix: str) -> None:
        key = named_by_hash(f"{self._prefix}{ledger}/{name}", body, suffix)
        await self._lake.store.put(key, body)
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
        """Make ledger objects of all that was noted: one object per ledger, or several if it is large.

        Readers see rows twice meanwhile, never not at all. Killed in between, another run does it again.
        """
        noted = await self._lake.store.list(self._prefix)
        published = PublishedJournal()
        for ledger in JOURNALED:
            own = [stored for stored in noted if stored.key.startswith(f"{self._prefix}{ledger}/")]
            async for rows in self._latest(ledger, own):
                published.keys.append(await self.add(ledger, rows))
                if ledger in published.statuses:
                    published.statuses[ledger].update(rows.column("status").to_pylist())
        return published

    async def finish(self, row: Mapping[str, Any], totals: RunTotals, published: PublishedJournal) -> None:
        """Add the run's row to `runs`, which says that the run has ended.

        Args:
            row: The run as a row of `runs`, without its `objects`.
            totals: Of the run.
            published: The objects of the other ledgers.
        """
        await self.add("runs", run_row({**row, "objects": published.keys}, totals))

    async def _latest(self, ledger: Ledger, own: Sequence[Stored]) -> AsyncIterator[pa.Table]:
        """What was noted, only the latest row of each thing, so much of it at a time as fits into memory."""
        groups = [[stored.key for stored in group] for group in _groups(own)]
        same, at = _SAME[ledger], _LATEST[ledger]
        marks = None
        if len(groups) > 1:
            light = [
                table for group in groups for table in await read_objects(self._lake, group, [*same, at])
            ]
            marks = _marks(last_of_each(pa.concat_tables(light), same, at), same, at)
        for group in groups:
            # None of them is left where two runs close the journal of a third.
            rows = pa.concat_tables([empty_ledger(ledger), *await read_objects(self._lake, group)])
            rows = rows if marks is None else rows.filter(pc.is_in(_marks(rows, same, at), marks))
            if rows.num_rows:
                yield last_of_each(rows, same, at)

    async def drop(self) -> None:
        """Remove the journal, whose content is in the ledgers."""
        noted = [stored.key for stored in await self._lake.store.list(self._prefix)]
        # The header last: a journal without one belongs to nobody.
        header = f"{self._prefix}{HEADER}"
        await asyncio.gather(*(self._lake.store.delete(key) for key in noted if key != header))
        await self._lake.store.delete(header)

    async def add(self, ledger: Ledger, rows: pa.Table) -> str:
        """Add one object to a ledger and return its key."""
        body = _to_bytes(rows)
        stamp = self._started_at.strftime("%Y%m%dT%H%M%SZ")
        key = named_by_hash(f"{ledger}/{stamp}-{self.run_id}", body)
        # The name holds the content's hash, so what is there already is this very object.
        with suppress(ObjectExists):
            await self._lake.store.put_new(key, body)
        return key


def _marks(rows: pa.Table, same: list[str], at: str) -> pa.Array:
    """One text a row that tells which thing it speaks of, as of when."""
    names = [rows.column(name).cast(pa.string()) for name in same]
    moments = rows.column(at).cast(pa.int64()).cast(pa.string())
    marks = pc.binary_join_element_wise(*names, moments, "\0", null_handling="replace")
    return marks.combine_chunks()


def _groups(objects: Sequence[Stored]) -> Iterator[list[Stored]]:
    """Objects by groups that fit into memory."""
    group: list[Stored] = []
    size_bytes = 0
    for stored in objects:
        # Lines hold less than half of the rows that Parquet of that size does.
        size = stored.size_bytes * 2 // 5 if stored.key.endswith(LINES) else stored.size_bytes
        if group and size_bytes + size > GROUP_BYTES:
            yield group
            group, size_bytes = [], 0
        group.append(stored)
        size_bytes += size
    if group:
        yield group


def last_of_each(rows: pa.Table, same: list[str], at: str) -> pa.Table:
    """Of rows that are equal in the columns `same` the one whose time `at` is latest, or else comes last.

    They stay in their order. Arrow's own grouping takes 600 bytes a row.
    """
    times = rows.column(at).cast(pa.int64()).fill_null(np.iinfo(np.int64).min).to_numpy()
    keys = np.fromiter(map(hash, _tuples(rows.select(same))), np.int64, rows.num_rows)
    order = np.lexsort((times, keys))
    is_other = keys[order][1:] != keys[order][:-1]
    if is_other.all():
        return rows
    # Where several have one hash, the last of each kind; nearly always they are of one kind.
    is_single = np.append(True, is_other) & np.append(is_other, True)
    several = order[~is_single]
    last = dict(zip(_tuples(rows.select(same).take(pa.array(several))), several.tolist(), strict=True))
    return rows.take(pa.array(np.sort(np.append(order[is_single], [*last.values()]).astype(np.int64))))


def _tuples(rows: pa.Table) -> Iterator[tuple[Any, ...]]:
    """The rows as tuples of values, made some at a time."""
    for batch in rows.to_batches(max_chunksize=ROWS_AT_A_TIME):
        yield from zip(*(column.to_pylist() for column in batch.columns), strict=True)


def named_by_hash(name: str, body: bytes, suffix: str = ".parquet") -> str:
    """A key that tells when the object is not what was written."""
    return f"{name}-{sha256(body).hexdigest()[:16]}{suffix}"


def is_intact(key: str, body: bytes) -> bool:
    """Whether a ledger's object is what its name says; the journal's headers say nothing of it."""
    name, suffix = key.rpartition("-")[0], PurePosixPath(key).suffix
    return suffix == ".json" or key == named_by_hash(name, body, suffix)


def _to_bytes(rows: pa.Table) -> bytes:
    few_values = ["run_id", "organization_id", "status", "reason", "proof_method"]
    return encode(rows, {}, compression="zstd", use_dictionary=few_values)


async def read_objects(
    lake: Lake, keys: Iterable[str], columns: Sequence[str] | None = None
) -> list[pa.Table]:
    """Read ledger objects, each in one request; many rows to a table.

    Raises:
        StoreError: One is not what was written; the message names it.
    """

    async def read(key: str) -> pa.Table | None:
        try:
            body = await lake.store.get(key)
        except FileNotFoundError:
            return None  # a journal that its run has just turned into a ledger object
        if not is_intact(key, body):
            raise StoreError(f"{lake.url}/{key} differs from the hash in its name: restore it from a copy")
        if key.endswith(LINES):
            rows = rows_of_lines(body)
            return rows if columns is None else rows.select(columns)
        schema = LEDGER_SCHEMAS[_ledger_of(key)]
        if columns is not None:
            schema = pa.schema([schema.field(name) for name in columns])
        return pq.read_table(io.BytesIO(body), schema=schema, columns=columns)

    tables = []
    remaining = iter(keys)
    while some := [*islice(remaining, READ_AT_A_TIME)]:
        found = [table for table in await asyncio.gather(*map(read, some)) if table is not None]
        if found:
            # A table of few rows takes several times what they need, and a journal has thousands.
            tables.append(pa.concat_tables(found).combine_chunks() if len(found) > 1 else found[0])
    return tables


def _ledger_of(key: str) -> str:
    return key.split("/")[2 if key.startswith(JOURNAL) else 0]


async def list_ledger(lake: Lake, ledger: Ledger) -> list[str]:
    """The objects with a ledger's rows, those of runs under way or killed included."""
    # Journals first: what a run closes between the two listings is then seen twice, never not at all.
    journals = [stored.key for stored in await lake.store.list(JOURNAL)]
    objects = [stored.key for stored in await lake.store.list(f"{ledger}/")]
    return [*objects, *(key for key in journals if f"/{ledger}/" in key)]


async def read_ledger(lake: Lake, ledger: Ledger, *, columns: Sequence[str] | None = None) -> pa.Table:
    """All rows of a ledger, those of runs under way or killed included."""
    journals = await read_noted(lake, ledger, columns)
    objects = [stored.key for stored in await lake.store.list(f"{ledger}/")]
    tables = [*await read_objects(lake, objects, columns), *journals]
    return pa.concat_tables(tables) if tables else empty_ledger(ledger, columns)


async def read_run(lake: Lake, ledger: Ledger, run_id: str) -> pa.Table:
    """The rows that one run has in a ledger, be it under way, killed or ended."""
    keys = [key for key in await list_ledger(lake, ledger) if _is_of_run(key, run_id)]
    return pa.concat_tables([empty_ledger(ledger), *await read_objects(lake, keys)])


async def knows_run(lake: Lake, run_id: str) -> bool:
    """Whether a run has left anything in the ledgers or a journal."""
    folders = ("runs/", "conversations/", "phones/", f"{JOURNAL}{run_id}/")
    listings = [await lake.store.list(folder) for folder in folders]
    return any(_is_of_run(stored.key, run_id) for listing in listings for stored in listing)


def _is_of_run(key: str, run_id: str) -> bool:
    return key.startswith(f"{JOURNAL}{run_id}/") or (not key.startswith(JOURNAL) and f"Z-{run_id}-" in key)


async def read_found(lake: Lake, run_id: str) -> list[str] | None:
    """The conversations that a run found, all attempts together, as its journal has them.

    Returns:
        Their ids, each once; None if the run had not found them all when it was last alive, or if what
        it wrote down is damaged.
    """
    ids: dict[str, None] = {}
    found = await lake.store.list(f"{JOURNAL}{run_id}/{FOUND}/")
    for stored in found:
        try:
            body = await lake.store.get(stored.key)
        except FileNotFoundError:
            return None  # another run has just closed this journal
        if not is_intact(stored.key, body):
            logger.warning("%s/%s is damaged: what run %s found is not known", lake.url, stored.key, run_id)
            return None
        ids |= dict.fromkeys(pq.read_table(io.BytesIO(body)).column("conversation_id").to_pylist())
    return list(ids) if found else None


async def read_noted(lake: Lake, ledger: Ledger, columns: Sequence[str] | None = None) -> list[pa.Table]:
    """What runs under way or killed have noted for a ledger.

    To be read before the ledger is listed: what a run closes meanwhile is then seen twice at most,
    never not at all.
    """
    noted = [stored.key for stored in await lake.store.list(JOURNAL) if _ledger_of(stored.key) == ledger]
    return await read_objects(lake, noted, columns)
