"""A scheduled run does not replace a lake that is not there any more by an empty one."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from prefect.client.schemas.actions import VariableCreate

from imbrace_flows.report import summary_markdown
from imbrace_sandbox import Sandbox, SandboxOptions
from tests.flows.offline import Offline, Server


@pytest.fixture
def box() -> Iterator[Sandbox]:
    with Sandbox(SandboxOptions(conversations=2, messages_mean=3)) as started:
        yield started


@pytest.fixture
def offline(box: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Offline:
    """Runs of a deployment, with a server that has only variables."""
    variables: dict[str, VariableCreate] = {}

    class Variables(Server):
        async def read_variable_by_name(self, name: str) -> VariableCreate | None:
            return variables.get(name)

        async def create_variable(self, variable: VariableCreate) -> None:
            assert variables.setdefault(variable.name, variable) is variable

    monkeypatch.setattr("imbrace_flows.known_lakes.get_client", Variables)
    monkeypatch.setattr("imbrace_flows.pipeline.is_deployment_run", lambda: True)
    return Offline(box, tmp_path / "lake", monkeypatch)


def test_a_run_that_makes_a_lake_states_that_and_a_later_one_fails_if_the_lake_is_not_there(
    offline: Offline, caplog: pytest.LogCaptureFixture
) -> None:
    first = offline.ingest("run_1")

    assert first.is_completed()
    assert str(first.message).endswith(f"; made a new lake at {offline.lake}")
    made = [one for one in caplog.records if one.getMessage() == f"made a new lake at {offline.lake}"]
    assert [one.levelno for one in made] == [logging.WARNING]
    assert offline.result is not None
    assert ", new: this run made it\n" in summary_markdown(offline.result.summary)

    assert "new lake" not in str(offline.ingest("run_2").message)
    shutil.rmtree(offline.lake)
    later = offline.ingest("run_3")

    assert later.is_failed()
    assert str(later.message).startswith(
        f"the lake at {offline.lake} is not there any more: mount its disk, "
    )
    assert not offline.lake.exists()
    assert offline.ingest("run_4", lake=f"{offline.lake}-2").is_completed()


def test_a_server_that_does_not_answer_ends_no_run(offline: Offline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imbrace_flows.known_lakes.get_client", Server)

    assert offline.ingest("run_1").is_completed()
