"""Shards: how a run is cut, what they are told, and what a run may conclude from what they recorded."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from random import Random
from typing import TypeVar

import pytest

from imbrace_lake.errors import BadRequest, ImbraceLakeError, StoreError, UsageError
from imbrace_lake.export.chunk import export_chunk
from imbrace_lake.export.recovery import DEAD_AFTER, read_header, recover_dead_runs, work_fingerprint
from imbrace_lake.export.rerun import read_missed
from imbrace_lake.export.run import RunContext, RunSummary, close_run, totals_of, utc_now
from imbrace_lake.export.shards import (
    MOST_SHARDS,
    RETENTION,
    Manifest,
    aggregate_into,
    collect_results,
    drop_manifests,
    plan_shards,
    read_manifest,
    shard_count,
    split_evenly,
    sum_totals,
)
from imbrace_lake.lake.ledger import read_ledger
from imbrace_lake.lake.ledger_schema import RunTotals
from imbrace_sandbox import Sandbox
from tests.core.conftest import StartBox
from tests.core.lake_runs import settings_for
from tests.gateways import open_run

T = TypeVar("T")
PARENT, FIRST, SECOND = "parent-run", "first-shard", "second-shard"


@pytest.fixture
def box(start: StartBox) -> Sandbox:
    """Ten conversations."""
    return start(conversations=10, gateway_timeout_seconds=0.0)


def in_run(box: Sandbox, lake: Path, job: Callable[[RunContext], Awaitable[T]]) -> T:
    """Do something within the run that is cut."""

    async def main() -> T:
        async with open_run(settings_for(box, str(lake), tries=1), PARENT) as run:
            await run.load_prior_state("everything")
            return await job(run)

    return asyncio.run(main())


async def plan(run: RunContext, ids: list[str], size: int = 5) -> list[Manifest]:
    return await plan_shards(run, ids, size, chunk_size=None, tolerated_share=0.0)


async def do(
    box: Sandbox,
    lake: Path,
    manifest: Manifest,
    run_id: str,
    *,
    most: int | None = None,
    is_killed: bool = False,
) -> None:
    """What the run of a shard does: all of it, the first so many conversations, or no end."""
    async with open_run(settings_for(box, str(lake), tries=1), run_id) as run:
        ids = manifest.conversation_ids[:most]
        await run.load_prior_state(work_fingerprint(ids))
        await export_chunk(run, "chunk-1-of-1", ids)
        if not is_killed:
            await close_run(run, {"shard": manifest.shard}, Counter(), keep_days=True)


async def end(run: RunContext, *found: RunTotals, tolerated_share: float = 0.0) -> RunSummary:
    aggregate_into(run, RunTotals(), found)
    return await close_run(
        run, {"shards": {}}, Counter(resolved=10), tolerated_share=tolerated_share, has_shards=True
    )


@pytest.mark.parametrize(
    ("conversations", "chosen", "count"),
    [
        (0, None, 1),
        (20_000, None, 1),
        (20_001, None, 2),
        (100_000, None, 5),
        (12, 12, 1),
        (13, 12, 2),
        (1_000_000, 1, MOST_SHARDS),
    ],
)
def test_a_run_has_one_shard_until_it_is_large_or_configured_otherwise(
    conversations: int, chosen: int | None, count: int
) -> None:
    assert shard_count(conversations, chosen) == count


@pytest.mark.parametrize(("conversations", "count"), [(10, 3), (3, 3), (100, 7)])
def test_shards_have_one_size_and_hold_each_conversation_once_in_whatever_order_it_came(
    conversations: int, count: int
) -> None:
    ids = [f"conv_{number}" for number in range(conversations)]
    shuffled = Random(1).sample(ids, len(ids))

    parts = split_evenly(ids, count)

    assert split_evenly(shuffled, count) == parts
    assert sorted(one for part in parts for one in part) == sorted(ids)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_a_manifest_says_what_the_run_does_and_lies_outside_of_what_readers_scan(
    box: Sandbox, tmp_path: Path
) -> None:
    async def job(run: RunContext) -> None:
        manifests = await plan(run, list(box.conversations))

        assert [await read_manifest(run.lake, one.key) for one in manifests] == manifests
        assert (manifests[0].policy, manifests[0].window, manifests[0].run_id) == (
            run.policy,
            run.window,
            PARENT,
        )
        assert all(one.key.startswith(f"shards/{PARENT}/") for one in manifests)
        assert all(one.key.endswith(".json") for one in manifests)
        await drop_manifests(run.lake, manifests)
        assert await run.lake.store.list("shards/") == []
        with pytest.raises(UsageError, match="give both the same lake"):
            await read_manifest(run.lake, manifests[0].key)

    in_run(box, tmp_path, job)


def test_a_damaged_manifest_is_named(box: Sandbox, tmp_path: Path) -> None:
    async def job(run: RunContext) -> None:
        (manifest, _) = await plan(run, list(box.conversations))
        await run.lake.store.overwrite(manifest.key, b'{"run_id": 7')

        with pytest.raises(StoreError, match=f"{manifest.key} is damaged"):
            await read_manifest(run.lake, manifest.key)

    in_run(box, tmp_path, job)


def test_another_try_keeps_the_shards_it_finds_and_adds_one_for_what_is_new(
    box: Sandbox, tmp_path: Path
) -> None:
    async def job(run: RunContext) -> None:
        ids = list(box.conversations)
        before = await plan(run, ids[:8], 4)

        again = await plan(run, ids, 4)

        assert again[:2] == before
        assert [(one.shard, set(one.conversation_ids)) for one in again[2:]] == [(3, set(ids[8:]))]
        assert await plan(run, ids[:3], 4) == again

    in_run(box, tmp_path, job)


def test_what_runs_left_that_never_ended_is_swept_after_a_week(box: Sandbox, tmp_path: Path) -> None:
    async def job(run: RunContext) -> None:
        for name, age in (
            ("older", RETENTION + timedelta(hours=1)),
            ("newer", RETENTION - timedelta(hours=1)),
        ):
            path = tmp_path / "shards" / name / "a.json"
            path.parent.mkdir(parents=True)
            path.write_text("{}")
            os.utime(path, (time.time() - age.total_seconds(),) * 2)

        await plan(run, list(box.conversations))

        left = {stored.key.split("/")[1] for stored in await run.lake.store.list("shards/")}
        assert left == {"newer", PARENT}

    in_run(box, tmp_path, job)


def test_what_shards_recorded_adds_up_to_what_one_process_would_have_said(
    box: Sandbox, tmp_path: Path
) -> None:
    async def job(run: RunContext) -> RunSummary:
        one, two = await plan(run, list(box.conversations))
        await do(box, tmp_path, one, FIRST)
        await do(box, tmp_path, two, SECOND)
        found = [
            await collect_results(run, one, FIRST, "ended"),
            await collect_results(run, two, SECOND, "ended"),
        ]
        assert [rows.num_rows for _, rows in found] == [0, 0]
        return await end(run, *(totals for totals, _ in found))

    box.reset_stats()
    summary = in_run(box, tmp_path, job)
    requests = sum(box.stats().requests.values())
    received = box.stats().bytes_sent

    async def alone(run: RunContext) -> tuple[RunSummary, Counter[str]]:
        await export_chunk(run, "chunk", list(box.conversations))
        days = Counter({str(day): count for day, count in run.progress.days.items()})
        return await close_run(run, {}, Counter(resolved=10)), days

    whole, days = in_run(box, tmp_path / "alone", alone)
    assert (summary.status, summary.reason) == ("complete", None)
    assert (summary.totals.conversations, summary.totals.messages_new, summary.totals.messages_total) == (
        whole.totals.conversations,
        whole.totals.messages_new,
        whole.totals.messages_total,
    )
    assert (summary.totals.requests, summary.totals.received_bytes) == (requests, received)
    assert summary.totals.written_bytes == sum(
        path.stat().st_size for path in (tmp_path / "messages").rglob("*.parquet")
    )
    assert summary.new_shapes == whole.new_shapes
    assert in_run(box, tmp_path, days_of_shards) == days


async def days_of_shards(run: RunContext) -> Counter[str]:
    ends = (await read_ledger(run.lake, "runs")).to_pylist()
    whole = sum_totals(RunTotals(**json.loads(row["totals"])) for row in ends)
    aggregate_into(run, RunTotals(), [whole])
    return Counter({str(day): count for day, count in run.progress.days.items()})


async def dead_letters(run: RunContext) -> list[str]:
    missed = await read_missed(run.lake, PARENT, utc_now(), tolerated_unreadable=0.0)
    return missed.conversation_ids


def test_what_failed_in_a_shard_is_a_dead_letter_of_the_run(box: Sandbox, tmp_path: Path) -> None:
    broken = sorted(box.conversations)[7]
    box.break_conversation(broken, "400")

    async def job(run: RunContext) -> tuple[RunSummary, list[str]]:
        one, two = await plan(run, list(box.conversations))
        await do(box, tmp_path, one, FIRST)
        await do(box, tmp_path, two, SECOND)
        first, _ = await collect_results(run, one, FIRST, "ended")
        second, dead = await collect_results(run, two, SECOND, "ended")
        await run.journal.note("conversations", "shards", dead)
        summary = await end(run, first, second, tolerated_share=0.1)
        return summary, (await dead_letters(run))

    summary, dead = in_run(box, tmp_path, job)

    # Recorded, so tolerated as it would be in one process.
    assert (summary.status, summary.totals.conversations) == ("complete", {"complete": 9, "failed": 1})
    assert [(one.conversation_id, one.status) for one in summary.dead_letters] == [(broken, "failed")]
    assert BadRequest.__name__ not in summary.dead_letters[0].reason
    assert summary.dead_letters[0].advice == ImbraceLakeError.advice
    assert dead == [broken]


@pytest.mark.parametrize(("most", "unrecorded"), [(0, 5), (3, 2), (5, 0)])
def test_a_shard_that_never_ended_keeps_the_run_from_being_complete_whatever_it_tolerates(
    box: Sandbox, tmp_path: Path, most: int, unrecorded: int
) -> None:
    async def job(run: RunContext) -> tuple[RunSummary, list[str], Manifest]:
        one, two = await plan(run, list(box.conversations))
        await do(box, tmp_path, one, FIRST)
        if most:
            await do(box, tmp_path, two, SECOND, most=most, is_killed=True)
        first, _ = await collect_results(run, one, FIRST, "its run ended as Completed")
        second, dead = await collect_results(run, two, SECOND, "its run ended as Crashed")
        await run.journal.note("conversations", "shards", dead)
        summary = await end(run, first, second, tolerated_share=1.0)
        return summary, (await dead_letters(run)) if unrecorded else [], two

    summary, dead, lost = in_run(box, tmp_path, job)

    assert summary.status == "partial"
    assert summary.dead_letter_count == len(dead) == unrecorded
    assert set(dead) == set(lost.conversation_ids[most:])
    assert "1 shard failed" in (summary.reason or "")
    assert all("shard 2 (run second-shard)" in one.reason for one in summary.dead_letters)
    assert all("Crashed" in one.reason for one in summary.dead_letters)
    assert sum(summary.totals.conversations.values()) == 10


def test_a_killed_shard_whose_journal_another_run_closed_has_not_ended(box: Sandbox, tmp_path: Path) -> None:
    async def job(run: RunContext) -> RunSummary:
        one, two = await plan(run, list(box.conversations))
        await do(box, tmp_path, one, FIRST)
        await do(box, tmp_path, two, SECOND, is_killed=True)
        later = utc_now() + DEAD_AFTER + timedelta(seconds=1)
        await recover_dead_runs(run.lake, PARENT, "everything", later)
        assert SECOND in (await read_ledger(run.lake, "runs")).column("run_id").to_pylist()
        found = [(await collect_results(run, *each, "?"))[0] for each in ((one, FIRST), (two, SECOND))]
        return await end(run, *found)

    summary = in_run(box, tmp_path, job)

    assert (summary.status, summary.reason) == ("partial", "1 shard failed; the others are in the lake")
    assert summary.totals.conversations == {"complete": 10}


def test_a_shard_that_was_started_again_counts_each_message_once(box: Sandbox, tmp_path: Path) -> None:
    async def job(run: RunContext) -> RunSummary:
        one, two = await plan(run, list(box.conversations))
        await do(box, tmp_path, one, FIRST)
        await do(box, tmp_path, two, SECOND, most=3, is_killed=True)
        # The journal is gone when it starts again: another run began meanwhile.
        await recover_dead_runs(run.lake, PARENT, "everything", utc_now() + DEAD_AFTER + timedelta(seconds=1))
        await do(box, tmp_path, two, SECOND)
        found = [(await collect_results(run, *each, "?"))[0] for each in ((one, FIRST), (two, SECOND))]
        return await end(run, *found)

    summary = in_run(box, tmp_path, job)

    assert summary.status == "complete"
    assert summary.totals.messages_new == summary.totals.messages_total == sum(box.conversations.values())


def test_a_run_under_way_says_in_its_header_how_far_it_is(box: Sandbox, tmp_path: Path) -> None:
    async def job(run: RunContext) -> None:
        await export_chunk(run, "chunk", list(box.conversations)[:4])
        assert run.heartbeat is not None
        await run.heartbeat.send()

        header = await read_header(run.lake, PARENT)

        assert header is not None
        assert RunTotals(**header.totals) == totals_of(run.progress, run.gateway)
        assert header.totals["conversations"] == {"complete": 4}
        assert await read_header(run.lake, "nobody") is None

    in_run(box, tmp_path, job)
