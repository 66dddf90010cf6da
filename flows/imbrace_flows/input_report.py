"""The artifact about the input of a run: what was read, which rows were skipped, and why."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from prefect.artifacts import acreate_markdown_artifact

from imbrace_flows.best_effort import best_effort
from imbrace_flows.words import add_up, as_code
from imbrace_lake.phones.report import ListReport
from imbrace_lake.printable import plural

INPUT_KEY = "export-input"
NAMES = {"valid": "to be read", "duplicate": "repeated", "invalid": "unreadable"}


async def publish_input(report: ListReport | None) -> None:
    """Create the artifact about the list of a run, if it has one; it contains no phone number.

    The ledger has everything, so a server that is away now does not make the run a failure.
    """
    if report is None:
        return
    with best_effort("the report of the list"):
        await acreate_markdown_artifact(
            input_markdown(report.as_json()),
            key=INPUT_KEY,
            description="What was read from the list, and what was not, by position",
        )


def input_markdown(report: dict[str, Any]) -> str:
    """Return what was read of each file, then what was skipped or rejected, why and where.

    Args:
        report: From `ListReport.as_json`, whose lists have a bounded length.
    """
    counts = [(report["numbers"].get(status, 0), name) for status, name in NAMES.items()]
    entries = sum(count for count, _ in counts)
    lines = [f"# {add_up(entries, 'entry' if entries == 1 else 'entries', counts)}", ""]
    if report["rejected"]:
        lines += ["## Unreadable", ""]
        lines += [
            f"- **{one['count']:,} × {one['reason']}:** {_listed(one['where'], one['count'])}"
            for one in report["rejected"]
        ]
        lines += ["", "Correct these entries, and export them.", ""]
    lines += ["## Read", ""]
    for file in report["files"]:
        lines.append(
            f"- {as_code(file['name'])}: {plural(file['rows'], 'row')}, {as_code(file['description'])}"
        )
        lines += [f"    - {line}" for line in _left_out(file)]
    more = report["file_count"] - len(report["files"])
    lines += [f"- and {plural(more, 'more file')}"] * (more > 0)
    lines += [f"- not read, hidden or empty: {as_code(name)}" for name in report["skipped_files"]]
    return "\n".join(lines)


def _left_out(file: dict[str, Any]) -> Iterator[str]:
    """Yield a line for everything in a file that was not read."""
    for column in file["left_out"]:
        cells = plural(column["cells"], "cell")
        yield f"column {as_code(column['column'])} not read, though {cells} may be numbers"
    for sheet in file["other_sheets"]:
        yield f"sheet {as_code(sheet)} not read"
    empty = file["rows_without_text"]
    if empty["count"]:
        noun = "entry" if empty["count"] == 1 else "entries"
        where = _listed(empty["positions"], empty["count"])
        yield f"{empty['count']:,} without a number: {noun} {where}"
    if file["titles_skipped"]:
        yield f"{plural(file['titles_skipped'], 'row')} above the header skipped"
    if file["comments"]:
        yield f"{plural(file['comments'], 'comment line')} skipped"


def _listed(shown: Sequence[object], count: int) -> str:
    more = f" and {count - len(shown):,} more" if count > len(shown) else ""
    return ", ".join(as_code(each) if isinstance(each, str) else str(each) for each in shown) + more
