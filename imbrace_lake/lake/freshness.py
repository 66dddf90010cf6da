"""How old the proof of each conversation is."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from imbrace_lake.lake.ledger import ConversationEntry


@dataclass(frozen=True, slots=True)
class Freshness:
    """How one conversation stands, and since when nobody has looked.

    Attributes:
        age: Since it was last proven complete or unchanged.
        walk_age: Since it was last walked from top to bottom.
    """

    conversation_id: str
    status: str
    age: timedelta
    walk_age: timedelta | None


def freshness(entries: Iterable[ConversationEntry], now: datetime) -> list[Freshness]:
    """Every conversation with the age of its proof, the stalest first; what is gone has none to renew."""
    found = [
        Freshness(
            entry.conversation_id,
            entry.status,
            now - (entry.proven_until or entry.finished_at),
            None if entry.full_walk_at is None else now - entry.full_walk_at,
        )
        for entry in entries
        if entry.status != "gone"
    ]
    return sorted(found, key=lambda one: (-one.age, one.conversation_id))
