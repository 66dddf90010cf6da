"""How much of the acceptance runs is done: all of it takes an hour, so by default a part is."""

from __future__ import annotations

import os

# IMBRACE_ACCEPTANCE=full: the numbers that the promises are made for.
IS_FULL = os.environ.get("IMBRACE_ACCEPTANCE") == "full"
