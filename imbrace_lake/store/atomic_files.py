"""Files that appear under their names in one step and survive a power failure; all calls block."""

from __future__ import annotations

import errno
import itertools
import logging
import os
import shutil
import stat
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import cache, cached_property
from pathlib import Path
from typing import IO
from uuid import uuid4

from filelock import FileLock, Timeout

from imbrace_lake.errors import ObjectChanged, ObjectExists, StoreError, StoreUnavailable
from imbrace_lake.store.contract import TEMPORARY, Body, ObjectMeta

logger = logging.getLogger(__name__)

STALE_SECONDS = 24 * 3600
LOCK_FILE = "lock"
LOCK_SECONDS = 60.0
# The permissions of a folder that only its owner may use; files have those of these bits that suit a file.
PRIVATE = 0o700
FILE_BITS = 0o666
# Without hard links, Linux reports EPERM for vfat, exFAT and most FUSE mounts, macOS and NFS the others.
NO_LINK = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK})


class AtomicFiles:
    """A folder of files. A write is a temporary file, fsync, then one link or rename. Thread-safe.

    Only the owner may read new files, whatever the umask, unless a group shares the root: new files and
    folders then get the root's permissions. The sign for that is the set-group-ID bit (``chmod 2770``),
    which also gives everything below the root to its group.

    Every method may raise OSError.

    Attributes:
        root: The folder.
        has_links: False after the file system rejected a hard link.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.has_links = True
        self._temporary = root / TEMPORARY
        self._lock = threading.Lock()
        self._moments = itertools.count()
        self._syncing = threading.Lock()
        self._synced: dict[Path, int] = {}

    def __reduce__(self) -> tuple[Callable[[Path], AtomicFiles], tuple[Path]]:
        # Locks cannot be pickled; in another process, all threads share the locks of one object.
        return _files_below, (self.root,)

    def temporary(self) -> Path:
        """Return the folder of temporary files, which is made if it is missing."""
        _make_folder(self._temporary, self._mode)
        return self._temporary

    @cached_property
    def _mode(self) -> int:
        """The permissions of new folders, as they are at the first write."""
        try:
            mode = stat.S_IMODE(self.root.stat().st_mode)
        except (FileNotFoundError, NotADirectoryError):
            return PRIVATE
        return mode if mode & stat.S_ISGID else PRIVATE

    def sweep(self) -> None:
        """Remove the temporary files of processes that were killed.

        Raises:
            NotADirectoryError: The root is a file.
        """
        with suppress(FileNotFoundError):
            if not stat.S_ISDIR(self.root.stat().st_mode):
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(self.root))
        oldest = time.time() - STALE_SECONDS
        # Users who may only read can open a lake too, so a failure here is ignored.
        with suppress(OSError):
            for path in self._temporary.iterdir():
                # If the lock file were removed, two processes could lock two different files.
                if path.name == LOCK_FILE or path.stat().st_mtime >= oldest:
                    continue
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink()

    def walk(self, prefix: str) -> Iterator[ObjectMeta]:
        """Iterate over all files below a folder whose key is ``prefix``; none if it is missing.

        Only regular files are objects. Pipes, sockets, devices, links in circles and names that are not
        UTF-8 are skipped with a warning.
        """
        yield from self._walk(prefix, set())

    def _walk(self, prefix: str, linked: set[Path]) -> Iterator[ObjectMeta]:
        """Iterate over the files below a folder; `linked` are the folders that links led to so far."""
        # A path as text, because a listing opens one folder per conversation.
        folder = f"{self.root}/{prefix}"
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False) and _is_utf8(entry.name):
                        if prefix or entry.name != TEMPORARY:
                            yield from self._walk(f"{prefix}{entry.name}/", linked)
                    else:
                        yield from self._walk_entry(entry, prefix, linked)
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as exc:
            if exc.errno != errno.ELOOP:
                raise
            _warn(Path(folder), "is a link that leads to itself")

    def _walk_entry(self, entry: os.DirEntry[str], prefix: str, linked: set[Path]) -> Iterator[ObjectMeta]:
        """Iterate over the file of an entry, or over the files below a folder that a link leads to."""
        key = prefix + entry.name
        try:
            status = entry.stat()
        except FileNotFoundError:
            return  # removed a moment ago, or a link to nothing
        except OSError as exc:
            if exc.errno != errno.ELOOP:
                raise
            _warn(Path(entry.path), "is a link that leads to itself")
            return
        if not _is_utf8(entry.name):
            _warn(Path(entry.path), "has a name that is not UTF-8")
        elif stat.S_ISREG(status.st_mode):
            yield _file_meta(key, status)
        elif not stat.S_ISDIR(status.st_mode):
            _warn(Path(entry.path), "is neither a file nor a folder")
        elif key != TEMPORARY and (not entry.is_symlink() or _is_new_folder(Path(entry.path), linked)):
            yield from self._walk(f"{key}/", linked)

    def read(self, key: str) -> bytes | None:
        """Read a file; None if there is none.

        Raises:
            StoreError: It is not a regular file: reading a pipe would wait for a writer forever.
        """
        path = self.root / key
        try:
            status = path.stat()
            if stat.S_ISDIR(status.st_mode):
                return None
            if not stat.S_ISREG(status.st_mode):
                raise StoreError(f"{path} is not a regular file: remove it")
            return path.read_bytes()
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            return None

    def copy(self, key: str, path: Path) -> bool:
        """Link or copy a file to a path outside; False if there is no such file."""
        source = self.root / key
        if not source.is_file():
            return False
        try:
            _link_or_copy(source, path)
        except FileNotFoundError:
            if source.exists():
                raise
            return False
        return True

    def look_up(self, key: str) -> ObjectMeta | None:
        """Return the metadata of a file; None if there is none."""
        try:
            status = (self.root / key).stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        return None if stat.S_ISDIR(status.st_mode) else _file_meta(key, status)

    def write_new(self, key: str, data: Body) -> ObjectMeta:
        """Write a file that must not exist; ObjectExists if it does."""
        target = self.root / key
        message = f"{key} exists already in {self.root}"

        def link() -> None:
            try:
                os.link(staged, target)
            except FileExistsError:
                raise ObjectExists(message) from None

        with self._staged(data) as (staged, status):
            try:
                unsynced = _in_folder(target.parent, self._mode, link)
            except OSError as exc:
                if exc.errno not in NO_LINK:
                    raise
                self.has_links = False
                # A rename overwrites. Without hard links, only the lock decides whether the file is new,
                # and only among the processes of this machine.
                with self._locked():
                    if target.exists():
                        raise ObjectExists(message) from None
                    unsynced = _in_folder(target.parent, self._mode, lambda: staged.rename(target))
        self._sync(target.parent, unsynced)
        return _file_meta(key, status)

    def write_over(self, key: str, data: Body, etag: str | None) -> ObjectMeta:
        """Write a file; ObjectChanged if ``etag`` is given and the file has another version or is missing."""
        target = self.root / key
        with self._staged(data) as (staged, _), self._locked():
            current = self.look_up(key)
            if etag is not None and (current is None or current.etag != etag):
                raise ObjectChanged(f"{key} in {self.root} is no longer the version that was read")
            if current is not None:
                _make_newer(staged, target)
            meta = _file_meta(key, staged.stat())
            unsynced = _in_folder(target.parent, self._mode, lambda: staged.replace(target))
        self._sync(target.parent, unsynced)
        return meta

    def remove(self, key: str) -> None:
        """Remove a file, and the folders that are empty then, as a bucket has no empty folders."""
        target = self.root / key
        with self._locked(), suppress(FileNotFoundError, NotADirectoryError):
            target.unlink()
            with suppress(OSError):
                for folder in target.relative_to(self.root).parents[:-1]:
                    (self.root / folder).rmdir()

    def _sync(self, folder: Path, others: Iterable[Path]) -> None:
        """Let new names in a folder, and new folders in `others`, survive a power failure.

        All writers share the others. Threads that wait while one of these is synced share its next sync.
        """
        _sync_folder(folder)
        named = next(self._moments)
        for other in others:
            with self._syncing:
                if self._synced.get(other, -1) < named:
                    began = next(self._moments)
                    _sync_folder(other)
                    self._synced[other] = began

    @contextmanager
    def _staged(self, data: Body) -> Iterator[tuple[Path, os.stat_result]]:
        """Give the data as a temporary file that has reached the disk, and its status."""
        staged = self._temporary / f"{uuid4().hex}.part"
        try:
            try:
                file = _open_filled(data, staged)
            except FileNotFoundError:
                self.temporary()  # missing only for the first writer
                file = _open_filled(data, staged)
            with file:
                # Some kernels take the times of files from a clock of 4 ms ticks: two versions would look
                # the same.
                now = time.time_ns()
                os.utime(file.fileno(), ns=(now, now))
                status = os.fstat(file.fileno())
                if stat.S_IMODE(status.st_mode) != self._mode & FILE_BITS:
                    # vfat and some network mounts have one mode for all files.
                    with suppress(PermissionError):
                        os.fchmod(file.fileno(), self._mode & FILE_BITS)
                os.fsync(file.fileno())
            yield staged, status
        finally:
            staged.unlink(missing_ok=True)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the lake's lock, which every write takes that may overwrite or remove a file.

        Raises:
            StoreUnavailable: Another process has held the lock for LOCK_SECONDS.
        """
        lock = FileLock(
            self.temporary() / LOCK_FILE,
            timeout=LOCK_SECONDS,
            mode=self._mode & FILE_BITS,
            poll_interval=0.002,
            # A marker file instead of a lock would outlive a killed process.
            fallback_to_soft=False,
        )
        # Threads queue here, so that only processes poll for the file.
        with self._lock:
            try:
                lock.acquire()
            except Timeout:
                raise StoreUnavailable(
                    f"another process has locked {self.root} for {LOCK_SECONDS:.0f} seconds: end it"
                ) from None
            try:
                yield
            finally:
                lock.release()


@cache
def _files_below(root: Path) -> AtomicFiles:
    return AtomicFiles(root)


def _is_new_folder(link: Path, linked: set[Path]) -> bool:
    """Whether a link leads to a folder that does not contain it and that no other link has led to."""
    target, folder = Path(os.path.realpath(link)), Path(os.path.realpath(link.parent))
    if folder.is_relative_to(target) or target in linked:
        _warn(link, "is a link to a folder that is listed already")
        return False
    linked.add(target)
    return True


def _is_utf8(name: str) -> bool:
    if name.isascii():
        return True
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _warn(path: Path, problem: str) -> None:
    logger.warning("ignored path=%s reason=%s", ascii(str(path)), f"it {problem}: remove it from the lake")


def _file_meta(key: str, status: os.stat_result) -> ObjectMeta:
    # Without the inode number: some network and FUSE mounts invent another one at each look.
    etag = f"{status.st_mtime_ns:x}-{status.st_size:x}"
    return ObjectMeta(key, status.st_size, etag, datetime.fromtimestamp(status.st_mtime, UTC))


def _make_newer(staged: Path, target: Path) -> None:
    """Give a new version a later time than the old one, whatever the clock and the disk say."""
    old = target.stat().st_mtime_ns
    if staged.stat().st_mtime_ns <= old:
        # FAT has steps of two seconds, and the clock may have been set back.
        os.utime(staged, ns=(old + 2_000_000_000, old + 2_000_000_000))


def _open_filled(data: Body, path: Path) -> IO[bytes]:
    """Write data to a new file, or link or copy a finished file there, and leave it open."""
    if isinstance(data, Path):
        _link_or_copy(data.resolve(), path)
        return path.open("rb")
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, PRIVATE & FILE_BITS)
    file = os.fdopen(descriptor, "wb", buffering=0)
    try:
        rest = memoryview(data)
        while rest:
            rest = rest[file.write(rest) :]
    except BaseException:
        file.close()
        raise
    return file


def _link_or_copy(source: Path, staged: Path) -> None:
    try:
        os.link(source, staged)
    except OSError as exc:
        if exc.errno not in NO_LINK | {errno.EXDEV}:
            raise
        shutil.copyfile(source, staged)


def _in_folder(folder: Path, mode: int, action: Callable[[], object]) -> list[Path]:
    """Run an action that names a file in a folder; make the folder with this mode if it is missing.

    Returns:
        The folders in which a folder was made: until they are synced, a power failure may undo that.
    """
    missing: list[Path] = []
    for _ in range(8):  # remove() may delete the folder while it is still empty
        with suppress(FileNotFoundError):
            action()
            return [path.parent for path in missing]
        missing = _make_folder(folder, mode)
    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(folder))


def _make_folder(folder: Path, mode: int) -> list[Path]:
    """Make a folder and those above it; return those that were missing."""
    with suppress(FileNotFoundError):
        # Nearly always only this one is missing, or another thread has just made it.
        _make_one(folder, mode)
        return [folder]
    missing = [*itertools.takewhile(lambda path: not path.is_dir(), (folder, *folder.parents))]
    with suppress(FileNotFoundError):
        for path in reversed(missing):
            _make_one(path, mode)
    return missing


def _make_one(folder: Path, mode: int) -> None:
    try:
        folder.mkdir(mode)
    except FileExistsError:
        if not folder.is_dir():
            raise
    else:
        if mode != PRIVATE:
            # The umask took the group's permissions away.
            folder.chmod(mode)


def _sync_folder(folder: Path) -> None:
    with suppress(FileNotFoundError):  # removed meanwhile
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
