"""The Prefect server of a run, and the error when there is none."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from imbrace_cli import prefect_session as sessions
from imbrace_cli.local_server import LocalServer, ServerUnavailable
from imbrace_cli.prefect_session import Session, prefect_session
from tests.cli.conftest import prefect_leaks

pytestmark = [pytest.mark.usefixtures("workdir"), prefect_leaks]


def test_a_configured_server_is_used(prefect: LocalServer) -> None:
    os.environ["PREFECT_API_URL"] = prefect.api_url
    said: list[str] = []

    with prefect_session(said.append) as session:
        assert session.api_url == prefect.api_url
        assert session.run_url("a-run") == f"{prefect.ui_url}/runs/flow-run/a-run"

    assert said == ["loading Prefect"]


def test_a_missing_configured_server_is_reported_without_its_credentials() -> None:
    os.environ["PREFECT_API_URL"] = "http://user:secret@127.0.0.1:9/api"

    with (
        pytest.raises(ServerUnavailable, match="start it, or unset PREFECT_API_URL") as caught,
        prefect_session(print),
    ):
        pass

    assert "secret" not in str(caught.value)


def test_a_lost_local_server_is_reported(prefect: LocalServer) -> None:
    import httpx

    with pytest.raises(ServerUnavailable, match="the local Prefect server failed"), prefect_session(print):
        raise httpx.ReadError("gone")


def test_a_request_that_the_local_server_rejects_is_a_fault_of_the_program(prefect: LocalServer) -> None:
    import httpx

    with pytest.raises(ServerUnavailable) as caught, prefect_session(print):
        httpx.post(f"{prefect.api_url}/automations/", json={}).raise_for_status()

    assert str(caught.value) == (
        "the local Prefect server rejected POST /api/automations/ with status 422: if it is as new as this"
        " Prefect, this is a fault of imbrace-lake, please report it"
    )


def test_a_wait_for_the_server_is_reported(prefect: LocalServer, monkeypatch: pytest.MonkeyPatch) -> None:
    def ensure(on_wait: Callable[[float], None]) -> LocalServer:
        on_wait(0.5)
        on_wait(2.0)
        return prefect

    monkeypatch.setattr(sessions, "ensure_server", ensure)
    said: list[str] = []

    with prefect_session(said.append):
        pass

    assert [sentence.partition(" ")[0] for sentence in said] == ["starting", "loading"]


def test_a_server_without_a_ui_has_no_links(prefect: LocalServer, monkeypatch: pytest.MonkeyPatch) -> None:
    class Settings:
        ui_url = None

    monkeypatch.setattr("prefect.settings.get_current_settings", Settings)

    assert Session(prefect.api_url, None).run_url("a-run") is None
