"""The partitions that earlier releases made for other spellings of a conversation's id."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from urllib.parse import unquote

from imbrace_lake.gateway.ids import canonical_conversation_id


def superseded(missing: Iterable[str], there: Iterable[str]) -> set[str]:
    """Return the folders that could be deleted, because another one continues their conversation.

    Args:
        missing: Folders of parts, `messages/org=…/conv=…`, that have none any more.
        there: The folders that have parts.
    """
    ranks = {folder: _rank(folder) for folder in missing}
    first: dict[tuple[str, str], tuple[bool, str]] = defaultdict(lambda: (True, "\U0010ffff"))
    for folder in there if ranks else ():
        conversation, rank = _rank(folder)
        first[conversation] = min(first[conversation], rank)
    return {
        folder
        for folder, (conversation, rank) in ranks.items()
        if conversation in first and first[conversation] < rank
    }


def _rank(folder: str) -> tuple[tuple[str, str], tuple[bool, str]]:
    """Return the conversation of a folder, and a key that is smallest for the spelling that is continued."""
    organization, _, encoded = folder.rpartition("/conv=")
    name = unquote(encoded)
    canonical = canonical_conversation_id(name)
    return (organization, canonical), (name != canonical, name)
