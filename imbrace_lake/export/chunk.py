"""Export a chunk of conversations side by side, and record the outcome of each."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from imbrace_lake.concurrency import run_bounded
from imbrace_lake.errors import ImbraceLakeError, NeverFound, WalkIncomplete, as_own_error
from imbrace_lake.export.conversation import export_conversation
from imbrace_lake.export.prior import PriorState
from imbrace_lake.export.recovery import ChunkJournal
from imbrace_lake.export.run import RunContext
from imbrace_lake.lake.ledger_schema import NEVER_FOUND, ConversationEntry
from imbrace_lake.printable import printable

logger = logging.getLogger(__name__)

MAX_WARNED = 5


@dataclass(frozen=True, slots=True)
class ChunkResult:
    """The result of a chunk: its conversations by status, its dead letters, and whether to retry."""

    statuses: Counter[str]
    dead_letters: tuple[ConversationEntry, ...]
    is_worth_retrying: bool


async def export_chunk(
    run: RunContext, name: str, conversation_ids: Sequence[str], *, is_last_try: bool = True
) -> ChunkResult:
    """Export conversations side by side; a failure does not affect the others.

    Once the budget of the run is used up, it leaves out those that it has not begun. Once its time is over,
    it leaves out those of which no page has arrived, and tries none again.

    Args:
        run: The run.
        name: The name of the chunk in the run's journal.
        conversation_ids: The conversations of the chunk.
        is_last_try: Treat transient failures as final. Otherwise a second call with the same name
            continues with the remaining conversations.

    Raises:
        ImbraceLakeError: An error that every other conversation would end with (`is_fatal`).
    """
    if name not in run.open_chunks:
        resumed = run.resumed.of_each(conversation_ids).values()
        run.open_chunks[name] = ChunkJournal(run.journal, run.accounts, name, conversation_ids, resumed)
        for entry in run.open_chunks[name].done.values():
            run.progress.note(entry)
    run.progress.retried.pop(name, None)
    chunk_journal = run.open_chunks[name]
    done = chunk_journal.done
    remaining = chunk_journal.remaining()
    prior_states = run.prior.of_each(run.organization_id, remaining)
    failed: dict[str, ImbraceLakeError] = {}

    ending: BaseException | None = None
    try:
        # All at once, because `run.slots` bounds the conversations of all chunks together.
        jobs = (partial(_export_one, run, chunk_journal, one, prior_states, failed) for one in remaining)
        await run_bounded(len(remaining), jobs)
    except (ImbraceLakeError, asyncio.CancelledError) as exc:
        ending = exc
    statuses: Counter[str] = Counter(entry.status for entry in done.values())
    lost: list[ConversationEntry] = []
    try:
        # Also if the run ends here, so that no outcome is lost.
        await chunk_journal.write()
        # After a failed write of the journal, a conversation is done: the next write includes it.
        is_over = run.budget is not None and run.budget.is_late
        if is_over:
            failed = chunk_journal.failed | failed
        failed = {one: error for one, error in failed.items() if one not in done}
        is_worth_retrying = not is_over and any(error.is_transient for error in failed.values())
        if is_worth_retrying and not is_last_try and ending is None:
            chunk_journal.failed = failed
            run.progress.retried[name] = len(failed)
            return ChunkResult(statuses, (), is_worth_retrying=True)
        lost = await _record_failures(run, name, failed)
    except ImbraceLakeError as exc:
        # A cancelled run ends, whatever the store does.
        if ending is None:
            raise
        logger.warning("outcomes of chunk=%s are not in the journal: %s", name, exc)
    entries = [*done.values(), *lost]
    dead = tuple(entry for entry in entries if entry.is_dead_letter)
    run.failures.add_dead_letters(dead)
    del run.open_chunks[name]
    if ending is not None:
        raise ending
    statuses.update(entry.status for entry in lost)
    counts = " ".join(f"{status}={count}" for status, count in sorted(statuses.items()))
    logger.debug("exported chunk=%s %s new=%d", name, counts, sum(entry.new_messages for entry in entries))
    return ChunkResult(statuses, dead, is_worth_retrying)


async def _export_one(
    run: RunContext,
    chunk_journal: ChunkJournal,
    conversation_id: str,
    prior_states: dict[str, PriorState],
    failed: dict[str, ImbraceLakeError],
) -> None:
    """Export a conversation if the budget allows it; its entry goes to the journal, its error to `failed`.

    Raises:
        ImbraceLakeError: As `export_chunk`.
    """
    async with run.turn(conversation_id) as is_allowed:
        if not is_allowed:
            return
        prior = prior_states.pop(conversation_id, PriorState())
        try:
            async with run.reachable_lake():
                entry = await export_conversation(run, conversation_id, prior)
                run.note_answer(conversation_id)
                await chunk_journal.add(entry)
        except Exception as exc:  # noqa: BLE001 - any error fails this conversation only
            error = as_own_error(exc, f"conversation={printable(conversation_id)}")
            if error.is_fatal:
                raise error from None
            failed[conversation_id] = error


async def _record_failures(
    run: RunContext, name: str, failed: Mapping[str, ImbraceLakeError]
) -> list[ConversationEntry]:
    """Record the conversations of a chunk that failed for good, and return their entries."""
    entries = []
    for conversation_id, error in failed.items():
        entry = ConversationEntry(
            run_id=run.run_id,
            organization_id=run.organization_id,
            conversation_id=conversation_id,
            status="incomplete" if isinstance(error, WalkIncomplete) else "failed",
            reason=str(error),
            is_dead_letter=True,
            proof_method=NEVER_FOUND if isinstance(error, NeverFound) else None,
            requests=run.accounts.pages_requested[conversation_id],
            finished_at=run.clock(),
        )
        entries.append(entry)
    if not entries:
        return entries
    await run.journal.note_entries(f"{name}-failed", entries)
    # Only now: a chunk whose journal cannot be written is exported again.
    run.accounts.record(entries)
    for entry in entries:
        run.failures.errors[entry.conversation_id] = type(failed[entry.conversation_id])
        run.progress.note(entry)
        # A gateway that rejects everything would add a line per conversation to the orchestrator's database.
        if len(run.failures.errors) <= MAX_WARNED:
            logger.warning(
                "not exported conversation=%s status=%s reason=%s",
                printable(entry.conversation_id),
                entry.status,
                entry.reason,
            )
        elif len(run.failures.errors) == MAX_WARNED + 1:
            # A shard has no report.
            where = "" if run.parent_run_id is None else f" on the page of run {run.parent_run_id}"
            logger.warning(
                "further failed conversations are not logged: the report of the failures%s groups all by"
                " cause",
                where,
            )
    return entries


def choose_chunk_size(conversations: int, chosen: int | None = None) -> int:
    """Return how many conversations one task exports: about 10 tasks, of 25 to 500 conversations each.

    A task run costs the orchestrator 30 ms of CPU, and its in-memory broker loses task runs if more than
    about 1,000 come at once; smaller chunks only make its display more detailed.
    """
    return chosen or min(500, max(25, -(-conversations // 10)))
