"""Write Parquet with the settings of the lake, to memory or to a file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from imbrace_lake.lake.schema import SCHEMA, SCHEMA_VERSION

# Columns with few distinct values per conversation. A dictionary makes them small; compressing them too would
# take as long as everything else in a part.
_FEW_VALUES = ["conversation_id", "organization_id", "business_unit_id", "sender_id", "sender_role", "type",
               "first_seen_at", "last_changed_at", "run_id", "is_deleted", "deleted_at"]  # fmt: skip
_COMPRESSION = {name: "none" if name in _FEW_VALUES else "zstd" for name in SCHEMA.names}
# Not for long texts: minimum and maximum help no query, and can be as long as everything else in the part.
_WITH_STATISTICS = [name for name in SCHEMA.names if name not in ("text", "content", "extra")]
# Other options produce other bytes, by which `verify` recognises parts without a ledger entry: after a
# change, `judge_part` must compare only the bytes of parts that were written since.
_PART_OPTIONS: Mapping[str, Any] = {
    "compression": _COMPRESSION,
    "use_dictionary": _FEW_VALUES,
    "write_statistics": _WITH_STATISTICS,
}
ROW_GROUP_ROWS = 50_000
ROW_GROUP_BYTES = 64 * 2**20


def to_parquet(table: pa.Table, metadata: Mapping[str, str]) -> bytes:
    """Encode rows of `SCHEMA` in memory."""
    return encode(table, metadata, **_PART_OPTIONS)


def write_parquet(path: Path, tables: Iterable[pa.Table], metadata: Mapping[str, str]) -> None:
    """Write rows of `SCHEMA` to a file, with one row group in memory; the bytes are those of `to_parquet`.

    Row groups of very long rows have fewer rows.
    """
    write_row_groups(path, _row_groups(tables), SCHEMA, metadata)


def write_row_groups(
    path: Path,
    groups: Iterable[list[pa.Table]],
    schema: pa.Schema,
    metadata: Mapping[str, str],
    options: Mapping[str, Any] = _PART_OPTIONS,
) -> None:
    """Write an object to a file, one row group after the other.

    Args:
        path: The new file.
        groups: Lists of one row group, which is removed from the list so that it is in memory only once.
        schema: `SCHEMA`, that of an earlier release, or that of another table.
        metadata: As for `to_parquet`.
        options: Options of the Parquet writer; those of a part by default.
    """
    with path.open("wb") as file, _writer(file, schema, metadata, options) as writer:
        for group in groups:
            writer.write_table(group.pop(), row_group_size=ROW_GROUP_ROWS)


def _row_groups(tables: Iterable[pa.Table]) -> Iterator[list[pa.Table]]:
    pending: list[pa.Table] = []
    rows = size_bytes = 0
    for table in tables:
        rest = table
        while rest.num_rows:
            part = rest.slice(0, ROW_GROUP_ROWS - rows)
            rest = rest.slice(part.num_rows)
            pending.append(part)
            rows += part.num_rows
            size_bytes += part.nbytes
            if rows == ROW_GROUP_ROWS or size_bytes >= ROW_GROUP_BYTES:
                yield [_combined(pending)]
                rows = size_bytes = 0
    if pending:
        yield [_combined(pending)]


def _combined(tables: list[pa.Table]) -> pa.Table:
    """Combine tables of `SCHEMA` into one; empties the list, so that few columns are in memory twice."""
    columns = [[table.column(index) for table in tables] for index in range(len(SCHEMA))]
    tables.clear()
    arrays = []
    while columns:
        chunks = [chunk for column in columns.pop(0) for chunk in column.chunks]
        arrays.append(pa.chunked_array(chunks).combine_chunks())
        del chunks
    return pa.Table.from_arrays(arrays, schema=SCHEMA)


def encode(table: pa.Table, metadata: Mapping[str, str], **options: Any) -> bytes:
    """Encode any rows with the options of a Parquet writer."""
    # Arrow's own sink: writing to a Python file takes the interpreter's lock some hundred times.
    sink = pa.BufferOutputStream()
    with _writer(sink, table.schema, metadata, options) as writer:
        writer.write_table(table, row_group_size=ROW_GROUP_ROWS)
    body: bytes = sink.getvalue().to_pybytes()
    return body


@contextmanager
def _writer(
    sink: BinaryIO | pa.NativeFile, schema: pa.Schema, metadata: Mapping[str, str], options: Mapping[str, Any]
) -> Iterator[pq.ParquetWriter]:
    """Open a Parquet writer with the settings of every object of the lake.

    Zstandard at level 1 (Arrow's default) produces smaller files than Snappy and is hardly slower for objects
    of this size. Page checksums cost nothing and reveal a flipped byte.
    """
    with pq.ParquetWriter(sink, schema, write_page_checksum=True, store_schema=False, **options) as writer:
        yield writer
        # Not as metadata of the schema, which is not stored.
        writer.add_key_value_metadata({**metadata, "schema_version": str(SCHEMA_VERSION)})
