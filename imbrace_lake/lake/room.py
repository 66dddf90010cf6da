"""How much the conversations of one process may hold in memory, and where they put the rest."""

from __future__ import annotations

import shutil
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self


@dataclass(slots=True)
class Memory:
    """What all conversations of one process may hold in memory together.

    Attributes:
        most_bytes: The bound. Working on what is held takes a small multiple of it for a moment.
        held_bytes: What they hold.
        rooms: How many they are.
    """

    most_bytes: int = 16 * 2**20
    held_bytes: int = 0
    rooms: int = 0
    _turn: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    def add(self, size_bytes: int) -> None:
        """Count bytes, from whatever thread."""
        with self._turn:
            self.held_bytes += size_bytes


class Room:
    """One conversation's part of the memory, and a folder for what does not fit in.

    Args:
        memory: What it shares with the others.
        make_place: Where the folder is to be; called when one is needed.
    """

    def __init__(self, memory: Memory, make_place: Callable[[], Path]) -> None:
        self._memory = memory
        self._make_place = make_place
        self._folder: Path | None = None
        self._files = 0
        self.held_bytes = 0

    def __enter__(self) -> Self:
        self._memory.rooms += 1
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._memory.rooms -= 1
        self.hold(-self.held_bytes)
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def most_bytes(self) -> int:
        """What one step of work should have in memory at a time."""
        return max(1, self._memory.most_bytes // 2)

    @property
    def is_crowded(self) -> bool:
        """Whether too much is held by all together, and here at least an equal share of it.

        Were it whoever comes across a full memory, short conversations would be written out in
        crumbs because of one that is long.
        """
        memory = self._memory
        is_full = memory.held_bytes > memory.most_bytes
        return is_full and self.held_bytes * memory.rooms >= memory.held_bytes

    def has_room_for(self, size_bytes: int) -> bool:
        """Whether so many bytes more could be held."""
        return self._memory.held_bytes + size_bytes <= self._memory.most_bytes

    def hold(self, size_bytes: int) -> None:
        """Say that so many bytes more are held, or if negative fewer."""
        self.held_bytes += size_bytes
        self._memory.add(size_bytes)

    def new_file(self) -> Path:
        """The name of a new file; it goes when the room is left."""
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="spill-", dir=self._make_place()))
        self._files += 1
        return self._folder / f"{self._files:06d}"
