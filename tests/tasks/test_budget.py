"""The shared budget on a real Prefect server: the limit, the leases, and a server that does not answer."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest

from imbrace_cli.local_server import LocalServer
from imbrace_lake.gateway.limiter import RequestLimiter
from imbrace_lake.gateway.shared_limit import Lease, LeasesUnreachable
from imbrace_lake.settings import Settings, load_settings
from tests.cli.conftest import prefect_leaks

if TYPE_CHECKING:
    from prefect.client.orchestration import PrefectClient

pytestmark = [prefect_leaks, pytest.mark.usefixtures("prefect")]
LEASE = Lease(4.0, 10.0)


@asynccontextmanager
async def connected() -> AsyncIterator[tuple[PrefectClient, str]]:
    """Return a client and the name of a limit that no other test uses."""
    from prefect.client.orchestration import get_client

    async with get_client() as client:
        yield client, f"limit-{uuid4().hex[:8]}"


def run(job: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        await job()

    asyncio.run(main())


async def make_limit(client: PrefectClient, name: str, limit: int, decay: float = 0.0) -> None:
    from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate

    await client.create_global_concurrency_limit(
        GlobalConcurrencyLimitCreate(name=name, limit=limit, slot_decay_per_second=decay)
    )


async def change_limit(client: PrefectClient, name: str, **changes: object) -> None:
    from prefect.client.schemas.actions import GlobalConcurrencyLimitUpdate

    await client.update_global_concurrency_limit(name, GlobalConcurrencyLimitUpdate.model_validate(changes))


@pytest.mark.parametrize(
    ("limit", "decay", "per_second"),
    [(10, 10.0, 10.0), (10, 4.5, 4.5), (3, 10.0, 3.0), (7, 0.0, 7.0), (0, 5.0, 0.0)],
)
def test_the_smaller_of_limit_and_decay_counts(limit: int, decay: float, per_second: float) -> None:
    async def job() -> None:
        from imbrace_tasks.budget import PrefectLeases

        async with connected() as (client, name):
            await make_limit(client, name, limit, decay)

            assert await PrefectLeases(client, name).read_limit() == per_second

    run(job)


def test_an_inactive_or_missing_limit_is_none() -> None:
    async def job() -> None:
        from imbrace_tasks.budget import PrefectLeases

        async with connected() as (client, name):
            leases = PrefectLeases(client, name)
            assert await leases.read_limit() is None
            await make_limit(client, name, 10)
            await change_limit(client, name, active=False)

            assert await leases.read_limit() is None

    run(job)


def test_processes_with_the_same_limit_read_each_others_leases() -> None:
    async def job() -> None:
        from imbrace_tasks.budget import PrefectLeases

        async with connected() as (client, name):
            one, two = PrefectLeases(client, name), PrefectLeases(client, name)
            foreign = PrefectLeases(client, f"{name}-other")
            await one.write_lease(LEASE)
            await foreign.write_lease(LEASE)
            assert await one.read_leases() == []
            assert await two.read_leases() == [LEASE]

            await one.write_lease(Lease(2.5, 3.0))
            assert await two.read_leases() == [Lease(2.5, 3.0)]

            for leases in (one, foreign, two):
                await leases.drop_lease()
            assert await two.read_leases() == []

    run(job)


def test_a_deleted_lease_is_created_again_and_a_missing_one_can_be_dropped() -> None:
    async def job() -> None:
        from imbrace_tasks.budget import PrefectLeases

        async with connected() as (client, name):
            one, two = PrefectLeases(client, name), PrefectLeases(client, name)
            await one.write_lease(LEASE)
            await delete_leases(client, name)

            await one.write_lease(LEASE)
            assert await two.read_leases() == [LEASE]

            await delete_leases(client, name)
            await one.drop_lease()

    run(job)


def test_a_lease_that_is_not_renewed_does_not_count_and_is_deleted_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def job() -> None:
        from imbrace_tasks import budget

        monkeypatch.setattr(budget, "LEASE_LIFE", timedelta(seconds=0.2))
        async with connected() as (client, name):
            dead, alive = budget.PrefectLeases(client, name), budget.PrefectLeases(client, name)
            await dead.write_lease(LEASE)
            await asyncio.sleep(0.4)
            await alive.write_lease(LEASE)

            assert await alive.read_leases() == []
            assert len(await lease_names(client, name)) == 2

            monkeypatch.setattr(budget, "LEASE_RETENTION", timedelta(seconds=0.3))
            await alive.read_leases()
            assert len(await lease_names(client, name)) == 1
            await dead.write_lease(LEASE)
            assert await alive.read_leases() == [LEASE]

    run(job)


def test_the_only_lease_does_not_count_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    async def job() -> None:
        from imbrace_tasks import budget

        monkeypatch.setattr(budget, "LEASE_LIFE", timedelta(seconds=0.2))
        async with connected() as (client, name):
            await budget.PrefectLeases(client, name).write_lease(LEASE)
            # The server states its time in whole seconds, and on a busy machine it is late.
            for _ in range(120):
                await asyncio.sleep(0.5)
                if not (left := await budget.PrefectLeases(client, name).read_leases()):
                    break

            assert left == []

    run(job)


def test_the_error_names_a_variable_that_is_not_a_lease() -> None:
    async def job() -> None:
        from prefect.client.schemas.actions import VariableCreate

        from imbrace_tasks.budget import LEASE_TAG, PrefectLeases

        async with connected() as (client, name):
            tags = [LEASE_TAG, name]
            await client.create_variable(VariableCreate(name=f"odd-{name}", value="much", tags=tags))

            with pytest.raises(LeasesUnreachable, match=f"the variable odd-{name} is not a lease: delete it"):
                await PrefectLeases(client, name).read_leases()

    run(job)


def test_an_unreachable_slow_or_failing_server_is_one_error(
    prefect: LocalServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def job() -> None:
        from prefect.client.orchestration import PrefectClient

        from imbrace_tasks import budget

        # No program listens on port 9.
        for url, words in (
            (f"{prefect.api_url}/wrong", "status 404"),
            ("http://127.0.0.1:9/api", "cannot be reached: ConnectError"),
        ):
            with pytest.raises(LeasesUnreachable, match=words):
                await budget.PrefectLeases(PrefectClient(url), "limit").read_leases()
        monkeypatch.setattr(budget, "SERVER_TIMEOUT_SECONDS", 0.0)
        with pytest.raises(LeasesUnreachable, match="did not answer in 0 s"):
            await budget.PrefectLeases(PrefectClient(prefect.api_url), "limit").read_limit()

    run(job)


def test_a_limiter_follows_the_limit_of_the_settings(caplog: pytest.LogCaptureFixture) -> None:
    async def job() -> None:
        from imbrace_tasks.budget import shared_budget

        limiter = RequestLimiter()
        async with connected() as (client, name):
            await make_limit(client, name, 6, 6.0)
            async with shared_budget(limiter, settings(request_limit=name)):
                assert limiter.per_second == 6.0
            assert await lease_names(client, name) == []
            async with shared_budget(limiter := RequestLimiter(), settings(request_limit="")):
                assert limiter.per_second is None

        assert f"the limit of all runs together, {name}, is 6 requests per second" in caplog.text

    with caplog.at_level(logging.INFO):
        run(job)


def settings(**given: object) -> Settings:
    return load_settings(lake=str(Path("lake")), **given)


async def lease_names(client: PrefectClient, limit: str) -> list[str]:
    return [each.name for each in await client.read_variables() if limit in (each.tags or ())]


async def delete_leases(client: PrefectClient, limit: str) -> None:
    for name in await lease_names(client, limit):
        await client.delete_variable_by_name(name)
