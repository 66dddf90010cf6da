"""The export: phone numbers in, a complete lake out, seen in Prefect while it works and after."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from itertools import islice
from typing import Any, TypeVar

import pyarrow as pa
from prefect import Task, flow
from prefect.artifacts import acreate_progress_artifact, aupdate_progress_artifact
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from prefect.states import Completed, Failed
from prefect.tasks import exponential_backoff

from flows.observer import Observer, current_observer
from flows.params import ExportParams
from flows.report import publish_report
from imbrace_lake.errors import ImbraceLakeError, UsageError
from imbrace_lake.export import ExportRun, chunk_size
from imbrace_lake.ledger import read_dead_letters
from imbrace_lake.phone_lists import PhoneList, read_phone_list
from imbrace_lake.progress import Progress
from imbrace_lake.resolve import Recording, ResolveResult
from imbrace_lake.runs import RunSummary, close_run, open_run
from imbrace_lake.settings import Settings, load_settings
from tasks.export import export_conversations_chunk
from tasks.resolve import resolve_phones
from tasks.retry import is_transient

T = TypeVar("T")

PROGRESS_SECONDS = 2.0
PHONE_TASKS = 200
SMALLEST_SLICE = 500


def _run_name() -> str:
    organization = flow_run.parameters["params"].organization or "default"
    return f"export-{organization}-{datetime.now(UTC):%Y-%m-%d-%H%M%S}"


@flow(
    name="export-conversations",
    flow_run_name=_run_name,
    description="Exports every conversation of a list of phone numbers into the lake, proven complete.",
    persist_result=False,
    validate_parameters=True,
)
async def export_conversations(params: ExportParams) -> State[Any]:
    """Export every conversation of a list of phone numbers into the lake, proven complete.

    Args:
        params: Which numbers, from which gateway, into which lake.
    """
    observer = current_observer.get() or Observer()
    try:
        summary = await _export(params, observer)
    except ImbraceLakeError as exc:
        return Failed(message=str(exc))
    observer.summary = summary
    message = summary.reason or "every conversation is complete"
    if summary.status == "complete":
        return Completed(message=message)
    return Failed(name="Partial" if summary.status == "partial" else "Failed", message=message)


async def _export(params: ExportParams, observer: Observer) -> RunSummary:
    """Everything a run does, from its parameters to its summary."""
    settings = load_settings(
        organization=params.organization,
        lake=params.lake,
        gateway=params.gateway,
        region=params.region,
        chunk_size=params.chunk_size,
    )
    if (params.phones is None) == (params.rerun is None):
        raise UsageError("give either a list of phone numbers or the run whose rest is to be exported")
    run_id = str(flow_run.id)
    numbers = await _read_numbers(params, settings) if params.phones is not None else None
    async with open_run(settings, run_id, progress=observer.progress) as run:
        ids: Sequence[str] = ()
        if params.rerun is not None:
            ids, phones = await read_dead_letters(run.lake, params.rerun)
            numbers = read_phone_list(phones, source_name="the earlier run") if phones else None
        phone_counts: Counter[str] = Counter()
        async with _shown(run.progress):
            if numbers is not None:
                observer.problems.extend(islice(numbers.problems(), 100))
                found, phone_counts = await _resolve(run, settings, numbers)
                ids = [*dict.fromkeys([*ids, *found])]
            if run.fatal is None:
                await _export_all(run, settings, ids)
        failure = None if run.fatal is None else str(run.fatal)
        summary = await close_run(
            run,
            params.model_dump(mode="json", exclude_none=True),
            phone_counts,
            tolerated_share=params.tolerated_failures,
            failure=failure,
        )
        await publish_report(summary)
        return summary


async def _read_numbers(params: ExportParams, settings: Settings) -> PhoneList:
    assert params.phones is not None  # noqa: S101 - told to the type checker
    return await asyncio.to_thread(
        read_phone_list, params.phones, region=settings.region, column=params.column
    )


async def _resolve(run: ExportRun, settings: Settings, numbers: PhoneList) -> tuple[list[str], Counter[str]]:
    """Find the conversations of all numbers; each once, in the order of the numbers."""
    run.progress.stage = "resolving"
    run.progress.numbers = numbers.valid
    key = settings.phone_key.get_secret_value().encode() if settings.phone_key else run.lake.phone_key
    recording = Recording(
        run.run_id, run.organization_id, key, settings.mask_phones, resolved_at=run.started_at
    )
    results: list[ResolveResult] = []
    rows = max(SMALLEST_SLICE, -(-numbers.given // PHONE_TASKS))
    slices = [numbers.table.slice(start, rows) for start in range(0, numbers.given, rows)]
    retrying = _retrying(resolve_phones, settings)

    async def resolve_slice(place: int, part: pa.Table) -> None:
        name = f"phones-{place + 1}-of-{len(slices)}"
        await retrying(run, recording, name, part, results, return_state=True)

    jobs = (partial(resolve_slice, place, part) for place, part in enumerate(slices))
    await _side_by_side(run, settings, jobs)
    ids = dict.fromkeys(one for result in results for one in result.conversation_ids)
    statuses: Counter[str] = sum((result.statuses for result in results), Counter())
    return list(ids), statuses


async def _export_all(run: ExportRun, settings: Settings, ids: Sequence[str]) -> None:
    """Export conversations by chunks; how each ended is in the run's progress and journal."""
    run.progress.stage = "exporting"
    run.progress.conversations = len(ids)
    await run.learn()
    size = chunk_size(len(ids), settings.chunk_size)
    count = -(-len(ids) // size)
    retrying = _retrying(export_conversations_chunk, settings)

    async def export(place: int) -> None:
        chunk = ids[place * size : (place + 1) * size]
        await retrying(run, f"chunk-{place + 1}-of-{count}", chunk, return_state=True)

    await _side_by_side(run, settings, (partial(export, place) for place in range(count)))


def _retrying(task: Task[..., Any], settings: Settings) -> Task[..., Any]:
    delays = exponential_backoff(backoff_factor=settings.task_retry_seconds)
    return task.with_options(
        retries=settings.task_retries, retry_delay_seconds=delays, retry_condition_fn=is_transient
    )


async def _side_by_side(
    run: ExportRun, settings: Settings, jobs: Iterator[Callable[[], Awaitable[None]]]
) -> None:
    """Do jobs, so many at a time, each begun only when one before it has ended."""

    async def worker() -> None:
        # One iterator for all workers: a job goes to whoever is free, and no list of them is kept.
        for job in jobs:
            if run.fatal is not None:
                return
            await job()

    async with asyncio.TaskGroup() as group:
        for _ in range(settings.chunks_in_flight):
            group.create_task(worker())


@asynccontextmanager
async def _shown(progress: Progress) -> AsyncIterator[None]:
    """Keep a progress artifact up to date as long as the work goes on."""
    artifact = await acreate_progress_artifact(0.0, key="export-progress", description="How far the run is")
    assert artifact is not None  # noqa: S101 - told to the type checker

    async def show() -> None:
        while True:
            await asyncio.sleep(PROGRESS_SECONDS)
            await aupdate_progress_artifact(artifact, progress=round(100 * progress.share(), 1))

    showing = asyncio.create_task(show())
    try:
        yield
    finally:
        showing.cancel()
        with suppress(asyncio.CancelledError):
            await showing
        await aupdate_progress_artifact(artifact, progress=100.0)
