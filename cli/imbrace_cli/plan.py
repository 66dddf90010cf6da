"""`imbrace-lake plan`: a dry run of the export."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import typer

from imbrace_cli import options
from imbrace_cli.exit_codes import COMPLETE, FAILED, PARTIAL
from imbrace_cli.interrupt import run_interruptibly
from imbrace_cli.options import AsJson, checked_settings
from imbrace_lake.errors import InputError
from imbrace_lake.printable import plural

if TYPE_CHECKING:
    from imbrace_lake.export.plan import Plan
    from imbrace_lake.phones.lists import PhoneList
    from imbrace_lake.settings import Settings

EXAMPLES = """
\b
Examples:
  imbrace-lake plan --phones customers.csv --organization org_… --lake ./lake
  imbrace-lake plan --phones customers.csv --requests-per-second 2

\b
Exit codes:
  0 estimated   3 partial   1 failed   2 wrong use   130 interrupted
"""


def plan(
    numbers: options.Numbers = None,
    phones: options.Phones = None,
    column: options.Column = None,
    sheet: options.Sheet = None,
    region: options.Region = None,
    organization: options.Organization = None,
    lake: options.Lake = None,
    gateway: options.Gateway = None,
    requests_per_second: options.RequestsPerSecond = None,
    max_in_flight: options.MaxInFlight = None,
    as_json: AsJson = False,
) -> None:
    """Estimate what an export of the same numbers would read, its requests and time; write nothing.

    The command resolves the numbers, and reads the total count of some of the new conversations. The estimate
    leaves out what fails and what is not a phone number; the exit code is that of an export that does so.
    """
    from imbrace_cli.inputs import TableOptions, list_address
    from imbrace_cli.summary import show_input
    from imbrace_cli.terminal import list_problems
    from imbrace_lake.phones.columns import join_columns
    from imbrace_lake.phones.lists import read_phone_list

    settings = checked_settings(
        organization=organization, lake=lake, gateway=gateway, region=region,
        requests_per_second=requests_per_second, max_in_flight=max_in_flight,
    )  # fmt: skip
    table = TableOptions(join_columns(column), sheet)
    address = list_address(phones, numbers or [], table, settings)
    given = read_phone_list(
        address, region=settings.region, column=table.column, sheet=sheet, schemes=settings.schemes()
    )
    list_problems(given.problems(), given.invalid)
    show_input(given.report.as_json())
    if not given.valid:
        # An export of the list would fail with the same words.
        raise InputError("nothing in the input could be read as a phone number: check the list")
    found = _made(settings, given)
    if as_json:
        typer.echo(json.dumps(found.as_json() | {"input": given.report.as_json()}, ensure_ascii=False))
    else:
        _echo_plan(found, settings)
    raise typer.Exit(_exit_code(found, given, settings.tolerated_unreadable))


def _exit_code(found: Plan, given: PhoneList, tolerated_unreadable: float) -> int:
    """Return how the export would end if the same numbers and conversations failed again."""
    if found.failures:
        return PARTIAL if found.conversations else FAILED
    return PARTIAL if given.invalid > tolerated_unreadable * given.given else COMPLETE


def _made(settings: Settings, given: PhoneList) -> Plan:
    from imbrace_cli.gateway import shared_gateway
    from imbrace_cli.terminal import waiting
    from imbrace_lake.export.plan import make_plan

    async def make() -> Plan:
        async with shared_gateway(settings)(settings.gateway_options()) as gateway:
            return await make_plan(settings, gateway, given)

    with waiting("asking the gateway"):
        return run_interruptibly(make())


def _echo_plan(found: Plan, settings: Settings) -> None:
    from imbrace_cli.terminal import echo

    lake = settings.require("lake")
    if not found.lake_exists:
        lake += " (does not exist yet: the export creates it)"
    elif not found.known:
        lake += " (has none of these conversations yet)"
    rows = [*found.rows(), ("lake", lake)]
    echo("An export would read:", "", *(f"  {name:<15}{value}" for name, value in rows), "")
    echo(f"An estimate, which took {plural(found.planning_requests, 'more request')}. Nothing was written.")
