"""What all tables have in common: their properties, and the end of a compaction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta

from imbrace_lake.errors import DamagedObject
from imbrace_lake.store.contract import ObjectMeta, Store
from imbrace_lake.tables.delta_log import DeltaLog, Snapshot, TableFile

TABLES = "tables/"
STATE_FOLDER = f"{TABLES}state/"
# Properties of a table: its state, up to when it has everything, and the last run until then.
STATE_PROPERTY, AS_OF, RUN = "imbrace.state", "imbrace.as_of", "imbrace.run"
GRACE = timedelta(hours=24)
# How often a compaction begins again because another one committed first.
TRIES = 20


def recorded(configuration: Mapping[str, str]) -> dict[str, str]:
    """Return what a version states about the runs that it has read."""
    return {name: configuration[name] for name in (AS_OF, RUN) if name in configuration}


async def clean_up(
    store: Store,
    log: DeltaLog,
    folder: str,
    snapshot: Snapshot,
    removed: Mapping[str, datetime],
    now: datetime,
    grace: timedelta,
) -> int:
    """Write a checkpoint if there are many commits, and delete what only earlier versions need.

    Args:
        store: The store of the lake.
        log: The log of the table.
        folder: The folder of the table.
        snapshot: The newest version.
        removed: Objects of earlier versions, and when they were replaced.
        now: The time.
        grace: How long objects of earlier versions are kept.

    Returns:
        The number of deleted objects.

    Raises:
        DamagedObject: A data file is missing, or has another size than the log states.
    """
    await log.checkpoint(snapshot)
    deleted = await log.delete_old(now, grace)
    state = snapshot.configuration[STATE_PROPERTY]
    needed = {f"{folder}{one.path}" for one in snapshot.files} | {state}
    objects = [meta for meta in await store.list(folder) if "/_delta_log/" not in meta.key]
    await check_files(store, log, folder, snapshot, objects)
    # `tables/state/messages-…`
    own = f"{STATE_FOLDER}{folder.split('/')[1]}-"
    objects += [meta for meta in await store.list(STATE_FOLDER) if meta.key.startswith(own)]
    for meta in objects:
        if meta.key in needed:
            continue
        replaced_at = removed.get(meta.key)
        # Objects that no version names may be those of another compaction, which has a day.
        since, most = (replaced_at, grace) if replaced_at else (meta.modified_at, max(grace, GRACE))
        if now - since > most:
            await store.delete(meta.key)
            deleted += 1
    return deleted


async def check_files(
    store: Store,
    log: DeltaLog,
    folder: str,
    snapshot: Snapshot | None,
    objects: Sequence[ObjectMeta] | None = None,
) -> None:
    """Compare the sizes of the data files with those that the log states.

    Args:
        store: The store of the lake.
        log: The log of the table.
        folder: The folder of the table.
        snapshot: The newest version; None if there is no table.
        objects: The objects in the folder, which is listed by default.

    Raises:
        DamagedObject: A data file is missing, or has another size.
    """
    if snapshot is None:
        return
    if objects is None:
        objects = await store.list(folder)
    sizes = {meta.key: meta.size_bytes for meta in objects}
    wrong = [file for file in snapshot.files if sizes.get(f"{folder}{file.path}") != file.size_bytes]
    if not wrong:
        return
    newest = await log.read()
    if newest is None or newest.version != snapshot.version:
        # Another compaction may have deleted them; it checks its own version.
        return
    size = sizes.get(f"{folder}{wrong[0].path}")
    problem = "is missing" if size is None else f"has {size:,} bytes, not {wrong[0].size_bytes:,}"
    if len(wrong) > 1:
        problem += f", and {len(wrong) - 1:,} more of the {len(snapshot.files):,} files are not as written"
    raise damaged_file(store, folder, wrong[0], problem)


def damaged_file(store: Store, folder: str, file: TableFile, problem: str) -> DamagedObject:
    """Return an error that states what is wrong with a data file, and what to do."""
    return DamagedObject(f"{store.url}/{folder}{file.path} {problem}: {again(folder)}")


def again(folder: str) -> str:
    """Return what to do about a table with a damaged file."""
    return f"delete the folder {folder}, which `imbrace-lake compact` then writes again"
