"""Only its owner can read a lake on a local disk, unless its folder shows that a group shares it."""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from imbrace_lake.store.local import LocalStore
from imbrace_sandbox import Sandbox, SandboxOptions
from tests.core.lake_runs import run_once, settings_for


@pytest.fixture(params=[0o022, 0o000, 0o077], ids=["022", "000", "077"])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def modes(folder: Path) -> dict[str, int]:
    """Return the permissions of a folder and of everything below it."""
    return {
        str(path.relative_to(folder)): stat.S_IMODE(path.stat().st_mode)
        for path in (folder, *folder.rglob("*"))
    }


def open_to_others(folder: Path) -> dict[str, str]:
    return {name: oct(mode) for name, mode in modes(folder).items() if mode & 0o077}


@pytest.mark.slow
@pytest.mark.usefixtures("umask")
def test_only_the_owner_can_read_the_objects_of_a_run(tmp_path: Path) -> None:
    position = tmp_path / "a" / "b"
    with Sandbox(SandboxOptions(conversations=8, sizes=(600,))) as box:
        # Little memory, so that the long conversation spills.
        settings = settings_for(box, str(position), memory_megabytes=0.01)
        summary = asyncio.run(run_once(settings, box.conversations))
        box.append(next(iter(box.conversations)), 3)
        asyncio.run(run_once(settings, box.conversations))

    assert summary.status == "complete"
    assert {"messages", "conversations", "runs", ".tmp", ".tmp/lock"} <= {*modes(position)}
    assert open_to_others(tmp_path / "a") == {}


@pytest.mark.usefixtures("umask")
def test_every_way_to_write_an_object_leaves_it_private(tmp_path: Path) -> None:
    root = tmp_path / "lake"
    finished = tmp_path / "finished"
    finished.write_bytes(b"a file of another mode")
    finished.chmod(0o666)

    async def write() -> None:
        async with LocalStore(root) as store:
            first = await store.create("new/bytes", b"1")
            await store.create("new/file", finished)
            await store.overwrite("over/put", b"1")
            await store.update("new/bytes", b"2", first.etag)

    asyncio.run(write())

    assert open_to_others(root) == {}
    assert len([path for path in root.rglob("*") if path.is_file()]) == 4


@pytest.mark.usefixtures("umask")
def test_spilled_files_in_the_systems_temporary_folder_are_private(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    tmp_path.chmod(0o700)
    from imbrace_lake.store.contract import StoreOptions
    from imbrace_lake.store.s3 import S3Store

    folder = S3Store("bucket", "", StoreOptions()).temporary_directory()

    assert open_to_others(folder) == {}
    folder.rmdir()


@pytest.mark.usefixtures("umask")
def test_new_objects_of_a_lake_that_others_can_read_are_private(tmp_path: Path) -> None:
    root = tmp_path / "lake"
    old = root / "messages" / "old"
    old.parent.mkdir(parents=True)
    old.write_bytes(b"old")
    for path in (root, old.parent, old):
        path.chmod(0o755)

    async def write() -> None:
        async with LocalStore(root) as store:
            await store.create("messages/new", b"1")
            await store.overwrite("messages/folder/new", b"1")

    asyncio.run(write())

    assert set(open_to_others(root)) == {".", "messages", "messages/old"}


@pytest.mark.parametrize("mode", [0o2770, 0o2750])
@pytest.mark.usefixtures("umask")
def test_objects_in_a_folder_that_a_group_shares_are_shared(mode: int, tmp_path: Path) -> None:
    root = tmp_path / "lake"
    root.mkdir()
    root.chmod(mode)

    async def write() -> None:
        async with LocalStore(root) as store:
            await store.create("messages/a/new", b"1")
            await store.overwrite("over", b"1")

    asyncio.run(write())

    found = modes(root)
    assert {found[name] for name in (".", "messages", "messages/a", ".tmp")} == {mode}
    assert {found[name] for name in ("messages/a/new", "over", ".tmp/lock")} == {mode & 0o666}
