"""Which messages a run reads: how far back it looks at what the lake has, or which window of time."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from hashlib import blake2b

from imbrace_lake.lake.ledger_schema import PROVEN, ConversationEntry


@dataclass(frozen=True, slots=True)
class Window:
    """From `since` on, up to but not including `until`; None is open. Instants in UTC."""

    since: datetime | None = None
    until: datetime | None = None

    def __str__(self) -> str:
        return f"{self.since or '…'} to {self.until or '…'}"

    @property
    def is_open(self) -> bool:
        """Whether it is no window at all."""
        return self.since is None and self.until is None


@dataclass(frozen=True, slots=True)
class ReadPolicy:
    """What is read again, although nothing says that it changed.

    Attributes:
        look_back: Messages younger than this are compared with the lake, for edits.
        look_back_messages: At most so many, the newest first; the newest page always is.
        rewalk_after: A conversation whose last full walk is older than this is walked whole, for
            older edits and for deletions that an arrival hides.
    """

    look_back: timedelta = timedelta(days=7)
    look_back_messages: int = 200
    rewalk_after: timedelta = timedelta(days=30)

    def is_due(self, state: ConversationEntry | None, conversation_id: str, now: datetime) -> bool:
        """Whether a conversation is to be walked whole.

        The day lies between half of `rewalk_after` and all of it, at a place that the conversation's
        id decides: those that were first exported together are not all walked again together.
        """
        if state is None or state.status not in PROVEN or state.full_walk_at is None:
            return True
        share = int.from_bytes(blake2b(conversation_id.encode(), digest_size=4).digest(), "big") / 2**32
        return now - state.full_walk_at >= self.rewalk_after * (0.5 + 0.5 * share)
