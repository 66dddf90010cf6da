"""Files that appear under their name in one step and survive a power failure; blocking calls."""

from __future__ import annotations

import errno
import fcntl
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
from pathlib import Path
from typing import IO
from uuid import uuid4

from imbrace_lake.errors import ObjectChanged, ObjectExists, StoreError, StoreUnavailable
from imbrace_lake.store.contract import TEMPORARY, Body, ObjectMeta

logger = logging.getLogger(__name__)

STALE_SECONDS = 24 * 3600
LOCK_FILE = "lock"
LOCK_SECONDS = 60.0
# Of a folder, for its owner alone; the files in it have of these bits what a file can have.
PRIVATE = 0o700
FILE_BITS = 0o666
# EPERM is what Linux says for vfat, exFAT and most FUSE mounts, the others what macOS and NFS say.
NO_LINK = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK})


class AtomicFiles:
    """A folder of files; a write is temporary file, fsync, then one link or rename. Thread-safe.

    Only the owner may read what it makes, whatever the umask, unless the root shows that a group shares
    it: new files and folders then have the root's own permissions. That sign is the set-group-ID bit,
    which also gives everything below the folder to the folder's group (``chmod 2770``).

    Every method may raise OSError.

    Attributes:
        root: The folder.
        has_links: False once the file system has refused a hard link.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.has_links = True
        self._temporary = root / TEMPORARY
        self._lock = threading.Lock()
        self._moments = itertools.count()
        self._syncing = threading.Lock()
        self._synced: dict[Path, int] = {}

    def temporary(self) -> Path:
        """Give the folder of temporary files, made when missing."""
        _make(self._temporary, self._mode())
        return self._temporary

    def _mode(self) -> int:
        """The permissions of new folders."""
        try:
            mode = stat.S_IMODE(self.root.stat().st_mode)
        except (FileNotFoundError, NotADirectoryError):
            return PRIVATE
        return mode if mode & stat.S_ISGID else PRIVATE

    def sweep(self) -> None:
        """Remove what a killed process left behind.

        Raises:
            NotADirectoryError: The root is a file.
        """
        with suppress(FileNotFoundError):
            if not stat.S_ISDIR(self.root.stat().st_mode):
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(self.root))
        oldest = time.time() - STALE_SECONDS
        # Whoever may only read must be able to open a lake, so nothing here has to succeed.
        with suppress(OSError):
            for path in (self.root / TEMPORARY).iterdir():
                # A lock file that goes away would let two processes lock two different files.
                if path.name == LOCK_FILE or path.stat().st_mtime >= oldest:
                    continue
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink()

    def walk(self, prefix: str) -> Iterator[ObjectMeta]:
        """Iterate over all files below a folder whose key is ``prefix``; none if it is missing.

        Only regular files can be objects. Pipes, sockets, devices, links that lead in circles and names
        that are not UTF-8 are left out with a warning.
        """
        yield from self._walk(self.root / prefix, prefix, set())

    def _walk(self, folder: Path, prefix: str, followed: set[Path]) -> Iterator[ObjectMeta]:
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    yield from self._iter_entry(entry, prefix, followed)
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as exc:
            if exc.errno != errno.ELOOP:
                raise
            _warn_of(folder, "is a link that leads to itself")

    def _iter_entry(self, entry: os.DirEntry[str], prefix: str, followed: set[Path]) -> Iterator[ObjectMeta]:
        """Iterate over what one name in a folder stands for.

        Args:
            entry: The name.
            prefix: Of its folder.
            followed: The folders that links of this listing have led to.
        """
        key = prefix + entry.name
        try:
            status = entry.stat()
        except FileNotFoundError:
            return  # it has just been removed, or is a link to nothing
        except OSError as exc:
            if exc.errno != errno.ELOOP:
                raise
            _warn_of(Path(entry.path), "is a link that leads to itself")
            return
        if not _is_utf8(entry.name):
            _warn_of(Path(entry.path), "has a name that is not UTF-8")
        elif stat.S_ISREG(status.st_mode):
            yield _file_meta(key, status)
        elif not stat.S_ISDIR(status.st_mode):
            _warn_of(Path(entry.path), "is neither a file nor a folder")
        elif key != TEMPORARY and (not entry.is_symlink() or _is_new(Path(entry.path), followed)):
            yield from self._walk(Path(entry.path), f"{key}/", followed)

    def read(self, key: str) -> bytes | None:
        """Read a whole file; None when there is none.

        Raises:
            StoreError: It is not a regular file; reading a pipe would wait for a writer for ever.
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
        """Give a file a further name elsewhere, or copy it there; False when there is none."""
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
        """Look a file up; None when there is none."""
        try:
            status = (self.root / key).stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        return None if stat.S_ISDIR(status.st_mode) else _file_meta(key, status)

    def write_new(self, key: str, data: Body) -> ObjectMeta:
        """Write a file that must not exist; ObjectExists if it does."""
        target = self.root / key
        with self._staged(data) as staged:
            meta = _file_meta(key, staged.stat())
            try:
                unsynced = _in_folder(
                    target.parent, self._mode(), lambda: self._link_new(staged, target, key)
                )
            except OSError as exc:
                if exc.errno not in NO_LINK:
                    raise
                self.has_links = False
                unsynced = self._rename_new(staged, target, key)
        self._sync(target.parent, unsynced)
        return meta

    def _link_new(self, staged: Path, target: Path, key: str) -> None:
        try:
            os.link(staged, target)
        except FileExistsError as exc:
            raise ObjectExists(f"{key} exists already in {self.root}") from exc

    def _rename_new(self, staged: Path, target: Path, key: str) -> list[Path]:
        # A rename overwrites, so without hard links "is it new?" is asked under the lock, which
        # holds among the processes of this machine only.
        with self._locked():
            if target.exists():
                raise ObjectExists(f"{key} exists already in {self.root}")
            return _in_folder(target.parent, self._mode(), lambda: staged.rename(target))

    def write_over(self, key: str, data: Body, etag: str | None) -> ObjectMeta:
        """Write a new version of a file; ObjectChanged unless the old one is ``etag`` or that is None."""
        target = self.root / key
        with self._staged(data) as staged, self._locked():
            current = self.look_up(key)
            if etag is not None and (current is None or current.etag != etag):
                raise ObjectChanged(f"{key} in {self.root} is no longer the version that was read")
            if current is not None:
                _make_newer(staged, target)
            meta = _file_meta(key, staged.stat())
            unsynced = _in_folder(target.parent, self._mode(), lambda: staged.replace(target))
        self._sync(target.parent, unsynced)
        return meta

    def remove(self, key: str) -> None:
        """Remove a file and the folders that are empty without it."""
        target = self.root / key
        with self._locked(), suppress(FileNotFoundError, NotADirectoryError):
            target.unlink()
            # As on S3, a folder is there as long as something is in it.
            with suppress(OSError):
                for folder in target.relative_to(self.root).parents[:-1]:
                    (self.root / folder).rmdir()

    def _sync(self, folder: Path, others: Iterable[Path]) -> None:
        """Make names in a folder, and those of new folders in others, survive a power failure.

        The others are few, and shared: threads that wait while one is synced share the next time.
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
    def _staged(self, data: Body) -> Iterator[Path]:
        """Hold the data as a temporary file that has reached the disk."""
        staged = self._temporary / f"{uuid4().hex}.part"
        try:
            with self._open_staged(data, staged) as file:
                _set_mode(file.fileno(), self._mode() & FILE_BITS)
                # Some kernels stamp files by a clock of 4 ms ticks: two versions would look alike.
                now = time.time_ns()
                os.utime(file.fileno(), ns=(now, now))
                os.fsync(file.fileno())
            yield staged
        finally:
            staged.unlink(missing_ok=True)

    def _open_staged(self, data: bytes | Path, staged: Path) -> IO[bytes]:
        """Open the temporary file, with everything in it."""
        try:
            return _filled(data, staged)
        except FileNotFoundError:
            # Nearly always the folder is there; its first writer makes it.
            self.temporary()
            return _filled(data, staged)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the lake's lock, which every writer that may overwrite or remove takes.

        Raises:
            StoreUnavailable: Another process has held it for LOCK_SECONDS.
        """
        deadline = time.monotonic() + LOCK_SECONDS
        # Threads queue here, so that only processes have to poll for the file.
        with self._lock, open(self.temporary() / LOCK_FILE, "ab", opener=_private) as file:
            _set_mode(file.fileno(), self._mode() & FILE_BITS)
            while not _try_lock(file):
                if time.monotonic() > deadline:
                    raise StoreUnavailable(
                        f"another process has locked {self.root} for {LOCK_SECONDS:.0f} seconds: end it"
                    )
                time.sleep(0.002)
            yield  # closing the file gives the lock back


def _is_new(link: Path, followed: set[Path]) -> bool:
    """Whether a link leads to a folder that it is not in and that no other link has led to."""
    target, folder = Path(os.path.realpath(link)), Path(os.path.realpath(link.parent))
    if folder.is_relative_to(target) or target in followed:
        _warn_of(link, "is a link to a folder that is listed already")
        return False
    followed.add(target)
    return True


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _warn_of(path: Path, problem: str) -> None:
    logger.warning("ignored path=%s reason=%s", ascii(str(path)), f"it {problem}: remove it from the lake")


def _file_meta(key: str, status: os.stat_result) -> ObjectMeta:
    # No inode number in it: some network and FUSE mounts invent a new one at each look.
    etag = f"{status.st_mtime_ns:x}-{status.st_size:x}"
    return ObjectMeta(key, status.st_size, etag, datetime.fromtimestamp(status.st_mtime, UTC))


def _make_newer(staged: Path, target: Path) -> None:
    """Give a new version a later time than the old one has, whatever the clock and the disk say."""
    old = target.stat().st_mtime_ns
    if staged.stat().st_mtime_ns <= old:
        # FAT counts in steps of two seconds, and a clock may have been set back.
        os.utime(staged, ns=(old + 2_000_000_000, old + 2_000_000_000))


def _filled(data: bytes | Path, path: Path) -> IO[bytes]:
    if isinstance(data, Path):
        _link_or_copy(data.resolve(), path)
        return path.open("rb")
    file = open(path, "wb", buffering=0, opener=_private)  # noqa: SIM115
    try:
        rest = memoryview(data)
        while rest:
            rest = rest[file.write(rest) :]
    except BaseException:
        file.close()
        raise
    return file


def _private(path: str, flags: int) -> int:
    """Open a file for `open`, readable by its owner only if it is new."""
    # Of a pipe of that name, opening would otherwise wait for a reader.
    return os.open(path, flags | os.O_NONBLOCK, PRIVATE & FILE_BITS)


def _set_mode(descriptor: int, mode: int) -> None:
    if stat.S_IMODE(os.fstat(descriptor).st_mode) != mode:
        # vfat and some network mounts have one mode for all files, and a lock may be another user's.
        with suppress(PermissionError):
            os.fchmod(descriptor, mode)


def _link_or_copy(source: Path, staged: Path) -> None:
    try:
        os.link(source, staged)
    except OSError as exc:
        if exc.errno not in NO_LINK | {errno.EXDEV}:
            raise
        shutil.copyfile(source, staged)


def _try_lock(file: IO[bytes]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _in_folder(folder: Path, mode: int, action: Callable[[], object]) -> list[Path]:
    """Name a file in a folder, which is made with this mode when missing.

    Returns:
        The folders above it that got a new folder in them: a power failure may undo that, like the
        file's name, until they are synced.
    """
    missing: list[Path] = []
    for _ in range(8):  # a delete() may remove the folder again while it is still empty
        with suppress(FileNotFoundError):
            action()
            return [path.parent for path in missing]
        missing = _make(folder, mode)
    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(folder))


def _make(folder: Path, mode: int) -> list[Path]:
    """Make a folder and those above it; which of them were missing."""
    with suppress(FileNotFoundError):
        # Nearly always it alone is missing, or another thread has just made it.
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
            # The umask took from it what the group is to have.
            folder.chmod(mode)


def _sync_folder(folder: Path) -> None:
    with suppress(FileNotFoundError):  # removed again with all that was in it
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
