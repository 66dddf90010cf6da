"""What every reading flow does: find the conversations, export them by chunks, say how it ended."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any

import pyarrow as pa
from prefect import Task
from prefect.artifacts import acreate_progress_artifact, aupdate_progress_artifact
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from prefect.states import Cancelled, Completed, Failed
from prefect.tasks import exponential_backoff
from prefect.utilities.annotations import quote

from flows.approval import Declined, check_can_ask, is_asked, publish_plan, wait_for_approval
from flows.blocks import Connection
from flows.cancelling import RunCancelled, cancelled_with
from flows.events import emit_run_events
from flows.observer import Observer, current_observer
from flows.params import ReadParams
from flows.report import publish_report
from flows.sharding import check_can_shard, export_by_shards, has_shards
from imbrace_lake.errors import ImbraceLakeError
from imbrace_lake.export.chunk import chunk_size
from imbrace_lake.export.export_run import ExportRun
from imbrace_lake.export.plan import make_plan
from imbrace_lake.export.progress import Progress, ProgressLine
from imbrace_lake.export.resolve import Recording, ResolveResult
from imbrace_lake.export.resume import job_of
from imbrace_lake.export.runs import RunSummary, close_run, open_run
from imbrace_lake.export.shards import Manifest, drop_manifests, plan_shards
from imbrace_lake.lake.known import read_dead_letters, read_every_id
from imbrace_lake.lake.lake import open_lake
from imbrace_lake.phones.lists import PhoneList, read_ids, read_phone_list
from imbrace_lake.policy import Window
from imbrace_lake.settings import Settings
from tasks.assets import record_tables
from tasks.budget import shared_budget
from tasks.export import export_conversations_chunk
from tasks.resolve import resolve_phones
from tasks.retry import is_transient

PROGRESS_KEY = "export-progress"
PROGRESS_SECONDS = 2.0
PHONE_TASKS = 200
SMALLEST_SLICE = 500

# To the server, which shows it beside the run. Of the root logger it would show the URLs of requests.
logging.getLogger("imbrace_lake").setLevel(logging.INFO)


@dataclass(frozen=True, slots=True)
class Selection:
    """Which conversations a run reads, by the first four fields, or everything the lake knows."""

    phones: str | None = None
    numbers: list[str] | None = None
    conversations: str | None = None
    rerun: str | None = None
    is_everything: bool = False
    column: str | None = None
    window: Window = field(default_factory=Window)


async def run_flow(work: Callable[[Observer], Awaitable[RunSummary]]) -> State[Any]:
    """Do a flow's work, and end it in the state that says how it went, in one sentence."""
    observer = current_observer.get() or Observer()
    try:
        async with cancelled_with(str(flow_run.id)):
            summary = await work(observer)
    except Declined as exc:
        return Cancelled(name="Declined", message=str(exc))
    except RunCancelled:
        return Cancelled(message="Cancelled; the same run goes on with what is not yet in the lake.")
    except ImbraceLakeError as exc:
        return Failed(message=str(exc))
    observer.summary = summary
    message = summary.reason or "every conversation is complete"
    if summary.status == "complete":
        return Completed(message=message)
    return Failed(name="Partial" if summary.status == "partial" else "Failed", message=message)


async def read_conversations(
    selection: Selection,
    params: ReadParams,
    connection: Connection,
    observer: Observer,
    *,
    ask_first: bool = False,
) -> RunSummary:
    """Everything a reading run does, from its selection to its summary.

    Raises:
        ImbraceLakeError: The run could not begin; nothing was written but the lake's marker.
        Declined: With `ask_first`, the answer was no.
    """
    settings = connection.settings
    await check_can_shard(settings)
    numbers, ids = await _find(selection, connection)
    if ask_first:
        await _ask(selection, connection, numbers, ids)
    async with (
        open_run(
            settings, str(flow_run.id), progress=observer.progress, store_options=connection.store
        ) as run,
        shared_budget(run.gateway.gate, settings),
    ):
        run.window = selection.window
        run.drift = params.drift
        statuses: Counter[str] = Counter()
        manifests: list[Manifest] = []
        recorded = params.recorded()
        async with shown(run.progress):
            if numbers is not None:
                observer.problems.extend(islice(numbers.problems(), 100))
                found, statuses = await _resolve(run, settings, numbers)
                ids = [*dict.fromkeys([*ids, *found])]
            if run.fatal is None:
                run.progress.stage = "exporting"
                ids = await _learn(run, ids, selection.is_everything)
                if await has_shards(run, settings, len(ids)):
                    manifests = await plan_shards(
                        run,
                        ids,
                        settings.shard_size,
                        chunk_size=settings.chunk_size,
                        tolerated_share=params.tolerated_failures,
                    )
                    recorded["shards"] = await export_by_shards(run, manifests, connection.blocks)
                else:
                    await export_chunks(run, settings, ids, settings.chunk_size)
        summary = await close_run(
            run,
            recorded,
            statuses,
            tolerated_share=params.tolerated_failures,
            failure=None if run.fatal is None else str(run.fatal),
        )
        await drop_manifests(run.lake, manifests)
        await publish_report(summary, run.progress.days)
        emit_run_events(summary)
        await record_tables(summary)
        return summary


async def _find(selection: Selection, connection: Connection) -> tuple[PhoneList | None, list[str]]:
    """Read the lists, or what an earlier run left undone: phone numbers, and ids of conversations."""
    settings = connection.settings
    if selection.rerun is not None:
        async with open_lake(settings.needed("lake"), now=None, options=connection.store) as lake:
            ids, phones = await read_dead_letters(lake, selection.rerun)
        return (read_phone_list(phones, source_name="the earlier run") if phones else None), ids
    if selection.conversations is not None:
        return None, await asyncio.to_thread(read_ids, selection.conversations, column=selection.column)
    if selection.numbers is not None:
        return read_phone_list(selection.numbers, region=settings.region), []
    if selection.phones is not None:
        read = partial(read_phone_list, region=settings.region, column=selection.column)
        return await asyncio.to_thread(read, selection.phones), []
    return None, []


async def _ask(
    selection: Selection, connection: Connection, numbers: PhoneList | None, ids: Sequence[str]
) -> None:
    """Find out what the run would read, show it, and go on only when somebody has approved it."""
    check_can_ask()
    plan = None
    if not is_asked():
        settings = connection.settings
        gate = settings.gate()
        async with shared_budget(gate, settings):
            plan = await make_plan(
                settings,
                numbers,
                ids,
                is_everything=selection.is_everything,
                is_whole=settings.rewalk_days == 0,
                gate=gate,
                store_options=connection.store,
            )
        await publish_plan(plan)
    await wait_for_approval(plan)


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
    resolving = retrying(resolve_phones, settings)
    # Quoted, for Prefect looks into every value that a task is given, and every one in that, for futures.

    async def resolve_slice(place: int, part: pa.Table) -> None:
        name = f"phones-{place + 1}-of-{len(slices)}"
        raise_bug(await resolving(quote(run), recording, name, part, quote(results), return_state=True))

    jobs = (partial(resolve_slice, place, part) for place, part in enumerate(slices))
    await _side_by_side(run, settings, jobs)
    ids = dict.fromkeys(one for result in results for one in result.conversation_ids)
    statuses: Counter[str] = sum((result.statuses for result in results), Counter())
    return list(ids), statuses


async def _learn(run: ExportRun, ids: list[str], is_everything: bool) -> list[str]:
    """Read what the lake knows, and say which conversations are to be exported."""
    # What is to be done names the job, so that a killed run of the same job is continued.
    what = ("everything", *ids) if is_everything else ids
    await run.learn(job_of(what, run.organization_id, run.window, run.policy))
    if not is_everything:
        return ids
    known = await read_every_id(run.lake, run.organization_id, run.partitions)
    return [*dict.fromkeys([*known, *ids])]


async def export_chunks(
    run: ExportRun, settings: Settings, ids: Sequence[str], chosen_size: int | None
) -> None:
    """Export conversations by chunks; how each ended is in the run's progress and journal."""
    run.progress.conversations = len(ids)
    size = chunk_size(len(ids), chosen_size)
    count = -(-len(ids) // size)
    exporting = retrying(export_conversations_chunk, settings)

    async def export(place: int) -> None:
        chunk = ids[place * size : (place + 1) * size]
        name = f"chunk-{place + 1}-of-{count}"
        raise_bug(await exporting(quote(run), name, quote(chunk), return_state=True))

    await _side_by_side(run, settings, (partial(export, place) for place in range(count)))


def retrying(task: Task[..., Any], settings: Settings) -> Task[..., Any]:
    """A task that is tried again as the settings say."""
    delays = exponential_backoff(backoff_factor=settings.task_retry_seconds)
    return task.with_options(
        retries=settings.task_retries, retry_delay_seconds=delays, retry_condition_fn=is_transient
    )


def raise_bug(state: State[Any]) -> None:
    """End the run by what a task raised: the tasks put whatever they expect into a sentence."""
    cause = getattr(state.data, "result", state.data)
    if isinstance(cause, BaseException):
        raise cause


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

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(settings.chunks_in_flight):
                group.create_task(worker())
    except BaseExceptionGroup as failures:
        # Callers write `except ImbraceLakeError`, and a group would slip past them.
        raise failures.exceptions[0] from None


@asynccontextmanager
async def shown(progress: Progress) -> AsyncIterator[None]:
    """Keep a progress artifact up to date as long as the work goes on."""
    line = ProgressLine()
    artifact = await acreate_progress_artifact(0.0, key=PROGRESS_KEY, description="starting")
    assert artifact is not None  # noqa: S101 - told to the type checker

    async def show() -> None:
        while True:
            await asyncio.sleep(PROGRESS_SECONDS)
            percent = round(100 * progress.share(), 1)
            await aupdate_progress_artifact(artifact, percent, description=line.tell(progress))

    showing = asyncio.create_task(show())
    try:
        yield
    finally:
        showing.cancel()
        with suppress(asyncio.CancelledError):
            await showing
    await aupdate_progress_artifact(artifact, 100.0, description=line.tell_end(progress))
