"""An exclusive lease: one run at a time, for stores that ignore conditional writes.

With conditional writes exactly one of two writers wins, and runs need no lock. Without them, a run writes
a lease into the store and renews it until its end; another run that finds the lease does not begin. Two
runs that begin at the same moment can both write the lease, so each reads it again after two seconds, and
the run that finds another's lease ends.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import datetime, timedelta

from imbrace_lake.concurrency import every
from imbrace_lake.errors import StoreError
from imbrace_lake.store.factory import Store

LOCK = "lock/run.json"
SETTLE_SECONDS = 2.0
RENEW_SECONDS = 30.0
# Three renewals may fail before others believe that the run is dead.
LEASE_SECONDS = 120.0


class LeaseHeld(StoreError):
    """Another run writes to a lake that supports only one."""

    is_fatal = True


@asynccontextmanager
async def exclusive_lease(
    store: Store,
    run_id: str,
    clock: Callable[[], datetime],
    *,
    settle_seconds: float = SETTLE_SECONDS,
    renew_seconds: float = RENEW_SECONDS,
) -> AsyncIterator[None]:
    """Keep the lake's only lease while the block runs; the block is cancelled if another run takes the lease.

    Raises:
        LeaseHeld: Another run has it.
    """
    await _refuse_others(store, run_id, clock())
    await _write(store, run_id, clock())
    await asyncio.sleep(settle_seconds)
    await _refuse_others(store, run_id, clock())

    async def renew() -> None:
        await _refuse_others(store, run_id, clock())
        await _write(store, run_id, clock())

    try:
        async with every(renew_seconds, renew):
            yield
    finally:
        if await _holder(store) == run_id:
            await store.delete(LOCK)


async def _refuse_others(store: Store, run_id: str, now: datetime) -> None:
    holder = await _holder(store, now)
    if holder not in (None, run_id):
        raise LeaseHeld(
            f"run {holder} is writing to {store.url}, which supports one run at a time because its store"
            f" ignores conditional writes: wait for its end, or {LEASE_SECONDS:.0f} s if it is dead"
        )


async def _holder(store: Store, now: datetime | None = None) -> str | None:
    """Return the run that has the lease; with `now`, only if the lease has not expired."""
    try:
        body = await store.get(LOCK)
    except FileNotFoundError:
        return None
    try:
        lock = json.loads(body)
        holder, until = str(lock["run_id"]), datetime.fromisoformat(lock["until"])
    except (ValueError, LookupError, TypeError, RecursionError):
        raise StoreError(
            f"{store.url}/{LOCK} is damaged: delete it if no run is writing to this lake"
        ) from None
    return None if now is not None and until <= now else holder


async def _write(store: Store, run_id: str, now: datetime) -> None:
    until = now + timedelta(seconds=LEASE_SECONDS)
    await store.overwrite(LOCK, json.dumps({"run_id": run_id, "until": until.isoformat()}).encode())
