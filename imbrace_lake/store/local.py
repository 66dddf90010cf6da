"""A lake on a local disk: a complete file appears under its name in one step, or not at all."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import ParamSpec, Self, TypeVar

from imbrace_lake.errors import StoreError, StoreUnavailable
from imbrace_lake.store.atomic_files import AtomicFiles
from imbrace_lake.store.contract import (
    Body,
    Listing,
    ObjectMeta,
    Probe,
    Store,
    check_key,
    check_prefix,
    probe_conditions,
)
from imbrace_lake.writer_process import MAX_BYTES, WriterProcess

# A slow disk or a network mount needs several writes at a time; a fast disk leaves most threads idle.
THREADS = 8

P = ParamSpec("P")
T = TypeVar("T")


class LocalStore(Store):
    """Objects are files under a folder; a write is temporary file, fsync, then one link or rename.

    Blocking calls run in threads, and many writes in a second process, so that a slow disk does not block
    the event loop. Neither can be stopped: after a cancelled call, the complete object may still appear a
    moment later.
    """

    def __init__(self, root: Path) -> None:
        self._disk = AtomicFiles(root)
        self.url = str(root)
        self.is_conditional: bool | None = None
        # None for a moment: this process writes.
        self._writer: WriterProcess | None = None
        self._threads: ThreadPoolExecutor | None = None

    def __repr__(self) -> str:
        return f"LocalStore({self.url!r})"

    async def __aenter__(self) -> Self:
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="lake")
        self._writer = WriterProcess()
        try:
            await self._run(self._disk.sweep)
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        if self._writer is not None:
            await self._writer.close()
            self._writer = None
        if self._threads is not None:
            await asyncio.to_thread(self._threads.shutdown)
            self._threads = None

    async def list(self, prefix: str, *, start_after: str = "", most: int | None = None) -> Listing:
        check_prefix(prefix)
        found = await self._run(
            lambda: [*islice((one for one in self._disk.walk(prefix) if one.key > start_after), most)]
        )
        return sorted(found, key=lambda meta: meta.key)

    async def get(self, key: str) -> bytes:
        check_key(key)
        data = await self._run(self._disk.read, key)
        if data is None:
            raise FileNotFoundError(key)
        return data

    async def download(self, key: str, path: Path) -> None:
        check_key(key)
        if not await self._run(self._disk.copy, key, path):
            raise FileNotFoundError(key)

    async def head(self, key: str) -> ObjectMeta | None:
        check_key(key)
        return await self._run(self._disk.look_up, key)

    async def create(self, key: str, data: Body) -> ObjectMeta:
        check_key(key)
        return await self._write(self._disk.write_new, key, data)

    async def update(self, key: str, data: Body, etag: str) -> ObjectMeta:
        check_key(key)
        return await self._write(self._disk.write_over, key, data, etag)

    async def overwrite(self, key: str, data: bytes) -> ObjectMeta:
        check_key(key)
        return await self._write(self._disk.write_over, key, data, None)

    async def delete(self, key: str) -> None:
        check_key(key)
        await self._write(self._disk.remove, key)

    def temporary_directory(self) -> Path:
        try:
            return self._disk.temporary()
        except OSError as exc:
            raise explain(exc, self.url) from exc

    async def probe(self) -> Probe:
        # This process has to notice whether the file system has links.
        writer, self._writer = self._writer, None
        try:
            works = await probe_conditions(self)
        finally:
            self._writer = writer
        self.is_conditional = works and self._disk.has_links
        if not works:
            note = f"{self.url} is on a disk with unreliable modification times: run one export at a time."
        elif not self._disk.has_links:
            note = f"{self.url} is on a disk without hard links: run one export at a time."
        else:
            note = None
        return Probe(self.is_conditional, note)

    async def _write(self, func: Callable[..., T], key: str, *args: Body | str | None) -> T:
        """Run a function that writes: in the writer process, unless it writes much."""
        is_small = not args or (isinstance(args[0], bytes) and len(args[0]) <= MAX_BYTES)
        if self._writer is None or not is_small:
            return await self._run(func, key, *args)
        with self._explained():
            return await self._writer.run(self._threads, func, key, *args)

    async def _run(self, func: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        if self._threads is None:
            raise RuntimeError("open the store with `async with` first")
        loop = asyncio.get_running_loop()
        with self._explained():
            return await loop.run_in_executor(self._threads, partial(func, *args, **kwargs))

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as exc:
            raise explain(exc, self.url) from exc


def explain(exc: OSError, url: str) -> StoreError:
    """Turn an error of the operating system into one sentence."""
    reason = os.strerror(exc.errno) if exc.errno else type(exc).__name__
    # The second name of a link or a rename is the object's.
    path = exc.filename2 or exc.filename or url
    match exc.errno:
        case errno.ENOSPC | errno.EDQUOT:
            return StoreError(f"the disk of {url} is full ({reason}): free some space, then run again")
        case errno.EACCES | errno.EPERM:
            return StoreError(f"this user may not read and write {path} ({reason}): change its owner or mode")
        case errno.EROFS:
            return StoreError(f"{url} is on a read-only file system: mount it for writing or choose another")
        case errno.ENOTDIR | errno.EEXIST:
            return StoreError(f"{path} is a file where the lake needs a folder: choose another folder")
        case errno.ELOOP | errno.ENXIO:
            return StoreError(f"{path} is not a regular file or folder ({reason}): remove it")
        case errno.ENOLCK | errno.EOPNOTSUPP | errno.ENOSYS:
            return StoreError(f"the file system of {url} has no file locks ({reason}): choose another disk")
        case errno.EIO | errno.ESTALE | errno.ETIMEDOUT | errno.EMFILE | errno.ENFILE:
            return StoreUnavailable(f"the disk of {url} fails for now ({reason}): try again")
        case _:
            return StoreError(f"{url} cannot be used ({reason}): check the path")
