"""`imbrace-lake setup`: prepare a Prefect server for the deployments of `prefect.yaml`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from imbrace_cli import options
from imbrace_cli.exit_codes import FAILED
from imbrace_cli.interrupt import run_interruptibly
from imbrace_cli.terminal import echo, echo_error, program
from imbrace_lake.errors import SettingsError, UsageError

if TYPE_CHECKING:
    from imbrace_deployments.setup import Outcome
    from imbrace_lake.settings import Settings

EXAMPLES = """
\b
Examples:
  export PREFECT_API_URL=http://127.0.0.1:4200/api IMBRACE_TOKEN=api_…
  imbrace-lake setup --organization org_… --lake s3://bucket/conversations
  imbrace-lake setup --phones s3://bucket/customers.csv
  imbrace-lake setup --requests-per-second 5
"""


Phones = Annotated[
    str | None,
    typer.Option(metavar="URL", help="The list of numbers that the hourly ingestion reads."),
]
SharedBudget = Annotated[
    float | None,
    typer.Option(
        min=0.001,
        max=options.MAX_PER_SECOND,
        metavar="N",
        help="Set the budget that all workers share, even if it was changed in the UI.",
    ),
]
Pool = Annotated[
    str, typer.Option(metavar="NAME", envvar="IMBRACE_WORK_POOL", help="Work pool of the deployments.")
]
Queue = Annotated[str, typer.Option(metavar="NAME", envvar="IMBRACE_WORK_QUEUE", help="Its work queue.")]
PrefectFile = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        exists=True,
        dir_okay=False,
        envvar="IMBRACE_PREFECT_FILE",
        help="Your own prefect.yaml with the deployments.",
    ),
]


def setup(
    organization: options.Organization = None,
    lake: options.Lake = None,
    gateway: options.Gateway = None,
    phones: Phones = None,
    requests_per_second: SharedBudget = None,
    pool: Pool = "imbrace",
    queue: Queue = "default",
    prefect_file: PrefectFile = None,
    force: Annotated[
        bool,
        typer.Option(
            "--force", help="Save settings that fail their check here, but may work on the workers."
        ),
    ] = False,
) -> None:
    """Prepare the Prefect server that PREFECT_API_URL names.

    Creates blocks from IMBRACE_* and AWS_*, a work pool, the shared budget of requests, automations for runs
    whose worker dies, and the deployments. A second call changes only what differs.

    First it tests token, organization, gateway, lake and list. If one of them does not work, it saves
    nothing. Exit code 1 if anything is wrong.
    """
    import httpx

    from imbrace_cli.prefect_environment import configured_api_url, prepare_client
    from imbrace_cli.prefect_session import ask_server, server_unavailable

    api_url = configured_api_url()
    if api_url is None:
        raise SettingsError(
            "no Prefect server is configured: set PREFECT_API_URL to its address, which ends with /api, or"
            " use `imbrace-lake up`, which starts one"
        )
    settings = options.read_settings(organization=organization, lake=lake, gateway=gateway)
    phones = check_settings(settings, phones, pool, queue)
    try:
        # Prefect itself would report a missing server with a traceback.
        ask_server(api_url).raise_for_status()
        prepare_client(api_url)
        from imbrace_deployments.deploy import PREFECT_FILE
        from imbrace_deployments.setup import DesiredState, set_up

        desired = DesiredState(
            settings, pool, queue, phones, requests_per_second, force, prefect_file or PREFECT_FILE
        )
        outcome = run_interruptibly(set_up(desired))
    except httpx.HTTPError as exc:
        raise server_unavailable(exc, api_url) from exc
    echo(*(f"{finding.verdict:<9}{finding.name}: {finding.message}" for finding in outcome.findings))
    if outcome.done:
        echo(
            "",
            *outcome.done,
            "",
            f"Next: a worker, by `{program()} up` on each machine that is to run exports",
        )
    if outcome.wrong:
        echo_error(_verdict(outcome))
        raise typer.Exit(FAILED)


def _verdict(outcome: Outcome) -> str:
    wrong = " and ".join(dict.fromkeys(finding.name for finding in outcome.wrong))
    if outcome.done:
        return f"saved because of --force, although something is wrong: {wrong}"
    return f"nothing was saved, because something is wrong: {wrong}; --force saves it nevertheless"


def check_settings(settings: Settings, phones: str | None, pool: str, queue: str) -> str | None:
    """Check the settings before anything is created; return the list's address for runs.

    Raises:
        UsageError: A setting is invalid; the message shows what to change.
    """
    from imbrace_cli.inputs import reject_secrets
    from imbrace_lake.printable import without_numbers
    from imbrace_lake.store.factory import open_store

    if settings.token is not None and settings.organization is not None:
        settings.gateway_options()
    if settings.lake is not None:
        open_store(settings.lake)
    if phones is not None:
        reject_secrets(phones)
        if without_numbers(phones) != phones:
            raise UsageError(
                "the address of the list may contain a phone number, which Prefect would store: rename the"
                " list"
            )
    for name in (pool, queue):
        if not name or set(name) & set("/%&<>"):
            raise UsageError(f"{name!r} is not a valid name of a work pool or queue: leave out / % & < and >")
    if phones is None or "://" in phones:
        return phones
    # A run has another working directory.
    return str(Path(phones).expanduser().absolute())
