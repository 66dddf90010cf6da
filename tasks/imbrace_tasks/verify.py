"""The tasks that compare a lake with its ledgers and with the gateway."""

from __future__ import annotations

from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from imbrace_lake.lake.lake import Lake
from imbrace_lake.printable import plural
from imbrace_lake.settings import Settings
from imbrace_lake.verify.counts import read_counted, verify_counts
from imbrace_lake.verify.findings import Verification
from imbrace_lake.verify.objects import verify_objects
from imbrace_tasks.budget import open_gateway
from imbrace_tasks.retry import attempt


@task(name="verify-objects", cache_policy=NO_CACHE, persist_result=False, retry_jitter_factor=0.3)
@attempt
async def verify_lake_objects(lake: Lake) -> State[Any]:
    """Read every object of a lake; the result is a `Verification`."""
    found = await verify_objects(lake)
    return _verification_state(
        found, f"{plural(found.parts, 'part')} and {plural(found.ledger_objects, 'object')} of the ledgers"
    )


@task(name="verify-counts", cache_policy=NO_CACHE, persist_result=False, retry_jitter_factor=0.3)
@attempt
async def verify_lake_counts(lake: Lake, settings: Settings) -> State[Any]:
    """Ask the gateway for the count of every conversation; the result is a `Verification`."""
    found = Verification()
    states = await read_counted(lake, settings.require("organization"), found)
    async with open_gateway(settings) as gateway:
        await verify_counts(gateway, states, found, side_by_side=settings.max_in_flight)
    return _verification_state(found, plural(found.counts or 0, "count"))


def _verification_state(found: Verification, what: str) -> State[Any]:
    if found.is_sound:
        return Completed(message=f"{what}, and nothing differs", data=found)
    differ = plural(len(found.differences), "differs", "differ")
    return Failed(name="Differs", message=f"{what}, and {differ}", data=found)
