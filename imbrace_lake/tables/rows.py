"""Rows of tables: the column `month`, sorting in bounded memory, and data files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from imbrace_lake.lake.parquet import ROW_GROUP_ROWS
from imbrace_lake.lake.schema import SCHEMA
from imbrace_lake.tables.delta_log import TableFile

# Delta's timestamps have microseconds, and some readers reject files with another unit.
TIME = pa.timestamp("us", "UTC")
_MILLISECONDS = pa.timestamp("ms", "UTC")
MONTH = "month"
# The number of the month of rows without a time.
NO_MONTH = -(2**31)
FILE_BYTES = 128 * 2**20
# The rows in memory while they are collected, and while they are sorted.
SPILL_BYTES = 8 * 2**20
SORTED_ROWS = 25_000
SPILLED_ROWS = 16_384
# The rows of a file in memory at a time, fewer if they are large.
BATCH_BYTES, BATCH_ROWS = 8 * 2**20, 8_192
# The day of rows without a time, which are the first.
_NO_DAY = np.iinfo(np.int32).min
_DAY = "day"

FEW_VALUES = ["organization_id", "business_unit_id", "sender_role", "type", "run_id", "month", "status"]
# Minima and maxima of other columns help no query, and would copy messages into the log and the footers.
STATISTICS = ["organization_id", "conversation_id", "created_at", MONTH]


def table_schema(schema: pa.Schema) -> pa.Schema:
    """Return the columns of the lake's objects as those of a table."""
    return pa.schema([one.with_type(TIME) if one.type == _MILLISECONDS else one for one in schema])


MESSAGES_TABLE = table_schema(SCHEMA).append(pa.field(MONTH, pa.string()))


def table_rows(rows: pa.Table) -> pa.Table:
    """Return rows of parts as rows of the table of messages."""
    return rows.cast(table_schema(SCHEMA)).append_column(
        MESSAGES_TABLE.field(MONTH), month_names(months_of(rows))
    )


def months_of(rows: pa.Table) -> np.ndarray[Any, Any]:
    """Return the month of each row as months since 1970, `NO_MONTH` without a time."""
    times = rows.column("created_at").cast(_MILLISECONDS, safe=False)
    numbers = times.cast(pa.int64()).fill_null(0).to_numpy().astype("datetime64[ms]")
    months = numbers.astype("datetime64[M]").astype(np.int32)
    months[times.is_null().to_numpy(zero_copy_only=False)] = NO_MONTH
    return np.asarray(months)


def month_name(month: int) -> str | None:
    """Return a month as in the column `month`: `2026-01`."""
    return None if month == NO_MONTH else f"{1970 + month // 12:04d}-{month % 12 + 1:02d}"


def month_names(months: np.ndarray[Any, Any]) -> pa.Array:
    """Return months as in the column `month`."""
    distinct, positions = np.unique(months, return_inverse=True)
    return pa.array([month_name(int(one)) for one in distinct], pa.string()).take(pa.array(positions))


def _days_of(rows: pa.Table) -> np.ndarray[Any, Any]:
    times = rows.column("created_at")
    days = (times.cast(pa.int64()).fill_null(0).to_numpy() // 86_400_000_000).astype(np.int32)
    days[times.is_null().to_numpy(zero_copy_only=False)] = _NO_DAY
    return np.asarray(days)


def _sorted(rows: pa.Table) -> pa.Table:
    """Return rows in the order of the table: by day, then by conversation and time."""
    rows = rows.append_column(_DAY, pa.array(_days_of(rows), pa.int32()))
    names = [_DAY, "organization_id", "conversation_id", "created_at", "message_id"]
    order = pc.sort_indices(rows, [(name, "ascending") for name in names])
    return rows.drop_columns([_DAY]).take(order)


@dataclass(frozen=True, slots=True)
class _Chunk:
    """Rows of one month in a spill file: its days and its position."""

    month: int
    first_day: int
    last_day: int
    rows: int
    path: Path
    position: int


class Spill:
    """Collects rows of the table of messages in any order, and returns them sorted, in bounded memory.

    Args:
        folder: A folder for temporary files.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._pending: list[pa.Table] = []
        self._pending_bytes = 0
        self._chunks: list[_Chunk] = []

    def add(self, rows: pa.Table) -> None:
        """Add rows."""
        if not rows.num_rows:
            return
        self._pending.append(rows)
        self._pending_bytes += rows.nbytes
        if self._pending_bytes >= SPILL_BYTES:
            self._flush()

    def _flush(self) -> None:
        rows = pa.concat_tables(self._pending)
        self._pending, self._pending_bytes = [], 0
        days, months = _days_of(rows), months_of(rows)
        order = np.argsort(days, kind="stable")
        rows, days, months = rows.take(pa.array(order)), days[order], months[order]
        path = self._folder / f"spill-{uuid4().hex}"
        options = pa.ipc.IpcWriteOptions(compression="lz4")
        with (
            pa.OSFile(str(path), "wb") as file,
            pa.ipc.new_file(file, rows.schema, options=options) as writer,
        ):
            starts = np.flatnonzero(np.append(True, months[1:] != months[:-1]))
            position = 0
            for start, end in zip(starts, [*starts[1:], len(months)], strict=True):
                for first in range(int(start), int(end), SPILLED_ROWS):
                    last = min(first + SPILLED_ROWS, int(end))
                    batch = rows.slice(first, last - first).combine_chunks()
                    writer.write_table(batch, max_chunksize=SPILLED_ROWS)
                    place = (int(months[first]), int(days[first]), int(days[last - 1]), last - first)
                    self._chunks.append(_Chunk(*place, path, position))
                    position += 1

    def months(self) -> Iterator[Iterator[pa.Table]]:
        """Yield the rows of each month, sorted, in tables of about `SORTED_ROWS`."""
        if not self._chunks:
            if self._pending:
                rows = pa.concat_tables(self._pending)
                self._pending = []
                yield from _split(_sorted(rows))
            return
        if self._pending:
            self._flush()
        by_month: dict[int, list[_Chunk]] = {}
        for chunk in self._chunks:
            by_month.setdefault(chunk.month, []).append(chunk)
        for month in sorted(by_month):
            yield self._month(by_month[month])

    def _month(self, chunks: Sequence[_Chunk]) -> Iterator[pa.Table]:
        first, last = min(one.first_day for one in chunks), max(one.last_day for one in chunks)
        count = sum(one.rows for one in chunks)
        # Some days at a time, so that a month need not fit into memory.
        days = max(1, (last - first + 1) * SORTED_ROWS // count)
        for begin in range(first, last + 1, days):
            end = begin + days - 1
            tables = []
            for chunk in chunks:
                if chunk.first_day <= end and chunk.last_day >= begin:
                    rows = _read_chunk(chunk)
                    if chunk.first_day < begin or chunk.last_day > end:
                        of_day = _days_of(rows)
                        rows = rows.filter(pa.array((of_day >= begin) & (of_day <= end)))
                    tables.append(rows)
            if tables:
                yield _sorted(pa.concat_tables(tables))


def _read_chunk(chunk: _Chunk) -> pa.Table:
    with pa.OSFile(str(chunk.path)) as file, pa.ipc.open_file(file) as reader:
        return pa.Table.from_batches([reader.get_batch(chunk.position)])


def _split(rows: pa.Table) -> Iterator[Iterator[pa.Table]]:
    """Yield the rows of each month."""
    months = months_of(rows)
    starts = np.flatnonzero(np.append(True, months[1:] != months[:-1]))
    for start, end in zip(starts, [*starts[1:], len(months)], strict=True):
        yield iter([rows.slice(int(start), int(end - start))])


class FileWriter:
    """Writes one data file, in row groups, and collects its statistics for the log."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self.path = path
        self._schema = schema
        self._with = [name for name in STATISTICS if name in schema.names]
        ids = [one.name for one in schema if one.name.endswith("_id") or pa.types.is_timestamp(one.type)]
        few = [name for name in FEW_VALUES if name in schema.names]
        self._file = path.open("wb")
        self._writer = pq.ParquetWriter(
            self._file,
            schema,
            compression="zstd",
            use_dictionary=[*few, *(["conversation_id"] if "conversation_id" in schema.names else [])],
            write_statistics=[*{*ids, *self._with}],
            write_page_index=True,
            write_page_checksum=True,
            store_schema=False,
        )
        self._pending: list[pa.Table] = []
        self._pending_rows = 0
        self.rows = 0
        self._minima: dict[str, Any] = {}
        self._maxima: dict[str, Any] = {}
        self._nulls: dict[str, int] = dict.fromkeys(self._with, 0)

    @property
    def size_bytes(self) -> int:
        """The bytes written so far, with an estimate of the rows of the next row group."""
        written = self._file.tell()
        done = self.rows - self._pending_rows
        return written + (self._pending_rows * written // done if done else self._pending_rows * 80)

    def add(self, rows: pa.Table) -> None:
        """Add rows, sorted; full row groups are written."""
        self._pending.append(rows)
        self._pending_rows += rows.num_rows
        self.rows += rows.num_rows
        for name in self._with:
            column = rows.column(name)
            self._nulls[name] += column.null_count
            bounds = pc.min_max(column)
            for kept, value, choose in (
                (self._minima, bounds["min"].as_py(), min),
                (self._maxima, bounds["max"].as_py(), max),
            ):
                if value is not None:
                    kept[name] = choose(kept.get(name, value), value)
        if self._pending_rows >= ROW_GROUP_ROWS:
            self.flush()

    def flush(self) -> None:
        """Write the collected rows as row groups."""
        if self._pending_rows:
            rows = pa.concat_tables(self._pending).cast(self._schema)
            self._pending, self._pending_rows = [], 0
            self._writer.write_table(rows, row_group_size=ROW_GROUP_ROWS)

    def close(self, now: datetime) -> TableFile:
        """Finish the file."""
        self.flush()
        self._writer.close()
        self._file.close()
        stats = {
            "numRecords": self.rows,
            "minValues": {name: _json(value) for name, value in self._minima.items()},
            "maxValues": {name: _json(value) for name, value in self._maxima.items()},
            "nullCount": self._nulls,
        }
        return TableFile(
            f"part-{uuid4().hex}.parquet",
            self.path.stat().st_size,
            self.rows,
            now,
            self._minima.get(MONTH),
            self._maxima.get(MONTH),
            self._nulls.get(MONTH, 0) > 0,
            stats,
        )

    def abort(self) -> None:
        """Close and delete the file."""
        self._pending, self._pending_rows = [], 0
        self._writer.close()
        self._file.close()
        self.path.unlink()


def _json(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return value


def write_sorted(spill: Spill, folder: Path, now: datetime) -> list[tuple[TableFile, Path]]:
    """Write the rows of a spill into data files of about `FILE_BYTES`, which end with a month if possible."""
    done: list[tuple[TableFile, Path]] = []
    writer: FileWriter | None = None

    def finish() -> None:
        nonlocal writer
        if writer is not None:
            done.append((writer.close(now), writer.path))
        writer = None

    for tables in spill.months():
        if writer is not None and writer.size_bytes >= FILE_BYTES // 2:
            finish()
        for table in tables:
            for start in range(0, table.num_rows, ROW_GROUP_ROWS):
                if writer is not None and writer.size_bytes >= FILE_BYTES:
                    finish()
                writer = writer or FileWriter(folder / f"file-{uuid4().hex}", MESSAGES_TABLE)
                writer.add(table.slice(start, ROW_GROUP_ROWS))
    finish()
    return done


class UnreadableFile(OSError):
    """A data file is damaged.

    Attributes:
        path: The downloaded file.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(f"{path} is damaged")
        self.path = path


def iter_file(path: Path, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """Yield the rows of a data file, or some columns of them, some megabytes at a time.

    Raises:
        UnreadableFile: The file is damaged.
    """
    try:
        # Without `pre_buffer`, which would load a complete row group.
        with pq.ParquetFile(path, page_checksum_verification=True, pre_buffer=False) as file:
            names = columns and [*columns]
            groups = [file.metadata.row_group(number) for number in range(file.num_row_groups)]
            most = max((one.total_byte_size // max(1, one.num_rows) for one in groups), default=0)
            count = max(1, min(BATCH_ROWS, BATCH_BYTES // max(1, most)))
            for batch in file.iter_batches(count, columns=names, use_threads=False):
                rows = pa.Table.from_batches([batch])
                plain = pa.schema([one.with_type(_plain(one.type)) for one in rows.schema])
                yield rows if rows.schema.equals(plain) else rows.cast(plain)
    except (pa.ArrowException, OSError) as exc:
        if isinstance(exc, OSError) and exc.errno is not None:
            # An error of the disk, which shows nothing about the file.
            raise
        raise UnreadableFile(path) from exc


def _plain(kind: pa.DataType) -> pa.DataType:
    """Return the type that this project writes, in place of the variants that other writers of Delta use."""
    if pa.types.is_string_view(kind) or pa.types.is_large_string(kind):
        return pa.string()
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return pa.list_(kind.value_field.with_type(_plain(kind.value_type)))
    return kind


def in_lake_schema(rows: pa.Table) -> pa.Table:
    """Return rows of the table of messages with the columns of parts."""
    return rows.select(SCHEMA.names).cast(SCHEMA, safe=False)


def properties_of(names: Sequence[str]) -> Mapping[str, str]:
    """Return the properties that a table always has."""
    return {
        "delta.dataSkippingStatsColumns": ",".join(names),
        "delta.logRetentionDuration": "interval 1 days",
        "delta.deletedFileRetentionDuration": "interval 1 days",
    }
