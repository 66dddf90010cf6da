"""Which messages a run reads: a window of time, and how much of what the lake has already."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from hashlib import blake2b

from imbrace_lake.lake.ledger_schema import PROVEN, ConversationEntry


@dataclass(frozen=True, slots=True)
class Window:
    """A span of time from `since` up to but not including `until`, in UTC; None is open."""

    since: datetime | None = None
    until: datetime | None = None

    def __str__(self) -> str:
        """Return the span in words, ``from 2026-01-01 00:00 UTC until …``; empty if it is open."""
        since = f"from {_moment(self.since)}" if self.since else ""
        until = f"until {_moment(self.until)}" if self.until else "on" if self.since else ""
        return f"{since} {until}".strip()

    @property
    def is_open(self) -> bool:
        """Whether the window is open on both sides, so that it contains all messages."""
        return self.since is None and self.until is None

    def sentence(self, now: datetime) -> str:
        """Return what a run that began `now` and read this window can state about it."""
        read = replace(self, until=None) if self.until is not None and self.until > now else self
        return f"every message {str(read) or 'until now'} was read; nothing is proven about others"


def _moment(time: datetime) -> str:
    text = f"{time.astimezone(UTC):%Y-%m-%d %H:%M:%S}"
    return f"{text.removesuffix(':00')} UTC"


@dataclass(frozen=True, slots=True)
class ReadPolicy:
    """Which messages are read again without a sign of a change.

    Attributes:
        look_back: Messages younger than this are compared with the lake, for edits.
        look_back_messages: At most this many of them, the newest first, and always the newest page.
        rewalk_after: A conversation gets a full walk when its last one is older than this, for older edits
            and for deletions that an arrival hides.
    """

    look_back: timedelta = timedelta(days=7)
    look_back_messages: int = 200
    rewalk_after: timedelta = timedelta(days=30)

    def is_due(self, state: ConversationEntry | None, conversation_id: str, now: datetime) -> bool:
        """Whether a conversation is due for a full walk.

        The walk is due after 50 to 100 % of `rewalk_after`; the conversation's id decides when, so that
        conversations that were first exported together are walked again at different times.
        """
        if state is None or state.status not in PROVEN or state.full_walk_at is None:
            return True
        share = int.from_bytes(blake2b(conversation_id.encode(), digest_size=4).digest(), "big") / 2**32
        return now - state.full_walk_at >= self.rewalk_after * (0.5 + 0.5 * share)
