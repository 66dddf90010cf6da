"""Errors of S3 and of the network, each as one sentence without a credential."""

from __future__ import annotations

import re

import aiohttp
from botocore import exceptions as boto

from imbrace_lake.aws_login import expired_session
from imbrace_lake.errors import StoreError, StoreUnavailable

FAILURES = (boto.BotoCoreError, boto.ClientError, aiohttp.ClientError)
"""Everything that a call through aiobotocore raises; none of these is an OSError."""

NETWORK_ERRORS = (boto.ConnectionError, boto.HTTPClientError, boto.IncompleteReadError, aiohttp.ClientError)
NO_CREDENTIALS = (
    boto.NoCredentialsError,
    boto.PartialCredentialsError,
    boto.CredentialRetrievalError,
    boto.ProfileNotFound,
    boto.SSOError,
    boto.NoAuthTokenError,
)
WRONG_CREDENTIALS = frozenset({"InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "AuthFailure"})
WRONG_REGION = frozenset(
    {"PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException", "301"}
)
# Words such as XAmzContentSHA256Mismatch, or the status of an answer without a body. A server can send
# anything in its place, such as our request: an access key has capitals only, and a signature many digits.
_CODE = re.compile(r"\d{3}|(?!(?:\D*\d){5})(?=[^a-z]*[a-z])[A-Za-z][A-Za-z0-9.]{0,63}", re.ASCII)
BUSY = frozenset({"SlowDown", "RequestTimeout", "Throttling", "ThrottlingException", "RequestLimitExceeded"})


class ObjectMissing(StoreError):
    """There is no object with this key."""


class ConditionFailed(StoreUnavailable):
    """The condition of a write was not met, or the server cannot decide yet whether it is met."""


def is_transient(exc: Exception) -> bool:
    """Return whether the same request may succeed in a moment."""
    if isinstance(exc, boto.ClientError):
        code, status = _code(exc)
        # 409 is a conflict with a request that is under way; the next answer decides.
        return code in BUSY or status in (408, 409, 429) or (status >= 500 and status != 501)
    # A TLS error is a wrong setting; a handshake that is cut off is not an SSLError.
    return isinstance(exc, NETWORK_ERRORS) and not isinstance(exc, boto.SSLError)


def explain(exc: Exception, bucket: str, endpoint: str) -> StoreError:
    """Return the error of ours for an error of a call, to be raised without the cause.

    The text of the cause can contain what the server sent, and so what a request had.

    Args:
        exc: One of FAILURES, or a TimeoutError.
        bucket: Bucket and endpoint, as messages show them.
        endpoint: The endpoint alone.
    """
    if session := expired_session(exc):
        return StoreError(f"{bucket} cannot be reached: {session}")
    match exc:
        case boto.ClientError():
            return _explain_answer(exc, bucket)
        case boto.SSLError():
            return StoreError(
                f"no TLS with {bucket}: write http:// if it uses plain HTTP,"
                " or set AWS_CA_BUNDLE if its certificate is your own"
            )
        case boto.ReadTimeoutError() | boto.ConnectTimeoutError():
            return StoreUnavailable(f"{bucket} did not answer in time: check the server")
        case boto.EndpointConnectionError() | boto.ProxyConnectionError():
            return StoreUnavailable(f"{bucket} cannot be reached: check the address and that the server runs")
        case boto.ParamValidationError():
            return StoreError(f"no bucket or object can have that name ({bucket}): check the lake's URL")
    if isinstance(exc, NO_CREDENTIALS):
        return StoreError(f"no credentials for {bucket}: {_source_of_credentials(exc)}")
    if isinstance(exc, TimeoutError):
        return StoreUnavailable(f"{bucket} did not answer in time: check the server")
    if isinstance(exc, NETWORK_ERRORS):
        return StoreUnavailable(f"the connection to {bucket} broke ({type(exc).__name__}): try again")
    return StoreError(f"{bucket} cannot be used ({type(exc).__name__}): check the settings for {endpoint}")


def _source_of_credentials(exc: Exception) -> str:
    if isinstance(exc, boto.ProfileNotFound):
        return "AWS_PROFILE names a profile that does not exist: correct it, or unset it"
    return "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE to a profile that has them"


def _code(exc: boto.ClientError) -> tuple[str, int]:
    status = exc.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    code = str(exc.response.get("Error", {}).get("Code", status))
    return code if _CODE.fullmatch(code) else f"status {status}", int(status)


def _explain_answer(exc: boto.ClientError, bucket: str) -> StoreError:
    code, status = _code(exc)
    # Codes first. The answer to a HEAD has no body and so only a status, and some servers (SeaweedFS) do not
    # name the condition in the body of a 412, so the status decides too.
    if code == "NoSuchBucket":
        return StoreError(f"there is no {bucket}: create it, or check the lake's URL")
    if code == "NoSuchUpload" or status in (409, 412):
        return ConditionFailed(f"another writer writes the same object in {bucket} ({code}): try again")
    if status == 404:
        return ObjectMissing(f"no such object in {bucket}")
    return _explain_denial(code, status, bucket)


def _explain_denial(code: str, status: int, bucket: str) -> StoreError:
    if code in WRONG_CREDENTIALS:
        return StoreError(f"{bucket} rejected the credentials ({code}): check access key and secret key")
    if code in ("ExpiredToken", "ExpiredTokenException", "RequestExpired"):
        return StoreError(f"the credentials for {bucket} have expired ({code}): get new ones")
    if code == "RequestTimeTooSkewed":
        return StoreError(f"{bucket} rejects requests because this machine's clock is wrong: set it")
    if code in WRONG_REGION:
        return StoreError(f"{bucket} is in another region ({code}): set AWS_REGION to the bucket's")
    if status in (401, 403):
        return StoreError(
            f"the credentials may not do this in {bucket} ({code}): allow list, get, put and delete"
        )
    if code in BUSY or status in (408, 429) or (status >= 500 and status != 501):
        return StoreUnavailable(f"{bucket} fails for now ({code}): look at the server, then try again")
    return StoreError(f"{bucket} rejected the request ({code}): check the lake's URL and settings")
