"""The inputs of a command, phone numbers or conversation ids, as the address of a list.

Prefect stores and shows the parameters of a flow in clear, so numbers from arguments or standard input never
become parameters: the command writes them to a file system in the memory of this process, and the flow, which
runs in this process, gets the address. A list whose own address may contain a number gets another one.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit
from uuid import uuid4

from imbrace_lake.errors import InputError, UsageError
from imbrace_lake.printable import without_numbers

if TYPE_CHECKING:
    from imbrace_lake.settings import Settings

STANDARD_INPUT = "-"
_LIST_NAME = re.compile(r"://|\.(csv|gz|ods|parquet|tsv|txt|xls[bx]?|zst)$", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class TableOptions:
    """The part of a table that is the list: columns, separated by commas, and the sheet of a spreadsheet.

    Raises:
        UsageError: Prefect would store a phone number.
    """

    column: str | None = None
    sheet: str | None = None

    def __post_init__(self) -> None:
        for name, value in (("column", self.column), ("sheet", self.sheet)):
            if value is not None and without_numbers(value) != value:
                raise UsageError(
                    f"the name of the {name} may contain a phone number, which Prefect would store: give its"
                    " position"
                )


def list_address(phones: str | None, numbers: Sequence[str], table: TableOptions, settings: Settings) -> str:
    """Return the address of a command's list, after a check that it can be read.

    Args:
        phones: A path, a URL or ``-``.
        numbers: The numbers that were given as arguments.
        table: As for `iter_numbers`.
        settings: Region and allowed kinds of addresses.

    Raises:
        UsageError: No list is given, or its address is not allowed.
        InputError: Its beginning cannot be read.
    """
    if (phones is None) == (not numbers):
        raise UsageError(
            "give the phone numbers either as arguments or by --phones FILE (- for standard input)"
        )
    for one in numbers:
        # Unlike `Path.is_file`, also of a text that is too long for a name.
        is_file = re.search("[A-Za-z]", one) and os.path.isfile(one)  # noqa: PTH113
        if is_file or _LIST_NAME.search(one):
            name = without_numbers(one)
            raise UsageError(f"{name} is the name of a list and not a phone number: write --phones {name}")
    address = _address(phones, numbers, table, "phone numbers")
    _check_readable(address, table, settings)
    return address


def ids_address(
    conversations: str | None, ids: Sequence[str], table: TableOptions, settings: Settings
) -> str:
    """Return the address of a command's list of conversation ids, after reading it once.

    Args:
        conversations: A path, a URL or ``-``.
        ids: The ids that were given as options.
        table: As for `read_ids`.
        settings: The allowed kinds of addresses.

    Raises:
        UsageError: Both are given, or the address is not allowed.
        InputError: The list cannot be read.
    """
    from imbrace_lake.phones.lists import read_ids

    if conversations is not None and ids:
        raise UsageError("give the conversations either by --conversations FILE or one by one, not both")
    address = _address(conversations, ids, table, "conversation ids")
    read_ids(address, column=table.column, sheet=table.sheet, schemes=settings.schemes())
    return address


def _address(given: str | None, items: Sequence[str], table: TableOptions, what: str) -> str:
    from imbrace_lake.phones.report import ARGUMENTS
    from imbrace_lake.phones.sources import is_pipe, renamed

    if given is None:
        if table != TableOptions():
            raise UsageError(
                f"--column and --sheet are for tables, and these {what} are arguments: leave them out"
            )
        return stage_in_memory(("\n".join(" ".join(item.split()) for item in items)).encode(), ARGUMENTS)
    if given == STANDARD_INPUT:
        if sys.stdin.isatty():
            sys.stderr.write(f"reading {what}, one per line; end with Ctrl-D\n")
        return stage_in_memory(_read_standard_input(), "standard input")
    if not given.strip():
        raise UsageError(
            f"the address of the list of {what} is empty: give a file, a URL, or - for standard input"
        )
    reject_secrets(given)
    if is_pipe(given):
        # A pipe, such as the shell's <(command), can be read only once.
        path = Path(given).expanduser()
        name = "the pipe" if path.is_fifo() else f"the device {path.name}"
        return stage_in_memory(path.read_bytes(), name)
    return given if without_numbers(given) == given else renamed(given)


def stage_in_memory(body: bytes, name: str) -> str:
    """Write a list to the memory of this process and return its address; messages call it `name`."""
    import fsspec

    from imbrace_lake.phones.sources import STAGED

    address = f"{STAGED}{uuid4().hex}/{name}"
    fsspec.filesystem("memory").pipe_file(address, body)
    return address


def _read_standard_input() -> bytes:
    stream = getattr(sys.stdin, "buffer", None)
    return stream.read() if stream is not None else sys.stdin.read().encode("utf-8", "surrogatepass")


def reject_secrets(address: str) -> None:
    """Reject the address of a list that Prefect must not store.

    Raises:
        UsageError: The address contains credentials or a query, or is not a URL.
    """
    if "://" not in address:
        return
    try:
        parts = urlsplit(address)
        has_login = parts.username is not None or parts.password is not None
    except ValueError:
        raise UsageError("the address of the list is not a valid URL: check it") from None
    if has_login:
        raise UsageError(
            "the address of the list contains credentials, which Prefect would store: leave them out, and set"
            " them in the environment (for S3: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE)"
        )
    if parts.query and parts.scheme in ("http", "https"):
        raise UsageError(
            "the address of the list contains a query, perhaps a signature, which Prefect would store:"
            " download the list, or pipe it into --phones -"
        )


def _check_readable(address: str, table: TableOptions, settings: Settings) -> None:
    from imbrace_lake.phones.lists import iter_numbers
    from imbrace_lake.phones.report import ARGUMENTS
    from imbrace_lake.phones.sources import display_name

    numbers = iter_numbers(
        address,
        column=table.column,
        sheet=table.sheet,
        region=settings.region,
        schemes=settings.schemes(),
    )
    if next(numbers, None) is None:
        name = display_name(address).rpartition("/")[2]
        verb = "contain" if name == ARGUMENTS else "contains"
        raise InputError(f"{name} {verb} no phone number: give at least one")
