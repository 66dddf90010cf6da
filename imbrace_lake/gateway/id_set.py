"""A compact set of ids: 16 bytes each where there are many."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from hashlib import blake2b
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

# So many are kept as they are, in a set: hardly any conversation is longer.
MOST_IN_SET = 16_384

_Lane: TypeAlias = npt.NDArray[np.uint64]
_Level: TypeAlias = tuple[_Lane, _Lane]
"""Digests in the order of their first halves: the first halves, and the second halves."""


class IdSet:
    """A set of ids that only grows.

    Beyond `MOST_IN_SET` it keeps digests of 128 bits instead of ids, sorted, in arrays whose sizes
    double. Two ids with one digest would be one id to it, and that could hide a gap in a walk; of a
    billion ids two have one digest with a chance of 1 in 10^21. Two ids that agree in the first half
    only are told apart, or at worst one of them is taken for new: a walk then says *incomplete*.
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
        """Those of the ids that are not in the set, in their order."""
        others = [one for one in ids if one not in self._recent]
        if not others or not self._levels:
            return others
        is_there = self._are_in_levels(_level_of(others, is_sorted=False))
        return [one for one, met in zip(others, is_there.tolist(), strict=True) if not met]

    def count(self, ids: Sequence[str]) -> int:
        """How many of the ids are in the set."""
        if not self._levels:
            return sum(map(self._recent.__contains__, ids))
        return len(ids) - len(self.difference(ids))

    def isdisjoint(self, ids: Sequence[str]) -> bool:
        """Whether none of the ids is in the set."""
        return self._recent.isdisjoint(ids) and (not self._levels or not self.count(ids))

    def add(self, ids: Sequence[str]) -> None:
        """Put ids into the set."""
        self._recent.update(self.difference(ids) if self._levels else ids)
        if len(self._recent) >= MOST_IN_SET:
            self._settle()

    def update(self, other: IdSet) -> None:
        """Put all of another set into this one."""
        if not len(self):
            # Arrays are never changed, so both may have them.
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
        """Turn the ids of a full set into digests."""
        if len(self._recent) >= MOST_IN_SET:
            self._push(_level_of([*self._recent]))
            self._recent = set()

    def _push(self, level: _Level) -> None:
        # Each array is at least twice as long as the next, so that there are few to look into.
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
