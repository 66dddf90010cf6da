"""Exports of conversations: completely or not at all, each message once, without needless writes."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from imbrace_lake.errors import (
    ConversationNotFound,
    ObjectExists,
    OrganizationMismatch,
    RepeatedMessages,
    StoreUnavailable,
)
from imbrace_lake.export.chunk import ChunkResult, choose_chunk_size, export_chunk
from imbrace_lake.export.conversation import LookBack, PageCollector, export_conversation
from imbrace_lake.export.prior import PriorState
from imbrace_lake.export.recovery import ChunkJournal
from imbrace_lake.export.run import RunContext
from imbrace_lake.export.visits import RunBudget
from imbrace_lake.gateway.client import GatewayClient
from imbrace_lake.gateway.id_set import IdSet
from imbrace_lake.gateway.models import Page
from imbrace_lake.gateway.walk import REACHED_KNOWN
from imbrace_lake.lake import publish
from imbrace_lake.lake.lake import Lake, Part, Partitions
from imbrace_lake.lake.ledger import read_ledger
from imbrace_lake.lake.ledger_schema import NEVER_FOUND, ConversationEntry
from imbrace_lake.lake.memory import MemoryBudget, Reservation
from imbrace_lake.lake.rows import SortBuffer
from imbrace_lake.lake.schema import SCHEMA, Origin, rows_of_page
from imbrace_sandbox import Sandbox
from tests.core.conftest import StartBox, client_of
from tests.core.lake_runs import Bench, settings_for
from tests.core.runs_of import close, exporting, items_of, objects_in, open_export, parts_of
from tests.gateways import open_run


@pytest.fixture
def box(start: StartBox) -> Sandbox:
    """Serve seven conversations: an empty one, one longer than a page, and short ones."""
    return start(conversations=4, sizes=(0, 1, 250), gateway_timeout_seconds=0.0)


def export_all(box: Sandbox, lake: Path, run_id: str = "run_1", *, is_last_try: bool = True) -> ChunkResult:
    ids = list(box.conversations)
    return exporting(box, lake, lambda run: export_chunk(run, "chunk", ids, is_last_try=is_last_try), run_id)


def past_of(run: RunContext, conversation_id: str) -> PriorState:
    return run.prior.of_each(run.organization_id, [conversation_id]).get(conversation_id, PriorState())


def by_id(items: list[dict[str, object]]) -> dict[object, dict[str, object]]:
    return {item["_id"]: item for item in items}


def assert_holds_all(box: Sandbox, lake: Path) -> None:
    for conversation_id in box.conversations:
        items = items_of(lake, conversation_id)
        assert len(by_id(items)) == len(items)
        assert by_id(items) == by_id(box.truth(conversation_id))


# -- the first export and the next ----------------------------------------------------------------


def test_a_first_export_writes_each_conversation_as_one_part(box: Sandbox, tmp_path: Path) -> None:
    result = export_all(box, tmp_path)

    assert result.statuses == {"complete": 7}
    assert result.dead_letters == ()
    assert_holds_all(box, tmp_path)
    for conversation_id, size in box.conversations.items():
        names = [path.name for path in parts_of(tmp_path, conversation_id)]
        assert names == (["part-00000.parquet"] if size else [])
        for path in parts_of(tmp_path, conversation_id):
            rows = pq.read_table(path)
            assert rows.schema.remove_metadata() == SCHEMA
            order = [(row["created_at"], row["message_id"]) for row in rows.to_pylist()]
            assert order == sorted(order)
            assert pq.read_metadata(path).metadata[b"conversation_id"] == conversation_id.encode()


def test_an_unchanged_conversation_costs_one_request_and_no_object(box: Sandbox, tmp_path: Path) -> None:
    export_all(box, tmp_path)
    before = objects_in(tmp_path)

    for run_id in ("run_2", "run_3"):
        box.reset_stats()
        result = export_all(box, tmp_path, run_id)

        assert result.statuses == {"unchanged": 7}
        assert box.stats().pages == dict.fromkeys(box.conversations, 1)
        assert objects_in(tmp_path) == before


def test_a_grown_conversation_adds_a_part_with_only_the_new_messages(box: Sandbox, tmp_path: Path) -> None:
    export_all(box, tmp_path)
    before = objects_in(tmp_path)
    grown = list(box.conversations)[2]
    new = box.append(grown, 3)

    result = export_all(box, tmp_path, "run_2")

    assert result.statuses == {"unchanged": 6, "complete": 1}
    assert [path.name for path in parts_of(tmp_path, grown)] == ["part-00000.parquet", "part-00001.parquet"]
    assert pq.read_table(parts_of(tmp_path, grown)[1]).column("message_id").to_pylist() == new
    assert_holds_all(box, tmp_path)
    assert objects_in(tmp_path).items() > before.items()


def test_growth_is_found_in_a_lake_without_its_ledgers(box: Sandbox, tmp_path: Path) -> None:
    export_all(box, tmp_path)
    for path in (tmp_path / "conversations").iterdir():
        path.unlink()
    before = objects_in(tmp_path)
    box.append(list(box.conversations)[2], 2)

    result = export_all(box, tmp_path, "run_2")

    assert result.statuses == {"complete": 7}
    assert len(objects_in(tmp_path)) == len(before) + 1
    assert_holds_all(box, tmp_path)


def test_a_part_that_is_missing_in_the_lake_is_exported_again(box: Sandbox, tmp_path: Path) -> None:
    export_all(box, tmp_path)
    lost = list(box.conversations)[2]
    for path in parts_of(tmp_path, lost):
        path.unlink()

    export_all(box, tmp_path, "run_2")

    assert_holds_all(box, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 1])
def test_a_missing_part_of_two_is_exported_again(box: Sandbox, tmp_path: Path, number: int) -> None:
    lost = list(box.conversations)[2]
    export_all(box, tmp_path)
    box.append(lost, 4)
    export_all(box, tmp_path, "run_2")
    parts_of(tmp_path, lost)[number].unlink()

    result = export_all(box, tmp_path, "run_3")

    assert result.statuses == {"unchanged": 6, "complete": 1}
    assert_holds_all(box, tmp_path)


def test_a_part_that_was_replaced_by_a_shorter_one_is_exported_again(box: Sandbox, tmp_path: Path) -> None:
    changed = list(box.conversations)[2]
    export_all(box, tmp_path)
    (path,) = parts_of(tmp_path, changed)
    pq.write_table(pq.read_table(path).slice(1), path)

    result = export_all(box, tmp_path, "run_2")

    assert result.statuses == {"unchanged": 6, "complete": 1}
    assert_holds_all(box, tmp_path)


def test_the_ledger_has_the_proof_and_hashes_that_match_the_bytes(box: Sandbox, tmp_path: Path) -> None:
    export_all(box, tmp_path)
    box.append(list(box.conversations)[2], 1)
    export_all(box, tmp_path, "run_2")

    async def rows(run: RunContext) -> list[dict[str, object]]:
        ledger = await read_ledger(run.lake, "conversations")
        return [row for row in ledger.to_pylist() if row["run_id"] == "run_2"]

    for row in exporting(box, tmp_path, rows, "run_3"):
        conversation_id = str(row["conversation_id"])
        truth = box.truth(conversation_id)
        assert row["server_count"] == row["distinct_messages"] == len(truth)
        assert row["newest_message_id"] == (truth[-1]["_id"] if truth else None)
        assert row["is_still"] is True
        if truth:
            first = datetime.fromisoformat(truth[0]["created_at"].replace("Z", "+00:00"))
            assert row["first_message_at"] == row["proven_from"] == first
        parts = row["parts"]
        assert isinstance(parts, list)
        assert [tmp_path / part["key"] for part in parts] == parts_of(tmp_path, conversation_id)
        for part in parts:
            body = (tmp_path / part["key"]).read_bytes()
            assert part["sha256"] == sha256(body).hexdigest()
            assert part["size_bytes"] == len(body)
            assert part["rows"] == pq.read_metadata(tmp_path / part["key"]).num_rows


@pytest.mark.slow
def test_the_content_hash_includes_a_part_that_is_newer_than_the_last_proof(
    box: Sandbox, tmp_path: Path
) -> None:
    bench, chosen = Bench(box, str(tmp_path)), [list(box.conversations)[2]]
    bench.run(chosen)
    known = {*(tmp_path / "conversations").iterdir()}
    box.append(chosen[0], 2)
    bench.run(chosen)
    for path in {*(tmp_path / "conversations").iterdir()} - known:
        path.unlink()
    box.append(chosen[0], 2)

    bench.run(chosen)

    assert bench.ledger("conversations")[-1]["proof_method"] == REACHED_KNOWN
    assert len(parts_of(tmp_path, chosen[0])) == 3
    assert bench.wrong_hashes() == []


@pytest.mark.slow
@pytest.mark.parametrize("rewalk_days", [0, 30])
def test_the_content_hash_includes_messages_that_another_run_added_meanwhile(
    box: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rewalk_days: int
) -> None:
    chosen = [list(box.conversations)[2]]
    bench = Bench(box, str(tmp_path), settings={"rewalk_days": rewalk_days})
    bench.run(chosen)
    other = Bench(box, str(tmp_path), now=bench.now - timedelta(hours=1))
    add_part, rivals = Lake.add_part, iter([other])

    async def come_second(*args: Any) -> Part:
        for rival in rivals:
            box.append(chosen[0])
            await asyncio.to_thread(rival.run, chosen)
        return await add_part(*args)

    monkeypatch.setattr(Lake, "add_part", come_second)
    box.append(chosen[0], 2)

    bench.run(chosen)

    assert len(parts_of(tmp_path, chosen[0])) == 2
    assert bench.wrong_hashes() == []


@pytest.mark.parametrize("count_matches", [True, False])
def test_a_page_whose_counts_do_not_match_does_not_end_a_walk(tmp_path: Path, count_matches: bool) -> None:
    now, current = datetime(2026, 1, 1, tzinfo=UTC), IdSet()
    current.add(["m1"])
    page = Page(0, [{"_id": "m1"}], ["m1"], total_count=1, has_more=False, count_matches=count_matches)
    with Reservation(MemoryBudget(), lambda: tmp_path) as reservation:
        collector = PageCollector(SortBuffer(reservation), LookBack(now, 0), current)
        collector.add(page, rows_of_page(page, Origin("org_1", "c1", "run_1", now)))

    assert collector.reached_current(page) == count_matches


@pytest.mark.parametrize("count_at_head", [2, 3])
def test_counts_agree_only_if_the_head_states_the_same_count(tmp_path: Path, count_at_head: int) -> None:
    now, current = datetime(2026, 1, 1, tzinfo=UTC), IdSet()
    current.add(["m1"])
    head = Page(0, [{"_id": "m2"}], ["m2"], count_at_head, has_more=True, count_matches=True)
    below = Page(1, [{"_id": "m1"}], ["m1"], total_count=2, has_more=False, count_matches=True)
    with Reservation(MemoryBudget(), lambda: tmp_path) as reservation:
        collector = PageCollector(SortBuffer(reservation), LookBack(now, 0), current)
        for page in (head, below):
            collector.add(page, rows_of_page(page, Origin("org_1", "c1", "run_1", now)))

    assert collector.counts_agree(below) == (count_at_head == 2)


def test_a_conversation_with_a_deletion_below_the_head_is_never_unchanged(
    box: Sandbox, tmp_path: Path
) -> None:
    export_all(box, tmp_path)
    conversation_id = list(box.conversations)[2]
    box.delete(conversation_id, [box.truth(conversation_id)[5]["_id"]])

    result = export_all(box, tmp_path, "run_2")

    assert result.statuses == {"unchanged": 6, "complete": 1}


@pytest.mark.parametrize("change", ["edit", "delete", "append"])
def test_a_conversation_with_a_change_at_the_head_is_never_unchanged(
    box: Sandbox, tmp_path: Path, change: str
) -> None:
    export_all(box, tmp_path)
    conversation_id = list(box.conversations)[2]
    newest = box.truth(conversation_id)[-1]["_id"]
    if change == "append":
        box.append(conversation_id)
    else:
        getattr(box, change)(conversation_id, [newest])

    result = export_all(box, tmp_path, "run_2")

    assert result.statuses == {"unchanged": 6, "complete": 1}


# -- failures ------------------------------------------------------------------------------------


def test_a_conversation_that_fails_stops_no_other(box: Sandbox, tmp_path: Path) -> None:
    broken = list(box.conversations)[2]
    box.break_conversation(broken, "500")

    result = export_all(box, tmp_path)

    assert result.statuses == {"complete": 6, "failed": 1}
    assert [(dead.conversation_id, dead.status, dead.is_dead_letter) for dead in result.dead_letters] == [
        (broken, "failed", True)
    ]
    assert "status 500" in (result.dead_letters[0].reason or "")
    assert result.is_worth_retrying
    assert parts_of(tmp_path, broken) == []

    box.repair(broken)
    assert export_all(box, tmp_path, "run_2").statuses == {"complete": 1, "unchanged": 6}
    assert_holds_all(box, tmp_path)


def test_a_chunk_in_which_nothing_succeeds_reports_each_conversation(box: Sandbox, tmp_path: Path) -> None:
    ids = list(box.conversations)[2:4]
    for conversation_id in ids:
        box.break_conversation(conversation_id, "400")

    result = exporting(box, tmp_path, lambda run: export_chunk(run, "chunk", ids))

    assert result.statuses == {"failed": 2}
    assert objects_in(tmp_path) == {}


def test_a_shard_refers_to_the_report_of_its_run(
    box: Sandbox, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("imbrace_lake.export.chunk.MAX_WARNED", 0)
    first = next(iter(box.conversations))
    box.break_conversation(first, "400")

    async def main() -> None:
        async with open_run(settings_for(box, str(tmp_path)), "run_2", parent_run_id="run_1") as run:
            await export_chunk(run, "chunk", [first])

    asyncio.run(main())

    assert "the report of the failures on the page of run run_1 groups all by cause" in caplog.text


@pytest.mark.parametrize("failures", [2, 3, 4])
def test_failures_are_logged_with_their_request_ids_up_to_a_limit(
    failures: int,
    box: Sandbox,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("imbrace_lake.export.chunk.MAX_WARNED", 2)
    for conversation_id in list(box.conversations)[:failures]:
        box.break_conversation(conversation_id, "400")

    with caplog.at_level(logging.INFO, "imbrace_lake"):
        result = export_all(box, tmp_path)

    warned = [one.getMessage() for one in caplog.records if one.levelno == logging.WARNING]
    reported = [one.getMessage() for one in caplog.records if one.levelno == logging.INFO]
    assert len(result.dead_letters) == failures
    assert all("request id " in line and "request id -" not in line for line in warned[:2])
    # Only if some are left out.
    assert ["further failed conversations are not logged" in line for line in warned[2:]] == [True] * (
        failures > 2
    )
    assert reported == []


def test_failures_count_once_if_they_cannot_be_recorded_at_first(
    box: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = list(box.conversations)
    box.break_conversation(ids[0], "400")

    async def job(run: RunContext) -> tuple[int, int]:
        with monkeypatch.context() as patch:
            patch.setattr(run.journal, "note_entries", raising(StoreUnavailable("away")))
            for _ in range(2):
                with pytest.raises(StoreUnavailable):
                    await export_chunk(run, "chunk", ids)
        await export_chunk(run, "chunk", ids)
        return run.progress.conversations_done, run.failures.dead_letter_count

    assert exporting(box, tmp_path, job) == (len(ids), 1)


def test_a_cancelled_chunk_stays_cancelled_if_its_outcomes_cannot_be_recorded(
    box: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    ids = list(box.conversations)
    box.break_conversation(ids[2], "stall")

    async def job(run: RunContext) -> bool:
        chunk = asyncio.create_task(export_chunk(run, "chunk", ids, is_last_try=False))
        while run.progress.conversations_done < len(ids) - 1:  # noqa: ASYNC110 - no event
            await asyncio.sleep(0.01)
        with monkeypatch.context() as patch:
            patch.setattr(run.journal, "note_lines", raising(StoreUnavailable("away")))
            chunk.cancel()
            await asyncio.wait([chunk])
        return chunk.cancelled()

    assert exporting(box, tmp_path, job)
    assert "outcomes of chunk=chunk are not in the journal: away" in caplog.text


def raising(error: Exception) -> Callable[..., Awaitable[None]]:
    async def fail(*_: object) -> None:
        raise error

    return fail


def test_a_published_conversation_that_cannot_be_recorded_at_once_has_not_failed(
    box: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add, refused = ChunkJournal.add, iter([True])

    async def fail_once(self: ChunkJournal, entry: ConversationEntry) -> None:
        await add(self, entry)
        if next(refused, False):
            raise StoreUnavailable("the store is unavailable")

    monkeypatch.setattr(ChunkJournal, "add", fail_once)

    result = export_all(box, tmp_path)

    assert (result.statuses, result.dead_letters) == ({"complete": 7}, ())


def test_a_conversation_that_cannot_be_proven_publishes_nothing(box: Sandbox, tmp_path: Path) -> None:
    ids = list(box.conversations)
    box.put([{"_id": "same"}, {"_id": "other"}, {"_id": "same"}], conversation_id="conv_odd")

    async def job(run: RunContext) -> ChunkResult:
        with pytest.raises(RepeatedMessages, match="1 of the 3 positions"):
            await export_conversation(run, "conv_odd", PriorState())
        return await export_chunk(run, "chunk", [*ids, "conv_odd"], is_last_try=False)

    result = exporting(box, tmp_path, job)

    assert result.statuses == {"complete": 7, "incomplete": 1}
    assert not result.is_worth_retrying
    assert result.dead_letters[0].reason == (
        "conversation conv_odd is not proven complete: 1 of the 3 positions in the gateway's list repeat a"
        " message, the same in two readings, so its count cannot match the 2 different messages; export the"
        " list as it is with --accept-repeats (in the form of export: *Accept repeated messages*)"
    )
    assert parts_of(tmp_path, "conv_odd") == []


@pytest.mark.parametrize("field", ["conversation_id", "organization_id"])
def test_an_answer_about_another_conversation_or_organization_fails_only_that_conversation(
    box: Sandbox, tmp_path: Path, field: str
) -> None:
    whole = list(box.conversations)
    items = box.truth(whole[2])
    own = {"conversation_id": "conv_own", "organization_id": "org_sandbox"}
    foreign = [{**item, **own, field: "another"} for item in items]
    single = [{**item, **own} for item in items[:-1]] + foreign[-1:]
    box.put(foreign, conversation_id="conv_foreign")
    kept = box.put(single, conversation_id="conv_own")

    result = exporting(box, tmp_path, lambda run: export_chunk(run, "chunk", [*whole, kept, "conv_foreign"]))

    assert result.statuses == {"complete": len(whole) + 1, "failed": 1}
    (dead,) = result.dead_letters
    assert (dead.conversation_id, dead.status) == ("conv_foreign", "failed")
    assert "name another" in str(dead.reason)
    assert parts_of(tmp_path, "conv_foreign") == []
    assert by_id(items_of(tmp_path, kept)) == by_id(single)


def test_a_conversation_that_is_not_found_is_a_dead_letter_only_if_the_lake_never_had_it(
    box: Sandbox, tmp_path: Path
) -> None:
    states, new = list(box.conversations)[2:4]
    exporting(box, tmp_path, lambda run: export_chunk(run, "chunk", [states]))
    had = objects_in(tmp_path)
    box.vanish(states)
    box.vanish(new)

    async def export_linked(run: RunContext) -> ChunkResult:
        run.prior.unproven = [new]
        return await export_chunk(run, "chunk", [states, new])

    first = exporting(box, tmp_path, export_linked, "run_2")
    second = exporting(box, tmp_path, lambda run: export_chunk(run, "chunk", [states, new]), "run_3")

    assert first.statuses == second.statuses == {"gone": 2}
    assert [dead.conversation_id for dead in first.dead_letters] == [new]
    assert second.dead_letters == ()
    assert not first.is_worth_retrying
    assert objects_in(tmp_path) == had

    box.restore(states)
    box.append(states)
    back = exporting(box, tmp_path, lambda run: export_chunk(run, "chunk", [states]), "run_4")
    assert back.statuses == {"complete": 1}
    assert by_id(items_of(tmp_path, states)) == by_id(box.truth(states))


def test_an_id_that_neither_the_gateway_nor_the_lake_has_ever_had_fails_in_each_run(
    box: Sandbox, tmp_path: Path
) -> None:
    for number in range(3):
        result = exporting(box, tmp_path, lambda run: export_chunk(run, "chunk", ["nope"]), f"run_{number}")
        (dead,) = result.dead_letters
        assert (dead.status, dead.proof_method) == ("failed", NEVER_FOUND)
        assert str(dead.reason).startswith("neither the gateway nor the lake has this conversation (GET")

    async def recorded(run: RunContext) -> list[str]:
        return run.prior.recorded_ids()

    assert exporting(box, tmp_path, recorded, "run_3") == []


def test_a_conversation_that_vanishes_while_it_is_read_is_gone(box: Sandbox, tmp_path: Path) -> None:
    conversation_id = list(box.conversations)[2]

    def vanish(each: str, number: int) -> None:
        if number == 2:
            box.vanish(each)

    box.before_page(vanish)

    entry = exporting(
        box, tmp_path, lambda run: export_conversation(run, conversation_id, past_of(run, conversation_id))
    )

    assert entry.status == "gone"
    assert parts_of(tmp_path, conversation_id) == []


def test_a_conversation_that_is_there_is_not_gone_because_a_page_of_it_is_missing(
    box: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    conversation_id = max(box.conversations, key=lambda one: len(box.truth(one)))
    get_page = GatewayClient.get_page

    async def lose_later_pages(client: GatewayClient, name: str, *, skip: int = 0, limit: int = 100) -> Page:
        if skip:
            raise ConversationNotFound("/conversations/…/messages", "not found", "-")
        return await get_page(client, name, skip=0, limit=min(limit, 10))

    monkeypatch.setattr(GatewayClient, "get_page", lose_later_pages)

    async def twice(run: RunContext) -> list[ChunkResult]:
        return [await export_chunk(run, name, [conversation_id]) for name in ("first", "second")]

    for result in exporting(box, tmp_path, twice):
        assert result.statuses == {"failed": 1}
        assert "answers 404 for one of its pages" in (result.dead_letters[0].reason or "")
    assert parts_of(tmp_path, conversation_id) == []


def test_an_error_of_all_conversations_stops_the_chunk_and_keeps_its_results(
    box: Sandbox, tmp_path: Path
) -> None:
    ids = list(box.conversations)

    def fail_all(each: str, number: int) -> None:
        if each == ids[2]:
            box.set_options(rates={"403:other": 1.0})

    async def job(run: RunContext) -> tuple[list[str], int]:
        run.slots = asyncio.Semaphore(1)
        box.before_page(fail_all)
        with pytest.raises(OrganizationMismatch):
            await export_chunk(run, "chunk", ids)
        rows = await read_ledger(run.lake, "conversations")
        return rows.column("conversation_id").to_pylist(), run.gateway.traffic.requests

    noted, requests = exporting(box, tmp_path, job)

    assert noted == ids[:2]
    assert requests <= 8
    assert [path.parent.name for path in map(Path, objects_in(tmp_path))] == [f"conv={ids[1]}"]


def test_a_retried_chunk_exports_only_the_remaining_conversations(box: Sandbox, tmp_path: Path) -> None:
    ids = list(box.conversations)
    box.break_conversation(ids[2], "502")

    async def job(run: RunContext) -> tuple[ChunkResult, ChunkResult, Counter[str], int]:
        first = await export_chunk(run, "chunk", ids, is_last_try=False)
        box.repair(ids[2])
        box.reset_stats()
        second = await export_chunk(run, "chunk", ids, is_last_try=False)
        return first, second, box.stats().pages, run.progress.conversations_done

    first, second, pages, done = exporting(box, tmp_path, job)

    assert first.is_worth_retrying
    assert first.statuses == {"complete": 6}
    assert first.dead_letters == ()
    assert second.statuses == {"complete": 7}
    assert set(pages) == {ids[2]}
    assert done == 7
    assert_holds_all(box, tmp_path)


@pytest.mark.parametrize("is_over_at_once", [True, False])
def test_no_conversation_is_tried_again_after_the_time_of_the_run(
    box: Sandbox, tmp_path: Path, is_over_at_once: bool
) -> None:
    ids = list(box.conversations)
    box.break_conversation(ids[2], "502")

    async def job(run: RunContext) -> tuple[ChunkResult, int]:
        run.budget = RunBudget(run.gateway.traffic)
        if is_over_at_once:
            box.break_conversation(ids[3], "stall")
            run.budget.until = time.monotonic() + 0.5
        result = await export_chunk(run, "chunk", ids, is_last_try=False)
        if not is_over_at_once:
            assert result.is_worth_retrying
            run.budget.until = 0.0
            result = await export_chunk(run, "chunk", ids, is_last_try=False)
        return result, run.budget.released

    result, released = exporting(box, tmp_path, job)

    assert not result.is_worth_retrying
    assert [dead.conversation_id for dead in result.dead_letters] == [ids[2]]
    assert (result.statuses["complete"], released) == ((5, 1) if is_over_at_once else (6, 0))


def test_a_permanent_error_is_reported_at_the_first_try(box: Sandbox, tmp_path: Path) -> None:
    ids = list(box.conversations)
    box.break_conversation(ids[2], "400")

    result = export_all(box, tmp_path, is_last_try=False)

    assert not result.is_worth_retrying
    assert result.statuses == {"complete": 6, "failed": 1}
    assert [dead.conversation_id for dead in result.dead_letters] == [ids[2]]


def test_a_cancelled_chunk_has_recorded_what_it_published(box: Sandbox, tmp_path: Path) -> None:
    ids = list(box.conversations)
    box.break_conversation(ids[2], "stall")

    async def job(run: RunContext) -> list[str]:
        task = asyncio.create_task(export_chunk(run, "chunk", ids))
        while run.progress.conversations_done < 6:  # noqa: ASYNC110 - progress has no event
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        rows = await read_ledger(run.lake, "conversations")
        return rows.column("conversation_id").to_pylist()  # type: ignore[no-any-return]

    assert sorted(exporting(box, tmp_path, job)) == sorted({*ids} - {ids[2]})


@pytest.mark.slow
@pytest.mark.usefixtures("quick_gate")
def test_temporary_faults_of_every_kind_do_not_change_the_result(start: StartBox, tmp_path: Path) -> None:
    box = start(
        conversations=40,
        sizes=(700,),
        mixed=0.1,
        gateway_timeout_seconds=0.0,
        stall_seconds=0.01,
        page_cap=20,
    )

    result = exporting(
        box,
        tmp_path,
        lambda run: export_chunk(run, "chunk", list(box.conversations)),
        gateway=client_of(box, tries=9),
    )

    assert result.statuses == {"complete": 41}
    assert len(box.stats().faults) >= 10
    assert_holds_all(box, tmp_path)


def test_an_export_of_a_list_that_changes_meanwhile_has_every_message_that_stays(
    start: StartBox, tmp_path: Path
) -> None:
    box = start(
        conversations=6,
        sizes=(300, 300),
        page_cap=10,
        churn_inserts=0.1,
        churn_deletes=0.1,
        churn_edits=0.1,
        churn_moves=60,
    )
    before = {each: {item["_id"] for item in box.truth(each)} for each in box.conversations}

    result = exporting(box, tmp_path, lambda run: export_chunk(run, "chunk", list(box.conversations)))

    assert set(result.statuses) <= {"complete", "incomplete"}
    assert result.statuses["complete"] >= 7
    for conversation_id in box.conversations:
        items = items_of(tmp_path, conversation_id)
        if items:
            stayed = before[conversation_id] & {item["_id"] for item in box.truth(conversation_id)}
            assert stayed <= by_id(items).keys()
            assert len(by_id(items)) == len(items)


# -- concurrent runs ------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("round_", range(2))
def test_concurrent_runs_over_growing_conversations_export_every_message_once(
    start: StartBox, tmp_path: Path, round_: int
) -> None:
    box = start(conversations=7, sizes=(120,), seed=round_)
    ids = list(box.conversations)

    async def one(run_id: str) -> ChunkResult:
        async with open_export(box, tmp_path, run_id) as run:
            result = await export_chunk(run, "chunk", ids)
            await close(run)
            return result

    async def race() -> None:
        for generation in range(2):
            await asyncio.gather(*(one(f"run_{generation}_{number}") for number in range(3)))
            for conversation_id in ids:
                box.append(conversation_id, 2)

    box.before_page(lambda each, number: number % 3 == 0 and number < 9 and box.append(each))
    asyncio.run(race())
    box.before_page(None)
    export_all(box, tmp_path, "last")

    assert_holds_all(box, tmp_path)
    assert export_all(box, tmp_path, "after").statuses == {"unchanged": 8}


def test_a_run_that_did_not_see_the_part_of_another_adds_only_what_is_missing(
    box: Sandbox, tmp_path: Path
) -> None:
    conversation_id = list(box.conversations)[2]
    exporting(box, tmp_path, lambda run: export_chunk(run, "chunk", [conversation_id]))
    new = box.append(conversation_id, 2)

    async def blind(run: RunContext) -> ConversationEntry:
        run.prior.partitions = Partitions.empty()
        return await export_conversation(run, conversation_id, past_of(run, conversation_id))

    entry = exporting(box, tmp_path, blind, "run_2")

    assert entry.new_messages == 2
    assert pq.read_table(parts_of(tmp_path, conversation_id)[1]).column("message_id").to_pylist() == new
    assert [part.sha256 is None for part in entry.parts] == [False, False]


def test_a_proof_is_as_old_as_the_beginning_of_its_visit(box: Sandbox, tmp_path: Path) -> None:
    conversation_id = list(box.conversations)[2]
    began, answers = datetime(2026, 1, 1, tzinfo=UTC), 0

    def answer(*_: object) -> None:
        nonlocal answers
        answers += 1

    async def visit(run: RunContext) -> None:
        run.clock = lambda: began + timedelta(minutes=answers)
        await export_chunk(run, "chunk", [conversation_id])

    box.before_page(answer)
    exporting(box, tmp_path, visit, "run_1")
    exporting(box, tmp_path, visit, "run_2")
    box.append(conversation_id, 2)
    exporting(box, tmp_path, visit, "run_3")

    entries = ds.dataset(tmp_path / "conversations").to_table().sort_by("started_at").to_pylist()
    assert [entry["status"] for entry in entries] == ["complete", "unchanged", "complete"]
    assert [entry["proof_method"] == REACHED_KNOWN for entry in entries] == [False, False, True]
    for entry in entries:
        assert entry["proven_until"] == entry["started_at"] < entry["finished_at"]
        assert entry["full_walk_at"] == began


def test_a_race_that_is_lost_repeatedly_is_a_transient_error(
    box: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    conversation_id = list(box.conversations)[2]
    tries = Counter[int]()

    async def job(run: RunContext) -> None:
        async def lose(organization: str, conversation: str, number: int, body: bytes, rows: int) -> None:
            tries[number] += 1
            raise ObjectExists("another writer")

        monkeypatch.setattr(run.lake, "add_part", lose)
        with pytest.raises(StoreUnavailable, match="other runs kept writing to it"):
            await export_conversation(run, conversation_id, past_of(run, conversation_id))

    exporting(box, tmp_path, job)

    assert tries == {0: publish.TRIES}


# -- other ---------------------------------------------------------------------------------------


def test_at_most_as_many_conversations_as_slots_are_in_memory(box: Sandbox, tmp_path: Path) -> None:
    async def job(run: RunContext) -> ChunkResult:
        run.slots = asyncio.Semaphore(2)
        run.pages_ahead = 1
        return await export_chunk(run, "chunk", list(box.conversations))

    exporting(box, tmp_path, job)

    assert box.stats().max_in_flight <= 2


def test_the_lake_contains_no_phone_number_and_no_token(box: Sandbox, tmp_path: Path) -> None:
    box.break_conversation(list(box.conversations)[2], "500")
    export_all(box, tmp_path)

    for path in tmp_path.rglob("*"):
        if path.is_file():
            body = path.read_bytes()
            assert box.options.token.encode() not in body
            assert not any(phone[1:].encode() in body for phone in box.phones)


@pytest.mark.parametrize(
    ("conversations", "chosen", "size"),
    [
        (0, None, 25),
        (1, None, 25),
        (250, None, 25),
        (251, None, 26),
        (4_000, None, 400),
        (10**6, None, 500),
        (50, 7, 7),
    ],
)
def test_chunks_are_few_enough_for_the_orchestrator(
    conversations: int, chosen: int | None, size: int
) -> None:
    assert choose_chunk_size(conversations, chosen) == size
