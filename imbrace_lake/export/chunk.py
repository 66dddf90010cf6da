"""Export a chunk of conversations side by side, and write down how each of them stands."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from imbrace_lake.errors import ImbraceLakeError, WalkIncomplete
from imbrace_lake.export.conversation import export_conversation
from imbrace_lake.export.export_run import ExportRun
from imbrace_lake.lake.ledger import ConversationEntry, conversation_rows

logger = logging.getLogger(__name__)

# What is done is written down this often, or when so many are: a killed run is continued from there.
NOTE_SECONDS = 1.0
NOTE_ENTRIES = 20


@dataclass(frozen=True, slots=True)
class ChunkResult:
    """What became of a chunk: its conversations by status, those that failed, and whether to retry."""

    statuses: Counter[str]
    dead_letters: tuple[ConversationEntry, ...]
    is_worth_retrying: bool


async def export_chunk(
    run: ExportRun, name: str, conversation_ids: Sequence[str], *, is_last_try: bool = True
) -> ChunkResult:
    """Export conversations side by side; one that fails costs itself and no other.

    Args:
        run: What they share.
        name: Names the chunk in the run's journal.
        conversation_ids: Which.
        is_last_try: Believe what fails for now. Otherwise a second call with the same name goes on
            with what this one leaves.

    Raises:
        ImbraceLakeError: One that every other conversation would meet as well (`is_fatal`).
    """
    done = run.half_done.setdefault(name, {})
    failed: dict[str, ImbraceLakeError] = {}

    notes = _Notes(run, name, done)

    async def export(conversation_id: str) -> None:
        async with run.slots:
            try:
                done[conversation_id] = await _export_or_resume(run, conversation_id)
                await notes.keep_up()
            except ImbraceLakeError as exc:
                if exc.is_fatal:
                    raise
                failed[conversation_id] = exc

    try:
        async with asyncio.TaskGroup() as group:
            for conversation_id in conversation_ids:
                if conversation_id not in done:
                    group.create_task(export(conversation_id))
    except BaseExceptionGroup as failures:
        # Callers write `except ImbraceLakeError`, and a group would slip past them.
        raise failures.exceptions[0] from None
    finally:
        # Also when the run is cancelled: what is published need not be looked at again.
        await notes.write()
    is_worth_retrying = any(error.is_transient for error in failed.values())
    if is_worth_retrying and not is_last_try:
        return ChunkResult(_statuses(done.values()), (), is_worth_retrying=True)
    entries = [*done.values(), *(_failed(run, one, error) for one, error in failed.items())]
    if failed:
        await run.journal.note("conversations", name, conversation_rows(entries))
    del run.half_done[name]
    statuses = _statuses(entries)
    told = " ".join(f"{status}={count}" for status, count in sorted(statuses.items()))
    logger.info("exported chunk=%s %s new=%d", name, told, sum(entry.new_messages for entry in entries))
    dead = tuple(entry for entry in entries if entry.is_dead_letter)
    run.dead_letters.extend(dead)
    return ChunkResult(statuses, dead, is_worth_retrying)


async def _export_or_resume(run: ExportRun, conversation_id: str) -> ConversationEntry:
    """Export a conversation, unless a killed run of the same job had done so."""
    before = run.resumed.get(conversation_id)
    if before is None:
        return await export_conversation(run, conversation_id)
    entry = replace(before, run_id=run.run_id)
    run.progress.note(entry)
    return entry


class _Notes:
    """Keeps the journal not far behind what a chunk has got done."""

    def __init__(self, run: ExportRun, name: str, done: dict[str, ConversationEntry]) -> None:
        self._run = run
        self._name = name
        self._done = done
        self._noted = len(done)
        self._noted_at = time.monotonic()
        self._writing = asyncio.Lock()

    async def keep_up(self) -> None:
        """Write if enough has been done, or enough time has passed, since the last time."""
        is_late = time.monotonic() - self._noted_at >= NOTE_SECONDS
        # Whoever is far ahead of a slow disk waits for it, or a killed run would lose more and more.
        if len(self._done) - self._noted >= NOTE_ENTRIES or (is_late and not self._writing.locked()):
            await self.write()

    async def write(self) -> None:
        """Write what has been done, if that is news."""
        async with self._writing:
            if len(self._done) > self._noted:
                self._noted, self._noted_at = len(self._done), time.monotonic()
                rows = conversation_rows(self._done.values())
                await self._run.journal.note("conversations", self._name, rows)


def _statuses(entries: Iterable[ConversationEntry]) -> Counter[str]:
    return Counter(entry.status for entry in entries)


def _failed(run: ExportRun, conversation_id: str, error: ImbraceLakeError) -> ConversationEntry:
    entry = ConversationEntry(
        run_id=run.run_id,
        organization_id=run.organization_id,
        conversation_id=conversation_id,
        status="incomplete" if isinstance(error, WalkIncomplete) else "failed",
        reason=str(error),
        is_dead_letter=True,
        finished_at=run.clock(),
    )
    logger.warning("not exported conversation=%s status=%s reason=%s", conversation_id, entry.status, error)
    run.progress.note(entry)
    return entry


def chunk_size(conversations: int, chosen: int | None = None) -> int:
    """How many conversations one task exports: about 40 tasks, of 10 to 500 conversations each.

    A task run costs the orchestrator 30 ms of CPU, and more than about 1,000 in a burst are lost by
    its in-memory broker; smaller chunks only buy finer rows in its view.
    """
    return chosen or min(500, max(10, -(-conversations // 40)))
