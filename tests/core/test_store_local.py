"""A lake on a disk: URLs, the files that a failure leaves, and the messages about failures."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import shutil
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from imbrace_lake.concurrency import every
from imbrace_lake.errors import ObjectExists, SettingsError, StoreError, StoreUnavailable
from imbrace_lake.store import atomic_files as store_disk
from imbrace_lake.store.factory import ObjectMeta, Probe, Store, open_store

STAMP = datetime(2026, 1, 1, tzinfo=UTC)


def files_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def refuse(number: int) -> object:
    def raise_it(*args: object, **kwargs: object) -> None:
        raise OSError(number, os.strerror(number))

    return raise_it


async def create(url: str, key: str = "messages/a", data: bytes | Path = b"rows") -> ObjectMeta:
    async with open_store(url) as store:
        return await store.create(key, data)


def test_a_path_and_a_file_url_name_the_same_lake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    lake = tmp_path / "a lake"

    urls = ["a lake", "./a lake/", str(lake), "~/a lake", f"file://{tmp_path}/a%20lake", lake.as_uri()]

    assert {open_store(url).url for url in urls} == {str(lake)}
    assert repr(open_store(str(lake))) == f"LocalStore('{lake}')"


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("", "URL is empty"),
        ("file://lake/a", "names no host"),
        ("simplecache::s3://bucket/a", "chain of file systems"),
        ("s3://[bucket/a", "is not a URL"),
        ("s3:/bucket/a", "begins with s3:, which is not a folder: write s3://bucket/prefix"),
        ("s3//bucket/a", "begins with s3//, which is not a folder"),
        ("az:/container/a", "begins with az:, which is not a folder: write az://bucket/prefix"),
        ("OSS:bucket", "begins with OSS:, which is not a folder: write oss://bucket/prefix"),
        (
            "file:/data/lake",
            "begins with file:, which is not a folder: write the path alone, such as /data/lake",
        ),
        (
            "https:/bucket.s3.amazonaws.com",
            "begins with https:, which is not a folder: write s3://bucket/prefix",
        ),
        ("arn:aws:s3:::bucket/a", "begins with arn:, which is not a folder"),
        ("s3://bucket/a ", "begins or ends with a space"),
    ],
)
def test_a_url_that_cannot_be_a_lake_is_rejected(url: str, sentence: str) -> None:
    with pytest.raises(SettingsError, match=sentence):
        open_store(url)


def test_opening_a_missing_lake_creates_nothing(tmp_path: Path) -> None:
    async def look() -> None:
        async with open_store(str(tmp_path / "lake")) as store:
            assert await store.list("") == []

    asyncio.run(look())

    assert list(tmp_path.iterdir()) == []


def test_writes_leave_only_the_object_and_the_lock(tmp_path: Path) -> None:
    async def write() -> None:
        async with open_store(str(tmp_path)) as store:
            stored = await store.create("messages/a", b"1")
            await store.update("messages/a", b"2", stored.etag)
            await store.overwrite("state/b", b"1")
            await store.delete("state/b")

    asyncio.run(write())

    assert files_below(tmp_path) == [".tmp/lock", "messages/a"]
    assert not (tmp_path / "state").exists()


SENTENCES = {
    errno.ENOSPC: (StoreError, "is full"),
    errno.EDQUOT: (StoreError, "is full"),
    errno.EACCES: (StoreError, "this user may not"),
    errno.EROFS: (StoreError, "read-only file system"),
    errno.EIO: (StoreUnavailable, "fails for now"),
    errno.ENOENT: (StoreError, "No such file"),
    errno.ENAMETOOLONG: (StoreError, "File name too long"),
}


@pytest.mark.parametrize("number", SENTENCES)
@pytest.mark.parametrize("step", ["fsync", "link"])
def test_a_failed_write_leaves_nothing_and_is_explained_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, step: str
) -> None:
    kind, sentence = SENTENCES[number]
    monkeypatch.setattr(os, step, refuse(number))

    with pytest.raises(StoreError, match=sentence) as caught:
        asyncio.run(create(str(tmp_path)))

    assert type(caught.value) is kind
    assert caught.value.is_transient is (kind is StoreUnavailable)
    assert str(tmp_path) in str(caught.value)
    assert files_below(tmp_path) == []


def test_a_lake_whose_root_is_deleted_under_a_writer_is_created_again(tmp_path: Path) -> None:
    async def write() -> None:
        async with open_store(str(tmp_path / "lake")) as store:
            await store.create("messages/a", b"1")
            shutil.rmtree(tmp_path / "lake")
            await store.create("messages/a", b"2")

    asyncio.run(write())

    assert (tmp_path / "lake/messages/a").read_bytes() == b"2"


def test_a_failed_replacement_leaves_the_old_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def replace() -> None:
        async with open_store(str(tmp_path)) as store:
            stored = await store.create("messages/a", b"old")
            monkeypatch.setattr(os, "fsync", refuse(errno.ENOSPC))
            with pytest.raises(StoreError, match="is full"):
                await store.update("messages/a", b"new", stored.etag)
            assert await store.get("messages/a") == b"old"

    asyncio.run(replace())

    assert files_below(tmp_path) == ["messages/a"]


def test_a_file_system_without_locks_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def put() -> None:
        async with open_store(str(tmp_path)) as store:
            await store.overwrite("state/a", b"")

    monkeypatch.setattr(fcntl, "flock", refuse(errno.ENOLCK))

    with pytest.raises(StoreError, match="has no file locks"):
        asyncio.run(put())


@pytest.mark.slow
def test_a_slow_disk_blocks_neither_the_event_loop_nor_the_other_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync = os.fsync

    def fsync_slowly(descriptor: int) -> None:
        time.sleep(0.2)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", fsync_slowly)
    ticks: list[float] = []

    async def tick() -> None:
        ticks.append(time.monotonic())

    async def write() -> float:
        async with open_store(str(tmp_path)) as store, every(0.01, tick):
            began = time.monotonic()
            await asyncio.gather(*(store.create(f"messages/{number}", b"rows") for number in range(16)))
            return time.monotonic() - began

    # One after the other they take 6.4 seconds.
    assert asyncio.run(write()) < 4
    assert len(ticks) > 20


@pytest.mark.parametrize("root", ["lake", "lake/below"])
def test_a_lake_that_is_a_file_is_rejected(tmp_path: Path, root: str) -> None:
    (tmp_path / "lake").write_bytes(b"")

    with pytest.raises(StoreError, match="is a file where the lake needs a folder"):
        asyncio.run(create(str(tmp_path / root)))


def test_an_object_cannot_be_the_folder_of_another(tmp_path: Path) -> None:
    asyncio.run(create(str(tmp_path), "messages/a"))

    with pytest.raises(StoreError, match="is a file where the lake needs a folder") as caught:
        asyncio.run(create(str(tmp_path), "messages/a/b"))

    assert not isinstance(caught.value, ObjectExists)


def test_a_broken_link_is_not_taken_for_an_object(tmp_path: Path) -> None:
    (tmp_path / "messages").symlink_to(tmp_path / "gone")

    with pytest.raises(StoreError) as caught:
        asyncio.run(create(str(tmp_path)))

    assert not isinstance(caught.value, ObjectExists)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_write_permission_is_an_error(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)

    with pytest.raises(StoreError, match="this user may not"):
        asyncio.run(create(str(tmp_path / "lake")))


def test_temporary_files_older_than_a_day_are_removed_at_opening(tmp_path: Path) -> None:
    temporary = tmp_path / ".tmp"
    temporary.mkdir()
    for name, days in [("left-behind.part", 2.0), ("lock", 2.0), ("of-a-running-one.part", 0.5)]:
        (temporary / name).write_bytes(b"")
        then = time.time() - days * 24 * 3600
        os.utime(temporary / name, (then, then))
    for name, days in [("spill-left-behind", 2.0), ("spill-of-a-running-one", 0.5)]:
        (temporary / name).mkdir()
        (temporary / name / "000001").write_bytes(b"")
        then = time.time() - days * 24 * 3600
        os.utime(temporary / name, (then, then))

    asyncio.run(create(str(tmp_path)))

    assert files_below(tmp_path) == [
        ".tmp/lock",
        ".tmp/of-a-running-one.part",
        ".tmp/spill-of-a-running-one/000001",
        "messages/a",
    ]


@pytest.fixture
def no_links(monkeypatch: pytest.MonkeyPatch) -> None:
    """Behave like a disk without hard links, which Linux reports as EPERM."""
    monkeypatch.setattr(os, "link", refuse(errno.EPERM))


@pytest.mark.usefixtures("no_links")
def test_without_hard_links_one_writer_wins_and_the_probe_advises_one_run_at_a_time(tmp_path: Path) -> None:
    async def race(stores: list[Store], key: str) -> list[ObjectMeta]:
        results = await asyncio.gather(*(s.create(key, b"x") for s in stores * 4), return_exceptions=True)
        assert all(isinstance(result, ObjectMeta | ObjectExists) for result in results)
        return [result for result in results if isinstance(result, ObjectMeta)]

    async def run() -> Probe:
        async with open_store(str(tmp_path)) as one, open_store(str(tmp_path)) as other:
            for number in range(20):
                assert len(await race([one, other], f"messages/conv={number}/a")) == 1
            return await one.probe()

    probe = asyncio.run(run())

    assert not probe.is_conditional
    assert probe.note is not None
    assert "without hard links" in probe.note


def test_a_disk_with_unreliable_modification_times_is_detected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        store_disk, "_file_meta", lambda key, stat: ObjectMeta(key, stat.st_size, "same", STAMP)
    )

    async def probe() -> Probe:
        async with open_store(str(tmp_path)) as store:
            return await store.probe()

    found = asyncio.run(probe())

    assert not found.is_conditional
    assert found.note is not None
    assert "unreliable modification times" in found.note
    assert files_below(tmp_path) == [".tmp/lock"]


def test_a_file_from_another_disk_is_copied_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spilled = Path(tempfile.mkdtemp(dir=tmp_path)) / "spilled"
    spilled.write_bytes(b"rows")
    link = os.link

    def link_on_one_disk(source: Path, target: Path) -> None:
        if source == spilled.resolve():
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        link(source, target)

    monkeypatch.setattr(os, "link", link_on_one_disk)

    asyncio.run(create(str(tmp_path / "lake"), data=spilled))

    assert (tmp_path / "lake/messages/a").read_bytes() == b"rows"
    assert not (tmp_path / "lake/messages/a").samefile(spilled)


def test_a_missing_file_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="No such file"):
        asyncio.run(create(str(tmp_path), data=tmp_path / "gone"))

    assert files_below(tmp_path) == []


def test_an_update_is_a_new_version_even_if_the_clock_went_back(tmp_path: Path) -> None:
    async def replace() -> None:
        async with open_store(str(tmp_path)) as store:
            await store.create("messages/a", b"1")
            tomorrow = time.time() + 24 * 3600
            os.utime(tmp_path / "messages/a", (tomorrow, tomorrow))
            read = await store.head("messages/a")
            assert read is not None

            replaced = await store.update("messages/a", b"2", read.etag)

            assert replaced.etag != read.etag
            assert replaced.modified_at > read.modified_at

    asyncio.run(replace())


def test_a_lock_that_another_process_keeps_ends_in_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_disk, "LOCK_SECONDS", 0.05)

    async def put() -> None:
        async with open_store(str(tmp_path)) as store:
            lock = store.temporary_directory() / "lock"
            with lock.open("wb") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                with pytest.raises(StoreUnavailable, match="another process has locked"):
                    await store.overwrite("state/a", b"")
            await store.overwrite("state/a", b"")

    asyncio.run(put())


def test_a_temporary_directory_that_cannot_be_created_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "lake").write_bytes(b"")

    with pytest.raises(StoreError, match="is a file where"):
        open_store(str(tmp_path / "lake")).temporary_directory()
