"""JSON without loss, and strict JSON that every query engine accepts.

The grammar of JSON allows more than most parsers: numbers beyond a double, lone surrogates, repeated keys,
unlimited nesting. `parse` keeps all of these and `write` writes them again. `strict` turns a value into one
that all engines read the same way, which nearly always is the value itself.
"""

from __future__ import annotations

import json
import re
from collections.abc import Generator, Iterable
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
_NO_SPACE = re.compile(rf"[^{_SPACES}]|\Z")
# Not after a single backslash, which makes the text invalid.
_RAW_SURROGATE = re.compile(r"(?<!\\)((?:\\\\)*)([\ud800-\udfff])")


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
        text = body.decode("utf-8-sig", "surrogatepass")
        # As escapes, so that two halves of one character become that character, as everywhere in JSON.
        return _parse_exactly(_RAW_SURROGATE.sub(lambda match: f"{match[1]}\\u{ord(match[2]):04x}", text))
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
    """Parse an array or object that is nested deeper than the interpreter's stack allows."""
    # A parser for each open container, instead of recursion.
    opened = [_parse_container(text, _skip_spaces(text, 0))]
    value, position = None, 0
    while opened:
        try:
            position = opened[-1].send((value, position) if position else None)
        except StopIteration as end:
            opened.pop()
            value, position = end.value
        else:
            if text.startswith(("[", "{"), position):
                if len(opened) == MAX_PARSED_LEVELS:
                    raise ValueError(f"nested deeper than {MAX_PARSED_LEVELS:,} levels")
                opened.append(_parse_container(text, position))
                position = 0
                continue
            value, position = _DECODER.raw_decode(text, position)
        position = _skip_spaces(text, position)
    if position < len(text):
        raise ValueError(f"not JSON after character {position}")
    return value


def _parse_container(text: str, start: int) -> Generator[int, Any, tuple[Any, int]]:
    """Parse an array or object.

    Yields:
        The position of each key and value; the caller sends it back parsed, with the position after it.

    Returns:
        The array or object, and the position after it.
    """
    is_object = text[start] == "{"
    closing = "}" if is_object else "]"
    members: list[Any] = []
    position = _skip_spaces(text, start + 1)
    is_over = text.startswith(closing, position)
    while not is_over:
        key = None
        if is_object:
            key, position = yield position
            if not isinstance(key, str) or not text.startswith(":", position):
                raise ValueError(f"not JSON at character {position}")
            position = _skip_spaces(text, position + 1)
        value, position = yield position
        members.append((key, value) if is_object else value)
        is_over = text.startswith(closing, position)
        if not is_over and not text.startswith(",", position):
            raise ValueError(f"not JSON at character {position}")
        position = position if is_over else _skip_spaces(text, position + 1)
    return _object(members) if is_object else members, position + 1


def _skip_spaces(text: str, position: int) -> int:
    return _NO_SPACE.search(text, position).start()  # type: ignore[union-attr] # it also finds the end


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    return values if len(values) == len(pairs) else RepeatedKeys(pairs)


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
        if isinstance(value, bool) or LEAST_INTEGER <= value <= GREATEST_INTEGER:
            return value
        try:
            return float(value)
        except OverflowError:
            return None
    if isinstance(value, float):
        return None if isinf(value) or value != value else float(value)
    if isinstance(value, dict):
        if not levels:
            return None
        return {encodable(key)[:MAX_KEY_LENGTH]: strict(member, levels - 1) for key, member in value.items()}
    if isinstance(value, list | tuple):
        return [strict(member, levels - 1) for member in value] if levels else None
    return value


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
