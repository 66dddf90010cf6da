"""How far a run is: what the command line and the orchestrator show while it works."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from imbrace_lake.gateway.pacing import Gate
from imbrace_lake.lake.ledger import ConversationEntry


@dataclass(slots=True)
class Progress:
    """Counters of one run in one process; written by the run, read by whoever shows it.

    Attributes:
        stage: What is being done, in one word.
        numbers: How many distinct numbers are to be resolved, and how many are.
        conversations: How many conversations are to be exported; the done ones are in `statuses`.
        statuses: Conversations done, by status.
        messages_new: Messages added to the lake.
        messages_total: Messages of the conversations that were proven.
        written_bytes: Size of the parts added.
        gate: The run's budget of requests; None until it is opened.
    """

    stage: str = "starting"
    numbers: int = 0
    numbers_resolved: int = 0
    conversations: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    messages_new: int = 0
    messages_total: int = 0
    written_bytes: int = 0
    gate: Gate | None = None

    @property
    def conversations_done(self) -> int:
        """Conversations that have a status."""
        return sum(self.statuses.values())

    def note(self, entry: ConversationEntry, written_bytes: int = 0) -> None:
        """Count one conversation that is done."""
        self.statuses[entry.status] += 1
        self.messages_new += entry.new_messages
        self.messages_total += entry.distinct_messages or 0
        self.written_bytes += written_bytes

    def share(self) -> float:
        """How much of the run is done, 0.0 to 1.0; the numbers count a twentieth."""
        if self.stage == "done":
            return 1.0
        resolved = self.numbers_resolved / self.numbers if self.numbers else 0.0
        exported = self.conversations_done / self.conversations if self.conversations else 0.0
        return 0.05 * resolved + 0.95 * exported
