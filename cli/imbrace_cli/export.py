"""`imbrace-lake export`: run the export flow in this process."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from imbrace_cli import options
from imbrace_cli.interrupt import run_interruptibly
from imbrace_cli.options import AsJson, checked_settings
from imbrace_lake.errors import UsageError

if TYPE_CHECKING:
    from imbrace_cli.inputs import TableOptions
    from imbrace_lake.settings import Settings

EXAMPLES = """
\b
Examples:
  export IMBRACE_TOKEN=api_…
  imbrace-lake export --phones customers.csv --organization org_… --lake ./lake
  imbrace-lake export --phones - --region TW --lake s3://bucket/prefix < numbers.txt
  imbrace-lake export +886911425977 --json | jq .totals
  imbrace-lake export --rerun RUN_ID

\b
Exit codes:
  0 all complete   3 partial   1 failed   2 wrong use   130 interrupted
"""


def export(
    numbers: options.Numbers = None,
    phones: options.Phones = None,
    column: options.Column = None,
    sheet: options.Sheet = None,
    region: options.Region = None,
    rerun: Annotated[
        str | None,
        typer.Option(
            metavar="RUN_ID",
            help="Instead of numbers: retry the failures of this earlier run, read as it would have.",
        ),
    ] = None,
    organization: options.Organization = None,
    lake: options.Lake = None,
    gateway: options.Gateway = None,
    requests_per_second: options.RequestsPerSecond = None,
    max_in_flight: options.MaxInFlight = None,
    chunk_size: options.ChunkSize = None,
    shard_size: options.ShardSize = None,
    tolerated_failures: options.ToleratedFailures = 0.0,
    accept_repeats: options.AcceptRepeats = False,
    as_json: AsJson = False,
) -> None:
    """Export every conversation of a list of phone numbers into the lake, proven complete.

    The token comes from the environment variable IMBRACE_TOKEN or from a file .env, never from an argument.
    """
    from imbrace_cli.inputs import TableOptions
    from imbrace_cli.run import export_flow, run_watched
    from imbrace_cli.summary import show_outcome
    from imbrace_flows.params import ExportParams
    from imbrace_lake.phones.columns import join_columns

    settings = checked_settings(
        organization=organization, lake=lake, gateway=gateway, region=region,
        requests_per_second=requests_per_second, max_in_flight=max_in_flight, chunk_size=chunk_size,
        shard_size=shard_size,
    )  # fmt: skip
    table = TableOptions(join_columns(column), sheet)
    params = {
        "phones": _list_or_none(settings, phones, numbers or [], table, rerun),
        "column": table.column,
        "sheet": sheet,
        "region": settings.region,
        "rerun": rerun,
        "chunk_size": settings.chunk_size,
        "shard_size": settings.shard_size,
        "tolerated_failures": tolerated_failures,
        "accept_repeats": accept_repeats,
    }
    overrides = options.overrides(settings, requests_per_second, max_in_flight)
    outcome = run_watched(settings, export_flow, ExportParams.model_validate(params), overrides)
    show_outcome(outcome, "imbrace-lake export", as_json=as_json)
    raise typer.Exit(outcome.exit_code)


def _list_or_none(
    settings: Settings, phones: str | None, numbers: list[str], table: TableOptions, rerun: str | None
) -> str | None:
    """Return the address of the list, or None for the rerun of an earlier run.

    Raises:
        UsageError: Both or neither are given, or the address is not allowed.
        InputError: The list or the run cannot be used.
    """
    from imbrace_cli.inputs import list_address

    if rerun is None:
        return list_address(phones, numbers, table, settings)
    if phones is not None or numbers:
        raise UsageError("give either phone numbers or --rerun, not both")
    require_run_in_lake(settings, rerun)
    return None


def require_run_in_lake(settings: Settings, run_id: str | None) -> None:
    """Check that there is a lake, and that it knows a run, if one is given.

    Raises:
        UsageError: It is not the id of a run; the message does not repeat it, because it can be anything.
        InputError: The lake does not know it, or there is no lake.
    """
    from imbrace_lake.export.rerun import run_id_of, unknown_run
    from imbrace_lake.lake.lake import open_lake
    from imbrace_lake.lake.ledger import knows_run

    known = None if run_id is None else run_id_of(run_id)

    async def find() -> None:
        async with open_lake(settings.require("lake"), now=None) as lake:
            if known is not None and not await knows_run(lake, known):
                raise unknown_run(lake, known)

    run_interruptibly(find())
