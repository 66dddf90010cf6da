"""Hold every object of a lake against what the ledgers say of it."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import replace
from hashlib import sha256

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from imbrace_lake.lake.lake import MARKER, MESSAGES, Lake, is_marker, partition_key
from imbrace_lake.lake.ledger import LEDGERS, is_intact
from imbrace_lake.lake.schema import to_parquet
from imbrace_lake.store.opening import Stored
from imbrace_lake.verify.findings import Difference, Verification
from imbrace_lake.verify.told import Told, has_told_nothing

SIDE_BY_SIDE = 16
# Folders whose objects have their content's hash in their names.
HASHED = (*LEDGERS, "journal", "state")
DAMAGED = "is damaged: restore it from a copy"
UNLIKE_LEDGER = "differs from the hash in the ledger: restore it from a copy, or export it into a new lake"


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
    told = await Told.read(lake)
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
        told = replace(await Told.read(lake), is_whole=told.is_whole)
        async for stored, body in _bodies(lake, doubtful):
            problem = _problem(stored.key, body, told)
            if problem == UNLIKE_LEDGER and await _is_untold(lake, stored.key, body, told):
                found.unrecorded += 1
            elif problem is not None:
                found.differences.append(Difference(stored.key, problem))
    found.differences.sort(key=lambda difference: difference.name)
    return found


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


def _problem(key: str, body: bytes | None, told: Told) -> str | None:
    """What is wrong with one object; None if nothing is."""
    folder = key.partition("/")[0]
    is_part = key.startswith(MESSAGES)
    if body is None:
        # A journal that its run has just closed goes away; nothing else does.
        return "is gone: restore it from a copy" if is_part else None
    if key == MARKER:
        return None if is_marker(body) else DAMAGED
    if folder in HASHED:
        return None if is_intact(key, body) else "differs from the hash in its name: restore it from a copy"
    if not is_part or sha256(body).hexdigest() in told.parts.get(key, ()):
        return None
    if key in told.parts and told.is_whole:
        return UNLIKE_LEDGER
    return _unlike_written(body)


def _unlike_written(body: bytes) -> str | None:
    """Why a part of which no hash is known cannot be what was written."""
    read = _read_and_encode(body)
    if read is None:
        return DAMAGED
    # Page checksums do not cover headers and footer; equal rows make equal bytes, by one writer.
    writers = {pq.read_metadata(io.BytesIO(one)).created_by for one in (body, read[1])}
    return DAMAGED if read[1] != body and len(writers) == 1 else None


async def _is_untold(lake: Lake, key: str, body: bytes | None, told: Told) -> bool:
    """Whether a part is a version that its run replaced another by, and did not come to write down.

    Nothing but the part itself can say so, so all that it says must hold: that its bytes are as they
    were written, and for this conversation; that the lake knows the run that wrote it, and that this
    run has told of no version; that it is no older than what the ledger tells last.
    """
    read = None if body is None else _read_and_encode(body)
    if read is None or read[1] != body or not read[0].num_rows:
        return False
    rows = read[0]
    says = _texts(rows.schema.metadata)
    organization = rows.column("organization_id")[0].as_py()
    folder = partition_key(organization, says.get("conversation_id", ""))
    changes = [pc.max(rows.column(name)).as_py() for name in ("last_changed_at", "deleted_at")]
    is_newest = max(filter(None, changes)) >= told.newest_begun_at(key)
    is_its = key.startswith(f"{folder}/") and "run_id" in says
    return is_newest and is_its and await has_told_nothing(lake, says["run_id"], key)


def _read_and_encode(body: bytes) -> tuple[pa.Table, bytes] | None:
    """A part's rows with its metadata, and the part that these would be written as; None if damaged."""
    try:
        rows = pq.read_table(io.BytesIO(body), page_checksum_verification=True).combine_chunks()
        return rows, to_parquet(rows, _texts(rows.schema.metadata))
    except (pa.ArrowException, OSError, ValueError):
        return None


def _texts(metadata: Mapping[bytes, bytes] | None) -> dict[str, str]:
    return {name.decode(): value.decode() for name, value in (metadata or {}).items()}
