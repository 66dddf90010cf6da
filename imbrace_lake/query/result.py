"""The result of a query: lazy, read again each time, and in the form that the reader needs."""

from __future__ import annotations

import atexit
import weakref
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from imbrace_lake.query.arguments import check_rows

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl

BATCH_ROWS = 65_536
# Of a batch that is made of smaller ones.
BATCH_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Rows:
    """The rows of one reading.

    Attributes:
        schema: Their columns.
        batches: The rows, read as they are consumed.
        source, as_of: Those of the `Result`.
    """

    schema: pa.Schema
    batches: Iterator[pa.RecordBatch]
    source: str | None = None
    as_of: datetime | None = None


# What readers have not yet read.
_unread: weakref.WeakKeyDictionary[Generator[pa.RecordBatch], ExitStack] = weakref.WeakKeyDictionary()


@atexit.register
def _end_unread() -> None:
    """Close the queries that are not read to their end; else Arrow keeps them, and DuckDB reports leaks."""
    for rest, opened in [*_unread.items()]:
        with suppress(Exception):  # another thread reads it
            rest.close()
        with suppress(Exception):
            opened.close()


def _joined(batches: Iterable[pa.RecordBatch], rows: int) -> Iterator[pa.RecordBatch]:
    """Yield batches of at most this many rows, as far as the given ones are smaller.

    The engine returns at least one batch for each object that it reads, and most parts have few rows.
    """
    waiting: list[pa.RecordBatch] = []
    count = size = 0
    for batch in batches:
        if waiting and (count + batch.num_rows > rows or size + batch.nbytes > BATCH_BYTES):
            yield pa.concat_batches(waiting)
            waiting, count, size = [], 0, 0
        waiting.append(batch)
        count, size = count + batch.num_rows, size + batch.nbytes
    if waiting:
        yield pa.concat_batches(waiting)


Open = Callable[[int], AbstractContextManager[Rows]]
"""Begins to read, in batches of about this many rows."""


class Result:
    """Rows that are read when they are needed; each method reads them again.

    Libraries that know Arrow take the object as it is: `polars.DataFrame(result)`, `pyarrow.table(result)`,
    `pandas.DataFrame.from_arrow(result)`, or its name in a query of DuckDB.

    Attributes:
        source: What is read: the messages from `table`, the compacted table, or from `parts`; `ledgers` if
            no messages are read. None before the first read, and if nothing of the lake is read.
        as_of: How new it is: everything that runs had written by then is read, of messages and ledgers. Of
            the table, the beginning of the compaction that wrote it; else the end of the last run. None if no
            run has ended, and where `source` is None.
    """

    def __init__(self, open_rows: Open, schema: pa.Schema | None = None) -> None:
        self._open = open_rows
        self._schema = schema
        self.source: str | None = None
        self.as_of: datetime | None = None

    @property
    def schema(self) -> pa.Schema:
        """The names and types of the columns."""
        if self._schema is None:
            with self._begin(BATCH_ROWS) as found:
                self._schema = found.schema
        return self._schema

    def batches(self, rows: int = BATCH_ROWS) -> Iterator[pa.RecordBatch]:
        """Yield the rows in batches of about this many, without loading them all.

        Raises:
            SettingsError: The number is below 1.
        """
        check_rows(rows)

        def read() -> Iterator[pa.RecordBatch]:
            yield from self.to_reader(rows)

        return read()

    def to_reader(self, rows: int = BATCH_ROWS) -> pa.RecordBatchReader:
        """Return a reader of Arrow batches of about this many rows, for one reading.

        Raises:
            SettingsError: The number is below 1.
        """
        check_rows(rows)
        with ExitStack() as stack:
            found = stack.enter_context(self._begin(rows))
            self._schema = schema = self._schema or found.schema
            opened = stack.pop_all()

        def read() -> Generator[pa.RecordBatch]:
            with opened:
                for batch in _joined(found.batches, rows):
                    yield batch if batch.schema.equals(schema) else batch.cast(schema)

        _unread[rest := read()] = opened
        return pa.RecordBatchReader.from_batches(schema, rest)

    @contextmanager
    def _begin(self, rows: int) -> Iterator[Rows]:
        """Begin to read, and note what is read."""
        self.source = self.as_of = None
        with self._open(rows) as found:
            self.source, self.as_of = found.source, found.as_of
            yield found

    def to_arrow(self) -> pa.Table:
        """Return all rows as a table of pyarrow."""
        return self.to_reader().read_all()

    def to_pandas(self, **options: Any) -> pd.DataFrame:
        """Return all rows as a data frame of pandas; the options are those of `pyarrow.Table.to_pandas`."""
        frame: pd.DataFrame = self.to_arrow().to_pandas(**options)
        return frame

    def to_polars(self) -> pl.DataFrame:
        """Return all rows as a data frame of Polars, which must be installed."""
        import polars

        frame = polars.from_arrow(self.to_arrow())
        assert isinstance(frame, polars.DataFrame)  # noqa: S101 - narrows the type for mypy
        return frame

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        """Return the rows by the Arrow C stream interface."""
        return self.to_reader().__arrow_c_stream__(requested_schema)

    def __repr__(self) -> str:
        """Name the columns, if they are known."""
        return f"Result({', '.join(self._schema.names) if self._schema else 'not read yet'})"
