"""`imbrace-lake verify`: compare a lake with its ledgers, and on request with the gateway."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from imbrace_cli import options
from imbrace_cli.exit_codes import COMPLETE, PARTIAL
from imbrace_cli.interrupt import run_interruptibly
from imbrace_cli.options import AsJson, checked_settings, lake_settings
from imbrace_cli.terminal import echo, echo_status, is_watched, stderr_console
from imbrace_lake.errors import ImbraceLakeError, InputError
from imbrace_lake.printable import plural

if TYPE_CHECKING:
    from imbrace_lake.settings import Settings
    from imbrace_lake.verify.findings import Verification
    from imbrace_lake.verify.part import PartReport

EXAMPLES = """
\b
Examples:
  imbrace-lake verify --lake ./lake
  imbrace-lake verify --counts --organization org_… --lake s3://bucket/prefix --json | jq .differences
  imbrace-lake verify --object part-00000.parquet

\b
Exit codes:
  0 sound   3 something differs   1 failed   2 wrong use
"""

ShowProgress = Callable[[str, int, int], None]


def verify(
    counts: Annotated[
        bool,
        typer.Option(
            "--counts", help="Also compare every count with the gateway, one request per conversation."
        ),
    ] = False,
    one_object: Annotated[
        Path | None,
        typer.Option(
            "--object",
            metavar="PATH",
            help="Judge one part, or a copy of one, by the claim in its footer; needs no lake.",
        ),
    ] = None,
    organization: options.Organization = None,
    lake: options.Lake = None,
    gateway: options.Gateway = None,
    requests_per_second: options.RequestsPerSecond = None,
    max_in_flight: options.MaxInFlight = None,
    as_json: AsJson = False,
) -> None:
    """Read every object of the lake and report each one that has changed since it was written.

    With --counts, messages that reached the gateway since the last run count as a difference.
    """
    if one_object is not None:
        _verify_object(one_object, as_json)
    read = checked_settings if counts else lake_settings
    settings = read(
        organization=organization, lake=lake, gateway=gateway,
        requests_per_second=requests_per_second, max_in_flight=max_in_flight,
    )  # fmt: skip
    with _progress() as show_progress:
        found, uncounted = run_interruptibly(_verify(settings, counts, show_progress))
    if as_json:
        is_sound = found.is_sound and uncounted is None
        typer.echo(json.dumps({"sound": is_sound, **asdict(found)}))
    else:
        _echo_verification(found, settings.require("lake"))
    if uncounted is not None:
        raise uncounted
    raise typer.Exit(COMPLETE if found.is_sound else PARTIAL)


def _verify_object(path: Path, as_json: bool) -> NoReturn:
    from imbrace_lake.verify.part import judge_part

    if not path.is_file():
        raise InputError(f"{path} is not a file: check the path")
    report = judge_part(path)
    if as_json:
        typer.echo(json.dumps({"sound": report.problem is None, **asdict(report)}, default=str))
    elif report.problem is not None:
        echo(f"{path}: {report.problem}")
    else:
        echo_status(f"{'sound' if report.is_proven else 'not proven'}: {_evidence(report)}")
    raise typer.Exit(COMPLETE if report.problem is None else PARTIAL)


def _evidence(report: PartReport) -> str:
    """Return what a part without a fault proves, in one line."""
    rows = f"{plural(report.rows, 'message')} of {report.conversation_id} ({report.organization_id})"
    claim = report.claim
    if claim is None:
        writers = "an earlier version" if report.is_proven else "an earlier version or another program"
        return f"{rows}; {writers} wrote it, without a claim in its footer"
    proof = "no walk" if claim.status is None else f"{claim.status}, proof method {claim.proof_method}"
    count = "" if claim.server_count is None else f", gateway's count {claim.server_count:,}"
    return f"{rows}, as claimed by run {claim.run_id}: {proof}{count}"


async def _verify(
    settings: Settings, is_counting: bool, show_progress: ShowProgress
) -> tuple[Verification, ImbraceLakeError | None]:
    """Verify a lake; an error of the gateway must not lose what was found in the lake."""
    from functools import partial

    from imbrace_cli.gateway import shared_gateway
    from imbrace_lake.lake.lake import open_lake
    from imbrace_lake.verify.counts import read_counted, verify_counts
    from imbrace_lake.verify.objects import verify_objects

    async with open_lake(settings.require("lake"), now=None) as lake:
        found = await verify_objects(lake, partial(show_progress, "objects"))
        if not is_counting:
            return found, None
        try:
            states = await read_counted(lake, settings.require("organization"), found)
            async with shared_gateway(settings)(settings.gateway_options()) as gateway:
                await verify_counts(
                    gateway,
                    states,
                    found,
                    side_by_side=settings.max_in_flight,
                    on_progress=partial(show_progress, "counts"),
                )
        except ImbraceLakeError as exc:
            return found, exc
    return found, None


@contextmanager
def _progress() -> Iterator[ShowProgress]:
    """Show the progress on a terminal."""
    if not is_watched():
        yield lambda what, done, all: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(bar_width=30), MofNCompleteColumn())
    with Progress(
        *columns, TimeRemainingColumn(compact=True), console=stderr_console(), transient=True
    ) as bar:
        tasks = {what: bar.add_task(what, total=None, visible=False) for what in ("objects", "counts")}
        yield lambda what, done, all: bar.update(tasks[what], completed=done, total=all, visible=True)


def _echo_verification(found: Verification, lake: str) -> None:
    from imbrace_lake.lake.checkpoint import others_in_words

    if found.is_sound and not found.parts:
        echo_status(f"the lake at {lake} has no conversation yet, so there is nothing to verify")
        return
    echo(*(f"{one.name}: {one.problem}" for one in found.differences))
    looked = f"{plural(found.parts, 'part')} and {plural(found.ledger_objects, 'object')} of the ledgers"
    if found.table_files:
        looked += f", {plural(found.table_files, 'file')} of tables"
    if found.counts is not None:
        looked += f", {plural(found.counts, 'count')}"
    differ = plural(len(found.differences), "differs", "differ")
    echo_status(f"sound: {looked}" if found.is_sound else f"{differ}: {looked}")
    if found.without_count:
        conversations = plural(found.without_count, "conversation")
        echo_status(f"not compared: {conversations} whose count the gateway does not state")
    if found.not_of_organization:
        others = others_in_words(found.not_of_organization)
        echo_status(f"not compared with the gateway: {others}: each organization needs its own token")
    if found.tables_not_verified:
        echo_status(f"not verified: {found.tables_not_verified}")
    if found.unrecorded:
        parts = plural(found.unrecorded, "complete part")
        echo_status(f"in no ledger: {parts}; the next run that reads their conversations records them")
