"""Which messages a run reads: a window of time, and how much of what the lake has already."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from hashlib import blake2b
from typing import Any

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


@dataclass(frozen=True, slots=True)
class Reading:
    """What a run reads of each of its conversations, for a rerun of its failures.

    Attributes:
        window: The span of time.
        is_full: Each conversation gets a full walk, or only those that are due.
    """

    window: Window
    is_full: bool

    def __str__(self) -> str:
        """Return what is read, in words."""
        if not self.window.is_open:
            return f"the messages {self.window}"
        return "complete conversations" if self.is_full else "new messages"

    def recorded(self) -> dict[str, Any]:
        """Return the reading as parameters of a run in the ledger `runs`."""
        times = {"since": self.window.since, "until": self.window.until}
        given = {name: time.isoformat() for name, time in times.items() if time is not None}
        return {**given, "walk_whole": self.is_full}

    @classmethod
    def of(cls, parameters: Mapping[str, Any] | None) -> Reading | None:
        """Return the reading that a row of the ledger `runs` records; None if it does not record any.

        Rows of earlier releases have no parameters for a killed run, and only the id of the other run for a
        rerun.
        """
        if parameters is None or ("rerun" in parameters and "walk_whole" not in parameters):
            return None
        times = (parameters.get(name) for name in ("since", "until"))
        since, until = (None if time is None else datetime.fromisoformat(time) for time in times)
        return cls(Window(since, until), bool(parameters.get("walk_whole", False)))
