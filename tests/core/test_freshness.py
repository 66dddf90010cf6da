"""How old the proof of each conversation is."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from imbrace_lake.lake.freshness import freshness
from imbrace_lake.lake.ledger import ConversationEntry

NOW = datetime(2026, 1, 10, tzinfo=UTC)
DAY = timedelta(days=1)
ENTRY = ConversationEntry("run", "org", "c", "complete", NOW)


def test_the_stalest_comes_first_and_equals_come_in_the_order_of_their_ids() -> None:
    entries = [
        replace(ENTRY, conversation_id="b", proven_until=NOW - DAY),
        replace(ENTRY, conversation_id="a", proven_until=NOW - DAY, full_walk_at=NOW - 3 * DAY),
        replace(ENTRY, conversation_id="c", proven_until=NOW - 2 * DAY, status="unchanged"),
    ]

    found = freshness(entries, NOW)

    assert [(one.conversation_id, one.age, one.walk_age) for one in found] == [
        ("c", 2 * DAY, None),
        ("a", DAY, 3 * DAY),
        ("b", DAY, None),
    ]


def test_what_is_gone_cannot_be_stale() -> None:
    assert not freshness([replace(ENTRY, status="gone", proven_until=NOW - DAY)], NOW)


def test_an_entry_that_proves_no_time_is_as_old_as_itself() -> None:
    assert freshness([replace(ENTRY, finished_at=NOW - DAY)], NOW)[0].age == DAY
