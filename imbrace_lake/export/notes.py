"""What a chunk has got done, written down as it goes: a killed run is continued from there."""

from __future__ import annotations

import asyncio
import time
from itertools import islice

from imbrace_lake.lake.entries import ConversationEntry
from imbrace_lake.lake.ledger import Journal

# What is done is written down this often, or when so many are.
NOTE_SECONDS = 1.0
NOTE_ENTRIES = 20
# And so many go into one object, which is written anew, whole, each time.
MOST_NOTED = 40


class Notes:
    """Keeps the journal not far behind what a chunk has got done.

    Attributes:
        done: How each conversation that the chunk is done with stands, by its id.
    """

    def __init__(self, journal: Journal, name: str) -> None:
        self.done: dict[str, ConversationEntry] = {}
        self._journal = journal
        self._name = name
        self._noted = 0
        self._first = 0  # of those that are in the object under way
        self._noted_at = time.monotonic()
        self._writing = asyncio.Lock()

    async def keep_up(self) -> None:
        """Write if enough has been done, or enough time has passed, since the last time."""
        is_late = time.monotonic() - self._noted_at >= NOTE_SECONDS
        # Whoever is far ahead of a slow disk waits for it, or a killed run would lose more and more.
        if len(self.done) - self._noted >= NOTE_ENTRIES or (is_late and not self._writing.locked()):
            await self.write()

    async def write(self) -> None:
        """Write what has been done, if that is news."""
        async with self._writing:
            if len(self.done) == self._noted:
                return
            self._noted_at = time.monotonic()
            count = len(self.done)
            entries = [*islice(self.done.values(), self._first, count)]
            await self._journal.note_entries(f"{self._name}-{self._first}", entries)
            # Only now: what could not be written is news the next time as well.
            self._noted = count
            if len(entries) >= MOST_NOTED:
                self._first = count
