"""A lake on another file system that fsspec has a driver for, without conditional writes."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, ParamSpec, Self, TypeVar
from urllib.parse import urlsplit
from uuid import uuid4

import fsspec

from imbrace_lake.errors import ObjectChanged, ObjectExists, SettingsError, StoreError, StoreUnavailable
from imbrace_lake.store.contract import (
    TEMPORARY,
    Body,
    Listing,
    ObjectMeta,
    Probe,
    Store,
    check_key,
    check_prefix,
    probe_conditions,
)

THREADS = 8
# These drivers write a file piece by piece under its name, but rename in one step. For object stores it is
# the other way round.
RENAMING = frozenset({"sftp", "ssh", "ftp", "smb", "hdfs", "arrow_hdfs", "webhdfs"})
VERSIONS = ("etag", "ETag", "generation")
TIMES = ("mtime", "last_modified", "LastModified", "updated", "modified", "created")

P = ParamSpec("P")
T = TypeVar("T")


class FsspecStore(Store):
    """Objects through fsspec's synchronous interface, in threads.

    Conditions are tested before the write: two writers at the same moment may both win. Errors of a
    driver other than OSError, ValueError and NotImplementedError are not translated.

    Raises:
        SettingsError: The protocol is unknown, or its driver is not installed.
    """

    def __init__(self, url: str) -> None:
        protocol = urlsplit(url).scheme
        try:
            driver = fsspec.get_filesystem_class(protocol)
        except ValueError as exc:
            raise SettingsError(
                f"{protocol}:// is not a known protocol: use a folder, s3:// or a protocol of fsspec"
            ) from exc
        except ImportError as exc:
            raise SettingsError(f"the driver for {protocol}:// is not installed: {exc}") from exc
        self.url = url.rstrip("/")
        self.is_conditional: bool | None = None
        self._driver = driver
        self._protocol = protocol
        self._files: Any = None
        self._root = ""
        self._threads: ThreadPoolExecutor | None = None
        self._spilled: Path | None = None

    def __repr__(self) -> str:
        return f"FsspecStore({self.url!r})"

    async def __aenter__(self) -> Self:
        # Asynchronous drivers can be called from several threads; the others often have one connection.
        threads = THREADS if self._driver.async_impl else 1
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="lake")
        try:
            self._files, root = await self._run(
                fsspec.url_to_fs, self.url, use_listings_cache=False, skip_instance_cache=True
            )
        except BaseException:
            await self.__aexit__()
            raise
        self._root = root.rstrip("/")
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        if self._threads is not None:
            await asyncio.to_thread(self._threads.shutdown)
            self._threads = None
        if self._spilled is not None:
            shutil.rmtree(self._spilled, ignore_errors=True)
            self._spilled = None

    async def list(self, prefix: str, *, start_after: str = "", most: int | None = None) -> Listing:
        check_prefix(prefix)
        found = await self._run(self._walk, prefix)
        return [meta for meta in found if meta.key > start_after][:most]

    async def get(self, key: str) -> bytes:
        check_key(key)
        data = await self._run(self._read, key)
        if data is None:
            raise FileNotFoundError(key)
        return data

    async def get_range(self, key: str, start: int, length: int) -> bytes:
        check_key(key)
        data = await self._run(self._read, key, start, start + length)
        if data is None:
            raise FileNotFoundError(key)
        return data

    async def download(self, key: str, path: Path) -> None:
        check_key(key)
        if not await self._run(self._copy, key, path):
            raise FileNotFoundError(key)

    async def head(self, key: str) -> ObjectMeta | None:
        check_key(key)
        return await self._run(self._look_up, key)

    async def create(self, key: str, data: Body) -> ObjectMeta:
        check_key(key)
        if await self.head(key) is not None:
            raise ObjectExists(f"{key} exists already in {self.url}")
        return await self._run(self._write, key, data)

    async def update(self, key: str, data: Body, etag: str) -> ObjectMeta:
        current = await self.head(key)
        if current is None or current.etag != etag:
            raise ObjectChanged(f"{key} in {self.url} is no longer the version that was read")
        return await self._run(self._write, key, data)

    async def overwrite(self, key: str, data: bytes) -> ObjectMeta:
        check_key(key)
        return await self._run(self._write, key, data)

    async def delete(self, key: str) -> None:
        check_key(key)
        await self._run(self._remove, key)

    def temporary_directory(self) -> Path:
        if self._spilled is None:
            self._spilled = Path(tempfile.mkdtemp(prefix="imbrace-lake-"))
        return self._spilled

    async def probe(self) -> Probe:
        await probe_conditions(self)
        self.is_conditional = False
        return Probe(
            is_conditional=False, note=f"{self.url} has no conditional writes: run one export at a time."
        )

    async def _run(self, func: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        if self._threads is None:
            raise RuntimeError("open the store with `async with` first")
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._threads, partial(func, *args, **kwargs))
        # Without the causes: their texts can contain a signed address.
        except PermissionError as exc:
            raise StoreError(
                f"{self.url} denied access ({type(exc).__name__}): check permissions and credentials"
            ) from None
        except (ConnectionError, TimeoutError) as exc:
            raise StoreUnavailable(
                f"{self.url} cannot be reached ({type(exc).__name__}): try again"
            ) from None
        except NotImplementedError:
            raise StoreError(f"{self.url} cannot be written: choose a store that can") from None
        except (OSError, ValueError) as exc:
            raise StoreError(
                f"{self.url} cannot be used ({type(exc).__name__}): check URL and settings"
            ) from None

    # The methods below run in threads.

    def _path(self, key: str) -> str:
        return f"{self._root}/{key}"

    def _walk(self, prefix: str) -> Listing:
        try:
            found = self._files.find(self._path(prefix), detail=True)
        except FileNotFoundError:
            return []
        start = len(self._root) + 1
        listing = [
            _fsspec_object_meta(path[start:], info) for path, info in found.items() if info["type"] == "file"
        ]
        return sorted(
            (meta for meta in listing if not meta.key.startswith(f"{TEMPORARY}/")),
            key=lambda meta: meta.key,
        )

    def _read(self, key: str, start: int | None = None, end: int | None = None) -> bytes | None:
        try:
            return bytes(self._files.cat_file(self._path(key), start=start, end=end))
        except FileNotFoundError:
            return None

    def _copy(self, key: str, path: Path) -> bool:
        try:
            self._files.get_file(self._path(key), str(path))
        except FileNotFoundError:
            return False
        return True

    def _look_up(self, key: str) -> ObjectMeta | None:
        try:
            info = self._files.info(self._path(key))
        except FileNotFoundError:
            return None
        return _fsspec_object_meta(key, info) if info["type"] == "file" else None

    def _write(self, key: str, data: Body) -> ObjectMeta:
        target = self._path(key)
        is_renaming = self._protocol in RENAMING
        path = self._path(f"{TEMPORARY}/{uuid4().hex}") if is_renaming else target
        self._files.makedirs(self._files._parent(path), exist_ok=True)
        if isinstance(data, Path):
            self._files.put_file(str(data), path)
        else:
            self._files.pipe_file(path, data)
        if is_renaming:
            self._files.makedirs(self._files._parent(target), exist_ok=True)
            self._files.mv(path, target)
        meta = self._look_up(key)
        if meta is None:
            raise StoreError(f"{self.url} does not show a written object at once: use a consistent store")
        return meta

    def _remove(self, key: str) -> None:
        try:
            self._files.rm_file(self._path(key))
        except FileNotFoundError:
            return


def _fsspec_object_meta(key: str, info: dict[str, Any]) -> ObjectMeta:
    size = int(info["size"] or 0)
    modified_at = _modified_at(info)
    # Without a version, the time is used, in the form that `info` and `find` share.
    version = next((str(info[name]) for name in VERSIONS if info.get(name)), modified_at.isoformat())
    return ObjectMeta(key, size, f"{version}-{size:x}", modified_at)


def _modified_at(info: dict[str, Any]) -> datetime:
    for name in TIMES:
        match info.get(name):
            case datetime() as time:
                return time.astimezone(UTC) if time.tzinfo else time.replace(tzinfo=UTC)
            case int() | float() as seconds:
                return datetime.fromtimestamp(seconds, UTC)
            case str() as text:
                return datetime.fromisoformat(text).astimezone(UTC)
    return datetime.fromtimestamp(0, UTC)
