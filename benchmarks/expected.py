"""The messages that the fake gateway serves, compared with those that a competitor wrote."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

import fsspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from imbrace_lake.lake.schema import SCHEMA


@dataclass(frozen=True, slots=True)
class Expected:
    """Message ids of all conversations together, each once.

    Attributes:
        needed: Served from the beginning of the run until its end: none may be missing.
        possible: Served at the beginning or at the end: the lake may have no others.
    """

    needed: pa.ChunkedArray
    possible: pa.ChunkedArray

    @classmethod
    def unmoved(cls, ids: pa.ChunkedArray) -> Self:
        """Of a list that does not move: exactly the served messages are needed."""
        return cls(ids, ids)

    @classmethod
    def moved(cls, before: pa.ChunkedArray, after: pa.ChunkedArray) -> Self:
        """Of a list that moved during the run."""
        needed = before.filter(pc.is_in(before, value_set=after))
        arrived = after.filter(pc.invert(pc.is_in(after, value_set=before)))
        return cls(needed, pa.chunked_array([*before.chunks, *arrived.chunks], pa.string()))


@dataclass(frozen=True, slots=True)
class Verdict:
    """The number of written messages, and how many of them differ from those that were served."""

    rows: int
    lost: int
    doubled: int
    unknown: int

    @property
    def is_complete(self) -> bool:
        """Whether every served message was written once, and no other."""
        return not (self.lost or self.doubled or self.unknown)

    def __str__(self) -> str:
        named = (("lost", self.lost), ("doubled", self.doubled), ("unknown", self.unknown))
        return ", ".join(f"{name} {count:,}" for name, count in named if count) or "complete"


def judge(found: pa.ChunkedArray, expected: Expected) -> Verdict:
    """Compare the ids of all written rows with those that were served."""
    distinct = pc.unique(found)
    return Verdict(
        rows=len(found),
        lost=_missing(expected.needed, distinct),
        doubled=len(found) - len(distinct),
        unknown=_missing(distinct, expected.possible),
    )


def _missing(wanted: pa.Array | pa.ChunkedArray, found: pa.Array | pa.ChunkedArray) -> int:
    """Return the number of wanted ids that were not found."""
    count: int = len(wanted) - pc.sum(pc.is_in(wanted, value_set=found), min_count=0).as_py()
    return count


def read_ids(url: str, column: str, *, is_lake: bool) -> pa.ChunkedArray:
    """Read the ids of all rows of the Parquet files below a folder or a bucket's URL.

    Args:
        url: The folder; it has no rows if it does not exist.
        column: The column with the ids.
        is_lake: Whether the files must have the lake's columns.

    Raises:
        ValueError: The files have other columns than the lake.
    """
    # A cached listing would not show what a competitor has added since.
    files, path = fsspec.url_to_fs(url, skip_instance_cache=True, use_listings_cache=False)
    if not files.exists(path):
        return as_ids([])
    found = ds.dataset(path, filesystem=files, format="parquet")
    if is_lake and [(each.name, each.type) for each in found.schema] != [(f.name, f.type) for f in SCHEMA]:
        raise ValueError(f"{url} has other columns than the lake")
    return found.to_table(columns=[column]).column(column).cast(pa.string())


def as_ids(ids: Iterable[str]) -> pa.ChunkedArray:
    """Return the ids as one column."""
    return pa.chunked_array([pa.array(ids, pa.string())])
