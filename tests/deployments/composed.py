"""The Prefect server as the compose file starts it, but for its database and its broker."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
from ruamel.yaml import YAML

from imbrace_cli.local_server import STOP_SECONDS
from tests.deployments.operator import BIN, CERTIFICATES, ROOT, patient_client, until
from tests.ports import free_port
from tests.prefect_homes import one_certificate

LOGIN = "operator:a long random password"
COMPOSE = ROOT / "deployments" / "docker" / "compose.yaml"
# PostgreSQL and Redis, for which SQLite and the server's own memory stand in.
_ELSEWHERE = ("PREFECT_SERVER_DATABASE_", "PREFECT_MESSAGING_", "PREFECT_REDIS_", "PREFECT_SERVER_DOCKET_")
_ELSEWHERE_TOO = ("PREFECT_SERVER_EVENTS_CAUSAL_ORDERING", "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE")


def service(name: str) -> dict[str, Any]:
    """Read a service of the compose file, with its variables filled in from an environment file."""
    values = {
        line.partition("=")[0]: f"value of {line.partition('=')[0]}"
        for line in (COMPOSE.parent / "example.env").read_text(encoding="utf-8").splitlines()
        if "=" in line and not line.startswith("#")
    } | {"PREFECT_AUTH_STRING": LOGIN}

    def filled(value: str) -> str:
        return re.sub(r"\$\{(\w+)(?::[-?][^}]*)?\}", lambda found: values[found[1]], value)

    found: dict[str, Any] = YAML(typ="safe").load(COMPOSE)["services"][name]
    found["environment"] = {key: filled(value) for key, value in found["environment"].items()}
    return found


@dataclass(frozen=True, slots=True)
class ComposedServer:
    """A server that asks for a login."""

    port: int
    home: Path

    @property
    def ui_url(self) -> str:
        return f"http://localhost:{self.port}"

    @property
    def api_url(self) -> str:
        return f"{self.ui_url}/api"

    @contextmanager
    def client(self) -> Iterator[httpx.Client]:
        """Open a client that is logged in and may change things, as Prefect's own is."""
        user, _, password = LOGIN.partition(":")
        name = str(uuid4())
        with patient_client(self.api_url, auth=(user, password), timeout=60) as client:
            answer = client.get("/csrf-token", params={"client": name}).raise_for_status()
            client.headers["Prefect-Csrf-Token"] = answer.json()["token"]
            client.headers["Prefect-Csrf-Client"] = name
            yield client

    def client_environment(self, service_name: str) -> dict[str, str]:
        """Return the environment of a service that talks to the server."""
        own = {key: value for key, value in service(service_name)["environment"].items() if "PREFECT" in key}
        server = {
            "PREFECT_API_URL": self.api_url,
            "PREFECT_API_SSL_CERT_FILE": one_certificate(self.home / "prefect"),
        }
        return {**_bare(self.home), **own, **server}


@contextmanager
def composed_server(home: Path) -> Iterator[ComposedServer]:
    """Run `prefect server start` with the environment of the service `server`, in a home of `make_home`."""
    port = free_port()
    with (home / "server.log").open("wb") as log:
        server = ComposedServer(port, home)
        described = service("server")
        environment = {
            key: value.replace(":4200", f":{port}")
            for key, value in described["environment"].items()
            if not key.startswith(_ELSEWHERE) and key not in _ELSEWHERE_TOO
        }
        # In the compose file another container has the services.
        program, *arguments = [word for word in described["command"] if word != "--no-services"]
        process = subprocess.Popen(
            [str(BIN / program), *arguments, "--port", str(port)],
            cwd=home,
            env={**_bare(home), **environment, "PREFECT_SERVER_API_HOST": "127.0.0.1"},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
        try:

            def healthy() -> bool | None:
                assert process.poll() is None, (home / "server.log").read_text()
                try:
                    return httpx.get(f"{server.api_url}/health", verify=CERTIFICATES).is_success or None
                except httpx.HTTPError:
                    return None

            until(healthy, "the server of the compose file")
            yield server
        finally:
            process.terminate()
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _bare(home: Path) -> dict[str, str]:
    foreign = ("PREFECT_", "AWS_", "COVERAGE_", "IMBRACE_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    return {**kept, "PREFECT_HOME": str(home / "prefect"), "PYTHONPATH": str(ROOT), "NO_COLOR": "1"}
