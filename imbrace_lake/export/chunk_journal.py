"""A chunk's part of the journal, written as it goes: a killed run continues from there."""

from __future__ import annotations

import asyncio
import time
from itertools import islice

from imbrace_lake.export.accounts import Accounts
from imbrace_lake.lake.ledger import Journal
from imbrace_lake.lake.ledger_schema import ConversationEntry, entry_line

# What is done is written down this often, or when so many were walked, or such a share of the chunk was
# merely looked at, which costs less to do again. A write costs as much as ten looks.
WRITE_SECONDS = 1.0
WRITE_WALKED = 20
WRITE_SHARE = 10
# An object that has fewer is written again, whole, with those that follow.
MOST_LINES = 40


class ChunkJournal:
    """Writes a chunk's outcomes to the journal, many at a time.

    Args:
        journal: The run's.
        accounts: The run's, in which each entry counts as recorded once it is in the journal.
        name: The chunk's.
        size: How many conversations it has.

    Attributes:
        done: The entry of each finished conversation, by its id.
    """

    def __init__(self, journal: Journal, accounts: Accounts, name: str, size: int) -> None:
        self.done: dict[str, ConversationEntry] = {}
        self._lines: list[bytes] = []  # of those from `_first` on
        self._journal = journal
        self._accounts = accounts
        self._name = name
        self._written = 0
        self._walked = 0  # of those that are not noted
        self._most_unwritten = max(WRITE_WALKED, size // WRITE_SHARE)
        self._first = 0  # of those that are in the object under way
        self._written_at = time.monotonic()
        self._writing = asyncio.Lock()

    async def add(self, entry: ConversationEntry) -> None:
        """Take one, and write if enough has been done, or enough time has passed, since the last time.

        Raises:
            TypeError: The entry cannot be written; it is not taken, and costs no other entry anything.
            StoreError: The journal cannot be written; the entry is taken, and the next write includes it.
        """
        self.take(entry)
        self._walked += entry.status != "unchanged" or entry.requests > 1
        is_late = time.monotonic() - self._written_at >= WRITE_SECONDS
        is_much = self._walked >= WRITE_WALKED or len(self.done) - self._written >= self._most_unwritten
        # Back-pressure: otherwise a kill loses ever more on a slow disk.
        if is_much or (is_late and not self._writing.locked()):
            await self.write()

    def take(self, entry: ConversationEntry) -> None:
        """Take one, to be written with the next."""
        self._lines.append(entry_line(entry))
        self.done[entry.conversation_id] = entry

    async def write(self) -> None:
        """Write what has been done, if that is news."""
        async with self._writing:
            if len(self.done) == self._written:
                return
            self._written_at = time.monotonic()
            count, walked = len(self.done), self._walked
            lines = self._lines[:]
            await self._journal.note_lines(f"{self._name}-{self._first}", lines)
            # Only now: what could not be written is new the next time too.
            self._accounts.record(islice(self.done.values(), self._written, count))
            self._written = count
            self._walked -= walked
            if len(lines) >= MOST_LINES:
                self._first = count
                del self._lines[: len(lines)]
