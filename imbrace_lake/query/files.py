"""The objects of a lake as files of pyarrow, which an engine can read and nothing else."""

from __future__ import annotations

import atexit
import io
import shutil
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Coroutine, Iterable, Sequence
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.fs as pafs

from imbrace_lake.errors import StoreError
from imbrace_lake.store.contract import ObjectMeta, Store
from imbrace_lake.store.local import LocalStore
from imbrace_lake.tables.cleaning import TABLES

T = TypeVar("T")
Run = Callable[[Coroutine[Any, Any, T]], T]

# A smaller object is read in one request. Of a larger file of a table, which is never replaced, a query reads
# only the column chunks that it needs. Other objects are downloaded once, so that no two versions are mixed.
MAX_BYTES = 4 * 2**20
# At the end of the process: how long requests may take, and without which calls Arrow's threads are at rest.
CALL_SECONDS, QUIET_SECONDS = 10.0, 0.05


def dataset_of(
    store: Store,
    run: Callable[[Coroutine[Any, Any, Any]], Any],
    schema: pa.Schema,
    objects: Iterable[ObjectMeta],
) -> ds.Dataset:
    """Return the rows of Parquet objects as a dataset that reads only these, without a listing.

    Args:
        store: The open store.
        run: Runs a coroutine in the event loop of the store, from any thread.
        schema: The columns; those that an object does not have are null.
        objects: The objects.
    """
    if isinstance(store, LocalStore):
        files: pafs.FileSystem = pafs.SubTreeFileSystem(store.url, pafs.LocalFileSystem())
        keys = [meta.key for meta in objects]
    else:
        metas = {meta.key: meta for meta in objects}
        files, keys = pafs.PyFileSystem(_StoreFiles(store, run, metas)), [*metas]
    format_ = ds.ParquetFileFormat()
    fragments = [format_.make_fragment(key, files) for key in keys]
    return ds.FileSystemDataset(fragments, schema, format_, files)


class _Calls:
    """The calls of Arrow's threads, which must not run any more when the interpreter ends: it would abort."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._running = self._begun = 0
        self._is_closed = False

    def __enter__(self) -> None:
        """Begin a call.

        Raises:
            OSError: The process ends.
        """
        with self._changed:
            self._begun += 1
            if self._is_closed:
                raise OSError("the process ends")
            self._running += 1

    def __exit__(self, *exc_info: object) -> None:
        """End a call."""
        with self._changed:
            self._running -= 1
            self._changed.notify_all()

    def close(self) -> None:
        """Reject further calls, and wait until the present ones have ended and no more are tried."""
        with self._changed:
            self._is_closed = True
            if not self._begun:
                return
            self._changed.wait_for(lambda: not self._running, CALL_SECONDS)
        begun = -1
        while begun != (begun := self._begun):
            time.sleep(QUIET_SECONDS)


_calls = _Calls()
atexit.register(_calls.close)


class _Ranges(io.RawIOBase):
    """An object of a store, of which each read requests only its bytes.

    Args:
        store: The open store.
        run: Runs a coroutine in the event loop of the store.
        key: The object, which is never replaced.
        size_bytes: Its length.
    """

    def __init__(
        self, store: Store, run: Callable[[Coroutine[Any, Any, Any]], Any], key: str, size_bytes: int
    ) -> None:
        self._store, self._run, self._key, self._size_bytes = store, run, key, size_bytes
        self._position = 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the position of the next byte."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Set and return the position of the next byte."""
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size_bytes}[whence]
        self._position = start + offset
        return self._position

    def read(self, size: int = -1) -> bytes:
        """Return the next bytes, all by default; fewer at the end of the object."""
        rest = max(0, self._size_bytes - self._position)
        length = rest if size < 0 else min(size, rest)
        if not length:
            return b""
        data = b""
        # Too few bytes are an error of Arrow, as in `_StoreFiles.open_input_file`.
        with _calls, suppress(FileNotFoundError, StoreError):
            data = self._run(self._store.get_range(self._key, self._position, length))
        self._position += len(data)
        return data


class _StoreFiles(pafs.FileSystemHandler):  # type: ignore[misc]  # pyarrow has no types
    """The listed objects of a store, to read.

    Args:
        store: The open store.
        run: Runs a coroutine in the event loop of the store.
        metas: The objects that can be read.
    """

    def __init__(
        self, store: Store, run: Callable[[Coroutine[Any, Any, Any]], Any], metas: dict[str, ObjectMeta]
    ) -> None:
        self._store, self._run, self._metas = store, run, metas
        self._downloads: Path | None = None
        self._lock = threading.Lock()

    def open_input_file(self, path: str) -> pa.NativeFile:
        """Return the content of an object."""
        with _calls:
            try:
                return self._open(path)
            except (FileNotFoundError, StoreError):
                # Not Parquet, so an error of Arrow: one of Python can block DuckDB and Arrow for ever.
                return pa.BufferReader(b"")

    def _open(self, path: str) -> pa.NativeFile:
        size_bytes = self._metas[path].size_bytes
        if size_bytes <= MAX_BYTES:
            return pa.BufferReader(self._run(self._store.get(path)))
        if path.startswith(TABLES):
            return pa.PythonFile(_Ranges(self._store, self._run, path, size_bytes), mode="r")
        # Engines open an object in several threads.
        with self._lock:
            if self._downloads is None:
                self._downloads = Path(tempfile.mkdtemp(prefix="imbrace-lake-"))
                weakref.finalize(self, shutil.rmtree, self._downloads, ignore_errors=True)
            local = self._downloads / sha256(path.encode()).hexdigest()
            if not local.exists():
                self._run(self._store.download(path, local))
        return pa.OSFile(str(local))

    def open_input_stream(self, path: str) -> pa.NativeFile:
        """Return the content of an object."""
        return self.open_input_file(path)

    def get_type_name(self) -> str:
        """Return the kind of this file system."""
        return "lake"

    def normalize_path(self, path: str) -> str:
        """Return the path, which is a key."""
        return path

    def get_file_info(self, paths: Sequence[str]) -> list[pafs.FileInfo]:
        """Return what is known of objects."""
        return [
            pafs.FileInfo(path, pafs.FileType.File, size=self._metas[path].size_bytes)
            if path in self._metas
            else pafs.FileInfo(path, pafs.FileType.NotFound)
            for path in paths
        ]

    def __eq__(self, other: object) -> bool:
        """Whether both are the same file system."""
        return self is other

    def __ne__(self, other: object) -> bool:
        """Whether they are different file systems."""
        return self is not other

    def __hash__(self) -> int:
        """Return the identity."""
        return id(self)

    def _read_only(self, *_: object, **__: object) -> Any:
        raise PermissionError("a lake is only read here")

    get_file_info_selector = create_dir = delete_dir = delete_dir_contents = _read_only
    delete_root_dir_contents = delete_file = move = copy_file = _read_only
    open_output_stream = open_append_stream = _read_only
