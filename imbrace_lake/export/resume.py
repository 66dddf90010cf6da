"""Runs that died: continue what they were doing, and bring what they wrote down into the ledgers.

A run writes a header into its journal and renews it as long as it lives. Whoever begins later and
finds a header that is not renewed any more closes that journal; if the dead run was doing the same
job, what it had got done is not asked for again.
"""

from __future__ import annotations

import asyncio
import json
import os
import platform
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from hashlib import sha256
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from imbrace_lake.errors import StoreError
from imbrace_lake.lake.entries import PROVEN, RunTotals, empty_ledger
from imbrace_lake.lake.known import Entries
from imbrace_lake.lake.lake import Lake
from imbrace_lake.lake.ledger import HEADER, JOURNAL, Journal, last_of_each, read_objects
from imbrace_lake.store.opening import Stored

RENEW_SECONDS = 15.0
DEAD_AFTER = timedelta(seconds=60)
# What died longer ago says how conversations stood too long ago: the same job means today's by now.
RESUME_WITHIN = timedelta(hours=1)


@dataclass(slots=True)
class Header:
    """What a run under way says of itself."""

    run_id: str
    organization_id: str
    started_at: str
    alive_at: str
    job: str = ""
    host: str = ""
    pid: int = 0
    totals: dict[str, Any] = field(default_factory=dict)


def job_of(conversation_ids: Iterable[str], *what: object) -> str:
    """A name for the work itself: equal for two runs that are to do the same."""
    digest = sha256(repr(what).encode())
    for conversation_id in sorted(conversation_ids):
        digest.update(conversation_id.encode() + b"\0")
    return digest.hexdigest()


class Pulse:
    """Keeps the header of one run fresh.

    Attributes:
        totals: What the run has done so far.
    """

    def __init__(self, lake: Lake, header: Header, clock: Callable[[], datetime]) -> None:
        self._lake = lake
        self._header = header
        self._clock = clock
        self.totals: Callable[[], RunTotals] = RunTotals
        self._turn = asyncio.Lock()
        self._has_stopped = False

    async def beat(self, job: str | None = None) -> None:
        """Write the header anew."""
        async with self._turn:
            if self._has_stopped:
                return
            self._header.job = job or self._header.job
            self._header.alive_at = self._clock().isoformat()
            self._header.totals = asdict(self.totals())
            key = f"{JOURNAL}{self._header.run_id}/{HEADER}"
            await self._lake.store.put(key, json.dumps(asdict(self._header)).encode())

    async def stop(self) -> None:
        """Write no more: the journal is about to be closed, and a header would outlive it."""
        async with self._turn:
            self._has_stopped = True


@asynccontextmanager
async def pulse(
    lake: Lake, run_id: str, organization_id: str, clock: Callable[[], datetime]
) -> AsyncIterator[Pulse]:
    """Say that a run lives, as long as the block runs."""
    now = clock().isoformat()
    header = Header(run_id, organization_id, now, now, host=platform.node(), pid=os.getpid())
    beating = Pulse(lake, header, clock)

    async def beat() -> None:
        while True:
            await asyncio.sleep(RENEW_SECONDS)
            # One that fails is made up for by the next, or the run itself ends by what ails the store.
            with suppress(StoreError):
                await beating.beat()

    task = asyncio.create_task(beat())
    try:
        yield beating
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def take_over(lake: Lake, run_id: str, job: str, now: datetime) -> Entries:
    """Close the journals of dead runs, and say what those with the same job had got done.

    An earlier attempt of this very run counts as one of them, but its journal stays open.

    Returns:
        Conversations that were proven, or found gone.
    """
    journals: dict[str, list[Stored]] = {}
    for stored in await lake.store.list(JOURNAL):
        journals.setdefault(stored.key.split("/")[1], []).append(stored)
    done = [empty_ledger("conversations")]
    for name, objects in journals.items():
        header = await _header(lake, name, objects)
        is_own = name == run_id
        if header is None or (not is_own and not _is_dead(header, now)):
            continue
        journal = Journal(lake, name, _instant(header.started_at))
        if await _has_ended(lake, name):
            # Killed with its last breath: whoever does the same job now wants it done anew.
            await journal.drop()
            continue
        if is_own or (header.job == job and now - _instant(header.alive_at) < RESUME_WITHIN):
            done += await _done(lake, objects)
        if not is_own:
            await _close(journal, header)
    latest = last_of_each(pa.concat_tables(done), ["conversation_id"], "finished_at")
    return Entries(latest)


async def read_header(lake: Lake, run_id: str) -> Header | None:
    """What a run under way says of itself; None if it says nothing."""
    try:
        return Header(**json.loads(await lake.store.get(f"{JOURNAL}{run_id}/{HEADER}")))
    except (FileNotFoundError, ValueError, TypeError):
        return None


async def _header(lake: Lake, name: str, objects: list[Stored]) -> Header | None:
    """What a run says of itself; None if its journal has just been closed."""
    key = f"{JOURNAL}{name}/{HEADER}"
    try:
        return Header(**json.loads(await lake.store.get(key)))
    except (FileNotFoundError, ValueError, TypeError) as exc:
        if isinstance(exc, FileNotFoundError) and key in [stored.key for stored in objects]:
            return None
        # Killed before it wrote one.
        latest = max(stored.modified_at for stored in objects).isoformat()
        return Header(name, "", latest, latest)


def _is_dead(header: Header, now: datetime) -> bool:
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


async def _done(lake: Lake, objects: list[Stored]) -> list[pa.Table]:
    keys = [stored.key for stored in objects if "/conversations/" in stored.key]
    is_done = pc.is_in(pc.field("status"), pa.array([*PROVEN, "gone"])) & ~pc.field("is_dead_letter")
    return [table.filter(is_done) for table in await read_objects(lake, keys)]


async def _has_ended(lake: Lake, run_id: str) -> bool:
    return any(f"-{run_id}-" in stored.key for stored in await lake.store.list("runs/"))


async def _close(journal: Journal, header: Header) -> None:
    """Make ledger objects of what a dead run wrote down, and a row in `runs` that says it died."""
    row = {
        "run_id": header.run_id,
        "organization_id": header.organization_id,
        "status": "failed",
        "reason": "the run was killed; what it had published is in the lake",
        "started_at": _instant(header.started_at),
        # When it was last heard of, so that two runs that close it at once write the same.
        "finished_at": _instant(header.alive_at),
    }
    await journal.close(row, RunTotals())
