"""`imbrace-lake new-key`: a new `lake.json` for a lake that lost it."""

from __future__ import annotations

from datetime import UTC, datetime

from imbrace_cli import options
from imbrace_cli.interrupt import run_interruptibly
from imbrace_cli.options import lake_settings
from imbrace_cli.terminal import echo_status

EXAMPLES = """
\b
Examples:
  imbrace-lake new-key --lake ./lake
"""


def new_key(lake: options.Lake = None) -> None:
    """Create a new lake.json for a lake that lost it, with a new key for the hashes of phone numbers.

    Restore the file from a copy if there is one. With a new key, the hashes in the ledger `phones` differ
    from those of earlier runs; nothing else changes. A lake that has its lake.json stays unchanged.
    """
    from imbrace_lake.lake.lake import renew_marker

    address = lake_settings(lake=lake).require("lake")
    run_interruptibly(renew_marker(address, now=datetime.now(UTC)))
    echo_status(f"{address} has a new lake.json")
