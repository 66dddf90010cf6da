"""Remembers in Prefect which lakes exist, so that a scheduled run does not replace one that is not there.

An unmounted disk or a deleted bucket looks like the first run of a new installation: the run would make an
empty lake, and end as completed. A variable of the server remains when runs and their reports are deleted.
"""

from __future__ import annotations

from contextlib import suppress
from hashlib import sha256

from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import VariableCreate
from prefect.exceptions import ObjectAlreadyExists

from imbrace_flows.best_effort import best_effort
from imbrace_flows.blocks import Connection
from imbrace_lake.errors import InputError
from imbrace_lake.lake.lake import has_lake
from imbrace_lake.phones.sources import display_name
from imbrace_lake.store.factory import open_store


async def check_known_lake(connection: Connection) -> bool:
    """Check before a run of a deployment that its lake exists, if an earlier run has found it or made it.

    Returns:
        Whether the server knows the lake; false if it is to be remembered once the run has opened it.

    Raises:
        InputError: The lake is not there any more.
        StoreError: The store cannot be used.
    """
    name, is_known = _variable(connection), False
    with best_effort("whether this lake is known"):
        async with get_client() as client:
            is_known = await client.read_variable_by_name(name) is not None
    if not is_known:
        return False
    async with open_store(connection.settings.require("lake"), connection.store) as store:
        if not await has_lake(store, connection.store):
            raise InputError(
                f"the lake at {store.url} is not there any more: mount its disk, correct its address or"
                f" restore it from a copy; for a new lake there, delete the variable {name} in Prefect"
            )
    return True


async def remember_lake(connection: Connection) -> None:
    """Record that the lake of a run of a deployment exists."""
    variable = VariableCreate(
        name=_variable(connection), value=display_name(connection.settings.require("lake"))
    )
    with best_effort("the name of this lake"):
        async with get_client() as client:
            # Another run may have recorded it meanwhile.
            with suppress(ObjectAlreadyExists):
                await client.create_variable(variable)


def _variable(connection: Connection) -> str:
    """Return the name of the variable of a lake; the same bucket on another server is another lake."""
    endpoint = connection.store.endpoint_url if connection.store is not None else None
    digest = sha256(f"{endpoint or ''} {connection.settings.require('lake')}".encode()).hexdigest()
    return f"imbrace_lake_{digest[:16]}"
