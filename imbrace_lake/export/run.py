"""One run without an orchestrator: open it, share its context, close it, summarise it."""

from __future__ import annotations

import asyncio
import logging
import math
import platform
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from typing import Any, Literal

import pyarrow as pa

from imbrace_lake.errors import (
    ConversationNotFound,
    NotReached,
    StoreUnavailable,
    as_own_error,
    recorded_fatal,
)
from imbrace_lake.export.accounts import Accounts, note_unreached
from imbrace_lake.export.drift import DriftMode, SchemaDrift, Shapes
from imbrace_lake.export.failures import Failures
from imbrace_lake.export.humanize import span
from imbrace_lake.export.prior import PriorStates, read_prior_states
from imbrace_lake.export.progress import Progress
from imbrace_lake.export.recovery import (
    ChunkJournal,
    ClosedRun,
    Heartbeat,
    heartbeat,
    recall,
    recover_dead_runs,
)
from imbrace_lake.export.visits import RunBudget, VisitReport
from imbrace_lake.gateway.client import GatewayClient
from imbrace_lake.gateway.message_list import DEFAULT_BOUNDS, Bounds
from imbrace_lake.gateway.models import Page
from imbrace_lake.lake.checkpoint import write_checkpoint
from imbrace_lake.lake.conversation_states import ConversationStates
from imbrace_lake.lake.lake import MARKER, Lake, open_lake
from imbrace_lake.lake.ledger import Journal
from imbrace_lake.lake.ledger_schema import OUTCOMES, RunTotals
from imbrace_lake.lake.memory import MemoryBudget, Reservation
from imbrace_lake.lake.schema import SCHEMA_VERSION
from imbrace_lake.policy import Reading, ReadPolicy, Window
from imbrace_lake.printable import plural, printable
from imbrace_lake.revisit import SKEW
from imbrace_lake.settings import Settings
from imbrace_lake.store.factory import StoreOptions
from imbrace_lake.store.lease import exclusive_lease

logger = logging.getLogger(__name__)

# A few typing errors in a long list are not worth an alarm every hour.
TOLERATED_UNREADABLE = 0.05
MAX_REASONS = 20
MAX_NAMED_POSITIONS = 10

# Where a run writes a list of conversations for each of its shards (shards.py).
SHARDS = "shards/"

RunStatus = Literal["complete", "partial", "failed", "cancelled"]


def utc_now() -> datetime:
    """Return the time in UTC; the default clock of a run."""
    return datetime.now(UTC)


@dataclass(slots=True)
class RunContext:
    """The context that all conversations of one run in one process share.

    Attributes:
        run_id: The id of the run in the lake.
        organization_id: The organization of the conversations.
        lake, gateway: Open, of this event loop.
        journal: Where the run records its results.
        slots: Bounds the conversations that are in memory at a time.
        prior: What the lake had when the run began; see `load_prior_state`.
        heartbeat: Heartbeat that keeps other runs from recovering this journal.
        shapes: Which shapes of messages are known, and which the run saw first.
        drift: Whether a new shape is recorded, also logged as a warning, or fails the conversation.
        window: The span of time whose messages are read; open on both sides for all messages.
        policy: Which stored messages the run reads again.
        memory_budget: The memory budget of its conversations.
        large_turn: Lets conversations whose rows exceed the memory budget be published one at a time.
        page_size, pages_ahead, bounds, accept_repeats: As in `walk`.
        progress: The counters of the run.
        clock: Returns the time.
        started_at: When the run began.
        failures: The conversations and tasks that failed.
        earlier_found: The conversations that an earlier attempt of this run found.
        resumed: Outcomes from a killed run of the same job, which this run reuses.
        open_chunks: The journal of each chunk under way, by name, so that another try can continue.
        accounts: The conversations that the run found, and those with an outcome.
        recovered: Killed runs whose journals this run has closed.
        parent_run_id: Of a shard: the run that it is a part of.
        budget: The budget of a run that chooses what to visit; None for a run that exports all it found.
        visits: What an ingestion reached, and the ages that it left.
        began: When the run began, by `time.monotonic()`.
        until: When its time is over, by the same clock, if an operator has set it.
        is_lake_failing: The lake's storage failed at the last conversation; None if it never did.
    """

    run_id: str
    organization_id: str
    lake: Lake
    gateway: GatewayClient
    journal: Journal
    slots: asyncio.Semaphore
    prior: PriorStates = field(default_factory=PriorStates)
    heartbeat: Heartbeat | None = None
    shapes: Shapes = field(default_factory=Shapes)
    drift: DriftMode = "evolve"
    window: Window = field(default_factory=Window)
    policy: ReadPolicy = field(default_factory=ReadPolicy)
    memory_budget: MemoryBudget = field(default_factory=MemoryBudget)
    large_turn: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(1))
    page_size: int = 100
    pages_ahead: int = 8
    bounds: Bounds = DEFAULT_BOUNDS
    accept_repeats: bool = False
    progress: Progress = field(default_factory=Progress)
    clock: Callable[[], datetime] = utc_now
    started_at: datetime = field(default_factory=utc_now)
    failures: Failures = field(default_factory=Failures)
    earlier_found: Sequence[str] = ()
    resumed: ConversationStates = field(default_factory=ConversationStates.empty)
    open_chunks: dict[str, ChunkJournal] = field(default_factory=dict)
    accounts: Accounts = field(default_factory=Accounts)
    recovered: list[ClosedRun] = field(default_factory=list)
    parent_run_id: str | None = None
    budget: RunBudget | None = None
    visits: VisitReport | None = None
    began: float = field(default_factory=time.monotonic)
    until: float = math.inf
    is_lake_failing: bool | None = None

    @property
    def damaged_objects(self) -> list[str]:
        """Keys of damaged ledger objects that the run skipped."""
        return sorted(self.lake.damaged)

    def new_reservation(self) -> Reservation:
        """Return a new conversation's share of the memory budget, for a `with` statement."""
        return Reservation(self.memory_budget, self.lake.store.temporary_directory)

    @asynccontextmanager
    async def reachable_lake(self) -> AsyncIterator[None]:
        """Export a conversation; once the lake's storage has failed, only if it answers again.

        Otherwise, conversations would be read from the gateway for nothing.

        Raises:
            StoreUnavailable: The storage fails.
        """
        try:
            if self.is_lake_failing:
                await self.lake.store.head(MARKER)
                self.is_lake_failing = False
            yield
        except StoreUnavailable as exc:
            if self.is_lake_failing is None:
                logger.warning("%s; conversations wait for another try", exc)
            self.is_lake_failing = True
            raise

    async def get_page(self, conversation_id: str, skip: int, limit: int) -> Page:
        """Fetch a page of a conversation, and count it."""
        self._count_page(conversation_id)
        page = await self.gateway.get_page(conversation_id, skip=skip, limit=limit)
        self.note_answer(conversation_id)
        return page

    async def get_head(self, conversation_id: str, etag: str | None) -> Page | None:
        """Fetch the newest page of a conversation, None if it has this `etag`, and count it."""
        self._count_page(conversation_id)
        page = await self.gateway.get_head(conversation_id, limit=self.page_size, etag=etag)
        self.note_answer(conversation_id)
        return page

    @asynccontextmanager
    async def turn(self, conversation_id: str) -> AsyncIterator[bool]:
        """Wait for a slot, and keep it while the block runs; return whether the budget allows a visit.

        A conversation that was requested before is tried again, whatever is left of the requests. When the
        time is over, the block of a conversation is cancelled if none of its pages has arrived.
        """
        budget = self.budget
        async with self.slots:
            if budget is None:
                yield True
                return
            is_begun = bool(self.accounts.pages_requested[conversation_id]) and not budget.is_late
            if not is_begun:
                await budget.wait_for_room()
            if not (is_begun or budget.begin(conversation_id)):
                yield False
                return
            async with budget.visit(conversation_id):
                yield True

    def note_answer(self, conversation_id: str) -> None:
        """Let a visit end with an outcome, because it has an answer."""
        if self.budget is not None:
            self.budget.note_answer(conversation_id)

    def _count_page(self, conversation_id: str) -> None:
        self.accounts.pages_requested[conversation_id] += 1
        if self.budget is not None:
            self.budget.count_page(conversation_id)

    def observe_shapes(self, conversation_id: str, page: Page) -> None:
        """Record new shapes of messages.

        Raises:
            SchemaDrift: The page has a new shape, and the run rejects those (`drift`).
        """
        new = self.shapes.observe(conversation_id, page.items, is_kept=self.drift != "freeze")
        if not new or self.drift == "evolve":
            return
        shapes = ", ".join(new[:5]) + (f" and {len(new) - 5} more" if len(new) > 5 else "")
        if self.drift == "freeze":
            raise SchemaDrift(
                f"conversation {printable(conversation_id)} has messages of a new shape ({shapes}): look at"
                " them, then export with drift=evolve"
            )
        logger.warning("schema drift conversation=%s new=%s", printable(conversation_id), shapes)

    async def load_prior_state(self, job: str) -> None:
        """Read the prior states of the organization's conversations; once per run.

        Args:
            job: From `work_fingerprint`. The run reuses the outcomes of a killed run of the same job.
        """
        self.progress.stage = "exporting"
        recovery = await recover_dead_runs(self.lake, self.run_id, job, self.clock())
        self.resumed, self.recovered = recovery.done, recovery.closed
        # An earlier attempt of this run found and recorded these for this run.
        self.accounts.recorded |= recovery.own_recorded
        self.earlier_found = recovery.own_found
        if self.heartbeat is not None:
            await self.heartbeat.send(job)
        self.prior, self.shapes = await read_prior_states(self.lake, self.organization_id, self.clock())
        # Arrow would keep the memory.
        pa.default_memory_pool().release_unused()

    async def record_found(self, conversation_ids: Iterable[str]) -> list[str]:
        """Record which conversations the run is to export, including those of an earlier attempt.

        Returns:
            Their ids as the lake spells them, each once.
        """
        ids = self.prior.as_stored([*conversation_ids, *self.earlier_found])
        if len(ids) > len(self.earlier_found):
            await self.journal.note_found(ids)
        self.accounts.found = ids
        return ids

    async def recall(self) -> None:
        """Read the results of an earlier attempt, if `load_prior_state` was not reached."""
        recorded, self.earlier_found = await recall(self.lake, self.run_id, self.clock())
        self.accounts.recorded |= recorded

    def release(self) -> None:
        """Free the prior state before closing, which needs the memory."""
        self.prior, self.resumed = PriorStates(), ConversationStates.empty()
        pa.default_memory_pool().release_unused()


@asynccontextmanager
async def open_run(
    settings: Settings,
    gateway: GatewayClient,
    run_id: str,
    *,
    window: Window | None = None,
    policy: ReadPolicy | None = None,
    drift: DriftMode = "evolve",
    accept_repeats: bool | None = None,
    parent_run_id: str | None = None,
    progress: Progress | None = None,
    store_options: StoreOptions | None = None,
) -> AsyncIterator[RunContext]:
    """Open the lake for one run that reads from `gateway`; creates the lake if there is none.

    Args:
        settings: The lake, and how the run reads and writes.
        gateway: Open, of this event loop.
        run_id: The id of the run in the lake.
        window: The span of time whose messages are read; all messages by default.
        policy, accept_repeats: Replace those of the settings.
        drift: What the run does about a new shape.
        parent_run_id: Of a shard: the run that it is a part of.
        progress: The counters of the run; new ones by default.
        store_options: How to reach the lake.

    Raises:
        SettingsError: The lake is not set.
        StoreError: The lake cannot be written.
    """
    started_at = utc_now()
    window, policy = window or Window(), policy or settings.policy()
    organization = gateway.options.organization
    progress = progress or Progress()
    progress.limiter, progress.traffic = gateway.limiter, gateway.traffic
    async with open_lake(settings.require("lake"), now=started_at, options=store_options) as lake:
        probe = await lake.store.probe()
        if probe.note:
            logger.warning("%s", probe.note)
        async with (
            nullcontext() if probe.is_conditional else exclusive_lease(lake.store, run_id, utc_now),
            heartbeat(
                lake,
                run_id,
                organization,
                utc_now,
                started_at,
                partial(totals_of, progress),
                parent_run_id=parent_run_id,
                reading=Reading(window, is_full=not policy.rewalk_after),
            ) as run_heartbeat,
        ):
            progress.memory = settings.new_memory_budget()
            yield RunContext(
                run_id=run_id,
                organization_id=organization,
                lake=lake,
                gateway=gateway,
                journal=Journal(lake, run_id, started_at),
                # Twice the requests under way, so that the gateway is not idle while rows are encoded.
                slots=asyncio.Semaphore(2 * settings.max_in_flight),
                heartbeat=run_heartbeat,
                window=window,
                drift=drift,
                policy=policy,
                memory_budget=progress.memory,
                page_size=settings.page_size,
                pages_ahead=settings.pages_ahead,
                bounds=settings.bounds(),
                accept_repeats=settings.accept_repeats if accept_repeats is None else accept_repeats,
                progress=progress,
                parent_run_id=parent_run_id,
                started_at=started_at,
            )


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A conversation that could not be exported, why, and what a person can do about it."""

    conversation_id: str
    status: str
    reason: str
    advice: str


@dataclass(slots=True)
class RunSummary:
    """The summary of a run, the same in the terminal, as JSON, in the orchestrator and in the ledger.

    Attributes:
        status: ``complete``, ``partial`` (the dead letters are missing), ``failed`` or ``cancelled``.
        reason: Why the run is not complete, or a remark on a complete one, in one sentence.
        unreadable: Positions of the first entries of the input that are not phone numbers.
        number_errors: The number of phone numbers that could not be resolved, by reason.
        dead_letters: The first 500.
        causes: The number of all dead letters by the advice on them, the most frequent first.
        new_shapes: New shapes of messages (drift.py).
        damaged: Ledger objects that the run skipped; `verify` reports what to do about them.
        input: How the list was read (phones/report.py); None without a list.
        remedy: What to do about the error that ended the run or its shards, if one did.
        token_warning: A sentence if the token has expired or will expire soon.
        parent_run_id: Of a shard: the run that it is a part of.
        visits: Of an ingestion: what it reached, and the ages that it left.
        budget: The maximum requests of a run with a budget.
        budget_problem: Why a run visited nothing within its budget, and what to do.
        is_new_lake: There was no lake, so the run made one.
        is_window: Only a span of time was read, so the run proves nothing about other messages.
        is_backfill: Complete conversations or a span of time were read, so that the same run, started again,
            reads again what this one has read.
    """

    run_id: str
    organization: str
    lake: str
    started_at: datetime
    status: RunStatus = "failed"
    reason: str | None = None
    finished_at: datetime | None = None
    totals: RunTotals = field(default_factory=RunTotals)
    dead_letters: list[DeadLetter] = field(default_factory=list)
    dead_letter_count: int = 0
    causes: dict[str, int] = field(default_factory=dict)
    unreadable: list[int] = field(default_factory=list)
    number_errors: dict[str, int] = field(default_factory=dict)
    new_shapes: list[str] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)
    input: dict[str, Any] | None = None
    remedy: str | None = None
    token_warning: str | None = None
    flow_run_url: str | None = None
    parent_run_id: str | None = None
    visits: VisitReport | None = None
    budget: int | None = None
    budget_problem: str | None = None
    is_new_lake: bool = False
    is_window: bool = False
    is_backfill: bool = False

    @property
    def is_cut_short(self) -> bool:
        """Whether the run failed before it had found all its conversations, so that a rerun misses some."""
        return self.status == "failed" and self.totals.found is None

    @property
    def is_worth_rerun(self) -> bool:
        """Whether a rerun may export some of what is missing: not what the gateway does not have."""
        return bool(self.causes.keys() - {ConversationNotFound.advice} or self.number_errors)

    @property
    def has_rest(self) -> bool:
        """Whether this run was cancelled, and only a rerun by its id exports the rest and nothing else."""
        is_known = self.status == "cancelled" and self.totals.found is not None
        return is_known and self.is_backfill and self.is_worth_rerun

    @property
    def unreadable_count(self) -> int:
        """The number of entries of the input that are not phone numbers."""
        return self.totals.phones.get("invalid", 0)

    def requests(self) -> str:
        """Return the number of requests, with the budget of the run if it has one."""
        sent = self.totals.requests
        if self.budget is None:
            return plural(sent, "request")
        of = f"{sent:,} of {plural(self.budget, 'request')}"
        return f"{of}: visits that have begun are finished" if sent > self.budget else of

    def outcomes(self) -> list[tuple[int, str]]:
        """Return the number of conversations with each outcome, and its name for people."""
        # A conversation without a message in a window has the status of an unchanged one, even if the lake
        # has never had it.
        words = {"complete": "changed", "unchanged": "without news"} if self.is_window else {}
        statuses = self.totals.conversations
        return [(statuses.get(one, 0), words.get(one, one.replace("_", " "))) for one in OUTCOMES]

    def advice(self) -> list[str]:
        """Return the advice on the dead letters, the most frequent first."""
        return [f"{count:,} × {advice}" for advice, count in self.causes.items()]

    def as_json(self) -> dict[str, Any]:
        """Return the summary as plain JSON values; times in ISO 8601."""
        values = asdict(self)
        for name in ("started_at", "finished_at"):
            values[name] = values[name] and values[name].isoformat(timespec="milliseconds")
        return values


async def close_run(
    run: RunContext,
    parameters: dict[str, Any],
    phones: Counter[str],
    *,
    tolerated_share: float = 0.0,
    tolerated_unreadable: float = TOLERATED_UNREADABLE,
    failure: str | None = None,
    is_cancelled: bool = False,
) -> RunSummary:
    """Turn the journal into ledger objects, and return the run's summary.

    Every conversation that was found and has no outcome becomes a dead letter `not_reached`.

    Args:
        run: The run.
        parameters: The run's parameters, without secrets or numbers.
        phones: Input numbers by status.
        tolerated_share: The share of conversations that may fail in a complete run.
        tolerated_unreadable: The share of the input that may be unreadable in a complete run.
        failure: Why the run ended early, if it did.
        is_cancelled: A person cancelled the run; its journal stays, so that the same job can continue.
    """
    run.progress.stage = "closing"
    run.release()
    if run.heartbeat is not None:
        await run.heartbeat.stop(is_cancelled=is_cancelled)
    # Shards have recorded their shapes.
    if run.shapes.new and run.drift != "freeze" and run.progress.shards is None:
        rows = run.shapes.rows(run.run_id, run.organization_id, run.started_at)
        await run.journal.note("shapes", "new", rows)
    accounts, failures = run.accounts, run.failures
    failures.is_cancelled = is_cancelled
    failure = "the run was cancelled" if is_cancelled else failure or await run.lake.problem()
    unreached = await _note_unreached(run, failure)
    published = await run.journal.publish()
    summary = RunSummary(run.run_id, run.organization_id, run.lake.url, run.started_at)
    summary.parent_run_id = run.parent_run_id
    summary.finished_at = run.clock()
    summary.totals = totals = totals_of(run.progress)
    totals.phones = dict(phones)
    statuses = published.statuses["conversations"]
    if run.progress.shards is not None:
        # The rows of this run are those that it wrote here, and perhaps some of an earlier attempt.
        statuses = Counter(run.progress.shards.conversations) + Counter(not_reached=unreached)
    totals.conversations, run.progress.statuses = dict(statuses), statuses
    totals.found = _count_found(run, statuses, failure)
    if totals.found is not None and sum(totals.conversations.values()) != totals.found:
        outcomes = sum(totals.conversations.values())
        failure = (
            f"the accounts do not add up: {totals.found:,} conversations were found and {outcomes:,} have an"
            f" outcome: report this with the run {run.run_id}{f', and {failure}' if failure else ''}"
        )
    totals.seconds = round((summary.finished_at - run.started_at).total_seconds(), 3)
    if run.parent_run_id is not None:
        totals.days = {str(day): count for day, count in run.progress.days.items()}
        # Its parent ends with the same error.
        parameters = {**parameters, **recorded_fatal(failures.fatal)}
    for entry in failures.dead_letters:
        letter = DeadLetter(
            entry.conversation_id, entry.status, entry.reason or "", failures.advice_on(entry)
        )
        summary.dead_letters.append(letter)
    summary.dead_letter_count, summary.causes = failures.dead_letter_count, failures.by_advice()
    summary.unreadable = accounts.unreadable
    summary.number_errors = dict(accounts.number_errors.most_common(MAX_REASONS))
    summary.new_shapes = sorted(run.shapes.new)
    summary.damaged = sorted(run.damaged_objects)
    summary.input = parameters.get("input")
    summary.visits = run.visits
    summary.budget = None if run.budget is None else run.budget.requests
    summary.budget_problem = None if run.budget is None else run.budget.problem
    summary.is_new_lake = run.lake.is_new
    summary.is_window = not run.window.is_open
    summary.is_backfill = summary.is_window or not run.policy.rewalk_after
    summary.remedy = failures.remedy
    summary.status, summary.reason = _status(run, phones, tolerated_share, tolerated_unreadable, failure)
    if is_cancelled:
        summary.status = "cancelled"
    row = {
        "run_id": run.run_id,
        "organization_id": run.organization_id,
        "status": summary.status,
        "reason": summary.reason,
        "parameters": parameters,
        "versions": versions(),
        "started_at": summary.started_at,
        "finished_at": summary.finished_at,
        "parent_run_id": run.parent_run_id,
    }
    await run.journal.finish(row, totals, published)
    if not is_cancelled:
        await _tidy(run)
    run.progress.stage = "done"
    return summary


def _count_found(run: RunContext, statuses: Counter[str], failure: str | None) -> int | None:
    """Return how many conversations the run found, which its outcomes must add up to; None if unknown."""
    if run.budget is not None:
        # A conversation that is not visited stays due, and is not missing.
        return statuses.total()
    if run.accounts.found is None and failure is not None:
        return None
    return len({*(run.accounts.found or ()), *run.accounts.recorded})


async def _tidy(run: RunContext) -> None:
    """Delete the journal and the lists of a run whose row is written; if this fails, another run does it."""
    try:
        if run.progress.shards is not None:
            for meta in await run.lake.store.list(f"{SHARDS}{run.run_id}/"):
                await run.lake.store.delete(meta.key)
        await run.journal.drop()
        await write_checkpoint(run.lake, run.clock())
    except Exception as exc:  # noqa: BLE001 - any error is harmless, because the ledgers are written
        logger.warning("the run is closed, and the next run deletes its journal: %s", as_own_error(exc))


async def _note_unreached(run: RunContext, failure: str | None) -> int:
    """Record conversations without an outcome as dead letters, and return their number."""
    accounts, reason = (
        run.accounts,
        f"not reached: {failure or run.failures.problem or 'the run ended before it was read'}",
    )
    reasons = {one: accounts.reasons.get(one, reason) for one in accounts.unreached()}
    requested = accounts.pages_requested
    entries = await note_unreached(run.journal, run.organization_id, reasons, run.clock(), requested)
    accounts.record(entries)
    run.failures.add_dead_letters(entries)
    return len(entries)


def totals_of(progress: Progress) -> RunTotals:
    """Return the totals of a run and its shards so far."""
    shards, traffic, limiter = progress.shards or RunTotals(), progress.traffic, progress.limiter
    return RunTotals(
        conversations=dict(progress.statuses),
        messages_new=progress.messages_new,
        messages_total=progress.messages_total,
        requests=progress.requests,
        retries=(traffic.retries if traffic else 0) + shards.retries,
        refusals=(limiter.rate_limited if limiter else 0) + shards.refusals,
        received_bytes=(traffic.size_bytes if traffic else 0) + shards.received_bytes,
        written_bytes=progress.written_bytes,
    )


def _status(
    run: RunContext,
    phones: Counter[str],
    tolerated_share: float,
    tolerated_unreadable: float,
    failure: str | None,
) -> tuple[RunStatus, str | None]:
    """Return the status of the run, decided by its worst fault, and a sentence about all its faults."""
    given, unreadable = sum(phones.values()), phones["invalid"]
    dead, done = run.failures.dead_letter_count, sum(run.progress.statuses.values())
    not_reached = run.progress.statuses["not_reached"]
    which = _positions(run.accounts.unreadable, unreadable)
    if failure is not None:
        reached = f"; {plural(not_reached, 'conversation')} not reached" if not_reached else ""
        return "failed", failure + reached
    if given and unreadable == given:
        return "failed", f"nothing in the input could be read as a phone number{which}"
    remarks = [f"{unreadable:,} of {given:,} input entries could not be read{which}"] * bool(unreadable)
    statuses = run.progress.statuses
    # Dead letters that the gateway does not have, although a number names them: `gone` in the counts.
    gone = max(0, dead - not_reached - statuses["failed"] - statuses["incomplete"])
    counts = [
        (dead - not_reached - gone, "conversation"),
        (phones["error"], "phone number"),
        (run.failures.lost_shards, "shard"),
    ]
    failed = " and ".join(plural(count, noun) for count, noun in counts if count)
    missed = plural(not_reached, "conversation was", "conversations were")
    lost = " and ".join(
        [f"{missed} not reached"] * bool(not_reached)
        + [f"{plural(gone, 'conversation is', 'conversations are')} gone"] * bool(gone)
        + [f"{failed} failed"] * bool(failed)
    )
    why = [] if run.failures.shard_problem is None else [run.failures.shard_problem]
    # A run whose time was over during the lookup of its list has not failed.
    if lost and dead == done and (done or run.budget is None):
        return "failed", "; ".join([f"{lost}, and nothing was exported", *why, *remarks])
    is_tolerated = not phones["error"] and not run.failures.lost_shards and dead <= tolerated_share * done
    if lost and is_tolerated:
        remarks.insert(0, f"{plural(dead, 'conversation')} of {done} failed, which the run tolerates")
    elif lost:
        remarks = [f"{lost}; the others are in the lake", *why, *remarks]
    if done and not run.window.is_open:
        sentence = run.window.sentence(run.started_at)
        remarks.append(f"of the others, {sentence}" if dead else sentence)
    remarks += run.accounts.lost_input
    remarks += _wrong_clock(run.gateway.traffic.seconds_ahead)
    if run.budget is not None and run.visits is not None:
        remarks += [*filter(None, [run.budget.problem, run.budget.remark]), run.visits.sentence()]
    has_visited_nothing = run.budget is not None and run.budget.problem is not None
    is_partial = bool(lost and not is_tolerated) or bool(run.accounts.lost_input) or has_visited_nothing
    if is_partial or unreadable > tolerated_unreadable * given:
        return "partial", "; ".join(remarks)
    if not done and run.budget is None:
        remarks.insert(0, run.accounts.if_empty)
    return "complete", "; ".join(remarks) or None


def _wrong_clock(seconds_ahead: float) -> list[str]:
    if abs(seconds_ahead) <= SKEW * 3600:
        return []
    side = "ahead of" if seconds_ahead > 0 else "behind"
    return [f"this machine's clock was {span(abs(seconds_ahead) / 3600)} {side} the gateway's: check it"]


def _positions(first: Sequence[int], count: int) -> str:
    """Return the positions of entries of the input: `` (entries 2, 5 and 3 more)``."""
    if not first:
        return ""
    shown = first[:MAX_NAMED_POSITIONS]
    more = f" and {count - len(shown):,} more" if count > len(shown) else ""
    return f" ({'entry' if count == 1 else 'entries'} {', '.join(map(str, shown))}{more})"


def closed_summary(closed: ClosedRun, lake: str) -> RunSummary:
    """Return the summary of a killed run whose journal another run has closed.

    Args:
        closed: The killed run.
        lake: The address of the lake, without credentials.
    """
    row = closed.row
    advice = NotReached.advice_if_cancelled if row["status"] == "cancelled" else NotReached.advice
    return RunSummary(
        row["run_id"],
        row["organization_id"],
        lake,
        row["started_at"],
        row["status"],
        row["reason"],
        row["finished_at"],
        closed.totals,
        [
            DeadLetter(one.conversation_id, one.status, one.reason or "", advice)
            for one in closed.dead_letters
        ],
        closed.dead_letter_count,
        {advice: closed.dead_letter_count} if closed.dead_letter_count else {},
        parent_run_id=row["parent_run_id"],
    )


def versions() -> dict[str, str]:
    """Return the versions that decide what a run writes."""
    names = ("imbrace-lake", "pyarrow", "httpx", "s3fs")
    return {
        "schema": str(SCHEMA_VERSION),
        "python": platform.python_version(),
        **{name: version(name) for name in names},
    }
