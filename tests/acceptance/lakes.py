"""Run the core without an orchestrator, and read lakes without the project's reader."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import pyarrow.dataset as ds

from imbrace_lake.export.chunk import export_chunk
from imbrace_lake.export.recovery import work_fingerprint
from imbrace_lake.export.resolve import Recording, resolve_numbers
from imbrace_lake.export.run import RunSummary, close_run
from imbrace_lake.phones.lists import read_phone_list
from imbrace_lake.settings import load_settings
from imbrace_sandbox import Sandbox
from tests.gateways import open_run

# They differ between runs, whatever was read.
OF_THE_RUN = ("run_id", "first_seen_at", "last_changed_at")


@dataclass(frozen=True, slots=True)
class Impatience:
    """Short waits, so that hundreds of faults take seconds; the number of tries is the default."""

    timeout_seconds: float = 0.5
    first_delay_seconds: float = 0.02


def export_with_core(
    box: Sandbox, lake: Path, phones: str, impatience: Impatience | None = None
) -> RunSummary:
    """Resolve and export everything in one chunk, as a task of the flow does, with one retry."""
    impatience = impatience or Impatience()

    async def export() -> RunSummary:
        settings = load_settings(
            token=box.options.token,
            organization=box.options.organization_id,
            gateway=box.url,
            lake=str(lake),
            timeout_seconds=impatience.timeout_seconds,
        )
        async with open_run(settings, str(uuid4())) as run:
            run.gateway.options = replace(
                run.gateway.options, first_delay_seconds=impatience.first_delay_seconds
            )
            key = run.lake.phone_key
            recording = Recording(run.run_id, run.organization_id, key, False, run.started_at)
            numbers = read_phone_list(phones)
            found = await resolve_numbers(run.gateway, run.journal, recording, "phones", numbers.table)
            await run.load_prior_state(work_fingerprint(found.conversation_ids))
            result = await export_chunk(run, "chunk", found.conversation_ids, is_last_try=False)
            if result.is_worth_retrying:
                await export_chunk(run, "chunk", found.conversation_ids)
            return await close_run(run, {}, Counter(found.statuses))

    return asyncio.run(export())


def messages_in(lake: Path) -> list[dict[str, Any]]:
    """Return all rows of a lake in a fixed order, without the columns that differ between runs."""
    table = ds.dataset(lake / "messages").to_table()
    kept = [name for name in table.column_names if name not in OF_THE_RUN]
    order = [(name, "ascending") for name in ("conversation_id", "message_id")]
    rows: list[dict[str, Any]] = table.select(kept).sort_by(order).to_pylist()
    return rows
