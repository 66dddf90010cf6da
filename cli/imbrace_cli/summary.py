"""The end of a run for people: problems of the input, the reason of a failure, and the summary."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import typer

from imbrace_cli.terminal import as_called, echo, echo_error, echo_status, list_problems
from imbrace_lake.export.humanize import counted, size
from imbrace_lake.printable import plural, printable

if TYPE_CHECKING:
    from rich.console import RenderableType

    from imbrace_cli.run import Outcome
    from imbrace_lake.export.run import RunSummary

MAX_FAILURES = 10
_STYLES = {
    "complete": "bold green",
    "partial": "bold yellow",
    "failed": "bold red",
    "cancelled": "bold yellow",
}


def show_outcome(outcome: Outcome, command: str, *, as_json: bool = False) -> None:
    """Write problems to standard error, and the summary to standard output.

    Args:
        outcome: The result of the run.
        command: The command that retries its failures, without `--rerun` and the run.
        as_json: Write JSON, for programs.
    """
    list_problems(outcome.problems, outcome.problem_count)
    show_input(outcome.summary.input)
    if outcome.summary.status in ("failed", "cancelled"):
        echo_error(outcome.summary.reason or "the run failed")
    if as_json:
        typer.echo(json.dumps(outcome.summary.as_json(), ensure_ascii=False))
    else:
        _show_summary(outcome.summary, command)


def show_input(report: dict[str, Any] | None) -> None:
    """Write to standard error which part of a list was read, and what was left out."""
    if report is None:
        return
    first, others = report["files"][0], report["file_count"] - 1
    # Plain text has no columns or sheets to choose from.
    if others or first["description"] not in ("text, utf-8", "numbers"):
        more = f" and {plural(others, 'more file')}" * (others > 0)
        echo_status(f"list: {first['name']} ({first['description']}){more}, {plural(report['rows'], 'row')}")
    for warning in report["warnings"]:
        echo_error(warning, "input")


def _show_summary(summary: RunSummary, command: str) -> None:
    from rich.text import Text

    headline = Text(summary.status, style=_STYLES[summary.status])
    # `show_outcome` writes the reason of a failure as an error.
    if summary.reason and summary.status not in ("failed", "cancelled"):
        headline.append(f": {summary.reason}", style="not bold default")
    echo(headline, *_lines(summary))
    failures = summary.dead_letters[:MAX_FAILURES]
    if failures:
        echo(
            "",
            "not exported:",
            *(
                f"  {printable(one.conversation_id)}  {one.status.replace('_', ' ')}: {one.reason}"
                for one in failures
            ),
        )
        if summary.dead_letter_count > len(failures):
            echo(f"  and {summary.dead_letter_count - len(failures):,} more")
        echo("", "what to do:", *(f"  {as_called(line)}" for line in summary.advice()))
    if summary.damaged:
        damaged = plural(len(summary.damaged), "ledger object")
        echo("", f"damaged and ignored: {damaged}; verify shows which")
    if summary.number_errors:
        reasons = (f"  {count:,} × {reason}" for reason, count in summary.number_errors.items())
        echo("", "numbers not resolved:", *reasons)
    if summary.remedy and not failures:
        echo("", "what to do:", f"  {as_called(summary.remedy)}")
    if summary.is_cut_short and summary.number_errors:
        echo("", "Once the cause is fixed, run the same command again: a rerun would miss what was not found")
    elif summary.is_worth_rerun or summary.totals.phones.get("error"):
        when = "To export the rest" if summary.status == "cancelled" else "Once the cause is fixed"
        echo("", f"{when}: {as_called(command)} --rerun {summary.run_id} (and the same lake)")


def _lines(summary: RunSummary) -> list[RenderableType]:
    totals = summary.totals
    phones, conversations = totals.phones, totals.conversations
    lake = f"{summary.lake} (new)" if summary.is_new_lake else summary.lake
    rows = [("lake", lake), ("run", summary.flow_run_url or summary.run_id)]
    if phones or conversations:
        names = {"resolved": "with conversations", "none": "without", "duplicate": "repeated",
                 "invalid": "invalid", "error": "not resolved"}  # fmt: skip
        numbers = counted([(phones.get(status, 0), name) for status, name in names.items()])
        rows = [
            # A run that could not write its accounts knows neither these nor the time.
            *([("numbers", numbers)] if phones else []),
            ("conversations", _conversations(summary)),
            ("messages", f"{totals.messages_new:,} new of {totals.messages_total:,}"),
            ("requests", _requests(summary)),
            *([("time", f"{totals.seconds:,.1f} s")] if totals.seconds else []),
            *rows,
        ]
    if summary.token_warning:
        rows.append(("token", summary.token_warning))
    return [f"  {name:<15}{value}" for name, value in rows]


def _conversations(summary: RunSummary) -> str:
    counts, found = counted(summary.outcomes()), summary.totals.found
    return counts if found is None else f"{found:,} found: {counts}"


def _requests(summary: RunSummary) -> str:
    totals = summary.totals
    again = counted([(totals.retries, "tried again"), (totals.refusals, "rate-limited")])
    sent = f"{totals.requests:,}" if summary.budget is None else summary.requests()
    message = sent + (f" ({again})" if again != "none" else "")
    return f"{message}, {size(totals.received_bytes)} received, {size(totals.written_bytes)} written"
