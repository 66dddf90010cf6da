"""Recovery: the next run closes the journals of dead runs, and continues one with the same work."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from imbrace_lake.errors import InputError, NotReached, StoreUnavailable
from imbrace_lake.export.recovery import (
    DEAD_AFTER,
    RESUME_WITHIN,
    close_if_dead,
    heartbeat,
    recover_dead_runs,
    work_fingerprint,
)
from imbrace_lake.export.run import closed_summary
from imbrace_lake.lake.lake import Lake, open_lake
from imbrace_lake.lake.ledger import Journal, read_ledger
from imbrace_lake.lake.ledger_schema import RunTotals
from imbrace_lake.policy import ReadPolicy, Window
from tests.core.test_conversation_states import START, entry

JOB = work_fingerprint(["a", "b"])
DEAD_AT = START + DEAD_AFTER + timedelta(seconds=1)


def in_lake(folder: Path, job: Callable[[Lake], Awaitable[None]]) -> None:
    async def inside() -> None:
        async with open_lake(str(folder), now=START) as lake:
            await job(lake)

    asyncio.run(inside())


async def die(
    lake: Lake, run_id: str = "dead", *, job: str = JOB, header: dict[str, Any] | None = None
) -> None:
    """Leave the journal of a run that was killed after `a` and before `b`."""
    async with heartbeat(lake, run_id, "org", lambda: START) as running:
        await running.send(job)
    journal = Journal(lake, run_id, START)
    done = [entry("a", 1, run_id=run_id), entry("b", 1, run_id=run_id, status="failed", is_dead_letter=True)]
    await journal.note_entries("chunk-1-of-1", done)
    if header is not None:
        key = f"journal/{run_id}/run.json"
        reported = json.loads(await lake.store.get(key))
        await lake.store.overwrite(key, json.dumps(reported | header).encode())


async def runs(lake: Lake) -> list[tuple[str, str]]:
    rows = (await read_ledger(lake, "runs")).to_pylist()
    return sorted((row["run_id"], row["status"]) for row in rows)


async def journals(lake: Lake) -> set[str]:
    return {stored.key.split("/")[1] for stored in await lake.store.list("journal/")}


def test_the_journal_of_a_dead_run_is_closed_and_the_same_job_continues_from_it(tmp_path: Path) -> None:
    async def job(lake: Lake) -> None:
        await die(lake)

        done = (await recover_dead_runs(lake, "next", JOB, DEAD_AT)).done

        assert [*done] == [entry("a", 1, run_id="dead")]
        assert await journals(lake) == set()
        assert await runs(lake) == [("dead", "failed")]
        rows = (await read_ledger(lake, "conversations")).to_pylist()
        assert {(row["conversation_id"], row["status"]) for row in rows} == {
            ("a", "complete"),
            ("b", "failed"),
        }

    in_lake(tmp_path, job)


def test_the_row_of_a_closed_run_includes_what_it_did_after_its_last_heartbeat(tmp_path: Path) -> None:
    async def job(lake: Lake) -> None:
        await die(lake)
        late = entry("late", 30, run_id="dead", new_messages=5, distinct_messages=7, requests=2)
        await Journal(lake, "dead", START).note_entries("chunk-2-of-2", [late])
        # Another attempt of the run had other chunks.
        before = replace(late, finished_at=START)
        await Journal(lake, "dead", START).note_entries("chunk-1-of-3", [before])

        await recover_dead_runs(lake, "next", JOB, DEAD_AT)

        (row,) = (await read_ledger(lake, "runs")).to_pylist()
        totals = json.loads(row["totals"])
        entries = (await read_ledger(lake, "conversations")).to_pylist()
        assert totals["messages_new"] == sum(one["new_messages"] for one in entries) >= 5
        assert totals["messages_total"] == sum(one["distinct_messages"] or 0 for one in entries) >= 7
        assert totals["requests"] == sum(one["requests"] for one in entries) >= 2
        assert row["finished_at"] == max(one["finished_at"] for one in entries) == late.finished_at

    in_lake(tmp_path, job)


def test_a_dead_letter_is_not_taken_over_from_a_dead_run(tmp_path: Path) -> None:
    async def job(lake: Lake) -> None:
        await die(lake)
        gone = [
            entry("known", 1, run_id="dead", status="gone"),
            entry("unknown", 1, run_id="dead", status="gone", is_dead_letter=True),
        ]
        await Journal(lake, "dead", START).note_entries("chunk-2-of-2", gone)

        done = (await recover_dead_runs(lake, "next", JOB, DEAD_AT)).done

        assert sorted(done.ids()) == ["a", "known"]

    in_lake(tmp_path, job)


def test_another_job_closes_the_journal_but_does_not_continue_from_it(tmp_path: Path) -> None:
    async def job(lake: Lake) -> None:
        await die(lake)

        assert not (await recover_dead_runs(lake, "next", work_fingerprint(["a"]), DEAD_AT)).done.ids()
        assert await runs(lake) == [("dead", "failed")]

    in_lake(tmp_path, job)


def test_the_journal_of_a_live_run_is_not_closed(tmp_path: Path) -> None:
    async def job(lake: Lake) -> None:
        await die(lake)

        assert not (await recover_dead_runs(lake, "next", JOB, START + DEAD_AFTER)).done.ids()
        assert await journals(lake) == {"dead"}
        assert await runs(lake) == []

    in_lake(tmp_path, job)


def test_a_run_of_this_machine_without_a_process_is_dead_at_once(tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()

    async def job(lake: Lake) -> None:
        await die(lake, header={"pid": ended.pid})

        assert (await recover_dead_runs(lake, "next", JOB, START)).done.ids() == ["a"]

    in_lake(tmp_path, job)


def test_a_process_that_cannot_be_seen_from_here_is_not_taken_for_dead(tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()

    async def job(lake: Lake) -> None:
        await die(lake, header={"pid": ended.pid, "host": "another machine or container"})

        assert (await recover_dead_runs(lake, "next", JOB, START)).closed == []
        assert await journals(lake) == {"dead"}

    in_lake(tmp_path, job)


@pytest.mark.parametrize("ahead", [timedelta(minutes=-5), timedelta(minutes=5)])
def test_the_clock_of_the_store_decides_whether_a_run_is_alive(tmp_path: Path, ahead: timedelta) -> None:
    async def job(lake: Lake) -> None:
        # A right clock in the live run, and one that is ahead of the store's in this process.
        async with heartbeat(lake, "live", "org", lambda: START) as running:
            await running.send(JOB)
        lake.store.clock_offset = -ahead
        assert (await recover_dead_runs(lake, "next", JOB, START + ahead)).closed == []
        with pytest.raises(InputError, match="still under way"):
            await close_if_dead(lake, "live", "org", START + ahead)

        # The other way round.
        async with heartbeat(lake, "live", "org", lambda: START + ahead) as running:
            await running.send(JOB)
        lake.store.clock_offset = timedelta(0)
        assert (await recover_dead_runs(lake, "next", JOB, START)).closed == []

        # The process exists, so only the silence shows that the run is dead; its times are by its own clock.
        lake.store.clock_offset = -ahead
        (closed,) = (await recover_dead_runs(lake, "next", JOB, DEAD_AT + ahead)).closed
        assert closed.row["finished_at"] >= closed.row["started_at"]

    in_lake(tmp_path, job)


def test_a_run_that_another_one_closes_meanwhile_is_closed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def job(lake: Lake) -> None:
        await die(lake)
        await Journal(lake, "dead", START).note_found(["a", "b", "c"])
        async with open_lake(str(tmp_path), now=None) as other:
            get = other.store.get

            async def meanwhile(key: str) -> bytes:
                found = await get(key)
                if key == "journal/dead/run.json":
                    monkeypatch.undo()
                    assert (await recover_dead_runs(lake, "first", JOB, DEAD_AT)).closed
                return found

            monkeypatch.setattr(other.store, "get", meanwhile)
            # It has read the header when the first run closes the journal.
            assert (await recover_dead_runs(other, "second", "another job", DEAD_AT)).closed == []

        rows = (await read_ledger(lake, "runs")).to_pylist()
        assert [json.loads(row["totals"])["found"] for row in rows] == [3]
        assert await journals(lake) == set()

    in_lake(tmp_path, job)


def test_a_cancelled_run_is_closed_as_cancelled_but_only_once_it_is_dead(
    tmp_path: Path,
) -> None:
    async def job(lake: Lake) -> None:
        await die(lake, header={"is_cancelled": True, "pid": os.getpid()})

        soon = START + DEAD_AFTER / 2
        assert (await recover_dead_runs(lake, "next", JOB, soon)).closed == []
        with pytest.raises(InputError, match="still under way"):
            await close_if_dead(lake, "dead", "org", soon)
        assert await runs(lake) == []

        closed = await close_if_dead(lake, "dead", "org", DEAD_AT)

        assert closed is not None
        summary = closed_summary(replace(closed, dead_letter_count=2), lake.url)
        assert summary.status == "cancelled"
        assert summary.causes == {NotReached.advice_if_cancelled: 2}
        assert await runs(lake) == [("dead", "cancelled")]
        assert await journals(lake) == set()

    in_lake(tmp_path, job)


def test_a_process_id_of_another_machine_is_not_looked_up_here(tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()

    async def job(lake: Lake) -> None:
        await die(lake, header={"pid": ended.pid, "host": "elsewhere"})

        assert not (await recover_dead_runs(lake, "next", JOB, START)).done.ids()
        assert await journals(lake) == {"dead"}

    in_lake(tmp_path, job)


def test_a_run_that_died_long_ago_is_closed_and_its_work_is_repeated(tmp_path: Path) -> None:
    async def job(lake: Lake) -> None:
        await die(lake)

        assert not (await recover_dead_runs(lake, "next", JOB, START + RESUME_WITHIN)).done.ids()
        assert await runs(lake) == [("dead", "failed")]

    in_lake(tmp_path, job)


def test_another_attempt_of_the_same_run_continues_in_the_same_journal(tmp_path: Path) -> None:
    async def job(lake: Lake) -> None:
        await die(lake, "again")

        assert (await recover_dead_runs(lake, "again", JOB, START)).done.ids() == ["a"]
        assert await journals(lake) == {"again"}
        assert await runs(lake) == []

    in_lake(tmp_path, job)


def test_a_journal_without_a_header_is_closed_when_it_is_old(tmp_path: Path) -> None:
    async def job(lake: Lake) -> None:
        await die(lake)
        await lake.store.delete("journal/dead/run.json")
        now = datetime.now(UTC)

        assert not (await recover_dead_runs(lake, "next", JOB, now)).done.ids()
        assert await journals(lake) == {"dead"}
        assert not (await recover_dead_runs(lake, "next", JOB, now + 2 * DEAD_AFTER)).done.ids()
        assert await journals(lake) == set()

    in_lake(tmp_path, job)


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"run_id": "dead"}', b'{"odd": 1}', b"\xff"])
def test_an_unreadable_header_is_like_a_missing_header(tmp_path: Path, body: bytes) -> None:
    async def job(lake: Lake) -> None:
        await die(lake)
        await lake.store.overwrite("journal/dead/run.json", body)

        assert not (await recover_dead_runs(lake, "next", JOB, datetime.now(UTC) + 2 * DEAD_AFTER)).done.ids()
        assert await runs(lake) == [("dead", "failed")]

    in_lake(tmp_path, job)


def test_a_temporary_error_for_a_header_leaves_the_journal_unchanged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def job(lake: Lake) -> None:
        await die(lake)
        get = lake.store.get

        async def fail(key: str) -> bytes:
            if key == "journal/dead/run.json":
                raise StoreUnavailable("temporarily")
            return await get(key)

        monkeypatch.setattr(lake.store, "get", fail)

        with pytest.raises(StoreUnavailable):
            await recover_dead_runs(lake, "next", JOB, datetime.now(UTC) + 2 * DEAD_AFTER)
        with pytest.raises(StoreUnavailable):
            await close_if_dead(lake, "dead", "org", datetime.now(UTC) + 2 * DEAD_AFTER)

        assert await journals(lake) == {"dead"}
        assert await runs(lake) == []

    in_lake(tmp_path, job)


@pytest.mark.slow
def test_two_runs_that_close_the_same_journal_at_once_write_the_same(tmp_path: Path) -> None:
    async def job(lake: Lake) -> None:
        await asyncio.gather(*(die(lake, f"dead-{number}") for number in range(12)))
        async with open_lake(str(tmp_path), now=None) as other:
            found = await asyncio.gather(
                *(recover_dead_runs(one, f"next-{one is other}", JOB, DEAD_AT) for one in (lake, other))
            )

        assert ["a"] in [each.done.ids() for each in found]
        assert await journals(lake) == set()
        assert await runs(lake) == sorted((f"dead-{number}", "failed") for number in range(12))
        rows = (await read_ledger(lake, "conversations")).to_pylist()
        assert {(row["run_id"], row["conversation_id"]) for row in rows} == {
            (f"dead-{number}", one) for number in range(12) for one in "ab"
        }

    in_lake(tmp_path, job)


def test_of_several_dead_runs_the_latest_entry_of_a_conversation_counts(tmp_path: Path) -> None:
    async def job(lake: Lake) -> None:
        for run_id, hour in (("x", 3), ("y", 5), ("z", 4)):
            await die(lake, run_id)
            journal = Journal(lake, run_id, START)
            await journal.note_entries("later", [entry("a", hour, run_id=run_id)])

        assert [one.run_id for one in (await recover_dead_runs(lake, "next", JOB, DEAD_AT)).done] == ["y"]

    in_lake(tmp_path, job)


def test_a_run_that_died_after_its_end_is_not_continued(tmp_path: Path) -> None:
    async def job(lake: Lake) -> None:
        await die(lake)
        row = {"run_id": "dead", "organization_id": "org", "status": "complete"}
        journal = Journal(lake, "dead", START)
        drop = journal.drop
        journal.drop = lambda: asyncio.sleep(0)  # type: ignore[method-assign]
        await journal.close(row, RunTotals())
        assert await journals(lake) == {"dead"}

        assert not (await recover_dead_runs(lake, "next", JOB, DEAD_AT)).done.ids()
        assert await journals(lake) == set()
        assert await runs(lake) == [("dead", "complete")]
        await drop()

    in_lake(tmp_path, job)


def test_a_run_that_died_while_closing_is_closed_again_without_duplicates(tmp_path: Path) -> None:
    async def job(lake: Lake) -> None:
        await die(lake)
        before = await lake.store.list("journal/")
        bodies = {stored.key: await lake.store.get(stored.key) for stored in before}
        await recover_dead_runs(lake, "next", JOB, DEAD_AT)
        for stored in await lake.store.list("runs/"):
            await lake.store.delete(stored.key)
        for key, body in bodies.items():
            await lake.store.overwrite(key, body)

        assert (await recover_dead_runs(lake, "next", JOB, DEAD_AT)).done.ids() == ["a"]
        assert len(await lake.store.list("conversations/")) == 1
        assert await runs(lake) == [("dead", "failed")]

    in_lake(tmp_path, job)


def test_a_journal_remains_until_the_row_of_its_run_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*args: object) -> None:
        raise StoreUnavailable("temporarily")

    async def job(lake: Lake) -> None:
        await die(lake)
        with monkeypatch.context() as patch:
            patch.setattr(Journal, "finish", fail)
            with pytest.raises(StoreUnavailable):
                await recover_dead_runs(lake, "next", JOB, DEAD_AT)

        assert (await recover_dead_runs(lake, "next", JOB, DEAD_AT)).done.ids() == ["a"]
        assert await runs(lake) == [("dead", "failed")]

    in_lake(tmp_path, job)


def test_a_job_does_not_depend_on_the_order_of_its_input() -> None:
    assert work_fingerprint(["a", "b"]) == work_fingerprint(iter(["b", "a"]))
    assert (
        len(
            {
                work_fingerprint(["a"]),
                work_fingerprint(["a"], Window()),
                work_fingerprint(["a"], Window(START)),
                work_fingerprint(["b"]),
                work_fingerprint(["a"], ReadPolicy()),
                work_fingerprint(["a"], ReadPolicy(look_back_messages=1)),
                work_fingerprint(["ab"]),
                work_fingerprint(["a", "b"]),
            }
        )
        == 8
    )


def test_the_heartbeat_renews_the_header_and_survives_temporary_errors_of_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("imbrace_lake.export.recovery.RENEW_SECONDS", 0.005)
    ticks = (START + timedelta(seconds=number) for number in range(1_000_000))

    async def job(lake: Lake) -> None:
        async def alive_at() -> datetime:
            return datetime.fromisoformat(json.loads(await lake.store.get("journal/r/run.json"))["alive_at"])

        real = lake.store.overwrite

        async def fail(*args: object) -> Any:
            raise StoreUnavailable("temporarily")

        async with heartbeat(lake, "r", "org", lambda: next(ticks)) as running:
            await running.send(JOB)
            monkeypatch.setattr(lake.store, "overwrite", fail)
            await asyncio.sleep(0.05)
            monkeypatch.setattr(lake.store, "overwrite", real)
            before = await alive_at()
            for _ in range(10_000):
                if await alive_at() > before:
                    break
                await asyncio.sleep(0.005)
            await running.stop()
            stopped = await alive_at()
            await asyncio.sleep(0.03)
            await running.send()
            assert await alive_at() == stopped

    in_lake(tmp_path, job)
