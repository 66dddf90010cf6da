"""`imbrace-lake repair`: write rows of earlier versions in the form that every engine reads."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from imbrace_cli import options
from imbrace_cli.exit_codes import COMPLETE, PARTIAL
from imbrace_cli.interrupt import run_interruptibly
from imbrace_cli.options import AsJson, lake_settings
from imbrace_cli.terminal import echo, echo_status
from imbrace_lake.printable import plural

if TYPE_CHECKING:
    from imbrace_lake.export.repair import Repaired
    from imbrace_lake.settings import Settings

EXAMPLES = """
\b
Examples:
  imbrace-lake repair --lake ./lake            # lists the parts that it would write again
  imbrace-lake repair --lake ./lake --apply

\b
Exit codes:
  0 nothing to repair, or repaired   3 something to repair   1 failed   2 wrong use
"""


def repair(
    apply: Annotated[
        bool, typer.Option("--apply", help="Replace the parts. Without it, nothing is written.")
    ] = False,
    lake: options.Lake = None,
    as_json: AsJson = False,
) -> None:
    """Find messages that an earlier version stored in a form some query engines reject.

    These are rows whose `content` or `extra` is not strict JSON, or whose times are out of range. Messages
    keep their ids and values. Exports may run at the same time. After an interruption, run the command again.
    """
    settings = lake_settings(lake=lake)
    found = run_interruptibly(_repair(settings, apply))
    if as_json:
        typer.echo(json.dumps(asdict(found)))
    else:
        _echo_repair(found)
    raise typer.Exit(PARTIAL if found.keys and not apply else COMPLETE)


async def _repair(settings: Settings, apply: bool) -> Repaired:
    from uuid import uuid4

    from imbrace_lake.export.repair import repair_lake
    from imbrace_lake.export.run import utc_now
    from imbrace_lake.lake.lake import open_lake

    async with open_lake(settings.require("lake"), now=None) as lake:
        return await repair_lake(
            lake, str(uuid4()), utc_now, apply=apply, memory=settings.new_memory_budget()
        )


def _echo_repair(found: Repaired) -> None:
    if not found.is_applied:
        echo(*found.keys)
    if not found.keys:
        echo_status(f"nothing to repair: {plural(found.parts, 'part')}")
        return
    rows = f"{plural(found.rows, 'message')} in {len(found.keys):,} of {plural(found.parts, 'part')}"
    if found.is_applied:
        echo_status(f"repaired: {rows}")
    else:
        echo_status(f"to repair: {rows}; run the command with --apply to write them again")
