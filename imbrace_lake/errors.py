"""Every error of this project; each says in one sentence what is wrong, where, and what to do.

::

    ImbraceLakeError
    ├── UsageError                the user's input, settings or files: nothing was started
    │   ├── InvalidPhoneNumber
    │   └── SettingsError
    ├── GatewayError              the gateway's answer to one request
    │   ├── TokenRejected         401, believed after a few tries           fatal
    │   ├── OrganizationMismatch  403 that concerns every request           fatal
    │   ├── CertificateRejected   TLS: the certificate is not trusted       fatal
    │   ├── BadRequest            400 and any other status without a class of its own
    │   │   └── WrongAddress      a redirect, or a 404 of another server
    │   ├── ConversationForbidden 403 that concerns one conversation
    │   ├── ConversationNotFound  404 on messages
    │   ├── UnusableId            an id that cannot be part of an address
    │   ├── AnswerTooLarge        more bytes or values than the settings allow
    │   ├── RateLimited           429                                       transient
    │   ├── GatewayUnavailable    5xx, refused, cut or timed out            transient
    │   │   └── GatewayTimeout    504, or no complete answer in time
    │   └── MalformedAnswer       an answer that cannot be what it claims   transient
    ├── WalkIncomplete            a conversation not proven complete          transient
    │   └── RepeatedMessages      its list contains messages more than once
    ├── NotReached                a conversation that a run found and did not come to
    ├── UnexpectedError           an exception of another kind, without its text
    └── StoreError                the lake's storage
        ├── DamagedObject         an object is not what was written
        ├── StoreUnavailable      not reachable, or failing for now         transient
        ├── ObjectExists          somebody else wrote this object first
        └── ObjectChanged         the object is no longer the one that was read

`is_transient` says whether trying again can help, `is_fatal` whether every other request of the run
would end the same way. Nothing else decides about retries. `advice` says what a person can do about a
conversation that was lost to it.
"""

from __future__ import annotations

from traceback import walk_tb
from typing import ClassVar, TypeVar

from imbrace_lake.printable import printable

E = TypeVar("E", bound=BaseException)

# Whose lines are named where an unexpected exception is described.
OWN_PACKAGES = frozenset({"imbrace_lake", "imbrace_tasks", "imbrace_flows", "imbrace_cli"})

MOST_PATH_CHARACTERS = 200


class ImbraceLakeError(Exception):
    """Root of the tree."""

    is_transient = False
    is_fatal = False
    advice: ClassVar[str] = "Mend what the reason says, then rerun."


class UsageError(ImbraceLakeError):
    """What the user gave cannot be used; the message says what to change."""


class InvalidPhoneNumber(UsageError):
    """Text that is no phone number; the message shows it masked."""


class SettingsError(UsageError):
    """A setting is missing or has a value it cannot have."""


class GatewayError(ImbraceLakeError):
    """One request to the gateway did not bring what it asked for.

    Args:
        path: The request's path without its query, because a query can hold phone numbers.
        reason: What happened, free of personal data.
        request_id: The ``x-request-id`` of the last attempt, which the vendor's support asks for.
    """

    def __init__(self, path: str, reason: str, request_id: str = "-") -> None:
        # args mirror the signature, or the error could not be unpickled in another process.
        super().__init__(path, reason, request_id)
        self.path = path
        self.reason = reason
        self.request_id = request_id

    def __str__(self) -> str:
        # The id of a conversation can have any length.
        path = printable(self.path, most=MOST_PATH_CHARACTERS)
        return f"{self.reason} (GET {path}, request id {self.request_id})"


class TokenRejected(GatewayError):
    """401, repeated: the token is wrong or has expired, which the gateway does not distinguish."""

    is_fatal = True
    advice = (
        "Create a token that lasts and put it into the credentials, then rerun. Tokens of the SDK's"
        " third-party call expire after 10 days unless `expired_at` says otherwise, API keys after 365."
    )


class OrganizationMismatch(GatewayError):
    """403 on every request: the token belongs to another organization."""

    is_fatal = True
    advice = "Use a token of this organization, then rerun."


class CertificateRejected(GatewayError):
    """The certificate of the gateway, or of a proxy on the way, is not trusted."""

    is_fatal = True
    advice = (
        "Set SSL_CERT_FILE to a file with the certificate authorities that your network uses, then rerun;"
        " if the certificate has expired, its owner must renew it."
    )


class BadRequest(GatewayError):
    """400 or another status that is not an answer: the gateway rejects this request."""

    advice = "The gateway would reject it again: send the request id to the vendor."


class WrongAddress(BadRequest):
    """A redirect, or a 404 that is not in the gateway's words: another server answers."""

    advice = "Check the gateway's address in the settings, then rerun."


class ConversationForbidden(GatewayError):
    """403 on one conversation, with a token and an organization that are not at fault."""

    advice = "Ask the vendor why the token may not read this conversation: send the request id."


class UnusableId(GatewayError):
    """An id that cannot be sent as part of an address; no request was made."""

    advice = "Ask the vendor for the conversation's real id: no request can name this one."


class AnswerTooLarge(GatewayError):
    """An answer with more bytes or values than allowed, even where a smaller page was asked for."""

    advice = "If the data are plausible, raise IMBRACE_ANSWER_MEGABYTES, then rerun."


class ConversationNotFound(GatewayError):
    """404 on messages: the gateway does not have this conversation (any more)."""

    advice = "Nothing: the gateway does not have it. Later runs do not count it as a failure."


class RateLimited(GatewayError):
    """429 for longer than the run is willing to wait."""

    is_transient = True
    advice = "Rerun later, with fewer requests a second."


class GatewayUnavailable(GatewayError):
    """The gateway or the way to it failed: 5xx, connection refused or cut, time-out."""

    is_transient = True
    advice = "Rerun later; if it fails again, send the request id to the vendor."


class GatewayTimeout(GatewayUnavailable):
    """504, or no complete answer in time: a smaller page may arrive where a large one does not."""


class MalformedAnswer(GatewayError):
    """An answer that is not JSON, not of the documented form, or not as long as it says."""

    is_transient = True
    advice = "Rerun once; if it fails again, send the request id to the vendor."


class WalkIncomplete(ImbraceLakeError):
    """A conversation was read, but not every message of it can be proven to have been seen."""

    is_transient = True
    advice = "Rerun at a quieter time; if that never helps, send its id to the vendor."


class RepeatedMessages(WalkIncomplete):
    """The gateway lists some messages of a conversation more than once, each time it is read."""

    is_transient = False
    advice = (
        "Rerun with --accept-repeats (in the form: *Accept repeated messages*) to export the list as it is."
    )


class NotReached(ImbraceLakeError):
    """A conversation that the run found and that has no outcome, because the run ended before."""

    is_transient = True
    advice = "Rerun, once the cause of the run's end is fixed."


class UnexpectedError(ImbraceLakeError):
    """An exception that is not one of ours: its class and where it was raised.

    Its text and its cause are left out, because they can hold a URL, a header or part of a message.
    """

    advice = "Rerun once; if it fails again, report the class and the line that the reason names."


def unexpected(exc: BaseException) -> UnexpectedError:
    """Describe an exception of another kind by its class and by the innermost line of this project."""
    if isinstance(exc, RuntimeError) and isinstance(exc.__cause__, StopIteration | StopAsyncIteration):
        # What Python makes of these in a generator.
        exc = exc.__cause__
    own = [frame for frame in _frames(exc) if frame.partition(".")[0] in OWN_PACKAGES]
    where = f" in {own[-1]}" if own else ""
    return UnexpectedError(f"unexpected {type(exc).__name__}{where}")


def frames_of(exc: BaseException) -> str:
    """The class of an exception and the lines that it came through, without any text, for a debug log."""
    return f"{type(exc).__name__} by " + " < ".join(reversed(_frames(exc)))


def _frames(exc: BaseException) -> list[str]:
    return [f"{frame.f_globals.get('__name__', '?')}:{line}" for frame, line in walk_tb(exc.__traceback__)]


def without_context(exc: E) -> E:
    """Remove what an exception carries besides its arguments: cause, context and frames.

    An orchestrator prints and stores all of it.
    """
    exc.__cause__ = exc.__context__ = exc.__traceback__ = None
    return exc


class StoreError(ImbraceLakeError):
    """The lake's storage refused; the message names the address and never a credential."""

    advice = "Check the lake's address, rights and free space, then rerun."


class DamagedObject(StoreError):
    """An object of the lake is missing or not what was written; the message names it."""

    advice = "Run `imbrace-lake verify`, which names what is damaged and what to do about it."


class StoreUnavailable(StoreError):
    """The storage cannot be reached or fails for now."""

    is_transient = True
    advice = "Rerun when the lake's storage answers again."


class ObjectExists(StoreError):
    """A conditional write found an object of that name: another writer was first."""

    advice = "Rerun when no other run writes to this lake."


class ObjectChanged(StoreError):
    """A conditional replacement found another version than the one it had read."""

    advice = ObjectExists.advice
