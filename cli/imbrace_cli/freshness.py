"""`imbrace-lake freshness`: the age of each conversation's proof."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated

import typer

from imbrace_cli import options
from imbrace_cli.interrupt import run_interruptibly
from imbrace_cli.options import AsJson, lake_settings
from imbrace_cli.terminal import echo
from imbrace_lake.export.humanize import duration

if TYPE_CHECKING:
    from imbrace_lake.lake.freshness import Freshness
    from imbrace_lake.settings import Settings

EXAMPLES = """
\b
Examples:
  imbrace-lake freshness --organization org_… --lake ./lake
  imbrace-lake freshness --stale-hours 24 --limit 0

\b
Exit codes:
  0 nothing is stale   3 something is stale   1 failed   2 wrong use
"""

STALE = 3


def freshness(
    stale_hours: Annotated[
        float | None,
        typer.Option(min=0.0, metavar="N", help="End with exit code 3 if a proof is older than this."),
    ] = None,
    limit: Annotated[
        int, typer.Option(min=0, metavar="N", help="Conversations to list, the oldest proof first.")
    ] = 20,
    organization: options.Organization = None,
    lake: options.Lake = None,
    as_json: AsJson = False,
) -> None:
    """Show the time since each conversation was last proven complete or unchanged.

    Conversations that the gateway no longer has are left out.
    """
    from imbrace_lake.lake.freshness import by_age, count_stale

    settings = lake_settings(needed=("organization", "lake"), organization=organization, lake=lake)
    found = run_interruptibly(_read(settings))
    stale = None if stale_hours is None else count_stale(found, timedelta(hours=stale_hours))
    if as_json:
        values = {"ages": by_age(found), "stale": stale, "conversations": [*map(_values, found[:limit])]}
        typer.echo(json.dumps(values))
    elif not found:
        organization = settings.require("organization")
        echo(f"the lake at {settings.lake} has no conversation of {organization} yet: export into it first")
    else:
        echo(*(f"{count:>10,}  {name}" for name, count in by_age(found).items() if count))
        _list(found, limit)
        if stale:
            echo(
                "",
                f"{stale:,} of {len(found):,} conversations: no proof in the last {stale_hours:g} hours",
            )
    raise typer.Exit(STALE if stale else 0)


async def _read(settings: Settings) -> list[Freshness]:
    from imbrace_lake.lake.freshness import read_freshness
    from imbrace_lake.lake.lake import open_lake

    async with open_lake(settings.require("lake"), now=None) as lake:
        return await read_freshness(lake, settings.require("organization"), datetime.now(UTC))


def _values(one: Freshness) -> dict[str, str | float | None]:
    return {
        "conversation_id": one.conversation_id,
        "status": one.status,
        "age_hours": _hours(one.age),
        "walk_age_hours": _hours(one.walk_age),
    }


def _hours(age: timedelta | None) -> float | None:
    return None if age is None else round(age / timedelta(hours=1), 3)


def _list(found: list[Freshness], limit: int) -> None:
    if not limit or not found:
        return
    rows = [("proven", "walked", "status", "conversation")]
    rows += [(_ago(one.age), _ago(one.walk_age), one.status, one.conversation_id) for one in found[:limit]]
    echo("", *(f"{age:>14}  {walk_age:>14}  {status:<10}  {one}" for age, walk_age, status, one in rows))
    if len(found) > limit:
        echo(f"and {len(found) - limit:,} with newer proofs")


def _ago(age: timedelta | None) -> str:
    return "never" if age is None else f"{duration(age.total_seconds())} ago"
