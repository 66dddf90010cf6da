"""The temporary folders of readers, who may not be allowed to write into the lake."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from tempfile import TemporaryDirectory

from imbrace_lake.errors import StoreError
from imbrace_lake.store.contract import Store


@contextmanager
def reading_folder(store: Store, prefix: str, *, without: str = "") -> Iterator[str]:
    """Yield a temporary folder for files that are only read.

    It is in the folder of the store, where a local lake links its files instead of copying them, or in that
    of the system if this user may not write there, or if its path has unwanted characters.

    Args:
        store: The store of the files.
        prefix: The beginning of the folder's name.
        without: Characters that the path must not have.

    Raises:
        StoreError: This user may not write to any temporary folder, or their paths have such a character.
    """
    made = None
    with suppress(StoreError, OSError):
        if {*without}.isdisjoint(str(own := store.temporary_directory())):
            made = TemporaryDirectory(prefix=prefix, dir=own)
    if made is None:
        try:
            made = TemporaryDirectory(prefix=f"imbrace-{prefix}")
        except OSError as exc:
            raise StoreError(
                f"no temporary folder can be made ({exc.strerror or type(exc).__name__}): set TMPDIR to a"
                " folder that this user may write"
            ) from exc
    with made as folder:
        if not {*without}.isdisjoint(folder):
            raise StoreError(
                f"the path of the temporary folder {folder} has one of the characters {' '.join(without)}:"
                " set TMPDIR to another"
            )
        yield folder
