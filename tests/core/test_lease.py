"""Stores without conditional writes support one run at a time."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from imbrace_lake.store.factory import Store, open_store
from imbrace_lake.store.lease import LEASE_SECONDS, LOCK, LeaseHeld, exclusive_lease

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def test_a_second_run_is_rejected_while_the_first_one_works(tmp_path: Path) -> None:
    async def both() -> None:
        async with open_store(str(tmp_path)) as store:
            async with exclusive_lease(store, "first", lambda: NOW, settle_seconds=0):
                with pytest.raises(LeaseHeld, match="run first is writing"):
                    async with exclusive_lease(store, "second", lambda: NOW, settle_seconds=0):
                        raise AssertionError("two runs at once")
            async with exclusive_lease(store, "second", lambda: NOW, settle_seconds=0):
                assert b"second" in await store.get(LOCK)

    asyncio.run(both())


def test_the_lock_of_a_dead_run_ends_with_its_lease(tmp_path: Path) -> None:
    later = NOW + timedelta(seconds=LEASE_SECONDS + 1)

    async def after_a_death() -> None:
        async with open_store(str(tmp_path)) as store:
            async with exclusive_lease(store, "dead", lambda: NOW, settle_seconds=0):
                dead = await store.get(LOCK)
            await store.overwrite(LOCK, dead)
            async with exclusive_lease(store, "next", lambda: later, settle_seconds=0):
                assert b"next" in await store.get(LOCK)

    asyncio.run(after_a_death())


def test_a_run_that_loses_its_lock_stops_and_leaves_the_lock_to_the_other(tmp_path: Path) -> None:
    async def lose(store: Store) -> None:
        async with exclusive_lease(store, "first", lambda: NOW, settle_seconds=0, renew_seconds=0.01):
            # More than once, because a renewal under way may overwrite it.
            while True:
                await store.overwrite(LOCK, (await store.get(LOCK)).replace(b"first", b"other"))
                await asyncio.sleep(0.05)

    async def overrun() -> bytes:
        async with open_store(str(tmp_path)) as store:
            with pytest.raises(LeaseHeld, match="run other is writing"):
                await lose(store)
            return await store.get(LOCK)

    assert b"other" in asyncio.run(overrun())


def test_of_two_runs_that_begin_together_at_most_one_goes_on(tmp_path: Path) -> None:
    entered: list[str] = []

    async def begin(name: str) -> None:
        async with (
            open_store(str(tmp_path)) as store,
            exclusive_lease(store, name, lambda: NOW, settle_seconds=0.2),
        ):
            entered.append(name)
            await asyncio.sleep(0.5)

    async def together() -> None:
        await asyncio.gather(begin("first"), begin("second"), return_exceptions=True)

    asyncio.run(together())

    assert len(entered) <= 1
