"""The age of each conversation's proof."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from imbrace_lake.gateway.ids import canonical_conversation_id, canonical_conversation_ids, stored_ids
from imbrace_lake.lake.checkpoint import read_state
from imbrace_lake.lake.conversation_states import read_every_id
from imbrace_lake.lake.lake import Lake
from imbrace_lake.lake.ledger_schema import ConversationEntry

NEVER = "never proven"
OLDER = "30 days or more"
CLASSES = {
    "under an hour": timedelta(hours=1),
    "under a day": timedelta(days=1),
    "under a week": timedelta(weeks=1),
    "under 30 days": timedelta(days=30),
}


@dataclass(frozen=True, slots=True)
class Freshness:
    """The age of one conversation's proof.

    Attributes:
        status: The status of its last proof; ``unproven`` if it has none.
        age: The time since it was last proven complete or unchanged; None if it never was.
        walk_age: The time since its last full walk.
    """

    conversation_id: str
    status: str
    age: timedelta | None
    walk_age: timedelta | None


async def read_freshness(lake: Lake, organization_id: str, now: datetime) -> list[Freshness]:
    """Return the freshness of every conversation in the ledgers and partitions, the stalest first.

    A conversation that an earlier release stored under two spellings of its id is included once.
    """
    state = await read_state(lake, organization_id, ["proven_until", "full_walk_at"], now)
    proven = state.states.ids()
    canonical = {*canonical_conversation_ids(proven)}
    partitions = await lake.list_partitions(organization_id)
    ids = await read_every_id(lake, organization_id, partitions, state.ids())
    unproven = [
        Freshness(one, "unproven", None, None)
        for one in ids
        if canonical_conversation_id(one) not in canonical
    ]
    ages = freshness(state.states, now)
    if len(canonical) < len(proven):
        current = {*stored_ids(proven)}
        ages = [one for one in ages if one.conversation_id in current]
    return [*unproven, *ages]


def freshness(entries: Iterable[ConversationEntry], now: datetime) -> list[Freshness]:
    """Return the freshness of conversations, the stalest first, without those deleted upstream."""
    found = []
    for entry in entries:
        if entry.status != "gone":
            age = now - (entry.proven_until or entry.finished_at)
            walk_age = None if entry.full_walk_at is None else now - entry.full_walk_at
            found.append((-age, Freshness(entry.conversation_id, entry.status, age, walk_age)))
    return [one for _, one in sorted(found, key=lambda pair: (pair[0], pair[1].conversation_id))]


def by_age(found: Iterable[Freshness]) -> dict[str, int]:
    """Count conversations by age, the oldest last, including empty classes."""
    counts = dict.fromkeys([*CLASSES, OLDER, NEVER], 0)
    for one in found:
        if one.age is None:
            counts[NEVER] += 1
        else:
            counts[next((name for name, limit in CLASSES.items() if one.age < limit), OLDER)] += 1
    return counts


def count_stale(found: Sequence[Freshness], limit: timedelta) -> int:
    """Count the conversations with a proof older than `limit`, or with none."""
    return sum(one.age is None or one.age > limit for one in found)
