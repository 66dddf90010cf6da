"""The work of every reading flow: find the conversations, export them in chunks, report the result."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import islice, takewhile
from typing import Any
from uuid import UUID

import pyarrow as pa
import pyarrow.compute as pc
from prefect import Task
from prefect.artifacts import acreate_progress_artifact, aupdate_progress_artifact
from prefect.client.schemas.objects import State, StateType
from prefect.exceptions import Abort, TerminationSignal
from prefect.runtime import flow_run
from prefect.states import Cancelled, Completed, Failed
from prefect.tasks import exponential_backoff
from prefect.utilities.annotations import quote

from imbrace_flows.approval import (
    Declined,
    plan_markdown,
    publish_plan,
    require_deployment,
    wait_for_approval,
    was_asked,
)
from imbrace_flows.best_effort import best_effort
from imbrace_flows.blocks import Connection
from imbrace_flows.cancellation import (
    CANCELLED,
    CANCELLED_BACKFILL,
    DELETED,
    RunCancelled,
    cancelled_with,
    shard_cancelled,
    state_of,
)
from imbrace_flows.deployment_run import is_deployment_run
from imbrace_flows.events import emit_run_events, warn_of_expiry
from imbrace_flows.input_report import publish_input
from imbrace_flows.known_lakes import check_known_lake, remember_lake
from imbrace_flows.log import logger_of
from imbrace_flows.observer import Observer, RunFailed, RunResult, RunStopped, current_observer, run_result
from imbrace_flows.params import ReadParams
from imbrace_flows.report import counts_in_words, publish_report
from imbrace_flows.run_name import list_name
from imbrace_flows.sharding import check_can_shard, export_by_shards, needs_shards
from imbrace_lake.concurrency import beside, every, run_bounded
from imbrace_lake.errors import ImbraceLakeError, as_own_error
from imbrace_lake.export.accounts import MAX_POSITIONS
from imbrace_lake.export.chunk import choose_chunk_size
from imbrace_lake.export.humanize import duration
from imbrace_lake.export.plan import make_plan
from imbrace_lake.export.progress import Progress, ProgressLine
from imbrace_lake.export.recovery import work_fingerprint
from imbrace_lake.export.rerun import Missed, read_missed
from imbrace_lake.export.resolve import Recording, ResolveResult, note_unresolved
from imbrace_lake.export.run import RunContext, RunSummary, close_run, closed_summary, open_run, utc_now
from imbrace_lake.export.shards import plan_shards, read_list
from imbrace_lake.export.visits import BudgetGiven, RunBudget, Visits, choose_visits
from imbrace_lake.lake.conversation_states import ConversationStates, read_unrecorded
from imbrace_lake.lake.lake import open_lake
from imbrace_lake.phones.lists import PhoneList, read_ids, read_phone_list
from imbrace_lake.phones.report import ListReport
from imbrace_lake.phones.sources import display_name
from imbrace_lake.policy import Reading, Window
from imbrace_lake.printable import plural, printable
from imbrace_lake.settings import Settings
from imbrace_lake.tuning import tuned_process
from imbrace_tasks.assets import record_tables
from imbrace_tasks.budget import open_gateway
from imbrace_tasks.export import export_conversations_chunk
from imbrace_tasks.resolve import resolve_phones
from imbrace_tasks.retry import TaskError, is_transient, result_of

logger = logger_of("runs")

UNREADABLE = "Completed with unreadable input"
PROGRESS_KEY = "export-progress"
PROGRESS_SECONDS = 2.0
# A line in the log after ten percent, not more often than the first and at least as often as the second.
LOGGED_PERCENT = 10.0
BRIEF_SECONDS = 10.0
SILENT_SECONDS = 300.0
PHONE_TASKS = 200
SMALLEST_SLICE = 500


class NotClosed(ImbraceLakeError):
    """The accounts of a run could not be written.

    Args:
        problem: The reason, and what writes them later.
        is_cancelled: Whether the run was cancelled before.
    """

    def __init__(self, problem: str, *, is_cancelled: bool) -> None:
        super().__init__(problem)
        self.is_cancelled = is_cancelled


@dataclass(frozen=True, slots=True)
class Selection:
    """Which conversations a run reads, by one of the first five fields, or everything the lake knows.

    Within a `budget`, a run over everything chooses what to visit. In a shard, `parent_run` is the run that
    it is a part of, and `conversations` a list in the lake. The rerun of a run reads at least what that run
    was to read, unless it has a separate window, or is to read new messages only (`is_new_only`).
    """

    phones: str | None = None
    numbers: list[str] | None = None
    conversations: str | None = None
    rerun: str | None = None
    ids: list[str] | None = None
    is_everything: bool = False
    parent_run: str | None = None
    column: str | None = None
    sheet: str | None = None
    window: Window = field(default_factory=Window)
    is_new_only: bool = False
    budget: BudgetGiven = field(default_factory=BudgetGiven)

    def name(self) -> str:
        """Return the name of the list, or what else is read, without phone numbers."""
        if self.numbers is not None:
            return "typed numbers"
        if self.phones is not None or self.conversations is not None:
            return list_name(str(self.phones or self.conversations))
        return "everything in the lake" if self.is_everything else f"the failures of run {self.rerun}"


async def run_flow(
    work: Callable[[Observer], Awaitable[RunResult]], cancelled: str = CANCELLED
) -> State[Any]:
    """Do the work of a flow, and return its final state, with the result as the data.

    Args:
        work: The work.
        cancelled: The message of a run that is cancelled before it has a result.
    """
    observer = current_observer.get() or Observer()
    observer.cancellation.run_id = str(flow_run.id)
    show_log_lines()
    # A worker starts a process for each run.
    with tuned_process() if is_deployment_run() else nullcontext():
        try:
            async with cancelled_with(str(flow_run.id), by_caller=observer.cancellation):
                result = await work(observer)
        except Declined as exc:
            state: State[Any] = Cancelled(name="Declined", message=str(exc))
        except RunCancelled:
            state = Cancelled(message=cancelled)
        except asyncio.CancelledError as exc:
            # By its worker. The argument becomes the message of the state.
            raise asyncio.CancelledError(*(exc.args or (cancelled,))) from exc
        except NotClosed as exc:
            state = Cancelled(message=str(exc)) if exc.is_cancelled else Failed(message=str(exc))
        except Exception as exc:  # noqa: BLE001 - nothing but its class may reach the orchestrator
            state = failed_early(exc)
        else:
            state = _final_state(result)
    present = await state_of(str(flow_run.id))
    if present == DELETED and is_deployment_run():
        # Prefect would report in two tracebacks that the run has no state any more.
        logger.info("the run was deleted in Prefect: %s", state.message)
        raise Abort
    # Prefect would reject any other state, and the run would stay *Cancelling* for ever.
    if not state.is_cancelled() and present == StateType.CANCELLING:
        message, ended = f"Cancelled when its work had ended: {state.message}", run_result(state)
        return Cancelled(message=message, data=ended and RunStopped(message, ended))
    return state


def failed_early(exc: Exception) -> State[Any]:
    """Return the state of a run that has ended without a result; its page shows the reason in the log too."""
    reason = str(as_own_error(exc))
    if is_deployment_run():
        logger.error("%s", reason)
    return Failed(message=reason)


def show_log_lines() -> None:
    """Send our log lines to the server, which shows them with the run, but not a line for each task.

    Levels that an operator has set stay. Not by the root logger, which would also send the URLs of requests.
    """
    for name, level in (("imbrace_lake", logging.INFO), ("prefect.task_runs", logging.WARNING)):
        found = logging.getLogger(name)
        if found.level == logging.NOTSET:
            found.setLevel(level)


def _final_state(result: RunResult) -> State[Any]:
    summary = result.summary
    if summary.status == "cancelled":
        message = CANCELLED_BACKFILL if summary.has_rest else CANCELLED
        if summary.parent_run_id is not None:
            message = shard_cancelled(summary.parent_run_id)
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            # By something other than Prefect or the caller of the flow, who would get the state.
            raise asyncio.CancelledError(message)
        return Cancelled(message=message, data=RunStopped(message, result))
    message = summary.reason or "every conversation is complete"
    if (gone := summary.totals.conversations.get("gone", 0)) and not summary.reason:
        message += f", except for {plural(gone, 'conversation')} that the gateway does not have"
    # The terminal shows both beside the message. Notifications and lists of runs show only the message.
    is_alone = is_deployment_run()
    if is_alone and summary.is_new_lake:
        message += f"; made a new lake at {summary.lake}"
    if summary.status == "complete":
        # In the name too, which lists of runs show.
        name = UNREADABLE if summary.unreadable_count else "Completed"
        return Completed(name=name, message=message, data=result)
    name = "Partial" if summary.status == "partial" else "Failed"
    if is_alone and summary.remedy:
        # The artifacts have the rest of a long one.
        message = f"{message}. {summary.remedy.partition('. ')[0].rstrip('.')}."
    return Failed(name=name, message=message, data=RunFailed(message, result))


async def read_conversations(
    selection: Selection,
    params: ReadParams,
    connection: Connection,
    observer: Observer,
    *,
    ask_first: bool = False,
) -> RunResult:
    """Do a reading run, from its selection to its summary.

    However the run ends, its accounts are closed and published: each conversation that was found has
    an outcome.

    Raises:
        ImbraceLakeError: The run could not begin, or its accounts could not be written.
        Declined: With `ask_first`, an operator declined the plan.
    """
    settings = connection.settings
    token_warning = warn_of_expiry(settings) if selection.parent_run is None else None
    await check_can_shard(settings)
    # A shard opens the lake of its run.
    is_known = (
        selection.parent_run is not None or not is_deployment_run() or await check_known_lake(connection)
    )
    given = await _read_selection(selection, connection)
    if given.missed is not None and not selection.is_new_only:
        selection, connection = _as_retried(selection, connection, given.missed.reading)
        settings = connection.settings
    async with beside(publish_input(given.report)):
        if what := given.described():
            logger.info("given: %s", what)
        if ask_first:
            await _ask_for_approval(selection, connection, given)
        async with (
            # A run that is killed while it is cancelled cannot cancel its shards.
            nullcontext()
            if selection.parent_run is None
            else cancelled_with(selection.parent_run, StateType.FAILED),
            open_gateway(settings) as gateway,
            open_run(
                settings,
                gateway,
                str(flow_run.id),
                window=selection.window,
                drift=params.drift,
                parent_run_id=selection.parent_run,
                progress=observer.progress,
                store_options=connection.store,
            ) as run,
        ):
            job = _Job(run, settings, params, selection, given, connection.blocks)
            job.record_input()
            logger.info("organization %s, lake %s", printable(run.organization_id), run.lake.url)
            if run.lake.is_new:
                level = logging.WARNING if is_deployment_run() else logging.INFO
                logger.log(level, "made a new lake at %s", run.lake.url)
            if not is_known:
                await remember_lake(connection)
            failure, is_cancelled = None, False
            # The accounts are closed after any error.
            try:
                async with progress_artifact(run.progress):
                    await job.read()
            except (asyncio.CancelledError, TerminationSignal):
                await _be_cancelled()
                is_cancelled = True
            except Exception as exc:  # noqa: BLE001 - as above
                failure = str(as_own_error(exc))
            summary = await job.close(failure, is_cancelled=is_cancelled)
            summary.token_warning = token_warning
            logger.info("%s: %s", summary.status, counts_in_words(summary))
            await publish(summary, run)
            return RunResult(
                summary, [] if given.numbers is None else [*islice(given.numbers.problems(), 100)]
            )


async def _be_cancelled() -> None:
    """Continue as a task that was cancelled, which nothing cancels again; the flow's state depends on that.

    The signal with which a worker ends a run is raised by whatever code runs at that moment: mostly the event
    loop, which then cancels all tasks, but also a task, whose error then ends the flow alone.
    """
    task = asyncio.current_task()
    assert task is not None  # noqa: S101 - narrows the type for mypy
    if task.cancelling():
        return
    task.cancel()
    with suppress(asyncio.CancelledError):
        await asyncio.sleep(0)


async def publish(summary: RunSummary, run: RunContext) -> None:
    """Show in the orchestrator the end of a run, and of the killed runs that it has closed.

    A shard is part of what its parent shows. The lake has everything, so a server that is away now does not
    make the run a failure.
    """
    is_shard = summary.parent_run_id is not None

    async def report() -> None:
        with best_effort("the report of this run"):
            await publish_report(summary, run.progress.days)

    # The task of the lineage takes as long as the server takes for the report.
    async with nullcontext() if is_shard else beside(report()):
        for one in (*(closed_summary(closed, run.lake.url) for closed in run.recovered), summary):
            if one.parent_run_id is None:
                with best_effort(f"the event of run {one.run_id}"):
                    emit_run_events(one)
        if not is_shard:
            with best_effort("the lineage of this run"):
                await record_tables(summary)


@dataclass(frozen=True, slots=True)
class _Given:
    """The input of a run: phone numbers, conversation ids, or what an earlier run missed."""

    numbers: PhoneList | None = None
    ids: Sequence[str] = ()
    missed: Missed | None = None
    report: ListReport | None = None

    def described(self) -> str:
        """Return the number of entries of each kind; empty for a run that needs no input."""
        numbers = self.numbers
        parts = [plural(len(self.ids), "conversation")] if self.ids else []
        if numbers is not None:
            more = [(numbers.duplicates, "repeated"), (numbers.invalid, "unreadable")]
            parts = [
                plural(numbers.valid, "phone number"),
                *(f"{count:,} {what}" for count, what in more if count),
                *parts,
            ]
        return " · ".join(parts)


@dataclass(slots=True)
class _Job:
    """The work of one reading run, from the numbers to the outcome of each conversation.

    Attributes:
        recorded: The parameters of the run, for the ledger.
        results: The result of each slice of the numbers, by its name.
    """

    run: RunContext
    settings: Settings
    params: ReadParams
    selection: Selection
    given: _Given
    blocks: Mapping[str, object]
    recorded: dict[str, Any] = field(default_factory=dict)
    results: dict[str, ResolveResult] = field(default_factory=dict)

    def record_input(self) -> None:
        """Record the parameters and the input of the run, and in the accounts what a rerun cannot export."""
        given, accounts = self.given, self.run.accounts
        self.recorded = self.params.recorded()
        if given.report is not None:
            self.recorded["input"] = given.report.as_json()
        if given.missed is not None:
            # For a rerun of this run.
            self.recorded |= Reading(self.run.window, not self.run.policy.rewalk_after).recorded()
            accounts.if_empty = f"run {self.selection.rerun} missed nothing"
            if given.missed.lost:
                accounts.lost_input = [f"of run {self.selection.rerun}: {one}" for one in given.missed.lost]
                self.recorded["lost"] = accounts.lost_input
        if given.numbers is not None:
            # Each entry of the list is to have an outcome.
            entries = given.numbers.table.group_by(["position", "phone"]).aggregate([])
            self.recorded["entries"] = entries.num_rows

    async def read(self) -> None:
        """Resolve the numbers, then export the conversations."""
        run, numbers = self.run, self.given.numbers
        if self.selection.budget.minutes is not None:
            run.until = run.began + 60 * self.selection.budget.minutes
        if numbers is not None:
            await self._resolve(numbers)
        if run.failures.fatal is not None:
            raise run.failures.fatal
        ids, visits = self._ids(), None
        # The work identifies the job, so that this run continues a killed run of the same job.
        what = ("everything", *ids) if self.selection.is_everything else ids
        await run.load_prior_state(work_fingerprint(what, run.organization_id, run.window, run.policy))
        if self.selection.is_everything:
            recorded = {*run.prior.recorded_ids()}
            found = await read_unrecorded(run.lake, run.organization_id, run.prior.partitions, recorded)
            unproven = [*run.prior.unproven, *found]
            if self._give_budget(len(recorded.union(found, ids))):
                del recorded
                await self._visit(unproven, ids)
                return
            ids = [*sorted(recorded | found), *ids]
            if self.selection.budget.is_automatic:
                visits = await self._look_at(unproven, (), None)
        ids = await run.record_found(ids)
        logger.info("found: %s", plural(len(ids), "conversation"))
        if await needs_shards(run, self.settings, len(ids)):
            await export_by_shards(
                run,
                await plan_shards(run, ids, self.settings.shard_size),
                self.blocks,
                chunk_size=self.settings.chunk_size,
                tolerated_failures=self.params.tolerated_failures,
            )
        else:
            await export_chunks(run, self.settings, ids, self.settings.chunk_size)
            if visits is not None:
                done = run.accounts.recorded
                proven = done - run.failures.errors.keys()
                run.visits = visits.report(run.clock(), done, proven, "", run.accounts.gone)
        if run.failures.fatal is not None:
            raise run.failures.fatal

    def _give_budget(self, conversations: int) -> bool:
        """Give the run its budget; return whether it has one.

        A run that chooses its budget by itself has none if it can visit everything.
        """
        run, given, policy = self.run, self.selection.budget, self.settings.revisit_policy()
        limiter = run.gateway.limiter
        limits = [one for one in (limiter.shared_limit, self.settings.requests_per_second) if one]
        requests, minutes = given.limits(min(limits, default=None), policy)
        is_needed = given.is_chosen or (requests is not None and conversations > requests)
        # An earlier attempt that found the budget sufficient has promised an outcome for each conversation.
        if not is_needed or (requests is None and minutes is None) or run.earlier_found:
            return False
        until = math.inf if minutes is None else run.began + 60 * minutes
        run.budget = RunBudget(run.gateway.traffic, requests, until)
        return True

    async def _look_at(self, unproven: Sequence[str], listed: Sequence[str], left: int | None) -> Visits:
        """Choose what to visit with the requests that are left."""
        run = self.run
        return await asyncio.to_thread(
            choose_visits,
            run.prior.states,
            unproven,
            listed,
            self.settings.revisit_policy(),
            run.clock(),
            left,
            run.prior.as_stored,
        )

    async def _visit(self, unproven: Sequence[str], listed: Sequence[str]) -> None:
        """Visit what the run chooses within its budget, first the conversations that only the list has."""
        run, budget = self.run, self.run.budget
        assert budget is not None  # noqa: S101 - narrows the type for mypy
        left = None if budget.requests is None else max(0, budget.requests - budget.used)
        if budget.requests is not None and budget.requests > budget.used > budget.requests / 2:
            logger.warning(
                "the list of phone numbers used %d of the %d requests of this run: visits need a shorter list"
                " or a larger budget",
                budget.used,
                budget.requests,
            )
        # An outcome of a killed run can be an hour old.
        run.resumed = ConversationStates.empty()
        visits = await self._look_at(unproven, listed, left)
        # Those that an earlier attempt has visited have an outcome.
        ids = [one for one in run.prior.as_stored(visits.ids) if one not in run.accounts.recorded]
        outlook = visits.report(run.clock(), (), (), "")
        logger.info(
            "chosen: %s to visit, %s due; %s",
            plural(min(len(ids), len(ids) if left is None else left), "conversation"),
            f"{outlook.due:,}",
            "; ".join(outlook.ages()),
        )
        try:
            await export_chunks(run, self.settings, ids, self.settings.chunk_size)
        finally:
            recorded = run.accounts.recorded
            run.visits = visits.report(
                run.clock(),
                recorded,
                recorded - run.failures.errors.keys(),
                budget.ended(),
                run.accounts.gone,
            )
            self.recorded["visits"] = asdict(run.visits)
            self._note_end(budget)
            for warning in run.visits.warnings():
                logger.warning("%s", warning)
        if run.failures.fatal is not None:
            raise run.failures.fatal

    def _note_end(self, budget: RunBudget) -> None:
        """Note why visits ended without an answer, and why the run visited nothing."""
        run, visits, why = self.run, self.run.visits, None
        assert visits is not None  # noqa: S101 - narrows the type for mypy
        if budget.released:
            limited, failing = run.gateway.limiter.rate_limited_seconds(), run.gateway.traffic.failing_seconds
            if limited:
                why = f"the gateway rate-limited every request (429) for the last {duration(limited)}"
            elif failing:
                why = f"no request to the gateway succeeded for the last {duration(failing)}"
            else:
                why = "the gateway had not answered when the time was over"
            stay = plural(budget.released, "conversation stays", "conversations stay")
            budget.remark = f"{why}, so {stay} due whose visit had begun"
        # A lake without conversations needs no visit.
        if visits.visited or not visits.conversations or not budget.is_used_up:
            return
        advice = "give the run more minutes"
        if why is not None:
            budget.remark, advice = None, "start the run later"
        elif budget.ended() == "budget used":
            used = f"{budget.used:,} of the {budget.requests:,} requests"
            why = f"the list of phone numbers used {used} of this run"
            advice = "give it a shorter list or a larger budget"
        elif self.given.numbers is not None:
            why, advice = (
                "the list of phone numbers used the time of this run",
                "give it a shorter list or more minutes",
            )
        else:
            why = "the time was over before the first visit"
        budget.problem = f"no conversation was visited, because {why}: {advice}"
        logger.warning("%s", budget.problem)

    async def close(self, failure: str | None, *, is_cancelled: bool) -> RunSummary:
        """Close the accounts of the run; see `close_run`.

        Raises:
            NotClosed: They could not be written; the journal is complete, so that another run closes them.
        """
        run = self.run
        try:
            # The conversations that the lake knows are found only once the lake has been read.
            if run.accounts.found is None and run.budget is None:
                await run.recall()
                if run.earlier_found or not self.selection.is_everything:
                    await run.record_found(self._ids())
            return await close_run(
                run,
                self.recorded,
                run.accounts.phones,
                tolerated_share=self.params.tolerated_failures,
                tolerated_unreadable=self.settings.tolerated_unreadable,
                failure=failure,
                is_cancelled=is_cancelled,
            )
        except Exception as exc:  # noqa: BLE001 - nothing but its class may reach the orchestrator
            error = as_own_error(exc)
        before = "Cancelled. " if is_cancelled else f"{failure}; " if failure else ""
        problem = (
            f"{before}The accounts of this run could not be written: {error}. Once that is fixed, the next"
            f" run or a rerun of {run.run_id} writes them"
        )
        logger.error("%s", problem)
        raise NotClosed(problem, is_cancelled=is_cancelled)

    def _ids(self) -> list[str]:
        """Return the conversations given or found so far, each once, in the order of the numbers."""
        found = (one for result in self.results.values() for one in result.conversation_ids)
        return [*dict.fromkeys([*self.given.ids, *found])]

    async def _resolve(self, numbers: PhoneList) -> None:
        """Find the conversations of all numbers; each entry of the list ends with one status."""
        run, settings, accounts = self.run, self.settings, self.run.accounts
        run.progress.start_resolving(numbers.valid)
        key = settings.phone_key.get_secret_value().encode() if settings.phone_key else run.lake.phone_key
        recording = Recording(
            run.run_id, run.organization_id, key, settings.mask_phones, resolved_at=run.started_at
        )
        is_invalid = pc.equal(numbers.table.column("status"), "invalid")
        positions = numbers.table.column("position").filter(is_invalid)
        accounts.unreadable = positions.slice(0, MAX_POSITIONS).to_pylist()
        rows = max(SMALLEST_SLICE, -(-numbers.given // PHONE_TASKS))
        parts = [numbers.table.slice(start, rows) for start in range(0, numbers.given, rows)]
        slices = {f"phones-{i}-of-{len(parts)}": part for i, part in enumerate(parts, 1)}
        resolving = with_retries(resolve_phones, settings)
        # Quoted, because Prefect searches the arguments of a task, at any depth, for futures.

        async def resolve_slice(name: str, part: pa.Table) -> None:
            result = result_of(await resolving(quote(run), recording, name, part, return_state=True))
            if isinstance(result, TaskError):
                run.failures.add_problem(result.error)
            else:
                self.results[name] = result

        try:
            jobs = (partial(resolve_slice, *one) for one in slices.items())
            await run_bounded(
                settings.chunks_in_flight, takewhile(lambda _: run.failures.fatal is None, jobs)
            )
        finally:
            # Also when the run is cancelled or fails, so that a rerun by id resolves the missing numbers.
            for name, part in slices.items():
                if name in self.results:
                    accounts.phones += self.results[name].statuses
                    accounts.number_errors += self.results[name].reasons
                else:
                    problem = run.failures.fatal or run.failures.problem
                    reason = f"not reached: {problem or 'the run ended before it was resolved'}"
                    statuses = await note_unresolved(run.journal, recording, name, part, reason)
                    accounts.phones += statuses
                    accounts.number_errors[reason] += statuses["error"]


async def _read_selection(selection: Selection, connection: Connection) -> _Given:
    """Read the list, or from the lake what an earlier run missed."""
    settings = connection.settings
    table: dict[str, Any] = {
        "column": selection.column,
        "sheet": selection.sheet,
        "schemes": settings.schemes(),
    }
    if selection.rerun is not None:
        async with open_lake(settings.require("lake"), now=None, options=connection.store) as lake:
            missed = await read_missed(
                lake,
                selection.rerun,
                utc_now(),
                organization_id=settings.require("organization"),
                tolerated_unreadable=settings.tolerated_unreadable,
            )
            if missed.closed is not None:
                with best_effort(f"the event of run {selection.rerun}"):
                    emit_run_events(closed_summary(missed.closed, lake.url))
        numbers = read_phone_list(missed.phones, source_name="the earlier run") if missed.phones else None
        return _Given(numbers, missed.conversation_ids, missed)
    if selection.parent_run is not None and selection.conversations is not None:
        # The lake of the parent exists, so that a worker with another address must not make one.
        async with open_lake(settings.require("lake"), now=None, options=connection.store) as lake:
            organization = settings.require("organization")
            return _Given(ids=await read_list(lake, selection.conversations, organization))
    if selection.conversations is not None:
        found = await asyncio.to_thread(partial(read_ids, **table), selection.conversations)
        return _Given(ids=found.ids, report=found.report)
    if selection.ids is not None:
        return _Given(ids=selection.ids)
    if selection.numbers is not None:
        numbers = read_phone_list(selection.numbers, region=settings.region, source_name="the typed numbers")
    elif selection.phones is not None:
        read = partial(read_phone_list, region=settings.region, **table)
        numbers = await asyncio.to_thread(read, selection.phones)
    else:
        if not selection.budget.is_automatic:
            # A backfill reads what a lake has. An ingestion may be the first run of its lake.
            async with open_lake(settings.require("lake"), now=None, options=connection.store):
                pass
        return _Given()
    return _Given(numbers, report=numbers.report)


def _as_retried(
    selection: Selection, connection: Connection, retried: Reading | None
) -> tuple[Selection, Connection]:
    """Let a rerun read what the run whose failures it exports was to read; if that is unknown, everything.

    Otherwise it would end as complete although old edits of these conversations, for example, were not found.
    """
    settings = connection.settings
    earlier = retried or Reading(Window(), is_full=True)
    window = earlier.window if selection.window.is_open else selection.window
    reading = Reading(window, is_full=earlier.is_full or not settings.rewalk_days)
    why = ""
    if reading == earlier:
        unknown = f", because the lake does not record what run {selection.rerun} read"
        why = unknown if retried is None else f", as run {selection.rerun}"
    logger.info("reads %s%s", reading, why)
    if reading.is_full:
        # After zero days, every conversation is due for a full walk.
        settings = settings.model_copy(update={"rewalk_days": 0.0})
    return replace(selection, window=window), replace(connection, settings=settings)


async def _ask_for_approval(selection: Selection, connection: Connection, given: _Given) -> None:
    """Plan the run, show the plan, and continue only after an operator has approved it."""
    require_deployment()
    if was_asked():
        await wait_for_approval(None)
        return
    settings = connection.settings
    async with open_gateway(settings) as gateway:
        plan = await make_plan(
            settings,
            gateway,
            given.numbers,
            given.ids,
            is_everything=selection.is_everything,
            is_full_walk=settings.rewalk_days == 0,
            store_options=connection.store,
        )
    page = plan_markdown(
        plan,
        reads=selection.name(),
        lake=display_name(settings.require("lake")),
        organization=settings.require("organization"),
    )
    await publish_plan(page)
    logger.info("waits for approval of the plan: press Resume")
    await wait_for_approval(page)


async def export_chunks(
    run: RunContext, settings: Settings, ids: Sequence[str], chosen_size: int | None
) -> None:
    """Export conversations in chunks; the outcomes are in the progress and the journal of the run."""
    run.progress.conversations = len(ids)
    size = choose_chunk_size(len(ids), chosen_size)
    count = -(-len(ids) // size)
    exporting = with_retries(export_conversations_chunk, settings)

    async def export(number: int) -> None:
        chunk = ids[number * size : (number + 1) * size]
        name = f"chunk-{number + 1}-of-{count}"
        result = result_of(await exporting(quote(run), name, quote(chunk), return_state=True))
        if isinstance(result, TaskError):
            run.failures.add_problem(result.error)

    # After an error that would also end every further request, or without budget, no chunk is started.
    jobs = (partial(export, number) for number in range(count))

    def is_going_on(_: object) -> bool:
        return run.failures.fatal is None and not (run.budget is not None and run.budget.is_used_up)

    await run_bounded(settings.chunks_in_flight, takewhile(is_going_on, jobs))


def with_retries(task: Task[..., Any], settings: Settings) -> Task[..., Any]:
    """Return a task with the retries of the settings."""
    delays = exponential_backoff(backoff_factor=settings.task_retry_seconds)
    return task.with_options(
        retries=settings.task_retries, retry_delay_seconds=delays, retry_condition_fn=is_transient
    )


@asynccontextmanager
async def progress_artifact(progress: Progress) -> AsyncIterator[None]:
    """Update a progress artifact while the block runs; errors of the server are only logged."""
    line = ProgressLine()
    artifact: UUID | None = None
    # On a slow server, the first artifact may not exist yet when the next description is due.
    showing = asyncio.Lock()
    logged_at, logged_percent = time.monotonic(), 0.0

    def log(description: str, percent: float) -> None:
        nonlocal logged_at, logged_percent
        silent = time.monotonic() - logged_at
        is_news = percent >= logged_percent + LOGGED_PERCENT and silent >= BRIEF_SECONDS
        if is_news or silent >= SILENT_SECONDS:
            logged_at, logged_percent = time.monotonic(), percent
            logger.info("%.0f %% · %s", percent, description)

    async def show(describe: Callable[[Progress], str], *, is_read: bool = False) -> None:
        nonlocal artifact
        with best_effort("the progress", logging.DEBUG):
            async with showing:
                # A run that found no conversations has read all of them.
                share = 1.0 if is_read and not progress.conversations else progress.share()
                description, percent = describe(progress), round(100 * share, 1)
                log(description, percent)
                if artifact is None:
                    artifact = await acreate_progress_artifact(
                        percent, key=PROGRESS_KEY, description=description
                    )
                else:
                    await aupdate_progress_artifact(artifact, percent, description=description)

    is_read = False
    try:
        async with beside(show(lambda _: "starting")), every(PROGRESS_SECONDS, partial(show, line.describe)):
            yield
        is_read = True
    finally:
        await show(line.describe_end, is_read=is_read)
