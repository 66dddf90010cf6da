"""The length of the acceptance runs: by default they are short, because the full ones take two hours."""

from __future__ import annotations

import os

# IMBRACE_ACCEPTANCE=full: runs as long as the promises they test.
IS_FULL = os.environ.get("IMBRACE_ACCEPTANCE") == "full"
