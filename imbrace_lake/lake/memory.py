"""The memory budget of one process, the folder for what does not fit, and groups that do."""

from __future__ import annotations

import shutil
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

T = TypeVar("T")


def in_groups(
    items: Iterable[T], size_of: Callable[[T], int], most_bytes: int, most: int | None = None
) -> Iterator[list[T]]:
    """Yield items, in their order, in groups of limited size.

    Args:
        items: The items.
        size_of: Returns the size of an item in bytes.
        most_bytes: The size of a group, which one large item alone may exceed.
        most: The number of items in a group; no limit by default.
    """
    group: list[T] = []
    size_bytes = 0
    for item in items:
        size = size_of(item)
        if group and (size_bytes + size > most_bytes or len(group) == most):
            yield group
            group, size_bytes = [], 0
        group.append(item)
        size_bytes += size
    if group:
        yield group


@dataclass(slots=True)
class MemoryBudget:
    """The bytes that all conversations of one process may keep in memory together.

    Attributes:
        most_bytes: The limit. Work on reserved rows temporarily takes a small multiple of the limit.
        reserved_bytes: The sum of all reservations.
        reservations: Their number.
    """

    most_bytes: int = 16 * 2**20
    reserved_bytes: int = 0
    reservations: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    def add(self, size_bytes: int) -> None:
        """Count bytes; safe in any thread."""
        with self._lock:
            self.reserved_bytes += size_bytes


class Reservation:
    """One conversation's share of the memory budget, and a folder for what does not fit.

    Args:
        memory: The budget that it shares with other reservations.
        make_folder: Returns the parent of the folder; called when a file is needed.
    """

    def __init__(self, memory: MemoryBudget, make_folder: Callable[[], Path]) -> None:
        self._memory = memory
        self._make_folder = make_folder
        self._folder: Path | None = None
        self._files = 0
        self.reserved_bytes = 0

    def __enter__(self) -> Self:
        self._memory.reservations += 1
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._memory.reservations -= 1
        self.reserve(-self.reserved_bytes)
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def most_bytes(self) -> int:
        """The most bytes that one step of work should load at a time."""
        return max(1, self._memory.most_bytes // 2)

    @property
    def should_spill(self) -> bool:
        """Whether the budget is exceeded and this reservation has at least an equal share of it.

        Otherwise a single long conversation would make the short ones spill in small pieces.
        """
        memory = self._memory
        is_full = memory.reserved_bytes > memory.most_bytes
        return is_full and self.reserved_bytes * memory.reservations >= memory.reserved_bytes

    def fits(self, size_bytes: int) -> bool:
        """Whether this many more bytes fit into the budget."""
        return self._memory.reserved_bytes + size_bytes <= self._memory.most_bytes

    def reserve(self, size_bytes: int) -> None:
        """Reserve bytes, or release them if the number is negative."""
        self.reserved_bytes += size_bytes
        self._memory.add(size_bytes)

    def new_file(self) -> Path:
        """Return the path of a new file, which is deleted when the reservation ends."""
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="spill-", dir=self._make_folder()))
        self._files += 1
        return self._folder / f"{self._files:06d}"
