"""Compare every object of a lake with the ledgers."""

from __future__ import annotations

import asyncio
import json
import re
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeAlias
from urllib.parse import unquote
from uuid import uuid4

import numpy as np
import numpy.typing as npt

from imbrace_lake.concurrency import run_bounded
from imbrace_lake.errors import StoreError
from imbrace_lake.lake.hash_index import first_repeating, id_hashes
from imbrace_lake.lake.lake import (
    MARKER,
    MESSAGES,
    Lake,
    body_hash,
    is_folder_of,
    is_marker,
    is_part,
    iter_rows,
    partition_key,
)
from imbrace_lake.lake.ledger import DAMAGED as DAMAGED_SUFFIX
from imbrace_lake.lake.ledger import (
    FOUND,
    HEADER,
    has_hash,
    ledger_of,
    parse_object,
    run_of,
)
from imbrace_lake.lake.ledger_schema import LEDGERS
from imbrace_lake.lake.spellings import superseded
from imbrace_lake.printable import printable
from imbrace_lake.store.factory import ObjectMeta
from imbrace_lake.tables.cleaning import TABLES
from imbrace_lake.tables.state import folder_of
from imbrace_lake.tables.verification import verify_tables
from imbrace_lake.verify.expected import ExpectedObjects, read_replaced
from imbrace_lake.verify.findings import Difference, Verification
from imbrace_lake.verify.part import DAMAGED, NOT_A_PART, PartReport, judge_part

SIDE_BY_SIDE = 16
# Larger objects are read into files.
LARGE_BYTES = 4 * 2**20
# Folders whose objects have the hash of their content in their keys.
HASHED = (*LEDGERS, "journal", "checkpoints")
UNLIKE_LEDGER = "differs from the hash in the ledger: restore it from a copy"

_PART = re.compile(r"messages/org=([^/]+)/conv=([^/]+)/")

# None for an object that no longer exists, an error for one that cannot be read.
_Body: TypeAlias = bytes | Path | StoreError | None


async def verify_objects(
    lake: Lake, on_progress: Callable[[int, int], None] = lambda done, all: None
) -> Verification:
    """Read every object once and compare it with its recorded hash.

    Args:
        lake: The lake; runs may be under way.
        on_progress: Receives the number of finished objects and of all.
    """
    found = Verification()
    # The records before the listing, because no recorded object is ever deleted.
    expected = await ExpectedObjects.read(lake)
    # The files of tables are compared with their logs, below.
    objects = [meta for meta in await lake.store.list("") if not meta.key.startswith(TABLES)]
    there = {meta.key for meta in objects}
    missing = (expected.parts.keys() | expected.ledgers) - there
    missing -= _deleted_spellings(missing, there)
    expected.is_complete = expected.is_complete and not any(
        key.startswith("conversations/") for key in missing
    )
    lost = {key for key in missing if key.startswith(MESSAGES)}
    missing -= await read_replaced(lake, lost) if lost else set()
    found.differences += [Difference(key, _missing(key)) for key in missing]
    done = 0
    doubtful: list[ObjectMeta] = []
    unrecorded: set[str] = set()
    judging = asyncio.Lock()
    with TemporaryDirectory(prefix="imbrace-verify-") as folder:

        async def judge(meta: ObjectMeta, expected: ExpectedObjects) -> tuple[bool, str | None]:
            body = await _read(lake, meta, Path(folder))
            # One at a time, because the rows of an object take several times its size.
            async with judging:
                judgment = await asyncio.to_thread(_judge, meta.key, body, expected)
            if isinstance(body, Path):
                body.unlink()
            return judgment

        def add(key: str, is_recorded: bool, problem: str | None) -> None:
            found.add(key, problem)
            if not is_recorded and problem is None:
                unrecorded.add(key)

        async def check(meta: ObjectMeta) -> None:
            nonlocal done
            is_recorded, problem = await judge(meta, expected)
            if not is_recorded and (problem is not None or meta.key in expected.parts):
                doubtful.append(meta)
            else:
                add(meta.key, is_recorded, problem)
            found.ledger_objects += meta.key.partition("/")[0] in HASHED
            found.parts += is_part(meta.key)
            done += 1
            on_progress(done, len(objects))

        async def check_again(meta: ObjectMeta) -> None:
            add(meta.key, *await judge(meta, expected_now))

        await run_bounded(SIDE_BY_SIDE, (partial(check, meta) for meta in objects))
        if doubtful:
            # A run may have replaced and recorded them during the verification.
            expected_now = replace(await ExpectedObjects.read(lake), is_complete=expected.is_complete)
            await run_bounded(SIDE_BY_SIDE, (partial(check_again, meta) for meta in doubtful))
    damaged = {difference.name for difference in found.differences}
    parts = [meta for meta in objects if is_part(meta.key) and meta.key not in damaged]
    repeating = await _find_repeating(lake, parts, unrecorded)
    for key in repeating:
        found.add(key, f"repeats messages of an earlier part: delete it, and {_backfill(key)}")
    found.unrecorded = len(unrecorded - repeating)
    tables = await verify_tables(lake)
    found.table_files, found.tables_not_verified = tables.files, tables.not_verified
    found.differences += [Difference(one.name, one.problem) for one in tables.differences]
    found.differences.sort(key=lambda difference: difference.name)
    return found


async def _find_repeating(lake: Lake, parts: list[ObjectMeta], unrecorded: set[str]) -> set[str]:
    """Return parts that repeat messages of earlier ones, at most one of each conversation.

    Only conversations with an unrecorded part are read again: a run reads a partition before it records it.
    """
    folders = {folder_of(key) for key in unrecorded}
    partitions: dict[str, list[str]] = defaultdict(list)
    for meta in parts:
        if folder_of(meta.key) in folders:
            partitions[folder_of(meta.key)].append(meta.key)
    found: set[str] = set()

    async def check(keys: list[str]) -> None:
        # Part 100000 is after part 99999.
        keys.sort(key=lambda key: (len(key), key))
        ids = {}
        for key in keys:
            path = Path(temporary, uuid4().hex)
            # Who is following the advice of an earlier verification may have deleted it since the listing.
            with suppress(FileNotFoundError):
                await lake.store.download(key, path)
                ids[key] = await asyncio.to_thread(_take_ids, path)
        repeating = first_repeating([*ids.values()])
        if repeating is not None:
            found.add([*ids][repeating])

    with TemporaryDirectory(prefix="imbrace-verify-") as temporary:
        several = (keys for keys in partitions.values() if len(keys) > 1)
        await run_bounded(SIDE_BY_SIDE, (partial(check, keys) for keys in several))
    return found


def _take_ids(path: Path) -> npt.NDArray[np.int64]:
    """Return the `id_hashes` of a part in a file, which is deleted."""
    ids = id_hashes(iter_rows(path, ["message_id"]))
    path.unlink()
    return ids


def _deleted_spellings(missing: set[str], there: set[str]) -> set[str]:
    """Return the missing parts of spellings that are not continued, whose folders users may delete."""
    if not any(key.startswith(MESSAGES) for key in missing):
        return set()
    folders = {folder_of(key) for key in there if key.startswith(MESSAGES)}
    own = {key for key in missing if key.startswith(MESSAGES) and folder_of(key) not in folders}
    deleted = superseded({*map(folder_of, own)}, folders)
    return {key for key in own if folder_of(key) in deleted}


async def _read(lake: Lake, meta: ObjectMeta, folder: Path) -> _Body:
    """Read an object, a large one into a file."""
    try:
        if meta.size_bytes <= LARGE_BYTES:
            return await lake.store.get(meta.key)
        path = folder / uuid4().hex
        await lake.store.download(meta.key, path)
    except FileNotFoundError:
        return None
    except StoreError as exc:
        if exc.is_transient:
            raise
        return exc
    return path


def _judge(key: str, body: _Body, expected: ExpectedObjects) -> tuple[bool, str | None]:
    """Return whether an object has its recorded hash, and what is wrong with it."""
    if not key.startswith(MESSAGES):
        return True, _problem(key, body)
    if not is_part(key):
        return True, "is not an object of the lake: move it elsewhere"
    if body is None:
        return False, _missing(key)
    if isinstance(body, StoreError):
        return False, f"cannot be read: {body}"
    if body_hash(body) in expected.parts.get(key, ()):
        return True, None
    problem = _unrecorded_problem(key, judge_part(body), expected)
    return False, problem and f"{problem}. {_without_copy(key)}"


def _problem(key: str, body: _Body) -> str | None:
    """Return what is wrong with an object that is not a part; None if nothing is."""
    folder = key.partition("/")[0]
    if body is None:
        return None  # a run has just closed this journal; no other object is ever deleted
    if isinstance(body, StoreError):
        return f"cannot be read: {body}"
    if isinstance(body, bytes) and key == MARKER:
        return None if is_marker(body) else DAMAGED
    if folder == "checkpoints":
        return None if has_hash(key, body) else f"is damaged: {_remedy(key)}"
    if folder not in HASHED:
        return None
    body = body if isinstance(body, bytes) else body.read_bytes()
    if key.endswith(f"/{HEADER}"):
        return None if _is_json(body) else f"is damaged: {_remedy(key)}"
    if key.endswith(DAMAGED_SUFFIX):
        return f"is the rest of a damaged object of a journal: {_remedy(key)}"
    if ledger_of(key) == FOUND and has_hash(key, body):
        return None
    try:
        parse_object(key, body)
    except ValueError as exc:
        return f"{exc}: {_remedy(key)}"
    return None


def _unrecorded_problem(key: str, report: PartReport, expected: ExpectedObjects) -> str | None:
    """Return what is wrong with a part whose hash is not in the ledger, perhaps because of a kill."""
    if report.problem is not None:
        # Its key is that of a part.
        return DAMAGED if report.problem == NOT_A_PART else report.problem
    if not is_folder_of(key, report.organization_id, report.conversation_id):
        return "contains rows of another conversation: restore it from a copy"
    if key not in expected.parts or not expected.is_complete:
        return None
    # A restored older version also proves itself, but the lake had a newer one.
    is_newest = report.newest_change is not None and report.newest_change >= expected.newest_begun_at(key)
    return None if report.is_proven and is_newest else UNLIKE_LEDGER


def _remedy(key: str) -> str:
    """Return what to do about a damaged object, with or without a copy."""
    folder, run_id = key.partition("/")[0], run_of(key)
    if folder == "checkpoints":
        return "delete it; later runs write a new one"
    if folder == "journal":
        return "delete it; later runs read its conversations again"
    if run_id is None:
        return "delete it, because no run writes objects with such a name"
    if key.endswith(DAMAGED_SUFFIX):
        return f"delete it. The failures of run {run_id} are not fully known: export its list again"
    if folder == "runs":
        return "restore it from a copy. Without a copy, delete it: the failures of that run are then unknown"
    lost = (
        "the replaced versions in it are lost"
        if folder == "revisions"
        else "later runs read its conversations again"
    )
    return f"restore it from a copy. Without a copy, delete it and runs/*-{run_id}-*, which lists it; {lost}"


def _without_copy(key: str, *, is_missing: bool = False) -> str:
    """Return what to do about a part without a copy."""
    delete = "" if is_missing else "delete it and "
    return (
        f"Without a copy, {delete}{_backfill(key)}; what was edited or deleted at the gateway before is lost"
    )


def _backfill(key: str) -> str:
    """Return the advice to read the conversation of a part again."""
    organization, conversation_id = map(unquote, _PART.findall(key)[0])
    # A very long id is not in its key.
    is_shown = key.startswith(f"{partition_key(organization, conversation_id)}/")
    option = f"--conversation {printable(conversation_id)}" if is_shown else "--everything"
    return f"run `imbrace-lake backfill {option}`, which reads the conversation again"


def _missing(key: str) -> str:
    if key.startswith(MESSAGES):
        return f"is missing: restore it from a copy. {_without_copy(key, is_missing=True)}"
    run_id = run_of(key)
    if run_id is None:
        return "is missing: restore it from a copy"
    return f"is missing: restore it from a copy. Without a copy, delete runs/*-{run_id}-*, which lists it"


def _is_json(body: bytes) -> bool:
    try:
        return isinstance(json.loads(body), dict)
    except (ValueError, RecursionError):
        return False
