"""Files that no test can run: they have to agree with what they describe."""

from __future__ import annotations

import json
import re
import tomllib
from datetime import timedelta
from typing import Any

import pytest
from prefect.events.schemas.automations import EventTrigger
from ruamel.yaml import YAML

from imbrace_deployments.automations import SILENCE, TAG, automations
from imbrace_deployments.worker import RESTARTING
from imbrace_flows.pipeline import UNREADABLE
from tests.deployments.operator import ROOT


def read(path: str) -> Any:
    """Read a YAML file of the project."""
    return YAML(typ="safe").load(ROOT / path)


@pytest.fixture(scope="module")
def deployments() -> list[dict[str, Any]]:
    """The entries of prefect.yaml."""
    return list(read("prefect.yaml")["deployments"])


def test_a_run_is_considered_dead_after_three_missing_heartbeats(
    deployments: list[dict[str, Any]],
) -> None:
    environments = [one["work_pool"]["job_variables"]["env"] for one in deployments]

    heartbeats = {timedelta(seconds=int(one["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"])) for one in environments}
    assert {3 * heartbeat for heartbeat in heartbeats} == {SILENCE}


def test_a_run_that_ended_or_waits_is_not_considered_dead() -> None:
    (mark, *_) = automations()
    assert isinstance(mark.trigger, EventTrigger)

    names = [UNREADABLE, "Completed", "Partial", "Failed", "Differs", "Declined", "Suspended", RESTARTING]
    assert {f"prefect.flow-run.{name}" for name in names} <= mark.trigger.expect


def test_every_deployment_is_watched_bounded_and_explained(deployments: list[dict[str, Any]]) -> None:
    for one in deployments:
        assert TAG in one["tags"]
        if one["name"] != "export-shard":  # as many at a time as the workers have slots for
            assert one["concurrency_limit"]["collision_strategy"] in ("ENQUEUE", "CANCEL_NEW")
        assert one["enforce_parameter_schema"] is True
        assert "**" in one["description"]


def test_no_ending_of_a_run_counts_as_silence() -> None:
    mark, *_ = automations()

    # The names of the final states of our flows, beside Prefect's own.
    assert isinstance(mark.trigger, EventTrigger)
    assert {"prefect.flow-run.Partial", "prefect.flow-run.Failed", "prefect.flow-run.Cancelled"} <= set(
        mark.trigger.expect
    )


def test_the_image_contains_every_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = {
        path.partition("/")[0] for path in project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    }

    lines = (ROOT / "deployments/docker/Dockerfile.dockerignore").read_text().splitlines()
    kept = {line[1:] for line in lines if line.startswith("!")}
    assert {*packages, "pyproject.toml", "uv.lock", "prefect.yaml"} <= kept
    assert all((ROOT / name).exists() for name in kept)


def test_a_pod_runs_the_image_without_privileges() -> None:
    template = json.loads((ROOT / "deployments/kubernetes/base-job-template.json").read_text())

    pod = template["job_configuration"]["job_manifest"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["image"] == "{{ image }}"
    assert container["env"] == "{{ env }}"
    assert pod["securityContext"]["runAsUser"] == 10001
    assert "USER 10001" in (ROOT / "deployments/docker/Dockerfile").read_text()


def test_compose_asks_for_every_secret_and_contains_none() -> None:
    text = (ROOT / "deployments/docker/compose.yaml").read_text()
    names = [
        line.partition("=")[0]
        for line in (ROOT / "deployments/docker/example.env").read_text().splitlines()
        if line and not line.startswith("#")
    ]

    for name in names:
        assert f"${{{name}" in text
    for service in read("deployments/docker/compose.yaml")["services"].values():
        for name, value in service.get("environment", {}).items():
            if name.endswith(("TOKEN", "PASSWORD", "KEY", "KEY_ID")):
                assert value.startswith("${")


def test_the_guide_protects_a_server_as_the_compose_file_does() -> None:
    guide, _, _ = (ROOT / "docs" / "deployments.md").read_text(encoding="utf-8").partition("server start")
    exported = dict(re.findall(r"^export (PREFECT_SERVER_\w+)=(\S+)", guide, re.MULTILINE))

    composed = read("deployments/docker/compose.yaml")["services"]["server"]["environment"]
    assert exported.pop("PREFECT_SERVER_API_AUTH_STRING")
    assert exported.pop("PREFECT_SERVER_DATABASE_CONNECTION_URL")
    assert "PREFECT_AUTH_STRING:?" in composed["PREFECT_SERVER_API_AUTH_STRING"]
    assert len(exported) == 4
    assert exported == {name: composed[name] for name in exported}


def test_images_of_others_are_pinned_by_digest() -> None:
    services = read("deployments/docker/compose.yaml")["services"].values()
    dockerfile = (ROOT / "deployments/docker/Dockerfile").read_text(encoding="utf-8")
    built_from = re.findall(r"^(?:FROM |COPY --from=|# syntax=)(\S+)", dockerfile, re.MULTILINE)

    images = {*built_from, *(service["image"] for service in services)} - {"build", "imbrace-lake"}
    assert len(images) == 5
    for image in images:
        assert re.fullmatch(r"[\w./-]+:[\w.-]*\d[\w.-]*@sha256:[0-9a-f]{64}", image), image
