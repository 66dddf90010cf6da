"""What failed logins at AWS mean, in words; for lists and lakes alike."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_LOGGERS = ("botocore.credentials", "botocore.tokens", "aiobotocore.credentials", "aiobotocore.tokens")
# Of the calls of a block, not of the process: others may want to see what their logins log.
_is_quiet: ContextVar[bool] = ContextVar("_is_quiet", default=False)

_EXPIRED_SESSIONS = frozenset(
    {
        "SSOTokenLoadError",
        "UnauthorizedSSOTokenError",
        "TokenRetrievalError",
        "SSOError",
        "LoginRefreshRequired",
    }
)


def _is_of_others(record: logging.LogRecord) -> bool:
    return not _is_quiet.get()


@contextmanager
def quiet_logins() -> Iterator[None]:
    """Keep failed logins of the block out of the log.

    botocore logs a traceback of every failure that it also raises, which without a handler reaches standard
    error.
    """
    for name in _LOGGERS:
        # Adds it once, and never removes it: another thread may be in such a block.
        logging.getLogger(name).addFilter(_is_of_others)
    before = _is_quiet.get()
    _is_quiet.set(True)
    try:
        yield
    finally:
        # Not by a token: a reader that is left half-way is closed in another context.
        _is_quiet.set(before)


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
