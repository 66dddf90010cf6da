"""`imbrace-lake up`: a complete installation in the foreground, until Ctrl-C."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated

import typer
from dotenv import dotenv_values
from filelock import FileLock, Timeout

from imbrace_cli import options
from imbrace_cli.ending import Ending, ends_by_signal
from imbrace_cli.local_server import default_home, ensure_server, keep_alive, release_server, server_status
from imbrace_cli.prefect_environment import configured_api_url, prepare_client
from imbrace_cli.prefect_session import Session, ask_server, server_unavailable, shown_url
from imbrace_cli.setup import Phones, Pool, PrefectFile, Queue, SharedBudget, check_settings
from imbrace_cli.terminal import echo, echo_error, waiting
from imbrace_lake.errors import ImbraceLakeError, SettingsError, UsageError

EXAMPLES = """
\b
Examples:
  imbrace-lake up --demo
  export IMBRACE_TOKEN=api_…
  imbrace-lake up --organization org_… --lake s3://bucket/conversations --phones s3://bucket/customers.csv
"""

DEMO_SCHEDULE = "* * * * *"


class AlreadyRunning(ImbraceLakeError):
    """Another `up` runs with the same home."""


def up(
    organization: options.Organization = None,
    lake: options.Lake = None,
    gateway: options.Gateway = None,
    phones: Phones = None,
    requests_per_second: SharedBudget = None,
    pool: Pool = "imbrace",
    queue: Queue = "default",
    prefect_file: PrefectFile = None,
    limit: Annotated[
        int | None,
        typer.Option(min=2, metavar="N", help="Maximum runs at a time; by default 8 plus one per core."),
    ] = None,
    demo: Annotated[
        bool,
        typer.Option("--demo", help="Use a fake gateway, a separate local server, and the lake ./lake."),
    ] = False,
) -> None:
    """Run a complete installation until Ctrl-C: server, setup, deployments and a worker.

    Uses the Prefect server of PREFECT_API_URL, or else starts a local one. Tests token, gateway, lake and
    list as `setup` does, and stops if one of them does not work. Then it carries out the runs that are due
    or that someone starts in the UI.

    Ctrl-C ends everything that it started. The next `up` continues the runs that were in progress, also
    after a crash.
    """
    import httpx

    if demo and any((organization, gateway, phones)):
        raise UsageError("--demo has its own organization, gateway and list: leave these options out")
    home = default_home() / "demo" if demo else default_home()
    with ExitStack() as stack:
        ending = stack.enter_context(ends_by_signal())
        stack.enter_context(_only_one(home))
        if demo:
            phones = stack.enter_context(_fake_gateway(home, lake or "lake"))
        else:
            _export_dotenv()
        settings = options.read_settings(organization=organization, lake=lake, gateway=gateway)
        phones = check_settings(settings, phones, pool, queue)
        api_url = None if demo else configured_api_url()
        if api_url is None and not settings.lake and not _was_set_up(home):
            raise SettingsError(
                "nothing to export from and to: set IMBRACE_TOKEN, and use --organization and --lake;"
                " `imbrace-lake up --demo` needs none of them"
            )
        try:
            server = stack.enter_context(_server(home, api_url, ending))
            # Not before the environment is set.
            from imbrace_cli.installation import Installation
            from imbrace_deployments.deploy import PREFECT_FILE
            from imbrace_deployments.setup import DesiredState

            desired = DesiredState(
                settings, pool, queue, phones, requests_per_second,
                prefect_file=prefect_file or PREFECT_FILE,
                first_schedule=DEMO_SCHEDULE if demo else None,
                needs_blocks=True,
            )  # fmt: skip
            Installation(desired, server, home, limit, ending).run()
        except BaseException as exc:
            # What a signal interrupts may fail in any way.
            if ending.is_requested:
                pass
            elif isinstance(exc, httpx.HTTPError):
                raise server_unavailable(exc, api_url) from exc
            else:
                raise
    echo_error("everything that `imbrace-lake up` started has ended", "stopped")


@contextmanager
def _only_one(home: Path) -> Iterator[None]:
    """Keep a second `up` of the same home away; the kernel frees the lock of a process that was killed."""
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    process = home / "up.pid"
    try:
        lock = FileLock(home / "up.lock", timeout=0, mode=0o600).acquire()
    except Timeout:
        number = process.read_text(encoding="utf-8") if process.exists() else "unknown"
        raise AlreadyRunning(f"another `imbrace-lake up` is running already (process {number})") from None
    with lock:
        process.write_text(str(os.getpid()), encoding="utf-8")
        try:
            yield
        finally:
            process.unlink(missing_ok=True)


@contextmanager
def _fake_gateway(home: Path, lake: str) -> Iterator[str]:
    """Serve the conversations of `imbrace-lake demo`, set the settings for them, and give their list."""
    from imbrace_sandbox import Sandbox

    if "://" in lake:
        raise UsageError("the demo writes only to a local folder: choose one by --lake")
    with Sandbox() as box:
        settings = {
            "token": box.options.token,
            "organization": box.options.organization_id,
            "gateway": box.url,
            "lake": lake,
            # A short list has a larger share of unreadable entries than a real one.
            "tolerated_unreadable": 1,
        }
        path = home / "phones.txt"
        path.write_text("\n".join(box.messy_phones()), encoding="utf-8")
        with options.environment(settings):
            echo(f"gateway  {box.url}, a fake one with {len(box.conversations):,} conversations")
            yield str(path)


def _export_dotenv() -> None:
    """Set the settings of `.env` for the processes of runs, which have another working directory."""
    from imbrace_lake.settings import PREFIX

    for name, value in dotenv_values(".env").items():
        if name.startswith(PREFIX) and value is not None:
            os.environ.setdefault(name, value)


def _was_set_up(home: Path) -> bool:
    """Return whether the local server has a database, in which an earlier call may have saved blocks."""
    return (home / "prefect" / "prefect.db").exists()


@contextmanager
def _server(home: Path, api_url: str | None, ending: Ending) -> Iterator[Session]:
    """Give the configured server, or else the local one, which ends with the block."""
    # A server that is started again needs longer than the retries of a command take.
    os.environ.setdefault("PREFECT_CLIENT_MAX_RETRIES", "5")
    if api_url is not None:
        ask_server(api_url).raise_for_status()
        prepare_client(api_url)
        echo(f"server   {shown_url(api_url)}")
        yield Session(api_url, None)
        return
    with waiting("starting the Prefect server"):
        server = ensure_server(home)
    ending.kill.append(lambda: _kill_server(home))
    try:
        with keep_alive(home):
            prepare_client(server.api_url, server.directory)
            echo(f"server   {server.ui_url}")
            yield Session(server.api_url, server.ui_url)
    finally:
        if not release_server(home):
            echo_error("the Prefect server stays, because another command is using it", "note")


def _kill_server(home: Path) -> None:
    server = server_status(home)
    if server is not None:
        os.kill(server.pid, signal.SIGKILL)
