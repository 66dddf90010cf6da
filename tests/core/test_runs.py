"""A run from its opening to its summary, with the same facts in the summary and in the ledger."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from shutil import copyfile, rmtree
from typing import Any

import pytest

from imbrace_lake.errors import BadRequest, MalformedAnswer, NeverFound, SettingsError, StoreUnavailable
from imbrace_lake.export.chunk import export_chunk
from imbrace_lake.export.failures import MAX_LISTED
from imbrace_lake.export.progress import Progress
from imbrace_lake.export.run import RunContext, RunSummary, close_run
from imbrace_lake.lake.lake import MARKER
from imbrace_lake.lake.ledger import read_ledger
from imbrace_lake.settings import Settings
from imbrace_lake.store import lease
from imbrace_lake.store.contract import ObjectMeta
from imbrace_sandbox import Sandbox
from tests.core.conftest import StartBox
from tests.core.runs_of import items_of
from tests.gateways import open_run


@pytest.fixture
def box(start: StartBox) -> Sandbox:
    """Start a gateway with ten conversations."""
    return start(conversations=10, gateway_timeout_seconds=0.0)


def settings_for(box: Sandbox, folder: Path, /, **given: Any) -> Settings:
    values: dict[str, Any] = {
        "token": box.options.token,
        "organization": box.options.organization_id,
        "gateway": box.url,
        "lake": str(folder),
        "tries": 1,
    }
    return Settings(_env_file=None, **{**values, **given})


def run_once(
    box: Sandbox,
    lake: Path,
    phones: dict[str, int] | None = None,
    *,
    is_exporting: bool = True,
    **closing: Any,
) -> tuple[RunSummary, list[dict[str, Any]]]:
    async def main() -> tuple[RunSummary, list[dict[str, Any]]]:
        async with open_run(settings_for(box, lake), "run_1") as run:
            await run.load_prior_state("everything")
            if is_exporting:
                await export_chunk(run, "chunk", list(box.conversations))
            summary = await close_run(run, {"region": "TW"}, Counter(phones or {"resolved": 10}), **closing)
            return summary, (await read_ledger(run.lake, "runs")).to_pylist()

    return asyncio.run(main())


def test_a_complete_run_is_complete_in_the_summary_and_in_the_ledger(box: Sandbox, tmp_path: Path) -> None:
    summary, rows = run_once(box, tmp_path)

    messages = sum(box.conversations.values())
    assert (summary.status, summary.reason) == ("complete", None)
    assert summary.totals.conversations == {"complete": 10}
    assert summary.totals.messages_new == summary.totals.messages_total == messages
    assert summary.totals.requests == sum(box.stats().requests.values())
    assert summary.totals.received_bytes == box.stats().bytes_sent
    assert summary.totals.written_bytes == sum(
        path.stat().st_size for path in (tmp_path / "messages").rglob("*.parquet")
    )
    (row,) = rows
    assert (row["run_id"], row["status"]) == ("run_1", "complete")
    assert json.loads(row["totals"]) == summary.as_json()["totals"]
    assert json.loads(row["parameters"]) == {"region": "TW"}
    assert set(json.loads(row["versions"])) >= {"schema", "python", "imbrace-lake", "pyarrow"}
    assert [key.split("/")[0] for key in row["objects"]] == ["conversations", "shapes"]
    assert all((tmp_path / key).is_file() for key in row["objects"])
    assert row["started_at"] <= row["finished_at"]


@pytest.mark.parametrize("change", ["deleted", "moved", "replaced"])
def test_a_run_whose_lake_vanishes_meanwhile_is_not_complete(
    box: Sandbox, tmp_path: Path, change: str
) -> None:
    folder = tmp_path / "lake"
    run_once(box, tmp_path / "other", is_exporting=False)

    async def main() -> RunSummary:
        async with open_run(settings_for(box, folder), "run_1") as run:
            ids = sorted(box.conversations)
            await export_chunk(run, "chunk-1", ids[:5])
            if change == "deleted":
                rmtree(folder)
            elif change == "moved":
                folder.rename(tmp_path / "elsewhere")
            else:
                copyfile(tmp_path / "other" / MARKER, folder / MARKER)
            await export_chunk(run, "chunk-2", ids[5:])
            return await close_run(run, {}, Counter())

    summary = asyncio.run(main())

    assert summary.status == "failed"
    assert summary.reason is not None
    assert summary.reason.startswith(f"the lake.json of {folder} was deleted or replaced while the run wrote")


def test_a_summary_is_plain_json(box: Sandbox, tmp_path: Path) -> None:
    summary, _ = run_once(box, tmp_path)

    values = json.loads(json.dumps(summary.as_json()))

    assert values["lake"] == str(tmp_path)
    assert datetime.fromisoformat(values["started_at"]).tzinfo is not None
    unfinished = RunSummary("r", "o", "l", datetime(2026, 1, 1, tzinfo=UTC)).as_json()
    assert unfinished["finished_at"] is None
    assert unfinished["status"] == "failed"


@pytest.mark.parametrize(
    ("broken", "phones", "tolerated", "status", "reason"),
    [
        (1, {"resolved": 10}, 0.0, "partial", "1 conversation failed; the others are in the lake"),
        (2, {"resolved": 10}, 0.1, "partial", "2 conversations failed; the others are in the lake"),
        (1, {"resolved": 10}, 0.1, "complete", "1 conversation of 10 failed, which the run tolerates"),
        (
            1,
            {"resolved": 9, "error": 2},
            0.5,
            "partial",
            "1 conversation and 2 phone numbers failed; the others are",
        ),
        (0, {"resolved": 9, "error": 1}, 1.0, "partial", "1 phone number failed; the others are in the lake"),
        (0, {"resolved": 9, "none": 5, "duplicate": 3}, 0.0, "complete", None),
        (0, {"resolved": 95, "invalid": 5}, 0.0, "complete", "5 of 100 input entries could not be read"),
        (0, {"resolved": 94, "invalid": 6}, 0.0, "partial", "6 of 100 input entries could not be read"),
        (0, {"invalid": 2, "none": 1}, 0.0, "partial", "2 of 3 input entries could not be read"),
        (0, {"invalid": 1}, 0.0, "failed", "nothing in the input could be read as a phone number"),
        (
            1,
            {"resolved": 94, "invalid": 6},
            0.5,
            "partial",
            "1 conversation of 10 failed, which the run tolerates; 6",
        ),
    ],
)
def test_the_outcome_of_a_run_depends_on_what_is_missing(
    box: Sandbox,
    tmp_path: Path,
    broken: int,
    phones: dict[str, int],
    tolerated: float,
    status: str,
    reason: str | None,
) -> None:
    for conversation_id in list(box.conversations)[:broken]:
        box.break_conversation(conversation_id, "500")

    summary, rows = run_once(box, tmp_path, phones, tolerated_share=tolerated)

    assert summary.status == rows[0]["status"] == status
    assert summary.reason == rows[0]["reason"]
    assert (summary.reason or "").startswith(reason or "")
    assert summary.dead_letter_count == len(summary.dead_letters) == broken
    for letter in summary.dead_letters:
        assert letter.status == "failed"
        assert "status 500" in letter.reason
    for conversation_id in list(box.conversations)[broken:]:
        assert len(items_of(tmp_path, conversation_id)) == box.conversations[conversation_id]


def test_a_run_in_which_no_number_could_be_resolved_has_failed(box: Sandbox, tmp_path: Path) -> None:
    summary, _ = run_once(box, tmp_path, {"error": 3, "invalid": 1}, is_exporting=False)

    assert (summary.status, summary.reason) == (
        "failed",
        "3 phone numbers failed, and nothing was exported; 1 of 4 input entries could not be read",
    )


def test_a_run_that_cannot_continue_states_the_reason(box: Sandbox, tmp_path: Path) -> None:
    summary, rows = run_once(box, tmp_path, failure="the gateway does not accept the token")

    assert summary.status == rows[0]["status"] == "failed"
    assert summary.reason == "the gateway does not accept the token"
    assert summary.totals.conversations == {"complete": 10}


def test_each_dead_letter_has_its_advice(box: Sandbox, tmp_path: Path) -> None:
    refused, malformed, unknown = list(box.conversations)[:3]
    box.break_conversation(refused, "400")
    box.break_conversation(malformed, "not_json")
    box.break_conversation(unknown, "404")

    summary, _ = run_once(box, tmp_path)

    assert {letter.conversation_id: letter.advice for letter in summary.dead_letters} == {
        refused: BadRequest.advice,
        malformed: MalformedAnswer.advice,
        unknown: NeverFound.advice,
    }
    assert sorted(summary.advice()) == sorted(
        f"1 × {cause.advice}" for cause in (BadRequest, MalformedAnswer, NeverFound)
    )


@pytest.mark.slow
def test_a_summary_lists_dead_letters_up_to_a_limit_and_counts_them_all(
    start: StartBox, tmp_path: Path
) -> None:
    box = start(conversations=0)

    async def main() -> RunSummary:
        async with open_run(settings_for(box, tmp_path), "run_1") as run:
            await export_chunk(run, "chunk", [f"conv_{n}" for n in range(MAX_LISTED + 20)])
            return await close_run(run, {}, Counter())

    summary = asyncio.run(main())

    assert summary.dead_letter_count == MAX_LISTED + 20
    assert len(summary.dead_letters) == MAX_LISTED
    assert summary.dead_letters[0].status == "failed"
    assert summary.status == "failed"


@pytest.mark.parametrize("missing", ["token", "organization", "lake"])
def test_a_run_without_a_required_setting_does_not_begin(box: Sandbox, tmp_path: Path, missing: str) -> None:
    async def main() -> None:
        async with open_run(settings_for(box, tmp_path, **{missing: None}), "run_1"):
            pytest.fail("it began")

    with pytest.raises(SettingsError, match=f"IMBRACE_{missing.upper()}"):
        asyncio.run(main())
    assert list(tmp_path.iterdir()) == []


def test_settings_shape_the_run(box: Sandbox, tmp_path: Path) -> None:
    progress = Progress()

    async def main() -> RunContext:
        settings = settings_for(box, tmp_path, page_size=7, pages_ahead=3, max_in_flight=4)
        async with open_run(settings, "run_9", progress=progress) as run:
            return run

    run = asyncio.run(main())

    assert (run.run_id, run.page_size, run.pages_ahead) == ("run_9", 7, 3)
    assert run.progress is progress
    assert progress.limiter is run.gateway.limiter


def test_a_run_holds_the_lock_of_a_store_without_conditional_writes(
    box: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(
        "imbrace_lake.export.run.exclusive_lease", partial(lease.exclusive_lease, settle_seconds=0.0)
    )

    async def main() -> str:
        settings = settings_for(box, tmp_path, lake="memory://a-lake-of-its-own")
        async with open_run(settings, "run_1") as run:
            return (await run.lake.store.get(lease.LEASE_KEY)).decode()

    assert json.loads(asyncio.run(main()))["run_id"] == "run_1"
    assert "run one export at a time" in caplog.text


def test_progress_moves_from_zero_to_all(box: Sandbox, tmp_path: Path) -> None:
    progress = Progress(numbers=10, conversations=10)
    shares = [progress.share()]

    async def main() -> None:
        async with open_run(settings_for(box, tmp_path), "run_1", progress=progress) as run:
            progress.numbers_resolved = 10
            shares.append(progress.share())
            await export_chunk(run, "chunk-1", list(box.conversations)[:5])
            shares.append(progress.share())
            await export_chunk(run, "chunk-2", list(box.conversations)[5:])
            await close_run(run, {}, Counter())
            shares.append(progress.share())

    asyncio.run(main())

    assert shares == pytest.approx([0.0, 0.0, 0.5, 1.0])
    assert progress.conversations_done == 10
    assert Progress().share() == 0.0


def test_while_the_storage_fails_no_conversation_is_read_for_nothing(
    box: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    ids = sorted(box.conversations)
    looks: list[str] = []

    async def fail(*_: object) -> None:
        raise StoreUnavailable("the bucket cannot be reached")

    async def work() -> None:
        settings = settings_for(box, tmp_path, max_in_flight=1, task_retries=0)
        async with open_run(settings, "run") as run:
            with monkeypatch.context() as away:
                away.setattr(run.lake.store, "create", fail)
                away.setattr(run.lake.store, "head", fail)
                first = await export_chunk(run, "chunk", ids, is_last_try=False)
            assert (first.statuses.total(), first.is_worth_retrying) == (0, True)
            assert 0 < sum(map(bool, run.accounts.pages_requested.values())) < len(ids)
            head = run.lake.store.head

            async def look(key: str) -> ObjectMeta | None:
                looks.append(key)
                return await head(key)

            monkeypatch.setattr(run.lake.store, "head", look)
            assert (await export_chunk(run, "chunk", ids)).statuses == {"complete": len(ids)}

    asyncio.run(work())

    warnings = [one.getMessage() for one in caplog.records if "reached" in one.getMessage()]
    assert warnings == ["the bucket cannot be reached; conversations wait for another try"]
    # Once the storage answers again, only conversations that had begun by then ask it first.
    assert 0 < looks.count(MARKER) < len(ids) / 2
