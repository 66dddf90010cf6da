"""Phone numbers from a column of CSV or Parquet, and which column that is."""

from __future__ import annotations

import csv
import io
import itertools
import math
import re
from collections.abc import Callable, Iterator, Sequence
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from imbrace_lake.errors import InvalidPhoneNumber, UsageError
from imbrace_lake.phones.numbers import parse_phone
from imbrace_lake.phones.sources import TextSource

_BATCH_ROWS = 1 << 16
_SAMPLE_ROWS = 200
_DELIMITERS = ",;\t|"
_MIN_DIGITS = 7
_MAX_NAMES_SHOWN = 20
_MAX_CHARACTERS_SHOWN = 30
# Header names as people write them, compared without case, spaces and punctuation.
_USUAL_NAMES = re.compile(
    r"(?:(?:contact|customer|client|user|whatsapp|wa|mobile|cell)?(?:tele|cell)?phone(?:s|no|num|numbers?|e164)?)"
    r"|(?:contact|mobile|cell|tel|telephone|whatsapp|msisdn|wa)(?:s|no|num|numbers?|id)?|e164"
    r"|(?:電話|手機|行動電話|聯絡電話|電話番号|携帯電話|携帯番号|电话|手机|联系电话)(?:號碼|号码|号)?|전화(?:번호)?|휴대폰(?:번호)?"
    r"|(?:tele(?:f|ph)on|handy|mobil|mobiltelefon|ruf)(?:nummer|nr)?|telefoon(?:nummer)?|(?:no|nomor)?(?:hp|telepon|telefon)"
    r"|(?:n[uú]mero(?:de)?)?(?:tel[eé]fono|telefone|t[eé]l[eé]phone|telem[oó]vel|celular|m[oó]vil|cellulare)|portable"
    r"|(?:номер)?(?:телефона?|мобильный)|điệnthoại|sốđiệnthoại|sđt|เบอร์โทร(?:ศัพท์)?|(?:رقم)?(?:ال)?(?:هاتف|جوال)"
)


def iter_csv(
    text: TextSource, name: str, column: str | None, region: str | None
) -> Iterator[tuple[int, str]]:
    """Yield position and text of the filled cells of the phone column; delimiter and header are recognised.

    The first row is the header unless one of its cells looks like a phone number.
    """
    delimiter = _delimiter(text.sample)
    rows = list(csv.reader(io.StringIO(text.sample, newline=""), delimiter=delimiter))
    rows = rows if text.is_whole else rows[:-1]
    first = next((index for index, row in enumerate(rows) if any(map(str.strip, row))), None)
    if first is None and not text.is_whole:
        raise UsageError(f"{name} is not proper CSV: its first row does not end.")
    if first is None:
        return
    names = None if any(_is_phone_like(cell, region) for cell in rows[first]) else rows[first]
    body = rows[first if names is None else first + 1 :]
    index = find_column(names, body[:_SAMPLE_ROWS], column, region, name)
    before = 0 if names is None else first + 1
    cells = itertools.islice(_iter_cells(text.stream, name, delimiter, index), before, None)
    for position, cell in enumerate(cells, 1):
        if cell.strip():
            yield position, cell


def _iter_cells(stream: io.TextIOBase, name: str, delimiter: str, index: int) -> Iterator[str]:
    """Yield one cell a row, from the first row on, empty where a row is blank or short."""
    # Imported here, because it takes 60 MB and half a second that only CSV needs.
    import pandas as pd

    try:
        with pd.read_csv(
            _Headed(delimiter.join(map(str, range(index + 1))) + "\n", stream),
            sep=delimiter,
            usecols=[index],
            index_col=False,
            dtype=str,
            na_filter=False,
            # Skipped lines would make every later row number wrong.
            skip_blank_lines=False,
            chunksize=_BATCH_ROWS,
        ) as chunks:
            for chunk in chunks:
                yield from chunk.iloc[:, 0].tolist()
    except pd.errors.ParserError as exc:
        where = re.search(r"(?:line|row) \d+", str(exc))
        raise UsageError(f"{name} is not proper CSV{f' near {where[0]}' if where else ''}.") from None


class _Headed(io.TextIOBase):
    """Text below a header that is as wide as it must be.

    pandas takes the width of a table from its first row: it fails if that is blank, and if it is short, it
    drops the wider rows after it without a word.
    """

    def __init__(self, header: str, stream: io.TextIOBase) -> None:
        self._header = header
        self._stream = stream

    def read(self, size: int | None = -1) -> str:
        header, self._header = self._header, ""
        return header or self._stream.read(size)


def iter_parquet(
    file: IO[bytes], name: str, column: str | None, region: str | None
) -> Iterator[tuple[int, str]]:
    """Yield position and text of the filled cells of the phone column, which may hold text or numbers."""
    parquet = pq.ParquetFile(file)
    names = parquet.schema_arrow.names
    sample = next(parquet.iter_batches(batch_size=_SAMPLE_ROWS), None)
    rows = [] if sample is None else list(zip(*map(_texts, sample.columns), strict=True))
    index = find_column(names, rows, column, region, name)
    if not _is_readable(parquet.schema_arrow.field(index).type):
        raise UsageError(f"Column {names[index]!r} of {name} holds neither text nor numbers: choose another.")
    # Names may repeat, and then all columns of that name are read.
    which = names[:index].count(names[index])
    batches = parquet.iter_batches(batch_size=_BATCH_ROWS, columns=[names[index]])
    cells = itertools.chain.from_iterable(_texts(batch.column(which)) for batch in batches)
    for position, cell in enumerate(cells, 1):
        if cell.strip():
            yield position, cell


def find_column(
    names: Sequence[str] | None,
    rows: Sequence[Sequence[str]],
    column: str | None,
    region: str | None,
    source: str,
) -> int:
    """Return the index of the column that holds the phone numbers.

    Args:
        names: The header, or None where there is none.
        rows: Some rows to look at; a short row lacks its last cells.
        column: A name, or a number that counts from 1; a name wins. None to find it: the one with a usual
            name, the only one, or the only one whose values are mostly phone numbers.
        region: The default region of the numbers.
        source: Named in errors.

    Raises:
        UsageError: There is no such column, none that holds phone numbers, or more than one.
    """
    width = len(names) if names is not None else max(map(len, rows))
    shown = [str(number) for number in range(1, width + 1)] if names is None else [*names]
    if column is not None:
        return _named_column(shown, column, source)
    if width == 1:
        return 0
    usual = [index for index, name in enumerate(shown) if _USUAL_NAMES.fullmatch(_plain(name))]
    if len(usual) == 1:
        return usual[0]
    cells = {
        index: [row[index] for row in rows if index < len(row) and row[index].strip()]
        for index in usual or range(width)
    }
    for test in (_is_phone, _is_phone_like):
        likely = [index for index, values in cells.items() if _mostly(values, region, test)]
        if len(likely) == 1:
            return likely[0]
        if likely:
            listed = _listed([shown[index] for index in likely])
            raise UsageError(
                f"{source} has several columns of phone numbers, {listed}: choose one with --column."
            )
    raise UsageError(
        f"{source} has no column known to be phone numbers, only {_listed(shown)}: use --column."
    )


def _named_column(names: Sequence[str], column: str, source: str) -> int:
    for same in (str, str.strip, _plain):
        matches = [index for index, name in enumerate(names) if same(name) == same(column)]
        if len(matches) == 1:
            return matches[0]
        if matches:
            raise UsageError(f"{source} has several columns {column!r}: give the column's number instead.")
    if column.isdecimal() and 1 <= int(column) <= len(names):
        return int(column) - 1
    raise UsageError(f"{source} has no column {column!r}, only {_listed(names)}.")


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(
        name.strip()[:_MAX_CHARACTERS_SHOWN] or "(no name)" for name in names[:_MAX_NAMES_SHOWN]
    )
    return shown + (f" and {len(names) - _MAX_NAMES_SHOWN} more" if len(names) > _MAX_NAMES_SHOWN else "")


def _plain(name: str) -> str:
    return re.sub(r"[\s\W_]+", "", name.casefold()) or name


def _mostly(values: Sequence[str], region: str | None, test: Callable[[str, str | None], bool]) -> bool:
    return 2 * sum(test(value, region) for value in values) > len(values)


def _is_phone(text: str, region: str | None) -> bool:
    try:
        parse_phone(text, region)
    except InvalidPhoneNumber:
        return False
    return True


def _is_phone_like(text: str, region: str | None) -> bool:
    """Tell whether a cell is meant as a phone number, were it damaged or without its country code."""
    count = sum(char.isdecimal() for char in text)
    has_letters = any(char.isalpha() and char not in "eE" for char in text)
    return _is_phone(text, region) or (count >= _MIN_DIGITS and count * 2 >= len(text) and not has_letters)


def _delimiter(sample: str) -> str:
    line = next((line for line in sample.splitlines() if line.strip()), "")
    bare = re.sub(r'"[^"]*"', "", line)
    return max(_DELIMITERS, key=bare.count)


def _is_readable(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    tests = (
        "string",
        "large_string",
        "string_view",
        "binary",
        "large_binary",
        "integer",
        "floating",
        "decimal",
    )
    return any(getattr(pa.types, f"is_{test}")(kind) for test in tests)


def _texts(values: pa.Array) -> list[str]:
    """Return cells as text; nulls, and types that hold neither text nor numbers, as empty."""
    if not _is_readable(values.type):
        return [""] * len(values)
    return ["" if value is None else _text(value) for value in values.to_pylist()]


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, bytes):
        return value.decode()
    # A number column that holds a null often comes as floats, and its nulls as NaN.
    if math.isnan(value):
        return ""
    return str(int(value)) if math.isfinite(value) and value == int(value) else str(value)
