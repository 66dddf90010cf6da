"""Warns before a token expires."""

from __future__ import annotations

import logging

from imbrace_flows.best_effort import best_effort
from imbrace_flows.events import emit_token_expiring
from imbrace_lake.export.run import utc_now
from imbrace_lake.settings import Settings, expiry_warning

logger = logging.getLogger("imbrace_lake.expiry")


def warn_of_expiry(settings: Settings) -> str | None:
    """Log a warning and emit an event if the token has expired or soon will; return the warning."""
    warning = expiry_warning(settings.token_expires, utc_now().date())
    if warning is not None and settings.token_expires is not None:
        logger.warning("%s", warning)
        with best_effort("the event about the token"):
            emit_token_expiring(settings.require("organization"), settings.token_expires, warning)
    return warning
