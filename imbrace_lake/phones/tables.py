"""Read CSV, Parquet and spreadsheets as columns of text, in batches of rows."""

from __future__ import annotations

import csv
import io
import itertools
import math
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import python_calamine as calamine

from imbrace_lake.errors import InputError
from imbrace_lake.phones.columns import (
    Wanted,
    choose_code_columns,
    choose_columns,
    column_names,
    count_numbers,
    find_header,
    reject_area_codes,
)
from imbrace_lake.phones.formats import SAMPLE_BYTES, TextSource
from imbrace_lake.phones.report import FileReport, short

_BATCH_ROWS = 1 << 14
_SAMPLE_ROWS = 200
_DELIMITERS = ",;\t|"
_LONGEST_CELL = 1 << 24
_EXACT_BELOW = float(1 << 53)
_EXACT_IN_FLOAT32 = float(1 << 24)

Cell = tuple[int, str, Sequence[str]]
"""The position of the row, from 1, the text of a filled cell, and the row's cells with country codes."""
Batch = Sequence[pa.Array]
"""Several rows, as columns of text; nulls are empty cells."""


@dataclass(frozen=True, slots=True)
class Table:
    """A table that is read once, from top to bottom.

    Attributes:
        names: The header, or None if there is none.
        sample: The first data rows; a short row lacks its last cells.
        batches: All data rows.
        check: Raises InputError if the numbers of the column with this index are not exact.
    """

    names: Sequence[str] | None
    sample: Sequence[Sequence[str]]
    batches: Iterable[Batch]
    check: Callable[[int], None] = lambda index: None


def iter_table(table: Table, wanted: Wanted, report: FileReport) -> Iterator[Cell]:
    """Yield the filled cells of the columns to read, row by row, and report the other columns.

    Raises:
        InputError: No column can be chosen.
    """
    report.unit = "data row"
    if table.names is None and not table.sample:
        return
    chosen = choose_columns(table.names, table.sample, wanted, report.name)
    width = max([len(table.names or ()), *map(len, table.sample)])
    report.columns = [column_names(table.names, width)[index] for index in chosen]
    codes = choose_code_columns(table.names, table.sample, chosen) if wanted.usual is None else []
    if wanted.usual is None and wanted.column is None:
        reject_area_codes(table.names, table.sample, chosen, codes, wanted.region, report.name)
    report.code_columns = [column_names(table.names, width)[index] for index in codes]
    for index in chosen:
        table.check(index)
    # In a list of ids, no phone number is missing.
    is_counted = wanted.usual is None
    for batch in table.batches:
        rows = len(batch[0]) if batch else 0
        first = report.rows + 1
        report.rows += rows
        for index, values in enumerate(batch):
            if is_counted and index not in chosen and (count := count_numbers(values, wanted.region)):
                name = column_names(table.names, len(batch))[index]
                report.left_out[name] = report.left_out.get(name, 0) + count
        columns = [
            batch[index].to_pylist() if index < len(batch) else [None] * rows for index in [*chosen, *codes]
        ]
        for position, cells in enumerate(zip(*columns, strict=True), first):
            texts = _filled(cells[: len(chosen)])
            if not texts:
                report.empty.add(position)
            of_row = _filled(cells[len(chosen) :]) if codes else ()
            for text in texts:
                yield position, text, of_row


def _filled(cells: Sequence[str | None]) -> list[str]:
    return [text for text in cells if text and not text.isspace()]


class _LongCells:
    """Raises the limit of `csv`, which applies to the whole process, while one of our readers needs it.

    Readers in several threads share the raised limit, and the last one restores it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._readers = 0
        self._before = 0

    @contextmanager
    def allowed(self) -> Iterator[None]:
        """Accept cells of up to 16 MB in the block."""
        with self._lock:
            if self._readers == 0:
                self._before = csv.field_size_limit(_LONGEST_CELL)
            self._readers += 1
        try:
            yield
        finally:
            with self._lock:
                self._readers -= 1
                if self._readers == 0:
                    csv.field_size_limit(self._before)


_LONG_CELLS = _LongCells()


def read_csv(
    text: TextSource, rows: Sequence[Sequence[str]], delimiter: str, wanted: Wanted, report: FileReport
) -> Table:
    """Read text as CSV.

    Args:
        text: The text; a first line ``sep=;`` names the delimiter and is skipped.
        rows: The first rows, from :func:`first_rows`.
        delimiter: Likewise.
        wanted: What to read.
        report: Receives header and delimiter.

    Raises:
        InputError: A row does not end.
    """
    report.format, report.delimiter = "CSV", delimiter
    if not any(any(map(str.strip, row)) for row in rows):
        if not text.is_complete:
            problem = f"its first row does not end within {SAMPLE_BYTES >> 10} KiB"
            raise InputError(f"{report.name} is not proper CSV: {problem}.")
        return Table(None, [], [])
    names, start = _header(rows, wanted, report)
    body = _csv_rows(text.stream, delimiter, report.name)
    skipped = start + (separator_line(text.sample) is not None)
    return Table(names, rows[start:], _batches(itertools.islice(body, skipped, None)))


def _header(
    rows: Sequence[Sequence[str]], wanted: Wanted, report: FileReport
) -> tuple[Sequence[str] | None, int]:
    """Return the header, if there is one, and the index of the first data row."""
    index = find_header(rows, wanted)
    if index is None:
        return None, 0
    report.header_row = index + 1
    report.titles = sum(any(map(str.strip, row)) for row in rows[:index])
    return rows[index], index + 1


def separator_line(sample: str) -> str | None:
    """Return the delimiter that Excel's first line ``sep=;`` names; None without such a line."""
    line = sample.partition("\n")[0].strip('\ufeff\r"')
    return line[4] if len(line) == 5 and line[:4].lower() == "sep=" else None


def first_rows(text: TextSource) -> tuple[list[list[str]], str]:
    """Return the first rows of a text as CSV, and the delimiter that gives rows of equal width."""
    sample = text.sample
    if given := separator_line(sample):
        return _sample_rows(sample.partition("\n")[2], given, text.is_complete), given
    best: tuple[int, int] = (-1, -1)
    found: tuple[list[list[str]], str] = ([], ",")
    for delimiter in _DELIMITERS:
        rows = _sample_rows(sample, delimiter, text.is_complete)
        score = _evenness(rows)
        if score > best:
            best, found = score, (rows, delimiter)
    return found


def _evenness(rows: Sequence[Sequence[str]]) -> tuple[int, int]:
    """Return the most frequent width of two or more columns, after the number of rows with it."""
    widths = Counter(len(row) for row in rows if len(row) > 1)
    return max(((count, width) for width, count in widths.items()), default=(0, 0))


def is_even(rows: Sequence[Sequence[str]]) -> bool:
    """Return whether the content of a text is a table: nearly all lines have two or more columns."""
    filled = [row for row in rows if any(map(str.strip, row)) and not row[0].lstrip().startswith("#")]
    count, _ = _evenness(filled)
    return count > 1 and count * 5 >= len(filled) * 4


def _sample_rows(sample: str, delimiter: str, is_complete: bool) -> list[list[str]]:
    with _LONG_CELLS.allowed():
        rows = list(csv.reader(io.StringIO(sample, newline=""), delimiter=delimiter))
    return rows if is_complete else rows[:-1]


def _csv_rows(stream: io.TextIOBase, delimiter: str, name: str) -> Iterator[list[str]]:
    """Yield the rows of CSV; a quotation without an end is an error instead of one long cell."""
    end = ["\0end"]
    reader = csv.reader(itertools.chain(stream, end), delimiter=delimiter)
    line = before = 0
    try:
        for row in reader:
            if row == end:
                return
            before, line = line, reader.line_num
            yield row
    except csv.Error:
        before = line
    raise InputError(f"{name} is not proper CSV near line {before + 1}.") from None


def _batches(rows: Iterator[Sequence[str]]) -> Iterator[Batch]:
    while True:
        with _LONG_CELLS.allowed():
            some = list(itertools.islice(rows, _BATCH_ROWS))
        if not some:
            return
        yield [pa.array(column, pa.string()) for column in itertools.zip_longest(*some)] or [
            pa.nulls(len(some), pa.string())
        ]


def read_parquet(file: IO[bytes], report: FileReport) -> Table:
    """Read Parquet with columns of text or numbers."""
    parquet = pq.ParquetFile(file)
    schema = parquet.schema_arrow
    report.format, report.header_row = "Parquet", None
    if not schema.names:
        raise InputError(f"{report.name} has no columns: check the list.")
    sample = next(parquet.iter_batches(batch_size=_SAMPLE_ROWS), None)
    rows = (
        []
        if sample is None
        else [
            [cell or "" for cell in row]
            for row in zip(*(_cell_texts(column).to_pylist() for column in sample.columns), strict=True)
        ]
    )

    def check(index: int) -> None:
        kind = _value_type(schema.field(index).type)
        if not _is_readable(kind) and not pa.types.is_null(kind):
            raise InputError(
                f"Column {short(schema.names[index])!r} of {report.name} has neither text nor numbers:"
                " choose another."
            )
        if pa.types.is_float16(kind) or pa.types.is_float32(kind):
            raise _inexact(schema.names[index], report.name)
        if sample is not None and pa.types.is_float64(kind):
            check_exact(sample.column(index).drop_null().to_pylist(), schema.names[index], report.name)

    texts = [_nested_texts if _is_nested(field.type) else _cell_texts for field in schema]
    batches = (
        [as_text(column) for as_text, column in zip(texts, batch.columns, strict=True)]
        for batch in parquet.iter_batches(batch_size=_BATCH_ROWS)
    )
    return Table(schema.names, rows, batches, check)


def check_exact(values: Sequence[Any], column: str, name: str) -> None:
    """Reject numbers that were converted to 32-bit floats, which keep only seven digits.

    Raises:
        InputError: All long numbers are exact 32-bit floats, which is hardly a coincidence.
    """
    large = [
        value
        for value in values
        if isinstance(value, float | int)
        and not isinstance(value, bool)
        and math.isfinite(value)
        and abs(value) > _EXACT_IN_FLOAT32
    ]
    if large and all(abs(value) < _EXACT_BELOW and float(np.float32(value)) == value for value in large):
        raise _inexact(column, name)


def _inexact(column: str, name: str) -> InputError:
    return InputError(
        f"Column {short(column)!r} of {name} has 32-bit floating-point numbers, which keep seven digits, so"
        " its phone numbers are not exact: export the column as text."
    )


def read_sheet(file: IO[bytes], kind: str, wanted: Wanted, report: FileReport) -> Table:
    """Read a sheet of a spreadsheet.

    Args:
        file: The spreadsheet.
        kind: ``xlsx``, ``xlsb``, ``xls`` or ``ods``.
        wanted: Names the sheet and the columns.
        report: Receives the choices.

    Raises:
        InputError: The spreadsheet is damaged, protected by a password, or has no such sheet.
    """
    try:
        workbook = calamine.CalamineWorkbook.from_filelike(file)
        report.sheet = _sheet_name(workbook, wanted.sheet, report.name)
        sheet = workbook.get_sheet_by_name(report.sheet)
        values: list[list[Any]] = list(sheet.iter_rows())
        left = sheet.start[1] if sheet.start else 0
    except calamine.PasswordError:
        raise InputError(f"{report.name} is protected by a password: save it without one.") from None
    except calamine.CalamineError:
        what = "not a spreadsheet, or a damaged one" if kind == "xls" else "a damaged spreadsheet"
        raise InputError(f"{report.name} is {what}: save the list as CSV (UTF-8).") from None
    report.format = kind
    report.other_sheets = [name for name in workbook.sheet_names if name != report.sheet]
    rows = [[""] * left + [_cell_text(value) for value in row] for row in values]
    if not any(any(map(str.strip, row)) for row in rows):
        return Table(None, [], [])
    names, start = _header(rows, wanted, report)

    def check(index: int) -> None:
        cells = [row[index - left] for row in values[start:] if left <= index < left + len(row)]
        check_exact(cells, column_names(names, index + 1)[index], report.name)

    return Table(names, rows[start:], _batches(iter(rows[start:])), check)


def _sheet_name(workbook: calamine.CalamineWorkbook, wanted: str | None, source: str) -> str:
    names = workbook.sheet_names
    if not names:
        raise InputError(f"{source} has no sheet.")
    if wanted is None:
        # For people, hidden sheets and charts do not count as the first sheet.
        tables = (
            sheet.name
            for sheet in workbook.sheets_metadata
            if sheet.typ == calamine.SheetTypeEnum.WorkSheet
            and sheet.visible == calamine.SheetVisibleEnum.Visible
        )
        return next(tables, names[0])
    for same in (str, lambda name: name.strip().casefold()):
        for name in names:
            if same(name) == same(wanted):
                return name
    if wanted.isdecimal() and 1 <= int(wanted) <= len(names):
        return names[int(wanted) - 1]
    raise InputError(f"{source} has no sheet {wanted!r}, only {', '.join(map(short, names[:20]))}.")


def _value_type(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _is_readable(kind: pa.DataType) -> bool:
    tests = ("binary", "large_binary", "integer", "floating", "decimal")
    return _is_text(kind) or any(getattr(pa.types, f"is_{test}")(kind) for test in tests)


def _is_nested(kind: pa.DataType) -> bool:
    return bool(pa.types.is_nested(_value_type(kind)))


def _nested_texts(values: pa.Array) -> pa.Array:
    """Return all values of nested cells, one per line: such a column is not read, but its numbers count."""

    def texts(value: Any) -> Iterator[str]:
        if isinstance(value, list | tuple | dict):
            for part in value.values() if isinstance(value, dict) else value:
                yield from texts(part)
        elif text := _cell_text(value):
            yield text

    return pa.array(["\n".join(texts(value)) for value in values.to_pylist()], pa.string())


def _cell_texts(values: pa.Array) -> pa.Array:
    """Return cells as text; values that are neither text nor numbers are null."""
    kind = _value_type(values.type)
    if values.type != kind:
        values = values.dictionary_decode()
    if not _is_readable(kind):
        return pa.nulls(len(values), pa.string())
    if _is_text(kind) or (pa.types.is_integer(kind) and (pc.min(values).as_py() or 0) >= 0):
        return values.cast(pa.string())
    return pa.array([_cell_text(value) for value in values.to_pylist()], pa.string())


def _cell_text(value: Any) -> str:
    """Return the text of one cell; a number only with all its digits."""
    if isinstance(value, str):
        return value
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if value is None or isinstance(value, bool):
        return ""
    if isinstance(value, float) and math.isnan(value):
        # A column of integers with nulls often comes as floats, with NaN for null.
        return ""
    if isinstance(value, date):
        # With a time, also a date in a year such as 4395 is not read as eight digits.
        return str(value) if 1900 <= value.year < 2100 else f"{value} 00:00"
    if not isinstance(value, int | float | Decimal):
        return str(value)
    is_exact = not isinstance(value, float) or (value.is_integer() and value < _EXACT_BELOW)
    if is_exact and value >= 0 and value == int(value):
        return str(int(value))
    # A number with a sign or decimals was calculated; in this notation it is never read as a phone number.
    return f"{Decimal(repr(value) if isinstance(value, float) else value):E}"
