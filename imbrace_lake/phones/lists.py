"""Read lists of phone numbers or ids from arguments, streams, text, tables or spreadsheets."""

from __future__ import annotations

import io
import itertools
import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, TextIO, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from imbrace_lake.errors import InputError
from imbrace_lake.phones.columns import Wanted
from imbrace_lake.phones.formats import (
    HEAD_BYTES,
    OLE,
    PARQUET,
    ZIP,
    TextSource,
    compression,
    read_text,
    reject_binary,
    reject_markup,
    spreadsheet_kind,
    take,
)
from imbrace_lake.phones.numbers import parse_cell, parse_cell_of_row, parse_region
from imbrace_lake.phones.report import ARGUMENTS, SHEET_SETTING, FileReport, ListReport, short
from imbrace_lake.phones.sources import (
    Readable,
    byte_chunks,
    display_name,
    explained,
    find_files,
)
from imbrace_lake.phones.tables import (
    Cell,
    first_rows,
    is_even,
    iter_table,
    read_csv,
    read_parquet,
    read_sheet,
    separator_line,
)

Source = str | Path | TextIO | Iterable[str]

ID_COLUMN = "conversation_id"
PHONE_LIKE = (
    r"(?:(?i:tel|phone|mobile|fax|sms|mms|callto|sips?|wa|whatsapp|viber|line|telegram|signal|imessage)[:=]"
    r"(?:%20|[\s/]){0,8}|(?i:https?://)?(?i:wa\.me|t\.me|api\.whatsapp\.com/send/?\?phone=)/?)?"
    r"(?:%2[Bb]|[+(\s]){0,8}\d(?:(?:%2[0-9A-Fa-f]|[\s()./:=,;_|*~\u2010-\u2015-])*\d){6,18}"
    r"(?:@[A-Za-z][A-Za-z.]*)?"
)
"""Digits as numbers are written, as links to them, and as ids of contacts; ids have 32 hexadecimal digits.

What may precede a number is bounded: the time for many blanks would grow with the square of their number.
"""
_PHONE_NUMBER = re.compile(PHONE_LIKE)
_WITH_PLUS = re.compile(r"[+＋](?:\W{0,2}\d){7}")
# Nearly all ids, which need no other check.
_CONVERSATION = re.compile(r"(?:conv_|tcu_)?[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
# Spreadsheets show six digits of a long number, and 32-bit floats keep seven. One real number in 100,000 ends
# like this; ten times as many are reported.
_ROUNDED = "00000"
_ROUNDED_BY_CHANCE = 10_000
_BATCH_ROWS = 1 << 16
_CSV = {".csv", ".tsv", ".tab"}
_PARQUET = {".parquet", ".pq"}
_STATUS = pa.dictionary(pa.int8(), pa.string())
_REASON = pa.dictionary(pa.int32(), pa.string())


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class PhoneList:
    """The input numbers of a run, one row each, in input order, and the report of how they were read.

    `table` has the columns

    - ``position`` (int64): counts lines, data rows or arguments from 1, over all files; numbers of the same
      row share it,
    - ``entry`` (int64): counts the numbers of a row from 1,
    - ``status`` (dictionary of string): ``ok``, ``duplicate`` or ``invalid``,
    - ``phone`` (string): E.164, null if invalid,
    - ``duplicate_of`` (int64): the first position with this phone; null unless a duplicate,
    - ``reason`` (dictionary of string): why the number is invalid, without its content; else null.
    """

    table: pa.Table
    report: ListReport

    @property
    def given(self) -> int:
        """The number of rows."""
        return int(self.table.num_rows)

    @property
    def valid(self) -> int:
        """The number of distinct phones."""
        return self._count("ok")

    @property
    def duplicates(self) -> int:
        """The number of rows that repeat the phone of an earlier row."""
        return self._count("duplicate")

    @property
    def invalid(self) -> int:
        """The number of rows that are not phone numbers."""
        return self._count("invalid")

    def unique(self) -> pa.Array:
        """Return the distinct phones as strings, in the order in which they were first given."""
        is_first = pc.equal(self.table["status"], "ok")
        return self.table["phone"].filter(is_first).combine_chunks()

    def problems(self) -> Iterator[str]:
        """Describe each invalid row in one sentence: its position, its masked form and the reason."""
        rows = self.table.select(["position", "reason"]).filter(pc.equal(self.table["status"], "invalid"))
        for batch in rows.to_batches(max_chunksize=_BATCH_ROWS):
            for position, reason in zip(batch[0].to_pylist(), batch[1].to_pylist(), strict=True):
                yield f"{self.report.describe_position(position)}: {reason}"

    def _count(self, status: str) -> int:
        return pc.sum(pc.equal(self.table["status"], status)).as_py() or 0

    def __repr__(self) -> str:
        return (
            f"PhoneList({self.report.source!r}: given={self.given}, valid={self.valid}, "
            f"duplicates={self.duplicates}, invalid={self.invalid})"
        )


def read_phone_list(
    source: Source,
    *,
    region: str | None = None,
    column: str | None = None,
    sheet: str | None = None,
    source_name: str | None = None,
    schemes: Collection[str] = (),
) -> PhoneList:
    """Read and parse a list; an invalid number becomes a row with the reason, and the others are read.

    Args:
        source: As for :func:`iter_numbers`.
        region: Default region of numbers without a country code, as in :func:`.parse_phone`.
        column, sheet, schemes: As for :func:`iter_numbers`.
        source_name: The name of the source in messages; by default the last part of its path.

    Raises:
        InputError: The source cannot be read, or is empty. A list with only invalid numbers is not an error.
    """
    region = parse_region(region) if region is not None else None
    report = ListReport(source_name or _short_name(source))
    cells = _iter_cells(source, Wanted(column, None, region, sheet), report, schemes, source_name)
    tables: list[pa.Table] = []
    while batch := list(itertools.islice(cells, _BATCH_ROWS)):
        tables.append(_parse_batch(batch, region, report))
    if not tables:
        raise _empty(report, "phone number")
    table = _mark_duplicates(pa.concat_tables(tables))
    del tables
    # Arrow would keep the memory of the intermediate columns, four times that of the list.
    pa.default_memory_pool().release_unused()
    phones = PhoneList(table, report)
    rounded = pc.sum(pc.ends_with(table["phone"], _ROUNDED)).as_py() or 0
    if rounded > max(1, phones.given // _ROUNDED_BY_CHANCE):
        report.rounded = rounded
    report.counts = {
        "given": phones.given,
        "valid": phones.valid,
        "duplicate": phones.duplicates,
        "invalid": phones.invalid,
    }
    return phones


def iter_numbers(
    source: Source,
    *,
    column: str | None = None,
    region: str | None = None,
    sheet: str | None = None,
    schemes: Collection[str] = (),
) -> Iterator[tuple[int, str]]:
    """Yield the numbers of a list as they are written, in order, with only a part of the list in memory.

    Each comes with the position of its line, data row or argument, from 1, over all files.

    Args:
        source: A path or URL (always, if it is one string or a Path), a text stream, or strings. A folder or
            a pattern is one list of all its files. Formats are recognised by content: Parquet, spreadsheets,
            CSV, and text with one number per line. Text and CSV may be packed by gzip or zstd. In text,
            lines that begin with ``#`` are skipped. Blank lines and empty cells are skipped, but count.
        column: Names or numbers (from 1) of a table's columns, separated by commas; text with any file name
            is then read as CSV. None to find all columns of phone numbers.
        region: Helps to recognise the columns.
        sheet: Name or number of a spreadsheet's sheet; the first by default.
        schemes: The schemes of URLs that are allowed besides ``file`` and ``s3``.

    Raises:
        InputError: The source cannot be read; one sentence, free of credentials.
    """
    report = ListReport(_short_name(source))
    cells = _iter_cells(source, Wanted(column, None, region, sheet), report, schemes)
    return ((position, text) for position, text, _ in cells)


@dataclass(frozen=True, slots=True)
class IdList:
    """Conversation ids, each once, in the order of the list, and how they were read."""

    ids: list[str]
    report: ListReport


def read_ids(
    source: str, *, column: str | None = None, sheet: str | None = None, schemes: Collection[str] = ()
) -> IdList:
    """Read a list of conversation ids, in any format of lists of numbers.

    Args:
        source: As for :func:`iter_numbers`: text with one id per line, or a table with a header.
        column: Name or position of the table's column; ``conversation_id`` by default.
        sheet, schemes: As for :func:`iter_numbers`.

    Raises:
        InputError: The source cannot be read, has no such column, has no id at all, or has phone numbers,
            which would become ids in requests and in the lake.
    """
    report = ListReport(_short_name(source))
    cells = _iter_cells(source, Wanted(column, ID_COLUMN, None, sheet), report, schemes)
    found = [text for _, cell, _ in cells if (text := cell.strip())]
    if not found:
        raise _empty(report, "conversation id")
    numbers = [position for position, text in enumerate(found, 1) if _has_phone(text)]
    if numbers:
        shown = ", ".join(map(str, numbers[:3])) + ", …" * (len(numbers) > 3)
        entries = "entries" if len(found) > 1 else "entry"
        look = "look like phone numbers (entries" if len(numbers) > 1 else "looks like a phone number (entry"
        raise InputError(
            f"{report.source} should contain conversation ids, but {len(numbers)} of {len(found)} {entries}"
            f" {look} {shown}): give numbers as a list of phone numbers."
        )
    ids = [*dict.fromkeys(found)]
    report.counts = {"given": len(found), "valid": len(ids), "duplicate": len(found) - len(ids), "invalid": 0}
    return IdList(ids, report)


def _has_phone(text: str) -> bool:
    """Return whether an entry of a list of ids is a phone number, or contains one with a plus sign."""
    if _CONVERSATION.fullmatch(text):
        return False
    if _PHONE_NUMBER.fullmatch(text) or _WITH_PLUS.search(text):
        return True
    return any(isinstance(one, str) for one in parse_cell(text))


def _short_name(source: Source) -> str:
    return PurePosixPath(display_name(source)).name or display_name(source)


def _empty(report: ListReport, what: str) -> InputError:
    sheets = [name for file in report.files for name in file.other_sheets]
    other = (
        f", or choose another sheet with {SHEET_SETTING}: {', '.join(map(short, sheets[:20]))}"
        if sheets
        else ""
    )
    contains = "contain" if report.source == ARGUMENTS else "contains"
    return InputError(f"{report.source} {contains} no {what}: give at least one{other}.")


def _iter_cells(
    source: Source,
    wanted: Wanted,
    report: ListReport,
    schemes: Collection[str],
    source_name: str | None = None,
) -> Iterator[Cell]:
    """Yield the filled cells of a list; positions continue from file to file."""
    name = source_name or display_name(source)
    with explained(name):
        if isinstance(source, str | Path):
            files, report.skipped_files = find_files(source, schemes)
            for file in files:
                part = report.add_file(file.name)
                with explained(file.name), file.open() as opened:
                    for position, text, codes in _iter_file(opened, wanted, part):
                        yield part.first + position, text, codes
        elif hasattr(source, "read"):
            part = report.add_file(name)
            head, chunks = take(byte_chunks(cast("Readable", source)), len(OLE))
            if head.startswith((PARQUET, ZIP, OLE)):
                yield from _iter_file(io.BytesIO(b"".join(chunks)), wanted, part)
            else:
                yield from _iter_text(chunks, wanted, part)
        else:
            part = report.add_file(name)
            part.unit, part.format = "number", "numbers"
            for part.rows, text in enumerate(source, 1):
                yield part.rows, text, ()


def _iter_file(file: IO[bytes], wanted: Wanted, report: FileReport) -> Iterator[Cell]:
    """Return the filled cells of a file, whose content and not its name decides how it is read."""
    head = file.read(HEAD_BYTES)
    try:
        file.seek(0)
    except ValueError:
        # A web server that does not state the length of a file sends it only once.
        file = io.BytesIO(head + file.read())
    if head.startswith(PARQUET):
        return iter_table(read_parquet(file, report), wanted, report)
    suffix = _suffix(report.name)
    if suffix in _PARQUET and compression(head) is None:
        reject_binary(head, report.name)
        reject_markup(head.decode("utf-8", "replace"), report.name)
        raise InputError(
            f"{report.name} has a .parquet name, but is not a Parquet file: check how it was made."
        )
    if head.startswith((ZIP, OLE)):
        kind = spreadsheet_kind(file, head, report.name)
        file.seek(0)
        return iter_table(read_sheet(file, kind, wanted, report), wanted, report)
    return _iter_text(byte_chunks(file), wanted, report)


def _suffix(name: str) -> str:
    return PurePosixPath(re.sub(r"\.(?:gz|gzip|zst|zstd)$", "", name.lower())).suffix


def _iter_text(chunks: Iterator[bytes], wanted: Wanted, report: FileReport) -> Iterator[Cell]:
    """Return the numbers of text: of a table if file name, content or a wanted column suggests one."""

    def has_header(sample: str) -> bool:
        return any(wanted.is_header_name(name) for name in re.split(r"[,;|\t\r\n]", sample[:HEAD_BYTES]))

    if wanted.sheet is not None:
        raise InputError(f"{report.name} is text and has no sheets: leave out {SHEET_SETTING}.")
    text = read_text(chunks, report.name, has_header)
    report.encoding = text.encoding
    rows, delimiter = first_rows(text)
    if _is_table(text, rows, wanted, report.name):
        return iter_table(read_csv(text, rows, delimiter, wanted, report), wanted, report)
    return _iter_lines(text, report)


def _is_table(text: TextSource, rows: list[list[str]], wanted: Wanted, name: str) -> bool:
    if wanted.column is not None or _suffix(name) in _CSV or separator_line(text.sample) is not None:
        return True
    first = next((row for row in rows if any(map(str.strip, row))), [])
    if len(first) == 1 and wanted.is_header_name(first[0].strip()):
        return True
    if not is_even(rows):
        return False
    # Several numbers in each line are not several columns: such text is a list.
    cells = [cell.strip() for row in rows[:200] for cell in row if cell.strip()]
    kinds = {cell[0] in "+0＋" for cell in cells}
    are_all_numbers = len(kinds) == 1 and all(
        isinstance(one, str) for cell in cells for one in parse_cell(cell, wanted.region)
    )
    return not are_all_numbers


def _iter_lines(text: TextSource, report: FileReport) -> Iterator[Cell]:
    text.stream.reconfigure(newline=None)
    for report.rows, line in enumerate(text.stream, 1):
        number = line.strip()
        if number.startswith("#"):
            report.comments += 1
        elif number:
            yield report.rows, number, ()
        else:
            report.empty.add(report.rows)


def _parse_batch(cells: list[Cell], region: str | None, report: ListReport) -> pa.Table:
    positions: list[int] = []
    phones: list[str | None] = []
    reasons: list[str | None] = []
    for position, text, codes in cells:
        for result in parse_cell_of_row(text, codes, region):
            positions.append(position)
            if isinstance(result, str):
                phones.append(result)
                reasons.append(None)
                continue
            reason = str(result)
            phones.append(None)
            reasons.append(reason)
            report.reject(reason.partition(": ")[2].rstrip("."), position)
    return pa.table(
        {
            "position": pa.array(positions, pa.int64()),
            "phone": pa.array(phones, pa.string()),
            "reason": pa.array(reasons, pa.string()).dictionary_encode(),
        }
    )


def _count_from_one(positions: pa.Array) -> pa.Array:
    """Return the number of each row among those of the same position, which follow each other."""
    values = positions.to_numpy()
    starts = np.flatnonzero(np.diff(values, prepend=values[:1] - 1))
    lengths = np.diff(starts, append=len(values))
    return pa.array(np.arange(len(values)) - np.repeat(starts, lengths) + 1)


def _mark_duplicates(table: pa.Table) -> pa.Table:
    """Add the other columns with vector operations; a dict would take 140 bytes per number."""
    table = table.combine_chunks()
    phones = table["phone"].combine_chunks()
    # Codes are assigned in order of appearance, so the code is a new maximum in the first row of a phone.
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
            "entry": _count_from_one(table["position"].combine_chunks()),
            "status": status.dictionary_encode().cast(_STATUS),
            "phone": phones,
            "duplicate_of": duplicate_of,
            "reason": table["reason"].cast(_REASON),
        }
    )
