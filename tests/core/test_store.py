"""Promises of every store with conditional writes: a lake on a disk, and a lake in a bucket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC
from pathlib import Path
from uuid import uuid4

import pytest

from imbrace_lake.errors import ObjectChanged, ObjectExists, StoreError
from imbrace_lake.store.factory import ObjectMeta, Store, open_store
from tests.core.s3_servers import options_for
from tools.seaweed import Seaweed

RACES = 40
WRITERS = 8
SHARED = "shared-by-prefix"

OpenStore = Callable[[], Store]


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.server)])
def lake(request: pytest.FixtureRequest, tmp_path: Path) -> OpenStore:
    """Return a function that makes another store of the same, empty lake."""
    if request.param == "local":
        return lambda: open_store(str(tmp_path / "lake"))
    options = options_for(request.getfixturevalue("s3"))
    request.getfixturevalue("shared_bucket")
    prefix = uuid4().hex
    return lambda: open_store(f"s3://{SHARED}/a/{prefix}", options)


@pytest.fixture(scope="module")
def shared_bucket(s3: Seaweed) -> None:
    """Make a bucket for all tests, because making one takes a second."""
    s3.create_bucket(SHARED)


@asynccontextmanager
async def opened(lake: OpenStore, count: int) -> AsyncIterator[list[Store]]:
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(lake()) for _ in range(count)]


async def outcomes(writes: Iterable[Awaitable[ObjectMeta]]) -> list[ObjectMeta | BaseException]:
    return await asyncio.gather(*writes, return_exceptions=True)


def winners(results: list[ObjectMeta | BaseException], losers: type[StoreError]) -> list[ObjectMeta]:
    assert all(isinstance(result, ObjectMeta | losers) for result in results), results
    return [result for result in results if isinstance(result, ObjectMeta)]


@pytest.mark.slow
def test_of_eight_writers_of_a_new_object_exactly_one_wins_each_of_forty_races(lake: OpenStore) -> None:
    async def race(stores: list[Store], number: int) -> None:
        key = f"messages/org=1/conv={number}/part-00000.parquet"
        bodies = [b"the same bytes" if number % 2 else bytes([writer]) * 99 for writer in range(WRITERS)]

        results = await outcomes(store.create(key, body) for store, body in zip(stores, bodies, strict=True))

        [won] = winners(results, ObjectExists)
        assert await stores[0].get(key) == bodies[results.index(won)]

    async def run() -> None:
        async with opened(lake, WRITERS) as stores:
            # At the same time, because SeaweedFS answers a loser only after one to three seconds.
            await asyncio.gather(*(race(stores, number) for number in range(RACES)))

    asyncio.run(run())


@pytest.mark.slow
def test_of_eight_replacements_of_one_version_exactly_one_wins_each_of_forty_races(lake: OpenStore) -> None:
    async def race(stores: list[Store], number: int) -> None:
        key = f"messages/{number}"
        first = await stores[0].create(key, b"first")
        bodies = [f"{number} by {writer}".encode() for writer in range(WRITERS)]

        results = await outcomes(
            store.update(key, body, first.etag) for store, body in zip(stores, bodies, strict=True)
        )

        [won] = winners(results, ObjectChanged)
        assert await stores[0].get(key) == bodies[results.index(won)]

    async def run() -> None:
        async with opened(lake, WRITERS) as stores:
            await asyncio.gather(*(race(stores, number) for number in range(RACES)))

    asyncio.run(run())


@pytest.mark.slow
def test_a_reader_never_sees_a_partial_object_or_two_versions_mixed(lake: OpenStore) -> None:
    size = 1_000_000

    async def read_until(writer: asyncio.Task[None], store: Store, key: str) -> int:
        seen = 0
        while not writer.done():
            try:
                data = await store.get(key)
            except FileNotFoundError:
                continue
            assert len(data) == size
            assert data.count(data[:1]) == size
            seen += 1
        return seen

    async def write(store: Store, key: str) -> None:
        stored = await store.create(key, b"0" * size)
        for letter in b"123":
            stored = await store.update(key, bytes([letter]) * size, stored.etag)
            await store.overwrite("state/other", bytes([letter]) * size)
        await asyncio.sleep(0.01)

    async def watch() -> None:
        async with lake() as store:
            for number in range(2):
                writer = asyncio.create_task(write(store, f"messages/{number}"))
                readers = [read_until(writer, store, f"messages/{number}") for _ in range(3)]
                assert sum(await asyncio.gather(*readers)) > 0
                await writer

    asyncio.run(watch())


def test_a_write_returns_the_metadata_that_head_and_list_show(lake: OpenStore) -> None:
    async def write() -> None:
        async with lake() as store:
            new = await store.create("messages/a", b"12345")
            replaced = await store.update("messages/a", b"123456", new.etag)
            put = await store.overwrite("messages/b", b"1")

            assert (new.key, new.size_bytes) == ("messages/a", 5)
            assert new.etag != replaced.etag
            assert replaced.modified_at.tzinfo is UTC
            listed = await store.list("messages/")
            looked_up = [await store.head("messages/a"), await store.head("messages/b")]
            assert [(found.key, found.size_bytes, found.etag) for found in listed] == [
                (written.key, written.size_bytes, written.etag) for written in (replaced, put)
            ]
            assert [found.etag for found in looked_up if found] == [replaced.etag, put.etag]
            assert all(found.modified_at.tzinfo is UTC for found in listed)

    asyncio.run(write())


@pytest.mark.slow
def test_a_listing_is_flat_sorted_fresh_and_complete_beyond_a_page(lake: OpenStore) -> None:
    keys = [f"messages/org={number % 3}/conv={number:04}/part-00000.parquet" for number in range(1_005)]

    async def fill_and_list() -> None:
        async with lake() as store, lake() as other:
            await asyncio.gather(
                *(store.create(key, b"x") for key in [*keys, "messages.json", "messagesx/y"])
            )
            assert [found.key for found in await other.list("messages/")] == sorted(keys)
            assert [found.key for found in await other.list("messages/org=1/conv=0001/")] == [keys[1]]

            await store.delete(keys[0])
            await store.overwrite("messages/another", b"x")
            assert [found.key for found in await other.list("messages/")] == sorted(
                [*keys[1:], "messages/another"]
            )
            assert len(await other.list("")) == len(keys) + 2

            after = sorted(keys)[500]
            assert [one.key for one in await other.list("messages/", start_after=after)] == sorted(keys)[501:]
            assert len(await other.list("messages/", most=1)) == 1
            few = [one.key for one in await other.list("messages/", start_after=after, most=3)]
            assert len(few) == 3
            assert {*few} <= {*sorted(keys)[501:]}
            assert await other.list("nothing/", most=1) == []

    asyncio.run(fill_and_list())


def test_a_missing_object_is_none_an_empty_list_or_file_not_found(lake: OpenStore) -> None:
    async def look() -> None:
        async with lake() as store:
            assert await store.list("messages/") == []
            assert await store.head("messages/a") is None
            await store.delete("messages/a")
            with pytest.raises(FileNotFoundError, match="messages/a"):
                await store.get("messages/a")
            with pytest.raises(ObjectChanged):
                await store.update("messages/a", b"", "0-0")

            await store.create("messages/a/b", b"")
            for parent_or_child in ("messages/a", "messages/a/b/c"):
                assert await store.head(parent_or_child) is None
                with pytest.raises(FileNotFoundError):
                    await store.get(parent_or_child)
            assert await store.list("messages/a/b/") == []

            await store.delete("messages/a/b")
            assert await store.list("") == []

    asyncio.run(look())


def test_a_deleted_object_is_no_longer_the_version_that_was_read(lake: OpenStore) -> None:
    async def delete_between() -> None:
        async with lake() as store:
            read = await store.create("messages/a", b"1")
            await store.delete("messages/a")

            with pytest.raises(ObjectChanged):
                await store.update("messages/a", b"2", read.etag)

            assert await store.list("") == []

    asyncio.run(delete_between())


def test_a_finished_file_is_written_completely_and_stays(lake: OpenStore, tmp_path: Path) -> None:
    spilled, second = tmp_path / "spilled", tmp_path / "second"
    spilled.write_bytes(b"rows" * 1000)
    second.write_bytes(b"more" * 1000)

    async def write() -> None:
        async with lake() as store:
            new = await store.create("messages/a", spilled)
            with pytest.raises(ObjectExists):
                await store.create("messages/a", second)
            assert await store.get("messages/a") == spilled.read_bytes()

            await store.update("messages/a", second, new.etag)
            with pytest.raises(ObjectChanged):
                await store.update("messages/a", spilled, new.etag)

            second.unlink()
            assert await store.get("messages/a") == b"more" * 1000

    asyncio.run(write())


def test_a_range_of_an_object_is_read(lake: OpenStore) -> None:
    async def read() -> None:
        async with lake() as store:
            await store.create("tables/a", b"0123456789")
            assert await store.get_range("tables/a", 0, 3) == b"012"
            assert await store.get_range("tables/a", 8, 5) == b"89"
            with pytest.raises(FileNotFoundError, match="tables/b"):
                await store.get_range("tables/b", 0, 1)

    asyncio.run(read())


def test_a_downloaded_file_does_not_change_with_the_object(lake: OpenStore, tmp_path: Path) -> None:
    path = tmp_path / "fetched"

    async def fetch() -> None:
        async with lake() as store:
            with pytest.raises(FileNotFoundError, match="messages/a"):
                await store.download("messages/a", path)
            first = await store.create("messages/a", b"rows" * 1_000_000)

            await store.download("messages/a", path)
            await store.update("messages/a", b"other rows", first.etag)

            assert path.read_bytes() == b"rows" * 1_000_000
            assert await store.get("messages/a") == b"other rows"

    asyncio.run(fetch())


@pytest.mark.parametrize(
    "key", ["", "/etc/passwd", "../a", "a/../../b", "a/./b", "a//b", "a/", ".tmp/a", "a\0b"]
)
def test_a_key_that_would_leave_the_root_is_rejected(tmp_path: Path, key: str) -> None:
    async def use() -> None:
        async with open_store(str(tmp_path / "lake")) as store:
            for use_it in (store.get, store.head, store.delete):
                with pytest.raises(StoreError, match="cannot be an object"):
                    await use_it(key)
            for write in (store.create, store.overwrite):
                with pytest.raises(StoreError, match="cannot be an object"):
                    await write(key, b"")
            with pytest.raises(StoreError, match="cannot be an object"):
                await store.update(key, b"", "0-0")
            with pytest.raises(StoreError, match=r"a prefix to list|cannot be"):
                await store.list(f"../{key}")

    asyncio.run(use())
    assert list(tmp_path.iterdir()) == []


def test_the_probe_finds_conditional_writes_and_leaves_nothing_behind(lake: OpenStore) -> None:
    async def probe() -> None:
        async with lake() as store:
            assert store.is_conditional is None

            found = await store.probe()

            assert found.is_conditional
            assert found.note is None
            assert store.is_conditional is True
            assert await store.list("") == []

    asyncio.run(probe())


def test_a_store_can_be_opened_again_in_another_event_loop(lake: OpenStore) -> None:
    store = lake()

    async def write(key: str) -> list[str]:
        async with store:
            await store.create(key, b"")
            return [found.key for found in await store.list("")]

    assert asyncio.run(write("a")) == ["a"]
    assert asyncio.run(write("b")) == ["a", "b"]


def test_a_store_that_is_not_open_is_an_error_and_can_be_closed(lake: OpenStore) -> None:
    store = lake()

    with pytest.raises(RuntimeError, match="async with"):
        asyncio.run(store.list(""))
    asyncio.run(store.__aexit__())


def test_spilled_files_are_not_objects(lake: OpenStore) -> None:
    async def spill() -> Path:
        async with lake() as store:
            spilled = store.temporary_directory() / "spilled.parquet"
            spilled.write_bytes(b"rows")
            assert await store.list("") == []
            assert store.temporary_directory() == spilled.parent
            await store.create("messages/a", spilled)
            assert [found.key for found in await store.list("")] == ["messages/a"]
            return spilled

    asyncio.run(spill())


def test_a_block_that_raises_leaves_the_lake_unchanged(lake: OpenStore) -> None:
    async def fail() -> None:
        async with lake() as store:
            store.temporary_directory()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        asyncio.run(fail())

    async def look() -> list[ObjectMeta]:
        async with lake() as store:
            return await store.list("")

    assert asyncio.run(look()) == []
