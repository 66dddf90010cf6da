"""Text of a list from bytes: unpacked, and decoded by a byte-order mark, as UTF-8, or by a guess."""

from __future__ import annotations

import codecs
import io
import itertools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from imbrace_lake.phones.formats import HEAD_BYTES, reject_binary, reject_markup
from imbrace_lake.phones.sources import CHUNK_BYTES, byte_chunks

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
        UsageError: The file is not text, or not a list.
    """
    head, chunks = take(chunks, 4)
    if codec := _codec(head):
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


def is_packed(head: bytes) -> bool:
    """Return whether a file with these first bytes is packed by gzip or zstd."""
    return _codec(head) is not None


def _codec(head: bytes) -> str | None:
    return next((codec for magic, codec in _COMPRESSIONS.items() if head.startswith(magic)), None)


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
