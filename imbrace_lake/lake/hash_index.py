"""Rows by a hash of their id: an index in memory, repeated ids, and files that each fit into memory."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

ROWS_AT_A_TIME = 16_384


class HashIndex:
    """Finds the rows of a column by text, with 16 bytes per row; a dict takes ten times the memory.

    Args:
        texts: The column, row by row.
        count: The number of rows.
    """

    def __init__(self, texts: Iterable[str], count: int) -> None:
        hashes = np.fromiter(map(hash, texts), np.int64, count)
        self._rows = np.argsort(hashes, kind="stable")
        self._hashes = hashes[self._rows]

    def find(self, texts: Iterable[str]) -> npt.NDArray[np.int64]:
        """Return the rows with one of these texts, in order, and rarely others with the same hash."""
        wanted = np.unique(np.fromiter(map(hash, texts), np.int64))
        begin = np.searchsorted(self._hashes, wanted, "left")
        counts = np.searchsorted(self._hashes, wanted, "right") - begin
        # For each text its first row and the following ones.
        further = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        return np.sort(self._rows[np.repeat(begin, counts) + further])


def id_hashes(batches: Iterable[pa.Table]) -> npt.NDArray[np.int64]:
    """Return a hash of the id of each message of a part, for `first_repeating`."""
    some = (np.fromiter(map(hash, rows.column("message_id").to_pylist()), np.int64) for rows in batches)
    return np.concatenate([np.empty(0, np.int64), *some])


def first_repeating(parts: Sequence[npt.NDArray[np.int64]]) -> int | None:
    """Return the index of the first part that has a message of an earlier one; None if there is none.

    Among a million messages, two have the same hash with a probability of 1 in 10^7; in the next process they
    have others.

    Args:
        parts: The `id_hashes` of each part.
    """
    if not parts or not _has_repeats(parts):
        return None
    return next(index for index in range(len(parts)) if _has_repeats(parts[: index + 1]))


def _has_repeats(parts: Sequence[npt.NDArray[np.int64]]) -> bool:
    hashes = np.concatenate(parts)
    return len(np.unique(hashes)) < len(hashes)


class Buckets:
    """Distributes rows over temporary files by their id, so that each file fits into memory.

    Args:
        schema: The columns of the rows.
        column: The column with the id.
        paths: The new files, all of which are open until `close`.
    """

    def __init__(self, schema: pa.Schema, column: str, paths: Sequence[Path]) -> None:
        self.paths = paths
        self.num_rows = 0
        self._column = column
        options = pa.ipc.IpcWriteOptions(compression="lz4", use_threads=False)
        self._files = [pa.OSFile(str(path), "wb") for path in paths]
        self._writers = [pa.ipc.new_stream(file, schema, options=options) for file in self._files]

    def add(self, tables: Iterable[pa.Table]) -> None:
        """Write rows to the files that their ids select."""
        # A few rows at a time, because they are copied.
        for rows in (batch for table in tables for batch in table.to_batches(max_chunksize=ROWS_AT_A_TIME)):
            ids = rows.column(self._column).to_pylist()
            owner = np.fromiter(map(hash, ids), np.int64, len(ids)) % len(self.paths)
            order = np.argsort(owner, kind="stable")
            bounds = np.searchsorted(owner[order], np.arange(len(self.paths) + 1))
            ordered = rows.take(pa.array(order))
            for number in np.flatnonzero(np.diff(bounds)).tolist():
                begin, end = bounds[number : number + 2].tolist()
                self._writers[number].write_batch(ordered.slice(begin, end - begin))
            self.num_rows += rows.num_rows

    def close(self) -> None:
        """Complete the files."""
        for opened in (*self._writers, *self._files):
            opened.close()

    def read(self, number: int) -> pa.Table:
        """Return the rows of a file, in the order in which they were added."""
        with pa.OSFile(str(self.paths[number])) as file, pa.ipc.open_stream(file) as reader:
            return reader.read_all()
