"""The gateway for commands that start no flow: within the budget of the Prefect server, if there is one."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING

from imbrace_cli.local_server import server_status
from imbrace_cli.prefect_environment import check_network, configured_api_url, prepare_client
from imbrace_cli.prefect_session import ask_server, server_unavailable

if TYPE_CHECKING:
    from imbrace_lake.gateway.factory import OpenGateway
    from imbrace_lake.settings import Settings


def shared_gateway(settings: Settings) -> OpenGateway:
    """Return a function that opens a client within the limit that all runs share.

    The limit is that of the configured server, or else of the local one, if it is running. Without a server,
    or with an empty `IMBRACE_REQUEST_LIMIT`, this process has its own limit.

    Raises:
        ServerUnavailable: The configured server does not answer, so its limit is not known.
        SettingsError: The environment names certificates or a proxy that cannot be used.
    """
    import httpx

    configured = configured_api_url()
    local = server_status() if configured is None else None
    if not settings.request_limit or (configured is None and local is None):
        return own_gateway(settings)
    check_network()
    if configured is not None:
        try:
            answer = ask_server(configured)
            # Other errors do not matter: the hosted service does not have this page.
            if answer.status_code in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
                answer.raise_for_status()
        except httpx.HTTPError as exc:
            raise server_unavailable(exc, configured) from exc
        prepare_client(configured)
    elif local is not None:
        prepare_client(local.api_url, local.directory)
    # After the environment is set, and only here, because the import of Prefect takes seconds.
    from imbrace_tasks.budget import open_gateway

    return partial(open_gateway, settings)


def own_gateway(settings: Settings) -> OpenGateway:
    """Return a function that opens a client within the limit of this process alone."""
    from imbrace_lake.gateway.factory import open_gateway

    return lambda options: open_gateway(options, settings.new_limiter(), nullcontext())
