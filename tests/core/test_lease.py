"""Stores without conditional writes support one run at a time."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from imbrace_lake.errors import StoreUnavailable
from imbrace_lake.store.factory import ObjectMeta, Store, open_store
from imbrace_lake.store.lease import LEASE_KEY, LEASE_SECONDS, LeaseHeld, exclusive_lease

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def test_a_second_run_is_rejected_while_the_first_one_works(tmp_path: Path) -> None:
    async def both() -> None:
        async with open_store(str(tmp_path)) as store:
            async with exclusive_lease(store, "first", lambda: NOW, settle_seconds=0):
                with pytest.raises(LeaseHeld, match="run first is writing"):
                    async with exclusive_lease(store, "second", lambda: NOW, settle_seconds=0):
                        raise AssertionError("two runs at once")
            async with exclusive_lease(store, "second", lambda: NOW, settle_seconds=0):
                assert b"second" in await store.get(LEASE_KEY)

    asyncio.run(both())


def test_the_lease_of_a_dead_run_expires(tmp_path: Path) -> None:
    later = NOW + timedelta(seconds=LEASE_SECONDS + 1)

    async def after_a_death() -> None:
        async with open_store(str(tmp_path)) as store:
            async with exclusive_lease(store, "dead", lambda: NOW, settle_seconds=0):
                dead = await store.get(LEASE_KEY)
            await store.overwrite(LEASE_KEY, dead)
            async with exclusive_lease(store, "next", lambda: later, settle_seconds=0):
                assert b"next" in await store.get(LEASE_KEY)

    asyncio.run(after_a_death())


def test_a_run_that_loses_its_lease_stops_and_leaves_it_to_the_other(tmp_path: Path) -> None:
    async def lose(store: Store) -> None:
        async with exclusive_lease(store, "first", lambda: NOW, settle_seconds=0, renew_seconds=0.01):
            # More than once, because a renewal under way may overwrite it.
            while True:
                await store.overwrite(LEASE_KEY, (await store.get(LEASE_KEY)).replace(b"first", b"other"))
                await asyncio.sleep(0.05)

    async def overrun() -> bytes:
        async with open_store(str(tmp_path)) as store:
            with pytest.raises(LeaseHeld, match="run other is writing"):
                await lose(store)
            return await store.get(LEASE_KEY)

    assert b"other" in asyncio.run(overrun())


def test_of_two_runs_that_begin_together_one_goes_on(tmp_path: Path) -> None:
    entered: list[str] = []

    async def begin(name: str) -> None:
        async with (
            open_store(str(tmp_path)) as store,
            exclusive_lease(store, name, lambda: NOW, settle_seconds=0.2),
        ):
            entered.append(name)
            await asyncio.sleep(0.5)

    async def together() -> tuple[object, object]:
        return await asyncio.gather(begin("first"), begin("second"), return_exceptions=True)

    ends = asyncio.run(together())

    assert len(entered) == 1
    assert [type(end) for end in ends if end is not None] == [LeaseHeld]


@pytest.mark.parametrize(("seconds", "has_ended"), [(60, False), (90, True)])
def test_a_run_ends_only_if_its_lease_could_not_be_renewed_for_long(
    seconds: int, has_ended: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = NOW

    async def renew_in_vain() -> None:
        nonlocal now
        async with open_store(str(tmp_path)) as store:
            overwrite, failed = store.overwrite, asyncio.Event()

            async def fail(*_: object) -> ObjectMeta:
                failed.set()
                raise StoreUnavailable("away")

            async with exclusive_lease(store, "run", lambda: now, settle_seconds=0, renew_seconds=0.001):
                monkeypatch.setattr(store, "overwrite", fail)
                now = NOW + timedelta(seconds=seconds)
                await failed.wait()
                await asyncio.sleep(0.01)
                monkeypatch.setattr(store, "overwrite", overwrite)
                while b"00:03:00" not in await store.get(LEASE_KEY):  # noqa: ASYNC110 - no event
                    await asyncio.sleep(0.001)

    if has_ended:
        with pytest.raises(StoreUnavailable, match="away"):
            asyncio.run(renew_in_vain())
    else:
        asyncio.run(renew_in_vain())


def test_a_run_that_is_cancelled_while_it_begins_leaves_no_lease(tmp_path: Path) -> None:
    async def begin_and_stop() -> list[str]:
        async with open_store(str(tmp_path)) as store:

            async def begin() -> None:
                async with exclusive_lease(store, "run", lambda: NOW, settle_seconds=60.0):
                    raise AssertionError("it had to wait")

            beginning = asyncio.create_task(begin())
            while not await store.list("lock/"):  # noqa: ASYNC110 - no event
                await asyncio.sleep(0.001)
            beginning.cancel()
            await asyncio.wait([beginning])
            return [meta.key for meta in await store.list("lock/")]

    assert asyncio.run(begin_and_stop()) == []


def test_a_store_that_is_away_at_the_end_does_not_replace_the_error_of_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object) -> bytes:
        raise StoreUnavailable("away")

    async def end_badly() -> None:
        async with (
            open_store(str(tmp_path)) as store,
            exclusive_lease(store, "run", lambda: NOW, settle_seconds=0),
        ):
            monkeypatch.setattr(store, "get", fail)
            raise ValueError("the error of the run")

    with pytest.raises(ValueError, match="the error of the run"):
        asyncio.run(end_badly())
