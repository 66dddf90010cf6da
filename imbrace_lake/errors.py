"""Every error of this project; each says in one sentence what is wrong, where, and what to do.

::

    ImbraceLakeError
    ├── UsageError                the user's input, settings or files: nothing was started
    │   ├── InvalidPhoneNumber
    │   └── SettingsError
    ├── GatewayError              the gateway's answer to one request
    │   ├── TokenRejected         401, believed after a few tries           fatal
    │   ├── OrganizationMismatch  403                                       fatal
    │   ├── BadRequest            400 and any other 4xx
    │   ├── ConversationNotFound  404 on messages
    │   ├── RateLimited           429                                       transient
    │   ├── GatewayUnavailable    5xx, refused, cut or timed out            transient
    │   └── MalformedAnswer       an answer that cannot be what it claims   transient
    ├── WalkIncomplete            a conversation that could not be proven whole
    └── StoreError                the lake's storage
        ├── StoreUnavailable      not reachable, or failing for now         transient
        ├── ObjectExists          somebody else wrote this object first
        └── ObjectChanged         the object is no longer the one that was read

`is_transient` says whether trying again can help, `is_fatal` whether every other request of the run
would end the same way. Nothing else decides about retries.
"""

from __future__ import annotations


class ImbraceLakeError(Exception):
    """Root of the tree."""

    is_transient = False
    is_fatal = False


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
        return f"{self.reason} (GET {self.path}, request id {self.request_id})"


class TokenRejected(GatewayError):
    """401, repeated: the gateway does not accept the token."""

    is_fatal = True


class OrganizationMismatch(GatewayError):
    """403: the token belongs to another organization."""

    is_fatal = True


class BadRequest(GatewayError):
    """400 or another 4xx: the gateway will not answer this request."""


class ConversationNotFound(GatewayError):
    """404 on messages: the gateway does not have this conversation (any more)."""


class RateLimited(GatewayError):
    """429 for longer than the run is willing to wait."""

    is_transient = True


class GatewayUnavailable(GatewayError):
    """The gateway or the way to it failed: 5xx, connection refused or cut, time-out."""

    is_transient = True


class MalformedAnswer(GatewayError):
    """An answer that is not JSON, not of the documented form, or not as long as it says."""

    is_transient = True


class WalkIncomplete(ImbraceLakeError):
    """A conversation was read, but not every message of it can be proven to have been seen."""

    is_transient = True


class StoreError(ImbraceLakeError):
    """The lake's storage refused; the message names the address and never a credential."""


class StoreUnavailable(StoreError):
    """The storage cannot be reached or fails for now."""

    is_transient = True


class ObjectExists(StoreError):
    """A conditional write found an object of that name: another writer was first."""


class ObjectChanged(StoreError):
    """A conditional replacement found another version than the one it had read."""
