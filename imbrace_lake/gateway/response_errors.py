"""Turn a response with a status other than 200 into one of our errors."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

from imbrace_lake.errors import (
    BadRequest,
    ConversationNotFound,
    GatewayError,
    GatewayTimeout,
    GatewayUnavailable,
    TokenRejected,
    WrongAddress,
)
from imbrace_lake.gateway.models import Malformed, decode_json
from imbrace_lake.printable import printable, printable_address

if TYPE_CHECKING:
    from imbrace_lake.gateway.http_client import Answer

# The others of 3xx do not name another address (RFC 9110, 15.4).
REDIRECTS = frozenset({301, 302, 303, 307, 308})


class Forbidden(GatewayError):
    """403; the client finds out whether it concerns every request.

    Args:
        expected: The organization of the token, if the answer names one.
        shown: The same, printable.
        is_page: Whether the answer is a page of HTML, which the gateway itself does not send.
    """

    def __init__(
        self,
        path: str,
        reason: str,
        request_id: str,
        expected: str | None = None,
        shown: str = "",
        is_page: bool = False,
    ) -> None:
        super().__init__(path, reason, request_id)
        self.args = (path, reason, request_id, expected, shown, is_page)
        self.expected = expected
        self.shown = shown
        self.is_page = is_page

    def mismatch(self, ours: str) -> str:
        """Return the reason for an organization that is not the token's."""
        if self.expected is None or self.expected == ours:
            return f"the token does not belong to organization {ours}"
        theirs = f"organization {self.shown}" if self.shown else "another organization"
        return f"the token belongs to {theirs}, not to {ours}"


def error_from_response(
    answer: Answer, path: str, request_id: str, *, base: str, secrets: tuple[str, ...]
) -> GatewayError:
    """Return the error for a response.

    Args:
        answer: A response whose status is neither 200 nor 429.
        path: The path of the request.
        request_id: The printable request id.
        base: The gateway's address.
        secrets: Texts that the error must not contain.
    """
    status = answer.status
    if status >= 500 or status == 408:
        kind = GatewayTimeout if status == 504 else GatewayUnavailable
        return kind(path, f"the gateway failed with status {status}", request_id)
    if status in REDIRECTS:
        location = answer.headers.get("location")
        # `printable_address` omits the query, which can repeat phone numbers from ours.
        target = "" if location is None else f" to {printable_address(location, secrets)}"
        reason = f"the gateway redirects with status {status}{target}"
        return WrongAddress(path, f"{reason}: is {printable_address(base)} the right address?", request_id)
    if status == 401:
        reason = "the gateway does not accept the token, which may have expired"
        if "missing x-access-token" in _message_of(answer.body):
            reason = "the token did not reach the gateway: perhaps a proxy removes the header x-access-token"
        return TokenRejected(path, reason, request_id)
    if status == 403:
        expected = _value_of(answer.body, "details", "expected")
        # Anything else than an id is not shown.
        is_id = expected is not None and re.fullmatch(r"[A-Za-z0-9_-]{1,64}", expected)
        shown = printable(expected, secrets=secrets) if is_id else ""
        is_page = answer.body.lstrip().startswith(b"<")
        reason = "the gateway forbids this request (status 403)"
        return Forbidden(path, reason, request_id, expected, shown, is_page)
    # The path alone does not suffice, because web frameworks repeat it: "Cannot GET /conversations/links".
    if status == 404 and re.search(r"conversations? (not )?found", _message_of(answer.body)):
        return ConversationNotFound(path, "the gateway does not have this conversation", request_id)
    if status == 404:
        reason = f"status 404 without the gateway's message: is {printable_address(base)} the right address?"
        return WrongAddress(path, reason, request_id)
    if status < 400:
        return BadRequest(path, f"the gateway answers with status {status} instead of 200", request_id)
    return BadRequest(path, f"the gateway rejects this request with status {status}", request_id)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds to wait from `Retry-After`, which is a number or a date (RFC 9110, 10.2.3)."""
    text = headers.get("retry-after", "").strip()
    if text.isascii() and text.isdecimal():
        return float(text)
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError, IndexError):
        return None


def _message_of(body: bytes) -> str:
    return (_value_of(body, "message") or "").lower()


def _value_of(body: bytes, *names: str) -> str | None:
    """Return a text inside a JSON object; None if the body has none."""
    try:
        value: Any = decode_json(body)
        for name in names:
            value = value[name]
    except (Malformed, LookupError, TypeError):
        return None
    return value if isinstance(value, str) else None
