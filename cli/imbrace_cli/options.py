"""The options that several commands share, and the settings that they become."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from os import environ
from typing import TYPE_CHECKING, Annotated

import typer

from imbrace_cli.terminal import echo_error
from imbrace_lake.errors import SettingsError, UsageError

if TYPE_CHECKING:
    from imbrace_lake.settings import Settings

# A slot of Prefect's limits is a 32-bit integer.
MAX_PER_SECOND = 1_000_000.0
MAX_COUNT = 1_000_000_000

Numbers = Annotated[
    list[str] | None,
    typer.Argument(metavar="NUMBER", help="Phone numbers with country code.", show_default=False),
]
Phones = Annotated[
    str | None,
    typer.Option(
        metavar="FILE|-",
        help="The list: text, CSV, Parquet or a spreadsheet; a folder, a pattern, or - for standard input.",
    ),
]
Column = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME", help="A column to read, by name or position; repeat it, or use commas, for more."
    ),
]
Sheet = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", help="The sheet of a spreadsheet, by name or position; the first by default."
    ),
]
Region = Annotated[
    str | None,
    typer.Option(
        metavar="TW",
        help="Country of numbers written without a country code.  [IMBRACE_REGION]",
    ),
]
Organization = Annotated[
    str | None,
    typer.Option(metavar="ORG", help="The organization's id.  [IMBRACE_ORGANIZATION]"),
]
Lake = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        help="A folder, s3://bucket/prefix, or the URL of an installed fsspec driver.  [IMBRACE_LAKE]",
    ),
]
Gateway = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        help="The gateway's address with its /3rd; production by default.  [IMBRACE_GATEWAY]",
    ),
]
RequestsPerSecond = Annotated[
    float | None,
    typer.Option(
        metavar="N",
        help="Maximum requests per second; no limit by default.  [IMBRACE_REQUESTS_PER_SECOND]",
    ),
]
MaxInFlight = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="Maximum requests under way at a time; 32 by default.  [IMBRACE_MAX_IN_FLIGHT]",
    ),
]
ChunkSize = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=10_000,
        metavar="N",
        help="Conversations per task; by default chosen from their number.  [IMBRACE_CHUNK_SIZE]",
    ),
]
ShardSize = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=MAX_COUNT,
        metavar="N",
        help="Split a larger run into shards of this many conversations.  [IMBRACE_SHARD_SIZE]",
    ),
]
ToleratedFailures = Annotated[
    float,
    typer.Option(
        min=0.0,
        max=1.0,
        metavar="SHARE",
        help="The run still counts as complete if at most this share of its conversations fails.",
    ),
]
AcceptRepeats = Annotated[
    bool,
    typer.Option(
        "--accept-repeats",
        help="Export lists in which the gateway permanently repeats messages.  [IMBRACE_ACCEPT_REPEATS]",
    ),
]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print one JSON object on standard output and nothing else there.")
]


def lake_settings(*, needed: Sequence[str] = ("lake",), **given: object) -> Settings:
    """Read the settings of a command that uses only the lake.

    Args:
        needed: Settings that are required.
        given: The command's options, None for those that are not given.

    Raises:
        SettingsError: A setting is missing or invalid.
    """
    settings = read_settings(**given)
    if problems := _lake_problems(settings, needed):
        raise SettingsError(*problems)
    return settings


def read_settings(**given: object) -> Settings:
    """Read the settings, and warn of variables that look like one.

    Args:
        given: The command's options, None for those that are not given.

    Raises:
        SettingsError: A value is invalid.
    """
    from imbrace_lake.settings import load_settings, unknown_settings

    try:
        settings = load_settings(**given)
    except SettingsError as exc:
        raise SettingsError(*(_as_given(problem, given) for problem in exc.problems)) from None
    finally:
        # A wrong name often explains why a setting is missing or wrong.
        with suppress(OSError, UnicodeError):
            for warning in unknown_settings():
                echo_error(warning, "warning")
    return settings


def _as_given(problem: str, given: Mapping[str, object]) -> str:
    """Return a problem of a setting with the name of its option, if that was given."""
    variable, _, reason = problem.partition(": ")
    name = variable.removeprefix("IMBRACE_").lower()
    is_option = variable.startswith("IMBRACE_") and given.get(name) is not None
    return f"--{name.replace('_', '-')}: {reason}" if is_option else problem


def _lake_problems(settings: Settings, needed: Sequence[str]) -> list[str]:
    """Return what is missing or wrong, a sentence for each."""
    from imbrace_lake.store.factory import open_store

    problems = [
        f"no {name} is given: use --{name}, or set IMBRACE_{name.upper()}"
        for name in needed
        if not getattr(settings, name)
    ]
    if settings.lake:
        try:
            open_store(settings.lake)
        except UsageError as exc:
            problems.append(str(exc))
    return problems


def checked_settings(**given: object) -> Settings:
    """Read the settings and check everything that needs no request.

    Raises:
        SettingsError: A setting is missing or invalid.
    """
    from imbrace_lake.phones.numbers import parse_region

    settings = read_settings(**given)
    problems = _lake_problems(settings, ("organization", "lake")) + settings.gateway_problems()
    if settings.region is not None:
        try:
            parse_region(settings.region)
        except UsageError as exc:
            problems.append(str(exc))
    if problems:
        raise SettingsError(*problems)
    return settings


def overrides(
    settings: Settings, requests_per_second: float | None, max_in_flight: int | None
) -> dict[str, object | None]:
    """Return the settings that a run gets by its environment, because a flow has no such parameters."""
    return {
        "organization": settings.organization,
        "lake": settings.lake,
        "gateway": settings.gateway,
        "requests_per_second": requests_per_second,
        "max_in_flight": max_in_flight,
    }


@contextmanager
def environment(values: Mapping[str, object | None]) -> Iterator[None]:
    """Set settings while the block runs; None leaves one unchanged.

    Settings that are not parameters of the flow, because they are secret or belong to this machine, reach the
    flow by the environment.
    """
    changes = {f"IMBRACE_{name.upper()}": str(value) for name, value in values.items() if value is not None}
    before = {name: environ.get(name) for name in changes}
    environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                environ.pop(name, None)
            else:
                environ[name] = value
