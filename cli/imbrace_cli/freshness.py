"""`imbrace-lake freshness`: the age of each conversation's proof."""

from __future__ import annotations

import asyncio
import json
import math
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated

import typer

from imbrace_cli import options
from imbrace_cli.exit_codes import COMPLETE, PARTIAL
from imbrace_cli.interrupt import run_interruptibly
from imbrace_cli.options import AsJson, lake_settings
from imbrace_cli.prefect_environment import configured_api_url
from imbrace_cli.terminal import echo, echo_error
from imbrace_lake.errors import InputError
from imbrace_lake.export.humanize import duration
from imbrace_lake.printable import decimal, printable

if TYPE_CHECKING:
    from imbrace_lake.export.visits import VisitReport, Visits
    from imbrace_lake.lake.freshness import Freshness
    from imbrace_lake.revisit import Explanation
    from imbrace_lake.settings import Settings

EXAMPLES = """
\b
Examples:
  imbrace-lake freshness --organization org_… --lake ./lake
  imbrace-lake freshness --stale-hours 24 --limit 0
  imbrace-lake freshness --budget 50000 --limit 0
  imbrace-lake freshness --conversation conv_1

\b
Exit codes:
  0 nothing is stale   3 something is stale   1 failed   2 wrong use
"""

REASONS = {
    "everything": "a run visits all conversations",
    "ahead": "its proof is from the future, because a clock was or is wrong",
    "promise": "its proof must be renewed, so that the promise is kept",
    "value": "its interval is over",
    "waits": "its interval is not over",
}


def freshness(
    stale_hours: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            max=876_000.0,
            metavar="N",
            help="End with exit code 3 if a proof is older than this, or there is none.",
        ),
    ] = None,
    limit: Annotated[
        int, typer.Option(min=0, metavar="N", help="Conversations to list, the oldest proof first.")
    ] = 20,
    conversation: Annotated[
        str | None, typer.Option(metavar="ID", help="Explain when this conversation is visited next.")
    ] = None,
    budget: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=options.MAX_COUNT,
            metavar="N",
            help="Requests of a run; by default those of the next ingestion.  [IMBRACE_BUDGET]",
        ),
    ] = None,
    organization: options.Organization = None,
    lake: options.Lake = None,
    as_json: AsJson = False,
) -> None:
    """Show the time since each conversation was last proven complete or unchanged, and what runs visit next.

    Conversations that the gateway no longer has are left out of the ages. With PREFECT_API_URL, the budget is
    that of its server, else that of the settings; without one, each run visits everything.
    """
    from imbrace_lake.lake.freshness import by_age, count_stale

    settings = lake_settings(
        needed=("organization", "lake"), organization=organization, lake=lake, budget=budget
    )
    requests = _budget(settings)
    if conversation is not None:
        _, visits = run_interruptibly(_read(settings, requests, with_ages=False))
        _explain(visits, conversation, as_json=as_json)
        return
    found, visits = run_interruptibly(_read(settings, requests))
    report = visits.report(datetime.now(UTC), (), (), "")
    stale = None if stale_hours is None else count_stale(found, timedelta(hours=stale_hours))
    if as_json:
        values = {
            "ages": by_age(found),
            "stale": stale,
            "conversations": [*map(_values, found[:limit])],
            "visits": asdict(report),
            "organization": _organization(visits),
        }
        typer.echo(json.dumps(values))
    elif not found:
        organization = settings.require("organization")
        echo(f"the lake at {settings.lake} has no conversation of {organization} yet: export into it first")
    else:
        echo(*(f"{count:>10,}  {name}" for name, count in by_age(found).items() if count))
        echo("", *_outlook(report, visits, is_known=requests is not None))
        _list(found, limit)
        if stale:
            hours = decimal(stale_hours or 0, 6)
            last = "hour" if hours == "1" else f"{hours} hours"
            echo("", f"{stale:,} of {len(found):,} conversations: no proof in the last {last}")
    # A monitor with a mistake in the lake or the organization must not be silent.
    is_empty = stale is not None and not found
    raise typer.Exit(PARTIAL if stale or is_empty else COMPLETE)


async def _read(
    settings: Settings, requests: int | None, *, with_ages: bool = True
) -> tuple[list[Freshness], Visits]:
    """Read the ages and the visits from one open lake, which warns of each damaged object once."""
    from imbrace_lake.export.visits import read_visits
    from imbrace_lake.lake.freshness import read_freshness
    from imbrace_lake.lake.lake import open_lake

    async with open_lake(settings.require("lake"), now=None) as lake:
        organization, now = settings.require("organization"), datetime.now(UTC)
        ages = await read_freshness(lake, organization, now) if with_ages else []
        return ages, await read_visits(lake, organization, settings.revisit_policy(), now, requests)


def _budget(settings: Settings) -> int | None:
    """Return the requests of the next ingestion; None if it has no limit."""
    from imbrace_lake.export.visits import BudgetGiven

    limits = [settings.requests_per_second]
    if settings.budget is None:
        limits.append(_shared_limit(settings))
    per_second = min((one for one in limits if one), default=None)
    return BudgetGiven(settings.budget, is_automatic=True).limits(per_second, settings.revisit_policy())[0]


def _shared_limit(settings: Settings) -> float | None:
    """Return the limit of the configured server; None without a server, a limit or an answer."""
    if configured_api_url() is None or not settings.request_limit:
        return None
    from imbrace_cli.local_server import ServerUnavailable
    from imbrace_cli.prefect_session import prefect_session
    from imbrace_lake.gateway.shared_limit import LeasesUnreachable

    try:
        with prefect_session(lambda sentence: None):
            from imbrace_tasks.budget import read_shared_limit

            return asyncio.run(read_shared_limit(settings))
    except (ServerUnavailable, LeasesUnreachable) as exc:
        echo_error(f"the budget is unknown: {exc}", "warning")
        return None


def _outlook(report: VisitReport, visits: Visits, *, is_known: bool) -> list[str]:
    """Describe what runs visit next, a line for each number."""
    outlook = visits.outlook
    if outlook.is_everything:
        of = f", within {report.requests:,} requests" if is_known else ", because no budget limits it"
        first = f"each run visits all {report.conversations:,}{of}"
        rows = [("due", first)]
    else:
        rows = [
            ("due", f"{report.due:,} of {report.conversations:,}; a run visits {report.requests:,}"),
            ("forecast", report.forecast()),
            ("price", f"{decimal(visits.outlook.price)} hours"),
        ]  # fmt: skip
    rows.append(("promise", report.promise()))
    rows += [("ages", one) for one in report.ages()]
    if report.gone:
        rows.append(("gone", f"{report.gone:,} deleted upstream, which no age includes"))
    rows += [("warning", one) for one in report.warnings() if report.ahead]
    one = outlook.organization
    rows.append(
        ("average", f"{decimal(one.rate)} active hours per hour,"
            f" {decimal(one.messages)} messages per active hour, contrast {decimal(one.contrast)}")
    )  # fmt: skip
    return [f"{name:<10}{text}" for name, text in rows]


def _organization(visits: Visits) -> dict[str, object]:
    """Return the numbers by which the next visit of a conversation can be worked out."""
    one = visits.outlook.organization
    return {
        "rate": one.rate,
        "messages": one.messages,
        "contrast": one.contrast,
        "unseen": one.unseen,
        "price": visits.outlook.price,
        "activity_by_hour_utc": one.day.round(3).tolist(),
        "weight_by_day_from_thursday": one.week.round(3).tolist(),
    }


def _explain(visits: Visits, conversation_id: str, *, as_json: bool) -> None:
    """Show why a conversation is due or not, and when it is visited next.

    Raises:
        InputError: The lake has no proof of it.
    """
    found = visits.explain(conversation_id)
    if found is None and visits.is_unproven(conversation_id):
        raise InputError(
            f"conversation {printable(conversation_id)} was never proven: at most half of a run visits such"
            " conversations, before all others and in turn"
        )
    if found is None:
        raise InputError(
            f"the lake does not have conversation {printable(conversation_id)}, so no ingestion visits it:"
            " check the id, or export it"
        )
    if as_json:
        typer.echo(json.dumps(asdict(found), default=str))
        return
    estimates = ", ".join(map(decimal, found.estimates))
    organization = visits.outlook.organization
    wait = "a run visits it next" if found.reason != "waits" else f"due {found.next_visit:%Y-%m-%d %H:%M} UTC"
    seen = f"{found.seen:%Y-%m-%d %H:%M} UTC"
    if found.is_gone:
        rows = [
            ("looked", f"{seen}: the gateway did not have it"),
            ("promised", f"again by {found.deadline:%Y-%m-%d %H:%M} UTC"),
            ("visit", f"{wait}: only the promise lets a deleted conversation be visited"),
        ]  # fmt: skip
        echo(*(f"{name:<10}{text}" for name, text in rows))
        return
    rows = [
        ("proven", seen),
        ("promised", f"again by {found.deadline:%Y-%m-%d %H:%M} UTC"),
        ("estimates", f"{estimates} active hours per hour (the last 1, 4, 20 active hours; {found.listed} are"
            f" known)"),
        ("contrast", f"{decimal(organization.contrast)}, with an average of {decimal(organization.rate)}"),
        ("messages", f"{decimal(found.messages)} per active hour"),
        ("rate", f"{decimal(found.rate)} messages per hour"),
        ("interval", _interval(found)),
        ("counted", f"{decimal(found.counted)} weighted hours from the proof to the middle of the run"),
        ("value", f"{decimal(found.value)} hours; due from {decimal(found.price)} on"),
        ("visit", f"{wait}: {REASONS[found.reason]}"),
    ]  # fmt: skip
    echo(*(f"{name:<10}{text}" for name, text in rows))


def _interval(found: Explanation) -> str:
    """Return the interval between two visits, and how it was worked out."""
    hours = math.sqrt(2 * found.price / found.rate)
    shown = f"√(2 × {decimal(found.price)} / {decimal(found.rate)}) = {decimal(hours)} weighted hours"
    if math.isclose(hours, found.interval):
        return shown
    return f"{shown}, but at {'least' if hours < found.interval else 'most'} {decimal(found.interval)}"


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
