"""A real server sends messages about runs to local receivers that play Slack, Teams and an SMTP server."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from unittest.mock import patch
from uuid import uuid4

import pytest
from prefect.events.actions import SendNotification
from prefect.server.utilities.user_templates import render_user_template
from prefect.settings import PREFECT_API_URL, temporary_settings

from imbrace_cli import local_server
from imbrace_cli.local_server import ensure_server, keep_alive, stop_server
from imbrace_cli.main import main
from imbrace_cli.notify import Encryption, _mail
from imbrace_cli.processes import inherited_environment
from imbrace_deployments import notifications
from imbrace_deployments.automations import OURS, TAG, WAITING
from imbrace_deployments.mail import Mail
from imbrace_deployments.notifications import (
    Status,
    email_block,
    notification,
    remove_channel,
    send_test,
    set_up_channel,
    slack_block,
    statuses,
    teams_block,
)
from imbrace_flows.events import LAKE_STALE
from imbrace_lake.errors import SettingsError
from tests.core.certificates import make_certificate
from tests.deployments.operator import Operator
from tests.deployments.receivers import Received, receiving
from tests.environment import restored_environment
from tests.prefect_homes import make_home

pytestmark = [
    pytest.mark.server,
    # Of a library for images, which apprise imports.
    pytest.mark.filterwarnings("ignore:.imghdr. is deprecated:DeprecationWarning"),
]

SLACK_URL = "https://hooks.slack.com/services/T00000000/B00000000/c5ec4e7c5ec4e7c5ec4e7c5e"
PASSWORD = "p@ss/w:rd"
PATIENCE = timedelta(seconds=10)


@pytest.fixture(scope="module")
def received(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Received]:
    context, _ = make_certificate(tmp_path_factory.getbasetemp(), hosts=["hooks.slack.com"])
    with receiving(context) as received:
        yield received


@pytest.fixture(scope="module")
def operator(received: Received, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operator]:
    """An operator with a server that reaches other hosts through the receiver."""
    home = make_home(tmp_path_factory, "notifying")
    environment = {
        **inherited_environment(),
        "HTTPS_PROXY": f"http://127.0.0.1:{received.port}",
        "NO_PROXY": "127.0.0.1",
        "REQUESTS_CA_BUNDLE": str(tmp_path_factory.getbasetemp() / "certificate.pem"),
    }
    with patch.object(local_server, "inherited_environment", lambda: environment):
        server = ensure_server(home)
    with keep_alive(home), temporary_settings({PREFECT_API_URL: server.api_url}):
        yield Operator(server, tmp_path_factory.mktemp("operator"))
        stop_server(home)


def teams_url(received: Received) -> str:
    return (
        f"https://127.0.0.1:{received.port}/workflows/643e69f83c8944438d68119179a10a64/triggers/manual"
        "/paths/invoke?api-version=2016-06-01&sp=%2Ftriggers%2Fmanual%2Frun&sv=1.0&sig=5ec4e75ec4e7"
    )


def mail_to(received: Received, *recipients: str) -> Mail:
    robot = "robot@example.com"
    return Mail(recipients, robot, "127.0.0.1", received.smtp_port, "none", robot)


@pytest.fixture(scope="module")
def informed(operator: Operator, received: Received) -> Operator:
    """The same, with all three channels."""
    done = operator.run("imbrace-lake", "notify", "slack", IMBRACE_SLACK_URL=SLACK_URL)
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("slack is set up; try it: ")
    assert done.stderr.endswith("imbrace-lake notify slack --test\n")
    mail = mail_to(received, "ops@example.com", "on-call@example.com")

    async def set_up() -> None:
        await set_up_channel("teams", teams_block(teams_url(received)), "a workflow of Microsoft Teams")
        await set_up_channel("email", email_block(mail, PASSWORD), f"e-mail {mail}")

    asyncio.run(set_up())
    return operator


def automation(operator: Operator, channel: str) -> dict[str, Any]:
    body = {"automations": {"name": {"any_": [f"imbrace-lake-notify-{channel}"]}}}
    (found,) = operator.ask("POST", "/automations/filter", body)
    return dict(found)


def end_run(operator: Operator, name: str, *states: tuple[str, str, str], tag: str = TAG) -> str:
    """Let a run go through states, each a type, a name and a message; return its id."""
    flow = operator.ask("POST", "/flows/", {"name": "export-conversations"})["id"]
    run = operator.ask("POST", "/flow_runs/", {"name": name, "flow_id": flow, "tags": [tag]})["id"]
    for kind, state, message in states:
        body = {"state": {"type": kind, "name": state, "message": message}, "force": True}
        operator.ask("POST", f"/flow_runs/{run}/set_state", body)
    return str(run)


def test_the_server_tells_of_partial_failed_and_crashed_runs_and_of_a_stale_lake(
    informed: Operator, received: Received
) -> None:
    slack = automation(informed, "slack")
    block = slack["actions"][0]["block_document_id"]
    sooner = notification("slack", block, "an incoming webhook of Slack", PATIENCE)
    body = sooner.model_dump(mode="json", exclude={"owner_resource"})
    informed.ask("PUT", f"/automations/{slack['id']}", body)
    crash = ("CRASHED", "Crashed", "The process of the run ended unexpectedly.")
    lost = end_run(informed, "lost export", crash)
    end_run(informed, "restarted export", crash, ("CRASHED", WAITING, "is restarted"))
    partial = end_run(
        informed, "export customers.csv", ("FAILED", "Partial", "3 of 1,000 conversations failed: <timeout>.")
    )
    end_run(
        informed, "export quarter.csv", ("FAILED", "Failed", "The token was rejected & nothing was read.")
    )
    end_run(informed, "export week.csv", ("COMPLETED", "Completed", "All is well."))
    end_run(informed, "someone else's", ("FAILED", "Failed", "No news here."), tag="other")
    stale = {
        "event": "imbrace.lake.stale",
        "id": str(uuid4()),
        "occurred": datetime.now(UTC).isoformat(),
        "resource": {"prefect.resource.id": "imbrace.lake.0123456789abcdef"},
        # As Prefect relates each event to its run.
        "related": [
            OURS,
            {"prefect.resource.role": "flow-run", "prefect.resource.id": f"prefect.flow-run.{partial}"},
        ],
        "payload": {"lake": "s3://bucket/lake", "conversations": 7, "stale_hours": 26.0},
    }
    informed.ask("POST", "/events", [stale])

    def all_of(kind: str, wanted: int) -> Callable[[], list[str] | None]:
        return lambda: texts if len(texts := received.texts(kind)) >= wanted else None

    teams = informed.until(all_of("127.0.0.1", 3), "the messages in Teams")
    mails = informed.until(all_of("email", 6), "the e-mail")
    slacks = informed.until(all_of("slack", 4), "the messages in Slack")

    for texts in (teams, mails, slacks):
        everything = "\n".join(texts)
        assert "export customers.csv: Partial" in everything
        assert "3 of 1,000 conversations failed" in everything
        assert f"{informed.server.ui_url}/runs/flow-run/{partial}" in everything
        assert "export quarter.csv: Failed" in everything
        assert "7 conversations of s3://bucket/lake have no proof of the last 26 hours." in everything
        for other in ("restarted export", "export week.csv", "No news here"):
            assert other not in everything
    assert sum("lost export: Crashed" in text and lost in text for text in slacks) == 1
    assert sum("look at the last lines of its log" in text for text in slacks) == 1
    assert len(slacks) == 4
    assert {path for host, path, _ in received.posts if "slack" in host} == {
        SLACK_URL.removeprefix("https://hooks.slack.com")
    }
    card = next(body for host, _, body in received.posts if "127" in host)
    assert card["attachments"][0]["contentType"] == "application/vnd.microsoft.card.adaptive"
    assert {one for to, _ in received.mails for one in to} == {"ops@example.com", "on-call@example.com"}
    assert {str(mail["from"]) for _, mail in received.mails} == {"robot@example.com"}
    assert set(received.logins) == {f"\0robot@example.com\0{PASSWORD}".encode()}


@pytest.mark.parametrize(
    ("conversations", "hours", "message"),
    [
        (1, 1.0, "1 conversation of ./lake has no proof of the last hour."),
        (2, 26.0, "2 conversations of ./lake have no proof of the last 26 hours."),
    ],
)
def test_the_message_about_a_stale_lake_counts_conversations_and_hours(
    conversations: int, hours: float, message: str
) -> None:
    payload = {"conversations": conversations, "stale_hours": hours, "lake": "./lake"}
    event = {"event": LAKE_STALE, "payload": payload}
    (action,) = notification("slack", uuid4(), "an incoming webhook of Slack").actions
    assert isinstance(action, SendNotification)

    assert asyncio.run(render_user_template(action.body, {"event": event})) == message


def test_a_test_message_arrives_or_its_failure_is_reported(informed: Operator, received: Received) -> None:
    before = len(received.mails)
    assert asyncio.run(send_test("email")) is None
    assert "Notifications of imbrace-lake arrive here." in received.texts("email")[before]

    with patch.object(received, "status", 403):
        reason = asyncio.run(send_test("teams"))

    assert reason is not None
    assert "403" in reason
    assert "5ec4e75ec4e7" not in reason


def test_a_channel_that_is_set_up_can_be_changed(informed: Operator, received: Received) -> None:
    other_url = SLACK_URL.replace("B00000000", "B11111111")
    before = automation(informed, "slack")
    informed.ask("PATCH", f"/automations/{before['id']}", {"enabled": False})

    done = informed.run("imbrace-lake", "notify", "slack", IMBRACE_SLACK_URL=other_url)
    assert done.returncode == 0, done.stderr
    changed = automation(informed, "slack")
    failure = asyncio.run(send_test("slack"))

    assert failure is None
    assert received.posts[-1][1] == other_url.removeprefix("https://hooks.slack.com")
    same = ("id", "description", "actions")
    assert [changed[name] for name in same] == [before[name] for name in same]
    assert changed["enabled"] is True
    # As the other tests expect it.
    asyncio.run(set_up_channel("slack", slack_block(SLACK_URL), before["description"].partition(": ")[2]))
    assert automation(informed, "slack")["description"] == before["description"]


def test_other_recipients_of_mail_replace_the_earlier_ones(informed: Operator, received: Received) -> None:
    night, day = (
        mail_to(received, *recipients)
        for recipients in (["night@example.com"], ["ops@example.com", "on-call@example.com"])
    )

    async def change(mail: Mail) -> str | None:
        await set_up_channel("email", email_block(mail, PASSWORD), f"e-mail {mail}")
        return (await statuses())[2].description

    shown = asyncio.run(change(night))
    assert asyncio.run(send_test("email")) is None
    again = asyncio.run(change(day))

    assert received.mails[-1][0] == ["night@example.com"]
    assert (shown, again) == (f"e-mail {night}", f"e-mail {day}")


def test_a_rejected_change_of_a_channel_changes_nothing_and_blames_no_setting(
    informed: Operator,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def channel() -> object:
        blocks = informed.ask("POST", "/block_documents/filter", {"include_secrets": True})
        return automation(informed, "slack"), [(block["name"], block["data"]) for block in blocks]

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(notifications, "_SUBJECT", "{% a template that is not valid")
    before = channel()

    with restored_environment():
        os.environ |= {
            "PREFECT_API_URL": informed.server.api_url,
            "IMBRACE_SLACK_URL": SLACK_URL.replace("B00000000", "B22222222"),
        }
        assert main(["notify", "slack"]) == 1

    reported = capsys.readouterr().err
    assert f" rejected PUT /api/automations/{automation(informed, 'slack')['id']} with status 422" in reported
    assert len(reported.splitlines()) == 1
    assert channel() == before


def test_channels_are_shown_and_removed(informed: Operator) -> None:
    shown = informed.run("imbrace-lake", "notify").stdout.splitlines()
    assert [line[:11] for line in shown] == ["slack  on: ", "teams  on: ", "email  on: "]
    assert shown[2].startswith("email  on: e-mail to ops@example.com, on-call@example.com by 127.0.0.1:")
    everything = "\n".join(shown)
    assert "5ec4e7" not in everything
    assert PASSWORD not in everything

    assert asyncio.run(remove_channel("teams"))

    assert not asyncio.run(remove_channel("teams"))
    assert asyncio.run(statuses())[1] == Status("teams", None)
    with pytest.raises(SettingsError, match="teams is not set up: call `imbrace-lake notify teams`"):
        asyncio.run(send_test("teams"))
    blocks = informed.ask("POST", "/block_documents/filter", {})
    assert sorted(block["name"] for block in blocks) == [
        "imbrace-lake-notify-email",
        "imbrace-lake-notify-slack",
    ]


@pytest.mark.parametrize(
    ("smtp", "host", "port", "shown"),
    [
        ("smtp.example.com", "smtp.example.com", 587, "smtp.example.com:587"),
        ("10.0.0.1:65535", "10.0.0.1", 65535, "10.0.0.1:65535"),
        ("[::1]:25", "::1", 25, "[::1]:25"),
        ("[2001:DB8::1]", "2001:db8::1", 587, "[2001:db8::1]:587"),
    ],
)
def test_an_smtp_server_is_a_name_or_an_address_with_or_without_a_port(
    smtp: str, host: str, port: int, shown: str
) -> None:
    mail = _mail(["a@b.c"], smtp, None, "a@b.c", Encryption.STARTTLS)

    assert (mail.host, mail.port, str(mail)) == (host, port, f"to a@b.c by {shown}")


def test_a_mail_arrives_at_an_ipv6_address(received: Received) -> None:
    with ExitStack() as stack:
        try:
            at_ipv6 = stack.enter_context(receiving(received.context, "::1"))
        except OSError:
            pytest.skip("this machine has no IPv6")
        mail = Mail(["ops@example.com"], "robot@example.com", "::1", at_ipv6.smtp_port, "none", "robot")

        asyncio.run(email_block(mail, PASSWORD).anotify("It works.", "Test"))

    assert at_ipv6.texts("email") == ["Test\nIt works.\r\n"]
    assert at_ipv6.logins == [f"\0robot\0{PASSWORD}".encode()]


@pytest.mark.parametrize(
    "url", ["", "https://example.com/services/T/B/C", "http://hooks.slack.com/services/T/B/C"]
)
def test_another_address_is_no_webhook(url: str) -> None:
    with pytest.raises(SettingsError, match="incoming webhook of Slack"):
        slack_block(url)
    with pytest.raises(SettingsError, match="workflow of Teams"):
        teams_block(url)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["slack"], "set IMBRACE_SLACK_URL"),
        (["teams"], "set IMBRACE_TEAMS_URL"),
        (["slack", SLACK_URL], "is not an argument"),
        (["--test"], "name a channel"),
        (["slack", "--test", "--remove"], "not both"),
        (["slack", "--to", "ops@example.com"], "are for: imbrace-lake notify email"),
        (["email", "--to", "ops@example.com"], "needs --to, --smtp"),
        (["email", "--to", "ops", "--smtp", "host", "--from", "a@b.c"], "'ops' is not an e-mail address"),
        *(
            (
                ["email", "--to", "a@b.c", "--smtp", smtp, "--from", "a@b.c"],
                "--smtp takes a host, or a host and a port",
            )
            for smtp in (
                *("host:smtp", "host:", "host:0", "host:70000", ":25", "::1", "[::x]:25", "[::1", "host:25/"),
                *("name@host", "name:secret@host:25", "a host", "host?", "host#25"),
            )
        ),
        (["email", "--to", "a@b.c", "--smtp", "host", "--user", "a@b.c"], "set IMBRACE_SMTP_PASSWORD"),
    ],
)
def test_wrong_use_is_one_sentence(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)

    assert main(["notify", *arguments]) == 2

    err = capsys.readouterr().err
    assert message in err
    assert len(err.splitlines()) == 1
    assert SLACK_URL not in err
