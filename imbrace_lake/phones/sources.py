"""Where a list of phone numbers comes from: a path, a URL or a stream, as plain bytes and as text.

Nothing here knows what a phone number is. Compression is recognised by content, because the names of exported
files are often wrong; every trouble on the way becomes one sentence without credentials.
"""

from __future__ import annotations

import codecs
import contextlib
import io
import itertools
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

import fsspec
import pyarrow as pa

from imbrace_lake.errors import UsageError

CHUNK_BYTES = 1 << 20
SAMPLE_BYTES = 1 << 16
_COMPRESSIONS = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # begins with the mark of UTF-16, so it comes first
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


_REASONS = {
    "OSError": "it is damaged or cut short, or its storage failed",
    "ArrowInvalid": "it is damaged or cut short",
    "ImportError": "the package for such addresses is not installed",
    "NoCredentialsError": "there are no AWS credentials; set AWS_PROFILE or AWS_ACCESS_KEY_ID",
    "PartialCredentialsError": "the AWS credentials are incomplete",
    "EndpointConnectionError": "the store does not answer; check AWS_ENDPOINT_URL",
}


class Readable(Protocol):
    """A stream of text or bytes, such as standard input."""

    def read(self, size: int = ..., /) -> str | bytes: ...


@dataclass(frozen=True, slots=True)
class TextSource:
    """Decoded text: its first part to look at, and all of it to read once."""

    sample: str
    is_whole: bool
    stream: io.TextIOWrapper


def display_name(source: object) -> str:
    """Name a source in messages, without the credentials and signatures a URL can hold."""
    if hasattr(source, "read"):
        return "standard input"
    if not isinstance(source, str | Path):
        return "the arguments"
    name = str(source)
    if "://" not in name:
        return name
    # Secrets can hold slashes, and keys can hold @: better to show too little of an odd key.
    return re.sub(r"://.*@", "://***@", name).partition("?")[0]


@contextlib.contextmanager
def explained(name: str) -> Iterator[None]:
    """Turn what files, stores and decoders raise into one sentence about `name`."""
    try:
        yield
    except UnicodeError:
        raise UsageError(f"{name} is neither UTF-8 nor UTF-16 text: save it as UTF-8.") from None
    except FileNotFoundError:
        where = " (or its bucket, or its server)" if "://" in name else ""
        raise UsageError(f"{name} does not exist{where}: check the address.") from None
    except IsADirectoryError:
        raise UsageError(f"{name} is a directory: name one file in it.") from None
    except PermissionError:
        raise UsageError(f"{name} may not be read with your permissions or credentials.") from None
    except _read_errors() as exc:
        # The error's own text may hold a signed URL; its class says enough, and the cause is cut off.
        kind = type(exc).__name__
        raise UsageError(f"{name} cannot be read: {_REASONS.get(kind, kind)}.") from None


def _read_errors() -> tuple[type[Exception], ...]:
    """Return what reading can raise; what S3 raises can only be asked for if its library was needed."""
    botocore = sys.modules.get("botocore.exceptions")
    of_s3 = (botocore.BotoCoreError, botocore.ClientError) if botocore else ()
    return (OSError, EOFError, ImportError, pa.ArrowException, *of_s3)


@contextlib.contextmanager
def open_source(source: str | Path) -> Iterator[IO[bytes]]:
    """Open a local path (with ``~``), or any URL that fsspec knows, for reading bytes."""
    if isinstance(source, Path) or "://" not in source:
        with Path(source).expanduser().open("rb") as file:
            yield file
        return
    try:
        filesystem, path = fsspec.core.url_to_fs(source)
    except ValueError:
        scheme = source.partition("://")[0]
        raise UsageError(
            f"{display_name(source)} has an address that nothing here reads: {scheme}://."
        ) from None
    # The usual block of s3fs is 50 MB, a multiple of what a long list needs.
    with filesystem.open(path, "rb", block_size=4 * CHUNK_BYTES) as file:
        yield file


def byte_chunks(stream: Readable) -> Iterator[bytes]:
    """Read a stream to its end; text is encoded, so that one way of reading serves all sources."""
    # The bytes below a text stream keep their encoding, which it may have guessed wrongly.
    raw: Readable = getattr(stream, "buffer", stream)
    while piece := raw.read(CHUNK_BYTES):
        yield piece if isinstance(piece, bytes) else piece.encode("utf-8", "surrogatepass")


def read_text(chunks: Iterator[bytes], name: str) -> TextSource:
    """Decompress and decode; the encoding is told from a byte-order mark or from a sample."""
    head, chunks = _take(chunks, 4)
    codec = next((codec for magic, codec in _COMPRESSIONS.items() if head.startswith(magic)), None)
    if codec:
        packed = pa.PythonFile(io.BufferedReader(_Bytes(chunks)), mode="r")
        chunks = byte_chunks(pa.CompressedInputStream(packed, codec))
        head, chunks = _take(chunks, 4)
    if head.startswith(b"PK\x03\x04"):
        raise UsageError(f"{name} is a spreadsheet or an archive: save the list as CSV (UTF-8).")
    if head == b"PAR1":
        raise UsageError(f"{name} is Parquet in a stream: give the path of an uncompressed Parquet file.")
    sample, chunks = _take(chunks, SAMPLE_BYTES)
    encoding = _encoding(sample)
    is_whole = len(sample) < SAMPLE_BYTES
    text = codecs.getincrementaldecoder(encoding)().decode(sample, final=is_whole)
    stream = io.TextIOWrapper(io.BufferedReader(_Bytes(chunks), CHUNK_BYTES), encoding=encoding, newline="")
    return TextSource(sample=text, is_whole=is_whole, stream=stream)


def _encoding(sample: bytes) -> str:
    for mark, encoding in _BYTE_ORDER_MARKS:
        if sample.startswith(mark):
            return encoding
    # Digits in UTF-16 are every other byte; in UTF-8 a NUL has no business in a list.
    if sample[1:2] == b"\0":
        return "utf-16-le"
    return "utf-16-be" if sample[:1] == b"\0" else "utf-8"


def _take(chunks: Iterator[bytes], size: int) -> tuple[bytes, Iterator[bytes]]:
    """Look at the first `size` bytes, and return them together with everything from the start on."""
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
