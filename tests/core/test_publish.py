"""Concurrent writers of a conversation: the second one compares again and adds what is missing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar

import pytest

from imbrace_lake.concurrency import every
from imbrace_lake.errors import StoreUnavailable
from imbrace_lake.lake import publish as lake_publish
from imbrace_lake.lake.claim import PartClaim
from imbrace_lake.lake.hashes import hash_sum
from imbrace_lake.lake.lake import Lake, Part, open_lake
from imbrace_lake.lake.ledger import Journal, read_ledger
from imbrace_lake.lake.memory import MemoryBudget, Reservation
from imbrace_lake.lake.publish import PublishResult, publish
from imbrace_lake.lake.rows import Rows, SortBuffer
from imbrace_lake.lake.snapshot import PartitionSnapshot
from tests.core.test_diff import message, read

NOW = datetime(2026, 2, 1, tzinfo=UTC)
ORG, CONVERSATION = "org_1", "c1"


@pytest.fixture(params=[16 * 2**20, 2_000, 1], ids=["in memory", "partly in files", "in files"], autouse=True)
def memory(request: pytest.FixtureRequest) -> Iterator[None]:
    """Run each test in memory, partly in files, and in files."""
    Writer.most_bytes = request.param
    yield
    Writer.most_bytes = MemoryBudget().most_bytes


class Writer:
    """A run that publishes into a conversation."""

    most_bytes: ClassVar[int]

    def __init__(self, lake: Lake, run_id: str) -> None:
        self.lake = lake
        self.journal = Journal(lake, run_id, NOW)
        self.reservation = Reservation(MemoryBudget(self.most_bytes), lake.store.temporary_directory)

    async def look(self, parts: Sequence[Part] | None = None) -> PartitionSnapshot:
        there = await self.lake.list_parts(ORG, CONVERSATION) if parts is None else parts
        return await PartitionSnapshot.read(self.lake, there, self.reservation)

    async def publish(
        self, *items: dict[str, Any], snapshot: PartitionSnapshot | None = None, is_full_walk: bool = False
    ) -> PublishResult:
        snapshot = await self.look() if snapshot is None else snapshot
        buffer = SortBuffer(self.reservation)
        for item in reversed(items):
            buffer.add(read(item, run_id=self.journal.run_id))
        claim = PartClaim(ORG, CONVERSATION, self.journal.run_id, "complete", "overlap", len(items))
        return await publish(
            self.lake, self.journal, claim, buffer.rows(), snapshot,
            is_full_walk=is_full_walk, now=NOW, reservation=self.reservation,
        )  # fmt: skip


async def texts(lake: Lake) -> list[tuple[str, str, bool]]:
    """Return what a reader sees: id, text and deletion of every row, over all parts."""
    parts = await lake.read_parts(await lake.list_parts(ORG, CONVERSATION))
    rows = [row for _, table in parts for row in table.to_pylist()]
    return sorted((row["message_id"], row["text"], row["is_deleted"]) for row in rows)


def with_two_writers(folder: Path, job: Callable[[Writer, Writer], Awaitable[None]]) -> None:
    async def inside() -> None:
        async with open_lake(str(folder), now=NOW) as one, open_lake(str(folder), now=NOW) as other:
            await job(Writer(one, "run-a"), Writer(other, "run-b"))

    asyncio.run(inside())


def test_of_two_writers_of_one_part_number_the_second_adds_only_what_is_missing(tmp_path: Path) -> None:
    async def job(first: Writer, second: Writer) -> None:
        before = await second.look()
        await first.publish(message(1), message(2))
        done = await second.publish(message(1), message(2), message(3), snapshot=before)

        assert await texts(first.lake) == [
            ("m1", "hello", False),
            ("m2", "hello", False),
            ("m3", "hello", False),
        ]
        assert [part.number for part in done.parts] == [0, 1]
        assert not done.had_no_race
        assert done.new is not None
        assert done.new.num_rows == 1

    with_two_writers(tmp_path, job)


@pytest.mark.slow
def test_concurrent_writers_write_every_message_once(tmp_path: Path) -> None:
    async def job(first: Writer, second: Writer) -> None:
        for start in range(0, 40, 4):
            before = await first.look()
            ours = [message(number) for number in range(start + 3)]
            theirs = [message(number, "edited", version=1) for number in range(start + 4)]
            await asyncio.gather(
                first.publish(*ours, snapshot=before), second.publish(*theirs, snapshot=before)
            )

        assert await texts(first.lake) == sorted((f"m{number}", "edited", False) for number in range(40))

    with_two_writers(tmp_path, job)


@pytest.mark.slow
def test_the_second_replacement_of_a_part_builds_on_the_first(tmp_path: Path) -> None:
    async def job(first: Writer, second: Writer) -> None:
        await first.publish(message(1), message(2), message(3))
        before = await second.look()
        await first.publish(message(1, "by a", version=1), message(2), message(3))
        done = await second.publish(
            message(1), message(2, "by b", version=1), snapshot=before, is_full_walk=True
        )

        assert await texts(first.lake) == [
            ("m1", "by a", False),
            ("m2", "by b", False),
            ("m3", "hello", True),
        ]
        assert not done.had_no_race
        assert done.parts[0].sha256 == (await second.look()).parts[0].sha256

    with_two_writers(tmp_path, job)


def test_a_listing_that_is_out_of_date_overwrites_nothing(tmp_path: Path) -> None:
    async def job(first: Writer, second: Writer) -> None:
        await first.publish(message(1), message(2))
        listed = await second.lake.list_parts(ORG, CONVERSATION)
        await first.publish(message(1, "by a", version=1), message(2))
        stale = await second.look(listed)
        await first.publish(message(1, "again by a", version=2), message(2))
        await second.publish(message(1, "by b", version=1), message(2, "by b", version=1), snapshot=stale)

        assert await texts(first.lake) == [("m1", "again by a", False), ("m2", "by b", False)]

    with_two_writers(tmp_path, job)


def test_the_metadata_of_a_part_are_those_of_the_bytes_that_were_read_and_not_of_the_listing(
    tmp_path: Path,
) -> None:
    async def job(first: Writer, second: Writer) -> None:
        await first.publish(message(1))
        listed = await second.lake.list_parts(ORG, CONVERSATION)
        await first.publish(message(1, "longer than it was, and of another size", version=1))

        snapshot = await second.look(listed)

        now = (await first.look()).parts[0]
        assert (snapshot.parts[0].sha256, snapshot.parts[0].size_bytes) == (
            now.sha256,
            now.size_bytes,
        )

    with_two_writers(tmp_path, job)


def test_every_replaced_version_is_in_the_revisions_of_the_run_that_replaced_it(tmp_path: Path) -> None:
    async def job(first: Writer, second: Writer) -> None:
        await first.publish(message(1, "one"), message(2, "one"))
        await first.publish(message(1, "two", version=1), message(2, "one"))
        # The same run replaces the same part again, as a retried task does.
        await first.publish(message(1, "three", version=2), message(2, "two", version=1))
        await second.publish(message(1, "four", version=3), message(2, "two", version=1))

        rows = (await read_ledger(first.lake, "revisions")).to_pylist()
        found = sorted((row["message_id"], row["text"], row["replaced_by_run_id"]) for row in rows)
        assert found == [
            ("m1", "one", "run-a"),
            ("m1", "three", "run-b"),
            ("m1", "two", "run-a"),
            ("m2", "one", "run-a"),
        ]
        assert {row["replaced_at"] for row in rows} == {NOW}

    with_two_writers(tmp_path, job)


def test_publishing_the_same_rows_again_writes_nothing(tmp_path: Path) -> None:
    async def job(first: Writer, second: Writer) -> None:
        await first.publish(message(1), message(2))
        before = await first.lake.store.list("messages/")

        done = await second.publish(message(1), message(2), is_full_walk=True)

        assert await first.lake.store.list("messages/") == before
        assert (done.size_bytes, done.had_no_race, done.new) == (0, True, None)

    with_two_writers(tmp_path, job)


@pytest.mark.slow
def test_a_publication_updates_the_content_hash_from_the_old_rows_to_the_new(tmp_path: Path) -> None:
    async def job(first: Writer, second: Writer) -> None:
        await first.publish(message(1), message(2), message(3))
        await first.publish(message(1), message(3), is_full_walk=True)
        _, before = (await second.look()).current_hash()

        # One message is edited, one is restored, one is new.
        done = await second.publish(message(1, "edited", version=1), message(2), message(3), message(4))

        _, after = (await second.look()).current_hash()
        assert (done.edited, done.new is not None and done.new.num_rows) == (2, 1)
        assert done.new is not None
        assert after == hash_sum([before, done.new.content_hash, *done.added_hashes], done.removed_hashes)

    with_two_writers(tmp_path, job)


def test_a_newer_version_in_the_lake_than_was_read_is_reported_as_a_race(tmp_path: Path) -> None:
    async def job(first: Writer, second: Writer) -> None:
        await first.publish(message(1, "edited", version=1))

        done = await second.publish(message(1))

        assert not done.had_no_race
        assert await texts(first.lake) == [("m1", "edited", False)]

    with_two_writers(tmp_path, job)


def test_after_a_crash_between_revision_and_part_the_next_run_replaces_the_part(tmp_path: Path) -> None:
    async def job(first: Writer, second: Writer) -> None:
        await first.publish(message(1, "one"))
        real = first.lake.replace_part

        async def crash(*args: object) -> Any:
            raise KeyboardInterrupt

        first.lake.replace_part = crash  # type: ignore[assignment, method-assign]
        with pytest.raises(KeyboardInterrupt):
            await first.publish(message(1, "two", version=1))
        first.lake.replace_part = real  # type: ignore[method-assign]

        assert await texts(second.lake) == [("m1", "one", False)]
        await second.publish(message(1, "two", version=1))

        assert await texts(second.lake) == [("m1", "two", False)]
        rows = (await read_ledger(first.lake, "revisions")).to_pylist()
        assert {(row["message_id"], row["text"]) for row in rows} == {("m1", "one")}

    with_two_writers(tmp_path, job)


@pytest.mark.slow
@pytest.mark.parametrize("there", [[], [1], [1, 2]])
def test_messages_that_another_run_adds_during_a_full_walk_are_not_marked_deleted(
    tmp_path: Path, there: list[int]
) -> None:
    async def job(first: Writer, second: Writer) -> None:
        if there:
            await first.publish(*map(message, there))
        before = await second.look()
        # Between the second run's walk and its write: a message that its walk did not find.
        await first.publish(message(3))
        done = await second.publish(message(1), message(2), message(4), snapshot=before, is_full_walk=True)

        assert not done.had_no_race
        assert await texts(first.lake) == [(f"m{number}", "hello", False) for number in (1, 2, 3, 4)]

    with_two_writers(tmp_path, job)


def test_a_crash_right_after_the_replacement_of_a_part_loses_no_earlier_version(tmp_path: Path) -> None:
    async def job(first: Writer, second: Writer) -> None:
        await first.publish(message(1, "one"))
        real = first.lake.replace_part

        async def crash(*args: Any) -> Any:
            await real(*args)
            raise KeyboardInterrupt

        first.lake.replace_part = crash  # type: ignore[assignment, method-assign]
        with pytest.raises(KeyboardInterrupt):
            await first.publish(message(1, "two", version=1))

        assert await texts(second.lake) == [("m1", "two", False)]
        rows = (await read_ledger(second.lake, "revisions")).to_pylist()
        assert [(row["message_id"], row["text"]) for row in rows] == [("m1", "one")]

    with_two_writers(tmp_path, job)


@pytest.mark.slow
def test_a_conversation_to_which_others_keep_writing_is_a_transient_error(tmp_path: Path) -> None:
    async def job(first: Writer, second: Writer) -> None:
        real = first.lake.add_part
        numbers = iter(range(1_000))

        async def too_late(*args: Any) -> Any:
            await second.publish(message(next(numbers), "theirs"))
            return await real(*args)

        first.lake.add_part = too_late  # type: ignore[assignment, method-assign]
        with pytest.raises(StoreUnavailable, match="other runs kept writing"):
            await first.publish(message(59, "ours"))

        assert "ours" not in [text for _, text, _ in await texts(second.lake)]

    with_two_writers(tmp_path, job)


@pytest.mark.slow
def test_encoding_a_large_part_does_not_block_the_event_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = Rows.encode

    def encode_slowly(*args: Any) -> bytes | Path:
        time.sleep(0.5)
        return encode(*args)

    monkeypatch.setattr(Rows, "encode", encode_slowly)
    monkeypatch.setattr(lake_publish, "FEW_BYTES", 0)
    ticks: list[float] = []

    async def tick() -> None:
        ticks.append(time.monotonic())

    async def job(first: Writer, second: Writer) -> None:
        async with every(0.01, tick):
            await first.publish(message(1), message(2))
        assert [message_id for message_id, _, _ in await texts(second.lake)] == ["m1", "m2"]

    with_two_writers(tmp_path, job)

    assert len(ticks) > 10
