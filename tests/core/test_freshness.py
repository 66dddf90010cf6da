"""The age of the proof of each conversation."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from imbrace_lake.lake.freshness import Freshness, by_age, count_stale, freshness, read_freshness
from imbrace_lake.lake.lake import open_lake
from imbrace_lake.lake.ledger import Journal
from imbrace_lake.lake.ledger_schema import WINDOW, ConversationEntry, conversation_rows

NOW = datetime(2026, 1, 10, tzinfo=UTC)
DAY = timedelta(days=1)
ENTRY = ConversationEntry("run", "org", "c", "complete", NOW)


def test_conversations_are_sorted_by_age_oldest_first_and_then_by_id() -> None:
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


def test_a_conversation_that_is_gone_is_not_stale() -> None:
    assert not freshness([replace(ENTRY, status="gone", proven_until=NOW - DAY)], NOW)


def test_without_a_time_of_proof_the_age_is_that_of_the_entry() -> None:
    assert freshness([replace(ENTRY, finished_at=NOW - DAY)], NOW)[0].age == DAY


def test_a_conversation_that_was_never_proven_is_the_stalest(tmp_path: Path) -> None:
    entries = [
        replace(ENTRY, conversation_id="fresh"),
        replace(ENTRY, conversation_id="failed", status="failed", is_dead_letter=True),
        replace(ENTRY, conversation_id="window", proof_method=WINDOW),
        replace(ENTRY, conversation_id="gone", status="gone"),
        replace(ENTRY, conversation_id="old", finished_at=NOW - DAY),
    ]

    async def found() -> list[Freshness]:
        async with open_lake(str(tmp_path), now=NOW) as lake:
            await Journal(lake, "run", NOW).note("conversations", "x", conversation_rows(entries))
            return await read_freshness(lake, "org", NOW)

    assert [(one.conversation_id, one.status, one.age) for one in asyncio.run(found())] == [
        ("failed", "unproven", None),
        ("window", "unproven", None),
        ("old", "complete", DAY),
        ("fresh", "complete", 0 * DAY),
    ]


def test_conversations_are_counted_by_age_and_by_a_limit() -> None:
    ages = [None, 0 * DAY, DAY / 25, DAY / 2, DAY, 29 * DAY, 30 * DAY, 400 * DAY]
    found = [Freshness(str(position), "complete", age, None) for position, age in enumerate(ages)]

    assert by_age(found) == {
        "under an hour": 2,
        "under a day": 1,
        "under a week": 1,
        "under 30 days": 1,
        "30 days or more": 2,
        "never proven": 1,
    }
    assert count_stale(found, DAY) == 4
