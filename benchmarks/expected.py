"""What the fake gateway serves, and what of it a competitor has written."""

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
        needed: Served from before the reading began until after it ended: none may be missing.
        possible: Served at the beginning or at the end: nothing else may be there.
    """

    needed: pa.ChunkedArray
    possible: pa.ChunkedArray

    @classmethod
    def still(cls, ids: pa.ChunkedArray) -> Self:
        """Of a list that does not move: what is served is needed, and nothing else is possible."""
        return cls(ids, ids)

    @classmethod
    def moved(cls, before: pa.ChunkedArray, after: pa.ChunkedArray) -> Self:
        """Of a list that moved while it was read."""
        needed = before.filter(pc.is_in(before, value_set=after))
        arrived = after.filter(pc.invert(pc.is_in(after, value_set=before)))
        return cls(needed, pa.chunked_array([*before.chunks, *arrived.chunks], pa.string()))


@dataclass(frozen=True, slots=True)
class Verdict:
    """How what was written differs from what was served, in messages."""

    rows: int
    lost: int
    doubled: int
    unknown: int

    @property
    def is_complete(self) -> bool:
        """Rows, distinct ids and ids that are served are the same."""
        return not (self.lost or self.doubled or self.unknown)

    def __str__(self) -> str:
        named = (("lost", self.lost), ("doubled", self.doubled), ("unknown", self.unknown))
        return ", ".join(f"{name} {count:,}" for name, count in named if count) or "complete"


def judge(found: pa.ChunkedArray, expected: Expected) -> Verdict:
    """Compare the ids of all rows that were written with those that were served."""
    distinct = pc.unique(found)
    return Verdict(
        rows=len(found),
        lost=_missing(expected.needed, distinct),
        doubled=len(found) - len(distinct),
        unknown=_missing(distinct, expected.possible),
    )


def _missing(wanted: pa.Array | pa.ChunkedArray, there: pa.Array | pa.ChunkedArray) -> int:
    """How many of the wanted ids are not there."""
    count: int = len(wanted) - pc.sum(pc.is_in(wanted, value_set=there), min_count=0).as_py()
    return count


def read_ids(url: str, column: str, *, is_lake: bool) -> pa.ChunkedArray:
    """Read the ids of all rows of the Parquet files below a folder or a bucket's URL.

    Args:
        url: Where the files are; none there is no rows.
        column: The one with the ids.
        is_lake: The files claim to have the lake's columns.

    Raises:
        ValueError: They do not have them.
    """
    # A listing that another call made does not show what a competitor has added since.
    files, path = fsspec.url_to_fs(url, skip_instance_cache=True, use_listings_cache=False)
    if not files.exists(path):
        return as_ids([])
    found = ds.dataset(path, filesystem=files, format="parquet")
    if is_lake and [(each.name, each.type) for each in found.schema] != [(f.name, f.type) for f in SCHEMA]:
        raise ValueError(f"{url} has other columns than the lake")
    return found.to_table(columns=[column]).column(column).cast(pa.string())


def as_ids(ids: Iterable[str]) -> pa.ChunkedArray:
    """Ids as one column."""
    return pa.chunked_array([pa.array(ids, pa.string())])
