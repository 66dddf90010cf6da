"""Re-walks: when an unchanged conversation is walked in full again."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest

from imbrace_lake.lake.ledger_schema import ConversationEntry, ConversationStatus
from imbrace_lake.policy import ReadPolicy, Window

EXPORTED = datetime(2026, 1, 1, tzinfo=UTC)
POLICY = ReadPolicy(rewalk_after=timedelta(days=30))
ENTRY = ConversationEntry("run", "org", "c", "complete", EXPORTED, full_walk_at=EXPORTED)
IDS = [f"conv_{UUID(int=number)}" for number in range(3_000)]


def due(days: float) -> set[str]:
    now = EXPORTED + timedelta(days=days)
    return {one for one in IDS if POLICY.is_due(ENTRY, one, now)}


def test_no_walk_is_due_within_half_the_age_and_every_one_is_at_the_age() -> None:
    assert not due(14.9)
    assert len(due(30)) == len(IDS)


def test_re_walks_of_conversations_exported_together_are_spread_over_the_second_half() -> None:
    by_day = Counter({day: len(due(day) - due(day - 1)) for day in range(15, 31)})

    # On average a fifteenth per day.
    assert max(by_day.values()) < len(IDS) / 10
    assert sum(by_day.values()) == len(IDS)


def test_a_conversation_that_was_due_stays_due_until_it_is_walked() -> None:
    assert due(18) < due(19) < due(20)
    walked = replace(ENTRY, full_walk_at=EXPORTED + timedelta(days=20))
    assert not any(POLICY.is_due(walked, one, EXPORTED + timedelta(days=21)) for one in due(20))


@pytest.mark.parametrize("status", ["gone", "failed", "incomplete"])
def test_an_unproven_conversation_is_due_at_once(status: ConversationStatus) -> None:
    assert POLICY.is_due(replace(ENTRY, status=status), "c", EXPORTED)


def test_an_unknown_conversation_and_one_without_a_full_walk_are_due_at_once() -> None:
    assert POLICY.is_due(None, "c", EXPORTED)
    assert POLICY.is_due(replace(ENTRY, full_walk_at=None), "c", EXPORTED)


def test_with_an_age_of_zero_every_walk_is_due_in_every_run() -> None:
    policy = ReadPolicy(rewalk_after=timedelta(0))

    assert all(policy.is_due(ENTRY, one, EXPORTED) for one in IDS[:100])


def test_a_window_without_bounds_is_open() -> None:
    assert Window().is_open
    assert not Window(since=EXPORTED).is_open
    assert not Window(until=EXPORTED).is_open
    assert str(Window()) == ""


@pytest.mark.parametrize(
    ("window", "span"),
    [
        (Window(since=EXPORTED), "from 2026-01-01 00:00 UTC on"),
        (Window(until=EXPORTED), "until 2026-01-01 00:00 UTC"),
        (Window(until=EXPORTED + timedelta(days=9)), "until now"),
        (Window(EXPORTED, EXPORTED + timedelta(days=9)), "from 2026-01-01 00:00 UTC on"),
        (
            Window(EXPORTED, EXPORTED + timedelta(seconds=9)),
            "from 2026-01-01 00:00 UTC until 2026-01-01 00:00:09 UTC",
        ),
    ],
)
def test_a_window_states_only_what_a_run_can_have_read(window: Window, span: str) -> None:
    now = EXPORTED + timedelta(days=1)

    assert window.sentence(now) == f"every message {span} was read; nothing is proven about others"
