"""`imbrace-lake server`: the local Prefect server."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from imbrace_cli.exit_codes import FAILED
from imbrace_cli.terminal import echo, echo_status, waiting

if TYPE_CHECKING:
    from imbrace_cli.local_server import LocalServer

app = typer.Typer(
    help="The local Prefect server: started on demand when no other is configured, stopped when unused.",
    invoke_without_command=True,
)


@app.callback()
def _first(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command()
def status() -> None:
    """Show the server's status; exits with 1 if it is not running."""
    from imbrace_cli.local_server import server_status
    from imbrace_cli.prefect_environment import configured_api_url

    if configured_api_url() is not None:
        echo_status("PREFECT_API_URL is configured, so runs go to that server and not to this one")
    server = server_status()
    if server is None:
        echo("not running")
        raise typer.Exit(FAILED)
    _describe(server)


@app.command()
def start() -> None:
    """Start the server, unless it is already running."""
    from imbrace_cli.local_server import ensure_server

    with waiting("starting"):
        server = ensure_server()
    _describe(server)


@app.command()
def stop() -> None:
    """Stop the server. Runs in progress will fail."""
    from imbrace_cli.local_server import stop_server

    with waiting("stopping, once everything is recorded"):
        was_running = stop_server()
    echo("stopped" if was_running else "not running")


def _describe(server: LocalServer) -> None:
    echo(
        f"running at {server.ui_url}",
        f"  folder   {server.directory}",
        f"  log      {server.log}",
        f"  process  {server.pid}",
    )
