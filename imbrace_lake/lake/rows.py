"""The sorted rows of a conversation, in memory or, if there are many, in sorted files.

`SortBuffer` collects rows page by page. When the memory budget is exceeded, it sorts them and writes them to
a temporary file (a *sorted run*). At the end it merges the sorted runs, batch by batch. Because the pages
come newest first, sorted runs hardly overlap, and batches of only one or two are in memory at a time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import TypeAlias

import pyarrow as pa

from imbrace_lake.gateway.passes import OVERLAP
from imbrace_lake.lake.hashes import DIGEST, NO_HASH, content_hash, hash_sum
from imbrace_lake.lake.memory import Reservation
from imbrace_lake.lake.parquet import to_parquet, write_parquet
from imbrace_lake.lake.schema import SCHEMA
from imbrace_lake.lake.sorting import (
    SortedRun,
    Times,
    drop_repeats,
    in_order,
    merged,
    project,
    times_of,
    without_repeats,
)

_DAY = 24 * 60 * 60 * 1_000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

Keep: TypeAlias = Callable[[pa.Table], pa.ChunkedArray]
"""A function from rows to a mask of those to keep; it may use `created_at` only."""


class Rows:
    """Rows of `SCHEMA`, of a walk with digests, each message once, oldest first.

    Attributes:
        table: All rows; None if they are in files.
    """

    def __init__(
        self, table: pa.Table | None, sorted_runs: list[SortedRun], size_bytes: int, keep: Keep | None = None
    ) -> None:
        self.table = table
        self._size_bytes = size_bytes
        self._sorted_runs = sorted_runs
        self._keep = keep

    @classmethod
    def of(cls, table: pa.Table) -> Rows:
        """Return sorted rows that are in memory."""
        return cls(table, [], 0)

    def batches(self) -> Iterator[pa.Table]:
        """Yield all rows in their order, in batches."""
        if self.table is not None:
            yield self.table
            return
        for batch in merged(self._sorted_runs):
            yield batch if self._keep is None else batch.filter(self._keep(batch))

    def encode(self, reservation: Reservation, metadata: Mapping[str, str]) -> bytes | Path:
        """Encode the rows, without digests, as Parquet: in memory, or as a file of the reservation."""
        if self.table is not None:
            return to_parquet(self.table.select(SCHEMA.names), metadata)
        path = reservation.new_file()
        write_parquet(path, (batch.select(SCHEMA.names) for batch in self.batches()), metadata)
        return path

    @property
    def size_bytes(self) -> int:
        """The approximate size of the rows in memory, also if they are in files."""
        # Not `nbytes`, which measures the slice of each buffer and takes 40 µs.
        return self._size_bytes if self.table is None else self.table.get_total_buffer_size()

    @property
    def num_rows(self) -> int:
        """The number of rows."""
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
        """Yield the number of messages created on each day, UTC; a day can occur more than once."""
        first = _EPOCH.date()
        for times in self.times():
            days = Counter((times // _DAY).tolist())
            yield from ((first + timedelta(day), count) for day, count in days.items())

    def times(self) -> Iterator[Times]:
        """Yield the times of all messages that have one, in batches."""
        for rows in self._columns(["created_at"]):
            yield times_of(rows)

    @cached_property
    def _facts(self) -> _Facts:
        count, total = 0, NO_HASH
        times: list[int] = []
        for rows in self._columns(["created_at", DIGEST]):
            count += rows.num_rows
            total = hash_sum([total, content_hash(rows)])
            if len(found := times_of(rows)):
                times += int(found.min()), int(found.max())
        if not times:
            return _Facts(count, total, None, None)
        first, last = (_EPOCH + timedelta(milliseconds=one) for one in (min(times), max(times)))
        return _Facts(count, total, first, last)

    def _columns(self, names: list[str]) -> Iterator[pa.Table]:
        """Yield all rows with at least these columns, which must include `created_at`."""
        if self.table is not None:
            yield self.table
            return
        for rows in project(self._sorted_runs, names):
            yield rows if self._keep is None else rows.filter(self._keep(rows))


@dataclass(frozen=True, slots=True)
class _Facts:
    """The number, content hash and span of time of rows."""

    count: int
    content_hash: str
    first_at: datetime | None
    last_at: datetime | None


class SortBuffer:
    """Collects rows in any order and returns them sorted, each message once.

    Args:
        reservation: The memory budget, with a folder for sorted runs.
    """

    def __init__(self, reservation: Reservation) -> None:
        self._reservation = reservation
        self._pending: list[pa.Table] = []
        self._reserved_bytes = 0
        self._size_bytes = 0
        self._sorted_runs: list[SortedRun] = []

    @property
    def is_spilled(self) -> bool:
        """Whether some rows are in files, so that sorting them takes long."""
        return bool(self._sorted_runs)

    def add(self, rows: pa.Table) -> None:
        """Add rows; of versions with the same `updated_at`, the one that was added last counts."""
        self._pending.append(rows)
        size_bytes = rows.get_total_buffer_size()
        self._reserved_bytes += size_bytes
        self._size_bytes += size_bytes
        self._reservation.reserve(size_bytes)
        if self._reservation.should_spill:
            self._spill()

    def clear(self) -> None:
        """Remove all rows."""
        self._pending, self._sorted_runs = [], []
        self._reservation.reserve(-self._reserved_bytes)
        self._reserved_bytes = self._size_bytes = 0

    def rows(self, keep: Keep | None = None, *, distinct: int | None = None) -> Rows:
        """Return each message in the version updated last, or else read last; not for an empty buffer.

        Args:
            keep: Selects from these rows; all by default.
            distinct: The number of different messages, if known.
        """
        if not self._sorted_runs:
            table = self._sorted(distinct)
            return Rows.of(table if keep is None else table.filter(keep(table)))
        self._spill()
        drop_repeats(self._sorted_runs)
        return Rows(None, self._sorted_runs, self._size_bytes, keep)

    def _sorted(self, distinct: int | None = None) -> pa.Table:
        # The first page has the newest rows, so reversed pages nearly always are sorted, except for repeats.
        table = pa.concat_tables(_without_overlaps(self._pending[::-1]))
        return in_order(table if distinct == table.num_rows else without_repeats(table, is_latest_first=True))

    def _spill(self) -> None:
        if any(rows.num_rows for rows in self._pending):
            self._sorted_runs.append(SortedRun.write(self._reservation.new_file(), self._sorted()))
        self._pending = []
        self._reservation.reserve(-self._reserved_bytes)
        self._reserved_bytes = 0


def _without_overlaps(tables: Sequence[pa.Table]) -> Iterator[pa.Table]:
    """Yield tables, oldest first, each without the rows at its end that the next one begins with.

    The pages of a list that did not move then have each message once, without a comparison of all rows.
    """
    for older, newer in pairwise(tables):
        shared = 0
        # Rows of a rewritten part have no digests.
        if DIGEST in newer.schema.names:
            ends = older.column(DIGEST).slice(max(0, older.num_rows - OVERLAP)).to_pylist()
            begins = newer.column(DIGEST).slice(0, OVERLAP).to_pylist()
            counts = range(len(ends), 0, -1)
            shared = next((count for count in counts if ends[-count:] == begins[:count]), 0)
        yield older.slice(0, older.num_rows - shared)
    yield from tables[-1:]
