"""Every error of this project; its message is one sentence: what is wrong, where, and what to do.

::

    ImbraceLakeError
    ├── UsageError                an argument, an option or a setting is missing or invalid
    │   ├── InvalidPhoneNumber
    │   └── SettingsError
    ├── InputError                a list, a lake or a run that the user named cannot be used
    ├── GatewayError              the gateway's answer to one request
    │   ├── TokenRejected         401, believed after a few tries           fatal
    │   ├── OrganizationMismatch  403 that concerns every request           fatal
    │   ├── AccessBlocked         403 of a firewall in front of the gateway fatal
    │   ├── CertificateRejected   TLS: the certificate is not trusted       fatal
    │   ├── GatewayDown           no request has succeeded for too long     fatal
    │   ├── BadRequest            400 and any other status without its own class
    │   │   └── WrongAddress      a redirect, or a 404 of another server
    │   ├── ConversationForbidden 403 that concerns one conversation
    │   ├── ConversationNotFound  404 on messages
    │   │   └── NeverFound        of an id that only the input of the run names
    │   ├── UnusableId            an id that cannot be part of a URL
    │   ├── AnswerTooLarge        more bytes or values than the settings allow
    │   ├── RateLimited           429                                       transient
    │   ├── GatewayUnavailable    5xx, connection failed or timed out       transient
    │   │   └── GatewayTimeout    504, or no complete answer in time
    │   └── MalformedAnswer       an answer that is invalid or incomplete   transient
    ├── WalkIncomplete            a conversation not proven complete          transient
    │   └── RepeatedMessages      its list contains messages more than once
    ├── NotReached                a conversation that a run found and did not export before it ended
    ├── TimeOver                  the time of the run was over before numbers were looked up
    ├── UnexpectedError           any other exception, without its text
    └── StoreError                the lake's storage
        ├── DamagedObject         an object is missing or damaged
        ├── StoreUnavailable      not reachable, or failing for now         transient
        ├── ObjectExists          another writer created this object first
        └── ObjectChanged         another writer changed the object since it was read

Two attributes decide about retries, and nothing else does: `is_transient` (another try can help) and
`is_fatal` (every other request of the run would end the same way). `advice` is for a person whose
conversation failed with the error.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from traceback import walk_tb
from typing import ClassVar

from imbrace_lake.printable import printable

logger = logging.getLogger(__name__)

# The description of an unexpected exception names the innermost line of these packages.
OWN_PACKAGES = frozenset({"imbrace_lake", "imbrace_tasks", "imbrace_flows", "imbrace_cli"})

MAX_PATH_CHARACTERS = 200


class ImbraceLakeError(Exception):
    """Root of the tree."""

    is_transient = False
    is_fatal = False
    advice: ClassVar[str] = "Fix the cause that the reason states, then rerun."


class UsageError(ImbraceLakeError):
    """An argument, an option or a setting is missing or invalid, whatever exists; nothing was read."""


class InvalidPhoneNumber(UsageError):
    """Text that is not a phone number; the message shows it masked."""


class SettingsError(UsageError):
    """Settings are missing or their values invalid.

    Args:
        problems: A sentence for each.
    """

    def __init__(self, *problems: str) -> None:
        super().__init__(*problems)
        self.problems = problems

    def __str__(self) -> str:
        return "; ".join(self.problems)


class InputError(ImbraceLakeError):
    """A list, a lake or a run does not exist or cannot be used; the message states what to change."""


class GatewayError(ImbraceLakeError):
    """A request to the gateway failed.

    Args:
        path: The request's path without its query, because a query can contain phone numbers.
        reason: What happened, free of personal data.
        request_id: The ``x-request-id`` of the last attempt, which the vendor's support asks for.
    """

    def __init__(self, path: str, reason: str, request_id: str = "-") -> None:
        # `args` must mirror the signature, or another process could not unpickle the error.
        super().__init__(path, reason, request_id)
        self.path = path
        self.reason = reason
        self.request_id = request_id

    def __str__(self) -> str:
        # The id of a conversation can have any length.
        path = printable(self.path, most=MAX_PATH_CHARACTERS)
        # An error without an answer has no id.
        request = "" if self.request_id == "-" else f", request id {self.request_id}"
        return f"{self.reason} (GET {path}{request})"


class TokenRejected(GatewayError):
    """401, repeated: the token is wrong or has expired; the gateway does not distinguish the two."""

    is_fatal = True
    advice = (
        "Save a valid token in the block iMBrace Credentials on Prefect's page Blocks, or, for commands, in"
        " IMBRACE_TOKEN. `imbrace-lake setup` saves IMBRACE_TOKEN in the block. Create a token that lasts:"
        " those of the SDK's third-party call expire after 10 days unless `expired_at` is later, API keys"
        " after 365."
    )


class OrganizationMismatch(GatewayError):
    """403 on every request: the token belongs to another organization."""

    is_fatal = True
    advice = "Use a token of this organization, then rerun."


class AccessBlocked(GatewayError):
    """403 with a page on every request: something in front of the gateway answers."""

    is_fatal = True
    advice = "Ask who runs the network, or the vendor, why a firewall blocks these requests, then rerun."


class CertificateRejected(GatewayError):
    """The certificate of the gateway, or of a proxy on the way, is not trusted."""

    is_fatal = True
    advice = (
        "Set SSL_CERT_FILE to a file with the certificate authorities that your network uses, then rerun;"
        " if the certificate has expired, its owner must renew it."
    )


class GatewayDown(GatewayError):
    """No request has succeeded for so long that waiting for every other conversation would take days."""

    is_fatal = True
    advice = "Wait until the gateway works again, then rerun."


FATAL = (TokenRejected, OrganizationMismatch, AccessBlocked, CertificateRejected, GatewayDown)


def recorded_fatal(error: ImbraceLakeError | None) -> dict[str, list[str]]:
    """Return an error of `FATAL` as a parameter of a run, which `fatal_of` takes; nothing for any other."""
    return {"fatal": [type(error).__name__, *error.args]} if isinstance(error, FATAL) else {}


def fatal_of(parameters: Mapping[str, object]) -> GatewayError | None:
    """Return the error that `recorded_fatal` has recorded in the parameters of a run, if there is one."""
    match parameters.get("fatal"):
        case [str() as name, str() as path, str() as reason, str() as request_id]:
            kinds = {kind.__name__: kind for kind in FATAL}
            return kinds[name](path, reason, request_id) if name in kinds else None
    return None


class BadRequest(GatewayError):
    """400 or an unexpected status: the gateway rejects this request."""

    advice = "The gateway would reject it again: send the request id to the vendor."


class WrongAddress(BadRequest):
    """A redirect, or a 404 without the gateway's message: another server answers."""

    advice = "Check the gateway's address in the settings, then rerun."


class ConversationForbidden(GatewayError):
    """403 on one conversation, although the token and the organization are accepted."""

    advice = "Ask the vendor why the token may not read this conversation: send the request id."


class UnusableId(GatewayError):
    """An id that cannot be part of a URL; no request was sent."""

    advice = "Ask the vendor for the conversation's real id: no request can contain this one."


class AnswerTooLarge(GatewayError):
    """An answer with more bytes or values than allowed, even for the smallest page."""

    advice = "If the data are plausible, raise IMBRACE_ANSWER_MEGABYTES, then rerun."


class ConversationNotFound(GatewayError):
    """404 on messages: the gateway does not have this conversation (any more)."""

    advice = "Nothing: the gateway does not have it. Later runs do not count it as a failure."


class NeverFound(ConversationNotFound):
    """The same for an id that neither a phone number nor an earlier run has named."""

    advice = "Check the id: the gateway does not have it, and the lake has never had it."


class RateLimited(GatewayError):
    """429 for longer than the run waits."""

    is_transient = True
    advice = "Rerun later, with fewer requests per second."


class GatewayUnavailable(GatewayError):
    """The gateway or the connection failed: 5xx, connection not accepted or broken, time-out."""

    is_transient = True
    advice = "Rerun later; if it fails again, send the request id to the vendor."


class GatewayTimeout(GatewayUnavailable):
    """504, or no complete answer in time; a smaller page may arrive in time."""


class MalformedAnswer(GatewayError):
    """An answer that is not JSON, has an undocumented form, or is shorter than it states."""

    is_transient = True
    advice = "Rerun once; if it fails again, send the request id to the vendor."


class WalkIncomplete(ImbraceLakeError):
    """The walk of a conversation did not prove that it saw every message."""

    is_transient = True
    advice = "Rerun at a quieter time; if that never helps, send its id to the vendor."


class RepeatedMessages(WalkIncomplete):
    """The gateway lists some messages of a conversation more than once, in every reading."""

    is_transient = False
    advice = (
        "Export it again with --accept-repeats (in the form of export: *Accept repeated messages*) to take"
        " the list as it is."
    )


class NotReached(ImbraceLakeError):
    """A conversation that the run found and did not export before it ended."""

    is_transient = True
    advice = "Fix the cause of the run's end, then rerun."
    advice_if_cancelled = (
        "Retry the run by its id to export the rest; an export can be started again instead."
    )


class TimeOver(ImbraceLakeError):
    """The time that an operator gave the run was over."""

    def __init__(self, reason: str = "the time of the run was over") -> None:
        super().__init__(reason)


class UnexpectedError(ImbraceLakeError):
    """An exception that is not one of ours: its class and where it was raised.

    It omits text and cause, because they can contain a URL, a header or part of a message.
    """

    advice = "Rerun once; if it fails again, report the class and the line that the reason names."


def as_own_error(exc: Exception, about: str = "") -> ImbraceLakeError:
    """Return an error of ours without its context, and any other by its class and innermost own line.

    The context would be printed and stored by an orchestrator. The frames of an unexpected exception, without
    any text, go to the debug log.

    Args:
        exc: Any exception.
        about: Follows the frames in the log.
    """
    if isinstance(exc, ImbraceLakeError):
        exc.__cause__ = exc.__context__ = exc.__traceback__ = None
        return exc
    frames = _frames(exc)
    logger.debug("unexpected %s by %s %s", type(exc).__name__, " < ".join(reversed(frames)), about)
    if isinstance(exc, RuntimeError) and isinstance(exc.__cause__, StopIteration | StopAsyncIteration):
        # In a generator, Python turns these into a RuntimeError.
        exc = exc.__cause__
        frames = _frames(exc)
    own = [frame for frame in frames if frame.partition(".")[0] in OWN_PACKAGES]
    where = f" in {own[-1]}" if own else ""
    return UnexpectedError(f"unexpected {type(exc).__name__}{where}")


def _frames(exc: BaseException) -> list[str]:
    return [f"{frame.f_globals.get('__name__', '?')}:{line}" for frame, line in walk_tb(exc.__traceback__)]


class StoreError(ImbraceLakeError):
    """The lake's storage failed; the message names the address and never a credential."""

    advice = "Check the lake's address, permissions and free space, then rerun."


class DamagedObject(StoreError):
    """An object of the lake is missing or damaged; the message names it."""

    advice = "Run `imbrace-lake verify`, which lists damaged objects and what to do about them."


class StoreUnavailable(StoreError):
    """The storage cannot be reached or fails for now."""

    is_transient = True
    advice = "Rerun when the lake's storage answers again."


class ObjectExists(StoreError):
    """A conditional create found an object with this key: another writer was first."""

    advice = "Rerun when no other run writes to this lake."


class ObjectChanged(StoreError):
    """A conditional update found a newer version than the one that was read."""

    advice = ObjectExists.advice
