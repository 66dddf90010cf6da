"""What the lake knows of conversations from earlier runs."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from imbrace_lake.lake.entries import CONVERSATIONS, PROVEN, WINDOW, ConversationEntry, Ledger, entry_of
from imbrace_lake.lake.lake import Lake, Partitions
from imbrace_lake.lake.ledger import last_of_each, read_noted, read_objects
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


def entries_of(states: pa.Table, organization_id: str) -> Entries:
    """How each conversation of an organization stood when it was last proven complete, unchanged or gone.

    Args:
        states: As `latest_states` gives them.
        organization_id: Whose conversations are meant.
    """
    is_own = pc.equal(states.column("organization_id"), organization_id)
    return Entries(states if pc.all(is_own).as_py() else states.filter(is_own))


def latest_states(rows: pa.Table) -> pa.Table:
    """Of each conversation the last row that proved it complete, unchanged or gone."""
    # A window of time proves nothing of the whole, so it is no state to go on from.
    is_window = pc.fill_null(pc.equal(rows.column("proof_method"), WINDOW), False)
    is_state = pc.is_in(rows.column("status"), pa.array([*PROVEN, "gone"]))
    is_state = pc.and_(is_state, pc.invert(is_window))
    same, at = ["organization_id", "conversation_id"], "finished_at"
    if pc.all(is_state).as_py():
        return last_of_each(rows, same, at)
    # Whole rows are copied once only: they may be most of what the process holds.
    light = rows.select([*same, at]).append_column("row", pa.array(np.arange(rows.num_rows)))
    latest = last_of_each(light.filter(is_state), same, at)
    return rows.take(latest.column("row").combine_chunks())


async def read_every_id(lake: Lake, organization_id: str, partitions: Partitions) -> list[str]:
    """Every conversation that the lake has a message or a ledger's row of, in order.

    What failed, what only a window was read of, what is gone, and what a number led to before the run
    was killed is among them.

    Args:
        lake: Which.
        organization_id: Whose conversations.
        partitions: Its parts, as listed.
    """
    found: set[str] = set()
    columns: tuple[tuple[Ledger, str], ...] = (
        ("conversations", "conversation_id"),
        ("phones", "conversation_ids"),
    )
    for ledger, column in columns:
        async for rows in _iter_rows(lake, ledger, ["organization_id", column]):
            ids = rows.filter(pc.equal(rows.column("organization_id"), organization_id)).column(column)
            ids = pc.list_flatten(ids) if column == "conversation_ids" else ids
            found.update(ids.unique().to_pylist())
    untold = partitions.beyond(organization_id, found)
    for start in range(0, len(untold), OBJECTS_AT_A_TIME):
        for _, messages in await lake.read_parts(untold[start : start + OBJECTS_AT_A_TIME]):
            found.update(messages.column("conversation_id").slice(0, 1).to_pylist())
    return sorted(found)


async def _iter_rows(lake: Lake, ledger: Ledger, columns: list[str]) -> AsyncIterator[pa.Table]:
    """A ledger's rows, some objects at a time: every run names every conversation again."""
    for rows in await read_noted(lake, ledger, columns):
        yield rows
    keys = [stored.key for stored in await lake.store.list(f"{ledger}/")]
    for start in range(0, len(keys), OBJECTS_AT_A_TIME):
        for rows in await read_objects(lake, keys[start : start + OBJECTS_AT_A_TIME], columns):
            yield rows
