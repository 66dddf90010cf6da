"""The export flow on the Prefect server of `$IMBRACE_HOME`; the core alone with `--without-prefect`."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Coroutine
from contextlib import nullcontext
from typing import Any
from uuid import uuid4

from benchmarks.metrics import SUCCESS, Job, measure
from imbrace_cli.prefect_session import prefect_session
from imbrace_lake.export.chunk import choose_chunk_size, export_chunk
from imbrace_lake.export.recovery import work_fingerprint
from imbrace_lake.export.resolve import Recording, resolve_numbers
from imbrace_lake.export.run import close_run, open_run
from imbrace_lake.gateway.factory import open_gateway
from imbrace_lake.phones.lists import read_phone_list
from imbrace_lake.settings import load_settings
from imbrace_lake.tuning import tuned_process

CLIENT = ("imbrace_lake.gateway.http_client",)
# Prefect imports FastAPI when it starts its first run.
PREFECTS = ("fastapi", "prefect.flow_engine", "prefect.task_engine")


async def run_core(job: Job) -> str:
    """Do the flow's work without an orchestrator; return the run's outcome."""
    numbers = read_phone_list(job.phones)
    settings = load_settings()
    async with (
        open_gateway(settings.gateway_options(), settings.new_limiter(), nullcontext()) as gateway,
        open_run(settings, gateway, str(uuid4())) as run,
    ):
        recording = Recording(
            run.run_id, run.organization_id, run.lake.phone_key, is_masked=False, resolved_at=run.started_at
        )
        found = await resolve_numbers(run.gateway, run.journal, recording, "phones", numbers.table)
        ids = found.conversation_ids
        await run.load_prior_state(work_fingerprint(ids))
        size = choose_chunk_size(len(ids))
        chunks = iter(range(0, len(ids), size))

        async def work() -> None:
            for start in chunks:
                await export_chunk(run, f"chunk-{start}", ids[start : start + size])

        await asyncio.gather(*(work() for _ in range(settings.chunks_in_flight)))
        summary = await close_run(run, {}, found.statuses)
    return SUCCESS if summary.status == "complete" else summary.status


def _tuned(work: Coroutine[Any, Any, str]) -> str:
    """Run the work in a process that is tuned as the command line tunes it."""
    with tuned_process():
        return asyncio.run(work)


def main() -> None:
    """Do one job."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.flow")
    parser.add_argument("--without-prefect", action="store_true")
    parser.add_argument("phones")
    arguments = parser.parse_args()
    job = Job.read()
    if arguments.without_prefect:
        measure(lambda: _tuned(run_core(job)), CLIENT)
        return
    with prefect_session(lambda _: None):
        # Only now, because Prefect reads its settings from the environment when it is imported.
        from imbrace_flows.export import export_conversations
        from imbrace_flows.params import ExportParams

        async def work() -> str:
            state = await export_conversations(ExportParams(phones=job.phones), return_state=True)
            return SUCCESS if state.is_completed() else (state.name or state.type.value).lower()

        measure(lambda: _tuned(work()), (*PREFECTS, *CLIENT))


if __name__ == "__main__":
    main()
