"""`imbrace-lake compact`: bring the tables of a lake up to date."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from imbrace_cli import options
from imbrace_cli.exit_codes import COMPLETE, PARTIAL
from imbrace_cli.interrupt import run_interruptibly
from imbrace_cli.options import AsJson, lake_settings
from imbrace_cli.terminal import echo, echo_status, is_watched, stderr_console

if TYPE_CHECKING:
    from imbrace_lake.settings import Settings
    from imbrace_lake.tables.report import TableReport

EXAMPLES = """
\b
Examples:
  imbrace-lake compact --lake ./lake
  imbrace-lake compact --lake s3://bucket/prefix --dry-run

\b
Exit codes:
  0 the tables are up to date   3 something differed   1 failed   2 wrong use
"""

# A century.
MAX_HOURS = 876_000
ShowProgress = Callable[[int, int], None]


def compact(
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Report bytes, requests and known losses, and write nothing.")
    ] = False,
    keep_hours: Annotated[
        float,
        typer.Option(
            min=0,
            max=MAX_HOURS,
            metavar="N",
            help="How long files of earlier versions are kept for their readers.",
        ),
    ] = 24,
    lake: options.Lake = None,
    as_json: AsJson = False,
) -> None:
    """Bring the tables of the lake up to date: its messages and ledgers in a few large files.

    It reads only what has changed since the last compaction. Exports and queries may run at the same time.
    After an interruption, run the command again. Needs the package deltalake: imbrace-lake[tables].
    """
    from imbrace_lake.tuning import TABLE_ALLOCATOR, load_arrow, tuned_process

    load_arrow(TABLE_ALLOCATOR)
    settings = lake_settings(lake=lake)
    with _progress() as show_progress, tuned_process(TABLE_ALLOCATOR):
        reports = run_interruptibly(_compact(settings, dry_run, keep_hours, show_progress))
    differs = any(one.differences for one in reports)
    if as_json:
        tables = [asdict(one) for one in reports]
        typer.echo(json.dumps({"dry_run": dry_run, "tables": tables}, default=_iso))
    else:
        for one in reports:
            echo(*(f"{found.name}: {found.problem}" for found in one.differences))
        from imbrace_lake.tables.report import describe

        for one in reports:
            echo_status(describe(one))
        if differs and not dry_run:
            is_repaired = any(one.is_repaired for one in reports)
            repaired = "wrong rows of the tables were replaced; " * is_repaired
            echo_status(f"{repaired}find the cause of the differences with `imbrace-lake verify`")
    raise typer.Exit(PARTIAL if differs else COMPLETE)


def _iso(moment: datetime) -> str:
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


async def _compact(
    settings: Settings, is_dry_run: bool, keep_hours: float, show_progress: ShowProgress
) -> list[TableReport]:
    from uuid import uuid4

    from imbrace_lake.lake.lake import open_lake
    from imbrace_lake.tables.compact import compact_lake

    async with open_lake(settings.require("lake"), now=None) as lake:
        return await compact_lake(
            lake,
            str(uuid4()),
            partial(datetime.now, UTC),
            is_dry_run=is_dry_run,
            grace=timedelta(hours=keep_hours),
            on_progress=show_progress,
        )


@contextmanager
def _progress() -> Iterator[ShowProgress]:
    """Show the progress on a terminal."""
    if not is_watched():
        yield lambda done, all: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("conversations"), BarColumn(bar_width=30), MofNCompleteColumn())
    with Progress(
        *columns, TimeRemainingColumn(compact=True), console=stderr_console(), transient=True
    ) as bar:
        task = bar.add_task("conversations", total=None)
        yield lambda done, all: bar.update(task, completed=done, total=all)
