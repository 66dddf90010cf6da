"""The control endpoints under /_sandbox, for people and for tests that run elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import orjson
from aiohttp import web

from imbrace_sandbox.lists import Conversation
from imbrace_sandbox.phones import messy
from imbrace_sandbox.state import SandboxState

# A million messages would not fit into one body.
_LINES_AT_ONCE = 1_000


class Control:
    """Shows and changes the state of a running server."""

    def __init__(self, state: SandboxState) -> None:
        self._state = state

    def add_routes(self, router: web.UrlDispatcher) -> None:
        """Register every control endpoint."""
        router.add_get("/_sandbox/stats", self.get_stats)
        router.add_post("/_sandbox/reset-stats", self.reset_stats)
        router.add_get("/_sandbox/phones", self.get_phones)
        router.add_get("/_sandbox/links", self.get_links)
        router.add_get("/_sandbox/faults", self.get_faults)
        router.add_post("/_sandbox/faults", self.change_faults)
        router.add_get("/_sandbox/conversations", self.get_conversations)
        router.add_post("/_sandbox/conversations/{conversation_id}", self.change_conversation)
        router.add_get("/_sandbox/conversations/{conversation_id}/messages", self.get_truth)

    async def get_stats(self, request: web.Request) -> web.Response:
        """Show the counts."""
        return _json(self._state.stats.as_dict())

    async def reset_stats(self, request: web.Request) -> web.Response:
        """Reset the counts; requests that are being answered stay in flight."""
        self._state.stats.reset()
        return _json({})

    async def get_phones(self, request: web.Request) -> web.Response:
        """List the phones, one per line; with `shape=messy`, as people write them."""
        phones = list(self._state.links)
        if request.query.get("shape") == "messy":
            phones = messy(self._state.options.seed, phones, request.query.get("region"))
        return web.Response(text="".join(f"{phone}\n" for phone in phones))

    async def get_links(self, request: web.Request) -> web.Response:
        """Show the conversation ids of every phone."""
        return _json(self._state.links)

    async def get_faults(self, request: web.Request) -> web.Response:
        """Show the current options."""
        return self._options()

    async def change_faults(self, request: web.Request) -> web.Response:
        """Change options, pin or unpin faults, or queue faults for the next requests."""
        try:
            changes = await _body(request)
            pins, unpinned, queued = (changes.pop(name, None) for name in ("break", "repair", "next"))
            self._state.adjust(changes, pins or {}, unpinned or (), queued or ())
        except (ValueError, TypeError, AttributeError) as exc:
            return _complaint(exc)
        return self._options()

    async def get_conversations(self, request: web.Request) -> web.Response:
        """Show the number of messages of each conversation by id."""
        return _json({each: len(found) for each, found in self._state.conversations.items()})

    async def change_conversation(self, request: web.Request) -> web.Response:
        """Append, backdate, delete, edit, vanish or restore, in the order of the body.

        Actions before a wrong one are done.
        """
        try:
            conversation = self._state.find(request.match_info["conversation_id"])
            actions = await _body(request)
            done = {name: change(conversation, name, value) for name, value in actions.items()}
        except (ValueError, TypeError) as exc:
            return _complaint(exc)
        return _json({"count": len(conversation), "is_vanished": conversation.is_vanished, "ids": done})

    async def get_truth(self, request: web.Request) -> web.StreamResponse:
        """Show every message of a conversation, oldest first, one per line."""
        try:
            conversation = self._state.find(request.match_info["conversation_id"])
        except ValueError as exc:
            return _complaint(exc, 404)
        response = web.StreamResponse()
        response.content_type = "application/x-ndjson"
        await response.prepare(request)
        for lines in _iter_chunks(conversation):
            await response.write(lines)
        return response

    def _options(self) -> web.Response:
        options = asdict(self._state.options)
        # The control endpoints are open to everyone who reaches the port; the gateway needs the token.
        del options["token"]
        return _json(options)


def change(conversation: Conversation, action: str, value: Any) -> list[str]:
    """Change a conversation; return the ids of the affected messages.

    Raises:
        TypeError: The value is neither a number nor a list.
        ValueError: The action is unknown or impossible.
    """
    if action in ("vanish", "restore"):
        conversation.hide(vanished=action == "vanish")
        return []
    if isinstance(value, bool) or not isinstance(value, int | list):
        raise TypeError(f"{action} takes a number or a list of ids")
    if action in ("append", "backdate"):
        if not isinstance(value, int) or value < 0:
            raise ValueError(f"{action} takes an integer from 0")
        return conversation.append(value) if action == "append" else conversation.backdate(value)
    if action in ("delete", "edit"):
        return conversation.delete(value) if action == "delete" else conversation.edit(value)
    raise ValueError(f"there is no action {action}")


def _iter_chunks(conversation: Conversation) -> Iterator[bytes]:
    lines: list[bytes] = []
    for line in conversation.oldest_first():
        lines.append(line + b"\n")
        if len(lines) == _LINES_AT_ONCE:
            yield b"".join(lines)
            lines.clear()
    yield b"".join(lines)


async def _body(request: web.Request) -> dict[str, Any]:
    body = orjson.loads(await request.read())
    if not isinstance(body, dict):
        raise TypeError("the body must be a JSON object")
    return body


def _json(body: Any, status: int = 200) -> web.Response:
    return web.Response(body=orjson.dumps(body, default=str), status=status, content_type="application/json")


def _complaint(exc: Exception, status: int = 400) -> web.Response:
    return _json({"message": str(exc)}, status)
