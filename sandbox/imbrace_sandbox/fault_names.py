"""The faults by name, with what a client sees, and which of them pass by themselves."""

from __future__ import annotations

from types import MappingProxyType

# The forms of a 5xx, as in "502:html".
FORMS = ("json", "text", "html")

# Forms of 401 and 403 that a client must distinguish; the default is the vendor's most common body.
OWN_FORMS = MappingProxyType({"401": ("plain", "missing"), "403": ("plain", "html", "other")})

FAULTS = MappingProxyType(
    {
        "301": "301 to a sign-in page, with the complete requested address in the query",
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
        "short": "items or links are missing from a body that is valid and claims to be complete",
        "lossy": "as short, but `total` leaves out the lost items: only `count` shows the loss",
        "html": "an HTML page under status 200",
        "not_json": "the first half of the correct body, as if it were complete",
        "stall": "no answer at all, for `stall_seconds`",
        "stall_body": "half of a body and then nothing, for `stall_seconds`",
        "drip": "the body byte by byte; only a time limit for the whole request ends it",
    }
)

WITH_FORMS = frozenset({"500", "502", "503"})

# Without final answers (redirects, 400, 403, 404), and the drip, which never ends.
REDIRECTS = ("301", "302", "307", "308")
PASSING = tuple(name for name in FAULTS if name not in {*REDIRECTS, "400", "403", "404", "drip"})


def fault_complaint(name: object) -> str | None:
    """Return a sentence about a wrong name of a fault, or None."""
    if not isinstance(name, str):
        return "a fault's name must be a string"
    kind, _, form = name.partition(":")
    if kind not in FAULTS:
        return f"there is no fault {name!r}; there are {', '.join(FAULTS)}"
    if form and form not in (FORMS if kind in WITH_FORMS else OWN_FORMS.get(kind, ())):
        return f"fault {kind} does not have the form {form!r}"
    return None
