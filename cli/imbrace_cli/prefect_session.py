"""Prepare Prefect for a run in this process: a server, an environment, and only then the import."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING
from uuid import UUID

from imbrace_cli.local_server import ServerUnavailable, ensure_server, keep_alive
from imbrace_cli.prefect_environment import (
    check_network,
    configured_api_url,
    configured_login,
    prepare_client,
)

if TYPE_CHECKING:
    import httpx

SLOW_SECONDS = 1.0
VERY_SLOW_SECONDS = 30.0
SLOW_ANSWER_SECONDS = 10.0
BUSY_PAUSE_SECONDS = 0.5
BY_CTRL_C = (
    "Ended by Ctrl-C, without waiting for the accounts; start it again to export the rest, or retry-failed"
    " with this run if it was a backfill"
)
LOGIN_ADVICE = "set PREFECT_API_AUTH_STRING to its user:password, or PREFECT_API_KEY"


@dataclass(frozen=True, slots=True)
class Session:
    """The server of a run; `ui_url` is the local server's, None for a configured server."""

    api_url: str
    ui_url: str | None

    def run_url(self, flow_run_id: object) -> str | None:
        """Return the address of the page of a flow run, if it is known."""
        return self.page(f"runs/flow-run/{flow_run_id}")

    def cancel_run(self, flow_run_id: str | None) -> None:
        """Set the state of a flow run to *Cancelled*, if the server answers; None for a run without an id."""
        import httpx
        from prefect.client.orchestration import get_client
        from prefect.states import Cancelled

        if flow_run_id is None:
            return
        # Prefect's client would first send other requests, each of which a slow server answers late.
        body = {"state": {"type": "CANCELLED", "name": "Cancelled", "message": BY_CTRL_C}, "force": True}
        url = f"{self.api_url.rstrip('/')}/flow_runs/{flow_run_id}/set_state"
        login = {} if self.ui_url else configured_login()
        end = time.monotonic() + SLOW_ANSWER_SECONDS
        try:
            # Prefect's server answers 503 while its database is locked.
            while (
                answer := httpx.post(url, json=body, headers=login, timeout=SLOW_ANSWER_SECONDS)
            ).status_code == httpx.codes.SERVICE_UNAVAILABLE and time.monotonic() < end:
                time.sleep(BUSY_PAUSE_SECONDS)
        except httpx.HTTPError:
            return
        if answer.status_code == httpx.codes.FORBIDDEN:
            # The server has Prefect's protection against requests of other pages.
            with get_client(sync_client=True) as client:
                client.set_flow_run_state(UUID(flow_run_id), Cancelled(message=BY_CTRL_C), force=True)

    def page(self, path: str) -> str | None:
        """Return the address of a page of the UI, if it is known."""
        from prefect.settings import get_current_settings

        ui_url = self.ui_url or get_current_settings().ui_url
        return f"{ui_url.rstrip('/')}/{path}" if ui_url else None


@contextmanager
def prefect_session(say: Callable[[str], object]) -> Iterator[Session]:
    """Use the configured server, or else the local one, while the block runs.

    Args:
        say: Called with a sentence about each longer wait.

    Raises:
        ServerUnavailable: The local server did not start, or the server does not answer.
    """
    import httpx

    def waiting(seconds: float) -> None:
        if seconds >= VERY_SLOW_SECONDS:
            say("still starting the Prefect server: on a busy machine it can take minutes")
        elif seconds >= SLOW_SECONDS:
            say("starting a local Prefect server (kept running for the next commands)")

    configured = configured_api_url()
    try:
        if configured is not None:
            # Prefect itself would report a missing server with a traceback.
            ask_server(configured)
            prepare_client(configured)
            yield _opened(Session(configured, None), say)
            return
        server = ensure_server(on_wait=waiting)
        with keep_alive():
            prepare_client(server.api_url, server.directory)
            yield _opened(Session(server.api_url, server.ui_url), say)
    except httpx.HTTPError as exc:
        raise server_unavailable(exc, configured) from exc
    except RuntimeError as exc:
        if not str(exc).startswith("Failed to reach API"):
            raise
        # By this, Prefect's client reports a server that answers late or not at all when a run begins.
        late = exc.__cause__ if isinstance(exc.__cause__, httpx.HTTPError) else httpx.TimeoutException("")
        raise server_unavailable(late, configured) from exc


def ask_server(api_url: str, timeout_seconds: float = 10.0) -> httpx.Response:
    """Request the version of a configured server; all but the hosted service have this page.

    Raises:
        httpx.HTTPError: It does not answer, or the address is not valid or not that of an API.
        SettingsError: The certificates that the user has chosen cannot be read.
    """
    check_network()
    import httpx

    url = f"{api_url.rstrip('/')}/admin/version"
    try:
        answer = httpx.get(url, headers=configured_login(), timeout=timeout_seconds)
    except httpx.InvalidURL as exc:
        raise httpx.UnsupportedProtocol(str(exc)) from exc
    if answer.status_code == httpx.codes.NOT_FOUND and "/api" not in answer.url.path:
        answer.raise_for_status()
    return answer


def shown_url(api_url: str) -> str:
    """Return the address of a server without its credentials."""
    return re.sub(r"//[^/]*@", "//***@", api_url)


def _opened(session: Session, say: Callable[[str], object]) -> Session:
    say("loading Prefect")
    import prefect  # noqa: F401 - not before the environment is set

    return session


def server_unavailable(exc: httpx.HTTPError, configured: str | None) -> ServerUnavailable:
    """Describe why a server is unavailable; `configured` is its address, None for the local server."""
    if configured is None:
        if rejected := _rejected(exc):
            return ServerUnavailable(f"the local Prefect server {rejected}")
        kind = type(exc).__name__
        return ServerUnavailable(
            f"the local Prefect server failed ({kind}): try again; `imbrace-lake server status` shows its"
            " state and its log"
        )
    return ServerUnavailable(f"the Prefect server at {why_unavailable(exc, configured)}")


def why_unavailable(exc: httpx.HTTPError, api_url: str) -> str:
    """Describe why a configured server is unavailable, and what to do; begins with its address."""
    import httpx

    server = shown_url(api_url)
    if isinstance(exc, httpx.UnsupportedProtocol):
        return f"{server} is not an address: write PREFECT_API_URL as http://host:4200/api"
    if not isinstance(exc, httpx.HTTPStatusError):
        kind = type(exc).__name__
        return f"{server} does not answer ({kind}): start it, or unset PREFECT_API_URL to use a local one"
    if exc.response.status_code in (401, 403):
        return f"{server} asks for a login: {LOGIN_ADVICE}"
    if rejected := _rejected(exc):
        return f"{server} {rejected}"
    return (
        f"{server} answered with status {exc.response.status_code}: PREFECT_API_URL ends with /api, and the"
        " server must be as new as this Prefect"
    )


def _rejected(exc: httpx.HTTPError) -> str | None:
    """Return what follows the name of a server that found a request invalid; None for other errors."""
    import httpx

    if not isinstance(exc, httpx.HTTPStatusError):
        return None
    status = exc.response.status_code
    if status != httpx.codes.UNPROCESSABLE_ENTITY:
        return None
    # The program makes the requests, so no setting of the user is the cause.
    return (
        f"rejected {exc.request.method} {exc.request.url.path} with status {status}: if it is as new as this"
        " Prefect, this is a fault of imbrace-lake, please report it"
    )
