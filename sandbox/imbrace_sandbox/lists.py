"""A conversation as the gateway lists it: newest first, and changing."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import suppress
from random import Random
from typing import Protocol

from imbrace_sandbox.content import phrase
from imbrace_sandbox.senders import Item, Senders, digest_of, from_iso, from_json, iso, to_json, uuid_text

# Messages of longer conversations are made again for each page, because a million would fill the memory.
_KEPT_MESSAGES = 5_000
_STEP_MS = 1_000
_LAST_MS = 253_370_764_800_000  # 9999-01-01

Which = int | Sequence[str]


class Source(Protocol):
    """The source of a conversation's messages; `ordinal` counts from the oldest."""

    senders: Senders
    size: int
    start_ms: int

    def message_id(self, ordinal: int) -> str:
        """Name a message without making it."""
        ...

    def created_ms(self, ordinal: int) -> int:
        """Return when a message was created: not before the previous one."""
        ...

    def render(self, ordinal: int) -> bytes:
        """Make the JSON of one message."""
        ...


class Conversation:
    """One conversation; equal changes in equal order give equal lists.

    Attributes:
        is_vanished: The gateway answers 404, though links still name the conversation.
        moves: The number of changes.
    """

    __slots__ = ("_added", "_kept", "_order", "_seed", "_source", "is_vanished", "moves")

    def __init__(self, source: Source, seed: int) -> None:
        self._source = source
        self._seed = seed
        # Ordinals, oldest first: eight bytes per message.
        self._order = array("q", range(source.size))
        self._added: dict[int, tuple[str, int]] = {}
        # Rendered messages, and added or edited ones, which cannot be rendered again.
        self._kept: dict[int, bytes] = {}
        self.is_vanished = False
        self.moves = 0

    def __len__(self) -> int:
        return len(self._order)

    @property
    def senders(self) -> Senders:
        """Who speaks."""
        return self._source.senders

    @property
    def start_ms(self) -> int:
        """When the conversation began, also if it does not have messages."""
        return self._source.start_ms

    def page(self, skip: int, limit: int) -> list[bytes]:
        """Return the JSON of up to `limit` messages, newest first, leaving out the `skip` newest."""
        end = max(0, len(self._order) - skip)
        return [self._json(ordinal) for ordinal in reversed(self._order[max(0, end - limit) : end])]

    def oldest_first(self) -> Iterator[bytes]:
        """Yield the JSON of every current message, also if the list changes meanwhile."""
        return map(self._json, self._order[:])

    def prerender(self) -> None:
        """Make all messages, unless they are too many to store."""
        if self._source.size <= _KEPT_MESSAGES:
            for ordinal in self._order:
                self._json(ordinal)

    def hide(self, *, vanished: bool) -> None:
        """Let the conversation vanish, or be found again."""
        self.is_vanished = vanished

    def append(self, many: int, at_ms: int | None = None) -> list[str]:
        """Let messages arrive at the head, by default a second after the last one; return their ids.

        Raises:
            ValueError: A message is newer than `at_ms`.
        """
        if at_ms is not None and self._order and self._created_ms(self._order[-1]) > at_ms:
            raise ValueError("the conversation has a newer message")
        return [self._insert(len(self._order), at_ms) for _ in range(many)]

    def backdate(self, many: int) -> list[str]:
        """Let messages arrive among older ones; return their ids."""
        return [self._insert(self._rng().randint(0, len(self._order))) for _ in range(many)]

    def delete(self, which: Which) -> list[str]:
        """Delete messages by id, or a number of random ones; return their ids."""
        ids: list[str] = []
        for index in sorted(self._positions(which), reverse=True):
            ordinal = self._order.pop(index)
            self._kept.pop(ordinal, None)
            ids.append(self._id(ordinal))
            self.moves += 1
        return ids

    def edit(self, which: Which) -> list[str]:
        """Change content and time of messages by id, or of a number of random ones; return their ids."""
        ids: list[str] = []
        for index in self._positions(which):
            self.moves += 1
            ordinal = self._order[index]
            item = from_json(self._json(ordinal))
            _edit(item, self.moves, self._created_ms(ordinal))
            # Stored also for long conversations, because nothing else has the edit.
            self._kept[ordinal] = to_json(item)
            ids.append(self._id(ordinal))
        return ids

    def _json(self, ordinal: int) -> bytes:
        found = self._kept.get(ordinal)
        if found is None:
            found = self._source.render(ordinal)
            if self._source.size <= _KEPT_MESSAGES:
                self._kept[ordinal] = found
        return found

    def _id(self, ordinal: int) -> str:
        added = self._added.get(ordinal)
        return added[0] if added else self._source.message_id(ordinal)

    def _created_ms(self, ordinal: int) -> int:
        added = self._added.get(ordinal)
        return added[1] if added else self._source.created_ms(ordinal)

    def _rng(self) -> Random:
        return Random(f"{self._seed}/{self.senders.conversation_id}/{self.moves}")

    def _insert(self, index: int, created_ms: int | None = None) -> str:
        """Add a message that is newer than those before `index`, and not newer than those after it."""
        if created_ms is None:
            created_ms = self._created_ms(self._order[index - 1]) if index else self.start_ms - 2 * _STEP_MS
            created_ms += _STEP_MS
        if index < len(self._order):
            created_ms = min(created_ms, self._created_ms(self._order[index]))
            # The order must be that of the times, also among messages with the same time.
            index = bisect_right(self._order, created_ms, lo=index, key=self._created_ms)
        digest = digest_of(self._seed, self.senders.conversation_id, "added", self.moves)
        message_id = f"msg_{uuid_text(digest)}"
        speakers = (self.senders.contact, *self.senders.users)
        line = self.senders.render(
            message_id,
            speakers[digest[32] % len(speakers)],
            "text",
            {"text": f"{phrase(digest)} (arrival {self.moves})", "is_mail": False},
            created_ms,
        )
        ordinal = self._source.size + len(self._added)
        self._added[ordinal] = (message_id, created_ms)
        self._kept[ordinal] = line
        self._order.insert(index, ordinal)
        self.moves += 1
        return message_id

    def _positions(self, which: Which) -> list[int]:
        """Find positions in the order.

        Raises:
            ValueError: A message does not exist, or the number is too large.
        """
        if isinstance(which, int):
            if not 0 <= which <= len(self._order):
                raise ValueError(f"there are {len(self._order)} messages, not {which}")
            return self._rng().sample(range(len(self._order)), which)
        wanted = set(which)
        indexes = [index for index, ordinal in enumerate(self._order) if self._id(ordinal) in wanted]
        if len(indexes) < len(wanted):
            raise ValueError("there is no message with one of these ids")
        return indexes


def _edit(item: Item, number: int, created_ms: int) -> None:
    content = item["content"]
    if isinstance(content, dict):
        before = content.get("text")
        item["content"] = content | {"text": f"{before or ''} (edit {number})"}
    else:
        item["content"] = {"text": f"(edit {number})", "is_mail": False}
    item["updated_at"] = iso(max([created_ms, *_times_of(item)]) + 60_000 * number)


def _times_of(item: Item) -> Iterator[int]:
    """Yield the times that a message states, because a given one has its own; any of them can be invalid."""
    for name in ("created_at", "updated_at"):
        if isinstance(text := item.get(name), str):
            with suppress(ValueError):
                at_ms = from_iso(text)
                # A time of the last days of 9999 leaves no room for an edit.
                if at_ms < _LAST_MS:
                    yield at_ms
