"""Conversations made from a seed; each message can be made separately, so none is stored."""

from __future__ import annotations

import math
from collections.abc import Iterator
from hashlib import blake2b
from random import Random

from imbrace_sandbox.content import CONTENTS, OF_BOT, OF_CONTACT, TYPE_OF_BYTE, TYPES, phrase, workflow_text
from imbrace_sandbox.edge_cases import EDGE_CASES, apply_edge_case
from imbrace_sandbox.options import SandboxOptions
from imbrace_sandbox.senders import Senders, digest_of, from_json, iso, to_json, uuid_text

_START_MS = 1_672_531_200_000  # 2023-01-01
_YEAR_MS = 365 * 86_400_000
_GAP_MS = 30_000
_MEDIAN_MESSAGES = 18


class GeneratedSource:
    """The messages of one conversation, oldest first, each a function of seed, conversation and ordinal.

    Args:
        senders: The senders of the messages.
        seed: Of the whole sandbox.
        size: The number of messages.
        edge_case_share: Share of messages with an edge case.
        is_parade: Show every type, and every edge case, in turn instead of by chance.
    """

    __slots__ = (
        "_comments",
        "_edge_case_share",
        "_is_parade",
        "_publisher",
        "_stem",
        "senders",
        "size",
        "start_ms",
    )

    def __init__(
        self,
        senders: Senders,
        seed: int,
        size: int,
        edge_case_share: float,
        *,
        is_parade: bool,
        has_publisher: bool = False,
        comments: float = 0.0,
    ) -> None:
        self.senders = senders
        self.size = size
        self._stem = f"{seed}/{senders.conversation_id}/".encode()
        self._edge_case_share = edge_case_share
        self._is_parade = is_parade
        self._comments = comments
        publisher = f"pub_{uuid_text(digest_of(seed, senders.conversation_id, 'publisher'))}"
        self._publisher = publisher if has_publisher else None
        offset = int.from_bytes(digest_of(seed, senders.conversation_id, "start")[:5], "big")
        self.start_ms = _START_MS + offset % _YEAR_MS

    def message_id(self, ordinal: int) -> str:
        """Name a message without making it."""
        return f"msg_{uuid_text(self._digest(ordinal))}"

    def created_ms(self, ordinal: int) -> int:
        """Return when a message was created: not before the previous one, sometimes at the same time."""
        return self._created_ms(ordinal, self._digest(ordinal))

    def render(self, ordinal: int) -> bytes:
        """Make the JSON of one message."""
        digest = self._digest(ordinal)
        kind = TYPES[ordinal % len(TYPES)] if self._is_parade else TYPE_OF_BYTE[digest[31]]
        is_for_workflow = self._publisher is not None and kind == "text" and digest[38] < 24
        line = self.senders.render(
            f"msg_{uuid_text(digest)}",
            self._publisher if is_for_workflow and self._publisher else self._sender(kind, digest),
            kind,
            workflow_text(digest) if is_for_workflow else CONTENTS[kind](digest),
            self._created_ms(ordinal, digest),
        )
        if digest[39] < self._comments * 256:
            line = self._commented(line, ordinal, digest)
        return self._apply_edge_case(line, ordinal, digest) if self._edge_case_share else line

    def _digest(self, ordinal: int) -> bytes:
        return blake2b(self._stem + b"%d" % ordinal, digest_size=40).digest()

    def _created_ms(self, ordinal: int, digest: bytes) -> int:
        # A tie takes the time slot of the previous message, which keeps the list in order.
        if ordinal and digest[19] < 12:
            ordinal -= 1
            digest = self._digest(ordinal)
        return self.start_ms + ordinal * _GAP_MS + (digest[16] << 8 | digest[17]) % _GAP_MS

    def _sender(self, kind: str, digest: bytes) -> str:
        if kind in OF_CONTACT:
            return self.senders.contact
        if kind in OF_BOT:
            return self._publisher or self.senders.users[0]
        speaker = digest[32]
        return self.senders.contact if speaker & 1 else self.senders.users[speaker % len(self.senders.users)]

    def _commented(self, line: bytes, ordinal: int, digest: bytes) -> bytes:
        """Add an internal note of the team, which the customer never sees."""
        item = from_json(line)
        at = iso(self._created_ms(ordinal, digest))
        author = {"_id": self.senders.users[0], "display_name": "Agent"}
        item["comments"] = [
            {
                "_id": f"cmt_{uuid_text(digest[8:])}", "content": phrase(digest), "channel_type": "internal",
                "labels": [], "from": author, "created_at": at, "updated_at": at,
            }
        ]  # fmt: skip
        return to_json(item)

    def _apply_edge_case(self, line: bytes, ordinal: int, digest: bytes) -> bytes:
        if self._is_parade and ordinal % 2 == 0:
            number = ordinal // 2
        elif int.from_bytes(digest[33:35], "big") < self._edge_case_share * 65_536:
            # The last edge case is a very long text, which would be most of the bytes if it were not rare.
            number = digest[37] % (len(EDGE_CASES) - (0 if digest[36] < 8 else 1))
        else:
            return line
        item = from_json(line)
        apply_edge_case(item, number, digest[35])
        return to_json(item)


def _sizes(options: SandboxOptions) -> Iterator[int]:
    yield from options.sizes
    rng = Random(f"{options.seed}/sizes")
    spread = options.messages_spread
    if options.messages_mean is None:
        mu = math.log(_MEDIAN_MESSAGES)
    else:
        mu = math.log(options.messages_mean) - spread * spread / 2
    for _ in range(options.conversations):
        yield max(1, min(options.messages_max, round(rng.lognormvariate(mu, spread))))


def iter_generated(options: SandboxOptions) -> Iterator[GeneratedSource]:
    """Make the conversations of `sizes`, then those of the distribution."""
    for number, size in enumerate(_sizes(options)):
        digest = digest_of(options.seed, "conversation", number)
        # A few people of the business answer many conversations, as in reality.
        users = tuple(
            f"u_{uuid_text(digest_of(options.seed, 'user', digest[at] % 12))}" for at in (16, 17, 18)
        )
        senders = Senders(
            conversation_id=f"conv_{uuid_text(digest)}",
            organization_id=options.organization_id,
            business_unit_id=options.business_unit_id,
            contact=f"con_{uuid_text(digest[16:])}",
            users=users,
        )
        yield GeneratedSource(
            senders,
            options.seed,
            size,
            options.surprises,
            is_parade=number == len(options.sizes),
            has_publisher=options.publishers,
            comments=options.comments,
        )
