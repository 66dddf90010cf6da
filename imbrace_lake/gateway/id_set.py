"""A compact set of ids: 16 bytes per id in large sets."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from hashlib import blake2b
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

# Up to this number the ids are in an ordinary set; hardly any conversation is longer.
MAX_IN_SET = 16_384

_Lane: TypeAlias = npt.NDArray[np.uint64]
_Level: TypeAlias = tuple[_Lane, _Lane]
"""The first and the second halves of digests, in the order of the first halves."""


class IdSet:
    """A set of ids that only grows.

    Beyond `MAX_IN_SET` it keeps sorted 128-bit digests instead of ids, in arrays of doubling sizes. Two ids
    with the same digest would count as one, which could hide a gap in a walk; among a billion ids the
    probability is 1 in 10^21. Ids whose digests agree only in the first half are distinguished, or at worst
    one of them counts as new: the walk then ends as *incomplete*.
    """

    def __init__(self, ids: Iterable[str] = ()) -> None:
        self._recent = set(ids)
        self._levels: list[_Level] = []
        self._settle()

    def __len__(self) -> int:
        return len(self._recent) + sum(len(level[0]) for level in self._levels)

    def __contains__(self, message_id: str) -> bool:
        return message_id in self._recent or (bool(self._levels) and not self.difference([message_id]))

    def difference(self, ids: Sequence[str]) -> list[str]:
        """Return the ids that are not in the set, in their order."""
        others = [one for one in ids if one not in self._recent]
        if not others or not self._levels:
            return others
        is_there = self._are_in_levels(_level_of(others, is_sorted=False))
        return [one for one, met in zip(others, is_there.tolist(), strict=True) if not met]

    def count(self, ids: Sequence[str]) -> int:
        """Return how many of the ids are in the set."""
        if not self._levels:
            return sum(map(self._recent.__contains__, ids))
        return len(ids) - len(self.difference(ids))

    def isdisjoint(self, ids: Sequence[str]) -> bool:
        """Whether none of the ids is in the set."""
        return self._recent.isdisjoint(ids) and (not self._levels or not self.count(ids))

    def add(self, ids: Sequence[str]) -> None:
        """Add ids to the set."""
        self._recent.update(self.difference(ids) if self._levels else ids)
        if len(self._recent) >= MAX_IN_SET:
            self._settle()

    def update(self, other: IdSet) -> None:
        """Add all ids of another set."""
        if not len(self):
            # Arrays are never changed, so both sets may share them.
            self._recent, self._levels = set(other._recent), [*other._levels]
            return
        if other._levels and self._recent:
            self._push(_level_of([*self._recent]))
            self._recent = set()
        for level in other._levels:
            is_new = ~self._are_in_levels(level)
            self._push((level[0][is_new], level[1][is_new]))
        self.add([*other._recent])

    def _settle(self) -> None:
        """Replace the ids of a full set by digests."""
        if len(self._recent) >= MAX_IN_SET:
            self._push(_level_of([*self._recent]))
            self._recent = set()

    def _push(self, level: _Level) -> None:
        # Each array is at least twice as long as the next, so that there are few arrays to search.
        while self._levels and len(self._levels[-1][0]) < 2 * len(level[0]):
            other = self._levels.pop()
            level = _sorted(np.concatenate([other[0], level[0]]), np.concatenate([other[1], level[1]]))
        self._levels.append(level)

    def _are_in_levels(self, wanted: _Level) -> npt.NDArray[np.bool_]:
        is_there = np.zeros(len(wanted[0]), dtype=np.bool_)
        for first, second in self._levels:
            if len(first):
                index = np.minimum(np.searchsorted(first, wanted[0]), len(first) - 1)
                is_there |= (first[index] == wanted[0]) & (second[index] == wanted[1])
        return is_there


def _level_of(ids: Sequence[str], *, is_sorted: bool = True) -> _Level:
    digests = b"".join(
        [blake2b(one.encode("utf-8", "surrogatepass"), digest_size=16).digest() for one in ids]
    )
    halves = np.frombuffer(digests, np.uint64).reshape(-1, 2)
    first, second = halves[:, 0], halves[:, 1]
    return _sorted(first, second) if is_sorted else (first, second)


def _sorted(first: _Lane, second: _Lane) -> _Level:
    order = np.argsort(first, kind="stable")
    return first[order], second[order]
