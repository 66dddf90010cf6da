"""The server of the compose file requires a login, and works for operators who have it."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from imbrace_sandbox import Sandbox, SandboxOptions
from tests.deployments.composed import LOGIN, ComposedServer, composed_server, service
from tests.deployments.conftest import TOKEN
from tests.deployments.operator import BIN, CERTIFICATES, until
from tests.prefect_homes import make_home

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def composed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComposedServer]:
    with composed_server(make_home(tmp_path_factory, "composed")) as server:
        yield server


def test_no_request_succeeds_without_the_login(composed: ComposedServer) -> None:
    with httpx.Client(base_url=composed.api_url, verify=CERTIFICATES) as stranger:
        for method, path in (
            ("GET", "/admin/settings"),
            ("GET", "/csrf-token?client=stranger"),
            ("POST", "/block_documents/filter"),
            ("POST", "/variables/"),
            ("POST", "/events"),
        ):
            for login in (None, ("operator", ""), ("", ""), ("operator", "wrong")):
                assert stranger.request(method, path, auth=login).status_code in (401, 403)


def test_a_change_needs_a_csrf_token_beside_the_login(composed: ComposedServer) -> None:
    user, _, password = LOGIN.partition(":")
    body = {"name": "made_without_a_token", "value": 1}

    answer = httpx.post(
        f"{composed.api_url}/variables/", json=body, auth=(user, password), verify=CERTIFICATES
    )

    assert answer.status_code == 403
    with composed.client() as client:
        assert client.post("/variables/filter", json={}).raise_for_status().json() == []


def test_an_operator_with_the_login_sets_up_and_a_worker_completes_a_run(
    composed: ComposedServer, tmp_path: Path
) -> None:
    def run(*command: str, **more: str) -> None:
        done = subprocess.run(
            [str(BIN / command[0]), *command[1:]],
            cwd=tmp_path,
            env=composed.client_environment("setup") | more,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr

    with Sandbox(SandboxOptions(conversations=3, sizes=(5,), token=TOKEN)) as box:
        phones = tmp_path / "phones.txt"
        phones.write_text("\n".join(box.links), encoding="utf-8")
        run(
            "imbrace-lake",
            "setup",
            IMBRACE_TOKEN=TOKEN,
            IMBRACE_ORGANIZATION=box.options.organization_id,
            IMBRACE_GATEWAY=box.url,
            IMBRACE_LAKE=str(tmp_path / "lake"),
        )
        worker = subprocess.Popen(
            [str(BIN / "prefect"), *service("worker")["command"][1:]],
            cwd=tmp_path,
            env=composed.client_environment("worker") | {"PREFECT_WORKER_QUERY_SECONDS": "1"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            with composed.client() as client:
                filters = {"deployments": {"name": {"any_": ["export"]}}}
                (found,) = client.post("/deployments/filter", json=filters).raise_for_status().json()
                body = {"parameters": {"params": {"phones": str(phones)}}}
                started = client.post(f"/deployments/{found['id']}/create_flow_run", json=body)
                run_id = started.raise_for_status().json()["id"]

                def ended() -> str | None:
                    state = client.get(f"/flow_runs/{run_id}").raise_for_status().json()["state"]
                    return state["name"] if state["type"] in ("COMPLETED", "FAILED", "CRASHED") else None

                assert until(ended, "the end of the run") == "Completed"
                own = {"logs": {"flow_run_id": {"any_": [run_id]}}}

                def exported() -> bool | None:
                    lines = client.post("/logs/filter", json=own).raise_for_status().json()
                    return any(line["message"].startswith("found: ") for line in lines) or None

                # Lines reach the server in bundles, the last of them after the state of the run.
                assert until(exported, "the lines of the run")
                tagged = {"filter": {"event": {"name": ["imbrace.export.completed"]}}}

                def event() -> bool | None:
                    return client.post("/events/filter", json=tagged).json()["total"] == 1 or None

                assert until(event, "the event of the run")
        finally:
            worker.send_signal(signal.SIGTERM)
            worker.wait(300)
