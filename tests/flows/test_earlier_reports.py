"""A run that starts more than once shows each of its reports once."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from types import SimpleNamespace, TracebackType
from uuid import UUID, uuid4

import pytest
from prefect.context import FlowRunContext

from imbrace_flows import earlier_reports
from imbrace_flows.earlier_reports import earlier_reports_replaced


@dataclass
class Server:
    """The artifacts of one run; it knows a deleted one no more."""

    shown: dict[UUID, SimpleNamespace] = field(default_factory=dict)
    requests: int = 0

    def publish(self, *keys: str) -> None:
        for key in keys:
            one = SimpleNamespace(id=uuid4(), key=key)
            self.shown[one.id] = one

    def shown_keys(self) -> list[str]:
        return [one.key for one in self.shown.values()]

    async def __aenter__(self) -> Server:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    async def read_artifacts(self, **_: object) -> list[SimpleNamespace]:
        self.requests += 1
        return list(self.shown.values())

    async def delete_artifact(self, artifact_id: UUID) -> None:
        del self.shown[artifact_id]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    """The reports of a first start that ended as Partial."""
    server = Server()
    server.publish("export-plan", "export-input", "export-progress", "export-summary", "export-failures")
    monkeypatch.setattr(earlier_reports, "get_client", lambda: server)
    return server


def begun(monkeypatch: pytest.MonkeyPatch, starts: int, *, is_deployment: bool = True) -> None:
    context = SimpleNamespace(flow_run=SimpleNamespace(id=uuid4(), run_count=starts))
    monkeypatch.setattr(earlier_reports, "is_deployment_run", lambda: is_deployment)
    monkeypatch.setattr(FlowRunContext, "get", lambda: context)


def test_a_start_that_ends_replaces_all_reports_but_the_plan(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun(monkeypatch, 1)
    before = set(server.shown)

    async def run() -> None:
        async with earlier_reports_replaced():
            assert "export-progress" not in server.shown_keys(), "of an earlier start, beside the new one"
            server.publish("export-input", "export-progress", "export-summary")

    asyncio.run(run())

    assert sorted(server.shown_keys()) == ["export-input", "export-plan", "export-progress", "export-summary"]
    assert [one.key for one in server.shown.values() if one.id in before] == ["export-plan"]


def test_a_start_that_is_suspended_or_fails_early_replaces_what_it_shows(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun(monkeypatch, 2)

    async def run() -> None:
        async with earlier_reports_replaced():
            server.publish("export-input", "export-plan")
            raise KeyError

    with pytest.raises(KeyError):
        asyncio.run(run())

    assert sorted(server.shown_keys()) == ["export-failures", "export-input", "export-plan", "export-summary"]


def test_a_run_of_the_command_line_costs_no_request(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    begun(monkeypatch, 1, is_deployment=False)

    async def run() -> None:
        async with earlier_reports_replaced():
            pass

    asyncio.run(run())

    assert server.requests == 0
