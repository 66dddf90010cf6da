"""Decode compressed bodies piece by piece, because a small body can decode to a huge one."""

from __future__ import annotations

import zlib
from collections.abc import Generator, Iterator

# The requested codings; `x-gzip` is gzip (RFC 9110, 8.4.1.3).
ACCEPTED = "gzip, deflate"
_CODINGS = frozenset({"gzip", "x-gzip", "deflate"})
MAX_CODINGS = 2
PIECE_BYTES = 1 << 16
# Servers send one member. An empty one has 20 bytes, so a hostile body could have a million.
MAX_MEMBERS = 100


class Undecodable(ValueError):
    """A body that is not as its `Content-Encoding` states; the message does not quote the body."""


class BodyDecoder:
    """Decodes the body of one answer.

    Args:
        header: The answer's `Content-Encoding`; empty for none.

    Raises:
        Undecodable: The header names a coding that was not requested.
    """

    def __init__(self, header: str) -> None:
        codings = [coding for name in header.lower().split(",") if (coding := name.strip())]
        codings = [coding for coding in codings if coding != "identity"]
        if not _CODINGS.issuperset(codings) or len(codings) > MAX_CODINGS:
            raise Undecodable("a content coding that was not requested")
        # The last coding was applied last, so it is removed first.
        self._layers = [_Inflater(is_gzip=coding != "deflate") for coding in reversed(codings)]

    def decode(self, data: bytes) -> Iterator[bytes]:
        """Decode the next received bytes, in pieces of at most `PIECE_BYTES`.

        Raises:
            Undecodable: The data do not have the stated coding.
        """
        pieces = iter((data,))
        for layer in self._layers:
            pieces = layer.decode(pieces)
        return pieces

    def finish(self) -> None:
        """Check that the body was complete.

        Raises:
            Undecodable: The compressed data end early.
        """
        for layer in self._layers:
            layer.finish()


class _Inflater:
    """One coding: gzip with any number of members, or deflate with or without the zlib header."""

    def __init__(self, *, is_gzip: bool) -> None:
        self._is_gzip = is_gzip
        self._inflate: zlib._Decompress | None = None
        self._head = b""
        self._members = 1

    def decode(self, pieces: Iterator[bytes]) -> Iterator[bytes]:
        for piece in pieces:
            data = self._head + piece
            self._head = b""
            while data:
                if self._inflate is None:
                    if not self._is_gzip and len(data) < 2:
                        self._head = data
                        break
                    self._inflate = zlib.decompressobj(16 + zlib.MAX_WBITS if self._is_gzip else _wbits(data))
                elif self._inflate.eof:
                    # Zeros after the end are padding.
                    if not data.lstrip(b"\0"):
                        break
                    self._members += 1
                    if not self._is_gzip or self._members > MAX_MEMBERS:
                        raise Undecodable("a compressed body with data after its end")
                    self._inflate = zlib.decompressobj(16 + zlib.MAX_WBITS)
                data = yield from self._inflated(self._inflate, data)

    def _inflated(self, inflate: zlib._Decompress, data: bytes) -> Generator[bytes, None, bytes]:
        """Yield the output for `data`, and return the bytes after the end of the compressed data."""
        while True:
            try:
                piece = inflate.decompress(data, PIECE_BYTES)
            except zlib.error:
                name = "gzip" if self._is_gzip else "deflate"
                raise Undecodable(f"a body that is not {name}, although it claims to be") from None
            if piece:
                yield piece
            data = inflate.unconsumed_tail
            # After a full piece the decompressor may have more output, even without input.
            if inflate.eof or (not data and len(piece) < PIECE_BYTES):
                return inflate.unused_data

    def finish(self) -> None:
        if self._head or (self._inflate is not None and not self._inflate.eof):
            raise Undecodable("a compressed body that ends early")


def _wbits(data: bytes) -> int:
    """Return the `wbits` of deflate data, which some servers send without a zlib header (RFC 1950, 2.2)."""
    has_header = data[0] & 0x0F == 8 and (data[0] << 8 | data[1]) % 31 == 0
    return zlib.MAX_WBITS if has_header else -zlib.MAX_WBITS
