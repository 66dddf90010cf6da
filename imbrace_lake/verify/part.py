"""Judge one part by its content, without a ledger."""

from __future__ import annotations

import filecmp
import io
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from imbrace_lake.lake.claim import PartClaim, parse_claim
from imbrace_lake.lake.hashes import NO_HASH, content_hash, hash_sum
from imbrace_lake.lake.lake import BATCH_ROWS, in_schema
from imbrace_lake.lake.parquet import write_row_groups
from imbrace_lake.lake.schema import SCHEMA, with_digests

DAMAGED = "is damaged: restore it from a copy"
NOT_A_PART = "is not a part of a conversation"
WRONG_CLAIM = "does not contain the rows that its footer claims: restore it from a copy"
MIXED = "contains rows of several conversations: restore it from a copy"
# A column of the ledger `revisions`, whose rows are otherwise those of parts.
_OF_REVISIONS = "replaced_at"
_REQUIRED = {field.name for field in SCHEMA if not field.nullable}
# The errors of damaged files in Arrow, and of rows that are not messages.
_UNREADABLE = (
    pa.ArrowException, OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError
)  # fmt: skip


@dataclass(slots=True)
class PartReport:
    """What the content of a part shows.

    Attributes:
        problem: Why the part is damaged or wrong; None if no fault was found.
        claim: The claim in its footer; None in parts of earlier releases.
        organization_id, conversation_id: The conversation of its rows.
        rows: The number of rows.
        content_hash: The content hash, computed from the rows.
        newest_change: When a row last changed; None if there are no rows.
        is_proven: The rows match the claim or, without a claim, are encoded as the same bytes again.
    """

    problem: str | None = None
    claim: PartClaim | None = None
    organization_id: str = ""
    conversation_id: str = ""
    rows: int = 0
    content_hash: str = NO_HASH
    newest_change: datetime | None = None
    is_proven: bool = False


def judge_part(body: bytes | Path) -> PartReport:
    """Read a part, compare its rows with its claim, and encode them again for comparison.

    Args:
        body: The object, or a file with a copy of it.

    Raises:
        OSError: The file cannot be opened.
    """
    report = PartReport()
    if isinstance(body, Path):
        body.stat()
    source = io.BytesIO(body) if isinstance(body, bytes) else body
    with TemporaryDirectory(prefix="imbrace-verify-") as folder:
        path = Path(folder, "again")
        try:
            with pq.ParquetFile(source, page_checksum_verification=True, pre_buffer=False) as file:
                names = {*file.schema_arrow.names}
                if not names >= _REQUIRED or _OF_REVISIONS in names:
                    return PartReport(problem=NOT_A_PART)
                metadata = file.metadata.metadata or {}
                report.claim = parse_claim(metadata)
                texts = {name.decode(): value.decode() for name, value in metadata.items()}
                # Arrow's order of the keys depends on the order in which they were added.
                texts = texts if report.claim is None else report.claim.metadata() | texts
                write_row_groups(path, _row_groups(file, report), file.schema_arrow, texts)
                is_same = (
                    body == path.read_bytes()
                    if isinstance(body, bytes)
                    else filecmp.cmp(body, path, shallow=False)
                )
                is_one_writer = pq.read_metadata(path).created_by == file.metadata.created_by
        except MemoryError:
            raise  # a fault of this process, and not of the part
        except _UNREADABLE:
            return PartReport(problem=NOT_A_PART if _is_json(body) else DAMAGED)
    claim = report.claim
    if claim is None:
        # Earlier releases encoded parts in several ways, so different bytes prove nothing.
        report.is_proven = report.problem is None and is_same
        return report
    claimed = (claim.organization_id, claim.conversation_id, claim.content_hash)
    if report.problem is None and claimed != (
        report.organization_id,
        report.conversation_id,
        report.content_hash,
    ):
        report.problem = WRONG_CLAIM
    # Page checksums do not cover headers and footer, but one writer encodes equal rows as the same bytes.
    if report.problem is None and is_one_writer and not is_same:
        report.problem = DAMAGED
    report.is_proven = report.problem is None
    return report


def _is_json(body: bytes | Path) -> bool:
    """Whether an object can be `lake.json` or one of a journal, which begin as no part does."""
    if isinstance(body, bytes):
        return body.startswith(b"{")
    with body.open("rb") as file:
        return file.read(1) == b"{"


def _row_groups(file: pq.ParquetFile, report: PartReport) -> Iterator[list[pa.Table]]:
    """Yield the part's row groups, and complete the report."""
    for number in range(file.num_row_groups):
        rows = file.read_row_group(number, use_threads=False).combine_chunks()
        for name in ("organization_id", "conversation_id"):
            ids = pc.unique(rows.column(name)).to_pylist()
            if len(ids) != 1 or getattr(report, name) not in ("", ids[0]):
                report.problem = MIXED
            setattr(report, name, ids[0] or "")
        changes = [pc.max(rows.column(name)).as_py() for name in ("last_changed_at", "deleted_at")]
        report.newest_change = max(filter(None, (report.newest_change, *changes)), default=None)
        report.rows += rows.num_rows
        for batch in rows.to_batches(max_chunksize=BATCH_ROWS):
            digests = with_digests(in_schema(SCHEMA, batch))
            report.content_hash = hash_sum([report.content_hash, content_hash(digests)])
        yield [rows]
