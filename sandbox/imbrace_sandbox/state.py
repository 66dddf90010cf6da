"""The state of the fake gateway: conversations, phones, options, counts; owned by the server's thread."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

from imbrace_sandbox.budget import Budget
from imbrace_sandbox.faults import LINKS, FaultInjector
from imbrace_sandbox.generated import iter_generated
from imbrace_sandbox.lists import Conversation, Source
from imbrace_sandbox.options import SandboxOptions
from imbrace_sandbox.phones import link_phones
from imbrace_sandbox.senders import Item, Senders, conv_spelling, digest_of, uuid_text
from imbrace_sandbox.stats import Stats
from imbrace_sandbox.stored import FileSource, GivenSource, iter_file

BeforePage = Callable[[str, int], object]


class SandboxState:
    """The state behind the server.

    Attributes:
        conversations: By id, in the order in which they were made.
        links: Conversation ids by phone, in E.164 with `+`.
        before_page: Called with the conversation id and the number of the page (from 1) before it is made.
    """

    def __init__(self, options: SandboxOptions) -> None:
        self.options = options
        self.stats = Stats()
        self.fault_injector = FaultInjector(options.seed)
        self.budget = Budget(options)
        self.before_page: BeforePage | None = None
        self.conversations: dict[str, Conversation] = {}
        named: dict[str, str | None] = {}
        for source in _iter_sources(options):
            conversation_id = source.senders.conversation_id
            conversation = self.conversations[conversation_id] = Conversation(source, options.seed)
            if options.prerender:
                conversation.prerender()
            named[conversation_id] = source.phone if isinstance(source, FileSource) else None
        self.links = link_phones(options.seed, named)
        self.asked: dict[str, int] = dict.fromkeys(self.conversations, 0)

    def known_spelling(self, conversation_id: str) -> str:
        """Return the key of a conversation for any of the three spellings of its id."""
        return conversation_id if conversation_id in self.conversations else conv_spelling(conversation_id)

    def find(self, conversation_id: str) -> Conversation:
        """Find a conversation, vanished or not.

        Raises:
            ValueError: It does not exist.
        """
        found = self.conversations.get(self.known_spelling(conversation_id))
        if found is None:
            raise ValueError(f"there is no conversation {conversation_id}")
        return found

    def look_up(self, digits: str) -> list[Conversation]:
        """Return the conversations of a phone, which is without `+` as in requests; none if it is unknown."""
        return [self.conversations[each] for each in self.links.get(f"+{digits}", ())]

    def change(self, changes: Mapping[str, Any]) -> SandboxOptions:
        """Change options.

        Raises:
            ValueError: An option is wrong; then none is changed.
        """
        self.options = self.options.changed(changes)
        if any(name.startswith("budget_") for name in changes):
            self.budget = Budget(self.options)
        return self.options

    def adjust(
        self,
        changes: Mapping[str, Any],
        pins: Mapping[str, str],
        unpinned: Sequence[str] | Literal[True] = (),
        queued: Sequence[str] = (),
    ) -> None:
        """Change options, and unpin, pin and queue faults; all of it or nothing.

        Args:
            changes: Options by name.
            pins: The faults of all requests, by conversation id (or `links`).
            unpinned: Conversation ids (or `links`) to unpin; true for all.
            queued: Faults for the next requests.

        Raises:
            ValueError: An option, conversation or fault does not exist.
        """
        for conversation_id in pins:
            if conversation_id != LINKS:
                self.find(conversation_id)
        before = changes.get("broken", self.options.broken)
        kept = {} if unpinned is True else {each: before[each] for each in before if each not in unpinned}
        self.fault_injector.check(queued)
        self.change({**changes, "broken": {**kept, **pins}})
        self.fault_injector.queue(queued)

    def put(self, items: Sequence[Item | bytes], phone: str | None, conversation_id: str | None) -> str:
        """Serve messages exactly as they are given; return the conversation's id.

        Raises:
            ValueError: A message has no `_id`, or the conversation exists.
        """
        digest = digest_of(self.options.seed, "given", len(self.conversations))
        chosen = conversation_id or f"conv_{uuid_text(digest)}"
        if chosen in self.conversations:
            raise ValueError(f"conversation {chosen} exists")
        senders = Senders(
            chosen,
            self.options.organization_id,
            self.options.business_unit_id,
            f"con_{uuid_text(digest[16:])}",
            (f"u_{uuid_text(digest[20:])}",),
        )
        self.conversations[chosen] = Conversation(GivenSource(senders, items), self.options.seed)
        self.asked[chosen] = 0
        if phone is not None:
            self.links.setdefault(phone, []).append(chosen)
        return chosen


def _iter_sources(options: SandboxOptions) -> Iterator[Source]:
    if options.file is not None:
        yield from iter_file(options, options.file)
        return
    yield from iter_generated(options)
