"""The results of a chunk reach the journal, even if a write fails."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from imbrace_lake.errors import StoreUnavailable
from imbrace_lake.export import recovery
from imbrace_lake.export.accounts import Accounts
from imbrace_lake.export.recovery import MAX_LINES, WRITE_SHARE, WRITE_WALKED, ChunkJournal
from imbrace_lake.lake.lake import Lake, open_lake
from imbrace_lake.lake.ledger import Journal, read_ledger
from imbrace_lake.lake.ledger_schema import ConversationEntry
from imbrace_lake.store.contract import ObjectMeta

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def an_entry(number: int) -> ConversationEntry:
    return ConversationEntry(
        run_id="run", organization_id="org_1", conversation_id=f"conv_{number}", status="complete",
        finished_at=NOW,
    )  # fmt: skip


def ids(count: int) -> list[str]:
    return [f"conv_{number}" for number in range(count)]


async def recorded(lake: Lake) -> list[str]:
    return [row["conversation_id"] for row in (await read_ledger(lake, "conversations")).to_pylist()]


def test_every_entry_is_recorded_once_and_objects_stay_small(tmp_path: Path) -> None:
    async def work() -> None:
        async with open_lake(str(tmp_path), now=NOW) as lake:
            chunk_journal = ChunkJournal(Journal(lake, "run", NOW), Accounts(), "chunk", ids(100))
            for number in range(3 * MAX_LINES):
                await chunk_journal.add(an_entry(number))
            await chunk_journal.write()
            assert sorted(await recorded(lake)) == sorted(chunk_journal.done)
            objects = await lake.store.list("journal/run/conversations/")
            assert len(objects) == 3

    asyncio.run(work())


def test_the_results_of_a_killed_run_are_recorded_again_and_its_journal_is_removed(tmp_path: Path) -> None:
    async def work() -> None:
        async with open_lake(str(tmp_path), now=NOW) as lake:
            accounts = Accounts()
            killed = replace(an_entry(1), run_id="killed", new_messages=5, edited_messages=1, requests=2)
            chunk_journal = ChunkJournal(Journal(lake, "run", NOW), accounts, "chunk", ids(4), [killed])
            await chunk_journal.add(an_entry(2))
            await chunk_journal.write()
            assert chunk_journal.remaining() == ["conv_0", "conv_3"]
            assert accounts.recorded == {"conv_1", "conv_2"}
            rows = (await read_ledger(lake, "conversations")).to_pylist()
            assert [(row["run_id"], row["conversation_id"]) for row in rows] == [
                ("run", "conv_1"),
                ("run", "conv_2"),
            ]
            # What the killed run did is in its own entry.
            assert [rows[0][name] for name in ("new_messages", "edited_messages", "requests")] == [0, 0, 0]

    asyncio.run(work())


@pytest.mark.slow
def test_entries_of_unchanged_conversations_are_recorded_in_larger_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work() -> None:
        monkeypatch.setattr(recovery, "WRITE_SECONDS", 60.0)
        async with open_lake(str(tmp_path), now=NOW) as lake:
            chunk_journal = ChunkJournal(
                Journal(lake, "run", NOW), Accounts(), "chunk", ids(WRITE_SHARE * 50)
            )
            counts = []
            for number in range(120):
                await chunk_journal.add(replace(an_entry(number), status="unchanged"))
                counts.append(len(await recorded(lake)))
            assert counts == [0] * 49 + [50] * 50 + [100] * 21

    asyncio.run(work())


def test_entries_that_could_not_be_written_are_written_at_the_next_try(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(key: str, data: bytes) -> ObjectMeta:
        raise StoreUnavailable("the store is unavailable")

    async def work() -> None:
        async with open_lake(str(tmp_path), now=NOW) as lake:
            chunk_journal = ChunkJournal(Journal(lake, "run", NOW), Accounts(), "chunk", ids(100))
            for number in range(WRITE_WALKED - 1):
                await chunk_journal.add(an_entry(number))
            with monkeypatch.context() as patch:
                patch.setattr(lake.store, "overwrite", fail)
                with pytest.raises(StoreUnavailable):
                    await chunk_journal.add(an_entry(WRITE_WALKED))
            assert not await recorded(lake)
            await chunk_journal.write()
            assert len(await recorded(lake)) == WRITE_WALKED

    asyncio.run(work())


def test_an_entry_that_comes_during_a_write_is_part_of_the_next_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work() -> None:
        async with open_lake(str(tmp_path), now=NOW) as lake:
            done = map(an_entry, range(MAX_LINES))
            chunk_journal = ChunkJournal(Journal(lake, "run", NOW), Accounts(), "chunk", ids(100), done)
            overwrite = lake.store.overwrite
            adding: list[asyncio.Task[None]] = []

            async def add_meanwhile(key: str, data: bytes) -> ObjectMeta:
                if not adding:
                    adding.append(asyncio.create_task(chunk_journal.add(an_entry(MAX_LINES))))
                    await asyncio.sleep(0)
                return await overwrite(key, data)

            monkeypatch.setattr(lake.store, "overwrite", add_meanwhile)
            await chunk_journal.write()
            await asyncio.gather(*adding)
            await chunk_journal.write()

            assert sorted(await recorded(lake)) == sorted(ids(MAX_LINES + 1))

    asyncio.run(work())
