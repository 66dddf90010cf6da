"""Export runs against a fake gateway, and the objects that they leave in the lake."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import pyarrow.parquet as pq

from imbrace_lake.export.run import RunContext
from imbrace_lake.gateway.client import GatewayClient
from imbrace_lake.lake.lake import open_lake, partition_key
from imbrace_lake.lake.ledger import Journal
from imbrace_lake.lake.ledger_schema import RunTotals
from imbrace_lake.lake.schema import to_item
from imbrace_sandbox import Sandbox
from tests.core.conftest import client_of

T = TypeVar("T")
ORG = "org_sandbox"


@asynccontextmanager
async def open_export(
    box: Sandbox, url: Path | str, run_id: str = "run_1", gateway: GatewayClient | None = None, **fields: Any
) -> AsyncIterator[RunContext]:
    """Open a run that has read the state of the lake."""
    async with open_lake(str(url), now=datetime.now(UTC)) as lake, gateway or client_of(box) as client:
        run = RunContext(
            run_id=run_id,
            organization_id=ORG,
            lake=lake,
            gateway=client,
            journal=Journal(lake, run_id, datetime.now(UTC)),
            slots=asyncio.Semaphore(8),
            **fields,
        )
        await run.load_prior_state("everything")
        yield run


def exporting(
    box: Sandbox, url: Path, job: Callable[[RunContext], Awaitable[T]], run_id: str = "run_1", **fields: Any
) -> T:
    """Run a job within a run, and close its journal as every run does."""

    async def main() -> T:
        async with open_export(box, url, run_id, **fields) as run:
            try:
                return await job(run)
            finally:
                await close(run)

    return asyncio.run(main())


async def close(run: RunContext) -> None:
    """Close a run, which writes its ledger objects from its journal."""
    row = {"run_id": run.run_id, "organization_id": run.organization_id, "status": "complete"}
    await run.journal.close(row, RunTotals())


def parts_of(folder: Path, conversation_id: str) -> list[Path]:
    return sorted((folder / partition_key(ORG, conversation_id)).glob("*"))


def items_of(folder: Path, conversation_id: str) -> list[dict[str, Any]]:
    """Return the gateway's objects, rebuilt from the parts, oldest first within each part."""
    return [
        to_item(row) for path in parts_of(folder, conversation_id) for row in pq.read_table(path).to_pylist()
    ]


def objects_in(folder: Path) -> dict[str, tuple[int, int]]:
    """Return the time and inode of every message object, which change when the object is rewritten."""
    found = sorted((folder / "messages").rglob("*.parquet"))
    return {str(path): (path.stat().st_mtime_ns, path.stat().st_ino) for path in found}
