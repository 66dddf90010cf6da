"""A digest of the ledger `conversations`, so that a run's start does not cost what the lake's years cost.

Every run adds an object to the ledger, and reading them all would take longer from hour to hour.
So now and then a run leaves the state that it has read as one object, and says which ledger objects
are in it; the next one reads that and what came later. It can be deleted at any time.
"""

from __future__ import annotations

import asyncio
import io
import json
from datetime import datetime, timedelta

import pyarrow as pa
import pyarrow.parquet as pq

from imbrace_lake.lake.known import STATE, Entries, entries_of, latest_states, none_rows
from imbrace_lake.lake.lake import Lake
from imbrace_lake.lake.ledger import is_intact, named_by_hash, read_noted, read_objects
from imbrace_lake.lake.parquet import encode

FOLDER = "state/"
# An object's name begins with the time at which its run began; longer than this no run takes.
LONGEST_RUN = timedelta(days=7)
# So many objects beyond the digest are read as fast as a new digest is written.
MOST_BEYOND = 24
KEPT = 3


async def read_known(lake: Lake, organization_id: str) -> Entries:
    """How every conversation of an organization stands."""
    states, _ = await _read(lake)
    return entries_of(states, organization_id)


async def _read(lake: Lake) -> tuple[pa.Table, list[str]]:
    """The rows of the digest and of what came since; and the ledger objects that are in them."""
    journals = await read_noted(lake, "conversations", STATE)
    objects = [stored.key for stored in await lake.store.list("conversations/")]
    digest = await _newest_digest(lake)
    tables = [] if digest is None else [digest.replace_schema_metadata()]
    tables += [*await read_objects(lake, _beyond(objects, digest), STATE), *journals]
    return latest_states(pa.concat_tables(tables)) if tables else none_rows(), objects


async def _newest_digest(lake: Lake) -> pa.Table | None:
    digests = [stored.key for stored in await lake.store.list(FOLDER)]
    if not digests:
        return None
    key = max(digests)
    try:
        body = await lake.store.get(key)
    except FileNotFoundError:
        return None  # just replaced, and the ledger has it all
    return pq.read_table(io.BytesIO(body)) if is_intact(key, body) else None


def _beyond(objects: list[str], digest: pa.Table | None) -> list[str]:
    """The ledger objects that are not in the digest."""
    if digest is None:
        return objects
    covers = json.loads(digest.schema.metadata[b"covers"])
    known = set(covers["objects"])
    return [key for key in objects if key >= covers["from"] and key not in known]


async def leave_digest(lake: Lake, now: datetime) -> None:
    """Write a new digest if many ledger objects have come since the last one."""
    objects = [stored.key for stored in await lake.store.list("conversations/")]
    if len(_beyond(objects, await _newest_digest(lake))) < MOST_BEYOND:
        return
    rows, objects = await _read(lake)
    since = f"conversations/{now - LONGEST_RUN:%Y%m%dT%H%M%SZ}"
    covers = json.dumps({"from": since, "objects": [key for key in objects if key >= since]})
    few_values = ["run_id", "organization_id", "status", "proof_method"]
    body = encode(rows, {"covers": covers}, compression="zstd", use_dictionary=few_values)
    await lake.store.put(named_by_hash(f"{FOLDER}{now:%Y%m%dT%H%M%SZ}", body), body)
    older = sorted(stored.key for stored in await lake.store.list(FOLDER))[:-KEPT]
    await asyncio.gather(*(lake.store.delete(key) for key in older))
