"""Recovery of dead runs: continue their work, and move their journals into the ledgers.

A run writes a header into its journal and renews it as long as it lives. Whoever begins later and
finds a header that is not renewed any more closes that journal; if the dead run was doing the same
job, what it had got done is not asked for again.
"""

from __future__ import annotations

import asyncio
import json
import os
import platform
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from hashlib import sha256
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from imbrace_lake.concurrency import every
from imbrace_lake.errors import StoreError, UsageError
from imbrace_lake.export.accounts import note_unreached, unreached_entries
from imbrace_lake.lake.conversation_states import ConversationStates
from imbrace_lake.lake.lake import Lake
from imbrace_lake.lake.ledger import (
    HEADER,
    JOURNAL,
    Journal,
    last_of_each,
    ledger_of,
    list_journals,
    read_found,
    read_objects,
    read_run,
)
from imbrace_lake.lake.ledger_schema import PROVEN, ConversationEntry, RunTotals, empty_ledger
from imbrace_lake.store.factory import ObjectMeta

RENEW_SECONDS = 15.0
DEAD_AFTER = timedelta(seconds=60)
# What died longer ago says how conversations stood too long ago: the same job means today's by now.
RESUME_WITHIN = timedelta(hours=1)
MOST_CLOSED_LETTERS = 100
_IS_DONE = pc.is_in(pc.field("status"), pa.array([*PROVEN, "gone"])) & ~pc.field("is_dead_letter")


@dataclass(slots=True)
class RunHeader:
    """The header of a running run's journal."""

    run_id: str
    organization_id: str
    started_at: str
    alive_at: str
    job: str = ""
    host: str = ""
    pid: int = 0
    # Ended by a person, and closed; the journal stays so that the same job continues from it.
    is_cancelled: bool = False
    totals: dict[str, Any] = field(default_factory=dict)


def work_fingerprint(conversation_ids: Iterable[str], *what: object) -> str:
    """A fingerprint of the work: equal for two runs with the same work."""
    digest = sha256(repr(what).encode())
    for conversation_id in sorted(conversation_ids):
        digest.update(conversation_id.encode() + b"\0")
    return digest.hexdigest()


class Heartbeat:
    """Renews the header of one run.

    Attributes:
        totals: What the run has done so far.
    """

    def __init__(self, lake: Lake, header: RunHeader, clock: Callable[[], datetime]) -> None:
        self._lake = lake
        self._header = header
        self._clock = clock
        self.totals: Callable[[], RunTotals] = RunTotals
        self._lock = asyncio.Lock()
        self._has_stopped = False

    async def send(self, job: str | None = None) -> None:
        """Renew the header."""
        async with self._lock:
            if self._has_stopped:
                return
            self._header.job = job or self._header.job
            self._header.alive_at = self._clock().isoformat()
            self._header.totals = asdict(self.totals())
            key = f"{JOURNAL}{self._header.run_id}/{HEADER}"
            await self._lake.store.overwrite(key, json.dumps(asdict(self._header)).encode())

    async def stop(self, *, is_cancelled: bool = False) -> None:
        """Write no more: the journal is about to be closed, and a header would outlive it.

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
) -> AsyncIterator[Heartbeat]:
    """Send a run's heartbeat while the block runs.

    Args:
        lake: Where its journal is.
        run_id, organization_id: The run's.
        clock: Tells the time.
        started_at: The start in the names of the ledger objects that the run writes; now by default. Whoever
            closes its journal gives the same objects the same names.
    """
    now = clock()
    started = (started_at or now).isoformat()
    header = RunHeader(
        run_id, organization_id, started, now.isoformat(), host=platform.node(), pid=os.getpid()
    )
    running = Heartbeat(lake, header, clock)

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
    """What the journals of earlier runs say.

    Attributes:
        done: Conversations that runs of the same job had proven, or found deleted upstream.
        own_recorded: Those of them that an earlier attempt of this run has in its journal.
        own_found: Conversations that an earlier attempt of this run found.
        closed: Killed runs whose journals were closed.
    """

    done: ConversationStates
    own_recorded: set[str] = field(default_factory=set)
    own_found: list[str] = field(default_factory=list)
    closed: list[ClosedRun] = field(default_factory=list)


async def recover_dead_runs(lake: Lake, run_id: str, job: str, now: datetime) -> Recovery:
    """Close the journals of dead runs, and find what those with the same job had done.

    An earlier attempt of this very run counts as one of them, but its journal stays open.
    """
    done = [empty_ledger("conversations")]
    recovery = Recovery(ConversationStates.empty())
    for name, objects in (await list_journals(lake)).items():
        header = await _header(lake, name, objects)
        is_own = name == run_id
        if header is None or (not is_own and not await _is_over(lake, header, now)):
            continue
        journal = Journal(lake, name, _instant(header.started_at))
        is_same_job = header.job == job and now - _instant(header.alive_at) < RESUME_WITHIN
        has_ended = await _has_ended(lake, header)
        # A run that was killed after its row was written is complete: the same job now means a new look.
        if is_own or (is_same_job and (header.is_cancelled or not has_ended)):
            rows = [_recently_done(table, now) for table in await _recorded(lake, objects)]
            done += rows
        if is_own:
            recovery.own_recorded = _ids_of(rows)
            recovery.own_found = await read_found(lake, name) or []
        elif has_ended:
            await journal.drop()
        else:
            recovery.closed.append(await _close(lake, journal, header, objects))
    recovery.done = ConversationStates(
        last_of_each(pa.concat_tables(done), ["conversation_id"], "finished_at")
    )
    return recovery


async def recall(lake: Lake, run_id: str, now: datetime) -> tuple[set[str], list[str]]:
    """What an earlier attempt of a run recorded and found, for an attempt that ends before
    `recover_dead_runs`.
    """
    objects = (await list_journals(lake)).get(run_id, [])
    rows = [_recently_done(table, now) for table in await _recorded(lake, objects)]
    return _ids_of(rows), await read_found(lake, run_id) or []


def _recently_done(rows: pa.Table, now: datetime) -> pa.Table:
    """The conversations that need no second look: of an older look nothing is taken over."""
    since = pa.scalar(now - RESUME_WITHIN, rows.schema.field("finished_at").type)
    return rows.filter(_IS_DONE & (pc.field("finished_at") > since))


def _ids_of(tables: Iterable[pa.Table]) -> set[str]:
    return {one for table in tables for one in table.column("conversation_id").to_pylist()}


async def close_if_dead(lake: Lake, run_id: str, now: datetime) -> ClosedRun | None:
    """Close the journal of one run if it was killed; None if it has none.

    Raises:
        UsageError: The run is under way.
    """
    objects = (await list_journals(lake)).get(run_id, [])
    header = await _header(lake, run_id, objects) if objects else None
    if header is None or await _has_ended(lake, header):
        return None
    if not _is_dead(header, now):
        raise UsageError(f"run {run_id} is still under way: wait until it has ended, or cancel it")
    return await _close(lake, Journal(lake, run_id, _instant(header.started_at)), header, objects)


async def read_header(lake: Lake, run_id: str) -> RunHeader | None:
    """What a run under way says of itself; None if it says nothing that can be read now."""
    try:
        return _parse_header(await lake.store.get(f"{JOURNAL}{run_id}/{HEADER}"))
    except (FileNotFoundError, ValueError, StoreError):
        return None


async def _header(lake: Lake, name: str, objects: list[ObjectMeta]) -> RunHeader | None:
    """What a run says of itself; None if its journal has just been closed."""
    key = f"{JOURNAL}{name}/{HEADER}"
    try:
        return _parse_header(await lake.store.get(key))
    except (FileNotFoundError, ValueError, StoreError) as exc:
        if isinstance(exc, StoreError) and exc.is_transient:
            raise
        if isinstance(exc, FileNotFoundError) and key in [meta.key for meta in objects]:
            return None
        # Killed before it wrote one, or that is damaged or cannot be read.
        latest = max(meta.modified_at for meta in objects).isoformat()
        return RunHeader(name, "", latest, latest)


def _parse_header(body: bytes) -> RunHeader:
    """Read what a run says of itself.

    Raises:
        ValueError: The header is damaged.
    """
    try:
        header = RunHeader(**json.loads(body))
        has_zones = all(_instant(text).tzinfo for text in (header.started_at, header.alive_at))
        RunTotals(**header.totals)
        is_process = 0 <= header.pid < 2**31
    except (TypeError, RecursionError) as exc:
        raise ValueError("the header of a journal is damaged") from exc
    texts = (header.run_id, header.organization_id, header.job, header.host)
    if not (has_zones and is_process and all(isinstance(text, str) for text in texts)):
        raise ValueError("the header of a journal is damaged")
    return header


async def _is_over(lake: Lake, header: RunHeader, now: datetime) -> bool:
    """Whether nobody writes to a journal any more; a cancelled run leaves its own when it has closed it."""
    return _is_dead(header, now) or (header.is_cancelled and await _has_ended(lake, header))


def _is_dead(header: RunHeader, now: datetime) -> bool:
    if header.host == platform.node() and header.pid and not _is_running(header.pid):
        return True
    return now - _instant(header.alive_at) > DEAD_AFTER


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _instant(text: str) -> datetime:
    return datetime.fromisoformat(text)


async def _recorded(lake: Lake, objects: list[ObjectMeta]) -> list[pa.Table]:
    keys = [meta.key for meta in objects if ledger_of(meta.key) == "conversations"]
    return await read_objects(lake, keys)


async def _has_ended(lake: Lake, header: RunHeader) -> bool:
    """Whether the attempt that wrote a header has a row in `runs`; one before it may have another."""
    rows = await read_run(lake, "runs", header.run_id, ["finished_at"])
    started_at = _instant(header.started_at)
    return any(ended is None or ended >= started_at for ended in rows.column("finished_at").to_pylist())


async def _close(lake: Lake, journal: Journal, header: RunHeader, objects: list[ObjectMeta]) -> ClosedRun:
    """Make ledger objects of what a dead run wrote down, and a row in `runs` that says how it ended.

    Two runs that close it at once write the same, so every time is that of the last heartbeat.
    """
    ended_at = _instant(header.alive_at)
    # A cancelled run may not have been able to write its own.
    reason = "the run was cancelled" if header.is_cancelled else "the run was killed"
    found = await read_found(lake, journal.run_id)
    recorded = _ids_of(await _recorded(lake, objects))
    unreached = unreached_entries(
        [one for one in found or () if one not in recorded],
        header.run_id,
        header.organization_id,
        reason,
        ended_at,
    )
    await note_unreached(journal, unreached)
    published = await journal.publish()
    totals = RunTotals(**header.totals)
    totals.phones = dict(published.statuses["phones"])
    totals.conversations = dict(published.statuses["conversations"])
    totals.found = None if found is None else len({*found, *recorded})
    count = "" if not unreached else f"; {len(unreached):,} conversations were not reached"
    row = {
        "run_id": header.run_id,
        "organization_id": header.organization_id,
        "status": "cancelled" if header.is_cancelled else "failed",
        "reason": f"{reason}; what it had published is in the lake{count}",
        "started_at": _instant(header.started_at),
        "finished_at": ended_at,
    }
    await journal.finish(row, totals, published)
    await journal.drop()
    return ClosedRun(row, totals, unreached[:MOST_CLOSED_LETTERS], len(unreached))
