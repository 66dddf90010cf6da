"""The artifacts about the end of a run: a summary, a chart, and tables of failures and new shapes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date

from prefect.artifacts import acreate_image_artifact, acreate_markdown_artifact, acreate_table_artifact

from imbrace_flows.chart import chart_url
from imbrace_lake.export.humanize import size
from imbrace_lake.export.run import MOST_LISTED, RunSummary
from imbrace_lake.lake.freshness import Freshness, by_age
from imbrace_lake.lake.ledger_schema import OUTCOMES
from imbrace_lake.printable import printable
from imbrace_lake.verify.findings import Verification

SUMMARY_KEY = "export-summary"
FAILURES_KEY = "export-failures"
CHART_KEY = "export-picture"
DRIFT_KEY = "export-drift"
VERIFICATION_KEY = "verify-summary"
DIFFERENCES_KEY = "verify-differences"

_HEADLINES = {
    "complete": "✅ Complete",
    "partial": "⚠️ Partial",
    "failed": "❌ Failed",
    "cancelled": "⏹️ Cancelled",
}


async def publish_report(summary: RunSummary, days: Mapping[date, int]) -> None:
    """Create the artifacts of a run; none contains a phone number or a message.

    Args:
        summary: The summary of the run.
        days: New messages by the day they were created, UTC.
    """
    await acreate_markdown_artifact(
        summary_markdown(summary), key=SUMMARY_KEY, description="What the run found, read and wrote"
    )
    await acreate_image_artifact(
        chart_url(days, summary.totals.conversations),
        key=CHART_KEY,
        description="New messages by day, conversations by status",
    )
    if summary.dead_letters:
        # The UI does not wrap lines: its page shows the first two columns, and the others by scrolling.
        table = [
            {
                "conversation": printable(letter.conversation_id),
                "what to do": letter.advice,
                "reason": letter.reason,
                "status": letter.status.replace("_", " "),
            }
            for letter in summary.dead_letters
        ]
        count = summary.dead_letter_count
        message = f"Not exported: {count:,} conversation{'s' * (count != 1)}{_of(count)}"
        message += f". `retry-failed` tries them again; it takes the run id `{summary.run_id}`"
        await acreate_table_artifact(table, key=FAILURES_KEY, description=message)
    if summary.new_shapes:
        shapes = [{"shape": shape} for shape in summary.new_shapes[:MOST_LISTED]]
        message = f"What the gateway had never sent before{_of(len(summary.new_shapes))}; nothing is lost"
        await acreate_table_artifact(shapes, key=DRIFT_KEY, description=message)


def _of(count: int) -> str:
    return f" (the first {MOST_LISTED} of {count:,})" if count > MOST_LISTED else ""


async def publish_verification(lake: str, found: Verification, ages: Sequence[Freshness]) -> None:
    """Create the artifacts of a verification: a summary, and a table of the differences."""
    counts = f"{found.counts:,} counts were asked of the gateway, and " if found.counts else ""
    page = [
        "# ✅ Sound" if found.is_sound else "# ❌ Differs",
        "",
        f"In the lake at `{lake}`, {found.parts:,} parts and {found.ledger_objects:,} objects of the ledgers"
        f" were read, {counts}{len(found.differences):,} things differ. {found.unrecorded:,} parts are as"
        " killed runs left them: complete, and not yet in a ledger.",
        "",
        "| last proven | conversations |",
        "|---|--:|",
        *(f"| {name} | {count:,} |" for name, count in by_age(ages).items()),
    ]
    await acreate_markdown_artifact(
        "\n".join(page), key=VERIFICATION_KEY, description="What the verification read and found"
    )
    if found.differences:
        table = [{"name": one.name, "problem": one.problem} for one in found.differences[:MOST_LISTED]]
        message = f"What differs{_of(len(found.differences))}"
        await acreate_table_artifact(table, key=DIFFERENCES_KEY, description=message)


def summary_markdown(summary: RunSummary) -> str:
    """Return the summary as a page: counts, cost, the address of the lake and a query."""
    totals = summary.totals
    phones, conversations = totals.phones, totals.conversations
    lines = [
        f"# {_HEADLINES[summary.status]}",
        "",
        sentence(summary),
        "",
        *([f"⏳ {summary.token_warning}", ""] if summary.token_warning else []),
        "| phone numbers | |",
        "|---|--:|",
        *_rows(phones, ("resolved", "none", "invalid", "duplicate", "error")),
        "",
        "| conversations | |",
        "|---|--:|",
        *_rows(conversations, OUTCOMES),
        *([] if totals.found is None else [f"| **found** | **{totals.found:,}** |"]),
        "",
        "| cost | |",
        "|---|--:|",
        f"| messages new | {totals.messages_new:,} |",
        f"| messages in these conversations | {totals.messages_total:,} |",
        f"| requests (of these tried again) | {totals.requests:,} ({totals.retries:,}) |",
        f"| rate-limited by the gateway | {totals.refusals:,} |",
        f"| received | {size(totals.received_bytes)} |",
        f"| written | {size(totals.written_bytes)} |",
        f"| time | {totals.seconds:,.1f} s |",
        "",
        f"The lake is at `{summary.lake}`, the run is `{summary.run_id}`.",
        "",
        "```sql",
        "-- DuckDB; any engine that reads Parquet will do",
        "SELECT conversation_id, count(*) AS messages, max(created_at) AS latest",
        f"FROM read_parquet('{query_path(summary.lake)}')",
        "WHERE NOT is_deleted GROUP BY ALL ORDER BY latest DESC LIMIT 20;",
        "```",
    ]
    if summary.number_errors:
        reasons = (f"- {count:,} × {reason}" for reason, count in summary.number_errors.items())
        lines += ["", "Numbers that could not be resolved:", "", *reasons]
    if summary.damaged:
        lines += ["", damage(summary)]
    if summary.dead_letters:
        rerun = f"Once the cause is fixed, start `retry-failed` with the run id `{summary.run_id}`."
        lines += ["", "What to do:", "", *(f"- {line}" for line in summary.advice()), "", rerun]
    return "\n".join(lines)


def _rows(counts: dict[str, int], order: tuple[str, ...]) -> list[str]:
    return [f"| {name.replace('_', ' ')} | {counts.get(name, 0):,} |" for name in order]


def sentence(summary: RunSummary) -> str:
    """Return how the run ended, in one sentence."""
    if summary.reason is None:
        return "Every conversation was read and proven complete."
    return f"{summary.reason[:1].upper()}{summary.reason[1:]}."


def damage(summary: RunSummary) -> str:
    """Return which ledger objects could not be read, and what to do, in one sentence."""
    count = len(summary.damaged)
    objects = "1 ledger object is" if count == 1 else f"{count:,} ledger objects are"
    return (
        f"{objects} damaged, and the run continued without it: run `verify` to see which one and what to do."
    )


def query_path(lake: str) -> str:
    """Return the pattern of all parts of a lake, for a query engine."""
    return f"{lake.removeprefix('file://')}/messages/**/*.parquet"
