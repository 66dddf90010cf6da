"""Hold every object of a lake against what the ledgers say of it, and counts against the gateway."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from hashlib import sha256

import pyarrow as pa
import pyarrow.parquet as pq

from imbrace_lake.errors import ConversationNotFound, GatewayError, StoreError
from imbrace_lake.gateway.client import GatewayClient
from imbrace_lake.lake.lake import MARKER, MESSAGES, Lake, is_marker
from imbrace_lake.lake.ledger import (
    LEDGERS,
    ConversationEntry,
    Ledger,
    empty_ledger,
    is_intact,
    list_ledger,
    read_objects,
)
from imbrace_lake.lake.schema import to_parquet
from imbrace_lake.store.opening import Stored

SIDE_BY_SIDE = 16
# Folders whose objects have their content's hash in their names.
HASHED = (*LEDGERS, "journal", "state")


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing that is not as it should be: which object or conversation, and what is wrong."""

    name: str
    problem: str


@dataclass(slots=True)
class Verification:
    """What a verification looked at, and what it found.

    Attributes:
        parts, ledger_objects: How many objects were read.
        unrecorded: Parts that no ledger speaks of, as a killed run leaves them; they are whole.
        counts: Conversations whose count was asked of the gateway.
    """

    parts: int = 0
    ledger_objects: int = 0
    unrecorded: int = 0
    counts: int = 0
    differences: list[Difference] = field(default_factory=list)

    @property
    def is_sound(self) -> bool:
        """Nothing differs."""
        return not self.differences


async def verify_objects(
    lake: Lake, on_progress: Callable[[int, int], None] = lambda done, all: None
) -> Verification:
    """Read every object once and compare it with the hash that was written down for it.

    Args:
        lake: Which; runs may be under way.
        on_progress: Told how many objects of how many are done.
    """
    found = Verification()
    # What is written down first, then what is there: nothing that is written down is ever removed.
    told = await _Told.read(lake)
    objects = await lake.store.list("")
    there = {stored.key for stored in objects}
    missing = (told.parts.keys() | told.ledgers) - there
    told.is_whole = told.is_whole and not any(key.startswith("conversations/") for key in missing)
    found.differences += [Difference(key, "is gone: restore it from a copy") for key in missing]
    done = 0
    doubtful: list[Stored] = []
    async for stored, body in _bodies(lake, objects):
        problem = _problem(stored.key, body, told)
        if problem is not None and stored.key.startswith(MESSAGES):
            doubtful.append(stored)
        elif problem is not None:
            found.differences.append(Difference(stored.key, problem))
        found.ledger_objects += stored.key.partition("/")[0] in HASHED
        found.parts += stored.key.startswith(MESSAGES)
        found.unrecorded += stored.key.startswith(MESSAGES) and stored.key not in told.parts
        done += 1
        on_progress(done, len(objects))
    if doubtful:
        # A run may have replaced them while they were looked at.
        told = replace(await _Told.read(lake), is_whole=told.is_whole)
        again = [
            (stored.key, _problem(stored.key, body, told)) async for stored, body in _bodies(lake, doubtful)
        ]
        found.differences += [Difference(key, problem) for key, problem in again if problem is not None]
    found.differences.sort(key=lambda difference: difference.name)
    return found


@dataclass(slots=True)
class _Told:
    """What the ledgers say of objects.

    Attributes:
        parts: The hashes that each part may have.
        ledgers: The ledgers' objects that runs say they wrote.
        is_whole: No object of the ledger `conversations` is damaged or missing, so that no newer hash is.
    """

    parts: dict[str, set[str]]
    ledgers: set[str]
    is_whole: bool

    @classmethod
    async def read(cls, lake: Lake) -> _Told:
        rows, is_whole = await _intact_rows(lake, "conversations", ["parts", "started_at", "finished_at"])
        runs, _ = await _intact_rows(lake, "runs", ["objects"])
        written = {key for keys in runs.column("objects").to_pylist() for key in keys or ()}
        return cls(_hashes(rows), written, is_whole)


def _hashes(rows: pa.Table) -> dict[str, set[str]]:
    """The hashes of each part: that which the newest entry that speaks of it gives.

    Where two runs were at one conversation at a time, the entry that was written last need not be
    that of the run that replaced the part last, so both count.
    """
    told: dict[str, list[tuple[datetime, datetime, str]]] = {}
    for batch in rows.sort_by("finished_at").to_batches(max_chunksize=4096):
        for row in batch.to_pylist():
            finished_at = row["finished_at"]
            for part in row["parts"] or ():
                if part["sha256"] is None:
                    continue
                versions = told.setdefault(part["key"], [])
                if versions and versions[-1][2] == part["sha256"]:
                    versions.pop()
                versions.append((row["started_at"] or finished_at, finished_at, part["sha256"]))
    return {
        key: {digest for _, finished_at, digest in versions if finished_at >= versions[-1][0]}
        for key, versions in told.items()
    }


async def _intact_rows(lake: Lake, ledger: Ledger, columns: Sequence[str]) -> tuple[pa.Table, bool]:
    """A ledger's rows without those of damaged objects, and whether these are all."""

    async def read(key: str) -> list[pa.Table] | None:
        try:
            return await read_objects(lake, [key], columns)
        except StoreError:
            return None

    read_all = await asyncio.gather(*(read(key) for key in await list_ledger(lake, ledger)))
    tables = [table for tables in read_all for table in tables or ()]
    return pa.concat_tables(tables) if tables else empty_ledger(ledger, columns), None not in read_all


async def _bodies(lake: Lake, objects: Iterable[Stored]) -> AsyncIterator[tuple[Stored, bytes | None]]:
    """Read objects some at a time; None for one that went away meanwhile."""

    async def read(stored: Stored) -> tuple[Stored, bytes | None]:
        try:
            return stored, await lake.store.get(stored.key)
        except FileNotFoundError:
            return stored, None

    waiting: set[asyncio.Task[tuple[Stored, bytes | None]]] = set()
    for stored in objects:
        waiting.add(asyncio.create_task(read(stored)))
        if len(waiting) >= SIDE_BY_SIDE:
            done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                yield task.result()
    for task in waiting:
        yield await task


def _problem(key: str, body: bytes | None, told: _Told) -> str | None:
    """What is wrong with one object; None if nothing is."""
    folder = key.partition("/")[0]
    is_part = key.startswith(MESSAGES)
    if body is None:
        # A journal that its run has just closed goes away; nothing else does.
        return "is gone: restore it from a copy" if is_part else None
    if key == MARKER:
        return None if is_marker(body) else "is damaged: restore it from a copy"
    if folder in HASHED:
        return None if is_intact(key, body) else "differs from the hash in its name: restore it from a copy"
    if not is_part or sha256(body).hexdigest() in told.parts.get(key, ()):
        return None
    if key in told.parts and told.is_whole:
        return "differs from the hash in the ledger: restore it from a copy, or export it into a new lake"
    return _unlike_written(body)


def _unlike_written(body: bytes) -> str | None:
    """Why a part of which no hash is known cannot be what was written."""
    damaged = "is damaged: restore it from a copy"
    try:
        rows = pq.read_table(io.BytesIO(body), page_checksum_verification=True)
        again = to_parquet(rows.combine_chunks(), _texts(rows.schema.metadata))
        writers = {pq.read_metadata(io.BytesIO(one)).created_by for one in (body, again)}
    except (pa.ArrowException, OSError, ValueError):
        return damaged
    # Page checksums do not cover headers and footer; equal rows make equal bytes, by one writer.
    return damaged if again != body and len(writers) == 1 else None


def _texts(metadata: Mapping[bytes, bytes] | None) -> dict[str, str]:
    return {name.decode(): value.decode() for name, value in (metadata or {}).items()}


async def verify_counts(
    gateway: GatewayClient, entries: Iterable[ConversationEntry], found: Verification
) -> None:
    """Ask the gateway for the count of each conversation, one request each; differences go to `found`.

    Raises:
        GatewayError: One that every other request would meet as well (`is_fatal`).
    """
    for entry in entries:
        found.counts += 1
        try:
            page = await gateway.get_page(entry.conversation_id, limit=1)
        except ConversationNotFound:
            if entry.status != "gone":
                found.differences.append(Difference(entry.conversation_id, "is gone from the gateway"))
        except GatewayError as exc:
            if exc.is_fatal:
                raise
            found.differences.append(Difference(entry.conversation_id, f"could not be asked for: {exc}"))
        else:
            if page.whole != entry.distinct_messages:
                told = f"has {page.whole} messages at the gateway, {entry.distinct_messages} in the lake"
                found.differences.append(Difference(entry.conversation_id, told))
