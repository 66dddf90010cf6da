"""The conversation states of a lake, and the checkpoints that save a run from reading all ledgers."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from imbrace_lake.lake import checkpoint, hash_index, ledger
from imbrace_lake.lake import conversation_states as states_module
from imbrace_lake.lake.checkpoint import (
    KEPT_CHECKPOINTS,
    MAX_AFTER_CHECKPOINT,
    read_state,
    read_states,
    write_checkpoint,
)
from imbrace_lake.lake.conversation_states import ConversationStates, read_every_id
from imbrace_lake.lake.lake import Lake, Part, open_lake
from imbrace_lake.lake.ledger import Journal, named_by_hash, read_ledger
from imbrace_lake.lake.ledger_schema import (
    PHONES,
    WINDOW,
    ConversationEntry,
    RunTotals,
    conversation_rows,
)
from tests.core.test_lake import a_part

START = datetime(2026, 1, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)


def entry(conversation_id: str, run: int, **more: object) -> ConversationEntry:
    part = Part("messages/org=org/conv=c/part-00000.parquet", run, run, "00")
    plain = ConversationEntry(
        f"run-{run}",
        "org",
        conversation_id,
        "complete",
        START + run * HOUR,
        distinct_messages=run,
        parts=(part,),
    )
    return replace(plain, **more)  # type: ignore[arg-type]


async def end_run(lake: Lake, run: int, *entries: ConversationEntry) -> None:
    """Record a run, from its journal to its ledgers and a checkpoint if one is due."""
    started_at = START + run * HOUR
    journal = Journal(lake, f"run-{run}", started_at)
    await journal.note_entries("chunk-1-of-1", entries)
    row = {"run_id": f"run-{run}", "organization_id": "org", "status": "complete", "started_at": started_at}
    await journal.close(row, RunTotals())
    await write_checkpoint(lake, started_at)


async def known_counts(lake: Lake) -> dict[str, int | None]:
    states = await read_states(lake, "org")
    return {one.conversation_id: one.distinct_messages for one in states}


def in_lake(folder: Path, job: Callable[[Lake], Awaitable[None]]) -> None:
    async def inside() -> None:
        async with open_lake(str(folder), now=START) as lake:
            await job(lake)

    asyncio.run(inside())


def test_the_last_proof_counts_and_later_failures_do_not(tmp_path: Path) -> None:
    async def job(lake: Lake) -> None:
        await end_run(lake, 1, entry("a", 1), entry("b", 1), entry("c", 1))
        await end_run(
            lake,
            2,
            entry("a", 2, status="unchanged"),
            entry("b", 2, status="failed", distinct_messages=None),
            entry("c", 2, proof_method=WINDOW),
            entry("d", 2, status="incomplete"),
            entry("e", 2, organization_id="other"),
        )

        states = await read_states(lake, "org")
        assert {one.conversation_id: one.run_id for one in states} == {
            "a": "run-2",
            "b": "run-1",
            "c": "run-1",
        }
        assert states.of_each(["d", "a"]) == {"a": replace(entry("a", 2, status="unchanged"))}

    in_lake(tmp_path, job)


YEAR = 365 * 24


def test_an_entry_of_a_clock_that_was_ahead_hides_no_other_entry(tmp_path: Path) -> None:
    async def job(lake: Lake) -> None:
        await end_run(lake, 1, entry("a", 1), entry("b", 1))
        await end_run(lake, YEAR, entry("a", YEAR), entry("b", YEAR), entry("c", YEAR))
        await end_run(lake, 2, entry("a", 2))

        state = await read_state(lake, "org", now=START + 3 * HOUR)
        counts = {one.conversation_id: one.distinct_messages for one in state.states}
        assert counts == {"a": 2, "b": 1, "c": YEAR}
        assert state.ahead == 3
        assert (await read_state(lake, "org", now=START + 2 * YEAR * HOUR)).ahead == 0

    in_lake(tmp_path, job)


def test_a_checkpoint_of_a_clock_that_was_ahead_hides_no_later_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("imbrace_lake.lake.checkpoint.MAX_AFTER_CHECKPOINT", 1)

    async def job(lake: Lake) -> None:
        await end_run(lake, 1, entry("a", 1))
        await end_run(lake, YEAR, entry("a", YEAR))
        checkpoints = {meta.key for meta in await lake.store.list("checkpoints/")}
        await end_run(lake, 2, entry("a", 2), entry("b", 2))

        counts = {one.conversation_id: one.distinct_messages for one in (await read_states(lake, "org"))}
        assert counts == {"a": 2, "b": 2}
        (wrong,) = [key for key in checkpoints if "2026" not in key]
        assert wrong not in {meta.key for meta in await lake.store.list("checkpoints/")}

    in_lake(tmp_path, job)


@pytest.mark.parametrize("hash_of", [hash, lambda text: 7])
def test_entries_are_found_in_several_batches_and_whatever_their_hashes(
    monkeypatch: pytest.MonkeyPatch, hash_of: Callable[[str], int]
) -> None:
    monkeypatch.setattr(hash_index, "hash", hash_of, raising=False)
    monkeypatch.setattr(states_module, "ROWS_AT_A_TIME", 2)
    every = [entry(f"c{number}", 1) for number in range(9)]
    rows = pa.concat_tables([conversation_rows(every[:4]), conversation_rows(every[4:])]).slice(1)

    entries = ConversationStates(rows)

    assert [*entries] == every[1:]
    assert entries.ids() == [f"c{number}" for number in range(1, 9)]
    assert entries.of_each(["c8", "c0", "c3", "c4"]) == {f"c{n}": every[n] for n in (3, 4, 8)}
    assert not entries.of_each([])


def test_failures_between_two_proofs_are_left_out_of_many_rows(tmp_path: Path) -> None:
    every = [entry("a", 1), entry("b", 1, status="failed"), entry("a", 2), entry("c", 1, proof_method=WINDOW)]

    async def job(lake: Lake) -> None:
        await Journal(lake, "run-1", START).add("conversations", conversation_rows(every))

        state = await read_state(lake, "org")

        assert [*state.states] == [every[2]]
        assert sorted(state.unproven) == ["b", "c"]

    in_lake(tmp_path, job)


def test_a_proof_is_known_while_its_run_is_still_under_way(tmp_path: Path) -> None:
    async def job(lake: Lake) -> None:
        await end_run(lake, 1, entry("a", 1))
        await Journal(lake, "run-2", START).note("conversations", "x", conversation_rows([entry("a", 2)]))

        assert await known_counts(lake) == {"a": 2}

    in_lake(tmp_path, job)


def test_a_new_lake_has_no_states(tmp_path: Path) -> None:
    async def job(lake: Lake) -> None:
        assert not [*(await read_states(lake, "org"))]

    in_lake(tmp_path, job)


RUNS = 2 * MAX_AFTER_CHECKPOINT + 5
KNOWN_AFTER_YEARS = {"each": RUNS, **{f"only-{run}": run for run in range(1, RUNS + 1)}}


@pytest.fixture(scope="module")
def runs_of_years(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a lake of enough runs for two checkpoints."""
    folder = tmp_path_factory.mktemp("years")

    async def job(lake: Lake) -> None:
        for run in range(1, RUNS + 1):
            await end_run(lake, run, entry("each", run), entry(f"only-{run}", run))

    in_lake(folder, job)
    return folder


@pytest.fixture
def years(runs_of_years: Path, tmp_path: Path) -> Path:
    """Return a copy of that lake."""
    shutil.copytree(runs_of_years, tmp_path / "lake")
    return tmp_path / "lake"


@pytest.mark.slow
def test_a_checkpoint_has_the_states_of_earlier_ledgers_and_later_ledgers_are_read_with_it(
    years: Path,
) -> None:
    async def job(lake: Lake) -> None:
        assert len(await lake.store.list("checkpoints/")) == 2
        assert await known_counts(lake) == KNOWN_AFTER_YEARS
        # All states are known without most of the ledger, so they come from the checkpoint.
        for stored in (await lake.store.list("conversations/"))[: 2 * MAX_AFTER_CHECKPOINT]:
            await lake.store.delete(stored.key)
        assert await known_counts(lake) == KNOWN_AFTER_YEARS

    in_lake(years, job)


@pytest.mark.slow
def test_ledger_objects_that_are_read_one_at_a_time_give_the_same_states(
    years: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def job(lake: Lake) -> None:
        for stored in await lake.store.list("checkpoints/"):
            await lake.store.delete(stored.key)
        assert await known_counts(lake) == KNOWN_AFTER_YEARS

    read: list[int] = []
    read_objects = ledger.read_objects

    async def note(lake: Lake, keys: Sequence[str], columns: Sequence[str]) -> list[pa.Table]:
        read.append(len(keys))
        return await read_objects(lake, keys, columns)

    monkeypatch.setattr(checkpoint, "read_objects", note)
    monkeypatch.setattr(checkpoint, "AT_A_TIME_BYTES", 1)
    in_lake(years, job)
    assert {*read} == {1}


def test_a_deleted_checkpoint_changes_nothing(years: Path) -> None:
    async def job(lake: Lake) -> None:
        for stored in await lake.store.list("checkpoints/"):
            await lake.store.delete(stored.key)

        assert await known_counts(lake) == KNOWN_AFTER_YEARS

    in_lake(years, job)


@pytest.mark.slow
def test_a_damaged_checkpoint_changes_nothing_wherever_the_damage_is(years: Path) -> None:
    async def job(lake: Lake) -> None:
        newest = max(stored.key for stored in await lake.store.list("checkpoints/"))
        body = await lake.store.get(newest)

        for position in range(0, len(body), len(body) // 9):
            await lake.store.overwrite(
                newest, body[:position] + bytes([body[position] ^ 0x10]) + body[position + 1 :]
            )
            assert await known_counts(lake) == KNOWN_AFTER_YEARS
        await lake.store.overwrite(newest, b"")
        assert await known_counts(lake) == KNOWN_AFTER_YEARS

    in_lake(years, job)


def test_a_checkpoint_of_a_version_without_the_newest_columns_is_used(years: Path) -> None:
    async def job(lake: Lake) -> None:
        newest = max(stored.key for stored in await lake.store.list("checkpoints/"))
        older = pq.read_table(pa.BufferReader(await lake.store.get(newest))).drop_columns(
            ["head_etag", "requests"]
        )
        sink = pa.BufferOutputStream()
        pq.write_table(older, sink, row_group_size=5)
        body = sink.getvalue().to_pybytes()
        for folder, number in (("checkpoints", None), ("conversations", 2 * MAX_AFTER_CHECKPOINT)):
            for stored in (await lake.store.list(f"{folder}/"))[:number]:
                await lake.store.delete(stored.key)
        await lake.store.create(named_by_hash(newest.rpartition("-")[0], body), body)

        assert await known_counts(lake) == KNOWN_AFTER_YEARS
        assert lake.damaged == {}
        for run in range(RUNS + 1, RUNS + MAX_AFTER_CHECKPOINT):
            await end_run(lake, run)
        assert len(await lake.store.list("checkpoints/")) == 2
        assert await known_counts(lake) == KNOWN_AFTER_YEARS

    in_lake(years, job)


@pytest.mark.slow
def test_only_the_latest_checkpoints_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imbrace_lake.lake.checkpoint.MAX_AFTER_CHECKPOINT", 2)

    async def job(lake: Lake) -> None:
        for run in range(1, 2 * KEPT_CHECKPOINTS + 5):
            await end_run(lake, run, entry("each", run))

        assert len(await lake.store.list("checkpoints/")) == KEPT_CHECKPOINTS
        assert await known_counts(lake) == {"each": 2 * KEPT_CHECKPOINTS + 4}

    in_lake(tmp_path, job)


def test_a_run_that_began_before_a_checkpoint_and_ends_after_it_is_known(years: Path) -> None:
    async def job(lake: Lake) -> None:
        late = replace(
            entry("each", 1), run_id="slow", finished_at=START + 1_000 * HOUR, distinct_messages=999
        )
        journal = Journal(lake, "slow", START)
        await journal.note_entries("x", [late])
        await journal.close({"run_id": "slow", "organization_id": "org", "status": "complete"}, RunTotals())

        assert (await known_counts(lake))["each"] == 999

    in_lake(years, job)


def test_a_damaged_ledger_object_is_skipped_and_reported_by_its_name(tmp_path: Path) -> None:
    async def job(lake: Lake) -> None:
        await end_run(lake, 1, entry("a", 1))
        key = (await lake.store.list("conversations/"))[0].key
        body = await lake.store.get(key)
        await lake.store.overwrite(key, body[:-9] + b"x" + body[-8:])

        assert not [*await read_states(lake, "org")]
        assert [*lake.damaged] == [key]

    in_lake(tmp_path, job)


def test_the_later_of_two_attempts_of_a_run_counts_whatever_the_names_of_their_objects(
    tmp_path: Path,
) -> None:
    async def job(lake: Lake) -> None:
        for run in range(1, 9):
            first = entry("a", 2 * run, run_id=f"r{run}", status="failed", is_dead_letter=True)
            again = entry("a", 2 * run + 1, run_id=f"r{run}")
            for attempt in (first, again):  # each in a separate process that does not know of the other
                journal = Journal(lake, f"r{run}", START)
                await journal.note_entries("chunk-1-of-1", [attempt])
            await journal.close(
                {"run_id": f"r{run}", "organization_id": "org", "status": "complete"}, RunTotals()
            )

        rows = (await read_ledger(lake, "conversations")).to_pylist()
        assert [row["status"] for row in rows] == ["complete"] * 8

    in_lake(tmp_path, job)


def test_the_list_of_ids_has_every_conversation_of_any_ledger_journal_or_part(tmp_path: Path) -> None:
    names = {"proven", "failed", "only a window", "gone", "linked", "under way", "in no ledger"}

    async def job(lake: Lake) -> None:
        await end_run(
            lake,
            1,
            entry("proven", 1),
            entry("failed", 1, status="failed", is_dead_letter=True),
            entry("only a window", 1, proof_method=WINDOW),
            entry("gone", 1, status="gone"),
            entry("of another", 1, organization_id="other"),
        )
        number = {"run_id": "run-1", "organization_id": "org", "position": 1, "status": "resolved"}
        rows = pa.Table.from_pylist([{**number, "conversation_ids": ["linked", "gone"]}], schema=PHONES)
        await Journal(lake, "run-1", START).add("phones", rows)
        journal = Journal(lake, "run-2", START)
        await journal.note_entries("x", [entry("under way", 2)])
        part = a_part("in no ledger", "m", organization_id="org")
        await lake.add_part("org", "in no ledger", 0, part, 1)

        recorded = (await read_state(lake, "org")).ids()
        assert set(await read_every_id(lake, "org", await lake.list_partitions("org"), recorded)) == names

    in_lake(tmp_path, job)
