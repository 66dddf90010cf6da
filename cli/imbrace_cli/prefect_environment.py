"""The environment of a process that imports Prefect, and the settings that the user has made for it.

The import of Prefect fixes its settings and its logging, so this module does not import it.
"""

from __future__ import annotations

import base64
import logging
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.request import getproxies

import certifi
from dotenv import dotenv_values

from imbrace_lake.errors import SettingsError

CERTIFICATE = "certificate.pem"


def configured_api_url() -> str | None:
    """Return the address of the Prefect server that the user configured, without importing Prefect.

    Source:
        The order of ``prefect.settings``: environment, ``.env``, ``prefect.toml``,
        ``pyproject.toml``, active profile (Prefect 3.9, ``prefect/settings/sources.py``).
    """
    return _configured("PREFECT_API_URL", "api", "url")


def configured_login() -> dict[str, str]:
    """Return the header that logs in to the configured server, without importing Prefect."""
    if key := _configured("PREFECT_API_KEY", "api", "key"):
        return {"authorization": f"Bearer {key}"}
    if login := _configured("PREFECT_API_AUTH_STRING", "api", "auth_string"):
        return {"authorization": f"Basic {base64.b64encode(login.encode()).decode()}"}
    return {}


def _configured(name: str, *keys: str) -> str | None:
    """Look up a setting of Prefect: by the name of its variable, and by its keys in a TOML file."""
    environment = {**dotenv_values(".env"), **{k: v for k, v in os.environ.items() if v}}
    if value := environment.get(name):
        return value
    for path, table in (("prefect.toml", ()), ("pyproject.toml", ("tool", "prefect"))):
        if value := _look_up(_read_toml(Path(path)), *table, *keys):
            return value
    return _profile_setting(environment, name)


def client_environment(api_url: str, directory: Path | None = None) -> dict[str, str]:
    """Return the variables that `os.environ` needs *before* the first import of Prefect, for a quiet run.

    Variables that the user has set keep their values.

    Args:
        api_url: The server of the run.
        directory: The folder of the local server, if it is that; Prefect then ignores the user's profiles.
    """
    desired = {
        # A lost server is an error, not a reason to start another.
        "PREFECT_SERVER_EPHEMERAL_ENABLED": "false",
        # INFO goes to the server, which shows it beside the run; only the commands write to the terminal.
        "PREFECT_LOGGING_LEVEL": "INFO",
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
        "PREFECT_LOGGING_EXTRA_LOGGERS": "imbrace_lake",
        "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
        # With the default of five, a lost server is reported after a minute.
        "PREFECT_CLIENT_MAX_RETRIES": "3",
        "DO_NOT_TRACK": "1",
    }
    if directory is not None:
        desired |= {
            # The local server speaks plain HTTP, but each of Prefect's clients, six in a run, reads the
            # certificates of all authorities first, 20 ms each.
            "PREFECT_API_SSL_CERT_FILE": str(directory / CERTIFICATE),
            # Its version is checked before it is used, and it gives no tokens: four requests of a run.
            "PREFECT_CLIENT_SERVER_VERSION_CHECK_ENABLED": "false",
            "PREFECT_CLIENT_CSRF_SUPPORT_ENABLED": "false",
        }
    environment = {name: value for name, value in desired.items() if name not in os.environ}
    environment["PREFECT_API_URL"] = api_url
    if directory is not None:
        # The only profile that every installation has; Prefect would warn that another one is missing.
        environment |= {"PREFECT_HOME": str(directory), "PREFECT_PROFILE": "ephemeral"}
        direct = os.environ.get("NO_PROXY") or os.environ.get("no_proxy")
        direct = f"{direct},127.0.0.1,localhost" if direct else "127.0.0.1,localhost"
        environment |= {"NO_PROXY": direct, "no_proxy": direct}
    return environment


def check_network() -> None:
    """Check the certificates and proxies of the environment, which Prefect would report with a traceback.

    Raises:
        SettingsError: They cannot be used.
    """
    if os.environ.get("SSL_CERT_FILE"):
        from imbrace_lake.gateway.http_client import certificates

        certificates()
    proxies = getproxies()
    for scheme in [one for one in ("http", "https", "all") if proxies.get(one)]:
        import httpx

        address = proxies[scheme]
        try:
            httpx.Proxy(address if "://" in address else f"http://{address}")
        except (httpx.InvalidURL, ValueError):
            sentence = f"{scheme.upper()}_PROXY is not the address of a proxy: it must be http://host:port"
            raise SettingsError(sentence) from None


def prepare_client(api_url: str, directory: Path | None = None) -> None:
    """Prepare this process for the import of Prefect; the arguments are those of `client_environment`."""
    if directory is not None:
        write_certificate(directory / CERTIFICATE)
    os.environ.update(client_environment(api_url, directory))
    # At the end of a run it warns that it is still working, which is so for a second or two in every run.
    logging.getLogger("EventsWorker").setLevel(logging.ERROR)


def write_certificate(path: Path) -> None:
    """Write a file with a single certificate, unless there is one."""
    if path.exists():
        return
    end = "-----END CERTIFICATE-----\n"
    first = Path(certifi.where()).read_text(encoding="utf-8").partition(end)[0]
    draft = path.with_suffix(f".{os.getpid()}")
    draft.write_text(first + end, encoding="utf-8")
    draft.replace(path)


def _profile_setting(environment: Mapping[str, str | None], name: str) -> str | None:
    home = Path(environment.get("PREFECT_HOME") or "~/.prefect").expanduser()
    path = environment.get("PREFECT_PROFILES_PATH")
    profiles = _read_toml(Path(path) if path else home / "profiles.toml")
    active = environment.get("PREFECT_PROFILE") or _look_up(profiles, "active")
    return _look_up(profiles, "profiles", active or "", name)


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        # Prefect reports the error when it is imported.
        return {}


def _look_up(table: object, *keys: str) -> str | None:
    for key in keys:
        table = table.get(key) if isinstance(table, dict) else None
    return table if isinstance(table, str) and table else None
