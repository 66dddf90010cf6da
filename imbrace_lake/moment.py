"""Moments as people write them."""

from __future__ import annotations

from datetime import UTC, date, datetime, time

from imbrace_lake.errors import UsageError

HOW_TO_WRITE = "as in 2026-01-31T08:00+08:00; a plain date is its midnight in UTC"


def parse_moment(text: str) -> datetime:
    """Parse a time in ISO 8601 with its zone, or a plain date, which is its midnight in UTC.

    Raises:
        UsageError: The text is neither. The message continues a sentence, and does not repeat the text.
    """
    try:
        return datetime.combine(date.fromisoformat(text), time(), UTC)
    except ValueError:
        pass
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise UsageError(f"is not a time in ISO 8601: write it {HOW_TO_WRITE}") from None
    if moment.tzinfo is None:
        raise UsageError(f"has no time zone: add Z for UTC, or an offset, {HOW_TO_WRITE}")
    return moment
