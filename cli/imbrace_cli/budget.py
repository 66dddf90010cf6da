"""`imbrace-lake budget`: the requests per second of all runs together."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated

import typer

from imbrace_cli.interrupt import run_interruptibly
from imbrace_cli.options import MAX_PER_SECOND, AsJson, read_settings
from imbrace_cli.terminal import echo, program
from imbrace_lake.errors import SettingsError
from imbrace_lake.printable import decimal, plural, rate

EXAMPLES = """
\b
Examples:
  imbrace-lake budget            # shows it, and how much of it is in use
  imbrace-lake budget 5
  imbrace-lake budget 0.5        # one request every two seconds
  imbrace-lake budget 0          # pauses all runs
"""


@dataclass(frozen=True, slots=True)
class Budget:
    """A budget, and its use.

    Attributes:
        per_second: The requests per second of all runs together; None if there is no limit.
        before: The value before this call.
        in_use: The most requests per second that the present runs can send.
        runs: The number of present runs.
    """

    per_second: float | None
    before: float | None
    in_use: float
    runs: int


def budget(
    per_second: Annotated[
        float | None,
        typer.Argument(
            metavar="N",
            min=0,
            max=MAX_PER_SECOND,
            help="The new budget; fractions work, 0 pauses all runs.",
            show_default=False,
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show the requests per second that all runs of a Prefect server share, or set them.

    The server is that of PREFECT_API_URL, or else the local one. Current runs follow a change within 15
    seconds.
    """
    from imbrace_cli.local_server import ServerUnavailable
    from imbrace_cli.prefect_session import prefect_session
    from imbrace_cli.terminal import waiting
    from imbrace_lake.gateway.shared_limit import LeasesUnreachable

    name = read_settings().request_limit
    if not name:
        raise SettingsError(
            "IMBRACE_REQUEST_LIMIT is empty, so runs ignore all budgets: name one, or unset it"
        )
    with waiting("asking the Prefect server") as say, prefect_session(say) as session:
        try:
            found = run_interruptibly(_budget(name, per_second))
        except LeasesUnreachable as exc:
            raise ServerUnavailable(f"the budget cannot be read: {exc}") from None
        page = session.page("concurrency-limits")
    if as_json:
        values = {"limit": name, "requests_per_second": found.per_second, "before": found.before,
                  "in_use": found.in_use, "runs": found.runs, "page": page}  # fmt: skip
        typer.echo(json.dumps(values))
    else:
        echo(*_lines(found, name, page, is_set=per_second is not None))


async def _budget(name: str, per_second: float | None) -> Budget:
    from prefect.client.orchestration import get_client

    from imbrace_tasks.budget import PrefectLeases, set_limit

    async with get_client() as client:
        leases = PrefectLeases(client, name)
        before = await leases.read_limit()
        if per_second is not None:
            await set_limit(client, name, per_second)
        present = await leases.read_leases()
        in_use = sum(min(lease.rate, lease.wanted) for lease in present)
        limit = before if per_second is None else await leases.read_limit()
    return Budget(limit, before, round(in_use, 3), len(present))


def _lines(found: Budget, name: str, page: str | None, *, is_set: bool) -> list[str]:
    """Describe a budget in words."""
    if found.per_second is None:
        first = f"no budget: there is no active limit {name}, so each run has its own limit"
    elif found.per_second == 0:
        first = "the budget is 0: all runs pause until it is raised"
    else:
        first = f"the budget is {rate(found.per_second, 6)} for all runs together"
    if is_set and found.before != found.per_second:
        first += f" (before: {'none' if found.before is None else decimal(found.before, 6)})"
    uses = (
        f"in use   up to {rate(found.in_use)}, by {plural(found.runs, 'run')}"
        if found.runs
        else "in use   by no run"
    )
    rows = [f"change   {program()} budget N"]
    if found.per_second is not None:
        # Without a budget, what runs reported a moment ago is not part of one.
        rows.insert(0, uses)
    if page is not None:
        rows.append(f"page     {page}")
    return [first, *(f"  {row}" for row in rows)]
