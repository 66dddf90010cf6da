"""Random changes of conversations between runs, and the state that the lake must have after them."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from datetime import timedelta
from random import Random

from imbrace_lake.lake.schema import to_item
from imbrace_sandbox import Sandbox
from tests.core.lake_runs import Bench, Message, Row, by_message

PAGE = 100
# A longer conversation has messages that no look-back reaches.
LOOK_BACK = 200


@dataclass
class Round:
    """The changes between two runs.

    Attributes:
        grown: The number of new messages by conversation.
        edited_near, edited_far: Edited messages, with the previous object of each.
        lost: Deleted messages.
        vanished: Deleted conversations.
    """

    grown: dict[str, int] = field(default_factory=dict)
    edited_near: dict[Message, Row] = field(default_factory=dict)
    edited_far: dict[Message, Row] = field(default_factory=dict)
    lost: list[Message] = field(default_factory=list)
    vanished: list[str] = field(default_factory=list)

    @property
    def new_pages(self) -> int:
        """Return the number of pages with new messages."""
        return sum(math.ceil(many / PAGE) for many in self.grown.values())


@dataclass(frozen=True)
class Amounts:
    """The number of conversations with each kind of change in a round."""

    grow: int
    edit_near: int
    edit_far: int
    lose: int
    vanish: int


@dataclass
class Timeline:
    """Rounds of random changes at a fake gateway, reproducible by a seed."""

    box: Sandbox
    rng: Random
    amounts: Amounts
    vanished: set[str] = field(default_factory=set)

    @property
    def present(self) -> list[str]:
        """Return the conversations that the gateway still has."""
        return [one for one in self.box.conversations if one not in self.vanished]

    def next_round(self) -> Round:
        """Make the changes, each kind to other conversations."""
        sizes = self.box.conversations
        amounts = self.amounts
        present = self.present
        self.rng.shuffle(present)
        long = [one for one in present if sizes[one] > LOOK_BACK + PAGE]
        some = [one for one in present if sizes[one] > 5]
        taken: set[str] = set()

        def take(candidates: list[str], many: int) -> list[str]:
            chosen = [one for one in candidates if one not in taken][:many]
            assert len(chosen) == many
            taken.update(chosen)
            return chosen

        happened = Round()
        for one in take(long, amounts.edit_far):
            happened.edited_far.update(self._edit(one, slice(0, sizes[one] - LOOK_BACK - PAGE)))
        for one in take(some, amounts.edit_near):
            happened.edited_near.update(self._edit(one, slice(-PAGE, None)))
        for one in take(some, amounts.lose):
            lost = self.box.delete(one, self.rng.randint(1, 5))
            happened.lost += [(one, message_id) for message_id in lost]
        for one in take(present, amounts.vanish):
            self.box.vanish(one)
            self.vanished.add(one)
            happened.vanished.append(one)
        for one in take(present, amounts.grow):
            happened.grown[one] = self.rng.randint(1, 300)
            self.box.append(one, happened.grown[one])
        return happened

    def _edit(self, conversation_id: str, where: slice) -> dict[Message, Row]:
        before = self.rng.choice(self.box.truth(conversation_id)[where])
        self.box.edit(conversation_id, [before["_id"]])
        return {(conversation_id, before["_id"]): before}


def live_through(bench: Bench, timeline: Timeline, rounds: int) -> list[tuple[int, int]]:
    """Make rounds of changes, each followed by an incremental run and by the scheduled re-walk.

    Returns:
        The number of requests of the incremental run and its upper bound, for each round.
    """
    costs = []
    bench.run()
    first = by_message(bench.rows())
    assert not bench.differences(rows=first)
    for _ in range(rounds):
        happened = timeline.next_round()
        timeline.box.reset_stats()
        summary = bench.run()
        most = 1.15 * (len(timeline.box.conversations) + happened.new_pages)
        costs.append((timeline.box.stats().accepted, int(most)))
        caught_up = by_message(bench.rows())
        assert not summary.dead_letters
        assert summary.totals.conversations["gone"] == len(timeline.vanished)
        assert summary.totals.messages_new == sum(happened.grown.values())
        missing = Counter({"other version": len(happened.edited_far)})
        assert bench.differences(timeline.present, caught_up) == +missing
        _assert_recorded(bench, happened.edited_near, happened.lost, first, caught_up)

        bench.now += timedelta(days=31)
        bench.run()
        walked = by_message(bench.rows())
        assert not bench.differences(timeline.present, walked)
        _assert_recorded(bench, happened.edited_far, [], caught_up, walked)
        assert bench.verify().is_sound
        assert not bench.wrong_hashes()
        first = walked
    return costs


def _assert_recorded(
    bench: Bench,
    edited: dict[Message, Row],
    lost: list[Message],
    before: dict[Message, Row],
    after: dict[Message, Row],
) -> None:
    """Assert that the lake has each change with its time, and `revisions` each previous version, no more."""
    now = bench.now
    replaced = [row for row in bench.ledger("revisions") if row["replaced_at"] == now]
    revisions = {(row["conversation_id"], row["message_id"]): row for row in replaced}
    assert revisions.keys() == edited.keys()
    for message, item in edited.items():
        old, new, revision = before[message], after[message], revisions[message]
        assert to_item(revision) == item
        assert {name: revision[name] for name in old} == old
        assert (new["first_seen_at"], new["last_changed_at"]) == (old["first_seen_at"], now)
        assert not new["is_deleted"]
    for message in lost:
        assert after[message] == before[message] | {"is_deleted": True, "deleted_at": now}
    untouched = before.keys() - edited.keys() - set(lost)
    assert all(after[message] == before[message] for message in untouched)
