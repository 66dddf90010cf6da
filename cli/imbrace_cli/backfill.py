"""`imbrace-lake backfill`: run the backfill flow in this process."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from imbrace_cli import options
from imbrace_cli.export import require_run_in_lake
from imbrace_cli.options import AsJson, checked_settings
from imbrace_lake.errors import UsageError
from imbrace_lake.moment import HOW_TO_WRITE, parse_moment

if TYPE_CHECKING:
    from imbrace_flows.params import Source

EXAMPLES = """
\b
Examples:
  imbrace-lake backfill --everything --new-only
  imbrace-lake backfill --everything --new-only --budget 50000 --minutes 55
  imbrace-lake backfill --everything --since 2026-01-01 --until 2026-02-01
  imbrace-lake backfill --phones customers.csv --region TW --since 2026-01-01T08:00+08:00
  imbrace-lake backfill --conversation conv_1 --conversation conv_2
  imbrace-lake backfill --rerun RUN_ID

\b
Exit codes:
  0 all complete   3 partial   1 failed   2 wrong use   130 interrupted
"""


def backfill(
    numbers: options.Numbers = None,
    phones: options.Phones = None,
    column: options.Column = None,
    sheet: options.Sheet = None,
    region: options.Region = None,
    everything: Annotated[
        bool, typer.Option("--everything", help="Every conversation that the lake knows.")
    ] = False,
    conversations: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|-",
            help="A list of conversation ids: text, or a table with a column conversation_id.",
        ),
    ] = None,
    conversation: Annotated[
        list[str] | None, typer.Option(metavar="ID", help="A conversation; repeat the option for more.")
    ] = None,
    rerun: Annotated[
        str | None,
        typer.Option(
            metavar="RUN_ID",
            help="Retry the failures of this earlier run; in its window, unless you give another one.",
        ),
    ] = None,
    since: Annotated[
        str | None, typer.Option(metavar="TIME", help=f"Only messages from this moment on, {HOW_TO_WRITE}.")
    ] = None,
    until: Annotated[
        str | None, typer.Option(metavar="TIME", help=f"Only messages before this moment, {HOW_TO_WRITE}.")
    ] = None,
    new_only: Annotated[
        bool, typer.Option("--new-only", help="Read only new messages instead of complete conversations.")
    ] = False,
    budget: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=options.MAX_COUNT,
            metavar="N",
            help=(
                "With --everything --new-only: at most this many requests, retries included, where most news"
                " is expected; visits that have begun are finished."
            ),
        ),
    ] = None,
    minutes: Annotated[
        float | None,
        typer.Option(
            min=0.01,
            max=876_000.0,
            metavar="N",
            help=(
                "With --everything --new-only: at most this many minutes; visits that have an answer are"
                " finished."
            ),
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
    """Read conversations again, completely or for a window of time, and update the lake.

    Choose them by exactly one of: --everything, phone numbers (arguments or --phones), conversations
    (--conversations or --conversation), --rerun.
    """
    from imbrace_cli.inputs import TableOptions, ids_address, list_address
    from imbrace_cli.run import backfill_flow, run_watched
    from imbrace_cli.summary import show_outcome
    from imbrace_flows.params import BackfillParams
    from imbrace_lake.phones.columns import join_columns

    begin, end = _window(since, until)
    if new_only and (begin or end):
        raise UsageError("--new-only has no window of time: leave out --since and --until, or --new-only")
    if (budget is not None or minutes is not None) and not (everything and new_only):
        raise UsageError("--budget and --minutes are for runs with --everything --new-only")
    source = _only(
        {
            "everything": everything,
            "phones": phones is not None or bool(numbers),
            "conversations": conversations is not None or bool(conversation),
            "rerun": rerun is not None,
        }
    )
    settings = checked_settings(
        organization=organization, lake=lake, gateway=gateway, region=region,
        requests_per_second=requests_per_second, max_in_flight=max_in_flight, chunk_size=chunk_size,
        shard_size=shard_size,
    )  # fmt: skip
    table = TableOptions(join_columns(column), sheet)
    if source == "phones":
        phones = list_address(phones, numbers or [], table, settings)
    elif source == "conversations":
        conversations = ids_address(conversations, conversation or [], table, settings)
    else:
        require_run_in_lake(settings, rerun)
    params = BackfillParams(
        everything=everything, phones=phones, conversations=conversations, rerun=rerun, column=table.column,
        sheet=sheet, region=settings.region, since=begin, until=end, walk_whole=not new_only,
        chunk_size=settings.chunk_size, shard_size=settings.shard_size,
        tolerated_failures=tolerated_failures, accept_repeats=accept_repeats, budget=budget, minutes=minutes,
    )  # fmt: skip
    overrides = options.overrides(settings, requests_per_second, max_in_flight)
    outcome = run_watched(settings, backfill_flow, params, overrides)
    window = [f" --since {since}"] * (since is not None) + [f" --until {until}"] * (until is not None)
    show_outcome(outcome, f"imbrace-lake backfill{''.join(window)}", as_json=as_json)
    raise typer.Exit(outcome.exit_code)


def _only(given: Mapping[Source, bool]) -> Source:
    """Return the source that was chosen.

    Raises:
        UsageError: No source was chosen, or more than one.
    """
    names: dict[Source, str] = {
        "everything": "--everything",
        "phones": "phone numbers (arguments or --phones)",
        "conversations": "--conversations (or --conversation)",
        "rerun": "--rerun",
    }
    chosen = [source for source, is_given in given.items() if is_given]
    if not chosen:
        raise UsageError(f"choose the conversations by one of: {', '.join(names.values())}")
    if len(chosen) > 1:
        raise UsageError(f"choose one of: {', '.join(names[source] for source in chosen)}")
    return chosen[0]


def _window(since: str | None, until: str | None) -> tuple[datetime | None, datetime | None]:
    begin = None if since is None else _instant("--since", since)
    end = None if until is None else _instant("--until", until)
    if begin is not None and end is not None and begin >= end:
        raise UsageError(f"the window ends before it begins: --until {until} is not after --since {since}")
    if begin is not None and begin > datetime.now(UTC):
        raise UsageError(f"the window begins in the future: --since {since} is not earlier than now")
    return begin, end


def _instant(option: str, text: str) -> datetime:
    """Parse a time.

    Raises:
        UsageError: The text is not a time, or has no time zone.
    """
    try:
        return parse_moment(text)
    except UsageError as exc:
        raise UsageError(f"{option} {text} {exc}") from None
