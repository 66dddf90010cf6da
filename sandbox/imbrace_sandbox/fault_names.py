"""The faults by name: what a client sees of each, and which of them pass by themselves."""

from __future__ import annotations

from types import MappingProxyType

# Each of these can be asked for in a form of its own, such as "502:html".
FORMS = ("json", "text", "html")

# Forms of the answers that a client must tell apart; without one, the vendor's most common body.
OWN_FORMS = MappingProxyType({"401": ("plain", "missing"), "403": ("plain", "html", "other")})

FAULTS = MappingProxyType(
    {
        "301": "301 to a sign-in page, with the whole address that was asked for in the query",
        "302": "302, likewise",
        "307": "307, likewise",
        "308": "308, likewise",
        "400": "400 with a JSON message",
        "401": "401 `Unauthorized - Invalid third party token`, as when the gateway's token look-up fails",
        "403": "403 with the expected and the received organization",
        "404": "404 with the endpoint's own message",
        "429": "429 in plain text, without Retry-After",
        "500": "500 as JSON, text or HTML",
        "502": "502 as JSON, text or HTML",
        "503": "503 as JSON, text or HTML",
        "504": "504 in plain text, after `gateway_timeout_seconds`",
        "cut_before": "the connection ends before any byte of an answer",
        "cut_body": "the connection ends in the middle of the body",
        "short": "items or links are missing from a body that is valid and claims to be whole",
        "lossy": "as short, but `total` counts what came: only the whole conversation's `count` tells",
        "html": "an HTML page under status 200",
        "not_json": "the first half of the right body, as if it were the whole",
        "stall": "no answer at all, for `stall_seconds`",
        "stall_body": "half of a body and then nothing, for `stall_seconds`",
        "drip": "the body byte by byte, so slowly that only a limit on the whole request ends it",
    }
)

WITH_FORMS = frozenset({"500", "502", "503"})

# Left out: answers that a client must believe (redirects, 400, 403, 404), and the drip, which never ends.
REDIRECTS = ("301", "302", "307", "308")
PASSING = tuple(name for name in FAULTS if name not in {*REDIRECTS, "400", "403", "404", "drip"})


def fault_complaint(name: object) -> str | None:
    """Say in one sentence why this is no fault's name, or None."""
    if not isinstance(name, str):
        return "a fault's name must be a text"
    kind, _, form = name.partition(":")
    if kind not in FAULTS:
        return f"there is no fault {name!r}; there are {', '.join(FAULTS)}"
    if form and form not in (FORMS if kind in WITH_FORMS else OWN_FORMS.get(kind, ())):
        return f"fault {kind} has no form {form!r}"
    return None
