"""Repair lakes of earlier releases: rewrite rows whose JSON or times some engines reject.

A repair replaces a part with such rows by a conditional write, as for an edit, so exports may run at the same
time. Messages keep their ids, values and digests; only the stored form changes. The repair records the new
size and hash of a part before it replaces the part: after a kill in between, both versions are recorded, and
the next repair continues.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

import pyarrow as pa

from imbrace_lake.errors import ObjectChanged, StoreUnavailable
from imbrace_lake.export.recovery import heartbeat
from imbrace_lake.export.run import versions
from imbrace_lake.lake.checkpoint import read_states
from imbrace_lake.lake.claim import PartClaim
from imbrace_lake.lake.conversation_states import ConversationStates
from imbrace_lake.lake.hashes import NO_HASH, content_hash, hash_sum
from imbrace_lake.lake.lake import Lake, Part, body_hash, encoded
from imbrace_lake.lake.ledger import Journal
from imbrace_lake.lake.ledger_schema import WINDOW, ConversationEntry, RunTotals
from imbrace_lake.lake.memory import MemoryBudget, Reservation
from imbrace_lake.lake.publish import in_thread_unless
from imbrace_lake.lake.rows import SortBuffer
from imbrace_lake.lake.schema import as_written_today, with_digests
from imbrace_lake.lake.snapshot import PartitionSnapshot
from imbrace_lake.store.contract import Body
from imbrace_lake.store.lease import exclusive_lease

# An export has replaced the same part each time that a repair loses a race.
TRIES = 20
# The resolution of times in the ledgers.
_TICK = timedelta(milliseconds=1)


@dataclass(slots=True)
class Repaired:
    """The result of a repair.

    Attributes:
        parts: The number of parts read.
        keys: The keys of parts with rows in an earlier form.
        rows: The number of such rows.
        is_applied: Whether these rows were rewritten.
    """

    parts: int = 0
    keys: list[str] = field(default_factory=list)
    rows: int = 0
    is_applied: bool = False


@dataclass(frozen=True, slots=True)
class _Rewritten:
    """A part in today's form.

    Attributes:
        organization_id, conversation_id: The conversation.
        body: The Parquet file, encoded already.
        entry: The part as the ledger records it.
        before: The part as it was read.
    """

    organization_id: str
    conversation_id: str
    body: Body
    entry: Part
    before: Part


async def repair_lake(
    lake: Lake,
    run_id: str,
    clock: Callable[[], datetime],
    *,
    apply: bool,
    memory: MemoryBudget | None = None,
) -> Repaired:
    """Find every part with rows in an earlier form, and with `apply` rewrite them in today's form.

    Args:
        lake: The lake; exports may be under way.
        run_id: Names the repair in the ledgers, where it has a row in `runs` for each organization.
        clock: Returns the time.
        apply: Replace these parts. Otherwise nothing is written.
        memory: The memory budget; a new one by default.

    Raises:
        StoreError: A part cannot be read or written; the message names it.
    """
    found = Repaired(is_applied=apply)
    memory = memory or MemoryBudget()
    by_organization: dict[str, list[Part]] = {}
    for part in await lake.list_below():
        by_organization.setdefault(part.key.split("/")[1], []).append(part)
    for parts in by_organization.values():
        outdated = []
        for part in parts:
            rows = await _count_outdated(lake, part, memory)
            if rows:
                outdated.append(part)
                found.keys.append(part.key)
                found.rows += rows
            found.parts += 1
        if outdated and apply:
            probe = await lake.store.probe()
            async with nullcontext() if probe.is_conditional else exclusive_lease(lake.store, run_id, clock):
                await _Repair(lake, run_id, clock, memory).run(outdated)
    return found


async def _count_outdated(lake: Lake, part: Part, memory: MemoryBudget) -> int:
    """Return the number of rows in an earlier form in a part."""
    with Reservation(memory, lake.store.temporary_directory) as reservation:
        snapshot = await PartitionSnapshot.read(lake, [part], reservation)

        def count() -> int:
            return sum(outdated for _, outdated in _today(snapshot))

        return await in_thread_unless(snapshot.is_in_memory, count)


def _today(snapshot: PartitionSnapshot) -> Iterator[tuple[pa.Table, int]]:
    """Yield the rows of a part in today's form, in batches, and how many of them had an earlier form."""
    for rows in snapshot.part_batches(0):
        today = as_written_today(rows)
        if today.equals(rows):
            yield rows, 0
        else:
            pairs = zip(rows.to_pylist(), today.to_pylist(), strict=True)
            yield today, sum(old != new for old, new in pairs)


class _Repair:
    """Rewrites and records parts of one organization."""

    def __init__(self, lake: Lake, run_id: str, clock: Callable[[], datetime], memory: MemoryBudget) -> None:
        self._lake = lake
        self._run_id = run_id
        self._clock = clock
        self._memory = memory
        self._started_at = clock()
        self._journal = Journal(lake, run_id, self._started_at)
        self._states = ConversationStates.empty()
        # The entries that this repair has recorded, by conversation.
        self._recorded: dict[str, ConversationEntry] = {}

    async def run(self, parts: Sequence[Part]) -> None:
        """Rewrite the parts."""
        with Reservation(self._memory, self._lake.store.temporary_directory) as reservation:
            snapshot = await PartitionSnapshot.read(self._lake, parts[:1], reservation)
            organization_id = next(snapshot.part_batches(0, ["organization_id"])).column(0)[0].as_py()
        async with heartbeat(self._lake, self._run_id, organization_id, self._clock) as running:
            await running.send()
            self._states = await read_states(self._lake, organization_id)
            for part in parts:
                await self._repair(part)
            await running.stop()
            row = {
                "run_id": self._run_id,
                "organization_id": organization_id,
                "status": "complete",
                "parameters": {"command": "repair"},
                "versions": versions(),
                "started_at": self._started_at,
                "finished_at": self._clock(),
            }
            await self._journal.close(row, RunTotals(conversations={"unchanged": len(self._recorded)}))

    async def _repair(self, part: Part) -> None:
        current: Part | None = part
        for _ in range(TRIES):
            with Reservation(self._memory, self._lake.store.temporary_directory) as reservation:
                rewritten = None if current is None else await self._rewritten(current, reservation)
                if current is None or rewritten is None:
                    return
                recorded = self._recorded.get(rewritten.conversation_id)
                await self._record(rewritten)
                try:
                    await self._lake.replace_part(current, rewritten.body)
                except ObjectChanged:
                    # An export was first: withdraw the entry, and read the part that the export wrote.
                    await self._withdraw(rewritten, recorded)
                    there = await self._lake.list_below(f"{part.key.rpartition('/')[0]}/")
                    current = next((one for one in there if one.key == part.key), None)
                else:
                    return
        raise StoreUnavailable(f"{self._lake.url}/{part.key}: other runs kept writing to it, so try again")

    async def _rewritten(self, part: Part, reservation: Reservation) -> _Rewritten | None:
        """Return a part in today's form; None if it has that form already."""
        snapshot = await PartitionSnapshot.read(self._lake, [part], reservation)

        def rewrite() -> _Rewritten | None:
            buffer = SortBuffer(reservation)
            outdated, total, ids = 0, NO_HASH, {"organization_id": "", "conversation_id": ""}
            for rows, count in _today(snapshot):
                buffer.add(rows)
                outdated += count
                total = hash_sum([total, content_hash(with_digests(rows))])
                ids = rows.select([*ids]).slice(0, 1).to_pylist()[0]
            if not outdated:
                return None
            conversation_id = ids["conversation_id"]
            state = self._states.of_each([conversation_id]).get(conversation_id)
            claim = PartClaim(ids["organization_id"], conversation_id, self._run_id, content_hash=total)
            if state is not None:
                claim = replace(
                    claim,
                    status=state.status,
                    proof_method=state.proof_method,
                    server_count=state.server_count,
                )
            body = buffer.rows().encode(reservation, claim.metadata())
            size_bytes = len(body) if isinstance(body, bytes) else body.stat().st_size
            entry = Part(part.key, size_bytes, snapshot.parts[0].rows, body_hash(body))
            return _Rewritten(**ids, body=body, entry=entry, before=snapshot.parts[0])

        return await in_thread_unless(snapshot.is_in_memory, rewrite)

    async def _record(self, part: _Rewritten) -> None:
        """Record the new version of a part in an entry that is otherwise the conversation's last one."""
        state = self._recorded.get(part.conversation_id)
        state = state or self._states.of_each([part.conversation_id]).get(part.conversation_id)
        if state is None:
            state = self._claiming_nothing(part, (part.entry,))
        is_as_proven = any(
            one.key == part.entry.key and one.sha256 == part.before.sha256 for one in state.parts
        )
        entry = replace(
            state,
            run_id=self._run_id,
            status="gone" if state.status == "gone" else "unchanged",
            new_messages=0,
            edited_messages=0,
            deleted_messages=0,
            requests=0,
            parts=tuple(part.entry if one.key == part.entry.key else one for one in state.parts),
            # Not later than the last entry, whose hash must count until the part is replaced.
            started_at=state.started_at or state.finished_at,
            # Later than the last entry, even if this clock is behind that of the last run.
            finished_at=max(self._clock(), state.finished_at + _TICK),
            # If another run has written to the part since, the next run must not find it unchanged.
            head_hash=state.head_hash if is_as_proven else None,
            head_etag=state.head_etag if is_as_proven else None,
        )
        await self._note(entry)

    async def _withdraw(self, part: _Rewritten, recorded: ConversationEntry | None) -> None:
        """Withdraw the last entry of a conversation."""
        await self._note(recorded or self._claiming_nothing(part, ()))
        if recorded is None:
            del self._recorded[part.conversation_id]
            self._states = await read_states(self._lake, part.organization_id)

    async def _note(self, entry: ConversationEntry) -> None:
        self._recorded[entry.conversation_id] = entry
        await self._journal.note_entries(f"repair-{encoded(entry.conversation_id)}", [entry])

    def _claiming_nothing(self, part: _Rewritten, parts: tuple[Part, ...]) -> ConversationEntry:
        """Return an entry that proves nothing about the conversation, like that of a window."""
        return ConversationEntry(
            run_id=self._run_id,
            organization_id=part.organization_id,
            conversation_id=part.conversation_id,
            status="unchanged",
            finished_at=self._clock(),
            proof_method=WINDOW,
            parts=parts,
        )
