"""Rows in temporary files by a hash of their id, so that all versions of a row are in one file."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa


class Buckets:
    """Distributes rows over files, each of which fits into memory.

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
        for table in tables:
            ids = table.column(self._column).to_pylist()
            owner = np.fromiter(map(hash, ids), np.int64, len(ids)) % len(self.paths)
            order = np.argsort(owner, kind="stable")
            bounds = np.searchsorted(owner[order], np.arange(len(self.paths) + 1))
            rows = table.take(pa.array(order)).combine_chunks()
            for number in np.flatnonzero(np.diff(bounds)).tolist():
                begin, end = bounds[number : number + 2].tolist()
                self._writers[number].write_table(rows.slice(begin, end - begin))
            self.num_rows += table.num_rows

    def close(self) -> None:
        """Complete the files."""
        for opened in (*self._writers, *self._files):
            opened.close()

    def read(self, number: int) -> pa.Table:
        """Return the rows of a file, in the order in which they were added."""
        with pa.OSFile(str(self.paths[number])) as file, pa.ipc.open_stream(file) as reader:
            return reader.read_all()
