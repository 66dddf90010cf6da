"""The tasks' tests use the commands' Prefect server."""

from __future__ import annotations

from tests.cli.conftest import prefect, prefect_server, workdir

__all__ = ["prefect", "prefect_server", "workdir"]
