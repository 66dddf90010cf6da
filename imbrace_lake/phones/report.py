"""The report of how a list was read: the reader's choices, and the rows it skipped, without any number."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from imbrace_lake.printable import plural, without_numbers

MAX_POSITIONS = 20
MAX_FILES = 20
MAX_COLUMNS = 20
MAX_CHARACTERS = 30

ARGUMENTS = "the arguments"
"""The name, in messages, of a list that was typed."""

# The command line and Prefect's forms both show these sentences.
COLUMN_SETTING = "--column (in forms: Columns)"
SHEET_SETTING = "--sheet (in forms: Sheet)"


@dataclass(slots=True)
class Skipped:
    """Rows that were skipped for one reason: their number, and the positions of the first ones."""

    count: int = 0
    positions: list[int] = field(default_factory=list)

    def add(self, position: int) -> None:
        """Count one row."""
        self.count += 1
        if len(self.positions) < MAX_POSITIONS:
            self.positions.append(position)


@dataclass(slots=True)
class FileReport:
    """How one file was read.

    Attributes:
        name: The file's name or address, without credentials.
        unit: The unit of positions: ``line``, ``data row`` or ``number``.
        first: The number of rows in all files before this one.
        rows: The number of rows read, without header and titles.
        format: ``text``, ``CSV``, ``Parquet`` or the kind of spreadsheet.
        encoding: The encoding of text; a guess unless it is UTF-8 or there is a byte-order mark.
        header_row: The position of the header in the file, from 1; None without a header.
        titles: The number of filled rows above the header, which are skipped.
        columns: The names of the columns that were read, or their positions if there is no header.
        code_columns: The names of the columns with the country codes of the numbers.
        left_out: Columns that were not read, with the number of their cells that look like phone numbers.
        empty: Rows without any text in these columns.
        comments: The number of lines that begin with ``#``.
    """

    name: str
    first: int = 0
    unit: str = "line"
    rows: int = 0
    format: str = "text"
    encoding: str | None = None
    delimiter: str | None = None
    sheet: str | None = None
    other_sheets: list[str] = field(default_factory=list)
    header_row: int | None = None
    titles: int = 0
    columns: list[str] = field(default_factory=list)
    code_columns: list[str] = field(default_factory=list)
    left_out: dict[str, int] = field(default_factory=dict)
    empty: Skipped = field(default_factory=Skipped)
    comments: int = 0

    def as_json(self) -> dict[str, Any]:
        """Return plain JSON values; long lists are cut."""
        return {
            "name": self.name,
            "format": self.format,
            "description": self.describe(),
            "rows": self.rows,
            "encoding": self.encoding,
            "delimiter": self.delimiter,
            "sheet": self.sheet and without_numbers(self.sheet),
            "other_sheets": [*map(without_numbers, self.other_sheets[:MAX_COLUMNS])],
            "header_row": self.header_row,
            "titles_skipped": self.titles,
            "columns": [short(name) for name in self.columns[:MAX_COLUMNS]],
            "code_columns": [short(name) for name in self.code_columns[:MAX_COLUMNS]],
            "left_out": [
                {"column": short(name), "cells": count}
                for name, count in sorted(self.left_out.items(), key=lambda item: -item[1])[:MAX_COLUMNS]
            ],
            "rows_without_text": {"count": self.empty.count, "positions": self.empty.positions},
            "comments": self.comments,
        }

    def describe(self) -> str:
        """Return one line for people: ``CSV, utf-8, columns phone, phone_2, header in row 2``."""
        parts = [self.format, self.encoding, self.sheet and f"sheet {short(self.sheet)}"]
        if self.delimiter and self.delimiter != ",":
            parts.append("delimiter " + self.delimiter.replace("\t", "tab"))
        if self.columns:
            noun = "column" if len(self.columns) == 1 else "columns"
            parts.append(f"{noun} {listed(self.columns)}")
            if self.code_columns:
                parts.append(f"country codes in {listed(self.code_columns)}")
            # Columns of Parquet have names without a header.
            if self.format != "Parquet":
                parts.append(f"header in row {self.header_row}" if self.header_row else "no header")
        return ", ".join(filter(None, parts))

    def warnings(self) -> Iterator[str]:
        """Yield a sentence for each choice that may have left out numbers, or completed them."""
        if self.code_columns:
            names = listed(self.code_columns)
            yield f"{self.name}: numbers without + were read with the country code in column {names}"
        for name, count in sorted(self.left_out.items(), key=lambda item: -item[1])[:MAX_COLUMNS]:
            cells = plural(count, "cell looks like a phone number", "cells look like phone numbers")
            choice = f"choose columns with {COLUMN_SETTING}"
            yield f"{self.name}: column {short(name)} was not read, but {cells}; {choice}"
        if self.other_sheets:
            names = listed(self.other_sheets)
            sheet = short(self.sheet or "")
            yield f"{self.name}: only sheet {sheet} was read, not {names}; choose with {SHEET_SETTING}"
        if self.sheet is not None and self.empty.count:
            rows = plural(self.empty.count, "row has no number", "rows have no number")
            yield (
                f"{self.name}: {rows} in these columns; errors (#N/A) and formulas without a stored value are"
                " blank here: open and save the file if there should be a number"
            )
        if self.titles:
            yield f"{self.name}: {plural(self.titles, 'row')} above the header skipped"
        if self.comments:
            yield f"{self.name}: {plural(self.comments, 'line')} with # skipped"


@dataclass(slots=True)
class ListReport:
    """How a list was read, file by file.

    Attributes:
        source: The name of the list in messages.
        files: The files in the order in which they were read.
        skipped_files: Hidden and empty files of a folder.
        counts: Numbers by status: ``ok``, ``duplicate``, ``invalid``; ids have ``ok`` and ``duplicate``.
        rejected: Rows without a valid number, by reason; their positions count over all files.
        rounded: Numbers that end in five zeros, if there are more than by chance.
    """

    source: str
    files: list[FileReport] = field(default_factory=list)
    skipped_files: list[str] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    rejected: dict[str, Skipped] = field(default_factory=dict)
    rounded: int = 0

    @property
    def rows(self) -> int:
        """The number of rows read."""
        return sum(file.rows for file in self.files)

    def add_file(self, name: str) -> FileReport:
        """Add the report of the next file."""
        self.files.append(FileReport(name, first=self.rows))
        return self.files[-1]

    def reject(self, reason: str, position: int) -> None:
        """Count one invalid number."""
        self.rejected.setdefault(reason, Skipped()).add(position)

    def describe_position(self, position: int) -> str:
        """Return the position of a row for people: ``line 17 of numbers.txt``."""
        file = self.files[max(0, bisect_right(self.files, position - 1, key=lambda file: file.first) - 1)]
        name = self.source if len(self.files) == 1 else file.name.rpartition("/")[2]
        unit = "number" if name == ARGUMENTS else file.unit
        return f"{unit} {position - file.first} of {name}"

    def describe(self) -> str:
        """Return one line for people."""
        if len(self.files) == 1:
            return self.files[0].describe()
        return f"{len(self.files):,} files, the first: {self.files[0].describe()}" if self.files else ""

    def warnings(self) -> list[str]:
        """Return at most 20 sentences, one for each choice that may have left out numbers."""
        # Of many files, those with such columns come first.
        files = sorted(self.files, key=lambda file: not file.left_out)
        found = [sentence for file in files for sentence in file.warnings()]
        if self.skipped_files:
            count = len(self.skipped_files)
            skipped = f"{count:,} hidden or empty {'files were' if count != 1 else 'file was'} not read"
            found.append(f"{self.source}: {skipped}")
        if self.rounded:
            numbers = f"{self.rounded:,} numbers end in five zeros"
            why = "if a spreadsheet or a program has rounded them, they are others: export the column as text"
            found.insert(0, f"{self.source}: {numbers}; {why}")
        more = len(found) - MAX_COLUMNS
        if more > 0:
            rest = plural(more + 1, "remark like these is not shown", "remarks like these are not shown")
            found[MAX_COLUMNS - 1 :] = [f"{self.source}: {rest}"]
        return found

    def as_json(self) -> dict[str, Any]:
        """Return plain JSON values of a bounded size, without phone numbers."""
        return {
            "source": self.source,
            "rows": self.rows,
            "numbers": dict(self.counts),
            "files": [file.as_json() for file in self.files[:MAX_FILES]],
            "file_count": len(self.files),
            "warnings": self.warnings(),
            "skipped_files": [name.rpartition("/")[2] for name in self.skipped_files[:MAX_FILES]],
            "rejected": [
                {
                    "reason": reason,
                    "count": skipped.count,
                    "where": [self.describe_position(position) for position in skipped.positions],
                }
                for reason, skipped in sorted(self.rejected.items(), key=lambda item: -item[1].count)
            ],
        }


def listed(names: Sequence[str]) -> str:
    """Return the first names for people, and how many more there are."""
    shown = ", ".join(map(short, names[:MAX_COLUMNS]))
    return shown + (f" and {len(names) - MAX_COLUMNS} more" if len(names) > MAX_COLUMNS else "")


def short(name: str) -> str:
    """Return a name from a file as printable text on one line, without phone numbers, cut if long."""
    printable = "".join(char if char.isprintable() else " " for char in without_numbers(name))
    return " ".join(printable.split())[:MAX_CHARACTERS] or "(no name)"
