"""The competitors that need nothing but this project's environment."""

from __future__ import annotations

import sys

from benchmarks.runner import Competitor
from imbrace_cli.local_server import LocalServer

_PYTHON = (sys.executable, "-m")


def flow(server: LocalServer) -> Competitor:
    """The export as it is run, on a Prefect server that is warm."""
    command = (*_PYTHON, "benchmarks.flow", "--server", server.api_url, str(server.directory))
    return Competitor("flow", command, "messages")


def core() -> Competitor:
    """The export without an orchestrator."""
    return Competitor("core, no Prefect", (*_PYTHON, "benchmarks.flow", "--without-prefect"), "messages")


def bare(client: str, *, is_synced: bool = False) -> Competitor:
    """The script of an afternoon; `client` is one of its `CLIENTS`."""
    command = (*_PYTHON, "benchmarks.bare", "--client", client)
    if is_synced:
        return Competitor(f"bare {client}, fsync", (*command, "--fsync"))
    return Competitor(f"bare {client}", command)
