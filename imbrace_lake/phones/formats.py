"""Recognise the files of lists by their first bytes, unpack and decode them, and reject everything else."""

from __future__ import annotations

import codecs
import io
import itertools
import re
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO, Any

import pyarrow as pa

from imbrace_lake.errors import InputError
from imbrace_lake.phones.sources import CHUNK_BYTES, byte_chunks

HEAD_BYTES = 4096
PARQUET = b"PAR1"
ZIP = b"PK\x03\x04"
OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"

_AS_CSV = "save the list as CSV (UTF-8)"
_UNPACK = "unpack it first (gzip and zstd are unpacked here)"
_OTHERS = (
    (b"\x1f\x8b", "a gzip archive within another", _UNPACK),
    (b"\x28\xb5\x2f\xfd", "a zstd archive within another", _UNPACK),
    (b"BZh", "a bzip2 archive", _UNPACK),
    (b"\xfd7zXZ\0", "an xz archive", _UNPACK),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive", _UNPACK),
    (b"Rar!\x1a\x07", "a RAR archive", _UNPACK),
    (b"\x04\x22\x4d\x18", "an LZ4 archive", _UNPACK),
    (b"PK", "a zip archive", "unpack it first"),
    (OLE, "an old Microsoft Office file", _AS_CSV),
    (b"%PDF", "a PDF", _AS_CSV),
    (b"{\\rtf", "a rich text document", _AS_CSV),
    (b"\x89PNG", "an image", _AS_CSV),
    (b"\xff\xd8\xff", "an image", _AS_CSV),
    (b"GIF8", "an image", _AS_CSV),
    (b"SQLite format 3\0", "an SQLite database", "export the table as CSV"),
    (b"Obj\x01", "an Avro file", "save the list as Parquet or CSV"),
    (b"ORC", "an ORC file", "save the list as Parquet or CSV"),
    (b"ARROW1", "an Arrow file", "save the list as Parquet or CSV"),
    (PARQUET, "Parquet in a stream or archive", "give the path of an uncompressed Parquet file"),
)
# Other digits in a bracket begin a line of a chat: "[27.11.26, 10:30] Anna: …".
_JSON = re.compile(
    r"\{\s*[\"'}]|\{\s*$|\[\s*[\"'{\[\]]|\[\s*(?:-?\d+(?:\.\d+)?(?:e[+-]?\d+)?|null|true|false)\s*(?:,|\]?\s*$)|\[\s*$",
    re.IGNORECASE | re.MULTILINE,
)
# A list may begin with the same two or three letters: PK,phone.
_SHORT = 3
# Documents that may begin with blank lines.
_TEXTUAL = (b"%PDF", b"{\\rtf")
_CONTROL = re.compile(rb"[\0-\x08\x0e-\x1a\x1c-\x1f]")
_BLANK = b"\xef\xbb\xbf \t\r\n"
_VCARD = re.compile(r"BEGIN:VCARD|BEGIN:VCALENDAR", re.IGNORECASE)
_HTML = re.compile(
    r"<!doctype html|<html|<head|<body|<table|<meta|<script|<div|<tr|<td|<!--|mime-version:", re.IGNORECASE
)

SAMPLE_BYTES = 1 << 16
_COMPRESSIONS = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # begins with the mark of UTF-16, so it comes first
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
# In each of them an ASCII digit is one byte that is never part of another character, so a wrong guess
# cannot change a number.
_EAST_ASIAN = ("cp950", "gbk", "cp932", "cp949")
_WESTERN = "cp1252"
_HIGH_BYTES = re.compile(rb"[\x80-\xff]+")


def reject_binary(head: bytes, name: str) -> None:
    """Reject a file that is not text.

    Args:
        head: The first bytes, after unpacking.
        name: The name of the file in the error.

    Raises:
        InputError: The file is an archive, a document, an image or the like.
    """
    for magic, kind, remedy in _OTHERS:
        start = head.lstrip(_BLANK) if magic in _TEXTUAL else head
        if start.startswith(magic) and (len(magic) > _SHORT or not magic.isalpha() or _CONTROL.search(head)):
            raise InputError(f"{name} is {kind}, not a list: {remedy}.")


def reject_markup(text: str, name: str) -> None:
    """Reject text that is not a list.

    Args:
        text: The decoded beginning of the file.
        name: The name of the file in the error.

    Raises:
        InputError: The text is HTML, XML, JSON, a vCard or binary.
    """
    text = text.lstrip("\ufeff \t\r\n")
    if _HTML.match(text) or (text.startswith("<") and "<html" in text[:HEAD_BYTES].lower()):
        what = "an HTML page, perhaps of a sign-in or an error, or a spreadsheet exported as HTML"
        raise InputError(f"{name} is {what}: open it, and save the list as CSV (UTF-8).")
    if text.startswith("<"):
        raise InputError(f"{name} is XML, not a list: {_AS_CSV}.")
    if _JSON.match(text):
        raise InputError(f"{name} is JSON, not a list: {_AS_CSV}, or write one number per line.")
    if _VCARD.match(text):
        raise InputError(f"{name} is a vCard file, not a list: export the contacts as CSV.")
    if "\0" in text:
        raise InputError(f"{name} is not text (it has NUL bytes): {_AS_CSV}.")


def spreadsheet_kind(file: IO[bytes], head: bytes, name: str) -> str:
    """Return the kind of a spreadsheet, given as a zip archive or an OLE file.

    Raises:
        InputError: The file is another archive or document.
    """
    if head.startswith(OLE):
        return "xls"
    try:
        with zipfile.ZipFile(file) as archive:
            members = archive.namelist()
            mimetype = archive.read("mimetype") if "mimetype" in members else b""
    except (zipfile.BadZipFile, KeyError, NotImplementedError, RuntimeError):
        raise InputError(f"{name} is a damaged or protected archive or spreadsheet: save it again.") from None
    if any(member.startswith("xl/") for member in members):
        return "xlsb" if "xl/workbook.bin" in members else "xlsx"
    if b"opendocument.spreadsheet" in mimetype:
        return "ods"
    if any(member.endswith(".iwa") for member in members):
        raise InputError(f"{name} is an Apple Numbers, Pages or Keynote file, not a list: {_AS_CSV}.")
    if any(member.startswith(("word/", "ppt/")) for member in members) or b"opendocument" in mimetype:
        raise InputError(f"{name} is a document, not a list: {_AS_CSV}.")
    raise InputError(f"{name} is a zip archive, not a list: unpack it first.")


@dataclass(frozen=True, slots=True)
class TextSource:
    """Decoded text: a sample of its beginning, and a stream that can be read once.

    Attributes:
        is_complete: The sample is the whole text.
    """

    sample: str
    is_complete: bool
    stream: io.TextIOWrapper
    encoding: str


def read_text(chunks: Iterator[bytes], name: str, is_header: Callable[[str], bool]) -> TextSource:
    """Unpack and decode a file.

    Args:
        chunks: The bytes of the file.
        name: The name of the file in errors.
        is_header: Whether decoded text contains a known column name; decides between encodings.

    Raises:
        InputError: The file is not text, or not a list.
    """
    head, chunks = take(chunks, 4)
    if codec := compression(head):
        packed = pa.PythonFile(io.BufferedReader(_Bytes(chunks)), mode="r")
        chunks = byte_chunks(pa.CompressedInputStream(packed, codec))
    sample, chunks = take(chunks, SAMPLE_BYTES)
    reject_binary(sample[:HEAD_BYTES], name)
    is_complete = len(sample) < SAMPLE_BYTES
    encoding = _guess_encoding(sample, is_complete, is_header)
    text = codecs.getincrementaldecoder(encoding)("replace").decode(sample, final=is_complete)
    reject_markup(text, name)
    # Bytes of another encoding after the sample are usually part of names; in a number they make it invalid.
    stream = io.TextIOWrapper(
        io.BufferedReader(_Bytes(chunks), CHUNK_BYTES), encoding=encoding, errors="replace", newline=""
    )
    return TextSource(text, is_complete, stream, encoding)


def compression(head: bytes) -> str | None:
    """Return how a file with these first bytes is packed: ``gzip`` or ``zstd``; None if it is not."""
    return next((name for magic, name in _COMPRESSIONS.items() if head.startswith(magic)), None)


def _guess_encoding(sample: bytes, is_complete: bool, is_header: Callable[[str], bool]) -> str:
    for mark, encoding in _BYTE_ORDER_MARKS:
        if sample.startswith(mark):
            return encoding
    if _decoded(sample, "utf-8", is_complete) is not None:
        return "utf-8"
    # Accented letters come one at a time, two-byte characters several at a time.
    runs = _HIGH_BYTES.findall(sample)
    is_western = sum(map(len, runs)) < 2 * len(runs)
    candidates = (_WESTERN, *_EAST_ASIAN) if is_western else (*_EAST_ASIAN, _WESTERN)
    fitting = {name: text for name in candidates if (text := _decoded(sample, name, is_complete)) is not None}
    if not fitting:
        return _WESTERN
    known = (name for name, text in fitting.items() if is_header(text))
    return next(known, None) or max(fitting, key=lambda name: sum(map(str.isdecimal, fitting[name])))


def _decoded(sample: bytes, encoding: str, is_complete: bool) -> str | None:
    try:
        return codecs.getincrementaldecoder(encoding)().decode(sample, final=is_complete)
    except UnicodeDecodeError:
        return None


def take(chunks: Iterator[bytes], size: int) -> tuple[bytes, Iterator[bytes]]:
    """Return the first `size` bytes, and an iterator over all bytes from the start."""
    taken: list[bytes] = []
    length = 0
    while length < size and (piece := next(chunks, b"")):
        taken.append(piece)
        length += len(piece)
    return b"".join(taken)[:size], itertools.chain(taken, chunks)


class _Bytes(io.RawIOBase):
    """A file of the chunks of an iterator."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        super().__init__()
        self._chunks = chunks
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._rest:
            self._rest = memoryview(next(self._chunks, b""))
        size = min(len(buffer), len(self._rest))
        buffer[:size] = self._rest[:size]
        self._rest = self._rest[size:]
        return size
