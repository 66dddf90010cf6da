"""The rows of a conversation in their order, in memory or, where they are many, in sorted files.

What is read is collected page by page. When the process holds too much, it is sorted and written to
a temporary file (a *run*). At the end the runs are merged, batch by batch: an ordinary external
sort, but that the pages come newest first, so that runs hardly overlap and one or two are open.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from imbrace_lake.lake.hashes import DIGEST, NO_HASH, content_hash, hash_sum
from imbrace_lake.lake.parquet import to_parquet, write_parquet
from imbrace_lake.lake.room import Room
from imbrace_lake.lake.schema import SCHEMA, in_order, without_repeats
from imbrace_lake.store.contract import Made

# Of a batch that is read from a file. It is small because runs that were made slice by slice overlap,
# and then all of them are open.
BATCH_ROWS = 4_096
BATCH_BYTES = 2**18
# Of rows that another process may encode. Longer ones are encoded without the interpreter's lock anyway.
MOST_PORTABLE_BYTES = 2**21
# Ids that are looked at together for the version that counts.
MOST_REPEATED = 100_000
_DAY = 24 * 60 * 60 * 1_000
_EPOCH = date(1970, 1, 1)
_LAST = np.iinfo(np.int64).max

Keep: TypeAlias = Callable[[pa.Table], pa.ChunkedArray]
"""Rows to a mask of those that are meant; it may look at `created_at` only."""
_Key: TypeAlias = tuple[int, str]


class Rows:
    """Rows of `SCHEMA`, those of a walk with digests, each message once, oldest first.

    Attributes:
        table: All of them; None where they are in files.
    """

    def __init__(
        self, table: pa.Table | None, runs: list[_Run], size_bytes: int, keep: Keep | None = None
    ) -> None:
        self.table = table
        self._size_bytes = size_bytes
        self._runs = runs
        self._keep = keep

    @classmethod
    def of(cls, table: pa.Table) -> Rows:
        """Rows that are in memory, in order."""
        return cls(table, [], 0)

    def batches(self) -> Iterator[pa.Table]:
        """All rows in their order, some at a time."""
        if self.table is not None:
            yield self.table
            return
        for batch in _merged(self._runs):
            yield batch if self._keep is None else batch.filter(self._keep(batch))

    def body(self, room: Room, metadata: Mapping[str, str]) -> Made:
        """A Parquet file of them, without digests, that is made when it is written."""
        if self.table is not None:
            rows = self.table.select(SCHEMA.names)
            is_portable = self.size_bytes <= MOST_PORTABLE_BYTES
            return Made(_Encoding(rows, dict(metadata)), is_portable=is_portable)
        path = room.new_file()

        def write() -> Path:
            write_parquet(path, (batch.select(SCHEMA.names) for batch in self.batches()), metadata)
            return path

        return Made(write)

    @property
    def size_bytes(self) -> int:
        """About what they take in memory, or would take."""
        return self._size_bytes if self.table is None else self.table.nbytes

    @property
    def num_rows(self) -> int:
        """How many they are."""
        return self._facts.count

    @property
    def content_hash(self) -> str:
        """The sum of their digests."""
        return self._facts.content_hash

    @property
    def first_at(self) -> datetime | None:
        """The earliest time of a message; None if none has a time."""
        return self._facts.first_at

    @property
    def last_at(self) -> datetime | None:
        """The latest time of a message; None if none has a time."""
        return self._facts.last_at

    def days(self) -> Iterator[tuple[date, int]]:
        """How many messages were created on each day, UTC; a day can come more than once."""
        for rows in self._columns(["created_at"]):
            times = rows.column("created_at").drop_null().cast(pa.int64()).to_numpy()
            days = Counter((times // _DAY).tolist())
            yield from ((_EPOCH + timedelta(day), count) for day, count in days.items())

    @cached_property
    def _facts(self) -> _Facts:
        facts = _Facts()
        for rows in self._columns(["created_at", DIGEST]):
            facts.add(rows)
        return facts

    def _columns(self, names: list[str]) -> Iterator[pa.Table]:
        """Some columns at least, `created_at` among them, of all rows."""
        if self.table is not None:
            yield self.table
            return
        for rows in _light(self._runs, names):
            yield rows if self._keep is None else rows.filter(self._keep(rows))


@dataclass(frozen=True)
class _Encoding:
    """Encodes rows; pickled, it has them as Arrow's stream, in a sixth of the time of a pickled table."""

    rows: pa.Table
    metadata: dict[str, str]

    def __call__(self) -> bytes:
        return to_parquet(self.rows, self.metadata)

    def __reduce__(self) -> tuple[Callable[[bytes, dict[str, str]], _Encoding], tuple[bytes, dict[str, str]]]:
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, self.rows.schema) as writer:
            writer.write_table(self.rows)
        return _unpickled, (sink.getvalue().to_pybytes(), self.metadata)


def _unpickled(stream: bytes, metadata: dict[str, str]) -> _Encoding:
    with pa.ipc.open_stream(stream) as reader:
        return _Encoding(reader.read_all(), metadata)


@dataclass(slots=True)
class _Facts:
    """What is said of rows as a whole."""

    count: int = 0
    content_hash: str = NO_HASH
    first_at: datetime | None = None
    last_at: datetime | None = None

    def add(self, rows: pa.Table) -> None:
        self.count += rows.num_rows
        self.content_hash = hash_sum([self.content_hash, content_hash(rows)])
        # In order, and without a time last.
        times = rows.column("created_at")
        if count := len(times) - times.null_count:
            first, last = times[0].as_py(), times[count - 1].as_py()
            self.first_at = first if self.first_at is None else min(self.first_at, first)
            self.last_at = last if self.last_at is None else max(self.last_at, last)


class Collector:
    """Takes rows as they come, a message in several versions too, and gives them in order.

    Args:
        room: Where they are held.
    """

    def __init__(self, room: Room) -> None:
        self._room = room
        self._held: list[pa.Table] = []
        self._held_bytes = 0
        self._size_bytes = 0
        self._runs: list[_Run] = []

    @property
    def is_spilled(self) -> bool:
        """Whether some of it is in files, so that putting it in order takes a while."""
        return bool(self._runs)

    def add(self, rows: pa.Table) -> None:
        """Take rows with digests; of versions with one `updated_at` those that come last count."""
        self._held.append(rows)
        # Not `nbytes`, which looks at each column's part of its buffers and takes 40 µs.
        size_bytes = rows.get_total_buffer_size()
        self._held_bytes += size_bytes
        self._size_bytes += size_bytes
        self._room.hold(size_bytes)
        if self._room.is_crowded:
            self._spill()

    def clear(self) -> None:
        """Forget what was added."""
        self._held, self._runs = [], []
        self._room.hold(-self._held_bytes)
        self._held_bytes = self._size_bytes = 0

    def rows(self, keep: Keep | None = None, *, distinct: int | None = None) -> Rows:
        """What was added, something at least: each message in the version updated last, or else read last.

        Args:
            keep: Of these versions those that are meant; all by default.
            distinct: How many different messages were added, if that is known.
        """
        if not self._runs:
            table = self._sorted(distinct)
            return Rows.of(table if keep is None else table.filter(keep(table)))
        self._spill()
        _drop_repeats(self._runs)
        return Rows(None, self._runs, self._size_bytes, keep)

    def _sorted(self, distinct: int | None = None) -> pa.Table:
        # What was read first is newest, and so they nearly always are in order, but for repeats.
        table = pa.concat_tables(reversed(self._held))
        is_once = distinct == table.num_rows
        return in_order(table if is_once else without_repeats(table, is_latest_first=True))

    def _spill(self) -> None:
        if any(rows.num_rows for rows in self._held):
            self._runs.append(_Run.write(self._room.new_file(), self._sorted()))
        self._held = []
        self._room.hold(-self._held_bytes)
        self._held_bytes = 0


# -- runs -----------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Run:
    """A file of rows in their order, each message once.

    Attributes:
        first: The key of its first row.
        dropped: Places of rows that count no more, in order.
    """

    path: Path
    first: _Key
    dropped: npt.NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))

    @classmethod
    def write(cls, path: Path, rows: pa.Table) -> _Run:
        most = max(1, min(BATCH_ROWS, BATCH_BYTES * rows.num_rows // max(1, rows.nbytes)))
        options = pa.ipc.IpcWriteOptions(compression="lz4", use_threads=False)
        with (
            pa.OSFile(str(path), "wb") as file,
            pa.ipc.new_file(file, rows.schema, options=options) as writer,
        ):
            writer.write_table(rows, max_chunksize=most)
        return cls(path, _key(rows, 0))

    def batches(self, columns: list[str] | None = None) -> Iterator[pa.Table]:
        """Its rows, or some columns of them, that still count."""
        first = 0
        for batch in self._all(columns):
            begin, end = np.searchsorted(self.dropped, [first, first + batch.num_rows])
            if begin < end:
                counts = np.ones(batch.num_rows, dtype=np.bool_)
                counts[self.dropped[begin:end] - first] = False
                yield batch.filter(pa.array(counts))
            else:
                yield batch
            first += batch.num_rows

    def _all(self, columns: list[str] | None) -> Iterator[pa.Table]:
        # Not mapped into memory, where pages of the file would count as the process's own.
        with pa.OSFile(str(self.path)) as file:
            with pa.ipc.open_file(file) as reader:
                schema = reader.schema
            fields = [schema.names.index(name) for name in columns] if columns else None
            options = pa.ipc.IpcReadOptions(use_threads=False, included_fields=fields)
            with pa.ipc.open_file(file, options=options) as reader:
                for number in range(reader.num_record_batches):
                    yield pa.Table.from_batches([reader.get_batch(number)])


def _light(runs: Iterable[_Run], columns: list[str]) -> Iterator[pa.Table]:
    for run in runs:
        yield from run.batches(columns)


def _drop_repeats(runs: list[_Run]) -> None:
    """Let of each message that is in several runs one version count.

    Keeps eight bytes a row, and looks at what repeats `MOST_REPEATED` ids at a time: of a list that
    was read twice, everything does.
    """
    hashes = np.concatenate([_hashes(rows) for rows in _light(runs, ["message_id"])])
    hashes.sort()
    # Ids with one hash for two are looked at as well, and turn out to be no repeats.
    repeated = np.unique(hashes[1:][hashes[1:] == hashes[:-1]])
    del hashes
    dropped: list[list[npt.NDArray[np.int64]]] = [[] for _ in runs]
    for begin in range(0, len(repeated), MOST_REPEATED):
        for number, places in enumerate(_outdated(runs, repeated[begin : begin + MOST_REPEATED])):
            dropped[number].append(places)
    for run, parts in zip(runs, dropped, strict=True):
        if parts:
            run.dropped = np.sort(np.concatenate(parts))


def _outdated(runs: list[_Run], repeated: npt.NDArray[np.int64]) -> list[npt.NDArray[np.int64]]:
    """For each run the places of versions that do not count, of the ids with these hashes."""
    found = []
    for number, run in enumerate(runs):
        first = 0
        for rows in run.batches(["message_id", "updated_at"]):
            hashes = _hashes(rows)
            place = np.minimum(np.searchsorted(repeated, hashes), len(repeated) - 1)
            own = np.flatnonzero(repeated[place] == hashes)
            if len(own):
                versions = rows.take(pa.array(own))
                versions = versions.append_column("run", pa.array(np.full(len(own), number)))
                found.append(versions.append_column("place", pa.array(own + first)))
            first += rows.num_rows
    versions = pa.concat_tables(found)
    every = pa.array(np.arange(versions.num_rows))
    versions = versions.append_column("row", every)
    kept = without_repeats(versions).column("row")
    versions = versions.filter(pc.invert(pc.is_in(every, kept.combine_chunks())))
    owner, places = versions.column("run").to_numpy(), versions.column("place").to_numpy()
    return [places[owner == number] for number in range(len(runs))]


def _hashes(rows: pa.Table) -> npt.NDArray[np.int64]:
    return np.fromiter(map(hash, rows.column("message_id").to_pylist()), np.int64, rows.num_rows)


# -- the merge ------------------------------------------------------------------------------------


class _Stream:
    """A run that is being merged: its next rows, and whether others come after these."""

    def __init__(self, run: _Run) -> None:
        self._batches = (batch for batch in run.batches() if batch.num_rows)
        self._after = next(self._batches, None)
        self.rows: pa.Table | None = None
        self.advance()

    def advance(self) -> None:
        """Go on to the next rows; none when the run is at its end."""
        self.rows = self._after
        self._after = next(self._batches, None)
        if self.rows is not None:
            self.last = _key(self.rows, self.rows.num_rows - 1)

    @property
    def limit(self) -> _Key | None:
        """Beyond this its further rows are not known; None if there are none."""
        return self.last if self._after is not None else None

    def take(self, limit: _Key | None) -> pa.Table:
        """Take the rows up to a key, all by default."""
        assert self.rows is not None  # noqa: S101 - told to the type checker
        count = self.rows.num_rows if limit is None or self.last <= limit else _count_to(self.rows, limit)
        taken = self.rows.slice(0, count)
        if count == self.rows.num_rows:
            self.advance()
        else:
            self.rows = self.rows.slice(count)
        return taken


def _merged(runs: Iterable[_Run]) -> Iterator[pa.Table]:
    """The rows of all runs in one order; a run is opened when its first row is due."""
    waiting = sorted(runs, key=lambda run: run.first, reverse=True)
    streams: list[_Stream] = []
    while streams or waiting:
        if not streams:
            streams.append(_Stream(waiting.pop()))
        limit = min((one.limit for one in streams if one.limit is not None), default=None)
        while waiting and (limit is None or waiting[-1].first <= limit):
            opened = _Stream(waiting.pop())
            streams.append(opened)
            limit = min((key for key in (limit, opened.limit) if key is not None), default=None)
        taken = [one.take(limit) for one in streams if one.rows is not None]
        streams = [one for one in streams if one.rows is not None]
        filled = [rows for rows in taken if rows.num_rows]
        if filled:
            yield filled[0] if len(filled) == 1 else in_order(pa.concat_tables(filled))


def _key(rows: pa.Table, place: int) -> _Key:
    """Where a row stands in the order; those without a time come last."""
    moment = rows.column("created_at")[place]
    return moment.value if moment.is_valid else _LAST, rows.column("message_id")[place].as_py()


def _count_to(rows: pa.Table, limit: _Key) -> int:
    """How many of the sorted rows have a key up to a limit."""
    times = pc.fill_null(rows.column("created_at").cast(pa.int64()), _LAST).to_numpy()
    begin, end = np.searchsorted(times, limit[0], "left"), np.searchsorted(times, limit[0], "right")
    ids = rows.column("message_id").slice(begin, end - begin).to_pylist()
    count: int = begin + sum(one <= limit[1] for one in ids)
    return count
