"""JSON without loss, and strict JSON that every query engine accepts.

The grammar of JSON allows more than most parsers: numbers beyond a double, lone surrogates, repeated keys,
unlimited nesting. `parse` keeps all of these and `write` writes them again. `strict` turns a value into one
that all engines read the same way, which nearly always is the value itself.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from decimal import Decimal
from math import isinf
from typing import Any

import orjson

# The limit of the strictest parsers in use (.NET's; MySQL's is 100, that of Polars 128, of Spark 1,000).
MAX_LEVELS = 64
# Shorter JSON cannot be nested deeper: each level takes two characters.
SURELY_STRICT = 2 * MAX_LEVELS
# The longest key that the parser of Spark and Trino accepts.
MAX_KEY_LENGTH = 50_000
# A more deeply nested message is rejected: parsing it would delay all others.
MAX_PARSED_LEVELS = 10_000
LEAST_INTEGER, GREATEST_INTEGER = -(2**63), 2**64 - 1
# Python does not convert longer integers, because that takes quadratic time.
_MAX_INTEGER_DIGITS = 4_000

_SPACES = " \t\n\r"
_TOKEN = re.compile(
    r"""[ \t\n\r]*(?:
        (?P<mark>[\[\]{},:])
      | (?P<string>"[^"\\\x00-\x1f]*(?:\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})[^"\\\x00-\x1f]*)*")
      | (?P<number>-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?)
      | (?P<word>true|false|null)
    )""",
    re.VERBOSE,
)
_WORDS = {"true": True, "false": False, "null": None}
_CLOSING = {"[": "]", "{": "}"}


class Number(float):
    """A number that no double represents exactly, with its text; as a float, the nearest double."""

    __slots__ = ("text",)
    text: str

    def __new__(cls, text: str) -> Number:
        self = super().__new__(cls, text)
        self.text = text
        return self

    def __repr__(self) -> str:
        return self.text

    def __eq__(self, other: object) -> bool:
        return self.text == other.text if isinstance(other, Number) else False

    def __hash__(self) -> int:
        return hash(self.text)


class RepeatedKeys(dict[str, Any]):
    """An object with repeated keys; as a dict, the last value of each.

    Attributes:
        pairs: All keys and values, in their order.
    """

    def __init__(self, pairs: Iterable[tuple[str, Any]]) -> None:
        self.pairs = list(pairs)
        super().__init__(self.pairs)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RepeatedKeys) and self.pairs == other.pairs

    __hash__ = None


def parse(body: bytes) -> Any:
    """Parse JSON so that `write` can write it again, value for value.

    orjson rounds long numbers, drops repeated keys and rejects lone surrogates. If its own output equals the
    body, it has lost nothing. Otherwise the standard library's parser parses the body with hooks that keep
    everything, which takes several times as long.

    Raises:
        ValueError: The body is not JSON, or is nested deeper than `MAX_PARSED_LEVELS`.
    """
    try:
        value = orjson.loads(body)
        written = orjson.dumps(value)
    except (orjson.JSONDecodeError, TypeError):
        # JSON between systems is UTF-8 (RFC 8259, 8.1); a byte-order mark is tolerated.
        return _parse_exactly(body.decode("utf-8-sig", "surrogatepass"))
    if written == body or _skeleton(written) == _skeleton(body):
        return value
    return _parse_exactly(body.decode())


def _skeleton(body: bytes) -> bytes:
    """Return valid JSON without spaces and without the content of its strings."""
    pieces = body.replace(rb"\\", b"").replace(rb"\"", b"").split(b'"')
    return b'"'.join(pieces[::2]).translate(None, _SPACES.encode())


def _parse_exactly(text: str) -> Any:
    try:
        return _DECODER.decode(text)
    except RecursionError:
        return _parse_deep(text)


def _parse_deep(text: str) -> Any:
    """Parse JSON that is nested deeper than the interpreter's stack allows."""
    document = _Document()
    position = 0
    while document.expects != "end":
        match = _TOKEN.match(text, position)
        if match is None or not document.accept(match.lastgroup, match[match.lastgroup or 0]):
            raise ValueError(f"not JSON at character {position}")
        position = match.end()
    if text[position:].strip(_SPACES):
        raise ValueError(f"not JSON after character {position}")
    return document.value


class _Document:
    """A partly parsed JSON document, with a stack of open containers instead of recursion.

    Attributes:
        expects: The next token: `value`, `key`, `colon`, `comma`, or the `end` of the document; with a
            question mark if the container may end instead.
        value: The document's value, at its end.
    """

    def __init__(self) -> None:
        self.expects = "value"
        self.value: Any = None
        # The bracket of each open container, and its members so far.
        self._opened: list[tuple[str, list[Any]]] = []
        # The keys without a value so far.
        self._keys: list[str] = []

    def accept(self, kind: str | None, text: str) -> bool:
        """Add the next token, or return False if it is not allowed here."""
        if self.expects in ("value", "value?") and text in _CLOSING:
            self._open(text)
        elif self.expects in ("value", "value?") and kind != "mark":
            self._add(_scalar(kind, text))
        elif self.expects in ("key", "key?") and kind == "string":
            self._keys.append(_string(text))
            self.expects = "colon"
        elif self.expects == "colon" and text == ":":
            self.expects = "value"
        elif self.expects == "comma?" and text == ",":
            self.expects = "key" if self._opened[-1][0] == "{" else "value"
        elif self.expects[-1] == "?" and text == _CLOSING[self._opened[-1][0]]:
            mark, members = self._opened.pop()
            self._add(members if mark == "[" else _object(members))
        else:
            return False
        return True

    def _open(self, mark: str) -> None:
        if len(self._opened) == MAX_PARSED_LEVELS:
            raise ValueError(f"nested deeper than {MAX_PARSED_LEVELS:,} levels")
        self._opened.append((mark, []))
        self.expects = "value?" if mark == "[" else "key?"

    def _add(self, value: Any) -> None:
        """Add a complete value to its container."""
        if not self._opened:
            self.value, self.expects = value, "end"
            return
        mark, members = self._opened[-1]
        members.append(value if mark == "[" else (self._keys.pop(), value))
        self.expects = "comma?"


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    return values if len(values) == len(pairs) else RepeatedKeys(pairs)


def _scalar(kind: str | None, text: str) -> Any:
    if kind == "string":
        return _string(text)
    if kind == "word":
        return _WORDS[text]
    return _number(text) if {".", "e", "E"} & {*text} else _integer(text)


def _string(text: str) -> str:
    return text[1:-1] if "\\" not in text else json.loads(text)


def _integer(text: str) -> int | float:
    return int(text) if len(text) <= _MAX_INTEGER_DIGITS else Number(text)


def _number(text: str) -> int | float:
    nearest = float(text)
    if isinf(nearest):
        return Number(text)
    if nearest == 0:
        # A decimal cannot have every exponent, and this needs none.
        return Number(text) if re.match("[-0.]*[1-9]", text) else nearest
    return nearest if Decimal(repr(nearest)) == Decimal(text) else Number(text)


def _reject(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


_DECODER = json.JSONDecoder(
    object_pairs_hook=_object, parse_float=_number, parse_int=_integer, parse_constant=_reject
)


def write(value: Any, *, is_sorted: bool = False) -> str:
    """Write compact ASCII JSON that `parse` reads as the same value, at any depth.

    Args:
        value: A value from `parse`.
        is_sorted: Sort the keys of objects; repeated keys keep their order.
    """
    pieces: list[str] = []
    # The rest to write, in reverse: finished texts, and values in a tuple.
    left: list[str | tuple[Any]] = [(value,)]
    while left:
        one = left.pop()
        if isinstance(one, str):
            pieces.append(one)
            continue
        (value,) = one
        if isinstance(value, dict):
            pairs = value.pairs if isinstance(value, RepeatedKeys) else [*value.items()]
            pairs = sorted(pairs, key=lambda pair: pair[0]) if is_sorted else pairs
            left.append("}")
            for number, (key, member) in reversed([*enumerate(pairs)]):
                left += [(member,), f"{',' * (number > 0)}{json.dumps(key)}:"]
            pieces.append("{")
        elif isinstance(value, list | tuple):
            left.append("]")
            for number, member in reversed([*enumerate(value)]):
                left += [(member,), "," * (number > 0)]
            pieces.append("[")
        else:
            pieces.append(value.text if isinstance(value, Number) else json.dumps(value))
    return "".join(pieces)


def strict(value: Any, levels: int = MAX_LEVELS) -> Any:
    """Return the nearest value that all engines read the same way, nearly always the value itself.

    A lone surrogate becomes a question mark. A number of more than 64 bits becomes the nearest double, or
    null beyond all doubles. Of a repeated key the last value stays. Values nested deeper than `MAX_LEVELS`
    become null; keys are cut to `MAX_KEY_LENGTH`.
    """
    if isinstance(value, str):
        return encodable(value)
    if isinstance(value, int):
        fits = isinstance(value, bool) or LEAST_INTEGER <= value <= GREATEST_INTEGER
        return value if fits else _double(value)
    if isinstance(value, float):
        return None if isinf(value) or value != value else float(value)
    if isinstance(value, dict):
        if not levels:
            return None
        return {encodable(key)[:MAX_KEY_LENGTH]: strict(member, levels - 1) for key, member in value.items()}
    if isinstance(value, list | tuple):
        return [strict(member, levels - 1) for member in value] if levels else None
    return value


def _double(value: int) -> float | None:
    try:
        return float(value)
    except OverflowError:
        return None


def is_strict(value: Any) -> bool:
    """Whether `strict` leaves a value unchanged."""
    return write(strict(value)) == write(value)


def may_be_loose(text: bytes) -> bool:
    """Whether orjson's output may be nested too deeply or have too long a key; a quick check.

    Texts of up to `SURELY_STRICT` bytes do not need it.
    """
    return text.count(b"[") + text.count(b"{") > MAX_LEVELS or len(text) > MAX_KEY_LENGTH


def encodable(text: str) -> str:
    """Return the text, with question marks for lone surrogates, which UTF-8 cannot encode."""
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "replace").decode()
    return text
