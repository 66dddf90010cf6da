"""The contract of a lake's object stores, and the probe that tests whether a store keeps it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, Self, TypeAlias
from uuid import uuid4

from imbrace_lake.errors import ObjectChanged, ObjectExists, StoreError

# Not in the writer process, where it takes 0.05 s.
if TYPE_CHECKING:
    from pydantic import SecretStr

TEMPORARY = ".tmp"
"""First segment of keys that are not objects: temporary files and locks of a local lake."""


@dataclass(frozen=True, slots=True)
class ObjectMeta:
    """The metadata of one object, as a listing shows it.

    Attributes:
        key: Relative to the lake's root, ``/``-separated.
        size_bytes: Its length.
        etag: Opaque version; differs if the bytes differ, and has no meaning in another store.
        modified_at: UTC, by the clock of the store.
    """

    key: str
    size_bytes: int
    etag: str
    modified_at: datetime


Body: TypeAlias = bytes | Path
"""The content of an object: bytes, or a finished file.

The file stays, and must not be written again: on a local disk the object may be a hard link to it.
"""

# Inside a class with a method named `list`, `list[ObjectMeta]` would name the method.
Listing: TypeAlias = list[ObjectMeta]


@dataclass(frozen=True, slots=True)
class Probe:
    """The result of a probe.

    Attributes:
        is_conditional: Whether exactly one of several writers of a key wins, on any machines.
        note: A sentence for operators about a weakness of the store, or None.
    """

    is_conditional: bool
    note: str | None = None


@dataclass(frozen=True, slots=True)
class StoreOptions:
    """How to reach an S3 store; for a value of None, the usual AWS settings apply.

    Attributes:
        endpoint_url: Address of an S3-compatible server, ``http://…`` or ``https://…``.
        region: AWS region of the bucket.
        key: Access key id.
        secret: Secret access key.
        token: Session token of temporary credentials.
        path_style: ``endpoint/bucket`` (True), ``bucket.endpoint`` (False), or chosen by the endpoint (None).
        is_anonymous: Send unsigned requests.
        timeout_seconds: The longest time for a call, its retries included; a large body gets more.
    """

    endpoint_url: str | None = None
    region: str | None = None
    key: SecretStr | None = None
    secret: SecretStr | None = None
    token: SecretStr | None = None
    path_style: bool | None = None
    is_anonymous: bool = False
    timeout_seconds: float = 120.0


class Store(Protocol):
    """Objects under one root; open it with ``async with``, in one event loop.

    Every method may raise ``StoreUnavailable`` if waiting may help, and ``StoreError`` if not. A key that
    would leave the root is rejected with ``StoreError``.

    Attributes:
        url: The address of the lake, normalized, without credentials.
        is_conditional: The result of the probe; None before the probe.
        clock_offset: How far the store's clock is ahead of this machine's, as its last answer to a write
            showed; 0 where the store has no separate clock.
    """

    url: str
    is_conditional: bool | None
    clock_offset: timedelta = timedelta(0)

    async def __aenter__(self) -> Self: ...

    async def __aexit__(self, *exc_info: object) -> None: ...

    async def list(self, prefix: str, *, start_after: str = "", most: int | None = None) -> Listing:
        """List the objects below a prefix that ends with ``/`` (or is empty), by key, never cached.

        Args:
            prefix: The folder, as a key.
            start_after: Leave out every key up to and including this one, and if the store can, also the
                requests for these keys.
            most: The largest number of objects to list; all by default.
        """
        ...

    async def get(self, key: str) -> bytes:
        """Read an object in one request, so that two versions are never mixed.

        Raises:
            FileNotFoundError: There is no such object; the argument is the key.
        """
        ...

    async def get_range(self, key: str, start: int, length: int) -> bytes:
        """Read bytes of an object that is never replaced.

        Args:
            key: The object.
            start: The position of the first byte.
            length: The number of bytes, at least 1; fewer are returned at the end of the object.

        Raises:
            FileNotFoundError: There is no such object; the argument is the key.
        """
        return (await self.get(key))[start : start + length]

    async def download(self, key: str, path: Path) -> None:
        """Download one version of an object of any size into a new file.

        The file must not be written again: on a local disk it may be a hard link to the object.

        Raises:
            FileNotFoundError: There is no such object; the argument is the key.
        """
        ...

    async def head(self, key: str) -> ObjectMeta | None:
        """Return the metadata of an object; None if there is none."""
        ...

    async def create(self, key: str, data: Body) -> ObjectMeta:
        """Create an object that must not exist yet; readers see the complete object or none.

        Raises:
            ObjectExists: Another writer was first; nothing was changed.
        """
        ...

    async def update(self, key: str, data: Body, etag: str) -> ObjectMeta:
        """Update the object whose version is ``etag``.

        Raises:
            ObjectChanged: The object has another version or is missing; nothing was changed.
        """
        ...

    async def overwrite(self, key: str, data: bytes) -> ObjectMeta:
        """Overwrite an object, or create it; the last writer wins, readers see the old or the new one."""
        ...

    async def delete(self, key: str) -> None:
        """Delete an object, if there is one."""
        ...

    def temporary_directory(self) -> Path:
        """Return a local folder for files that a run spills and later writes; made if it is missing.

        For a local lake the folder is on the disk of the objects, and opening the lake removes files
        older than a day from it. For other stores it is private, and removed when the store is closed.
        """
        ...

    async def probe(self) -> Probe:
        """Write, rewrite, read, list and delete a small object; set ``is_conditional``.

        Raises:
            StoreError: The store cannot be written, or does not show what was written.
        """
        ...


def check_key(key: str) -> None:
    """Reject a key that a local disk could not store or that would leave the root.

    Raises:
        StoreError: The key is one of these.
    """
    segments = key.split("/")
    if segments[0] == TEMPORARY or "\0" in key or any(part in ("", ".", "..") for part in segments):
        raise StoreError(
            f"{key!r} cannot be an object's name: write segments joined by '/', without '.' or '..'"
        )


def check_prefix(prefix: str) -> None:
    """Reject a prefix that is neither empty nor a key followed by ``/``.

    Raises:
        StoreError: The prefix is neither.
    """
    if prefix and not prefix.endswith("/"):
        raise StoreError(f"a prefix to list ends with '/', but {prefix!r} does not")
    if prefix:
        check_key(prefix[:-1])


async def probe_conditions(store: Store) -> bool:
    """Return whether a store rejects the writes that it must reject, and allows the one it must allow.

    Returns:
        False if the store ignores or rejects conditions: then only one run at a time is safe.

    Raises:
        StoreError: A small object cannot be written, read, listed or deleted.
    """
    key = f"_probe/{uuid4().hex}"
    try:
        await store.overwrite(key, b"1")
        is_conditional = await _supports_conditions(store, key)
        await _shows_newest(store, key)
    except BaseException:
        # The first failure is the one to report: a failing cleanup would hide it.
        with suppress(StoreError):
            await store.delete(key)
        raise
    await store.delete(key)
    return is_conditional


async def _shows_newest(store: Store, key: str) -> None:
    newest = await store.overwrite(key, b"probe")
    if await store.get(key) != b"probe" or newest.key not in [
        found.key for found in await store.list("_probe/")
    ]:
        raise StoreError(f"{store.url} does not show a written object at once: use a consistent store")


async def _supports_conditions(store: Store, key: str) -> bool:
    async def is_rejected(write: Callable[[], Awaitable[ObjectMeta]]) -> bool:
        try:
            await write()
        except (ObjectExists, ObjectChanged):
            return True
        return False

    first = await store.head(key)
    if first is None:
        raise StoreError(f"{store.url} does not show a new object at once: use a consistent store")
    # The bytes differ each time, because an S3 ETag is a hash of the bytes.
    second = await store.overwrite(key, b"22")
    try:
        return (
            await is_rejected(lambda: store.create(key, b"333"))
            and await is_rejected(lambda: store.update(key, b"4444", first.etag))
            and not await is_rejected(lambda: store.update(key, b"55555", second.etag))
        )
    except StoreError as exc:
        # Writes without a condition worked a moment ago, so the store rejects the condition itself.
        if exc.is_transient:
            raise
        return False
