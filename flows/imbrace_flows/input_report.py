"""The artifact about the input of a run: what was read, which rows were skipped, and why."""

from __future__ import annotations

from typing import Any

from prefect.artifacts import acreate_table_artifact

from imbrace_flows.best_effort import best_effort
from imbrace_lake.phones.report import ListReport

INPUT_KEY = "export-input"


async def publish_input(report: ListReport | None) -> None:
    """Create the artifact about the list of a run, if it has one; it contains no phone number.

    The ledger has everything, so a server that is away now does not make the run a failure.
    """
    if report is None:
        return
    with best_effort("the report of the list"):
        await acreate_table_artifact(
            input_rows(report.as_json()), key=INPUT_KEY, description=f"What was read from {report.source}"
        )


def input_rows(report: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of the table: what was read of each file, then what was skipped, why and where.

    Args:
        report: From `ListReport.as_json`, whose lists have a bounded length.
    """
    rows: list[dict[str, Any]] = []
    for file in report["files"]:
        rows.append(_row("read", file["rows"], file["description"], file["name"]))
        rows += [
            _row("column not read, cells look like numbers", left["cells"], left["column"], file["name"])
            for left in file["left_out"]
        ]
        rows += [_row("sheet not read", None, sheet, file["name"]) for sheet in file["other_sheets"]]
        empty = file["rows_without_text"]
        for what, count, detail in (
            ("rows without a number", empty["count"], _positions(empty)),
            ("rows above the header skipped", file["titles_skipped"], ""),
            ("comment lines skipped", file["comments"], ""),
        ):
            rows += [_row(what, count, detail, file["name"])] * (count > 0)
    rows += [_row("file not read (hidden or empty)", None, "", name) for name in report["skipped_files"]]
    rows += [
        _row(
            "rejected",
            one["count"],
            one["reason"],
            ", ".join(one["where"]) + _more(one["count"], one["where"]),
        )
        for one in report["rejected"]
    ]
    return rows


def _row(what: str, count: int | None, detail: str, where: str) -> dict[str, Any]:
    return {"what": what, "count": count, "detail": detail, "where": where}


def _positions(empty: dict[str, Any]) -> str:
    entries = "entry" if empty["count"] == 1 else "entries"
    return f"{entries} {', '.join(map(str, empty['positions']))}{_more(empty['count'], empty['positions'])}"


def _more(count: int, shown: list[Any]) -> str:
    return f" and {count - len(shown):,} more" if count > len(shown) else ""
