"""Compactions of small lakes, and the tables as readers see them."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
from deltalake import DeltaTable

from imbrace_lake.lake.lake import Lake
from imbrace_lake.lake.schema import SCHEMA
from imbrace_lake.tables.compact import compact_lake
from imbrace_lake.tables.messages import MessagesCompaction
from imbrace_lake.tables.report import TableReport
from imbrace_lake.tables.rows import in_lake_schema
from tests.core.lake_runs import Bench, Row, by_message
from tools.seaweed import Seaweed


def compact_all(bench: Bench, now: datetime | None = None, **options: Any) -> list[TableReport]:
    """Compact a lake, a second after the last run."""
    moment = now or bench.now + timedelta(seconds=1)

    async def job(lake: Lake) -> list[TableReport]:
        return await compact_lake(lake, "compaction", lambda: moment, **options)

    return bench.look(job)


def compact(bench: Bench, now: datetime | None = None) -> TableReport:
    """Compact the messages of a lake only, a second after the last run."""
    moment = now or bench.now + timedelta(seconds=1)

    async def job(lake: Lake) -> TableReport:
        return await MessagesCompaction(lake, lambda: moment).run()

    return bench.look(job)


def open_table(bench: Bench, name: str = "messages", options: Mapping[str, str] | None = None) -> DeltaTable:
    """Open a table as any reader does."""
    url = bench.lake if "://" in bench.lake else str(Path(bench.lake).resolve())
    return DeltaTable(f"{url}/tables/{name}", storage_options=dict(options or {}))


def table_rows(bench: Bench, options: Mapping[str, str] | None = None) -> pa.Table:
    """Return the rows of the table of messages, without `month`, in the columns of parts."""
    return in_lake_schema(pa.table(open_table(bench, options=options).to_pyarrow_table()))


def difference(bench: Bench, options: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Compare the rows of the table with those of the parts; `SAME` if they are equal in every column."""
    assert bench.rows().schema.names == SCHEMA.names
    one: dict[Any, Row] = by_message(table_rows(bench, options))
    other = by_message(bench.rows())
    return {
        "missing": sorted(other.keys() - one.keys()),
        "extra": sorted(one.keys() - other.keys()),
        "different": [key for key in one.keys() & other.keys() if one[key] != other[key]],
    }


def storage_options(s3: Seaweed) -> Mapping[str, str]:
    """Return how deltalake and Polars reach a store."""
    return {
        "AWS_ENDPOINT_URL": s3.endpoint_url,
        "AWS_ACCESS_KEY_ID": s3.key,
        "AWS_SECRET_ACCESS_KEY": s3.secret,
        "AWS_REGION": "us-east-1",
        "AWS_ALLOW_HTTP": "true",
    }


SAME: dict[str, list[Any]] = {"missing": [], "extra": [], "different": []}


def log_texts(bench: Bench) -> str:
    """Return every commit of the table of messages."""
    log = Path(bench.lake, "tables", "messages", "_delta_log")
    return "\n".join(path.read_text() for path in sorted(log.glob("*.json")))
