"""What a process needs in its environment before it imports Prefect, and what the user has set already.

Prefect fixes its settings and its logging when it is imported, so all of this comes first.
"""

from __future__ import annotations

import logging
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dotenv import dotenv_values


def configured_api_url() -> str | None:
    """Return the address of the Prefect server that the user configured, without importing Prefect.

    The import takes two seconds and fixes Prefect's settings, so it has to wait for this answer.

    Source:
        The order of ``prefect.settings``: environment, ``.env``, ``prefect.toml``,
        ``pyproject.toml``, active profile (Prefect 3.8, ``prefect/settings/sources.py``).
    """
    environment = {**dotenv_values(".env"), **{k: v for k, v in os.environ.items() if v}}
    if url := environment.get("PREFECT_API_URL"):
        return url
    for path, keys in (
        ("prefect.toml", ("api", "url")),
        ("pyproject.toml", ("tool", "prefect", "api", "url")),
    ):
        if url := _look_up(_read_toml(Path(path)), *keys):
            return url
    return _profile_api_url(environment)


def client_environment(api_url: str, directory: Path | None = None) -> dict[str, str]:
    """Return what `os.environ` needs *before* the first import of Prefect for a run that works quietly.

    What the user has set there stays as it is.

    Args:
        api_url: The server of the run.
        directory: The folder of our own server, if it is that; Prefect then finds no profile of the user's.
    """
    wishes = {
        # A server that goes away is an error, not a reason to start another.
        "PREFECT_SERVER_EPHEMERAL_ENABLED": "false",
        # INFO to the server, which shows it beside the run; the terminal is the commands' own to write to.
        "PREFECT_LOGGING_LEVEL": "INFO",
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
        "PREFECT_LOGGING_EXTRA_LOGGERS": "imbrace_lake",
        "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
        # Five would be a minute of silence before a lost server is told.
        "PREFECT_CLIENT_MAX_RETRIES": "3",
        "DO_NOT_TRACK": "1",
    }
    environment = {name: value for name, value in wishes.items() if name not in os.environ}
    environment["PREFECT_API_URL"] = api_url
    if directory is not None:
        # The one profile that every installation has; one of the user's would be missed with a warning.
        environment |= {"PREFECT_HOME": str(directory), "PREFECT_PROFILE": "ephemeral"}
        direct = os.environ.get("NO_PROXY") or os.environ.get("no_proxy")
        direct = f"{direct},127.0.0.1,localhost" if direct else "127.0.0.1,localhost"
        environment |= {"NO_PROXY": direct, "no_proxy": direct}
    return environment


def flow_run_url(ui_url: str, flow_run_id: object) -> str:
    """Return the page of one flow run."""
    return f"{ui_url.rstrip('/')}/runs/flow-run/{flow_run_id}"


def prepare_client(api_url: str, directory: Path | None = None) -> None:
    """Make this process ready to import Prefect; the arguments are those of `client_environment`."""
    os.environ.update(client_environment(api_url, directory))
    # At the end of a run it warns that it is still at work, which it always is for a second or two.
    logging.getLogger("EventsWorker").setLevel(logging.ERROR)


def _profile_api_url(environment: Mapping[str, str | None]) -> str | None:
    home = Path(environment.get("PREFECT_HOME") or "~/.prefect").expanduser()
    path = environment.get("PREFECT_PROFILES_PATH")
    profiles = _read_toml(Path(path) if path else home / "profiles.toml")
    active = environment.get("PREFECT_PROFILE") or _look_up(profiles, "active")
    return _look_up(profiles, "profiles", active or "", "PREFECT_API_URL")


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        # Prefect itself says what is wrong with it, as soon as it is imported.
        return {}


def _look_up(table: object, *keys: str) -> str | None:
    for key in keys:
        table = table.get(key) if isinstance(table, dict) else None
    return table if isinstance(table, str) and table else None
