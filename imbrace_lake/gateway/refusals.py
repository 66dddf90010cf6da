"""What an answer means whose status is not 200."""

from __future__ import annotations

import re
import time
from email.utils import parsedate_to_datetime

import httpx

from imbrace_lake.errors import (
    BadRequest,
    ConversationNotFound,
    GatewayError,
    GatewayUnavailable,
    OrganizationMismatch,
    TokenRejected,
)
from imbrace_lake.gateway.models import Malformed, decode_json


class Overdue(GatewayUnavailable):
    """504 or no whole answer in time: a smaller page may arrive where a large one does not."""


def refusal(
    status: int, body: bytes, path: str, request_id: str, organization: str, base: str
) -> GatewayError:
    """The error that a status means.

    Args:
        status: Neither 200 nor 429.
        body: Of the answer.
        path: What was asked for.
        request_id: As it is told to people.
        organization: Whose data were asked for.
        base: The gateway's address.
    """
    if status >= 500 or status == 408:
        kind = Overdue if status == 504 else GatewayUnavailable
        return kind(path, f"the gateway failed with status {status}", request_id)
    if status == 401:
        return TokenRejected(path, "the gateway does not accept the token", request_id)
    if status == 403:
        return OrganizationMismatch(path, _mismatch(body, organization), request_id)
    if status == 404 and _is_gateways_own(body):
        return ConversationNotFound(path, "the gateway does not have this conversation", request_id)
    if status == 404:
        reason = f"status 404, but not in the gateway's words: is {base} the right address?"
        return BadRequest(path, reason, request_id)
    return BadRequest(path, f"the gateway refuses this request with status {status}", request_id)


def retry_after(response: httpx.Response) -> float | None:
    """Seconds that the answer asks to wait: a number or a date (RFC 9110, 10.2.3)."""
    text = response.headers.get("retry-after", "").strip()
    if text.isascii() and text.isdecimal():
        return float(text)
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, TypeError):
        return None


def _mismatch(body: bytes, ours: str) -> str:
    try:
        theirs = decode_json(body)["details"]["expected"]
    except (Malformed, LookupError, TypeError):
        return f"the token does not belong to organization {ours}"
    return f"the token belongs to organization {theirs}, not to {ours}"


def _is_gateways_own(body: bytes) -> bool:
    """Whether a 404 is the gateway's answer, and not a proxy's that knows no such path."""
    try:
        message = str(decode_json(body)["message"]).lower()
    except (Malformed, LookupError, TypeError):
        return False
    # Not the path alone, which web frameworks repeat: "Cannot GET /conversations/links".
    return re.search(r"conversations? (not )?found", message) is not None
