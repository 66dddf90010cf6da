"""What a run could not export, and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from imbrace_lake.errors import ConversationNotFound, ImbraceLakeError, NotReached
from imbrace_lake.lake.ledger_schema import ConversationEntry

# The most dead letters in a summary; the ledger has all.
MAX_LISTED = 500


@dataclass(slots=True)
class Failures:
    """The failures of one run.

    Attributes:
        dead_letters: The first `MAX_LISTED` conversations that could not be exported.
        dead_letter_count: The number of all such conversations.
        causes: Their number by the class of their error, and whether they were not reached.
        errors: The error class of each conversation that failed.
        lost_shards: How many shards are not known to have ended with an outcome for each conversation.
        shard_problem: How the first of these ended.
        problem: The first error that a task of the run ended with.
        fatal: The error that ends the run, because every further request would end with it.
        is_cancelled: A person has cancelled the run.
    """

    dead_letters: list[ConversationEntry] = field(default_factory=list)
    dead_letter_count: int = 0
    causes: Counter[tuple[type[ImbraceLakeError], bool]] = field(default_factory=Counter)
    errors: dict[str, type[ImbraceLakeError]] = field(default_factory=dict)
    lost_shards: int = 0
    shard_problem: str | None = None
    problem: str | None = None
    fatal: ImbraceLakeError | None = None
    is_cancelled: bool = False

    def add_dead_letters(self, entries: Sequence[ConversationEntry]) -> None:
        """Count conversations that could not be exported, and keep the first for the summary."""
        self.dead_letter_count += len(entries)
        self.causes.update(map(self._cause_of, entries))
        self.dead_letters.extend(entries[: MAX_LISTED - len(self.dead_letters)])

    def advice_on(self, entry: ConversationEntry) -> str:
        """Return what a person can do about a conversation that could not be exported."""
        return self._advice(*self._cause_of(entry))

    def by_advice(self) -> dict[str, int]:
        """Return the number of all dead letters by the advice on them, the most frequent first."""
        # Only now: whether the run was cancelled is known after its shards have been counted.
        found: Counter[str] = Counter()
        for cause, count in self.causes.items():
            found[self._advice(*cause)] += count
        return dict(found.most_common())

    def _cause_of(self, entry: ConversationEntry) -> tuple[type[ImbraceLakeError], bool]:
        is_unreached = entry.status == "not_reached"
        # A conversation that was deleted upstream has no error.
        default = NotReached if is_unreached else ConversationNotFound
        return self.errors.get(entry.conversation_id, default), is_unreached

    def _advice(self, error: type[ImbraceLakeError], is_unreached: bool) -> str:
        if is_unreached and self.is_cancelled:
            return NotReached.advice_if_cancelled
        if error is NotReached and self.fatal is not None:
            # What ended the run is the cause.
            return self.fatal.advice
        return error.advice

    @property
    def remedy(self) -> str | None:
        """What to do about the error that ended the run or its shards."""
        if self.fatal is not None:
            return self.fatal.advice
        return "Fix the cause of the shards' end, then rerun." if self.shard_problem else None

    def add_lost_shard(self, problem: str) -> None:
        """Count a lost shard, and keep how the first one ended."""
        self.lost_shards += 1
        self.shard_problem = self.shard_problem or problem

    def add_problem(self, error: ImbraceLakeError) -> None:
        """Keep the first error that a task of the run ended with, and the first that ends the run."""
        if error.is_fatal and self.fatal is None:
            self.fatal = error
        self.problem = self.problem or str(error)
