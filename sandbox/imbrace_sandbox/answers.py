"""The answers of the gateway and of its proxy, correct and broken."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import Any
from urllib.parse import quote

import orjson

from imbrace_sandbox.lists import Conversation
from imbrace_sandbox.options import SandboxOptions

JSON = "application/json"
TEXT = "text/plain"
HTML = "text/html"

CONVERSATION_NOT_FOUND = "Conversation not found"
NO_CONVERSATIONS = "No conversations found for the provided phone numbers"
UNAUTHORIZED = "Unauthorized - Invalid third party token"
UNAUTHORIZED_PLAIN = "Unauthorized"
UNAUTHORIZED_MISSING = "Unauthorized - missing x-access-token"
SIGN_IN = "https://login.example.invalid/sso"

_REASONS = MappingProxyType(
    {
        "500": "Internal Server Error",
        "502": "Bad Gateway",
        "503": "Service Unavailable",
        "414": "Request-URI Too Large",
    }
)


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer, before any fault of the connection."""

    status: int
    body: bytes
    content_type: str = JSON
    location: str | None = None


@dataclass(frozen=True, slots=True)
class Loss:
    """Items that are missing from a valid body.

    Attributes:
        roll: A random number from 0 up to 1, which decides what is lost.
        is_counted: The page's own count leaves out the lost items, so that only the count of the
            whole conversation shows the loss.
    """

    roll: float
    is_counted: bool


def failure(status: int, message: str, details: dict[str, Any] | None = None) -> Answer:
    """Make an error of the gateway, with its JSON message."""
    body: dict[str, Any] = {"message": message}
    if details is not None:
        body["details"] = details
    return Answer(status, orjson.dumps(body))


def mismatch(expected: str, received: str) -> Answer:
    """Answer that the organization is not the token's."""
    return failure(403, "Forbidden - organization mismatch", {"expected": expected, "received": received})


def too_many_requests() -> Answer:
    """Answer as the rate limiter does, in plain text."""
    return Answer(429, b"Too many requests. Please try again later.", TEXT)


def proxy_timeout() -> Answer:
    """Answer as the proxy does when the gateway is too slow."""
    return Answer(504, b"upstream request timeout", TEXT)


def broken(status: str, form: str) -> Answer:
    """Answer as the gateway or a proxy does when something is down."""
    reason = _REASONS[status]
    if form == "json":
        return failure(int(status), reason)
    if form == "text":
        return Answer(int(status), reason.encode(), TEXT)
    title = f"{status} {reason}"
    page = f"<html>\r\n<head><title>{title}</title></head>\r\n<body>\r\n<center><h1>{title}</h1></center>"
    return Answer(
        int(status), f"{page}\r\n<hr><center>nginx</center>\r\n</body>\r\n</html>\r\n".encode(), HTML
    )


def unauthorized(form: str = "") -> Answer:
    """Answer that the token is wrong or expired, missing, or (`plain`) just not accepted."""
    plain = UNAUTHORIZED_PLAIN if form == "plain" else UNAUTHORIZED
    return failure(401, UNAUTHORIZED_MISSING if form == "missing" else plain)


def forbidden(form: str, expected: str, received: str) -> Answer:
    """Answer 403 for a wrong organization, or in a form without a reason."""
    if form == "plain":
        return failure(403, "Forbidden")
    if form == "html":
        return Answer(403, b"<html><body><h1>403 Forbidden</h1></body></html>", HTML)
    return mismatch("org_other" if form == "other" else expected, received)


def redirect(status: str, address: str) -> Answer:
    """Answer with a redirect to a sign-in page that has the address in its query, as company gateways do."""
    return Answer(int(status), b"", HTML, location=f"{SIGN_IN}?next={quote(address, safe='')}")


def sign_in_page() -> Answer:
    """Answer with an HTML page under status 200."""
    return Answer(200, b"<!DOCTYPE html><html><body><h1>We will be back soon</h1></body></html>", HTML)


def page(
    conversation: Conversation, options: SandboxOptions, skip: int, limit: int, loss: Loss | None
) -> Answer:
    """Answer with one page of messages, newest first.

    Args:
        conversation: As it is now.
        options: The page cap and the forms of the counts.
        skip: The number of newest messages to leave out.
        limit: The requested number of messages.
        loss: Items to lose, if any.
    """
    items = conversation.page(skip, min(limit, options.page_cap))
    whole, here = len(conversation), len(items)
    has_more = skip + here < whole
    if loss is not None:
        _lose_some(items, loss)
        here = len(items) if loss.is_counted else here
    count, total = (here, whole) if options.counts_swapped else (whole, here)
    flag = b"" if options.without_has_more else b',"has_more":' + (b"true" if has_more else b"false")
    return Answer(200, b'{"items":[%b],"count":%d,"total":%d%b}' % (b",".join(items), count, total, flag))


def _lose_some(items: list[bytes], loss: Loss) -> None:
    """Remove some adjacent items, at least one, from the head, the middle or the tail."""
    if items:
        many = 1 + int(loss.roll * len(items) / 2)
        first = int(loss.roll * 7_919) % (len(items) - many + 1)
        del items[first : first + many]
