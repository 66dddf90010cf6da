"""Open the object store that holds a lake, by its URL."""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import SplitResult, unquote, urlsplit

from imbrace_lake.errors import SettingsError
from imbrace_lake.store.contract import ObjectMeta, Probe, Store, StoreOptions
from imbrace_lake.store.local import LocalStore

__all__ = ["ObjectMeta", "Probe", "Store", "StoreOptions", "open_store"]


def open_store(url: str, options: StoreOptions | None = None) -> Store:
    """Return the store for a URL; nothing is read or written before ``async with``.

    Args:
        url: ``./lake``, ``/data/lake``, ``file:///data/lake``, ``s3://bucket/prefix``, or the URL of
            any other fsspec file system whose driver is installed.
        options: How to reach an S3 store; other stores ignore it.

    Raises:
        SettingsError: The URL cannot be a lake's, or contains credentials.
    """
    if not url.strip():
        raise SettingsError("the lake's URL is empty: write a folder or s3://bucket/prefix")
    if url != url.strip():
        raise SettingsError("the lake's URL begins or ends with a space or a line break: leave it out")
    if "://" not in url:
        _reject_schemes(url)
        return LocalStore(Path(os.path.abspath(Path(url).expanduser())))  # noqa: PTH100
    if "::" in url:
        raise SettingsError("a lake's URL cannot be a chain of file systems ('::'): name the store alone")
    parts = _split(url)
    if parts.scheme in ("file", "local"):
        if parts.netloc not in ("", "localhost"):
            raise SettingsError(
                f"a file URL names no host: write {parts.scheme}:///{parts.netloc}{parts.path}"
            )
        return LocalStore(Path(os.path.normpath(unquote(parts.path))))
    # Imported late: an S3 client takes 0.5 s, which a local lake does not need.
    if parts.scheme in ("s3", "s3a"):
        from imbrace_lake.store.s3 import S3Store

        return S3Store(parts.netloc, parts.path, options or StoreOptions())
    from imbrace_lake.store.fsspec_store import FsspecStore

    return FsspecStore(url)


def _reject_schemes(path: str) -> None:
    """Reject a path that begins like a URL: it would become a folder of that name."""
    if ":" not in path and "//" not in path:
        return
    # Imported late: it takes 20 ms.
    from fsspec import available_protocols

    found = re.match(r"([a-z][a-z0-9+.-]+):|(s3a?|gc?s|az|adl|abfss?|https?)//", path, re.IGNORECASE)
    scheme = (found[1] or found[2]).lower() if found else ""
    if found is None or (scheme != "arn" and scheme not in available_protocols()):
        return
    if scheme in ("file", "local"):
        advice = "the path alone, such as /data/lake"
    else:
        advice = f"{'s3' if scheme in ('arn', 'http', 'https') else scheme}://bucket/prefix"
    raise SettingsError(f"the lake's address begins with {found[0]}, which is not a folder: write {advice}")


def _split(url: str) -> SplitResult:
    """Split a URL, and reject credentials and queries without repeating them."""
    try:
        parts = urlsplit(url)
    except ValueError as exc:
        raise SettingsError(f"the lake's address is not a URL ({exc}): write s3://bucket/prefix") from None
    if parts.password is not None or (parts.username is not None and parts.scheme in ("s3", "s3a")):
        raise SettingsError(
            "the lake's URL holds credentials: leave them out and set AWS_ACCESS_KEY_ID and"
            " AWS_SECRET_ACCESS_KEY, AWS_PROFILE or the driver's own settings"
        )
    if parts.query or parts.fragment:
        raise SettingsError("the lake's URL has a part after '?' or '#': leave it out")
    return parts
