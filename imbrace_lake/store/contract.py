"""What every object store of a lake promises, and the probe that finds out whether one keeps it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Protocol, Self, TypeAlias
from uuid import uuid4

from pydantic import SecretStr

from imbrace_lake.errors import ObjectChanged, ObjectExists, StoreError

TEMPORARY = ".tmp"
"""First segment of what is no object: temporary files and locks of a local lake."""


@dataclass(frozen=True, slots=True)
class ObjectMeta:
    """The metadata of one object, as a listing shows it.

    Attributes:
        key: Relative to the lake's root, ``/``-separated.
        size_bytes: Its length.
        etag: Opaque version; differs whenever the bytes do, means nothing in another store.
        modified_at: UTC, by the clock of the store.
    """

    key: str
    size_bytes: int
    etag: str
    modified_at: datetime


Body: TypeAlias = bytes | Path
"""What is to be written: the bytes, or a finished file.

A file stays where it is and must not be written again: on a local disk the object may be a hard
link to it.
"""

# Inside a class with a method named `list`, `list[ObjectMeta]` would name the method.
Listing: TypeAlias = list[ObjectMeta]


@dataclass(frozen=True, slots=True)
class Probe:
    """What a probe found.

    Attributes:
        is_conditional: Whether of several writers of one key, on any machine, exactly one wins.
        note: One sentence for people about what is weaker than it should be, or None.
    """

    is_conditional: bool
    note: str | None = None


@dataclass(frozen=True, slots=True)
class StoreOptions:
    """How to reach an S3 store; what is None is looked up in the usual AWS places.

    Attributes:
        endpoint_url: Address of an S3-compatible server, ``http://…`` or ``https://…``.
        region: AWS region of the bucket.
        key: Access key id.
        secret: Secret access key.
        token: Session token of temporary credentials.
        path_style: ``endpoint/bucket`` (True), ``bucket.endpoint`` (False), or by the endpoint (None).
        is_anonymous: Send unsigned requests.
        timeout_seconds: Longest time for one call, its retries included; a large body gets more.
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

    Every method may raise ``StoreUnavailable`` when waiting may help and ``StoreError`` when not.
    A key that would leave the root is refused with ``StoreError``.

    Attributes:
        url: Where the lake is, normalized, free of credentials.
        is_conditional: What the probe found; None before it ran.
    """

    url: str
    is_conditional: bool | None

    async def __aenter__(self) -> Self: ...

    async def __aexit__(self, *exc_info: object) -> None: ...

    async def list(self, prefix: str, *, start_after: str = "", most: int | None = None) -> Listing:
        """List the objects below a prefix that ends with ``/`` (or is empty), by key, never cached.

        Args:
            prefix: Below which.
            start_after: Leave out every key up to and including this one; the requests for them too,
                where the store can.
            most: The greatest number of objects to list; all by default.
        """
        ...

    async def get(self, key: str) -> bytes:
        """Read a whole object in one request, so that two versions are never mixed.

        Raises:
            FileNotFoundError: There is no such object; the argument is the key.
        """
        ...

    async def download(self, key: str, path: Path) -> None:
        """Download one version of an object into a new file, whatever its size.

        The file must not be written: on a local disk it may be a hard link to the object.

        Raises:
            FileNotFoundError: There is no such object; the argument is the key.
        """
        ...

    async def head(self, key: str) -> ObjectMeta | None:
        """Look an object up without reading it; None when there is none."""
        ...

    async def create(self, key: str, data: Body) -> ObjectMeta:
        """Create an object that must not exist yet; readers see all of it or nothing.

        Args:
            key: Where to.
            data: What.

        Raises:
            ObjectExists: Somebody was first; nothing was changed.
        """
        ...

    async def update(self, key: str, data: Body, etag: str) -> ObjectMeta:
        """Update the object whose version is ``etag``.

        Raises:
            ObjectChanged: The object has another version or is gone; nothing was changed.
        """
        ...

    async def overwrite(self, key: str, data: bytes) -> ObjectMeta:
        """Overwrite an object, or create it; the last writer wins, readers see the old or the new one."""
        ...

    async def delete(self, key: str) -> None:
        """Remove an object; it is no error when there is none."""
        ...

    def temporary_directory(self) -> Path:
        """Give a local folder for files that a run spills and later puts; made when missing.

        A local lake's own folder is on the disk of its objects and is swept of files older than
        a day at opening; every other store's is private and goes when the store is closed.
        """
        ...

    async def probe(self) -> Probe:
        """Write, rewrite, read, list and delete a small object; sets ``is_conditional``.

        Raises:
            StoreError: The store cannot be written, or does not show what was written.
        """
        ...


def check_key(key: str) -> None:
    """Refuse a key that a local disk could not hold or that would leave the root.

    Raises:
        StoreError: It would.
    """
    segments = key.split("/")
    if segments[0] == TEMPORARY or "\0" in key or any(part in ("", ".", "..") for part in segments):
        raise StoreError(f"no object can be named {key!r}: write segments joined by '/', without '.' or '..'")


def check_prefix(prefix: str) -> None:
    """Refuse a prefix that is neither empty nor a key followed by ``/``.

    Raises:
        StoreError: It is not.
    """
    if prefix and not prefix.endswith("/"):
        raise StoreError(f"a prefix to list ends with '/', but {prefix!r} does not")
    if prefix:
        check_key(prefix[:-1])


async def probe_conditions(store: Store) -> bool:
    """Say whether a store refuses the writes that it must refuse and allows the one it must allow.

    Returns:
        False when a condition is ignored or not understood: then only one run at a time is safe.

    Raises:
        StoreError: Not even a plain object can be written, read, listed and deleted.
    """
    key = f"_probe/{uuid4().hex}"
    try:
        await store.overwrite(key, b"1")
        is_conditional = await _keeps_conditions(store, key)
        await _shows_newest(store, key)
    except BaseException:
        # The first failure is the one to tell; a failing clean-up would hide it.
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
        raise StoreError(f"{store.url} does not show at once what was written: use a consistent store")


async def _keeps_conditions(store: Store, key: str) -> bool:
    async def is_refused(write: Callable[[], Awaitable[ObjectMeta]]) -> bool:
        try:
            await write()
        except (ObjectExists, ObjectChanged):
            return True
        return False

    first = await store.head(key)
    if first is None:
        raise StoreError(f"{store.url} does not show a new object at once: use a consistent store")
    # Two writes of the same bytes within one tick of a clock are two versions all the same,
    # but an S3 ETag is a hash, so the bytes differ here.
    second = await store.overwrite(key, b"22")
    try:
        return (
            await is_refused(lambda: store.create(key, b"333"))
            and await is_refused(lambda: store.update(key, b"4444", first.etag))
            and not await is_refused(lambda: store.update(key, b"55555", second.etag))
        )
    except StoreError as exc:
        # Plain writes worked a moment ago: what is refused now is the condition itself.
        if exc.is_transient:
            raise
        return False
