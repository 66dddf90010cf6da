"""A rerun reads what the run whose failures it exports was to read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from imbrace_flows.params import BackfillParams, ExportParams, ReadParams, RetryParams
from imbrace_flows.pipeline import Selection
from imbrace_lake.export import recovery
from imbrace_lake.policy import Window
from imbrace_sandbox import Sandbox, SandboxOptions
from tests.flows.offline import Offline, in_form

pytestmark = pytest.mark.slow

MESSAGES = 400
# Beyond the newest pages, which an ordinary run compares with the lake.
EDITED = (1, 50)
# Of a run whose state is not closed before it ends.
LOST = "imbrace_lake.lake.ledger.Journal.finish"


@pytest.fixture
def box() -> Iterator[Sandbox]:
    with Sandbox(SandboxOptions(conversations=1, sizes=(MESSAGES,))) as box:
        yield box


class Lake(Offline):
    """A lake whose large conversation was edited since its export, and fails until it is repaired."""

    def prepare(self) -> None:
        self.one = next(one for one, size in self.box.conversations.items() if size == MESSAGES)
        assert self.run("first").is_completed()
        self.items = self.box.truth(self.one)
        self.box.edit(self.one, [self.items[each]["_id"] for each in EDITED])
        self.box.break_conversation(self.one, "400")

    def window(self, *positions: int) -> Window:
        """A window that begins and ends with messages at these positions."""
        since, until = (datetime.fromisoformat(self.items[one]["created_at"]) for one in positions)
        return Window(since, until + timedelta(milliseconds=1))

    def backfill(self, run_id: str, window: Window | None = None, rerun: str | None = None) -> Any:
        """Backfill everything, or the failures of a run."""
        window = window or Window()
        shown = rerun and in_form(rerun)
        params = BackfillParams(everything=rerun is None, rerun=shown, since=window.since, until=window.until)
        selection = Selection(is_everything=rerun is None, rerun=rerun, window=window)
        return self._run(run_id, selection, params, rewalk_days=0.0)

    def retry(self, run_id: str, rerun: str, params: type[ReadParams] = RetryParams) -> Any:
        return self._run(run_id, Selection(rerun=rerun), params.model_validate({"rerun": in_form(rerun)}))

    def edits(self) -> list[int]:
        """The positions whose edits are in the lake."""
        lake = {row["message_id"]: row["content"] for row in self.rows("messages")}
        items = self.box.truth(self.one)
        return [each for each in EDITED if json.loads(lake[items[each]["_id"]]) == items[each]["content"]]


@pytest.fixture
def lake(box: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lake:
    lake = Lake(box, tmp_path / "lake", monkeypatch)
    lake.prepare()
    return lake


@pytest.mark.parametrize("params", [RetryParams, ExportParams])
def test_a_rerun_of_a_backfill_reads_complete_conversations(
    params: type[ReadParams], lake: Lake, caplog: pytest.LogCaptureFixture
) -> None:
    assert lake.backfill("run_1").is_failed()
    assert lake.retry("run_2", "run_1", params).is_failed()
    lake.box.repair(lake.one)

    # The rerun of a rerun.
    assert lake.retry("run_3", "run_2", params).is_completed()

    assert lake.edits() == [*EDITED]
    assert "reads complete conversations, as run run_2" in caplog.messages


def test_a_rerun_of_a_window_reads_the_window_and_states_it(lake: Lake) -> None:
    window = lake.window(40, 60)
    assert lake.backfill("run_1", window).is_failed()
    assert lake.retry("run_2", "run_1").is_failed()
    lake.box.repair(lake.one)

    ended = lake.retry("run_3", "run_2")

    assert ended.is_completed()
    assert lake.edits() == [50]
    assert str(ended.message) == (f"every message {window} was read; nothing is proven about others")


def test_a_window_with_a_failure_claims_only_the_other_conversations(lake: Lake) -> None:
    window = lake.window(40, 60)

    ended = lake.backfill("run_1", window)

    assert str(ended.message) == (
        "1 conversation failed; the others are in the lake; of the others, every message"
        f" {window} was read; nothing is proven about others"
    )


def test_a_backfill_of_the_failures_of_a_window_has_this_window_or_its_own(lake: Lake) -> None:
    assert lake.backfill("run_1", lake.window(40, 60)).is_failed()
    lake.box.repair(lake.one)

    assert lake.backfill("run_2", rerun="run_1").is_completed()
    assert lake.edits() == [50]
    assert lake.backfill("run_3", lake.window(0, 20), rerun="run_1").is_completed()
    assert lake.edits() == [1, 50]


def test_a_rerun_of_an_export_reads_new_messages_and_its_backfill_reads_everything(
    lake: Lake, caplog: pytest.LogCaptureFixture
) -> None:
    assert lake.run("run_1").is_failed()
    lake.box.repair(lake.one)

    assert lake.retry("run_2", "run_1").is_completed()
    assert lake.edits() == []
    assert "reads new messages, as run run_1" in caplog.messages
    assert lake.backfill("run_3", rerun="run_1").is_completed()
    assert lake.edits() == [*EDITED]
    assert "reads complete conversations" in caplog.messages


def test_a_rerun_of_a_backfill_that_is_to_read_new_messages_only_reads_these(lake: Lake) -> None:
    assert lake.backfill("run_1").is_failed()
    lake.box.repair(lake.one)
    params = BackfillParams(rerun=in_form("run_1"), walk_whole=False)

    assert lake._run("run_2", Selection(rerun="run_1", is_new_only=True), params).is_completed()

    assert lake.edits() == []


@pytest.mark.parametrize("is_windowed", [False, True])
def test_a_rerun_of_a_killed_backfill_reads_as_that_run(
    is_windowed: bool, lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(LOST, fail)
        lake.backfill("run_1", lake.window(40, 60) if is_windowed else None)
    lake.box.repair(lake.one)
    monkeypatch.setattr(recovery, "_is_dead", lambda *_: True)

    assert lake.retry("run_2", "run_1").is_completed()

    assert lake.edits() == ([50] if is_windowed else [*EDITED])


def test_a_rerun_of_a_run_whose_reading_is_not_recorded_reads_complete_conversations(
    lake: Lake, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        # As earlier releases.
        patch.setattr("imbrace_lake.policy.Reading.recorded", lambda _: {})
        assert lake.run("run_1").is_failed()
        assert lake.retry("run_2", "run_1").is_failed()
    lake.box.repair(lake.one)

    assert lake.retry("run_3", "run_2").is_completed()

    assert lake.edits() == [*EDITED]
    unknown = "reads complete conversations, because the lake does not record what run run_2 read"
    assert unknown in caplog.messages


@pytest.mark.parametrize("is_killed", [False, True])
def test_the_rerun_of_another_organizations_run_is_rejected_before_any_request(
    is_killed: bool, lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError("the disk is full")

    with monkeypatch.context() as patch:
        if is_killed:
            patch.setattr(LOST, fail)
        lake.backfill("run_1")
    monkeypatch.setattr(recovery, "_is_dead", lambda *_: True)
    with Sandbox(SandboxOptions(organization_id="org_beta")) as other:
        offline = Lake(other, lake.lake, monkeypatch)

        ended = offline.retry("run_2", "run_1")

        assert str(ended.message) == (
            "run run_1 is of the organization org_sandbox, and these credentials are of org_beta: choose the"
            " credentials of that organization"
        )
        assert not other.stats().requests
    assert lake.row("run_2") is None
    assert (lake.row("run_1") is None) == is_killed
