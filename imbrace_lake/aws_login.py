"""What failed logins at AWS mean, in words; for lists and lakes alike."""

from __future__ import annotations

import logging
import os

# They log a traceback of every failure that they also raise, and without a handler it reaches standard error.
for _name in ("botocore.credentials", "botocore.tokens", "aiobotocore.credentials", "aiobotocore.tokens"):
    logging.getLogger(_name).setLevel(logging.CRITICAL)

_EXPIRED_SESSIONS = frozenset(
    {
        "SSOTokenLoadError",
        "UnauthorizedSSOTokenError",
        "TokenRetrievalError",
        "SSOError",
        "LoginRefreshRequired",
    }
)


def expired_session(exc: BaseException | None) -> str | None:
    """Return what to do about an AWS sign-in session that is over; None if the error is another one.

    The error may be a cause of the one that is given. Its class is recognised by name, so that a list on the
    local disk needs no S3 library.
    """
    while exc is not None:
        if any(kind.__name__ in _EXPIRED_SESSIONS for kind in type(exc).__mro__):
            profile = os.environ.get("AWS_PROFILE") or os.environ.get("AWS_DEFAULT_PROFILE") or "default"
            return f"the AWS SSO session has expired: run `aws sso login --profile {profile}`"
        exc = exc.__cause__ or exc.__context__
    return None
