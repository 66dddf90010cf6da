"""Reads as a naive client does: page by page, without checks."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx

from imbrace_sandbox import Sandbox


def first_of(box: Sandbox) -> str:
    """Return the id of the first conversation."""
    return next(iter(box.conversations))


def get_page(client: httpx.Client, conversation_id: str, **params: int) -> httpx.Response:
    """Request one page."""
    return client.get(f"/conversations/{conversation_id}/messages", params=params)


def walk(client: httpx.Client, conversation_id: str, limit: int = 10) -> list[dict[str, Any]]:
    """Read a conversation with a plain offset walk; newest first."""
    items: list[dict[str, Any]] = []
    while True:
        page = get_page(client, conversation_id, limit=limit, skip=len(items)).raise_for_status().json()
        items += page["items"]
        if not page["has_more"] or not page["items"]:
            return items


def ids_of(items: list[dict[str, Any]]) -> list[str]:
    """Return the ids of the messages, in their order."""
    return [item["_id"] for item in items]


def get_links(client: httpx.Client, box: Sandbox, *phones: str) -> httpx.Response:
    """Request the conversations of phones, given with `+`."""
    numbers = [phone.removeprefix("+") for phone in phones]
    params: dict[str, str | list[str]] = {
        "phone_numbers": numbers,
        "organization_id": box.options.organization_id,
    }
    return client.get("/conversations/links", params=params)


def conversation_of(link: str) -> str:
    """Return the conversation id of a link."""
    (value,) = parse_qs(urlsplit(link).query)["conv_id"]
    return value
