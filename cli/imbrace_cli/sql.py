"""`imbrace-lake sql`: queries over the views of a lake, with DuckDB."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from enum import StrEnum
from itertools import count, islice
from math import isfinite
from typing import TYPE_CHECKING, Annotated, Any, Literal

import orjson
import typer

from imbrace_cli import options
from imbrace_cli.interrupt import at_prompt, current_interrupt
from imbrace_cli.options import lake_settings
from imbrace_cli.terminal import echo_error, echo_status, stdout_console
from imbrace_lake.errors import InputError, SettingsError, StoreError, UsageError
from imbrace_lake.export.humanize import duration
from imbrace_lake.printable import without_controls

if TYPE_CHECKING:
    from pyarrow import RecordBatchReader

    from imbrace_lake import Lake, Result, ViewSettings

EXAMPLES = """
\b
Examples:
  imbrace-lake sql --lake ./lake "SHOW TABLES"
  imbrace-lake sql --time-zone Asia/Taipei "FROM response_times ORDER BY week_start"
  imbrace-lake sql --format csv "SELECT day, messages FROM daily_volumes" > volumes.csv
  imbrace-lake sql                                       # a prompt

\b
Exit codes:
  0 done   1 failed   2 wrong use
"""

PROMPT, CONTINUED = "lake> ", "  ...> "
HELP = (
    "SHOW TABLES; or .tables lists the views, DESCRIBE view; the columns of one. End a query with ; and leave"
    " with Ctrl-D or .quit. Ctrl-C ends the query that runs, or clears the line."
)
MAX_ROWS = 100
# A table is shown if a terminal has this width for each column, or the column needs less.
NARROW = 24
MAX_GAP_HOURS = 87_600


class Format(StrEnum):
    """How the rows are written."""

    TABLE = "table"
    CSV = "csv"
    JSON = "json"


def sql(
    query: Annotated[
        str | None,
        typer.Argument(
            metavar="QUERY",
            help="The query; without one, a prompt, or the query in standard input.",
            show_default=False,
        ),
    ] = None,
    format_: Annotated[
        Format | None,
        typer.Option(
            "--format",
            metavar="table|csv|json",
            help="A table with the first rows, or all rows as CSV or lines of JSON; a table on a terminal,"
            " else CSV.",
            show_default=False,
        ),
    ] = None,
    time_zone: Annotated[
        str,
        typer.Option(
            metavar="ZONE",
            help="Time zone of the views' days, weeks, hours and local_at, such as Asia/Taipei.",
        ),
    ] = "UTC",
    gap_hours: Annotated[
        float, typer.Option(metavar="N", help="A silence longer than this ends an episode.")
    ] = 24.0,
    hours: Annotated[
        str,
        typer.Option(metavar="HH:MM-HH:MM", help="Business hours, in local time."),
    ] = "09:00-18:00",
    days: Annotated[
        str, typer.Option(metavar="DAYS", help="Business days: 1 for Monday to 7 for Sunday.")
    ] = "12345",
    bot: Annotated[
        list[str] | None,
        typer.Option(metavar="ID", help="A sender that is a bot, besides pub_…; repeat it for more."),
    ] = None,
    organization: Annotated[
        str | None, typer.Option(metavar="ORG", help="Read only this organization; all by default.")
    ] = None,
    source: Annotated[
        Literal["auto", "table", "parts"],
        typer.Option(
            metavar="auto|table|parts",
            help="Read messages from the compacted table or from the parts; auto: the table if there is one.",
        ),
    ] = "auto",
    lake: options.Lake = None,
) -> None:
    """Query the lake in DuckDB's SQL: its views, read-only.

    Reads the compacted table if the lake has one, else the parts, and reports which and how old they are. A
    query can reach nothing but the lake. The page on views has their definitions.

    Numbers have all their digits, in JSON too, where a reader with floats rounds them. Intervals have the
    form of ISO 8601: P1M2D, PT3.5S.
    """
    from imbrace_lake import Lake

    settings = lake_settings(lake=lake)
    view_settings = _view_settings(time_zone, gap_hours, hours, days, bot or ())
    with Lake.open(
        settings.require("lake"),
        organization=organization,
        settings=view_settings,
        source=None if source == "auto" else source,
    ) as reader:
        if query is not None:
            _show(reader.sql(query), format_ or (Format.TABLE if sys.stdout.isatty() else Format.CSV))
        elif sys.stdin.isatty():
            with at_prompt():
                _prompt(reader, format_ or Format.TABLE)
        elif piped := sys.stdin.read().strip():
            _show(reader.sql(piped), format_ or Format.CSV)


def _view_settings(
    time_zone: str, gap_hours: float, hours: str, days: str, bots: Sequence[str]
) -> ViewSettings:
    from imbrace_lake import ViewSettings

    if not 0 < gap_hours <= MAX_GAP_HOURS:
        raise SettingsError(f"--gap-hours must be more than 0 and at most {MAX_GAP_HOURS:,}")
    try:
        opens, closes = (_minutes(text) for text in hours.split("-"))
    except ValueError:
        raise SettingsError(f"{hours!r} are not business hours: write 09:00-18:00") from None
    if opens >= closes:
        raise SettingsError(
            f"business hours must end later on the same day, such as 09:00-18:00, not {hours}"
        )
    if not days or not {*days} <= {*"1234567"} or len({*days}) < len(days):
        raise SettingsError(
            f"{days!r} are not business days: write 12345 for Monday to Friday, each day once"
        )
    return ViewSettings(
        time_zone=time_zone,
        gap=timedelta(hours=gap_hours),
        business_hours=tuple((opens, closes) if day in days else None for day in "1234567"),
        bots=tuple(bots),
    )


def _minutes(text: str) -> int:
    """Return a time of day in minutes; 24:00 is the end of the day."""
    if text.strip() == "24:00":
        return 24 * 60
    found = datetime.strptime(text.strip(), "%H:%M").time()  # noqa: DTZ007 - a local time
    return found.hour * 60 + found.minute


def _show(result: Result, format_: Format) -> None:
    """Write the rows of a result, and to standard error what was read."""
    reader = result.to_reader(MAX_ROWS if format_ is Format.TABLE else 10_000)
    names = reader.schema.names
    rows = _rows(reader)
    if format_ is Format.TABLE:
        _table(names, rows)
    elif format_ is Format.CSV:
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(names)
        writer.writerows([_text(value) for value in row] for row in rows)
    else:
        names = _distinct(names)
        for row in rows:
            values = dict(zip(names, map(_plain, row), strict=True))
            sys.stdout.write(_json(values) + "\n")
    if result.source is not None:
        echo_status(_origin(result))


def _rows(reader: RecordBatchReader) -> Iterator[tuple[Any, ...]]:
    """Yield the values of each row, by position: two columns can have the same name."""
    for batch in reader:
        try:
            columns = [column.to_pylist() for column in batch.columns]
        except (OverflowError, ValueError):
            raise UsageError(
                "a date or time of the result is not in the years 1 to 9999, or has nanoseconds: cast it to"
                " VARCHAR in the query"
            ) from None
        yield from zip(*columns, strict=True)


def _distinct(names: list[str]) -> list[str]:
    """Return names of which each occurs once: `text`, `text_1`."""
    found: list[str] = []
    for name in names:
        others = (f"{name}_{number}" for number in count(1))
        found.append(name if name not in found else next(one for one in others if one not in names + found))
    return found


def _origin(result: Result) -> str:
    """Return what was read, and how old it is."""
    what = "the compacted table" if result.source == "table" else f"the {result.source}"
    if result.as_of is None:
        return f"read {what}; no run has ended yet"
    age = (datetime.now(UTC) - result.as_of).total_seconds()
    return f"read {what}, as of {result.as_of:%Y-%m-%d %H:%M} UTC ({duration(max(age, 0))} ago)"


def _table(names: list[str], rows: Iterator[tuple[Any, ...]]) -> None:
    """Write the first rows as a table, or each column on a line if the terminal is too narrow for them."""
    from rich.cells import cell_len
    from rich.table import Table
    from rich.text import Text

    # The texts of customers, which must not control the terminal.
    names = [*map(without_controls, names)]
    shown = [
        ["" if value is None else without_controls(str(_text(value))) for value in row]
        for row in islice(rows, MAX_ROWS)
    ]
    console = stdout_console()
    widths = [max(map(cell_len, cells)) for cells in zip(names, *shown, strict=True)]
    if not console.is_terminal:
        console.width = max(console.width, sum(widths) + 3 * len(widths))
    if not shown or sum(min(width, NARROW) + 3 for width in widths) - 3 <= console.width:
        table = Table(show_edge=False)
        for name in names:
            table.add_column(name)
        for row in shown:
            table.add_row(*map(Text, row))
        console.print(table)
    else:
        for number, row in enumerate(shown, start=1):
            table = Table(show_edge=False, show_header=False)
            table.add_column(no_wrap=True)
            table.add_column(overflow="fold")
            for name, value in zip(names, row, strict=True):
                table.add_row(Text(name), Text(value))
            console.print(f"row {number}", style="bold")
            console.print(table)
    if next(rows, None) is not None:
        echo_status(f"the first {MAX_ROWS} rows; --format csv writes all")


def _plain(value: Any) -> Any:
    """Return a value of a result as `_json` writes it."""
    if isinstance(value, float):
        # JSON has neither infinity nor NaN.
        return value if isfinite(value) else None
    if isinstance(value, Decimal):
        # A number of JSON has any number of digits, and a float has 15.
        return orjson.Fragment(f"{value:f}")
    if isinstance(value, int) and abs(value) >= 2**63:
        return orjson.Fragment(str(value))
    if isinstance(value, datetime):
        # The lake has milliseconds; a TIMESTAMP_NS is a value of pandas, or an error without pandas.
        precision = "microseconds" if value.microsecond % 1_000 else "milliseconds"
        precision = "nanoseconds" if getattr(value, "nanosecond", 0) else precision
        return value.isoformat(timespec=precision).replace("+00:00", "Z")
    if isinstance(value, bytes):
        return value.hex()
    if hasattr(value, "nanoseconds"):
        return _interval(value.months, value.days, value.nanoseconds)
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, dict):
        return {str(name): _plain(one) for name, one in value.items()}
    return value if value is None or isinstance(value, str | int) else str(value)


def _interval(months: int, days: int, nanoseconds: int) -> str:
    """Return an interval in the form of ISO 8601, such as `P1M2DT3.5S` or `-PT3S`.

    A month has no length in days, and a day none in seconds. If the parts have different signs, each has its
    sign, which only ISO 8601-2 allows.
    """
    parts = (months, days, nanoseconds)
    is_negative = min(parts) < 0 and max(parts) <= 0
    if is_negative:
        months, days, nanoseconds = (-part for part in parts)
    seconds, rest = divmod(abs(nanoseconds), 10**9)
    fraction = f".{rest:09d}".rstrip("0") if rest else ""
    date = f"{months}M" * bool(months) + f"{days}D" * bool(days)
    time = f"T{'-' * (nanoseconds < 0)}{seconds}{fraction}S"
    return f"{'-' * is_negative}P{date}{time if nanoseconds or not date else ''}"


def _json(value: Any) -> str:
    """Return a value from `_plain` as JSON."""
    return orjson.dumps(value).decode()


def _text(value: Any) -> Any:
    """Return a value of a result as CSV and tables have it."""
    if isinstance(value, float):
        return value
    if isinstance(value, Decimal):
        return f"{value:f}"
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    value = _plain(value)
    return _json(value) if isinstance(value, list | dict | bool) else value


def _prompt(reader: Lake, format_: Format) -> None:
    """Read queries and run them, until the end of the input."""
    with suppress(ImportError):
        # The arrow keys return earlier queries of this prompt, which are not written to a file.
        import readline  # noqa: F401
    echo_status(HELP)
    while True:
        try:
            if (query := _next_query()) is None:
                return
            _show(reader.sql(query), format_)
        except KeyboardInterrupt:
            if current_interrupt().is_requested:
                raise
            sys.stdout.write("\n")
        except SettingsError:  # DuckDB is not installed
            raise
        except (InputError, StoreError, UsageError) as exc:
            echo_error(str(exc))


def _next_query() -> str | None:
    """Return the lines up to a semicolon; None at the end of the input."""
    from imbrace_lake.query.engine import is_complete

    lines: list[str] = []
    while not is_complete("\n".join(lines)):
        try:
            line = input(CONTINUED if lines else PROMPT)
        except EOFError:
            sys.stdout.write("\n")
            return None
        command = "" if lines else line.strip().rstrip("; ").lower()
        if command in ("exit", "quit", ".exit", ".quit"):
            return None
        if command == ".tables":
            return "SHOW TABLES"
        if command in ("help", ".help"):
            echo_status(HELP)
        elif command.startswith("."):
            echo_error(f"there is no command {command.split()[0]}: .help shows what there is")
        elif command or lines:
            lines.append(line)
    return "\n".join(lines)
