"""Compare every object of a lake with what the ledgers say of it."""

from __future__ import annotations

import asyncio
import filecmp
import io
import json
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from hashlib import file_digest, sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeAlias
from uuid import uuid4

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from imbrace_lake.errors import StoreError
from imbrace_lake.lake.lake import MARKER, MESSAGES, Lake, is_marker, partition_key
from imbrace_lake.lake.ledger import DAMAGED as DAMAGED_SUFFIX
from imbrace_lake.lake.ledger import (
    FOUND,
    HEADER,
    has_hash,
    is_intact,
    ledger_of,
    parse_object,
    run_of,
)
from imbrace_lake.lake.ledger_schema import LEDGERS
from imbrace_lake.lake.parquet import write_row_groups
from imbrace_lake.store.factory import ObjectMeta
from imbrace_lake.verify.expected import ExpectedObjects, run_recorded_nothing
from imbrace_lake.verify.findings import Difference, Verification

SIDE_BY_SIDE = 16
# Objects beyond this are read into files.
LARGE_BYTES = 4 * 2**20
# Folders of what can be made again from the ledgers.
DERIVED = ("checkpoints", "state")
# Folders whose objects have their content's hash in their names.
HASHED = (*LEDGERS, "journal", *DERIVED)
DAMAGED = "is damaged: restore it from a copy"
UNLIKE_LEDGER = "differs from the hash in the ledger: restore it from a copy, or export it into a new lake"

# None for an object that went away, an error for one that cannot be read.
_Body: TypeAlias = bytes | Path | StoreError | None


async def verify_objects(
    lake: Lake, on_progress: Callable[[int, int], None] = lambda done, all: None
) -> Verification:
    """Read every object once and compare it with the hash that was written down for it.

    Args:
        lake: Which; runs may be under way.
        on_progress: Receives how many objects of how many are done.
    """
    found = Verification()
    # What is written down first, then what is there: nothing that is written down is ever removed.
    expected = await ExpectedObjects.read(lake)
    objects = await lake.store.list("")
    there = {meta.key for meta in objects}
    missing = (expected.parts.keys() | expected.ledgers) - there
    expected.is_complete = expected.is_complete and not any(
        key.startswith("conversations/") for key in missing
    )
    found.differences += [Difference(key, _missing(key)) for key in missing]
    done = 0
    doubtful: list[ObjectMeta] = []
    async for meta, body in _bodies(lake, objects):
        problem = await asyncio.to_thread(_problem, meta.key, body, expected)
        if problem is not None and meta.key.startswith(MESSAGES):
            doubtful.append(meta)
        elif problem is not None:
            found.differences.append(Difference(meta.key, problem))
        found.ledger_objects += meta.key.partition("/")[0] in HASHED
        found.parts += meta.key.startswith(MESSAGES)
        found.unrecorded += meta.key.startswith(MESSAGES) and meta.key not in expected.parts
        done += 1
        on_progress(done, len(objects))
    if doubtful:
        # A run may have replaced them while they were looked at.
        expected = replace(await ExpectedObjects.read(lake), is_complete=expected.is_complete)
        async for meta, body in _bodies(lake, doubtful):
            problem = await asyncio.to_thread(_problem, meta.key, body, expected)
            if problem == UNLIKE_LEDGER and await _is_unrecorded(lake, meta.key, body, expected):
                found.unrecorded += 1
            elif problem is not None:
                found.differences.append(Difference(meta.key, problem))
    found.differences.sort(key=lambda difference: difference.name)
    return found


async def _bodies(lake: Lake, objects: Iterable[ObjectMeta]) -> AsyncIterator[tuple[ObjectMeta, _Body]]:
    """Read objects some at a time, large ones into files."""
    with TemporaryDirectory(prefix="imbrace-verify-") as folder:

        async def read(meta: ObjectMeta) -> tuple[ObjectMeta, _Body]:
            try:
                if meta.size_bytes <= LARGE_BYTES:
                    return meta, await lake.store.get(meta.key)
                path = Path(folder, uuid4().hex)
                await lake.store.download(meta.key, path)
            except FileNotFoundError:
                return meta, None
            except StoreError as exc:
                if exc.is_transient:
                    raise
                return meta, exc
            return meta, path

        waiting: set[asyncio.Task[tuple[ObjectMeta, _Body]]] = set()
        for meta in objects:
            waiting.add(asyncio.create_task(read(meta)))
            if len(waiting) >= SIDE_BY_SIDE:
                done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    yield task.result()
                    _discard(task.result()[1])
        for task in waiting:
            yield await task
            _discard(task.result()[1])


def _discard(body: _Body) -> None:
    if isinstance(body, Path):
        body.unlink()


def _problem(key: str, body: _Body, expected: ExpectedObjects) -> str | None:
    """What is wrong with one object; None if nothing is."""
    folder = key.partition("/")[0]
    is_part = key.startswith(MESSAGES)
    if body is None:
        # A journal that its run has just closed goes away; nothing else does.
        return "is gone: restore it from a copy" if is_part else None
    if isinstance(body, StoreError):
        return f"cannot be read: {body}"
    if isinstance(body, bytes) and key == MARKER:
        return None if is_marker(body) else DAMAGED
    if folder in DERIVED:
        return None if has_hash(key, _sha256(body)) else f"is damaged: {_remedy(key)}"
    if folder in HASHED:
        return _ledger_problem(key, body if isinstance(body, bytes) else body.read_bytes())
    if not is_part or _sha256(body) in expected.parts.get(key, ()):
        return None
    if key in expected.parts and expected.is_complete:
        return UNLIKE_LEDGER
    return _unlike_written(body)


def _ledger_problem(key: str, body: bytes) -> str | None:
    """What is wrong with an object of a ledger or a journal, and what to do about it."""
    if key.endswith(f"/{HEADER}"):
        return None if _is_json(body) else f"is damaged: {_remedy(key)}"
    if key.endswith(DAMAGED_SUFFIX):
        return f"is what is left of a damaged object of a journal: {_remedy(key)}"
    if ledger_of(key) == FOUND and is_intact(key, body):
        return None
    try:
        parse_object(key, body)
    except ValueError as exc:
        return f"{exc}: {_remedy(key)}"
    return None


def _remedy(key: str) -> str:
    """What to do about a damaged object of which there may be no copy."""
    folder, run_id = key.partition("/")[0], run_of(key)
    if folder in DERIVED:
        return "delete it, for later runs write a new one"
    if folder == "journal":
        return "delete it; what it recorded is read again"
    if run_id is None:
        return "remove it, for no run wrote an object of this name"
    if key.endswith(DAMAGED_SUFFIX):
        return f"delete it. What run {run_id} missed is not fully known: export its list again"
    if folder == "runs":
        return "restore it from a copy. Without a copy, delete it: what that run missed is then not known"
    lost = (
        "the replaced versions in it are lost" if folder == "revisions" else "what it recorded is read again"
    )
    return f"restore it from a copy. Without a copy, delete it and runs/*-{run_id}-*, which lists it; {lost}"


def _missing(key: str) -> str:
    run_id = run_of(key)
    if run_id is None:
        return "is gone: restore it from a copy"
    return f"is gone: restore it from a copy. Without a copy, delete runs/*-{run_id}-*, which lists it"


def _is_json(body: bytes) -> bool:
    try:
        return isinstance(json.loads(body), dict)
    except (ValueError, RecursionError):
        return False


def _sha256(body: bytes | Path) -> str:
    if isinstance(body, bytes):
        return sha256(body).hexdigest()
    with body.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()


def _unlike_written(body: bytes | Path) -> str | None:
    """Why a part of which no hash is known cannot be what was written."""
    reencoded = _reencode(body)
    if reencoded is None:
        return DAMAGED
    # Page checksums do not cover headers and footer; equal rows make equal bytes, by one writer.
    return DAMAGED if not reencoded.is_same and reencoded.is_one_writer else None


async def _is_unrecorded(lake: Lake, key: str, body: _Body, expected: ExpectedObjects) -> bool:
    """Whether a part is a version that its run replaced another by, and did not come to write down.

    Nothing but the part itself can say so, so all that it says must hold: that its bytes are as they
    were written, and for this conversation; that the lake knows the run that wrote it, and that this
    run has recorded no version; that it is no older than what the ledger records last.
    """
    reencoded = await asyncio.to_thread(_reencode, body) if isinstance(body, bytes | Path) else None
    if reencoded is None or not reencoded.is_same or reencoded.newest_change is None:
        return False
    says = reencoded.says
    folder = partition_key(reencoded.organization_id, says.get("conversation_id", ""))
    is_newest = reencoded.newest_change >= expected.newest_begun_at(key)
    is_its = key.startswith(f"{folder}/") and "run_id" in says
    return is_newest and is_its and await run_recorded_nothing(lake, says["run_id"], key)


@dataclass(slots=True)
class _Reencoded:
    """A part, and the part that its rows would be written as today.

    Attributes:
        says: Its metadata.
        organization_id: Of its first row.
        newest_change: When a row of it changed last; None if it has no rows.
        is_same, is_one_writer: The two have equal bytes, or at least one version of the writer.
    """

    says: dict[str, str]
    organization_id: str = ""
    newest_change: datetime | None = None
    is_same: bool = False
    is_one_writer: bool = False


def _reencode(body: bytes | Path) -> _Reencoded | None:
    """Read a part and write its rows again, a row group at a time; None if it is damaged."""
    source = io.BytesIO(body) if isinstance(body, bytes) else body
    with TemporaryDirectory(prefix="imbrace-verify-") as folder:
        path = Path(folder, "again")
        try:
            with pq.ParquetFile(source, page_checksum_verification=True, pre_buffer=False) as file:
                reencoded = _Reencoded(_decode_metadata(file.schema_arrow.metadata))
                write_row_groups(path, _row_groups(file, reencoded), file.schema_arrow, reencoded.says)
                reencoded.is_one_writer = pq.read_metadata(path).created_by == file.metadata.created_by
        except (pa.ArrowException, OSError, ValueError):
            return None
        reencoded.is_same = _is_same(body, path)
    return reencoded


def _row_groups(file: pq.ParquetFile, reencoded: _Reencoded) -> Iterator[list[pa.Table]]:
    """The part's row groups, of which it is noted what they say."""
    for number in range(file.num_row_groups):
        rows = file.read_row_group(number, use_threads=False).combine_chunks()
        reencoded.organization_id = rows.column("organization_id")[0].as_py()
        changes = [pc.max(rows.column(name)).as_py() for name in ("last_changed_at", "deleted_at")]
        reencoded.newest_change = max(filter(None, (reencoded.newest_change, *changes)), default=None)
        yield [rows]


def _is_same(body: bytes | Path, path: Path) -> bool:
    return body == path.read_bytes() if isinstance(body, bytes) else filecmp.cmp(body, path, shallow=False)


def _decode_metadata(metadata: Mapping[bytes, bytes] | None) -> dict[str, str]:
    return {name.decode(): value.decode() for name, value in (metadata or {}).items()}
