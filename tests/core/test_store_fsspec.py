"""A lake on another file system of fsspec: it works, and reports that conditional writes are missing."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from imbrace_lake.errors import ObjectChanged, ObjectExists, SettingsError, StoreError, StoreUnavailable
from imbrace_lake.store.factory import ObjectMeta, open_store


@pytest.fixture
def url() -> Iterator[str]:
    yield "memory://lake/of-a-test"
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]


@pytest.fixture(params=["object store", "renaming"])
def protocol(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Test the way of writing to object stores, and that to servers that rename in one step."""
    if request.param == "renaming":
        monkeypatch.setattr("imbrace_lake.store.fsspec_store.RENAMING", frozenset({"memory"}))


@pytest.mark.usefixtures("protocol")
def test_objects_are_written_read_listed_and_deleted(url: str, tmp_path: Path) -> None:
    spilled = tmp_path / "spilled"
    spilled.write_bytes(b"from a file")

    async def use() -> None:
        async with open_store(url) as store:
            assert await store.list("messages/") == []
            new = await store.create("messages/conv=1/a", b"1")
            await store.create("messages/conv=2/a", spilled)
            with pytest.raises(ObjectExists):
                await store.create("messages/conv=1/a", b"2")
            replaced = await store.update("messages/conv=1/a", b"22", new.etag)
            with pytest.raises(ObjectChanged):
                await store.update("messages/conv=1/a", b"3", new.etag)
            await store.overwrite("state/a", b"s")

            assert [found.key for found in await store.list("")] == [
                "messages/conv=1/a",
                "messages/conv=2/a",
                "state/a",
            ]
            assert (
                await store.list("messages/conv=1/") == [replaced] == [await store.head("messages/conv=1/a")]
            )
            assert await store.get("messages/conv=2/a") == b"from a file"
            assert await store.get_range("messages/conv=2/a", 5, 2) == b"a "
            with pytest.raises(FileNotFoundError, match="messages/b"):
                await store.get_range("messages/b", 0, 1)
            await store.download("messages/conv=2/a", tmp_path / "fetched")
            assert (tmp_path / "fetched").read_bytes() == b"from a file"
            with pytest.raises(FileNotFoundError, match="messages/b"):
                await store.download("messages/b", tmp_path / "none")
            assert await store.head("messages") is None
            with pytest.raises(FileNotFoundError, match="messages/b"):
                await store.get("messages/b")
            await store.delete("state/a")
            await store.delete("state/a")
            assert await store.head("state/a") is None

    asyncio.run(use())


def test_the_probe_reports_that_conditional_writes_are_missing(url: str) -> None:
    async def probe() -> None:
        async with open_store(url) as store:
            found = await store.probe()

            assert not found.is_conditional
            assert store.is_conditional is False
            assert found.note == f"{url} has no conditional writes: run one export at a time."
            assert await store.list("") == []

    asyncio.run(probe())


def test_spilled_files_are_removed_when_the_store_is_closed(url: str) -> None:
    async def spill() -> Path:
        async with open_store(url) as store:
            (store.temporary_directory() / "spilled").write_bytes(b"rows")
            assert store.temporary_directory().is_dir()
            return store.temporary_directory()

    assert not asyncio.run(spill()).exists()


@pytest.mark.parametrize(
    ("failure", "kind", "sentence"),
    [
        (PermissionError("no"), StoreError, "check permissions and credentials"),
        (ConnectionResetError("no"), StoreUnavailable, "cannot be reached"),
        (NotImplementedError("no"), StoreError, "cannot be written"),
        (OSError("no"), StoreError, "cannot be used"),
    ],
)
def test_an_error_of_a_driver_becomes_a_sentence(
    url: str, monkeypatch: pytest.MonkeyPatch, failure: Exception, kind: type[StoreError], sentence: str
) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise failure

    monkeypatch.setattr(MemoryFileSystem, "pipe_file", fail)

    async def probe() -> None:
        async with open_store(url) as store:
            await store.probe()

    with pytest.raises(StoreError, match=sentence) as caught:
        asyncio.run(probe())

    assert type(caught.value) is kind
    assert url in str(caught.value)


def test_an_unknown_protocol_and_a_missing_driver_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingsError, match="nosuch:// is not a known protocol"):
        open_store("nosuch://lake")

    def miss(protocol: str) -> None:
        raise ImportError("Please install gcsfs to access Google Storage")

    monkeypatch.setattr(fsspec, "get_filesystem_class", miss)
    with pytest.raises(SettingsError, match="driver for gs:// is not installed: Please install gcsfs"):
        open_store("gs://bucket/lake")


def test_a_password_in_the_url_is_rejected_and_not_repeated() -> None:
    with pytest.raises(SettingsError, match="holds credentials") as caught:
        open_store("sftp://me:hunter2@host/lake")

    assert "hunter2" not in repr(caught.value)


def test_a_driver_that_cannot_start_is_an_error(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise ValueError("Must provide either a connection_string or account_name")

    monkeypatch.setattr(fsspec, "url_to_fs", fail)

    async def use() -> None:
        async with open_store(url):
            pytest.fail("opened")

    with pytest.raises(StoreError, match="check URL and settings"):
        asyncio.run(use())


@pytest.mark.parametrize(
    ("shown", "modified_at"),
    [
        ({"mtime": 1_767_225_600}, datetime(2026, 1, 1, tzinfo=UTC)),
        ({"LastModified": datetime(2026, 1, 1, tzinfo=UTC)}, datetime(2026, 1, 1, tzinfo=UTC)),
        ({"updated": "2026-01-01T01:00:00+01:00"}, datetime(2026, 1, 1, tzinfo=UTC)),
        ({}, datetime(1970, 1, 1, tzinfo=UTC)),
    ],
)
def test_drivers_have_times_of_many_types(
    url: str, monkeypatch: pytest.MonkeyPatch, shown: dict[str, Any], modified_at: datetime
) -> None:
    info = {"type": "file", "size": 3, "etag": "v1", **shown}
    monkeypatch.setattr(MemoryFileSystem, "info", lambda self, path: info)

    async def look() -> ObjectMeta | None:
        async with open_store(url) as store:
            return await store.head("a")

    assert asyncio.run(look()) == ObjectMeta("a", 3, "v1-3", modified_at)


def test_a_driver_without_empty_folders_or_one_that_hides_a_written_object(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def miss(*args: Any, **kwargs: Any) -> None:
        raise FileNotFoundError

    monkeypatch.setattr(MemoryFileSystem, "find", miss)
    monkeypatch.setattr(MemoryFileSystem, "info", miss)

    async def use() -> None:
        async with open_store(url) as store:
            assert await store.list("messages/") == []
            with pytest.raises(StoreError, match="does not show a written object at once"):
                await store.overwrite("a", b"")

    asyncio.run(use())


def test_a_store_that_is_not_open_is_an_error_and_can_be_closed(url: str) -> None:
    with pytest.raises(RuntimeError, match="async with"):
        asyncio.run(open_store(url).list(""))
    asyncio.run(open_store(url).__aexit__())
    assert repr(open_store(url)) == f"FsspecStore('{url}')"
