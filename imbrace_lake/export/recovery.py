"""What survives a kill: the journal of a chunk, the heartbeat of a run, and the recovery of dead runs.

A run writes the outcome of each conversation into its journal, many at a time, and renews the header of
the journal as long as it lives. A later run closes the journals whose headers are no longer renewed: it
moves them into the ledgers. If a dead run did the same job, the later run continues its work.

The format of the journal is in lake/ledger.py, because every reader of a ledger also reads the journals.
"""

from __future__ import annotations

import asyncio
import os
import platform
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import AwareDatetime, Field, TypeAdapter

from imbrace_lake.concurrency import every
from imbrace_lake.errors import ImbraceLakeError, InputError, StoreError
from imbrace_lake.export.accounts import Accounts, note_unreached
from imbrace_lake.lake.conversation_states import ConversationStates
from imbrace_lake.lake.lake import Lake
from imbrace_lake.lake.ledger import (
    HEADER,
    JOURNAL,
    Journal,
    last_of_each,
    ledger_of,
    list_journals,
    list_runs,
    read_found,
    read_ledger,
    read_objects,
    read_run,
)
from imbrace_lake.lake.ledger_schema import (
    PROVEN,
    ConversationEntry,
    RunTotals,
    empty_ledger,
    entry_line,
)
from imbrace_lake.policy import Reading
from imbrace_lake.printable import plural, printable
from imbrace_lake.store.factory import ObjectMeta

# Outcomes are written this often, after this many walks, or after this share of the chunk: unchanged
# conversations cost little to repeat, and a write costs as much as ten of them.
WRITE_SECONDS = 1.0
WRITE_WALKED = 20
WRITE_SHARE = 10
# Objects with fewer lines are written again together with the next lines.
MAX_LINES = 40
RENEW_SECONDS = 15.0
DEAD_AFTER = timedelta(seconds=60)
# The outcomes of a run that died longer ago are out of date.
RESUME_WITHIN = timedelta(hours=1)
MAX_CLOSED_LETTERS = 100
# The clocks of two workers differ by less.
CLOCK_SKEW = timedelta(hours=1)
OUTCOME_COLUMNS = ["conversation_id", "status", "is_dead_letter", "finished_at"]


@dataclass(slots=True)
class RunHeader:
    """The header of a running run's journal."""

    run_id: str
    organization_id: str
    started_at: AwareDatetime
    alive_at: AwareDatetime
    # How far the clock of the store was ahead of the run's; all other times are by the run's.
    clock_offset: timedelta = timedelta(0)
    job: str = ""
    # Where the process can be seen: `visible_processes`.
    host: str = ""
    pid: Annotated[int, Field(ge=0, lt=2**31)] = 0
    # Cancelled by a person and closed; the journal stays, so that a run of the same job can continue.
    is_cancelled: bool = False
    totals: RunTotals = field(default_factory=RunTotals)
    parent_run_id: str | None = None
    # Of the run, for a rerun; earlier versions do not write it.
    reading: Reading | None = None

    @property
    def seen_at(self) -> datetime:
        """When the run last gave a sign of life, by the clock of the store."""
        return self.alive_at + self.clock_offset


_HEADERS = TypeAdapter(RunHeader)


def work_fingerprint(conversation_ids: Iterable[str], *what: object) -> str:
    """Return a fingerprint that is equal for runs with the same work."""
    digest = sha256(repr(what).encode())
    for conversation_id in sorted(conversation_ids):
        digest.update(conversation_id.encode() + b"\0")
    return digest.hexdigest()


class ChunkJournal:
    """Writes the outcomes of a chunk to the journal, many at a time.

    Args:
        journal: The run's journal.
        accounts: The run's accounts; an entry counts as recorded once it is in the journal.
        name: The name of the chunk.
        conversation_ids: The conversations of the chunk.
        resumed: Entries of these conversations from a killed run of the same job.

    Attributes:
        done: The entry of each finished conversation, by its id.
        failed: The errors of the last try, if there is another one.
    """

    def __init__(
        self,
        journal: Journal,
        accounts: Accounts,
        name: str,
        conversation_ids: Sequence[str],
        resumed: Iterable[ConversationEntry] = (),
    ) -> None:
        self.done: dict[str, ConversationEntry] = {}
        self.failed: dict[str, ImbraceLakeError] = {}
        self._conversation_ids = conversation_ids
        self._lines: list[bytes] = []  # of the entries from `_first` on
        self._journal = journal
        self._accounts = accounts
        self._name = name
        self._written = 0
        self._walked = 0  # of the entries that are not written yet
        self._most_unwritten = max(WRITE_WALKED, len(conversation_ids) // WRITE_SHARE)
        self._first = 0  # of the entries in the current object
        self._written_at = time.monotonic()
        self._writing = asyncio.Lock()
        for entry in resumed:
            self._append(_taken_over(entry, journal.run_id))

    def remaining(self) -> list[str]:
        """Return the conversations without an outcome in this run and in the run that it continues."""
        return [one for one in self._conversation_ids if one not in self.done]

    async def add(self, entry: ConversationEntry) -> None:
        """Add an entry, and write if there are enough entries, or if the last write is long ago.

        Raises:
            TypeError: The entry cannot be encoded; it is not added, and the other entries are unaffected.
            StoreError: The journal cannot be written; the entry is added, and the next write includes it.
        """
        self._append(entry)
        self._walked += entry.status != "unchanged" or entry.requests > 1
        is_late = time.monotonic() - self._written_at >= WRITE_SECONDS
        is_much = self._walked >= WRITE_WALKED or len(self.done) - self._written >= self._most_unwritten
        # Back-pressure: otherwise a kill loses ever more on a slow disk.
        if is_much or (is_late and not self._writing.locked()):
            await self.write()

    def _append(self, entry: ConversationEntry) -> None:
        self._lines.append(entry_line(entry))
        self.done[entry.conversation_id] = entry

    async def write(self) -> None:
        """Write the entries that were added since the last write."""
        async with self._writing:
            if len(self.done) == self._written:
                return
            self._written_at = time.monotonic()
            count, walked = len(self.done), self._walked
            lines = self._lines[:]
            await self._journal.note_lines(f"{self._name}-{self._first}", lines)
            # Only now: entries that could not be written are part of the next write.
            self._accounts.record(islice(self.done.values(), self._written, count))
            self._written = count
            self._walked -= walked
            if len(lines) >= MAX_LINES:
                self._first = count
                del self._lines[: len(lines)]


def _taken_over(entry: ConversationEntry, run_id: str) -> ConversationEntry:
    """Return an entry as that of this run; what another run did is counted in that run's own entry."""
    if entry.run_id == run_id:
        return entry
    return replace(entry, run_id=run_id, new_messages=0, edited_messages=0, deleted_messages=0, requests=0)


class Heartbeat:
    """Renews the header of one run."""

    def __init__(
        self,
        lake: Lake,
        header: RunHeader,
        clock: Callable[[], datetime],
        totals: Callable[[], RunTotals] = RunTotals,
    ) -> None:
        self._lake = lake
        self._header = header
        self._clock = clock
        self._totals = totals
        self._lock = asyncio.Lock()
        self._has_stopped = False

    async def send(self, job: str | None = None) -> None:
        """Renew the header."""
        async with self._lock:
            if self._has_stopped:
                return
            self._header.job = job or self._header.job
            self._header.alive_at = self._clock()
            self._header.clock_offset = self._lake.store.clock_offset
            self._header.totals = self._totals()
            key = f"{JOURNAL}{self._header.run_id}/{HEADER}"
            await self._lake.store.overwrite(key, _HEADERS.dump_json(self._header))

    async def stop(self, *, is_cancelled: bool = False) -> None:
        """Stop before the journal is closed, because a later header would outlive it.

        Args:
            is_cancelled: The journal stays, for another run of the same job to continue from.
        """
        if is_cancelled:
            self._header.is_cancelled = True
            await self.send()
        async with self._lock:
            self._has_stopped = True


@asynccontextmanager
async def heartbeat(
    lake: Lake,
    run_id: str,
    organization_id: str,
    clock: Callable[[], datetime],
    started_at: datetime | None = None,
    totals: Callable[[], RunTotals] = RunTotals,
    *,
    parent_run_id: str | None = None,
    reading: Reading | None = None,
) -> AsyncIterator[Heartbeat]:
    """Send a run's heartbeat while the block runs.

    Args:
        lake: The lake.
        run_id, organization_id, parent_run_id, reading: Those of the run.
        clock: Returns the time.
        started_at: The time in the keys of the run's ledger objects; now by default. A run that closes the
            journal of this one uses the same keys.
        totals: Returns the totals so far.
    """
    now = clock()
    header = RunHeader(
        run_id,
        organization_id,
        started_at or now,
        now,
        host=visible_processes(),
        pid=os.getpid(),
        parent_run_id=parent_run_id,
        reading=reading,
    )
    running = Heartbeat(lake, header, clock, totals)

    async def send() -> None:
        # A missed heartbeat is harmless; a broken store fails the run anyway.
        with suppress(StoreError):
            await running.send()

    async with every(RENEW_SECONDS, send):
        yield running


@dataclass(frozen=True, slots=True)
class ClosedRun:
    """A killed run whose journal was closed: its row in `runs`, its totals and its first dead letters."""

    row: Mapping[str, Any]
    totals: RunTotals
    dead_letters: Sequence[ConversationEntry] = ()
    dead_letter_count: int = 0


@dataclass(slots=True)
class Recovery:
    """The content of the journals of earlier runs.

    Attributes:
        done: Conversations that runs of the same job had proven, or found deleted upstream.
        own_recorded: Those in the journal of an earlier attempt of this run.
        own_found: Conversations that an earlier attempt of this run found.
        closed: Killed runs whose journals were closed.
    """

    done: ConversationStates
    own_recorded: set[str] = field(default_factory=set)
    own_found: list[str] = field(default_factory=list)
    closed: list[ClosedRun] = field(default_factory=list)


async def recover_dead_runs(lake: Lake, run_id: str, job: str, now: datetime) -> Recovery:
    """Close the journals of dead runs, and collect the outcomes of those with the same job.

    An earlier attempt of this run counts as a dead run, but its journal stays open.
    """
    store_now = now + lake.store.clock_offset
    done = [empty_ledger("conversations")]
    recovery = Recovery(ConversationStates.empty())
    for name, objects in (await list_journals(lake)).items():
        header = await read_header(lake, name, objects)
        if header is None:
            continue
        # A dead run writes no more to its journal, nor does one that was cancelled and has ended.
        is_own, is_dead = name == run_id, _is_dead(header, store_now)
        if not (is_own or is_dead or header.is_cancelled):
            continue
        has_ended = await _has_ended(lake, header)
        if not (is_own or is_dead or has_ended):
            continue
        journal = Journal(lake, name, header.started_at)
        is_same_job = header.job == job and store_now - header.seen_at < RESUME_WITHIN
        # A run that was killed after it wrote its row is complete: the same job now reads everything again.
        if is_own or (is_same_job and (header.is_cancelled or not has_ended)):
            done.append(await _read_outcomes(lake, objects, reusable_at=now))
        if is_own:
            recovery.own_recorded = set(done[-1].column("conversation_id").to_pylist())
            recovery.own_found = await read_found(lake, name) or []
        elif has_ended:
            await journal.drop()
        elif closed := await _close(lake, journal, header, objects):
            recovery.closed.append(closed)
    recovery.done = ConversationStates(
        last_of_each(pa.concat_tables(done), ["conversation_id"], "finished_at")
    )
    return recovery


async def recall(lake: Lake, run_id: str, now: datetime) -> tuple[set[str], list[str]]:
    """Return what an earlier attempt of a run recorded and found, without closing other journals."""
    objects = (await list_journals(lake)).get(run_id, [])
    rows = await _read_outcomes(lake, objects, reusable_at=now)
    return set(rows.column("conversation_id").to_pylist()), await read_found(lake, run_id) or []


async def _read_outcomes(
    lake: Lake, objects: Sequence[ObjectMeta], *, reusable_at: datetime | None = None
) -> pa.Table:
    """Read the outcomes in a journal: all, or those that another run may reuse at a time."""
    keys = [meta.key for meta in objects if ledger_of(meta.key) == "conversations"]
    rows = pa.concat_tables([empty_ledger("conversations"), *await read_objects(lake, keys)])
    if reusable_at is None:
        return rows
    since = pa.scalar(reusable_at - RESUME_WITHIN, rows.schema.field("finished_at").type)
    is_done = pc.field("status").isin([*PROVEN, "gone"]) & ~pc.field("is_dead_letter")
    return rows.filter(is_done & (pc.field("finished_at") > since))


def check_organization(run_id: str, organization_id: str, found: Iterable[str | None]) -> None:
    """Check that a run that is to be retried is of the organization of the credentials.

    Args:
        run_id: The run.
        organization_id: That of the credentials.
        found: That of the run, from its rows or its journal; a damaged header has none.

    Raises:
        InputError: The run is of another organization, whose conversations this token cannot read.
    """
    others = {one for one in found if one} - {organization_id}
    if others:
        raise InputError(
            f"run {run_id} is of the organization {', '.join(map(printable, sorted(others)))}, and these"
            f" credentials are of {printable(organization_id)}: choose the credentials of that organization"
        )


async def close_if_dead(lake: Lake, run_id: str, organization_id: str, now: datetime) -> ClosedRun | None:
    """Close the journal of one run if it was killed; None if it has none.

    Raises:
        InputError: The run is under way, or of another organization.
    """
    objects = (await list_journals(lake)).get(run_id, [])
    header = await read_header(lake, run_id, objects) if objects else None
    if header is None or await _has_ended(lake, header):
        return None
    # A retry that is rejected closes nothing.
    check_organization(run_id, organization_id, [header.organization_id])
    if not _is_dead(header, now + lake.store.clock_offset):
        raise InputError(f"run {run_id} is still under way: wait until it has ended, or cancel it")
    return await _close(lake, Journal(lake, run_id, header.started_at), header, objects)


async def read_header(lake: Lake, run_id: str, objects: Sequence[ObjectMeta] = ()) -> RunHeader | None:
    """Read the header of a run's journal.

    Args:
        lake: The lake.
        run_id: The run.
        objects: The journal as it was listed. The time of the latest object replaces a header that is
            missing, damaged or unreadable.

    Returns:
        The header; None if the journal has just been closed, or without `objects` if the header is missing,
        damaged or unreadable.

    Raises:
        StoreError: The store does not answer now (`is_transient`).
    """
    key = f"{JOURNAL}{run_id}/{HEADER}"
    try:
        return _HEADERS.validate_json(await lake.store.get(key))
    except (FileNotFoundError, ValueError, StoreError) as exc:
        if isinstance(exc, StoreError) and exc.is_transient:
            raise
        is_closed = isinstance(exc, FileNotFoundError) and key in [meta.key for meta in objects]
    if is_closed or not objects:
        return None
    latest = max(meta.modified_at for meta in objects)
    return RunHeader(run_id, "", latest, latest)


async def read_shards(lake: Lake, run_id: str, started_at: datetime, ended_at: datetime) -> pa.Table:
    """Read the outcomes that the shards of a run have recorded.

    Args:
        lake: Where the ledgers are.
        run_id: The run.
        started_at, ended_at: The run's; its shards began between them.

    Returns:
        The latest row of each conversation, with the columns `OUTCOME_COLUMNS`.
    """
    shards = set()
    for name, objects in (await list_journals(lake)).items():
        header = await read_header(lake, name, objects)
        if header is not None and header.parent_run_id == run_id:
            shards.add(name)
    keys = await list_runs(lake, started_at - CLOCK_SKEW, ended_at + CLOCK_SKEW)
    for rows in await read_objects(lake, keys, ["run_id", "parent_run_id"]):
        own = rows.filter(pc.equal(rows.column("parent_run_id"), run_id))
        shards.update(own.column("run_id").to_pylist())
    rows = await read_ledger(lake, "conversations", columns=OUTCOME_COLUMNS, run_ids=shards)
    return last_of_each(rows, ["conversation_id"], "finished_at")


def _is_dead(header: RunHeader, store_now: datetime) -> bool:
    """Whether the process of a run has ended, or its heartbeat has stopped, by the clock of the store."""
    if header.host == visible_processes() and header.pid and not _is_running(header.pid):
        return True
    return store_now - header.seen_at > DEAD_AFTER


def visible_processes() -> str:
    """Return what identifies the processes that this one can see: those of a container, or of a machine.

    Machines and containers can share a name; see https://man7.org/linux/man-pages/man7/pid_namespaces.7.html.
    """
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    return platform.node()


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


async def _has_ended(lake: Lake, header: RunHeader) -> bool:
    """Whether the attempt that wrote a header has a row in `runs`; an earlier attempt may also have one."""
    rows = await read_run(lake, "runs", header.run_id, ["finished_at"])
    return any(
        ended is None or ended >= header.started_at for ended in rows.column("finished_at").to_pylist()
    )


async def _close(
    lake: Lake, journal: Journal, header: RunHeader, objects: list[ObjectMeta]
) -> ClosedRun | None:
    """Move the journal of a dead run into the ledgers, and add its row to `runs`.

    All times are that of its last sign of life, so two runs that close the same journal write the same
    objects.

    Returns:
        The run; None if another run closed the journal meanwhile.
    """
    # A cancelled run may have failed to write its own row.
    reason = "the run was cancelled" if header.is_cancelled else "the run was killed"
    found = await read_found(lake, journal.run_id)
    outcomes = await _read_outcomes(lake, objects)
    ended_at = max([header.alive_at, *outcomes.column("finished_at").drop_null().to_pylist()])
    recorded = set(outcomes.column("conversation_id").to_pylist())
    by_shards: dict[str, str] = {}
    if header.parent_run_id is None and not recorded.issuperset(found or ()):
        rows = await read_shards(lake, journal.run_id, header.started_at, ended_at)
        columns = (rows.column(name).to_pylist() for name in ("conversation_id", "status", "finished_at"))
        # Shards may work on, and two runs that close this journal are to write the same.
        by_shards = {
            one: status
            for one, status, at in zip(*columns, strict=True)
            if at <= ended_at and one not in recorded
        }
        recorded.update(by_shards)
    reasons = {one: reason for one in found or () if one not in recorded}
    unreached = await note_unreached(journal, header.organization_id, reasons, ended_at)
    published = await journal.publish()
    totals = header.totals
    totals.phones = dict(published.statuses["phones"])
    totals.conversations = dict(published.statuses["conversations"] + Counter(by_shards.values()))
    totals.found = None if found is None else len({*found, *recorded})
    # The last outcomes came after the last heartbeat; an earlier attempt may have left versions of some.
    latest = last_of_each(outcomes, ["conversation_id"], "finished_at")
    new, total, requests = (
        pc.sum(latest.column(name)).as_py() or 0 for name in ("new_messages", "distinct_messages", "requests")
    )
    totals.messages_new = max(totals.messages_new, new)
    totals.messages_total = max(totals.messages_total, total)
    totals.requests = max(totals.requests, requests)
    missed = plural(len(unreached), "conversation was", "conversations were")
    count = f"; {missed} not reached" if unreached else ""
    row = {
        "run_id": header.run_id,
        "organization_id": header.organization_id,
        "status": "cancelled" if header.is_cancelled else "failed",
        "reason": f"{reason}; what it had published is in the lake{count}",
        "parameters": header.reading and header.reading.recorded(),
        "started_at": header.started_at,
        "finished_at": ended_at,
        "parent_run_id": header.parent_run_id,
    }
    if await _has_ended(lake, header):
        # Another run closed the journal meanwhile, and what was read here may lack objects that it deleted.
        await journal.drop()
        return None
    await journal.finish(row, totals, published)
    await journal.drop()
    return ClosedRun(row, totals, unreached[:MAX_CLOSED_LETTERS], len(unreached))
