"""A backfill leaves the same lake whether the command line or a deployment's parameters started it."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from imbrace_cli.local_server import LocalServer
from imbrace_sandbox import Sandbox, SandboxOptions
from tests.acceptance.exporter import ROOT, Exporter, settings_for, write_phones
from tests.acceptance.lakes import messages_in
from tests.acceptance.runner import OURS
from tests.acceptance.scale import IS_FULL
from tests.acceptance.served import DEPLOYMENT
from tests.prefect_api import send

TRIES = {"tries": "2", "task_retries": "0"}


@dataclass(frozen=True)
class Stage:
    """An outdated lake, and both ways to start a backfill.

    Attributes:
        base: The lake; each run gets a copy.
        behind: A conversation that is missing in the lake, because it failed in its first run.
        changed: A conversation with new messages, a deletion, and an edit that no look-back reaches.
        window: A part of `behind`.
        run_id: The run in which `behind` failed.
    """

    box: Sandbox
    server: LocalServer
    exporter: Exporter
    base: Path
    environment: dict[str, str]
    phones: str
    behind: str
    changed: str
    window: tuple[str, str]
    run_id: str

    def copy(self, name: str) -> Path:
        """Return another copy of the lake."""
        return Path(shutil.copytree(self.base, self.base.parent / name))

    def by_command(self, lake: Path, *arguments: str) -> dict[str, Any]:
        """Run the command and return its summary."""
        return self.exporter.command(self.environment, "backfill", *arguments, "--lake", str(lake))

    def by_flow(self, lake: Path, params: Mapping[str, object]) -> tuple[str, str]:
        """Run the flow with the parameters of the deployment, and return its state and message."""
        return self.exporter.backfill(self.environment, parameters_of(lake, params))

    def by_deployment(self, lake: Path, params: Mapping[str, object]) -> str:
        """Start a run of the deployment, its parameters in JSON, and return its id."""
        api = self.server.api_url
        name = f"{api}/deployments/name/backfill-conversations/{DEPLOYMENT}"
        deployment = httpx.get(name).raise_for_status().json()["id"]
        body = {"parameters": parameters_of(lake, params)}
        return str(send("POST", f"{api}/deployments/{deployment}/create_flow_run", body).json()["id"])

    def end_of(self, run_id: str) -> tuple[str, str]:
        """Wait for a run's end and return its state and message."""
        deadline = time.monotonic() + 1_800
        while time.monotonic() < deadline:
            state = httpx.get(f"{self.server.api_url}/flow_runs/{run_id}").json()["state"]
            if state["type"] in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED"):
                break
            time.sleep(0.5)
        return state["name"], state["message"]


def parameters_of(lake: Path, params: Mapping[str, object]) -> dict[str, Any]:
    return {"params": dict(params), "lake": {"url": str(lake)}}


@pytest.fixture(scope="module")
def stage(
    prefect_server: LocalServer, exporter: Exporter, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stage]:
    folder = tmp_path_factory.mktemp("modes")
    foreign = ("PREFECT_", "COVERAGE_", *OURS)
    clean = {name: text for name, text in os.environ.items() if not name.startswith(foreign)}
    with Sandbox(SandboxOptions(conversations=12, sizes=(250, 130))) as box:
        environment = settings_for(box, folder / "base", **TRIES)
        behind, changed = list(box.conversations)[:2]
        phones = write_phones(folder / "phones.txt", box.phones)
        box.break_conversation(behind, "400")
        first = exporter.command(environment, "backfill", "--conversation", behind, "--conversation", changed)
        assert first["status"] == "partial"
        second = exporter.command(environment, "export", "--phones", phones)
        assert second["status"] in ("complete", "partial")
        box.repair(behind)
        ids = [item["_id"] for item in box.truth(changed)]
        box.edit(changed, [ids[3]])
        box.delete(changed, 1)
        box.append(changed, 2)
        times = [item["created_at"] for item in box.truth(behind)]
        with subprocess.Popen(
            [sys.executable, "-m", "tests.acceptance.served",
             prefect_server.api_url, str(prefect_server.directory)],
            env={
                **clean, **environment,
                "HOME": str(folder), "PYTHONPATH": str(ROOT), "PREFECT_RUNNER_POLL_FREQUENCY": "1",
            },
            cwd=folder,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        ) as serving:  # fmt: skip
            stage = Stage(
                box, prefect_server, exporter, folder / "base", environment, phones, behind, changed,
                (times[60], times[200]), first["run_id"],
            )  # fmt: skip
            _wait_for_deployment(prefect_server)
            yield stage
            serving.terminate()


def _wait_for_deployment(server: LocalServer) -> None:
    deadline = time.monotonic() + 600
    name = f"{server.api_url}/deployments/name/backfill-conversations/{DEPLOYMENT}"
    while httpx.get(name).status_code != 200:
        assert time.monotonic() < deadline, "the deployment is not served"
        time.sleep(0.5)


def rows_in(lake: Path) -> list[dict[str, Any]]:
    """Return the rows of a lake without the times of deletions, which differ between runs."""
    return [{name: row[name] for name in row if name != "deleted_at"} for row in messages_in(lake)]


SOURCES = ["everything", "phones", "conversations", "rerun"]
SPANS = ["whole", "window", "new only"]
# By default each source and each span at least once.
SOME = [("everything", "whole"), ("phones", "whole"), ("conversations", "window"), ("rerun", "new only")]
# A run of a deployment is a process, which takes long; by default there is one, with the most parameters.
SERVED = ("conversations", "window")


@pytest.mark.parametrize(("source", "span"), [*itertools.product(SOURCES, SPANS)] if IS_FULL else SOME)
def test_command_line_and_deployment_leave_the_same_lake(source: str, span: str, stage: Stage) -> None:
    ids = write_phones(stage.base.parent / "ids.txt", [stage.behind, stage.changed])
    given: dict[str, tuple[list[str], dict[str, object]]] = {
        "everything": (["--everything"], {"everything": True}),
        "phones": (["--phones", stage.phones], {"phones": stage.phones}),
        "conversations": (["--conversations", ids], {"conversations": ids}),
        "rerun": (["--rerun", stage.run_id], {"rerun": stage.run_id}),
    }
    since, until = stage.window
    spans: dict[str, tuple[list[str], dict[str, object]]] = {
        "whole": ([], {}),
        "window": (["--since", since, "--until", until], {"since": since, "until": until}),
        "new only": (["--new-only"], {"walk_whole": False}),
    }
    arguments, params = given[source]
    more_arguments, more_params = spans[span]
    mine, theirs = stage.copy(f"{source}-{span}-command"), stage.copy(f"{source}-{span}-deployment")

    if IS_FULL or (source, span) == SERVED:
        run_id = stage.by_deployment(theirs, {**params, **more_params})
        summary = stage.by_command(mine, *arguments, *more_arguments)
        ended = stage.end_of(run_id)
    else:
        ended = stage.by_flow(theirs, {**params, **more_params})
        summary = stage.by_command(mine, *arguments, *more_arguments)

    assert summary["status"] == "complete", summary["reason"]
    # Of a window, the message states the span.
    reason = summary["reason"] if span == "window" else "every conversation is complete"
    assert ended == ("Completed", reason), ended
    assert rows_in(mine) == rows_in(theirs)
    assert rows_in(mine) != rows_in(stage.base)
    if span == "whole" and source != "rerun":
        _check(stage, mine, (stage.behind, stage.changed))


def _check(stage: Stage, lake: Path, conversations: tuple[str, ...]) -> None:
    """Compare conversations in a lake with the fake gateway."""
    rows = [row for row in messages_in(lake) if row["conversation_id"] in conversations]
    live = {row["message_id"]: json.loads(row["content"]) for row in rows if not row["is_deleted"]}
    assert live == {item["_id"]: item["content"] for one in conversations for item in stage.box.truth(one)}
