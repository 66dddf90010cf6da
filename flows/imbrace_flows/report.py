"""The artifacts about the end of a run: a summary, a chart, the failures, and new shapes."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import date
from functools import partial

from prefect.artifacts import acreate_markdown_artifact, acreate_table_artifact

from imbrace_flows.chart import chart_markdown
from imbrace_flows.run_name import name_of_deployment
from imbrace_flows.words import add_up, as_code
from imbrace_lake.concurrency import run_bounded
from imbrace_lake.export.failures import MAX_LISTED
from imbrace_lake.export.humanize import counted, duration, size, span
from imbrace_lake.export.run import DeadLetter, RunSummary
from imbrace_lake.export.visits import NOT_KNOWN, VisitReport
from imbrace_lake.lake.checkpoint import others_in_words
from imbrace_lake.lake.freshness import Freshness, by_age
from imbrace_lake.lake.ledger_schema import RunTotals
from imbrace_lake.printable import plural, printable
from imbrace_lake.tables.report import TableReport
from imbrace_lake.verify.findings import Verification

SUMMARY_KEY = "export-summary"
FAILURES_KEY = "export-failures"
CHART_KEY = "export-picture"
FRESHNESS_KEY = "freshness"
DRIFT_KEY = "export-drift"
VERIFICATION_KEY = "verify-summary"
DIFFERENCES_KEY = "verify-differences"
COMPACTION_KEY = "compact-summary"

MAX_EXAMPLES = 5
MAX_REASONS = 5
# The end of an error of the gateway (`imbrace_lake.errors.GatewayError`).
_REQUEST = re.compile(r" \((GET [^()]*)\)")
# The only cause for which no rerun is worthwhile.
_GONE = "nothing: `export-failures` shows the conversations that the gateway does not have."

_HEADLINES = {
    "complete": "✅ Complete",
    "partial": "⚠️ Partial",
    "failed": "❌ Failed",
    "cancelled": "⏹️ Cancelled",
}


async def publish_report(summary: RunSummary, days: Mapping[date, int]) -> None:
    """Create the artifacts of a run; none contains a phone number or a message.

    All are Markdown: the UIs do not wrap the lines of a table, and show the URL of an image as text.

    Args:
        summary: The summary of the run.
        days: New messages by the day they were created, UTC.
    """
    started_as = name_of_deployment() if summary.is_cut_short else None
    artifacts: list[Callable[[], Awaitable[object]]] = [
        partial(
            acreate_markdown_artifact,
            summary_markdown(summary, started_as),
            key=SUMMARY_KEY,
            description=f"What the run found, read and wrote · run {summary.run_id}",
        ),
        partial(
            acreate_markdown_artifact,
            chart_markdown(days, summary.outcomes()),
            key=CHART_KEY,
            description="New messages by day, conversations by status",
        ),
    ]
    if summary.visits is not None:
        artifacts.append(partial(publish_freshness, summary.visits, summary))
    if failures := failures_markdown(summary, started_as):
        message = "What is missing, why, and what to do"
        artifacts.append(partial(acreate_markdown_artifact, failures, key=FAILURES_KEY, description=message))
    if summary.new_shapes:
        shapes = [{"shape": shape} for shape in summary.new_shapes[:MAX_LISTED]]
        message = f"What the gateway had never sent before{_of(len(summary.new_shapes))}; nothing is lost"
        artifacts.append(partial(acreate_table_artifact, shapes, key=DRIFT_KEY, description=message))
    await run_bounded(len(artifacts), artifacts)


def _of(count: int) -> str:
    return f" (the first {MAX_LISTED} of {count:,})" if count > MAX_LISTED else ""


async def publish_verification(
    lake: str, found: Verification, ages: Sequence[Freshness], uncounted: str = ""
) -> None:
    """Create the artifacts of a verification: a summary, and a table of the differences.

    Args:
        lake: Its address.
        found: What was read, and what differs.
        ages: The ages of the proofs.
        uncounted: Why the counts could not be compared with the gateway, and what to do; empty if they were,
            or were not to be.
    """
    headline = "# ❌ Counts not compared" if uncounted else "# ✅ Sound"
    page = [
        headline if found.is_sound else "# ❌ Differs",
        "",
        f"- **Read:** {plural(found.parts, 'part')}, {plural(found.ledger_objects, 'object')} of the ledgers,"
        f" {plural(found.table_files, 'file')} of tables",
    ]
    if found.counts is not None:
        page += [f"- **Counts:** {found.counts:,} compared with the gateway"]
    if found.without_count:
        conversations = plural(found.without_count, "conversation")
        page += [f"- **Not compared:** {conversations} whose count the gateway does not state"]
    if found.not_of_organization:
        others = others_in_words(found.not_of_organization)
        page += [f"- **Not compared:** {others}: each organization needs its own token"]
    if uncounted:
        page += [f"- **Counts:** not compared with the gateway: {uncounted}"]
    page += [f"- **Differences:** {len(found.differences):,}"]
    if found.unrecorded:
        parts = plural(found.unrecorded, "complete part")
        page += [f"- **In no ledger:** {parts}; the next run that reads their conversations records them"]
    page += [
        f"- **Lake:** {as_code(lake)}",
        "",
        "| last proven | conversations |",
        "|---|--:|",
        *(f"| {name} | {count:,} |" for name, count in by_age(ages).items()),
    ]
    await acreate_markdown_artifact(
        "\n".join(page), key=VERIFICATION_KEY, description="What the verification read and found"
    )
    if found.differences:
        table = [{"name": one.name, "problem": one.problem} for one in found.differences[:MAX_LISTED]]
        message = f"What differs{_of(len(found.differences))}"
        await acreate_table_artifact(table, key=DIFFERENCES_KEY, description=message)


async def publish_compaction(lake: str, reports: Sequence[TableReport]) -> None:
    """Create the artifact of a compaction."""
    await acreate_markdown_artifact(
        compaction_markdown(lake, reports),
        key=COMPACTION_KEY,
        description="What the compaction read and wrote, and how current the tables are",
    )


def compaction_markdown(lake: str, reports: Sequence[TableReport]) -> str:
    """Return the result of a compaction as a page that fits a screen."""
    differences = [found for one in reports for found in one.differences]
    is_dry_run = any(one.is_dry_run for one in reports)
    headline = "❌ Differs" if differences else "📋 Dry run" if is_dry_run else "✅ Up to date"
    messages = reports[0]
    as_of = f", as of {messages.as_of:%Y-%m-%d %H:%M} UTC" if messages.as_of else ""
    lines = [
        f"# {headline}",
        "",
        f"- **Messages:** {messages.rows:,} in {plural(messages.files, 'file')},"
        f" {size(messages.size_bytes)}{as_of}",
        f"- **Read:** {messages.changed:,} of {plural(messages.conversations, 'conversation')}",
        f"- **Lake:** {as_code(lake)}",
        "",
    ]
    if is_dry_run:
        lines += ["Nothing was written. A compaction would read and write:", ""]
        lines += ["| table | rows now | files | read | written |", "|---|--:|--:|--:|--:|"]
    else:
        lines += ["| table | rows | files | read | written | added | removed |"]
        lines += ["|---|--:|--:|--:|--:|--:|--:|"]
    for one in reports:
        row = f"| `{one.table}` | {one.rows:,} | {one.files:,} | {size(one.read_bytes)} |"
        row += f" {size(one.written_bytes)} |"
        lines.append(row if is_dry_run else f"{row} {one.rows_added:,} | {one.rows_removed:,} |")
    if differences:
        shown = differences[:MAX_EXAMPLES]
        of = f" ({len(shown)} of {len(differences):,}; the log has all of them)"
        lines += [
            "",
            f"**Differences**{of * (len(shown) < len(differences))}:",
            "",
            *(f"- {as_code(one.name)}: {one.problem}" for one in shown),
            "",
            *(
                ["The compaction has replaced rows of the tables that were wrong.", ""]
                if any(one.is_repaired for one in reports)
                else []
            ),
            "**Next:** start `verify`, and find the cause.",
        ]
    return "\n".join(lines)


def summary_markdown(summary: RunSummary, started_as: str | None = None) -> str:
    """Return the summary as a page that fits a screen: verdict, counts, the next step and a query.

    Args:
        summary: The summary.
        started_as: The deployment of the run, if it has one.
    """
    totals = summary.totals
    again = [(totals.retries, "tried again"), (totals.refusals, "rate-limited")]
    requests = summary.requests() + (f" ({counted(again)})" if any(count for count, _ in again) else "")
    numbers = sum(totals.phones.values())
    lines = [
        f"# {_HEADLINES[summary.status]}",
        "",
        sentence(summary),
        "",
        *([f"- **Phone numbers:** {add_up(numbers, 'given', _phones(totals))}"] if numbers else []),
        f"- **Conversations:** {add_up(totals.found, _reached(summary), summary.outcomes())}",
        f"- **Messages:** {totals.messages_new:,} new, {totals.messages_total:,} in"
        f" {'this span' if summary.is_window else 'these conversations'}",
        f"- **Cost:** {requests}, {size(totals.received_bytes)} received,"
        f" {size(totals.written_bytes)} written, {duration(totals.seconds)}",
        f"- **Lake:** {as_code(summary.lake)}{', new: this run made it' if summary.is_new_lake else ''}",
        "",
        *(f"**Next:** {step}\n" for step in next_steps(summary, started_as)),
        "```sql",
        "SELECT conversation_id, count(*) AS messages,",
        "  max(created_at) AS latest",
        f"FROM read_parquet('{query_path(summary.lake)}')",
        "WHERE NOT is_deleted",
        "GROUP BY ALL ORDER BY latest DESC LIMIT 20;",
        "```",
    ]
    return "\n".join(lines)


async def publish_freshness(visits: VisitReport, summary: RunSummary | None = None) -> None:
    """Create the artifact about the ages of the lake; the arguments are those of `freshness_markdown`."""
    await acreate_markdown_artifact(
        freshness_markdown(visits, summary),
        key=FRESHNESS_KEY,
        description="How old the proofs are, what is due, the promise and the forecast",
    )


def freshness_markdown(visits: VisitReport, summary: RunSummary | None = None) -> str:
    """Return the ages of the lake, the promise, the forecast and what limits it, as a page.

    Args:
        visits: The state of the lake.
        summary: That of the run; None if none has visited conversations.
    """
    limit = {"budget used": "the budget", "time used": "the time", "": "nothing: a run visits everything"}
    if visits.is_first:
        active = NOT_KNOWN
    elif visits.active_age is None:
        active = "none with messages of the last seven days"
    else:
        active = f"95 % of {visits.active:,} seen within {span(visits.active_age)}"
    oldest = "none" if visits.oldest is None else span(visits.oldest)
    if visits.unproven:
        oldest += f"; {visits.unproven:,} never proven"
    if visits.visited or visits.ended:
        visited = f"**Visited:** {visits.visited:,} of {visits.conversations:,}"
        visited += f"; {visits.not_reached:,} due and not reached"
    else:
        # A verification looks ahead, and visits nothing.
        visited = f"**Due at the next run:** {visits.due:,} of {visits.conversations:,}"
    not_due = f"; {visits.conversations - visits.due:,} were not due" if visits.ended else ""
    warnings = visits.warnings()
    if summary is not None and summary.budget_problem is not None:
        warnings.insert(0, summary.budget_problem)
    return "\n".join(
        [
            "# Freshness",
            "",
            f"- **Active conversations:** {active}",
            f"- **Oldest proof:** {oldest}",
            *([f"- **Deleted upstream:** {visits.gone:,}, which no age includes"] if visits.gone else []),
            f"- {visited}",
            *([f"- **Budget:** {summary.requests()}"] if summary and summary.budget is not None else []),
            f"- **Promise:** {visits.promise()}",
            f"- **Forecast:** {visits.forecast()}",
            f"- **Limited by:** {limit.get(visits.ended, 'the choice of this run')}{not_due}",
            "",
            *(f"⚠️ {one[:1].upper()}{one[1:]}.\n" for one in warnings),
            "| last proven | conversations |",
            "|---|--:|",
            *(f"| {name} | {count:,} |" for name, count in visits.by_age.items()),
        ]
    )


def next_steps(summary: RunSummary, started_as: str | None = None) -> list[str]:
    """Return what a person should do after the run, the most important first."""
    steps = []
    given = sum(summary.totals.phones.values())
    if summary.status == "cancelled":
        steps.append(_cancelled_step(summary))
    elif summary.is_cut_short:
        again = _start_again(started_as)
        steps.append(f"{summary.remedy} Then {again}." if summary.remedy else f"fix the cause, then {again}.")
    elif summary.is_worth_rerun:
        steps.append(
            "`export-failures` shows what is missing, why, and what to do. Once that is done, start"
            f" `retry-failed` with this run: `{summary.run_id}`"
        )
    elif summary.status == "failed" and not (given and summary.unreadable_count == given):
        steps.append(summary.remedy or (_GONE if summary.causes else "fix the cause, and start it again."))
    elif summary.status == "partial" and summary.causes:
        steps.append(_GONE)
    elif summary.status == "partial" and not summary.unreadable_count:
        steps.append("do what the sentence above advises: `retry-failed` cannot read the rest.")
    if summary.unreadable_count:
        steps.append("`export-input` shows which entries are not phone numbers: correct and export them.")
    if summary.damaged:
        steps.append(damage(summary))
    if summary.token_warning:
        steps.append(f"⏳ {summary.token_warning}")
    return steps or ["query the lake, for example with DuckDB:"]


def _cancelled_step(summary: RunSummary) -> str:
    """Return how the rest of a cancelled run is exported."""
    if summary.has_rest:
        return f"start `retry-failed` with this run to export the rest: `{summary.run_id}`"
    return "start it again to export the rest."


def _start_again(started_as: str | None) -> str:
    """Return what to do about a run that had not found all its conversations."""
    what = "it" if started_as is None else as_code(started_as)
    return f"start {what} again: `retry-failed` would miss what this run had not found"


def counts_in_words(summary: RunSummary) -> str:
    """Return the counts of a run in one line, for the log."""
    totals = summary.totals
    noun = "conversation" if totals.found == 1 else "conversations"
    return (
        f"{add_up(totals.found, f'{noun} {_reached(summary)}', summary.outcomes())};"
        f" {plural(totals.messages_new, 'new message')}, {plural(totals.requests, 'request')},"
        f" {duration(totals.seconds)}"
    )


def failures_markdown(summary: RunSummary, started_as: str | None = None) -> str:
    """Return what is missing, grouped by what to do about it; empty if nothing is missing.

    The arguments are those of `summary_markdown`.
    """
    numbers = sum(summary.number_errors.values())
    missing = [(summary.dead_letter_count, "conversation"), (numbers, "phone number")]
    if not any(count for count, _ in missing):
        return ""
    step = f"Once the causes are fixed, start `retry-failed` with this run: `{summary.run_id}`"
    if summary.status == "cancelled":
        step = f"The run was cancelled: {_cancelled_step(summary)}"
    elif summary.is_cut_short:
        step = f"Once the causes are fixed, {_start_again(started_as)}."
    elif not summary.is_worth_rerun:
        step = "A retry would not change this."
    lines = [
        f"# Not exported: {' and '.join(plural(*one) for one in missing if one[0])}",
        "",
        step,
    ]
    for advice, count in summary.causes.items():
        letters = [letter for letter in summary.dead_letters if letter.advice == advice]
        lines += ["", f"## {plural(count, 'conversation')}", "", f"**What to do:** {advice}"]
        lines += _reasons(Counter(map(_cause, letters)), count)
        ids = [as_code(printable(letter.conversation_id)) for letter in letters[:MAX_EXAMPLES]]
        more = f" and {count - len(ids):,} more" if count > len(ids) else ""
        lines += ["", f"**Which:** {', '.join(ids)}{more}"] if ids else []
        request = next(filter(None, (_REQUEST.search(letter.reason) for letter in letters)), None)
        lines += ["", f"**For the vendor:** {as_code(request[1])}"] if request else []
    if numbers:
        lines += ["", f"## {plural(numbers, 'phone number')}", ""]
        shown = summary.remedy or "Fix the cause, then retry."
        if summary.status == "cancelled":
            step = _cancelled_step(summary)
            shown = f"{step[:1].upper()}{step[1:]}"
        lines += [f"**What to do:** {shown}", *_reasons(summary.number_errors, numbers)]
    if summary.dead_letter_count:
        rows, runs = (query_path(summary.lake, f"{name}/*.parquet") for name in ("conversations", "runs"))
        lines += [
            "",
            "All of them:",
            "",
            "```sql",
            "SELECT conversation_id, status, reason",
            # A run that was started over has an outcome of each start.
            "FROM (SELECT *, row_number() OVER (",
            "    PARTITION BY conversation_id",
            "    ORDER BY finished_at DESC) AS newest",
            f"  FROM read_parquet('{rows}',",
            "    union_by_name = true)",
            "  WHERE run_id IN (SELECT run_id",
            f"    FROM read_parquet('{runs}',",
            "      union_by_name = true)",
            f"    WHERE '{summary.run_id}'",
            "      IN (run_id, parent_run_id)))",
            "WHERE newest = 1 AND is_dead_letter;",
            "```",
        ]
    return "\n".join(lines)


def _reasons(reasons: Mapping[str, int], count: int) -> list[str]:
    """Return the lines about the causes of `count` failures; a single cause needs no count."""
    if len(reasons) == 1:
        return ["", f"**Why:** {next(iter(reasons))}"]
    shown = sorted(reasons.items(), key=lambda one: -one[1])[:MAX_REASONS]
    rest = count - sum(each for _, each in shown)
    others = [f"- {rest:,} × other reasons, in the lake"] * (rest > 0)
    return ["", "**Why:**", "", *(f"- {each:,} × {reason}" for reason, each in shown), *others]


def _cause(letter: DeadLetter) -> str:
    """Return the reason of a failure without what differs from conversation to conversation."""
    cause = _REQUEST.sub("", letter.reason)
    return cause.replace(letter.conversation_id, "…") if letter.conversation_id else cause


def _phones(totals: RunTotals) -> list[tuple[int, str]]:
    names = {
        "resolved": "with conversations",
        "none": "without",
        "duplicate": "repeated",
        "invalid": "unreadable",
        "error": "not resolved",
    }
    return [(totals.phones.get(status, 0), name) for status, name in names.items()]


def sentence(summary: RunSummary) -> str:
    """Return how the run ended, in one sentence."""
    if summary.reason is None:
        return "Every conversation was read and proven complete."
    return f"{summary.reason[:1].upper()}{summary.reason[1:]}."


def _reached(summary: RunSummary) -> str:
    """Return how the conversations became those of the run: an ingestion with a budget leaves some out."""
    visits, found = summary.visits, summary.totals.found
    is_choice = visits is not None and found == visits.visited and found < visits.conversations
    return "visited" if is_choice else "found"


def damage(summary: RunSummary) -> str:
    """Return which ledger objects could not be read, and what to do, in one sentence."""
    count = len(summary.damaged)
    them, which = ("it", "which one") if count == 1 else ("them", "which ones")
    return (
        f"{plural(count, 'ledger object is', 'ledger objects are')} damaged, and the run continued without"
        f" {them}: run `verify` to see {which} and what to do."
    )


def query_path(lake: str, pattern: str = "messages/**/*.parquet") -> str:
    """Return the pattern of objects of a lake, of all parts by default, for a query engine."""
    return f"{lake.removeprefix('file://')}/{pattern}"
