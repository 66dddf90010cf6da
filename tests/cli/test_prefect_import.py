"""Every command prepares Prefect's environment before it imports Prefect.

The import fixes Prefect's settings. With those of an unprepared process, Prefect starts a separate server.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from imbrace_cli.main import _COMMANDS
from imbrace_sandbox import Sandbox
from tests.cli.fake_server import fake_server
from tests.core.lake_runs import Bench

NUMBER = "+886911425977"
MAIL = ["email", "--to", "a@example.com", "--smtp", "smtp.example.com:2525", "--user", "u@example.com"]
SECRETS = {
    "IMBRACE_SMTP_PASSWORD": "password",
    "IMBRACE_SLACK_URL": "https://hooks.slack.com/services/T/B/C",
    "IMBRACE_TEAMS_URL": "https://teams.example.com/workflows/1?sig=1",
}
USES_PREFECT = [
    ["demo"],
    ["export", NUMBER],
    ["backfill", NUMBER],
    ["plan", NUMBER],
    ["check"],
    ["verify", "--counts"],
    ["freshness"],
    ["up"],
    ["setup"],
    ["budget"],
    ["budget", "5"],
    ["notify"],
    ["notify", "slack"],
    ["notify", "slack", "--test"],
    ["notify", "teams", "--remove"],
    ["notify", "teams"],
    ["notify", *MAIL],
]
NEEDS_NO_PREFECT = [["verify"], ["repair"], ["sql", "SELECT 1"], ["compact", "--dry-run"], ["new-key"]]

# Prefect itself is not imported: each command ends where it would be.
PROGRAM = """
import json, os, sys

class Reached(BaseException):
    pass

class Watch:
    def find_spec(self, name, *_):
        if name == "prefect":
            raise Reached(os.environ.get("PREFECT_SERVER_EPHEMERAL_ENABLED"))

from imbrace_cli.main import main
sys.meta_path.insert(0, Watch())
before, found = dict(os.environ), []
for arguments in json.load(sys.stdin):
    try:
        found.append(f"ended with {main(arguments)}")
    except Reached as reached:
        found.append("prepared" if reached.args == ("false",) else "not prepared")
    os.environ.clear()
    os.environ.update(before)
print(json.dumps(found), file=sys.stderr)
"""


@pytest.mark.slow
def test_no_command_imports_prefect_before_its_environment_is_set(
    settings: dict[str, str], box: Sandbox
) -> None:
    Bench(box, settings["IMBRACE_LAKE"]).run()
    commands = [*USES_PREFECT, *NEEDS_NO_PREFECT]
    with fake_server(200, '"3.9.1"') as url:
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM],
            env={**os.environ, **SECRETS, "PREFECT_API_URL": url},
            input=json.dumps(commands),
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    found = dict(zip(map(" ".join, commands), json.loads(done.stderr.splitlines()[-1]), strict=True))
    assert {name for name, *_ in commands} | {"sandbox"} == set(_COMMANDS)
    assert found == {" ".join(one): "prepared" for one in USES_PREFECT} | {
        # There is a lake with its lake.json already.
        " ".join(one): "ended with 1" if one == ["new-key"] else "ended with 0"
        for one in NEEDS_NO_PREFECT
    }
