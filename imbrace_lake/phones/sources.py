"""Open the files of a list: from a path, a folder, a pattern, a URL or a stream.

Every failure becomes one sentence without credentials.
"""

from __future__ import annotations

import contextlib
import glob
import re
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol
from uuid import uuid4

import fsspec
import pyarrow as pa

from imbrace_lake.aws_login import expired_session, quiet_aws, watch_aws
from imbrace_lake.errors import InputError, UsageError
from imbrace_lake.phones.report import ARGUMENTS
from imbrace_lake.printable import without_numbers

CHUNK_BYTES = 1 << 20
SCHEMES = frozenset({"file", "s3"})
"""The schemes of lists; settings can add others."""
STAGED = "memory://imbrace-lake/"
"""The folder, in the memory of this process, of typed and piped lists."""
_OWN_SCHEME = "memory"
_RENAMED = "memory://imbrace-lake-renamed/"
_renamed: dict[str, str] = {}

_REASONS = {
    "OSError": "it is damaged or incomplete, or its storage failed",
    "ArrowInvalid": "it is damaged or incomplete",
    "ImportError": "the package for this kind of address is not installed",
    "NoCredentialsError": "there are no AWS credentials; set AWS_PROFILE or AWS_ACCESS_KEY_ID",
    "PartialCredentialsError": "the AWS credentials are incomplete",
    "ProfileNotFound": "AWS_PROFILE names a profile that does not exist",
    "ClientConnectorError": "its server does not answer",
    "ClientPayloadError": "its server sent only a part of it",
    "ClientResponseError": "its server answers with an error",
    "EndpointConnectionError": "the store does not answer; check AWS_ENDPOINT_URL",
}


class Readable(Protocol):
    """A stream of text or bytes, such as standard input."""

    def read(self, size: int = ..., /) -> str | bytes: ...


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One file of a list.

    Attributes:
        name: For messages, without credentials.
        open: Opens the file for reading bytes.
    """

    name: str
    open: Callable[[], contextlib.AbstractContextManager[IO[bytes]]]


def display_name(source: object) -> str:
    """Return the name of a source in messages: no phone number, no credentials or signature of a URL."""
    if hasattr(source, "read"):
        return "standard input"
    if not isinstance(source, str | Path):
        return ARGUMENTS
    name = str(source)
    if "://" not in name:
        return without_numbers(name)
    if name.startswith((STAGED, _RENAMED)):
        return name.rpartition("/")[2]
    # Secrets can contain slashes, and keys @; of such a key the name shows too little rather than a secret.
    return without_numbers(re.sub(r"://.*@", "://***@", name).partition("?")[0])


def renamed(address: str) -> str:
    """Return the address of the same list, in this process only, whose name has no phone number."""
    name = re.split(r"[/\\]", display_name(address).rstrip("/\\"))[-1]
    other = f"{_RENAMED}{uuid4().hex}/{name}"
    _renamed[other] = address
    return other


@contextlib.contextmanager
def explained(name: str) -> Iterator[None]:
    """Turn the errors of reading into one sentence about `name`."""
    try:
        with quiet_aws():
            yield
    except UnicodeError:
        raise InputError(f"{name} is not valid text in its encoding: save it as UTF-8.") from None
    except FileNotFoundError:
        where = " (or its bucket, or its server)" if "://" in name else ""
        raise InputError(f"{name} does not exist{where}: check the address.") from None
    except PermissionError:
        raise InputError(f"{name} cannot be read: your permissions or credentials do not allow it.") from None
    except _read_errors() as exc:
        # Only the class and no cause: the text of the error can contain a signed URL.
        kind = type(exc).__name__
        reason = expired_session(exc) or _REASONS.get(kind, kind)
        raise InputError(f"{name} cannot be read: {reason}.") from None


def _read_errors() -> tuple[type[Exception], ...]:
    """Return the errors of reading; those of S3 and of web servers occur only if their library is loaded."""
    botocore = sys.modules.get("botocore.exceptions")
    of_s3 = (botocore.BotoCoreError, botocore.ClientError) if botocore else ()
    aiohttp = sys.modules.get("aiohttp")
    of_http = (aiohttp.ClientError,) if aiohttp else ()
    return (OSError, EOFError, ImportError, pa.ArrowException, *of_s3, *of_http)


def find_files(source: str | Path, schemes: Collection[str] = ()) -> tuple[list[SourceFile], list[str]]:
    """Find the files of a list: one file, all files below a folder, or those that match a pattern.

    Args:
        source: A path (with ``~``) or URL. With ``*``, ``?`` or ``[``, it is a pattern unless a file has
            that name.
        schemes: The schemes allowed besides ``file`` and ``s3``.

    Returns:
        The files in the order of their names, and the names of hidden and empty files, which are skipped.

    Raises:
        UsageError: The scheme is not allowed, or the address is a chain of file systems (``a::b``).
        InputError: No file exists.
        OSError: The address cannot be read.
    """
    source = _renamed.get(str(source), source)
    if isinstance(source, Path) or "://" not in source:
        return _local_files(Path(source).expanduser(), display_name(source))
    # Before anything is fetched.
    scheme = source.partition("://")[0].lower()
    if "::" in source:
        raise UsageError(
            f"{display_name(source)} is a chain of file systems ('::'), which is not supported: copy the list"
            " to a file or to S3."
        )
    if scheme not in {*SCHEMES, _OWN_SCHEME, *schemes}:
        raise UsageError(
            f"{display_name(source)} has a scheme that is not allowed ({scheme}://): use a file or s3://, or"
            " allow the scheme with IMBRACE_LIST_SCHEMES."
        )
    try:
        return _remote_files(source)
    except ValueError:
        raise UsageError(
            f"{display_name(source)} cannot be read: address, AWS_ENDPOINT_URL or AWS_REGION is not valid."
        ) from None


def _local_files(path: Path, name: str) -> tuple[list[SourceFile], list[str]]:
    if path.is_dir():
        found = sorted(file for file in path.rglob("*") if file.is_symlink() or not file.is_dir())
        return _listed(name, [(str(file), str(file.relative_to(path)), _size(file)) for file in found])
    if not path.exists() and glob.has_magic(str(path)):
        matches = [Path(match) for match in sorted(glob.glob(str(path), recursive=True))]  # noqa: PTH207
        files = [match for match in matches if not match.is_dir()]
        return _listed(name, [(str(file), file.name, _size(file)) for file in files])
    return [SourceFile(name, lambda: path.open("rb"))], []


def _size(path: Path) -> int | None:
    """Return the size of a file; None if it is a folder, a pipe or a link to nothing."""
    return path.stat().st_size if path.is_file() else None


def _remote_files(source: str) -> tuple[list[SourceFile], list[str]]:
    name = display_name(source)
    filesystem, path = fsspec.core.url_to_fs(source)
    # Only now its library is loaded.
    watch_aws()
    # Drivers cache listings for the life of the process, and the list may have changed since an earlier run.
    filesystem.invalidate_cache()

    def opened(path: str) -> contextlib.AbstractContextManager[IO[bytes]]:
        # The default block of s3fs is 50 MB, several times the size of a long list.
        file: contextlib.AbstractContextManager[IO[bytes]] = filesystem.open(
            path, "rb", block_size=4 * CHUNK_BYTES
        )
        return file

    is_pattern = glob.has_magic(path) and not filesystem.exists(path)
    if is_pattern or source.endswith("/") or filesystem.isdir(path):
        found = filesystem.glob(path, detail=True) if is_pattern else filesystem.find(path, detail=True)
        root = "" if is_pattern else path.rstrip("/") + "/"
        entries = [
            (key, key.removeprefix(root) if root else key.rpartition("/")[2], int(info.get("size") or 0))
            for key, info in sorted(found.items())
            if info.get("type") != "directory"
        ]
        return _listed(name, entries, open_path=opened, address=filesystem.unstrip_protocol)
    return [SourceFile(name, lambda: opened(path))], []


def _open_local(path: str) -> contextlib.AbstractContextManager[IO[bytes]]:
    return Path(path).open("rb")


def _listed(
    name: str,
    entries: Sequence[tuple[str, str, int | None]],
    *,
    open_path: Callable[[str], contextlib.AbstractContextManager[IO[bytes]]] = _open_local,
    address: Callable[[str], str] = str,
) -> tuple[list[SourceFile], list[str]]:
    """Separate the files to read from those to skip; entries are path, name below the folder and bytes.

    Raises:
        InputError: No file exists, or an entry has no size, so it is not a file.
    """
    files: list[SourceFile] = []
    skipped: list[str] = []
    for path, relative, size in entries:
        # Engines leave such files beside their output: _SUCCESS, .part-0.crc.
        if size == 0 or any(part.startswith((".", "_")) for part in relative.split("/")):
            skipped.append(display_name(address(path)))
        elif size is None:
            raise InputError(
                f"{display_name(path)} is not a file, but a pipe, or a link to a folder or to nothing: remove"
                " it, or give its address."
            )
        else:
            files.append(SourceFile(display_name(address(path)), lambda path=path: open_path(path)))  # type: ignore[misc]
    if not files:
        raise InputError(f"{name} has no file with a list: check the address.")
    return files, skipped


def is_pipe(source: str) -> bool:
    """Return whether a path is a pipe or another file that can be read only once."""
    path = Path(source).expanduser()
    return "://" not in source and path.exists() and not path.is_file() and not path.is_dir()


def byte_chunks(stream: Readable) -> Iterator[bytes]:
    """Read a stream of text or bytes to its end, as bytes."""
    # The buffer of a text stream has the original bytes, whose encoding the stream may have guessed wrongly.
    raw: Readable = getattr(stream, "buffer", stream)
    while piece := raw.read(CHUNK_BYTES):
        yield piece if isinstance(piece, bytes) else piece.encode("utf-8", "surrogatepass")
