"""The last state of each conversation, from earlier runs."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from imbrace_lake.concurrency import run_bounded
from imbrace_lake.errors import DamagedObject
from imbrace_lake.lake.hash_index import HashIndex
from imbrace_lake.lake.lake import Lake, Part, Partitions, id_of_folder
from imbrace_lake.lake.ledger_schema import CONVERSATIONS, PROVEN, WINDOW, ConversationEntry, entry_of

STATE = [name for name in CONVERSATIONS.names if name not in ("reason", "started_at")]
OBJECTS_AT_A_TIME = 16
ROWS_AT_A_TIME = 4_096


class ConversationStates:
    """The last entry of each conversation, by its id; as columns, because objects take ten times the memory.

    Args:
        rows: Rows of the ledger `conversations`, one per conversation.
    """

    def __init__(self, rows: pa.Table) -> None:
        self._count: int = rows.num_rows
        # Neither joined nor sorted, because these rows can take most of the memory, and a copy as much again.
        self._batches = rows.to_batches()
        self._schema = rows.schema
        self._index = HashIndex(self.iter_ids(), self._count)

    @classmethod
    def empty(cls) -> ConversationStates:
        """Return no states, as in a new lake."""
        return cls(pa.schema([CONVERSATIONS.field(name) for name in STATE]).empty_table())

    def of_each(self, conversation_ids: Iterable[str]) -> dict[str, ConversationEntry]:
        """Return the entries of some conversations by their ids, without those that have none."""
        wanted = {*conversation_ids}
        found: dict[str, ConversationEntry] = {}
        for rows in self._find(wanted, self._schema.names):
            entries = map(entry_of, rows.to_pylist())
            found.update((one.conversation_id, one) for one in entries if one.conversation_id in wanted)
        return found

    def known(self, conversation_ids: Iterable[str]) -> set[str]:
        """Return those of some conversations that have an entry."""
        wanted = {*conversation_ids}
        columns = ["conversation_id"]
        found = (rows.column(0).to_pylist() for rows in self._find(wanted, columns))
        return wanted.intersection(one for ids in found for one in ids)

    def _find(self, wanted: Collection[str], columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Yield some columns of the rows of conversations, and perhaps of others with the same hash."""
        positions = self._index.find(wanted)
        start = 0
        for batch in self._batches:
            begin, end = np.searchsorted(positions, [start, start + batch.num_rows])
            if begin < end:
                yield batch.select([*columns]).take(pa.array(positions[begin:end] - start))
            start += batch.num_rows

    def table(self, columns: Sequence[str]) -> pa.Table:
        """Return some columns of all rows, without a copy."""
        return pa.Table.from_batches(self._batches, self._schema).select([*columns])

    def ids(self) -> list[str]:
        """Return the id of every conversation that has an entry."""
        return [*self.iter_ids()]

    def iter_ids(self) -> Iterator[str]:
        """Yield the id of every conversation that has an entry."""
        for some in self._some():
            yield from some.column("conversation_id").to_pylist()

    def _some(self) -> Iterator[pa.RecordBatch]:
        """Yield all rows, few enough at a time to make objects of them."""
        for batch in self._batches:
            for start in range(0, batch.num_rows, ROWS_AT_A_TIME):
                yield batch.slice(start, ROWS_AT_A_TIME)

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[ConversationEntry]:
        for some in self._some():
            yield from map(entry_of, some.to_pylist())


def is_state(rows: pa.Table) -> pa.ChunkedArray:
    """Return a mask of the rows that prove a conversation complete, unchanged or deleted upstream."""
    # A window of time proves nothing about other messages, so no run can continue from it.
    is_window = pc.fill_null(pc.equal(rows.column("proof_method"), WINDOW), False)
    return pc.and_(pc.is_in(rows.column("status"), pa.array([*PROVEN, "gone"])), pc.invert(is_window))


@dataclass(frozen=True, slots=True)
class LakeState:
    """The state that the ledgers of a lake add up to, for one organization.

    Attributes:
        states: The last proof of each conversation that has one.
        unproven: Ids of all other conversations: those that failed, of which only a window was read, or
            whose link was found before the run was killed.
        shapes: The known shapes of messages, of all organizations.
        ahead: The number of entries from the future, which a wrong clock has written.
    """

    states: ConversationStates
    unproven: tuple[str, ...]
    shapes: frozenset[str]
    ahead: int = 0

    def ids(self) -> list[str]:
        """Return the id of every conversation that a ledger names."""
        return [*self.states.ids(), *self.unproven]


async def read_every_id(
    lake: Lake, organization_id: str, partitions: Partitions, recorded: Iterable[str]
) -> list[str]:
    """Return the ids of all conversations with a partition or a row in a ledger, in order.

    Args:
        lake: The lake.
        organization_id: The organization of the conversations.
        partitions: The organization's parts, as listed.
        recorded: Ids of all conversations that a ledger names.
    """
    known = {*recorded}
    return sorted(known | await read_unrecorded(lake, organization_id, partitions, known))


async def read_unrecorded(
    lake: Lake, organization_id: str, partitions: Partitions, recorded: set[str]
) -> set[str]:
    """Return the ids of all conversations that have a partition, and no row in a ledger.

    The arguments are those of `read_every_id`.
    """
    found: set[str] = set()
    unrecorded = partitions.first_parts_except(organization_id, recorded)

    async def read(part: Part) -> None:
        try:
            ((_, messages),) = await lake.read_parts([part])
        except DamagedObject as exc:
            name = id_of_folder(part.key)
            if name is None:
                lake.skip_damaged(part.key, str(exc))
            else:
                found.add(name)  # whose export reports the damage
        else:
            found.update(messages.column("conversation_id").slice(0, 1).to_pylist())

    await run_bounded(OBJECTS_AT_A_TIME, (partial(read, part) for part in unrecorded))
    return found
