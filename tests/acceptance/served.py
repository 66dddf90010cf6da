"""A process that serves the backfill as a deployment, as on an operator's machine."""

from __future__ import annotations

import sys
from pathlib import Path

from imbrace_cli.prefect_environment import prepare_client

DEPLOYMENT = "acceptance"


def main() -> None:
    """Serve until the process is killed; `argv` has Prefect's API and folder."""
    prepare_client(sys.argv[1], Path(sys.argv[2]))
    # Imported here, because Prefect's settings are in the environment only now.
    from prefect.types.entrypoint import EntrypointType

    from imbrace_flows.backfill import backfill_conversations

    backfill_conversations.serve(
        name=DEPLOYMENT, print_starting_message=False, entrypoint_type=EntrypointType.MODULE_PATH
    )


if __name__ == "__main__":
    main()
