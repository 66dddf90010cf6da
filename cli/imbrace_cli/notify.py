"""`imbrace-lake notify`: e-mail, Slack or Teams messages about failed and partial runs and stale lakes."""

from __future__ import annotations

import os
import sys
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from imbrace_cli.interrupt import run_interruptibly
from imbrace_cli.terminal import as_called, echo, echo_status, waiting
from imbrace_lake.errors import SettingsError, UsageError

if TYPE_CHECKING:
    from imbrace_deployments.mail import Mail

EXAMPLES = """
\b
Examples:
  imbrace-lake notify slack      # asks for the address of the webhook
  imbrace-lake notify teams
  imbrace-lake notify email --to ops@example.com --smtp smtp.example.com --user robot@example.com
  imbrace-lake notify slack --test
  imbrace-lake notify slack --remove
"""
PORTS = {"starttls": 587, "ssl": 465, "none": 25}


class ChannelName(StrEnum):
    """The channels."""

    SLACK = "slack"
    TEAMS = "teams"
    EMAIL = "email"


class Encryption(StrEnum):
    """How the connection to an SMTP server is encrypted."""

    STARTTLS = "starttls"
    SSL = "ssl"
    NONE = "none"


def notify(
    channel: Annotated[
        ChannelName | None,
        typer.Argument(
            metavar="slack|teams|email", help="The channel; without it, the command shows what is set up."
        ),
    ] = None,
    to: Annotated[
        list[str] | None, typer.Option(metavar="ADDRESS", help="E-mail: a recipient; repeat it for more.")
    ] = None,
    smtp: Annotated[
        str | None, typer.Option(metavar="HOST[:PORT]", help="E-mail: the server that sends it.")
    ] = None,
    user: Annotated[
        str | None, typer.Option(metavar="NAME", help="E-mail: the user of the SMTP server, if it needs one.")
    ] = None,
    sender: Annotated[
        str | None,
        typer.Option("--from", metavar="ADDRESS", help="E-mail: the sender; by default the user."),
    ] = None,
    encryption: Annotated[
        Encryption,
        typer.Option(
            metavar="starttls|ssl|none",
            help="E-mail: how the connection is encrypted; ports 587, 465 and 25 by default.",
        ),
    ] = Encryption.STARTTLS,
    test: Annotated[bool, typer.Option("--test", help="Let the server send a test message.")] = False,
    remove: Annotated[bool, typer.Option("--remove", help="Send no more messages by this channel.")] = False,
) -> None:
    """Send a message when a run is partial, failed or crashed for good, or when a lake is stale.

    Without arguments, it shows which channels are set up. The Prefect server sends the messages, by an
    automation. They contain the name of the run, the sentence that it ended with, and the address of its
    page.

    Secrets are never arguments, because every user of this machine can read these: the address of a webhook
    is IMBRACE_SLACK_URL or IMBRACE_TEAMS_URL, the password of the SMTP server is IMBRACE_SMTP_PASSWORD. If
    they are not set, the command asks for them. They are stored in a block of the server.
    """
    from imbrace_cli.prefect_session import prefect_session

    if test and remove:
        raise UsageError("give --test or --remove, not both")
    if channel is None and (test or remove):
        raise UsageError("name a channel: slack, teams or email")
    if channel is ChannelName.EMAIL and not (test or remove):
        mail = _mail(to, smtp, user, sender, encryption)
    elif to or smtp or user or sender:
        raise UsageError("--to, --smtp, --user and --from are for: imbrace-lake notify email")
    else:
        mail = None
    secret = None if channel is None or test or remove else _ask(channel, mail)
    with waiting("asking the Prefect server") as say, prefect_session(say):
        run_interruptibly(_work(channel, secret, mail, test=test, remove=remove))


async def _work(
    channel: ChannelName | None, secret: str | None, mail: Mail | None, *, test: bool, remove: bool
) -> None:
    from imbrace_deployments import notifications

    if channel is None:
        for one in await notifications.statuses():
            state = "on" if one.is_enabled else "disabled in the UI"
            if one.description is None:
                echo(as_called(f"{one.channel:<7}not set up: imbrace-lake notify {one.channel}"))
            else:
                echo(f"{one.channel:<7}{state}: {one.description}")
    elif remove:
        removed = await notifications.remove_channel(channel.value)
        echo_status(f"{channel} is {'removed' if removed else 'not set up'}")
    elif test:
        failure = await notifications.send_test(channel.value)
        if failure is not None:
            raise SettingsError(f"the server could not send the test message by {channel}: {failure}")
        echo_status(f"the server sent a test message by {channel}")
    else:
        if mail is not None:
            block, description = notifications.email_block(mail, secret), f"e-mail {mail}"
        elif channel is ChannelName.SLACK:
            block, description = notifications.slack_block(secret or ""), "an incoming webhook of Slack"
        else:
            block, description = notifications.teams_block(secret or ""), "a workflow of Microsoft Teams"
        await notifications.set_up_channel(channel.value, block, description)
        echo_status(as_called(f"{channel} is set up; try it: imbrace-lake notify {channel} --test"))


def _mail(
    to: list[str] | None, smtp: str | None, user: str | None, sender: str | None, encryption: Encryption
) -> Mail:
    from imbrace_deployments.mail import Mail

    sender = sender or user
    if not to or not smtp or not sender:
        raise UsageError("e-mail needs --to, --smtp, and --user or --from")
    host, port = _host_and_port(smtp)
    for address in (*to, sender):
        if "@" not in address or set(address) & set(" ,\r\n"):
            raise UsageError(f"{address!r} is not an e-mail address")
    return Mail(to, sender, host, port or PORTS[encryption], encryption.value, user)


def _host_and_port(smtp: str) -> tuple[str, int | None]:
    """Parse the address of an SMTP server; an IPv6 address is returned without its brackets.

    Raises:
        UsageError: It has no host, something beside a host and a port, or an impossible port.
    """
    from pydantic import AnyUrl, ValidationError

    # Without the text, which can contain a password.
    problem = UsageError(
        "--smtp takes a host, or a host and a port from 1 to 65535: smtp.example.com:587, [2001:db8::1]:587"
    )
    try:
        url = AnyUrl(f"smtp://{smtp}")
    except ValidationError:
        raise problem from None
    others = (url.username, url.password, url.path, url.query, url.fragment)
    if not url.host or url.port == 0 or smtp.endswith(":") or any(one is not None for one in others):
        raise problem
    return url.host.strip("[]"), url.port


def _ask(channel: ChannelName, mail: Mail | None) -> str | None:
    """Return the secret of a channel, from the environment or the person; None if it needs none.

    Raises:
        UsageError: It is not set, and standard input is not a terminal.
    """
    from dotenv import dotenv_values

    if mail is not None and mail.user is None:
        return None
    name, question = {
        ChannelName.SLACK: ("IMBRACE_SLACK_URL", "Address of the incoming webhook of Slack"),
        ChannelName.TEAMS: ("IMBRACE_TEAMS_URL", "Address of the workflow of Teams"),
        ChannelName.EMAIL: ("IMBRACE_SMTP_PASSWORD", "Password of the SMTP server"),
    }[channel]
    if secret := os.environ.get(name) or dotenv_values(".env").get(name):
        return secret.strip()
    if not sys.stdin.isatty():
        raise UsageError(f"set {name}: {question[0].lower()}{question[1:]}")
    return str(typer.prompt(question, hide_input=True, err=True)).strip()
