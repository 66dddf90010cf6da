"""Seeded mutations of a conversation while it is read."""

from __future__ import annotations

from random import Random

from imbrace_sandbox.lists import Conversation
from imbrace_sandbox.options import SandboxOptions


def mutate(conversation: Conversation, options: SandboxOptions, request_number: int) -> None:
    """Change a list just before one of its pages is made.

    Args:
        conversation: Changed in place.
        options: The mean number of changes of each kind per request.
        request_number: Of this conversation; it makes the changes equal in every run.
    """
    expected = (options.churn_inserts, options.churn_backdated, options.churn_deletes, options.churn_edits)
    if not any(expected):
        return
    rng = Random(f"{options.seed}/churn/{conversation.senders.conversation_id}/{request_number}")
    # Always four draws, so that an option does not change the effect of another.
    many = [_draw(rng, mean) for mean in expected]
    left = options.churn_moves - conversation.moves if options.churn_moves else sum(many)
    for kind, wanted in enumerate(many):
        now = max(0, min(wanted, left))
        left -= now
        _move(conversation, kind, now)


def _draw(rng: Random, mean: float) -> int:
    """Turn 2.5 into 2 or 3, each half of the time."""
    count = int(mean)
    return count + (rng.random() < mean - count)


def _move(conversation: Conversation, kind: int, many: int) -> None:
    if kind == 0:
        conversation.append(many)
    elif kind == 1:
        conversation.backdate(many)
    elif kind == 2:
        conversation.delete(min(many, len(conversation)))
    else:
        conversation.edit(min(many, len(conversation)))
