"""The result of a compaction."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from imbrace_lake.printable import plural
from imbrace_lake.tables.cleaning import AS_OF, RUN
from imbrace_lake.tables.delta_log import Snapshot


@dataclass(frozen=True, slots=True)
class TableDifference:
    """A conversation or a file of a table, and what is wrong with it."""

    name: str
    problem: str


@dataclass(slots=True)
class TableReport:
    """The result of compacting one table, or what it would read and write.

    Attributes:
        table: The name of the table.
        unit: What `changed` counts.
        is_dry_run: Whether nothing was written.
        version: The version of the table; None if there is none.
        as_of: The table has everything that runs had written by then; None if it is not complete yet.
        run_id: The last run that had ended by then.
        files, rows, size_bytes: The data files of the table and their rows.
        conversations: The number of conversations that the lake has.
        changed: The number of those that were read, because a part is new, replaced or removed, or all in a
            copy of the lake; or of ledger objects that were new.
        objects_read, read_bytes: The objects that were read, and their sizes.
        rows_added, rows_removed: Rows that came and went; an edited row does both.
        files_added, files_removed, written_bytes: Data files that came and went.
        requests: The approximate number of requests to the store, without those for lists.
        commits: The number of commits.
        conflicts: How often another compaction committed first.
        unproven: Changed conversations without a matching entry in the ledger, for example after a kill.
        files_deleted: Objects of earlier versions that were deleted.
        differences: What differed from the parts or the ledger.
        is_repaired: Whether all of that was written again, and is right now.
    """

    table: str
    unit: str = "conversations"
    is_dry_run: bool = False
    version: int | None = None
    as_of: datetime | None = None
    run_id: str | None = None
    files: int = 0
    rows: int = 0
    size_bytes: int = 0
    conversations: int = 0
    changed: int = 0
    objects_read: int = 0
    read_bytes: int = 0
    rows_added: int = 0
    rows_removed: int = 0
    files_added: int = 0
    files_removed: int = 0
    written_bytes: int = 0
    requests: int = 0
    commits: int = 0
    conflicts: int = 0
    unproven: int = 0
    files_deleted: int = 0
    differences: list[TableDifference] = field(default_factory=list)
    is_repaired: bool = False

    def describe(self, snapshot: Snapshot | None) -> None:
        """Take what a version of the table states about itself."""
        if snapshot is None:
            return
        self.version = snapshot.version
        as_of = snapshot.configuration.get(AS_OF)
        self.as_of = datetime.fromisoformat(as_of) if as_of else None
        self.run_id = snapshot.configuration.get(RUN) or None
        self.files = len(snapshot.files)
        self.rows = sum(one.rows for one in snapshot.files)
        self.size_bytes = sum(one.size_bytes for one in snapshot.files)


def describe(report: TableReport) -> str:
    """Return a report in one line."""
    noun = report.unit.removesuffix("s")
    is_ledger = noun == "ledger object"
    # The changes of a ledger are the objects that are read.
    changed = plural(report.changed, f"new {noun}" if is_ledger else noun)
    if report.is_dry_run:
        read = changed if is_ledger else f"{plural(report.objects_read, 'object')} of {changed}"
        return (
            f"{report.table}: would read {read} and {plural(report.files_removed, 'file')} of the table"
            f" ({_size(report.read_bytes)}), and write about {_size(report.written_bytes)}, with about"
            f" {plural(report.requests, 'request')}"
        )
    content = f"{plural(report.rows, 'row')} in {plural(report.files, 'file')} ({_size(report.size_bytes)})"
    as_of = "" if report.as_of is None else f", as of {report.as_of:%Y-%m-%d %H:%M:%S} UTC"
    if not report.commits:
        return f"{report.table}: up to date, {content}{as_of}"
    return (
        f"{report.table}: {changed}{'' if is_ledger else ' read'}, {plural(report.rows_added, 'row')} added,"
        f" {report.rows_removed:,} removed; {content}{as_of}"
    )


def _size(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:,.1f} MB"
