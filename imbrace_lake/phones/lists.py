"""Lists of phone numbers or ids: from arguments, streams, text, CSV or Parquet, kept in little memory."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, TextIO, cast

import pyarrow as pa
import pyarrow.compute as pc

from imbrace_lake.errors import InvalidPhoneNumber, UsageError
from imbrace_lake.phones.numbers import PhoneNumber, mask, parse_phone, parse_region
from imbrace_lake.phones.sources import (
    Readable,
    TextSource,
    byte_chunks,
    display_name,
    explained,
    open_source,
    read_text,
)
from imbrace_lake.phones.tables import iter_csv, iter_parquet

Source = str | Path | TextIO | Iterable[str]

ID_COLUMN = "conversation_id"
_BATCH_ROWS = 1 << 16
_CSV = {".csv", ".tsv", ".tab"}
_PARQUET = {".parquet", ".pq"}
_STATUS = pa.dictionary(pa.int8(), pa.string())
_REASON = pa.dictionary(pa.int32(), pa.string())


@dataclass(frozen=True, slots=True, repr=False)
class InputNumber:
    """One number as it was given; `position` counts from 1: lines, data rows or arguments."""

    position: int
    text: str

    def __repr__(self) -> str:
        return f"InputNumber(position={self.position}, text={mask(self.text)!r})"


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class PhoneList:
    """Every input number of a run, one row each, in input order.

    `table` has the columns

    - ``position`` (int64): as in :class:`InputNumber`,
    - ``status`` (dictionary of string): ``ok``, ``duplicate`` or ``invalid``,
    - ``phone`` (string): E.164, null if invalid,
    - ``duplicate_of`` (int64): the position that had this phone first; null unless a duplicate,
    - ``reason`` (dictionary of string): why it is invalid, without its content; else null.
    """

    table: pa.Table
    source_name: str
    unit: str

    @property
    def given(self) -> int:
        """How many numbers were given."""
        return int(self.table.num_rows)

    @property
    def valid(self) -> int:
        """How many distinct phones there are."""
        return self._count("ok")

    @property
    def duplicates(self) -> int:
        """How many rows repeat the phone of an earlier row."""
        return self._count("duplicate")

    @property
    def invalid(self) -> int:
        """How many rows hold no phone number."""
        return self._count("invalid")

    def unique(self) -> pa.Array:
        """Return the distinct phones as strings, in the order in which they were first given."""
        is_first = pc.equal(self.table["status"], "ok")
        return self.table["phone"].filter(is_first).combine_chunks()

    def place(self, position: int) -> str:
        """Say where a row was given: ``line 17 of numbers.txt``."""
        return f"{self.unit} {position} of {self.source_name}"

    def problems(self) -> Iterator[str]:
        """Describe each invalid row in one sentence: its place, its masked form and the reason."""
        rows = self.table.select(["position", "reason"]).filter(pc.equal(self.table["status"], "invalid"))
        for batch in rows.to_batches(max_chunksize=_BATCH_ROWS):
            for position, reason in zip(batch[0].to_pylist(), batch[1].to_pylist(), strict=True):
                yield f"{self.place(position)}: {reason}"

    def _count(self, status: str) -> int:
        return pc.sum(pc.equal(self.table["status"], status)).as_py() or 0

    def __repr__(self) -> str:
        return (
            f"PhoneList({self.source_name!r}: given={self.given}, valid={self.valid}, "
            f"duplicates={self.duplicates}, invalid={self.invalid})"
        )


def read_phone_list(
    source: Source, *, region: str | None = None, column: str | None = None, source_name: str | None = None
) -> PhoneList:
    """Read and parse a list; an invalid number becomes a row that says so, and the rest goes on.

    Args:
        source: As for :func:`iter_numbers`.
        region: Default region of numbers without a country code, as in :func:`.parse_phone`.
        column: As for :func:`iter_numbers`.
        source_name: What messages call the source; else the last part of its path.

    Raises:
        UsageError: The source cannot be read, or holds no number at all. All numbers invalid is no error.
    """
    region = parse_region(region) if region is not None else None
    name = source_name or PurePosixPath(display_name(source)).name
    rows = _iter_rows(source, column, region)
    tables: list[pa.Table] = []
    unit = ""
    while batch := list(itertools.islice(rows, _BATCH_ROWS)):
        unit = batch[0][0]
        tables.append(_parse_batch(batch, region))
    if not tables:
        raise UsageError(f"{name} holds no phone number: give at least one.")
    table = _mark_duplicates(pa.concat_tables(tables))
    del tables
    # Arrow would keep the memory of its intermediate columns, four times that of the list.
    pa.default_memory_pool().release_unused()
    return PhoneList(table, name, unit)


def iter_numbers(
    source: Source, *, column: str | None = None, region: str | None = None
) -> Iterator[InputNumber]:
    """Yield the numbers of a list as they are written, in order, holding only a part of it in memory.

    Args:
        source: A path or URL (always, if it is one string or a Path), a text stream, or strings. CSV and TSV
            are told by their name, Parquet by its content; the rest is text with one number a line, where
            blank lines and lines that begin with ``#`` are skipped. Text and CSV may be packed by gzip or
            zstd. Empty cells and nulls are skipped, though their rows count.
        column: Name or number (from 1) of a table's column, and then text of any other name is read as CSV.
            None to find it.
        region: Helps to recognise the column.

    Raises:
        UsageError: The source cannot be read; one sentence, free of credentials.
    """
    for _, position, text in _iter_rows(source, column, region):
        yield InputNumber(position, text)


def read_ids(source: str, *, column: str | None = None) -> list[str]:
    """Read a list of conversation ids; each once, in order.

    Args:
        source: A path or URL of text with one id a line, or of a table whose first row names the columns.
        column: Of a table, by name or position; ``conversation_id`` by default.

    Raises:
        UsageError: The source cannot be read, has no such column, or holds no id at all.
    """
    name = display_name(source)
    with explained(name), open_source(source) as file:
        found = [text.strip() for _, _, text in _iter_file(file, name, column, None, ID_COLUMN)]
    ids = [*dict.fromkeys(filter(None, found))]
    if not ids:
        raise UsageError(f"{PurePosixPath(name).name} holds no conversation id: give at least one.")
    return ids


_Row = tuple[str, int, str]
"""Unit of the position, position, text."""


def _iter_rows(source: Source, column: str | None, region: str | None) -> Iterator[_Row]:
    name = display_name(source)
    with explained(name):
        if isinstance(source, str | Path):
            with open_source(source) as file:
                yield from _iter_file(file, name, column, region)
        elif hasattr(source, "read"):
            chunks = byte_chunks(cast("Readable", source))
            yield from _iter_text(read_text(chunks, name), name, column is not None, column, region)
        else:
            for position, text in enumerate(source, 1):
                yield "number", position, text


def _iter_file(
    file: IO[bytes], name: str, column: str | None, region: str | None, usual: str | None = None
) -> Iterator[_Row]:
    """Rows of a file; `usual` is the column of a table where none is given."""
    suffix = PurePosixPath(re.sub(r"\.(?:gz|gzip|zst|zstd)$", "", name.lower())).suffix
    head = file.read(4)
    if head == b"PAR1":
        for position, text in iter_parquet(file, name, column or usual, region):
            yield "data row", position, text
    elif suffix in _PARQUET:
        raise UsageError(f"{name} is named like Parquet but is none: check how it was made.")
    else:
        text_source = read_text(itertools.chain([head], byte_chunks(file)), name)
        is_csv = column is not None or suffix in _CSV
        yield from _iter_text(text_source, name, is_csv, column or usual, region)


def _iter_text(
    text: TextSource, name: str, is_csv: bool, column: str | None, region: str | None
) -> Iterator[_Row]:
    if is_csv:
        for position, cell in iter_csv(text, name, column, region):
            yield "data row", position, cell
        return
    text.stream.reconfigure(newline=None)
    for position, line in enumerate(text.stream, 1):
        number = line.strip()
        if number and not number.startswith("#"):
            yield "line", position, number


def _parse_batch(rows: list[_Row], region: str | None) -> pa.Table:
    phones: list[PhoneNumber | None] = []
    reasons: list[str | None] = []
    for _, _, text in rows:
        try:
            phones.append(parse_phone(text, region))
            reasons.append(None)
        except InvalidPhoneNumber as exc:
            phones.append(None)
            reasons.append(str(exc))
    return pa.table(
        {
            "position": pa.array([position for _, position, _ in rows], pa.int64()),
            "phone": pa.array(phones, pa.string()),
            "reason": pa.array(reasons, pa.string()).dictionary_encode(),
        }
    )


def _mark_duplicates(table: pa.Table) -> pa.Table:
    """Add ``status`` and ``duplicate_of`` by vector operations: a dictionary would take 140 MB a million."""
    table = table.combine_chunks()
    phones = table["phone"].combine_chunks()
    # Codes are given out in order of appearance, so a phone's first row is where the code is a new maximum.
    codes = phones.dictionary_encode().indices
    highest = pc.fill_null(pc.fill_null_forward(pc.cumulative_max(codes, skip_nulls=True)), -1)
    before = pa.concat_arrays([pa.array([-1], pa.int32()), highest.slice(0, len(highest) - 1)])
    is_first = pc.greater(codes, before)
    firsts = table["position"].combine_chunks().filter(is_first)
    duplicate_of = pc.if_else(is_first, pa.scalar(None, pa.int64()), firsts.take(codes))
    status = pc.fill_null(pc.if_else(is_first, "ok", "duplicate"), "invalid")
    return pa.table(
        {
            "position": table["position"],
            "status": status.dictionary_encode().cast(_STATUS),
            "phone": phones,
            "duplicate_of": duplicate_of,
            "reason": table["reason"].cast(_REASON),
        }
    )
