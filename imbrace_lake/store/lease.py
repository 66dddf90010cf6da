"""An exclusive lease: one run at a time, for stores without conditional writes.

With conditional writes exactly one of two writers wins, and runs need no lock. Without them, a run writes
a lease into the store and renews it until its end; another run that finds the lease does not begin. Two
runs that begin at the same moment can both write the lease, so each reads it again after two seconds, and
the run that finds another's lease ends.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from datetime import datetime, timedelta

from imbrace_lake.concurrency import every
from imbrace_lake.errors import StoreError, StoreUnavailable
from imbrace_lake.store.factory import Store

LEASE_KEY = "lock/run.json"
SETTLE_SECONDS = 2.0
RENEW_SECONDS = 30.0
LEASE_SECONDS = 120.0
# Two renewals in a row may fail. Later, the next one could come after the end of the lease, so the run ends.
OVERDUE_SECONDS = 75.0


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
    """Keep the lake's only lease while the block runs.

    The block is cancelled if another run takes the lease, or if it could not be renewed for too long.

    Raises:
        LeaseHeld: Another run has it.
        StoreUnavailable: The store does not answer.
    """
    await _raise_if_held(store, run_id, clock())
    renewed_at = clock()

    async def renew() -> None:
        nonlocal renewed_at
        try:
            await _raise_if_held(store, run_id, clock())
            await _write(store, run_id, clock())
        except StoreUnavailable:
            if clock() - renewed_at >= timedelta(seconds=OVERDUE_SECONDS):
                raise
        else:
            renewed_at = clock()

    try:
        await _write(store, run_id, renewed_at)
        await asyncio.sleep(settle_seconds)
        await _raise_if_held(store, run_id, clock())
        async with every(renew_seconds, renew):
            yield
    finally:
        # Otherwise the lease expires; an error here would replace that of the run.
        with suppress(StoreError):
            if await _holder(store) == run_id:
                await store.delete(LEASE_KEY)


async def _raise_if_held(store: Store, run_id: str, now: datetime) -> None:
    holder = await _holder(store, now)
    if holder not in (None, run_id):
        raise LeaseHeld(
            f"run {holder} is writing to {store.url}, which supports one run at a time because its store"
            f" has no conditional writes: wait for its end, or {LEASE_SECONDS:.0f} s if it is dead"
        )


async def _holder(store: Store, now: datetime | None = None) -> str | None:
    """Return the run that has the lease; with `now`, only if the lease has not expired."""
    try:
        body = await store.get(LEASE_KEY)
    except FileNotFoundError:
        return None
    try:
        lease = json.loads(body)
        holder, until = str(lease["run_id"]), datetime.fromisoformat(lease["until"])
    except (ValueError, LookupError, TypeError, RecursionError):
        raise StoreError(
            f"{store.url}/{LEASE_KEY} is damaged: delete it if no run is writing to this lake"
        ) from None
    return None if now is not None and until <= now else holder


async def _write(store: Store, run_id: str, now: datetime) -> None:
    until = now + timedelta(seconds=LEASE_SECONDS)
    await store.overwrite(LEASE_KEY, json.dumps({"run_id": run_id, "until": until.isoformat()}).encode())
