"""What the AWS libraries log, and failed logins in sentences, for lists and lakes."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_LIBRARIES = ("botocore", "aiobotocore", "s3fs", "fsspec")
_LOGINS = ("botocore.credentials", "botocore.tokens", "aiobotocore.credentials", "aiobotocore.tokens")
# Per context and not per process: code outside of the block may log its own logins.
_is_quiet: ContextVar[bool] = ContextVar("_is_quiet", default=False)

# The number of loggers that there were when those of the libraries got their filter.
_watched = -1

_EXPIRED_SESSIONS = frozenset(
    {
        "SSOTokenLoadError",
        "UnauthorizedSSOTokenError",
        "TokenRetrievalError",
        "SSOError",
        "LoginRefreshRequired",
    }
)


def _is_shown(record: logging.LogRecord) -> bool:
    return not _is_quiet.get() or (record.levelno >= logging.INFO and record.name not in _LOGINS)


def watch_aws() -> None:
    """Let :func:`quiet_aws` apply to the loggers that the libraries have made since the last call."""
    global _watched
    # A filter of a logger does not apply to the loggers below it. Modules make theirs when they are loaded.
    if len(logging.root.manager.loggerDict) == _watched:
        return
    for name in [*_LOGINS, *logging.root.manager.loggerDict.copy()]:
        if name.partition(".")[0] in _LIBRARIES:
            # Added once and never removed: another thread may be in such a block.
            logging.getLogger(name).addFilter(_is_shown)
    _watched = len(logging.root.manager.loggerDict)


@contextmanager
def quiet_aws() -> Iterator[None]:
    """Keep failed logins, and every line of level DEBUG, of the block's calls out of the log.

    With DEBUG, botocore logs tokens, signatures, headers and bodies of requests. Of each failed login it logs
    a traceback although it also raises the error; without a log handler, it goes to standard error. In a
    block that loads the libraries, call :func:`watch_aws` after that.
    """
    watch_aws()
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
