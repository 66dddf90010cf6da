"""What S3 and the way to it can answer, put into one sentence without a credential."""

from __future__ import annotations

import aiohttp
from botocore import exceptions as boto

from imbrace_lake.aws_login import expired_session
from imbrace_lake.errors import StoreError, StoreUnavailable

FAILURES = (boto.BotoCoreError, boto.ClientError, aiohttp.ClientError)
"""Everything one call through aiobotocore raises; none of it is an OSError."""

BROKEN_WAY = (boto.ConnectionError, boto.HTTPClientError, boto.IncompleteReadError, aiohttp.ClientError)
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
BUSY = frozenset({"SlowDown", "RequestTimeout", "Throttling", "ThrottlingException", "RequestLimitExceeded"})


class Missing(StoreError):
    """There is no object of that name."""


class Refused(StoreUnavailable):
    """The condition of a write did not hold, or the server cannot say yet whether it does."""


def is_transient(exc: Exception) -> bool:
    """Say whether the same request may succeed in a moment."""
    if isinstance(exc, boto.ClientError):
        code, status = _code(exc)
        # 409 is a conflict with a request that is under way; the next answer will be clear.
        return code in BUSY or status in (408, 409, 429) or (status >= 500 and status != 501)
    # TLS that fails is misconfigured; a handshake that is merely cut is no SSLError.
    return isinstance(exc, BROKEN_WAY) and not isinstance(exc, boto.SSLError)


def explain(exc: Exception, bucket: str, endpoint: str) -> StoreError:
    """Turn what a call raised into our error.

    Args:
        exc: One of FAILURES, or a TimeoutError.
        bucket: Bucket and endpoint, for people.
        endpoint: The endpoint alone.
    """
    if session := expired_session(exc):
        return StoreError(f"{bucket} cannot be reached: {session}")
    match exc:
        case boto.ClientError():
            return _explain_answer(exc, bucket)
        case boto.SSLError():
            return StoreError(
                f"no TLS with {bucket}: write http:// if it speaks plain HTTP,"
                " or set AWS_CA_BUNDLE if its certificate is your own"
            )
        case boto.ReadTimeoutError() | boto.ConnectTimeoutError():
            return StoreUnavailable(f"{bucket} did not answer in time: check that the server is well")
        case boto.EndpointConnectionError() | boto.ProxyConnectionError():
            return StoreUnavailable(f"{bucket} cannot be reached: check the address and that the server runs")
        case boto.ParamValidationError():
            return StoreError(f"no bucket or object can have that name ({bucket}): check the lake's URL")
    if isinstance(exc, NO_CREDENTIALS):
        return StoreError(
            f"no credentials for {bucket}:"
            " set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE to a profile that has them"
        )
    if isinstance(exc, TimeoutError):
        return StoreUnavailable(f"{bucket} did not answer in time: check that the server is well")
    if isinstance(exc, BROKEN_WAY):
        return StoreUnavailable(f"the connection to {bucket} broke ({type(exc).__name__}): try again")
    return StoreError(f"{bucket} cannot be used ({type(exc).__name__}): check the settings for {endpoint}")


def _code(exc: boto.ClientError) -> tuple[str, int]:
    status = exc.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    return str(exc.response.get("Error", {}).get("Code", status)), int(status)


def _explain_answer(exc: boto.ClientError, bucket: str) -> StoreError:
    code, status = _code(exc)
    # Codes first: a HEAD has no body, so all it can tell is its status. Not every server names
    # the condition in the body of a 412 (SeaweedFS does not), so the status has to do.
    if code == "NoSuchBucket":
        return StoreError(f"there is no {bucket}: create it, or check the lake's URL")
    if code == "NoSuchUpload" or status in (409, 412):
        return Refused(f"another writer was busy with the same object in {bucket} ({code}): try again")
    if status == 404:
        return Missing(f"no such object in {bucket}")
    return _explain_refusal(code, status, bucket)


def _explain_refusal(code: str, status: int, bucket: str) -> StoreError:
    if code in WRONG_CREDENTIALS:
        return StoreError(f"{bucket} rejected the credentials ({code}): check access key and secret key")
    if code in ("ExpiredToken", "ExpiredTokenException", "RequestExpired"):
        return StoreError(f"the credentials for {bucket} have expired ({code}): get new ones")
    if code == "RequestTimeTooSkewed":
        return StoreError(f"{bucket} says that this machine's clock is wrong: set it")
    if code in WRONG_REGION:
        return StoreError(f"{bucket} is in another region ({code}): set AWS_REGION to the bucket's")
    if status in (401, 403):
        return StoreError(
            f"the credentials may not do this in {bucket} ({code}): allow list, get, put and delete"
        )
    if code in BUSY or status in (408, 429) or (status >= 500 and status != 501):
        return StoreUnavailable(f"{bucket} fails for now ({code}): look at the server, then try again")
    return StoreError(f"{bucket} refused the request ({code}): check the lake's URL and settings")
