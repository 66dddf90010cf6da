"""Canonical ids: one text per message, one spelling per conversation."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from typing import Any

from imbrace_lake.gateway.exact_json import encodable, write

# The first character of a message id that is written as JSON.
_AS_JSON = "$"
_CONVERSATION = re.compile(
    r"(?:conv_|tcu_)?([0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12})", re.IGNORECASE
)


def message_id(item: dict[str, Any]) -> str | None:
    """Return the id of a message as text that UTF-8 can encode, different for different ids.

    A text is returned unchanged. Anything else becomes `$` and its JSON: a number (`$0`), an object, an empty
    text, a text with a lone surrogate, and a text that begins with `$`.

    Args:
        item: The gateway's object. If `_id` is null, empty or absent, `public_id` is the id.

    Returns:
        The id; None if the item has neither.
    """
    value = item.get("_id")
    if value is None or value == "":
        other = item.get("public_id")
        value = value if other is None or other == "" else other
    if value is None:
        return None
    if isinstance(value, str) and are_plain([value]):
        return value
    return _AS_JSON + write(value, is_sorted=True)


def are_plain(ids: list[str]) -> bool:
    """Whether all of these texts can be message ids unchanged."""
    text = "\0".join(ids)
    if not all(ids) or text.startswith(_AS_JSON) or f"\0{_AS_JSON}" in text:
        return False
    return is_encodable(text)


def is_encodable(text: str) -> bool:
    """Whether UTF-8 can encode a text, which therefore has no lone surrogate."""
    return encodable(text) is text


def canonical_conversation_id(conversation_id: str) -> str:
    """Return the canonical spelling of a conversation id: `conv_` and the UUID in lower case.

    The gateway spells one conversation in three ways: the bare UUID, `conv_<UUID>` and `tcu_<UUID>`.
    An id of any other form is returned unchanged.
    """
    match = _CONVERSATION.fullmatch(conversation_id)
    return conversation_id if match is None else f"conv_{match[1].lower()}"


def canonical_conversation_ids(conversation_ids: Iterable[str]) -> list[str]:
    """Return the canonical spelling of each conversation once, in their order."""
    return [*dict.fromkeys(map(canonical_conversation_id, conversation_ids))]


def other_spellings(stored: Collection[str]) -> dict[str, str]:
    """Find the conversations that are stored under another spelling than the canonical one.

    Returns:
        The (first) stored spelling by the canonical id. A conversation that is also stored under its
        canonical id is left out.
    """
    found: dict[str, str] = {}
    for one in stored:
        canonical = canonical_conversation_id(one)
        if canonical != one:
            found.setdefault(canonical, one)
    for one in stored if found else ():
        found.pop(one, None)
    return found


def stored_ids(stored: Collection[str]) -> list[str]:
    """Return the id under which each stored conversation continues."""
    spellings = other_spellings(stored)
    return [spellings.get(one, one) for one in canonical_conversation_ids(stored)]
