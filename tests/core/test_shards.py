"""Shards: how a run is split, what a shard reads from the lake, and what the run learns from the ledgers."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from random import Random
from typing import TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from imbrace_lake.errors import BadRequest, ImbraceLakeError, InputError, StoreError, TokenRejected
from imbrace_lake.export.chunk import export_chunk
from imbrace_lake.export.recovery import DEAD_AFTER, read_header, recover_dead_runs, work_fingerprint
from imbrace_lake.export.rerun import read_missed
from imbrace_lake.export.run import RunContext, RunSummary, close_run, totals_of, utc_now
from imbrace_lake.export.shards import (
    MAX_SHARDS,
    RETENTION,
    Shard,
    collect_results,
    plan_shards,
    read_list,
    shard_count,
    split_evenly,
)
from imbrace_lake.lake.ledger import Journal, read_ledger
from imbrace_lake.lake.ledger_schema import RunTotals
from imbrace_lake.phones.lists import read_ids
from imbrace_sandbox import Sandbox
from tests.core.conftest import StartBox
from tests.core.lake_runs import settings_for
from tests.gateways import open_run

T = TypeVar("T")
PARENT, FIRST, SECOND = "parent-run", "first-shard", "second-shard"


@pytest.fixture
def box(start: StartBox) -> Sandbox:
    """Start a gateway with ten conversations."""
    return start(conversations=10, gateway_timeout_seconds=0.0)


def in_run(box: Sandbox, lake: Path, job: Callable[[RunContext], Awaitable[T]], run_id: str = PARENT) -> T:
    """Run a job within the run that is split."""

    async def main() -> T:
        async with open_run(settings_for(box, str(lake), tries=1), run_id) as run:
            await run.load_prior_state("everything")
            return await job(run)

    return asyncio.run(main())


async def plan(run: RunContext, ids: list[str], size: int = 5) -> list[Shard]:
    """Split a run, without an orchestrator."""
    shards = await plan_shards(run, ids, size)
    run.progress.shards = RunTotals()
    return shards


async def do(
    box: Sandbox,
    lake: Path,
    shard: Shard,
    run_id: str,
    *,
    most: int | None = None,
    is_killed: bool = False,
) -> None:
    """Export the conversations of a shard, or only the first; do not close the run if it is killed."""
    shard.run_id = run_id
    async with open_run(settings_for(box, str(lake), tries=1), run_id, parent_run_id=PARENT) as run:
        ids = (await read_list(run.lake, shard.key, run.organization_id))[:most]
        await run.load_prior_state(work_fingerprint(ids))
        await export_chunk(run, "chunk-1-of-1", ids)
        if not is_killed:
            await close_run(run, {}, Counter())


async def close_dead_runs(run: RunContext, run_id: str) -> None:
    """Close the journals of all other runs, as a run does if they are dead when it begins."""
    await recover_dead_runs(run.lake, run_id, "everything", utc_now() + DEAD_AFTER + timedelta(seconds=1))


async def end(run: RunContext, *shards: Shard, tolerated_share: float = 0.0) -> RunSummary:
    """Collect the results of shards and close their run."""
    for shard in shards:
        await collect_results(run, shard, "its run ended as Crashed")
    run.progress.show_shards(sum((shard.totals for shard in shards), RunTotals()))
    return await close_run(run, {}, Counter(resolved=10), tolerated_share=tolerated_share)


@pytest.mark.parametrize(
    ("conversations", "chosen", "count"),
    [
        (0, None, 1),
        (20_000, None, 1),
        (20_001, None, 2),
        (100_000, None, 5),
        (12, 12, 1),
        (13, 12, 2),
        (1_000_000, 1, MAX_SHARDS),
    ],
)
def test_a_run_has_one_shard_until_it_is_large_or_configured_otherwise(
    conversations: int, chosen: int | None, count: int
) -> None:
    assert shard_count(conversations, chosen) == count


@pytest.mark.parametrize(("conversations", "count"), [(10, 3), (3, 3), (100, 7)])
def test_shards_have_one_size_and_each_conversation_once_in_any_order_of_the_input(
    conversations: int, count: int
) -> None:
    ids = [f"conv_{number}" for number in range(conversations)]
    shuffled = Random(1).sample(ids, len(ids))

    parts = split_evenly(ids, count)

    assert split_evenly(shuffled, count) == parts
    assert sorted(one for part in parts for one in part) == sorted(ids)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_the_list_of_a_shard_is_a_list_for_backfills_too_and_is_deleted_when_the_run_ends(
    box: Sandbox, tmp_path: Path
) -> None:
    async def job(run: RunContext) -> None:
        shards = await plan(run, list(box.conversations))

        for shard in shards:
            assert await read_list(run.lake, shard.key, run.organization_id) == shard.conversation_ids
            assert read_ids(str(tmp_path / shard.key)).ids == shard.conversation_ids
            assert shard.key.startswith(f"shards/{PARENT}/")
        await do(box, tmp_path, shards[0], FIRST)
        await do(box, tmp_path, shards[1], SECOND)
        await end(run, *shards)
        assert await run.lake.store.list("shards/") == []
        with pytest.raises(InputError, match="give both the same lake"):
            await read_list(run.lake, shards[0].key, run.organization_id)

    in_run(box, tmp_path, job)


def test_the_lists_of_a_cancelled_run_stay_for_its_next_attempt(box: Sandbox, tmp_path: Path) -> None:
    async def job(run: RunContext) -> None:
        shards = await plan(run, list(box.conversations))
        await close_run(run, {}, Counter(), is_cancelled=True)

        assert [meta.key for meta in await run.lake.store.list("shards/")] == [each.key for each in shards]

    in_run(box, tmp_path, job)


def test_a_list_of_another_organization_is_rejected(box: Sandbox, tmp_path: Path) -> None:
    async def job(run: RunContext) -> None:
        (shard, _) = await plan(run, list(box.conversations))

        with pytest.raises(
            InputError, match=f"organization other, .* reads {run.organization_id}: give both"
        ):
            await read_list(run.lake, shard.key, "other")

    in_run(box, tmp_path, job)


@pytest.mark.parametrize("is_table", [True, False])
def test_a_damaged_list_is_reported(is_table: bool, box: Sandbox, tmp_path: Path) -> None:
    async def job(run: RunContext) -> None:
        (shard, _) = await plan(run, list(box.conversations))
        if is_table:
            pq.write_table(pa.table({"conversation_id": ["conv_1"]}), tmp_path / shard.key)
        else:
            (tmp_path / shard.key).write_bytes(b"PAR1 damaged")

        with pytest.raises(StoreError, match=f"{shard.key} is damaged"):
            await read_list(run.lake, shard.key, run.organization_id)

    in_run(box, tmp_path, job)


def test_another_attempt_keeps_the_shards_of_the_first_and_adds_one_for_new_conversations(
    box: Sandbox, tmp_path: Path
) -> None:
    async def job(run: RunContext) -> None:
        ids = list(box.conversations)
        before = await plan(run, ids[:8], 4)

        again = await plan(run, ids, 4)

        assert again[:2] == before
        assert [(one.number, set(one.conversation_ids)) for one in again[2:]] == [(3, set(ids[8:]))]
        assert await plan(run, ids[:3], 4) == again

    in_run(box, tmp_path, job)


def test_lists_of_runs_that_never_ended_are_deleted_after_a_week(box: Sandbox, tmp_path: Path) -> None:
    async def job(run: RunContext) -> None:
        for name, age in (
            ("older", RETENTION + timedelta(hours=1)),
            ("newer", RETENTION - timedelta(hours=1)),
        ):
            path = tmp_path / "shards" / name / "a.parquet"
            path.parent.mkdir(parents=True)
            path.write_text("")
            os.utime(path, (time.time() - age.total_seconds(),) * 2)

        await plan(run, list(box.conversations))

        left = {stored.key.split("/")[1] for stored in await run.lake.store.list("shards/")}
        assert left == {"newer", PARENT}

    in_run(box, tmp_path, job)


@pytest.mark.slow
def test_shards_add_up_to_the_summary_of_one_process(box: Sandbox, tmp_path: Path) -> None:
    async def job(run: RunContext) -> tuple[RunSummary, Counter[str]]:
        one, two = await plan(run, list(box.conversations))
        await do(box, tmp_path, one, FIRST)
        await do(box, tmp_path, two, SECOND)
        return await end(run, one, two), days_of(run)

    box.reset_stats()
    summary, days = in_run(box, tmp_path, job)
    requests = sum(box.stats().requests.values())
    received = box.stats().bytes_sent

    async def alone(run: RunContext) -> tuple[RunSummary, Counter[str]]:
        await export_chunk(run, "chunk", list(box.conversations))
        return await close_run(run, {}, Counter(resolved=10)), days_of(run)

    complete, complete_days = in_run(box, tmp_path / "alone", alone)
    assert (summary.status, summary.reason) == ("complete", None)
    assert (summary.totals.conversations, summary.totals.messages_new, summary.totals.messages_total) == (
        complete.totals.conversations,
        complete.totals.messages_new,
        complete.totals.messages_total,
    )
    assert (summary.totals.requests, summary.totals.received_bytes) == (requests, received)
    assert summary.totals.written_bytes == sum(
        path.stat().st_size for path in (tmp_path / "messages").rglob("*.parquet")
    )
    assert summary.new_shapes == complete.new_shapes != []
    shapes = pq.read_table(tmp_path / "shapes", columns=["run_id"])
    assert set(shapes.column("run_id").to_pylist()) <= {FIRST, SECOND}
    assert days == complete_days


def days_of(run: RunContext) -> Counter[str]:
    """Return the new messages by day, as in the chart of the run."""
    return Counter({str(day): count for day, count in run.progress.days.items()})


def test_rows_of_runs_name_the_parent_of_a_shard(box: Sandbox, tmp_path: Path) -> None:
    async def job(run: RunContext) -> dict[str, str | None]:
        one, two = await plan(run, list(box.conversations))
        await do(box, tmp_path, one, FIRST)
        await do(box, tmp_path, two, SECOND, most=3, is_killed=True)
        await close_dead_runs(run, PARENT)
        await end(run, one, two)
        rows = await read_ledger(run.lake, "runs", columns=["run_id", "parent_run_id"])
        return {row["run_id"]: row["parent_run_id"] for row in rows.to_pylist()}

    assert in_run(box, tmp_path, job) == {PARENT: None, FIRST: PARENT, SECOND: PARENT}


def test_runs_of_earlier_versions_have_no_parent(box: Sandbox, tmp_path: Path) -> None:
    in_run(box, tmp_path, lambda run: close_run(run, {}, Counter()))

    async def job(run: RunContext) -> list[str | None]:
        rows = (await read_ledger(run.lake, "runs")).drop_columns(["parent_run_id"])
        await Journal(run.lake, "earlier", utc_now()).add("runs", rows)
        found = await read_ledger(run.lake, "runs", columns=["parent_run_id"])
        assert not run.lake.damaged
        return list(found.column("parent_run_id").to_pylist())

    assert in_run(box, tmp_path, job, "another") == [None, None]


async def missed(run: RunContext, run_id: str = PARENT) -> list[str]:
    """Return the conversations that a rerun exports."""
    found = await read_missed(
        run.lake, run_id, utc_now(), organization_id=run.organization_id, tolerated_unreadable=0.0
    )
    assert found.lost == []
    return found.conversation_ids


async def dead_letters(run: RunContext) -> list[tuple[str, str]]:
    """Return the run and the conversation of each dead letter in the ledger."""
    rows = (await read_ledger(run.lake, "conversations")).to_pylist()
    return [(row["run_id"], row["conversation_id"]) for row in rows if row["is_dead_letter"]]


def test_a_failure_in_a_shard_is_missing_in_the_run_and_recorded_once(box: Sandbox, tmp_path: Path) -> None:
    broken = sorted(box.conversations)[7]
    box.break_conversation(broken, "400")

    async def job(run: RunContext) -> tuple[RunSummary, list[str], list[tuple[str, str]]]:
        one, two = await plan(run, list(box.conversations))
        await do(box, tmp_path, one, FIRST)
        await do(box, tmp_path, two, SECOND)
        summary = await end(run, one, two, tolerated_share=0.1)
        return summary, await missed(run), await dead_letters(run)

    summary, found, recorded = in_run(box, tmp_path, job)

    # The failure is recorded, so the run tolerates it as in one process.
    assert (summary.status, summary.totals.conversations) == ("complete", {"complete": 9, "failed": 1})
    assert [(one.conversation_id, one.status) for one in summary.dead_letters] == [(broken, "failed")]
    assert BadRequest.__name__ not in summary.dead_letters[0].reason
    assert summary.dead_letters[0].advice == ImbraceLakeError.advice
    assert found == [broken]
    assert recorded == [(SECOND, broken)]


@pytest.mark.parametrize(("most", "unrecorded"), [(0, 5), (3, 2), (5, 0)])
def test_a_run_with_a_shard_that_never_ended_is_not_complete_whatever_it_tolerates(
    box: Sandbox, tmp_path: Path, most: int, unrecorded: int
) -> None:
    async def job(run: RunContext) -> tuple[RunSummary, list[str], list[tuple[str, str]], Shard]:
        one, two = await plan(run, list(box.conversations))
        await do(box, tmp_path, one, FIRST)
        if most:
            await do(box, tmp_path, two, SECOND, most=most, is_killed=True)
        two.run_id = SECOND
        summary = await end(run, one, two, tolerated_share=1.0)
        return summary, await missed(run), await dead_letters(run), two

    summary, found, recorded, lost = in_run(box, tmp_path, job)

    assert summary.status == "partial"
    assert summary.dead_letter_count == len(found) == unrecorded
    assert set(found) == set(lost.conversation_ids[most:])
    assert recorded == [(PARENT, one) for one in found]
    assert "1 shard failed" in (summary.reason or "")
    assert all("shard 2 (run second-shard)" in one.reason for one in summary.dead_letters)
    assert all("Crashed" in one.reason for one in summary.dead_letters)
    assert sum(summary.totals.conversations.values()) == 10


def test_a_killed_shard_whose_journal_another_run_closed_has_not_ended(box: Sandbox, tmp_path: Path) -> None:
    async def job(run: RunContext) -> RunSummary:
        one, two = await plan(run, list(box.conversations))
        await do(box, tmp_path, one, FIRST)
        await do(box, tmp_path, two, SECOND, is_killed=True)
        await close_dead_runs(run, PARENT)
        assert SECOND in (await read_ledger(run.lake, "runs")).column("run_id").to_pylist()
        return await end(run, one, two)

    summary = in_run(box, tmp_path, job)

    lost = "1 shard failed; the others are in the lake; shard 2 (run second-shard): its run ended as Crashed"
    assert (summary.status, (summary.reason or "").partition("; the run was")[0]) == ("partial", lost)
    assert summary.totals.conversations == {"complete": 10}


def test_shards_that_failed_before_they_opened_the_lake_give_the_reason_of_the_run(
    box: Sandbox, tmp_path: Path
) -> None:
    async def job(run: RunContext) -> RunSummary:
        for shard in await plan(run, list(box.conversations)):
            await collect_results(run, shard, "its run ended as Failed", "no lake is set: set IMBRACE_LAKE")
        return await close_run(run, {}, Counter())

    summary = in_run(box, tmp_path, job)

    why = "shard 1 (run not started): its run ended as Failed; no lake is set: set IMBRACE_LAKE"
    lost = "10 conversations were not reached and 2 shards failed, and nothing was exported"
    assert (summary.status, summary.reason) == ("failed", f"{lost}; {why}")
    assert summary.totals.conversations == {"not_reached": 10}
    assert summary.remedy == "Fix the cause of the shards' end, then rerun."
    assert summary.dead_letters[0].reason == f"not reached: {why}"


def test_a_shard_that_was_started_again_counts_each_message_once(box: Sandbox, tmp_path: Path) -> None:
    async def job(run: RunContext) -> RunSummary:
        one, two = await plan(run, list(box.conversations))
        await do(box, tmp_path, one, FIRST)
        await do(box, tmp_path, two, SECOND, most=3, is_killed=True)
        # Another run began in between, so the journal is closed when the shard starts again.
        await close_dead_runs(run, PARENT)
        await do(box, tmp_path, two, SECOND)
        return await end(run, one, two)

    summary = in_run(box, tmp_path, job)

    assert summary.status == "complete"
    assert summary.totals.messages_new == summary.totals.messages_total == sum(box.conversations.values())


def test_a_rerun_of_a_killed_run_exports_only_what_its_shards_have_not_recorded(
    box: Sandbox, tmp_path: Path
) -> None:

    async def killed(run: RunContext) -> list[str]:
        ids = await run.record_found(box.conversations)
        one, two = await plan(run, ids)
        await do(box, tmp_path, one, FIRST)
        await do(box, tmp_path, two, SECOND, most=2, is_killed=True)
        assert run.heartbeat is not None
        await run.heartbeat.send()
        return list(two.conversation_ids[2:])

    unrecorded = in_run(box, tmp_path, killed)

    async def later(run: RunContext) -> tuple[dict[str, int], list[str]]:
        await close_dead_runs(run, "later")
        (row,) = [row for row in (await read_ledger(run.lake, "runs")).to_pylist() if row["run_id"] == PARENT]
        return json.loads(row["totals"])["conversations"], await missed(run)

    statuses, found = in_run(box, tmp_path, later, "later")
    assert statuses == {"complete": 7, "not_reached": 3}
    assert sorted(found) == sorted(unrecorded)


@pytest.mark.slow
def test_a_restarted_run_misses_nothing_that_was_not_reached_at_first(box: Sandbox, tmp_path: Path) -> None:
    in_run(box, tmp_path, lambda run: run.record_found(box.conversations))
    in_run(box, tmp_path, lambda run: close_dead_runs(run, "another"), "another")

    async def again(run: RunContext) -> tuple[RunSummary, list[str]]:
        one, two = await plan(run, await run.record_found(box.conversations))
        await do(box, tmp_path, one, FIRST)
        await do(box, tmp_path, two, SECOND)
        return await end(run, one, two), await missed(run)

    summary, found = in_run(box, tmp_path, again)
    assert (summary.status, summary.totals.conversations) == ("complete", {"complete": 10})
    assert found == []


def test_a_rerun_of_a_sharded_run_of_an_earlier_version_relies_on_the_dead_letters_of_the_run(
    box: Sandbox, tmp_path: Path
) -> None:
    """Those shards have no parent; the run repeated their dead letters and listed the shards."""
    broken = sorted(box.conversations)[7]
    box.break_conversation(broken, "400")

    async def job(run: RunContext) -> list[str]:
        (one,) = await plan(run, list(box.conversations), 10)
        async with open_run(settings_for(box, str(tmp_path), tries=1), FIRST) as shard:
            await shard.load_prior_state("shard")
            result = await export_chunk(shard, "chunk-1-of-1", one.conversation_ids)
            await close_run(shard, {}, Counter())
        one.run_id = FIRST
        await run.journal.note_entries(
            "shards", [replace(each, run_id=PARENT) for each in result.dead_letters]
        )
        await collect_results(run, one, "its run ended as Partial")
        run.progress.show_shards(one.totals)
        await close_run(run, {"shards": {FIRST: 1}}, Counter())
        return await missed(run)

    assert in_run(box, tmp_path, job) == [broken]


def test_the_header_of_a_run_under_way_shows_its_progress(box: Sandbox, tmp_path: Path) -> None:
    async def job(run: RunContext) -> None:
        await export_chunk(run, "chunk", list(box.conversations)[:4])
        assert run.heartbeat is not None
        await run.heartbeat.send()

        header = await read_header(run.lake, PARENT)

        assert header is not None
        assert header.totals == totals_of(run.progress)
        assert header.totals.conversations == {"complete": 4}
        assert await read_header(run.lake, "no-run") is None

    in_run(box, tmp_path, job)


def test_a_rejected_token_in_a_shard_ends_the_run_with_its_error_and_advice(
    box: Sandbox, tmp_path: Path
) -> None:
    async def job(run: RunContext) -> None:
        shards = await plan(run, list(box.conversations))
        await do(box, tmp_path, shards[0], FIRST)
        box.set_options(token_expired=True)
        second = shards[1]
        second.run_id = SECOND
        async with open_run(settings_for(box, str(tmp_path)), SECOND, parent_run_id=PARENT) as shard:
            await shard.record_found(second.conversation_ids)
            with pytest.raises(TokenRejected) as caught:
                await export_chunk(shard, "chunk-1-of-1", second.conversation_ids)
            shard.failures.add_problem(caught.value)
            await close_run(shard, {}, Counter(), failure=str(caught.value))

        for each in shards:
            await collect_results(run, each, "its run ended as Failed")
        run.progress.show_shards(sum((each.totals for each in shards), RunTotals()))
        fatal = run.failures.fatal
        summary = await close_run(run, {}, Counter(), failure=str(fatal))

        assert isinstance(fatal, TokenRejected)
        assert str(fatal) == str(caught.value)
        assert summary.status == "failed"
        assert summary.reason == f"{caught.value}; 5 conversations not reached"
        assert summary.remedy == TokenRejected.advice
        assert summary.causes == {TokenRejected.advice: 5}

    in_run(box, tmp_path, job)
