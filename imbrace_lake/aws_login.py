"""Explain failed AWS logins, for lists and lakes."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_LOGGERS = ("botocore.credentials", "botocore.tokens", "aiobotocore.credentials", "aiobotocore.tokens")
# Per context and not per process: code outside of the block may log its own logins.
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

    botocore logs a traceback of each failure that it also raises. Without a log handler the traceback goes
    to standard error.
    """
    for name in _LOGGERS:
        # Added once and never removed: another thread may be in such a block.
        logging.getLogger(name).addFilter(_is_of_others)
    before = _is_quiet.get()
    _is_quiet.set(True)
    try:
        yield
    finally:
        # Without a token: an iterator that is not read to its end is closed in another context.
        _is_quiet.set(before)


def expired_session(exc: BaseException | None) -> str | None:
    """Return what to do about an expired AWS session; None if neither the error nor a cause is one.

    The class is recognised by name, so that a list on the local disk needs no S3 library.
    """
    while exc is not None:
        if any(kind.__name__ in _EXPIRED_SESSIONS for kind in type(exc).__mro__):
            profile = os.environ.get("AWS_PROFILE") or os.environ.get("AWS_DEFAULT_PROFILE") or "default"
            return f"the AWS SSO session has expired: run `aws sso login --profile {profile}`"
        exc = exc.__cause__ or exc.__context__
    return None
