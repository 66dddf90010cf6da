"""What a chunk has got done reaches the journal, whatever becomes of one write."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from imbrace_lake.errors import StoreUnavailable
from imbrace_lake.export import notes as notes_module
from imbrace_lake.export.accounts import Accounts
from imbrace_lake.export.notes import MOST_NOTED, NOTE_SHARE, NOTE_WALKED, Notes
from imbrace_lake.lake.entries import ConversationEntry
from imbrace_lake.lake.lake import Lake, open_lake
from imbrace_lake.lake.ledger import Journal, read_ledger
from imbrace_lake.store.contract import Stored

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def an_entry(number: int) -> ConversationEntry:
    return ConversationEntry(
        run_id="run", organization_id="org_1", conversation_id=f"conv_{number}", status="complete",
        finished_at=NOW,
    )  # fmt: skip


async def noted(lake: Lake) -> list[str]:
    return [row["conversation_id"] for row in (await read_ledger(lake, "conversations")).to_pylist()]


def test_every_entry_is_noted_once_and_objects_stay_small(tmp_path: Path) -> None:
    async def work() -> None:
        async with open_lake(str(tmp_path), now=NOW) as lake:
            notes = Notes(Journal(lake, "run", NOW), Accounts(), "chunk", 100)
            for number in range(3 * MOST_NOTED):
                await notes.add(an_entry(number))
            await notes.write()
            assert sorted(await noted(lake)) == sorted(notes.done)
            objects = await lake.store.list("journal/run/conversations/")
            assert len(objects) == 3

    asyncio.run(work())


def test_of_conversations_that_stand_as_they_stood_more_are_noted_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work() -> None:
        monkeypatch.setattr(notes_module, "NOTE_SECONDS", 60.0)
        async with open_lake(str(tmp_path), now=NOW) as lake:
            notes = Notes(Journal(lake, "run", NOW), Accounts(), "chunk", NOTE_SHARE * 50)
            counts = []
            for number in range(120):
                await notes.add(replace(an_entry(number), status="unchanged"))
                counts.append(len(await noted(lake)))
            assert counts == [0] * 49 + [50] * 50 + [100] * 21

    asyncio.run(work())


def test_what_could_not_be_written_is_written_by_the_next_try(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(key: str, data: bytes) -> Stored:
        raise StoreUnavailable("the store is away")

    async def work() -> None:
        async with open_lake(str(tmp_path), now=NOW) as lake:
            notes = Notes(Journal(lake, "run", NOW), Accounts(), "chunk", 100)
            for number in range(NOTE_WALKED - 1):
                await notes.add(an_entry(number))
            with monkeypatch.context() as patch:
                patch.setattr(lake.store, "put", refuse)
                with pytest.raises(StoreUnavailable):
                    await notes.add(an_entry(NOTE_WALKED))
            assert not await noted(lake)
            await notes.write()
            assert len(await noted(lake)) == NOTE_WALKED

    asyncio.run(work())
