"""The accounts of a run: every conversation that it found ends with exactly one outcome.

A run records what it found before it exports anything. When it ends, each conversation without an outcome
becomes a dead letter `not_reached`, so that a rerun by id exports it. For a run that was killed, a later
run does this.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime

from imbrace_lake.lake.ledger import Journal
from imbrace_lake.lake.ledger_schema import ConversationEntry, conversation_rows

ROWS_PER_OBJECT = 50_000
MAX_POSITIONS = 20


@dataclass(slots=True)
class Accounts:
    """The input of a run, the conversations that it found, and those with an outcome in its journal.

    Attributes:
        found: The conversations that the run found, each once; None until it knows them all.
        recorded: Those whose outcome is in the journal, or in the ledger rows of a shard.
        gone: Those which this process found to be deleted upstream.
        pages_requested: How many pages were requested for each conversation without a recorded outcome.
        reasons: Why some conversations were not reached, where that differs from the reason of the others.
        phones: Entries of the input list by status.
        unreadable: The positions of the first entries that are not phone numbers.
        number_errors: Why numbers could not be resolved: how many for each reason.
        if_empty: The remark of a run that found nothing although nothing failed.
        lost_input: Sentences about input of an earlier run that its rerun cannot export.
    """

    found: list[str] | None = None
    recorded: set[str] = field(default_factory=set)
    gone: set[str] = field(default_factory=set)
    pages_requested: Counter[str] = field(default_factory=Counter)
    reasons: dict[str, str] = field(default_factory=dict)
    phones: Counter[str] = field(default_factory=Counter)
    unreadable: list[int] = field(default_factory=list)
    number_errors: Counter[str] = field(default_factory=Counter)
    if_empty: str = "no conversation was found"
    lost_input: list[str] = field(default_factory=list)

    def record(self, entries: Iterable[ConversationEntry]) -> None:
        """Mark entries as recorded after they have been written to the journal."""
        for entry in entries:
            self.recorded.add(entry.conversation_id)
            if entry.status == "gone":
                self.gone.add(entry.conversation_id)
            self.pages_requested.pop(entry.conversation_id, None)

    def unreached(self) -> list[str]:
        """Return the conversations that were found and have no outcome."""
        return [one for one in self.found or () if one not in self.recorded]


async def note_unreached(
    journal: Journal,
    organization_id: str,
    reasons: Mapping[str, str],
    at: datetime,
    pages_requested: Mapping[str, int] | None = None,
) -> list[ConversationEntry]:
    """Record conversations that a run did not reach as dead letters, from the reason of each.

    They are recorded as Parquet, because there can be as many as conversations.
    """
    requests = pages_requested or {}
    entries = [
        ConversationEntry(
            journal.run_id,
            organization_id,
            one,
            "not_reached",
            at,
            reason=reason,
            is_dead_letter=True,
            requests=requests.get(one, 0),
        )
        for one, reason in reasons.items()
    ]
    for start in range(0, len(entries), ROWS_PER_OBJECT):
        rows = conversation_rows(entries[start : start + ROWS_PER_OBJECT])
        await journal.note("conversations", f"not-reached-{start}", rows)
    return entries
