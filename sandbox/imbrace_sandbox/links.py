"""The two forms of the links endpoint, and links in the forms of many hosts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

import orjson

from imbrace_sandbox.answers import Answer, Loss
from imbrace_sandbox.lists import Conversation
from imbrace_sandbox.options import SandboxOptions
from imbrace_sandbox.senders import digest_of, iso

_HOSTS = (
    "webapp.imbrace.co",
    "webapp.demo.imbrace.co",
    "webapp.dev.imbrace.co",
    "chat.customer.example:8443",
)


def links_array(
    phones: Sequence[tuple[str, Sequence[Conversation]]], options: SandboxOptions, loss: Loss | None
) -> Answer:
    """Answer in the form of the vendor's example; a loss removes an entry."""
    entries = [
        {
            "phone_number": digits,
            "conversation_links": [
                {
                    "link": _link(options, digits, _spelled(options, digits, conversation)),
                    "created_at": iso(conversation.start_ms),
                }
                for conversation in conversations
            ],
        }
        for digits, conversations in phones
    ]
    return Answer(200, orjson.dumps(_lose(entries, loss)))


def links_envelope(
    phones: Sequence[tuple[str, Sequence[Conversation]]], options: SandboxOptions, loss: Loss | None
) -> Answer:
    """Answer in the form of the vendor's field table; `count` and `found` include lost entries."""
    data = [
        {
            "phone_number": digits,
            "conversation_id": _spelled(options, digits, conversation),
            "contact_id": conversation.senders.contact,
            "organization_id": options.organization_id,
            "created_at": iso(conversation.start_ms),
            "updated_at": iso(conversation.start_ms),
        }
        for digits, conversations in phones
        for conversation in conversations
    ]
    not_found = [digits for digits, conversations in phones if not conversations]
    body = {
        "data": _lose(data, loss),
        "count": len(data),
        "found": len(phones) - len(not_found),
        "not_found": not_found,
    }
    return Answer(200, orjson.dumps(body))


def _spelled(options: SandboxOptions, digits: str, conversation: Conversation) -> str:
    """Spell an id; with `mixed` the spelling depends on the phone, so that one conversation has several."""
    conversation_id = conversation.senders.conversation_id
    spelling = options.id_spelling
    if spelling == "mixed":
        spelling = ("conv", "tcu", "bare")[digest_of(options.seed, digits, conversation_id, "id")[0] % 3]
    stem = conversation_id.removeprefix("conv_")
    return {"tcu": f"tcu_{stem}", "bare": stem}.get(spelling, conversation_id)


def _lose(entries: list[dict[str, Any]], loss: Loss | None) -> list[dict[str, Any]]:
    if loss is None or not entries:
        return entries
    # The counts still include the lost entry, so that a client can detect the loss.
    index = int(loss.roll * len(entries))
    return entries[:index] + entries[index + 1 :]


def _link(options: SandboxOptions, digits: str, conversation_id: str) -> str:
    """Write a link: conv_id among other parameters, in any order, encoded or not."""
    if options.plain_links:
        return f"https://webapp.dev.imbrace.co/chatroom-routing?conv_id={conversation_id}"
    digest = digest_of(options.seed, digits, conversation_id)
    value = conversation_id
    if digest[0] % 3 == 1:
        value = value.replace("_", "%5F").replace("-", "%2D")
    elif digest[0] % 3 == 2:
        value = "".join(f"%{byte:02x}" for byte in value.encode())
    host = _HOSTS[digest[1] % len(_HOSTS)]
    # A decoy: an address in a parameter, with the conv_id of another conversation.
    back = quote(f"https://{host}/inbox?conv_id=conv_00000000&tab=1", safe="")
    extras = (
        "lang=zh-TW",
        f"back={back}",
        "prev_conv_id=conv_11111111",
        "utm_source=sms%26mail",
        "conv_id_hint=",
    )
    chosen = [extra for at, extra in enumerate(extras) if digest[2] >> at & 1]
    chosen.insert(digest[3] % (len(chosen) + 1), f"conv_id={value}")
    fragment = "#conv_id=conv_22222222" if digest[4] < 64 else ""
    return f"https://{host}/chatroom-routing{'/' if digest[5] & 1 else ''}?{'&'.join(chosen)}{fragment}"
