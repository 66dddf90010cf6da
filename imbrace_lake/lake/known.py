"""What the lake knows of conversations from earlier runs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from imbrace_lake.lake.entries import CONVERSATIONS, PROVEN, WINDOW, ConversationEntry, entry_of
from imbrace_lake.lake.lake import Lake, Partitions
from imbrace_lake.lake.places import Places

STATE = [name for name in CONVERSATIONS.names if name not in ("reason", "started_at")]
OBJECTS_AT_A_TIME = 16
ROWS_AT_A_TIME = 4_096


class Entries:
    """One entry a conversation, by its id; kept as columns, for objects would take ten times the memory.

    Args:
        rows: Rows of the ledger `conversations`, of each conversation one.
    """

    def __init__(self, rows: pa.Table) -> None:
        self._count: int = rows.num_rows
        # Neither joined nor put in order, which would hold twice what may be most of the process's memory.
        self._batches = rows.to_batches()
        self._places = Places(self._texts(), self._count)

    @classmethod
    def none(cls) -> Entries:
        """Nothing known, as in a new lake."""
        return cls(none_rows())

    def of_each(self, conversation_ids: Iterable[str]) -> dict[str, ConversationEntry]:
        """The entries of some conversations, by their ids; those that have none are left out."""
        wanted = {*conversation_ids}
        places = self._places.of(wanted)
        found: dict[str, ConversationEntry] = {}
        start = 0
        for batch in self._batches:
            begin, end = np.searchsorted(places, [start, start + batch.num_rows])
            if begin < end:
                entries = map(entry_of, batch.take(pa.array(places[begin:end] - start)).to_pylist())
                found.update((one.conversation_id, one) for one in entries if one.conversation_id in wanted)
            start += batch.num_rows
        return found

    def ids(self) -> list[str]:
        """Every conversation that has an entry."""
        return [*self._texts()]

    def _texts(self) -> Iterator[str]:
        for some in self._some():
            yield from some.column("conversation_id").to_pylist()

    def _some(self) -> Iterator[pa.RecordBatch]:
        """All rows, as many at a time as objects may be made of."""
        for batch in self._batches:
            for start in range(0, batch.num_rows, ROWS_AT_A_TIME):
                yield batch.slice(start, ROWS_AT_A_TIME)

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[ConversationEntry]:
        for some in self._some():
            yield from map(entry_of, some.to_pylist())


def none_rows() -> pa.Table:
    """The states of a lake in which nothing is known."""
    return pa.schema([CONVERSATIONS.field(name) for name in STATE]).empty_table()


def is_state(rows: pa.Table) -> pa.ChunkedArray:
    """Which rows of the ledger `conversations` prove a conversation complete, unchanged or gone."""
    # A window of time proves nothing of the whole, so it is not a state to go on from.
    is_window = pc.fill_null(pc.equal(rows.column("proof_method"), WINDOW), False)
    return pc.and_(pc.is_in(rows.column("status"), pa.array([*PROVEN, "gone"])), pc.invert(is_window))


@dataclass(frozen=True, slots=True)
class LakeState:
    """What the ledgers of a lake add up to, for one organization.

    Attributes:
        known: The last proof of each conversation that has one.
        unproven: Ids of all other conversations: those that failed, of which only a window was read, or
            that a number led to before the run was killed.
        shapes: The shapes of messages that are known, of any organization.
    """

    known: Entries
    unproven: tuple[str, ...]
    shapes: frozenset[str]

    def ids(self) -> list[str]:
        """Ids of every conversation that a ledger names."""
        return [*self.known.ids(), *self.unproven]


async def read_every_id(
    lake: Lake, organization_id: str, partitions: Partitions, recorded: Iterable[str]
) -> list[str]:
    """Every conversation that the lake has a message or a ledger's row of, in order.

    Args:
        lake: Which.
        organization_id: Whose conversations.
        partitions: Its parts, as listed.
        recorded: Ids of all conversations that a ledger names.
    """
    found = {*recorded}
    untold = partitions.beyond(organization_id, found)
    for start in range(0, len(untold), OBJECTS_AT_A_TIME):
        for _, messages in await lake.read_parts(untold[start : start + OBJECTS_AT_A_TIME]):
            found.update(messages.column("conversation_id").slice(0, 1).to_pylist())
    return sorted(found)
