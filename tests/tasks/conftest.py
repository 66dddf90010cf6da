"""The tasks' tests use the commands' Prefect server."""

from __future__ import annotations

from tests.cli.conftest import place, prefect, prefect_server

__all__ = ["place", "prefect", "prefect_server"]
