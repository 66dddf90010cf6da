"""Sort rows and keep the last version of each message, in memory or with an external merge sort.

The external sort writes rows to sorted temporary files (*sorted runs*) and merges these.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

# The size of a batch in a file. Small, because sorted runs that were made slice by slice overlap, so that a
# batch of each is in memory at once.
BATCH_ROWS = 4_096
BATCH_BYTES = 2**18
# The most repeated ids to compare at a time.
MAX_REPEATED = 100_000
_LAST = np.iinfo(np.int64).max

Times: TypeAlias = npt.NDArray[np.int64]
"""Times in milliseconds since 1970."""
_Key: TypeAlias = tuple[int, str]


def times_of(rows: pa.Table) -> Times:
    """Return the `created_at` of rows, without those that are null."""
    # Views of the buffers, because a cast of the column takes longer than what is done with the times.
    chunks = [chunk.drop_null().view(pa.int64()).to_numpy() for chunk in rows.column("created_at").chunks]
    return chunks[0] if len(chunks) == 1 else np.concatenate([np.empty(0, np.int64), *chunks])


def in_order(table: pa.Table) -> pa.Table:
    """Sort rows as in a part, by `created_at` and `message_id`, with rows without a time last."""
    if _is_in_order(table):
        # True nearly always, and copying all columns would take a tenth of the time that rows take in all.
        return table.combine_chunks()
    order = pc.sort_indices(table, sort_keys=[("created_at", "ascending"), ("message_id", "ascending")])
    return table.take(order).combine_chunks()


def _is_in_order(table: pa.Table) -> bool:
    times = times_of(table)
    if len(times) < table.num_rows or (times[1:] < times[:-1]).any():
        return False
    ids = table.column("message_id")
    return all(
        ids[index].as_py() <= ids[index + 1].as_py()
        for index in np.flatnonzero(times[1:] == times[:-1]).tolist()
    )


def without_repeats(table: pa.Table, *, is_latest_first: bool = False) -> pa.Table:
    """Return each message once, in the version that was updated last, or else read last.

    Args:
        table: Rows in the order in which they were read.
        is_latest_first: The rows are in the reverse order.
    """
    ids = table.column("message_id")
    if pc.count_distinct(ids).as_py() == len(ids):
        return table
    message = ids.combine_chunks().dictionary_encode().indices.to_numpy()
    updated = table.column("updated_at").cast(pa.int64()).fill_null(0).to_numpy()
    read = np.arange(len(ids))
    # Sorted by message, with the version to keep last.
    order = np.lexsort((-read if is_latest_first else read, updated, message))
    is_last = np.append(message[order][1:] != message[order][:-1], True)
    return table.take(np.sort(order[is_last]))


# -- sorted runs ----------------------------------------------------------------------------------


@dataclass(slots=True)
class SortedRun:
    """Sorted rows in a temporary file, each message once, in batches.

    Attributes:
        first_keys: The key of the first row of each batch.
        batch_rows: The number of rows of each batch but the last.
        dropped: Positions of rows that were dropped later, in order.
    """

    path: Path
    first_keys: list[_Key]
    batch_rows: int
    dropped: npt.NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))

    @classmethod
    def write(cls, path: Path, rows: pa.Table) -> SortedRun:
        batch_rows = max(1, min(BATCH_ROWS, BATCH_BYTES * rows.num_rows // max(1, rows.nbytes)))
        options = pa.ipc.IpcWriteOptions(compression="lz4", use_threads=False)
        with (
            pa.OSFile(str(path), "wb") as file,
            pa.ipc.new_file(file, rows.schema, options=options) as writer,
        ):
            writer.write_table(rows, max_chunksize=batch_rows)
        return cls(path, [_key(rows, first) for first in range(0, rows.num_rows, batch_rows)], batch_rows)

    def batch(self, number: int, columns: list[str] | None = None) -> pa.Table:
        """Return the rows of a batch that were not dropped, or some columns of them."""
        # Not mapped into memory, where the pages of the file would count as the process's memory.
        with pa.OSFile(str(self.path)) as file:
            names = pa.ipc.open_file(file).schema.names if columns else []
            fields = [names.index(name) for name in columns] if columns else None
            options = pa.ipc.IpcReadOptions(use_threads=False, included_fields=fields)
            rows = pa.Table.from_batches([pa.ipc.open_file(file, options=options).get_batch(number)])
        first = number * self.batch_rows
        begin, end = np.searchsorted(self.dropped, [first, first + rows.num_rows])
        if begin == end:
            return rows
        is_kept = np.ones(rows.num_rows, dtype=np.bool_)
        is_kept[self.dropped[begin:end] - first] = False
        return rows.filter(pa.array(is_kept))


def project(sorted_runs: Iterable[SortedRun], columns: list[str]) -> Iterator[pa.Table]:
    """Yield some columns of all rows that were not dropped, run by run."""
    for run in sorted_runs:
        yield from (run.batch(number, columns) for number in range(len(run.first_keys)))


def drop_repeats(sorted_runs: list[SortedRun]) -> None:
    """Keep one version of each message that is in several runs.

    Takes 8 bytes per row, and compares `MAX_REPEATED` ids at a time, because in a list that was read twice
    all of them repeat.
    """
    hashes = np.concatenate([_hashes(rows) for rows in project(sorted_runs, ["message_id"])])
    hashes.sort()
    # Includes different ids with the same hash, which are distinguished below.
    repeated = np.unique(hashes[1:][hashes[1:] == hashes[:-1]])
    del hashes
    dropped: list[list[npt.NDArray[np.int64]]] = [[] for _ in sorted_runs]
    for begin in range(0, len(repeated), MAX_REPEATED):
        for number, positions in enumerate(_outdated(sorted_runs, repeated[begin : begin + MAX_REPEATED])):
            dropped[number].append(positions)
    for run, parts in zip(sorted_runs, dropped, strict=True):
        if parts:
            run.dropped = np.sort(np.concatenate(parts))


def _outdated(sorted_runs: list[SortedRun], repeated: npt.NDArray[np.int64]) -> list[npt.NDArray[np.int64]]:
    """Return the positions of outdated versions in each run, of the ids with these hashes."""
    found = []
    for number, run in enumerate(sorted_runs):
        first = 0
        for rows in project([run], ["message_id", "updated_at"]):
            hashes = _hashes(rows)
            match = np.minimum(np.searchsorted(repeated, hashes), len(repeated) - 1)
            own = np.flatnonzero(repeated[match] == hashes)
            if len(own):
                versions = rows.take(pa.array(own))
                versions = versions.append_column("run", pa.array(np.full(len(own), number)))
                found.append(versions.append_column("position", pa.array(own + first)))
            first += rows.num_rows
    versions = pa.concat_tables(found)
    every = pa.array(np.arange(versions.num_rows))
    versions = versions.append_column("row", every)
    kept = without_repeats(versions).column("row")
    versions = versions.filter(pc.invert(pc.is_in(every, kept.combine_chunks())))
    owner, positions = versions.column("run").to_numpy(), versions.column("position").to_numpy()
    return [positions[owner == number] for number in range(len(sorted_runs))]


def _hashes(rows: pa.Table) -> npt.NDArray[np.int64]:
    return np.fromiter(map(hash, rows.column("message_id").to_pylist()), np.int64, rows.num_rows)


# -- the merge ------------------------------------------------------------------------------------


def merged(sorted_runs: Sequence[SortedRun]) -> Iterator[pa.Table]:
    """Yield the rows of all runs in one order, with at most one batch of each run in memory."""
    due = sorted(
        (key, run, batch) for run, one in enumerate(sorted_runs) for batch, key in enumerate(one.first_keys)
    )
    limits = [*(key for key, _, _ in due[1:]), None]
    waiting: list[pa.Table] = []
    for (_, run, batch), limit in zip(due, limits, strict=True):
        waiting.append(sorted_runs[run].batch(batch))
        counts = [rows.num_rows if limit is None else _count_to(rows, limit) for rows in waiting]
        taken = [rows.slice(0, count) for rows, count in zip(waiting, counts, strict=True) if count]
        waiting = [
            rows.slice(count) for rows, count in zip(waiting, counts, strict=True) if count < rows.num_rows
        ]
        if taken:
            yield taken[0] if len(taken) == 1 else in_order(pa.concat_tables(taken))


def _key(rows: pa.Table, index: int) -> _Key:
    """Return the sort key of a row; rows without a time come last."""
    moment = rows.column("created_at")[index]
    return moment.value if moment.is_valid else _LAST, rows.column("message_id")[index].as_py()


def _count_to(rows: pa.Table, limit: _Key) -> int:
    """Return how many of the sorted rows have a key up to a limit."""
    times = pc.fill_null(rows.column("created_at").cast(pa.int64()), _LAST).to_numpy()
    begin, end = np.searchsorted(times, limit[0], "left"), np.searchsorted(times, limit[0], "right")
    ids = rows.column("message_id").slice(begin, end - begin).to_pylist()
    count: int = begin + sum(one <= limit[1] for one in ids)
    return count
