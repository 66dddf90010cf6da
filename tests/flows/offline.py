"""Runs a reading flow without a Prefect server: tasks are plain calls, artifacts and events are recorded."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import NAMESPACE_URL, uuid4, uuid5

import pyarrow.dataset as ds
import pytest
from prefect.client.schemas.objects import State
from prefect.utilities.annotations import quote

from imbrace_flows.blocks import Connection
from imbrace_flows.observer import Observer, RunResult, current_observer, run_result
from imbrace_flows.params import (
    BackfillParams,
    ChangedParams,
    ExportParams,
    IngestParams,
    ReadParams,
    ShardParams,
)
from imbrace_flows.pipeline import Selection, read_conversations, run_flow
from imbrace_lake.export.visits import BudgetGiven
from imbrace_sandbox import Sandbox
from tests.core.test_runs import settings_for


class Server:
    """A Prefect server that knows no run."""

    async def __aenter__(self) -> Server:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        pass

    async def read_flow_run(self, run_id: object) -> SimpleNamespace:
        return SimpleNamespace(state=None)


def in_form(run_id: str) -> str:
    """Return an id that a form takes, in place of that of a run in these tests."""
    return str(uuid5(NAMESPACE_URL, run_id))


@dataclass
class Offline:
    """Runs flows, and records what they show.

    Attributes:
        box: The gateway.
        lake: The folder of the lake.
        shown: The arguments of the artifacts and of the lineage, and the resources of the events.
        events: The payloads of the events, with their names.
        observer: Of the last run.
        result: Of the last run, if it wrote its accounts.
    """

    box: Sandbox
    lake: Path
    monkeypatch: pytest.MonkeyPatch
    shown: list[object] = field(default_factory=list)
    events: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    observer: Observer = field(default_factory=Observer)
    result: RunResult | None = None

    def __post_init__(self) -> None:
        """Replace the calls of Prefect."""

        async def show(*arguments: object, **options: object) -> object:
            self.shown.append((arguments, options))
            return uuid4()

        def emit(name: str, *, payload: dict[str, Any], **resources: object) -> None:
            self.shown.append(resources)
            self.events.append((name, payload))

        patch = self.monkeypatch.setattr
        for module in ("report.acreate_markdown", "report.acreate_table"):
            patch(f"imbrace_flows.{module}_artifact", show)
        for module in (
            "input_report.acreate_markdown",
            "pipeline.acreate_progress",
            "pipeline.aupdate_progress",
        ):
            patch(f"imbrace_flows.{module}_artifact", show)
        patch("imbrace_flows.events.emit_event", emit)
        patch("imbrace_flows.pipeline.record_tables", show)
        patch("imbrace_flows.pipeline.with_retries", lambda task, settings: plainly(task))
        patch("imbrace_flows.cancellation.get_client", Server)

    def run(self, run_id: str, *, rerun: str | None = None, **given: Any) -> State[Any]:
        """Export the conversations of all numbers, or the failures of a run."""
        typed = None if rerun else [*self.box.phones]
        params = ExportParams(numbers=",".join(typed) if typed else None, rerun=rerun and in_form(rerun))
        return self._run(run_id, Selection(numbers=typed, rerun=rerun), params, **given)

    def ingest(
        self, run_id: str, *, phones: Path | None = None, minutes: float | None = None, **given: Any
    ) -> State[Any]:
        """Add new messages of everything, as the deployment does."""
        budget = BudgetGiven(given.get("budget"), minutes, is_automatic=True)
        listed = None if phones is None else str(phones)
        selection = Selection(phones=listed, is_everything=True, budget=budget)
        return self._run(run_id, selection, IngestParams(), **given)

    def backfill_everything(self, run_id: str, **given: Any) -> State[Any]:
        """Read everything again that the lake knows."""
        return self._run(run_id, Selection(is_everything=True), BackfillParams(everything=True), **given)

    def ingest_changed(self, run_id: str, ids: list[str]) -> State[Any]:
        """Add new messages of the conversations that an event names."""
        return self._run(run_id, Selection(ids=ids), ChangedParams(conversations=",".join(ids)))

    def run_shard(self, run_id: str, parent: str, key: str, **given: Any) -> State[Any]:
        """Export the conversations of a list in the lake, as a shard of a run."""
        selection = Selection(conversations=key, parent_run=parent)
        params = ShardParams(conversations=key, parent_run=parent)
        return self._run(run_id, selection, params, **given)

    def _run(self, run_id: str, selection: Selection, params: ReadParams, **given: Any) -> State[Any]:
        settings = settings_for(self.box, self.lake, request_limit="").model_copy(update=given)

        async def work(observer: Observer) -> RunResult:
            return await read_conversations(selection, params, Connection(settings), observer)

        self.observer = Observer()
        self.monkeypatch.setattr("imbrace_flows.pipeline.flow_run", SimpleNamespace(id=run_id))
        token = current_observer.set(self.observer)
        try:
            state = asyncio.run(run_flow(work))
        finally:
            current_observer.reset(token)
        self.result = run_result(state)
        return state

    def row(self, run_id: str) -> dict[str, Any] | None:
        """The row of a run in `runs`."""
        rows = [row for row in self.rows("runs") if row["run_id"] == run_id]
        assert len(rows) <= 1
        return rows[0] if rows else None

    def rows(self, ledger: str) -> list[dict[str, Any]]:
        """The rows of a ledger."""
        folder = self.lake / ledger
        return ds.dataset(folder).to_table().to_pylist() if folder.is_dir() else []

    def outcomes(self, run_id: str) -> Counter[str]:
        """The outcomes of a run, which its row, its ledger and its event agree on and which add up."""
        row = self.row(run_id)
        assert row is not None
        totals = json.loads(row["totals"])
        own = [one for one in self.rows("conversations") if one["run_id"] == run_id]
        assert len({one["conversation_id"] for one in own}) == len(own)
        outcomes = Counter(one["status"] for one in own)
        assert outcomes == totals["conversations"]
        assert outcomes.total() == totals["found"]
        for name, payload in self.events:
            if name == "imbrace.export.completed" and payload["run_id"] == run_id:
                assert payload["totals"]["conversations"] == outcomes
                assert payload["totals"]["found"] == totals["found"]
        return outcomes

    def is_complete(self) -> bool:
        """Whether the lake has exactly what the gateway has."""
        found = Counter((row["conversation_id"], row["message_id"]) for row in self.rows("messages"))
        ids = {one for each in self.box.links.values() for one in each}
        return found == Counter((one, item["_id"]) for one in ids for item in self.box.truth(one))

    def everything_told(self) -> str:
        """Everything that has left the run, except messages, phone numbers in `phones` and log lines."""
        ledgers = [self.rows(one) for one in ("runs", "conversations", "shapes")]
        result = self.result and (self.result.summary.as_json(), self.result.problems)
        return repr((self.shown, self.events, ledgers, result))


def plainly(task: Any) -> Callable[..., Awaitable[State[Any]]]:
    """Return the function of a task, called with the arguments of the task."""

    async def call(*arguments: Any, return_state: bool) -> State[Any]:
        assert return_state
        state: State[Any] = await task.fn(
            *(one.unwrap() if isinstance(one, quote) else one for one in arguments)
        )
        return state

    return call
