"""The fake gateway for tests and demos: a running server with methods that read and change its state."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from datetime import datetime
from types import TracebackType
from typing import Any, Self, TypeVar

from imbrace_sandbox.app import BASE_PATH
from imbrace_sandbox.hosting import LOCALHOST, ServerThread
from imbrace_sandbox.lists import Which
from imbrace_sandbox.options import SandboxOptions
from imbrace_sandbox.phones import messy
from imbrace_sandbox.senders import Item, from_json
from imbrace_sandbox.state import BeforePage, SandboxState
from imbrace_sandbox.stats import Stats

T = TypeVar("T")


class Sandbox:
    """A fake gateway on a free port of this machine.

    ::

        with Sandbox(SandboxOptions(conversations=3)) as box:
            httpx.get(f"{box.url}/conversations/{conversation_id}/messages", headers=...)

    Methods may be called from any thread and from `before_page`, and also after the server stopped.

    Args:
        options: What to serve; the defaults if left out.
        port: 0 lets the kernel choose.
    """

    def __init__(self, options: SandboxOptions | None = None, port: int = 0) -> None:
        self._state = SandboxState(options or SandboxOptions())
        self._port = port
        self._server: ServerThread | None = None

    def __enter__(self) -> Self:
        """Listen; after a stop, on the same port again.

        Raises:
            OSError: The port is taken.
        """
        self._server = ServerThread(self._state, self._port)
        self._port = self._server.port
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop, and wait until every connection is closed."""
        assert self._server is not None  # noqa: S101 - set by __enter__
        self._server.stop()
        self._server = None

    @property
    def url(self) -> str:
        """The base URL of the gateway, `/3rd` included."""
        return f"{self.control_url}{BASE_PATH}"

    @property
    def control_url(self) -> str:
        """The address to which `/_sandbox/…` is added."""
        return f"http://{LOCALHOST}:{self._port}"

    @property
    def options(self) -> SandboxOptions:
        """The current options."""
        return self._state.options

    @property
    def links(self) -> dict[str, list[str]]:
        """Conversation ids by phone, in E.164 with `+`."""
        return self._call(lambda: deepcopy(self._state.links))

    @property
    def phones(self) -> list[str]:
        """All phones, including those without a conversation."""
        return list(self.links)

    @property
    def conversations(self) -> dict[str, int]:
        """The number of messages of each conversation; those of `sizes` come first."""
        return self._call(lambda: {each: len(found) for each, found in self._state.conversations.items()})

    def messy_phones(self, region: str | None = None) -> list[str]:
        """Write the phones as people do: many spellings, repeats, and a few invalid ones."""
        return messy(self.options.seed, self.phones, region)

    def truth(self, conversation_id: str) -> list[Item]:
        """Return every message of a conversation as the gateway sends it, oldest first."""
        lines = self._call(lambda: list(self._state.find(conversation_id).oldest_first()))
        return [from_json(line) for line in lines]

    def stats(self) -> Stats:
        """Return a copy of the counts."""
        return self._call(lambda: deepcopy(self._state.stats))

    def reset_stats(self) -> None:
        """Count again."""
        self._call(self._state.stats.reset)

    def append(self, conversation_id: str, many: int = 1, at: datetime | None = None) -> list[str]:
        """Let messages arrive at the head, by default a second after the last one; return their ids.

        Raises:
            ValueError: A message is newer than `at`.
        """
        at_ms = None if at is None else round(at.timestamp() * 1_000)
        return self._call(lambda: self._state.find(conversation_id).append(many, at_ms))

    def backdate(self, conversation_id: str, many: int = 1) -> list[str]:
        """Let messages arrive among older ones; return their ids."""
        return self._call(lambda: self._state.find(conversation_id).backdate(many))

    def delete(self, conversation_id: str, which: Which = 1) -> list[str]:
        """Delete messages by id, or a number of random ones; return their ids."""
        return self._call(lambda: self._state.find(conversation_id).delete(which))

    def edit(self, conversation_id: str, which: Which = 1) -> list[str]:
        """Edit messages by id, or a number of random ones; return their ids."""
        return self._call(lambda: self._state.find(conversation_id).edit(which))

    def vanish(self, conversation_id: str) -> None:
        """Answer 404 for a conversation that links still name."""
        self._call(lambda: self._state.find(conversation_id).hide(vanished=True))

    def restore(self, conversation_id: str) -> None:
        """Let a conversation be found again."""
        self._call(lambda: self._state.find(conversation_id).hide(vanished=False))

    def put(
        self,
        items: Sequence[Mapping[str, Any] | bytes],
        phone: str | None = None,
        conversation_id: str | None = None,
    ) -> str:
        """Serve messages exactly as they are given, oldest first; return the conversation's id.

        A message in bytes is JSON text, also such as no JSON library writes.
        """
        given = [item if isinstance(item, bytes) else dict(item) for item in items]
        return self._call(lambda: self._state.put(given, phone, conversation_id))

    def break_conversation(self, conversation_id: str, fault: str) -> None:
        """Answer every request for a conversation (or `links`) with a fault, until `repair`."""
        self._call(lambda: self._state.adjust({}, {conversation_id: fault}))

    def repair(self, conversation_id: str) -> None:
        """Remove the fault of a conversation (or `links`)."""
        self._call(lambda: self._state.adjust({}, {}, unpinned=[conversation_id]))

    def fail_next(self, *faults: str) -> None:
        """Give the next requests, in order of arrival, one fault each; `ok` for none."""
        self._call(lambda: self._state.fault_injector.queue(faults))

    def set_options(self, **changes: Any) -> None:
        """Change options.

        Raises:
            ValueError: An option is wrong; then none is changed.
        """
        self._call(lambda: self._state.change(changes))

    def before_page(self, callback: BeforePage | None) -> None:
        """Call back with conversation id and page number (from 1) just before each page is made.

        The callback runs in the server's thread and may use every method of this object, so a test
        can change a list between two given pages.
        """
        self._call(lambda: setattr(self._state, "before_page", callback))

    def _call(self, job: Callable[[], T]) -> T:
        return self._server.call(job) if self._server is not None else job()
