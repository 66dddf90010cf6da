"""The arguments of readers: what they can be, and one sentence about each that cannot be used."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from datetime import date, datetime
from numbers import Integral
from typing import Any

import pyarrow as pa

from imbrace_lake.errors import SettingsError
from imbrace_lake.gateway.ids import is_encodable

# What Arrow can count in a batch.
MAX_ROWS = 2**31 - 1


def kind(value: object) -> str:
    """Return the type of a value for a message, because the value itself can be personal."""
    return "None" if value is None else f"of type {type(value).__name__}"


def check_type(name: str, value: object, wanted: type, what: str) -> None:
    """Reject a value that is neither None nor of a type.

    Raises:
        SettingsError: It has another type.
    """
    if value is not None and not isinstance(value, wanted):
        raise SettingsError(f"{name} must be {what}, and is {kind(value)}")


def address(url: object) -> str:
    """Return the URL of a lake, or the path of its folder, as text.

    Raises:
        SettingsError: It is neither a text nor a path.
    """
    text = os.fspath(url) if isinstance(url, os.PathLike) else url
    if not isinstance(text, str):
        raise SettingsError(f"the lake's URL must be a text or a path, and is {kind(url)}")
    check_characters("the lake's URL", text)
    if "\0" in text:
        raise SettingsError("the lake's URL has a null character, which no path can have")
    return text


def check_characters(name: str, text: str) -> None:
    """Reject a text that UTF-8 cannot encode, which engines and stores do not take.

    Raises:
        SettingsError: It has half of a surrogate pair.
    """
    if not is_encodable(text):
        raise SettingsError(f"{name} has half of a surrogate pair, which UTF-8 does not have")


def check_id(name: str, text: str) -> None:
    """Reject a text that cannot be an id.

    Raises:
        SettingsError: It is empty, or has half of a surrogate pair.
    """
    check_characters(name, text)
    if not text.strip():
        raise SettingsError(f"{name} is empty")


def texts(name: str, given: str | Iterable[str], example: str) -> list[str]:
    """Return one or several texts as a list.

    Args:
        name: The argument.
        given: Its value: a text, or several in a list, an Arrow column, or anything else that yields texts.
        example: A text that it can have, for the message.

    Raises:
        SettingsError: Something in it is not a text.
    """
    if isinstance(given, str):
        return [given]
    if isinstance(given, pa.Array | pa.ChunkedArray):
        given = given.to_pylist()
    if isinstance(given, bytes | bytearray) or not isinstance(given, Iterable):
        raise SettingsError(f"{name} must be a list of texts, such as [{example!r}], and is {kind(given)}")
    found = [*given]
    for one in found:
        if not isinstance(one, str):
            raise SettingsError(f"{name} must be texts, such as {example!r}, and one is {kind(one)}")
    return found


def check_time(name: str, moment: object) -> None:
    """Reject a time that is not one moment.

    Raises:
        SettingsError: It is not a `datetime`, or has no time zone.
    """
    if moment is None:
        return
    if not isinstance(moment, datetime):
        parts = f"{moment.year}, {moment.month}, {moment.day}" if isinstance(moment, date) else "2026, 1, 31"
        raise SettingsError(
            f"{name} must be a datetime with a time zone, and is {kind(moment)}:"
            f" write datetime({parts}, tzinfo=UTC)"
        )
    # pandas has a datetime that is none.
    if moment != moment:
        raise SettingsError(f"{name} is NaT, not a time: write datetime(…, tzinfo=UTC), or leave it out")
    if moment.tzinfo is None or moment.utcoffset() is None:
        raise SettingsError(f"{name} has no time zone: write datetime(…, tzinfo=UTC)")


def check_rows(rows: object) -> None:
    """Reject what cannot be the number of rows of a batch.

    Raises:
        SettingsError: It is not a number from 1.
    """
    if isinstance(rows, bool) or not isinstance(rows, int) or not 1 <= rows <= MAX_ROWS:
        shown = rows if type(rows) is int else kind(rows)
        raise SettingsError(f"the rows of a batch must be a number from 1 to {MAX_ROWS}, and are {shown}")


def parameter_values(given: object) -> dict[str, Any] | list[Any]:
    """Return the values of a query's parameters, by name or in their order.

    Raises:
        SettingsError: They are neither.
    """
    if given is None:
        return {}
    if isinstance(given, Mapping):
        for name in given:
            if not isinstance(name, str):
                raise SettingsError(f"the names of parameters must be texts, and one is {kind(name)}")
        return {name: _number(value) for name, value in given.items()}
    if isinstance(given, Sequence) and not isinstance(given, str | bytes | bytearray):
        return [*map(_number, given)]
    raise SettingsError(
        f"parameters must be values by name, {{'name': value}}, or a list for each ?, and are {kind(given)}"
    )


def _number(value: Any) -> Any:
    """Return an integer of NumPy, as data frames have, as one that DuckDB takes; else the value."""
    return int(value) if isinstance(value, Integral) and not isinstance(value, int) else value
