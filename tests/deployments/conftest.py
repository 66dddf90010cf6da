"""One real server, real workers, one fake gateway; set up and deployed as an operator does it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest
from prefect.events.schemas.automations import AutomationCore

from imbrace_cli.local_server import LocalServer, ensure_server, keep_alive, stop_server
from imbrace_deployments.automations import automations
from imbrace_sandbox import Sandbox, SandboxOptions
from tests.deployments.database import database_of_tests, server_on
from tests.deployments.operator import Operator, Worker
from tests.prefect_homes import make_home

# Heartbeats cannot come more often than every 30 s.
SILENCE = timedelta(seconds=40)
# The shortest that Prefect allows; enough where a dead process is reported only once.
PAUSE = timedelta(seconds=10)
TOKEN = "api_5ec4e75e-c4e7-45ec-8e75-5ec4e75ec4e7"


@pytest.fixture(scope="package")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServer]:
    """Run a Prefect server in a home of the test run, on the database that the environment names."""
    if postgres := database_of_tests():
        with server_on(postgres, tmp_path_factory.mktemp("home")) as running:
            yield running
        return
    home = make_home(tmp_path_factory, "home")
    server = ensure_server(home)
    with keep_alive(home):
        yield server
        stop_server(home)


@pytest.fixture(scope="package")
def box() -> Iterator[Sandbox]:
    """A small fake gateway."""
    with Sandbox(SandboxOptions(conversations=12, sizes=(130,), token=TOKEN)) as box:
        yield box


@pytest.fixture(scope="package")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder for the lake of all deployments."""
    return tmp_path_factory.mktemp("shared") / "lake"


@pytest.fixture(scope="package")
def operator(
    server: LocalServer, box: Sandbox, lake: Path, tmp_path_factory: pytest.TempPathFactory
) -> Operator:
    """An operator with a token, before `imbrace-lake setup`."""
    settings = {
        "IMBRACE_TOKEN": TOKEN,
        "IMBRACE_ORGANIZATION": box.options.organization_id,
        "IMBRACE_GATEWAY": box.url,
        "IMBRACE_LAKE": str(lake),
    }
    return Operator(server, tmp_path_factory.mktemp("operator"), settings)


@pytest.fixture(scope="package")
def listed(box: Sandbox) -> set[str]:
    """The conversations of the numbers in the list; other tests add more to the gateway."""
    return {one for ids in box.links.values() for one in ids}


@pytest.fixture(scope="package")
def phones(box: Sandbox, listed: set[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A list of all numbers."""
    path = tmp_path_factory.mktemp("lists") / "phones.txt"
    path.write_text("\n".join(box.phones), encoding="utf-8")
    return path


@pytest.fixture(scope="package")
def deployed(operator: Operator, phones: Path) -> Operator:
    """The same, after `imbrace-lake setup`."""
    done = operator.run("imbrace-lake", "setup", "--phones", str(phones))
    assert done.returncode == 0, done.stdout + done.stderr
    # Scheduled runs would get in the way of the runs that the tests start.
    operator.set_clock("pause")
    operator.start_runs_directly("imbrace")
    return operator


@pytest.fixture
def impatient(deployed: Operator) -> Iterator[Operator]:
    """The same, with an automation that considers a silent run dead sooner."""
    with _changed(deployed, automations(SILENCE)):
        yield deployed


@pytest.fixture
def hasty(deployed: Operator) -> Iterator[Operator]:
    """The same, with automations that consider a silent run dead sooner and restart it sooner."""
    with _changed(deployed, automations(SILENCE, PAUSE)):
        yield deployed


@contextmanager
def _changed(operator: Operator, wanted: list[AutomationCore]) -> Iterator[None]:
    def put(automation: AutomationCore) -> None:
        found = {"automations": {"name": {"any_": [automation.name]}}}
        (made,) = operator.ask("POST", "/automations/filter", found)
        body = automation.model_dump(mode="json", exclude={"owner_resource"})
        operator.ask("PUT", f"/automations/{made['id']}", body)

    for automation in wanted:
        put(automation)
    yield
    for automation in automations():
        put(automation)


@pytest.fixture(scope="module")
def worker(deployed: Operator) -> Iterator[Worker]:
    """A worker with nothing configured: everything it needs is in the blocks."""
    bare = Operator(deployed.server, deployed.folder)
    with Worker(bare, "imbrace") as worker:
        yield worker


@dataclass(frozen=True, slots=True)
class Halted:
    """A list of numbers. The gateway answers for the conversations `quick`, and a run stops at `stuck`."""

    phones: Path
    quick: list[str]
    stuck: list[str]

    def release(self, box: Sandbox) -> None:
        """Let the gateway answer, and count its answers again."""
        for conversation_id in self.stuck:
            box.repair(conversation_id)
        box.reset_stats()


_numbers = itertools.count(886911500000)


@pytest.fixture
def halted(box: Sandbox, tmp_path: Path) -> Iterator[Halted]:
    """Conversations that no run has seen, half of them behind a gateway that does not answer."""
    numbers = [f"+{next(_numbers)}" for _ in range(12)]
    ids = [box.put([], phone=number) for number in numbers]
    for conversation_id in ids:
        box.append(conversation_id, 3)
    path = tmp_path / "numbers.txt"
    path.write_text("\n".join(numbers), encoding="utf-8")
    halted = Halted(path, ids[:6], ids[6:])
    for conversation_id in halted.stuck:
        box.break_conversation(conversation_id, "stall")
    yield halted
    halted.release(box)
