"""`imbrace-lake check`: test token, gateway and lake, and report all problems at once."""

from __future__ import annotations

import json
import platform
import re
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import version
from typing import TYPE_CHECKING, Annotated

import typer

from imbrace_cli import options
from imbrace_cli.exit_codes import COMPLETE, FAILED
from imbrace_cli.interrupt import run_interruptibly
from imbrace_cli.options import AsJson
from imbrace_cli.terminal import as_called, echo, stdout_console, waiting
from imbrace_lake.errors import SettingsError

if TYPE_CHECKING:
    from imbrace_lake.check import Finding
    from imbrace_lake.phones.numbers import PhoneNumber
    from imbrace_lake.settings import Settings

EXAMPLES = """
\b
Examples:
  imbrace-lake check
  imbrace-lake check --lake s3://bucket/prefix --phone +886911425977
"""

SERVER_SECONDS = 2.0
_VERSION = re.compile(r'"?((\d+)\.[\w.+-]{1,40})"?')
_MARKS = {"ok": ("✓", "green"), "note": ("!", "yellow"), "error": ("✗", "bold red"), "skipped": ("-", "dim")}


def check(
    phone: Annotated[
        str | None,
        typer.Option(metavar="NUMBER", help="A number with a conversation, for a test of pages and counts."),
    ] = None,
    region: options.Region = None,
    organization: options.Organization = None,
    lake: options.Lake = None,
    gateway: options.Gateway = None,
    as_json: AsJson = False,
) -> None:
    """Test token, organization, gateway, lake and Prefect, and report everything to fix.

    The command writes a small object into the lake and deletes it. Exit code 1 if anything is wrong.
    """
    from imbrace_lake.phones.numbers import parse_phone

    settings = options.read_settings(organization=organization, lake=lake, gateway=gateway, region=region)
    number = parse_phone(phone, settings.region) if phone is not None else None
    with waiting("checking") as say:
        findings = _run_checks(settings, number, say)
    wrong = [finding for finding in findings if finding.verdict == "error"]
    if as_json:
        typer.echo(json.dumps({"ok": not wrong, "findings": [asdict(finding) for finding in findings]}))
    else:
        _echo_findings(findings)
    raise typer.Exit(FAILED if wrong else COMPLETE)


def _run_checks(settings: Settings, phone: PhoneNumber | None, say: Callable[[str], object]) -> list[Finding]:
    from imbrace_cli.gateway import own_gateway, shared_gateway
    from imbrace_cli.local_server import ServerUnavailable
    from imbrace_lake import check as core

    # First: sharing the budget of the local server configures it for this process.
    versions = _versions()
    try:
        open_gateway = shared_gateway(settings)
    except (ServerUnavailable, SettingsError):
        # The findings report it. These few requests do not exceed any limit.
        open_gateway = own_gateway(settings)
    return [*run_interruptibly(core.run_checks(settings, open_gateway, phone, say)), *versions]


def _versions() -> list[Finding]:
    from imbrace_cli.local_server import server_status
    from imbrace_cli.prefect_environment import configured_api_url
    from imbrace_lake.check import Finding

    ours = version("prefect")
    message = f"imbrace-lake {version('imbrace-lake')}, Prefect {ours}, Python {platform.python_version()}"
    api_url = configured_api_url()
    if api_url is not None:
        return [Finding("versions", "ok", message), _check_server(api_url, ours)]
    server = server_status()
    state = f"a local one runs at {server.ui_url}" if server else "a local one starts with the first run"
    return [Finding("versions", "ok", message), Finding("prefect server", "ok", state)]


def _check_server(api_url: str, ours: str) -> Finding:
    import httpx

    from imbrace_cli.prefect_session import LOGIN_ADVICE, ask_server, shown_url, why_unavailable
    from imbrace_lake.check import Finding

    shown = shown_url(api_url)
    try:
        answer = ask_server(api_url, SERVER_SECONDS)
    except SettingsError as exc:
        return Finding("prefect server", "error", str(exc))
    except httpx.HTTPError as exc:
        return Finding("prefect server", "error", why_unavailable(exc, api_url))
    if answer.status_code in (401, 403):
        return Finding("prefect server", "error", f"{shown} asks for a login: {LOGIN_ADVICE}")
    if answer.status_code == 404:
        # The hosted service does not have this page.
        return Finding("prefect server", "ok", f"{shown} answers")
    theirs = _VERSION.fullmatch(answer.text.strip()) if answer.status_code == 200 else None
    if theirs is None:
        message = (
            f"{shown} does not answer as a Prefect server (status {answer.status_code}): perhaps a proxy or a"
            " page for signing in answers; set PREFECT_API_URL to the server's address, which ends with /api"
        )
        return Finding("prefect server", "error", message)
    message = f"{shown} has version {theirs[1]}, this is {ours}"
    if theirs[2] != ours.partition(".")[0]:
        return Finding("prefect server", "error", f"{message}: use a server of the same major version")
    if theirs[1].split(".")[:2] != ours.split(".")[:2]:
        return Finding("prefect server", "note", f"{message}: a server should not be the older one")
    return Finding("prefect server", "ok", f"{shown} answers, version {theirs[1]}")


def _echo_findings(findings: list[Finding]) -> None:
    if not stdout_console().is_terminal:
        echo(*(f"{finding.verdict:<9}{finding.name}: {as_called(finding.message)}" for finding in findings))
        return
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    for finding in findings:
        mark, style = _MARKS[finding.verdict]
        message = Text(as_called(finding.message), style="dim" if finding.verdict == "skipped" else "")
        table.add_row(Text(mark, style=style), Text(finding.name, style="bold"), message)
    echo(table)
