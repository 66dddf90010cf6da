"""The content of the distributions, and their use beside other projects."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from dataclasses import dataclass
from email import message_from_bytes
from email.message import Message
from pathlib import Path

import httpx
import pytest

from imbrace_deployments.deploy import PREFECT_FILE
from imbrace_sandbox import Sandbox, SandboxOptions
from tests.acceptance.scale import IS_FULL
from tests.packaging.conftest import ROOT, Uv

PACKAGES = ("cli", "deployments", "flows", "sandbox", "tasks")
THEIR_PROJECT = f"""
[project]
name = "their-project"
version = "1"
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"
[tool.hatch.build.targets.wheel]
packages = {json.dumps(PACKAGES)}
"""
THEIR_FLOW = """
from prefect import flow

@flow
def greet() -> str:
    return "theirs"
"""
LOOK = """
import importlib, json, sys
from prefect.flows import load_flow_from_entrypoint
print(json.dumps({
    "files": {name: importlib.import_module(name).__file__ for name in sys.argv[1].split()},
    "flows": [load_flow_from_entrypoint(entrypoint).name for entrypoint in sys.argv[2].split()],
}))
"""


def files(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if ".dist-info/" not in name}


def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        return message_from_bytes(archive.read(name))


def test_the_wheel_contains_only_packages_named_imbrace(wheel: Path) -> None:
    packages = {name.partition("/")[0] for name in files(wheel)}

    assert packages == {"imbrace_lake", *(f"imbrace_{name}" for name in PACKAGES)}
    assert {f"{package}/py.typed" for package in packages} <= files(wheel)


def test_a_wheel_from_the_sdist_equals_one_from_the_repository(uv: Uv, wheel: Path, tmp_path: Path) -> None:
    uv("build", "--quiet", "--wheel", "--python", sys.executable, "--out-dir", tmp_path, ROOT)

    (direct,) = tmp_path.glob("*.whl")
    assert files(direct) == files(wheel)


def test_both_distributions_have_the_version_and_the_license_of_the_project(
    wheel: Path, sandbox_wheel: Path
) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

    for one in (metadata(wheel), metadata(sandbox_wheel)):
        assert one["Version"] == project["version"]
        assert one["License-Expression"] == "Apache-2.0"
        assert one["License-File"] == "LICENSE"
        assert "Typing :: Typed" in one.get_all("Classifier", [])
        assert one.get_all("Project-URL")
    assert (ROOT / "sandbox" / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()
    ours = set(metadata(wheel).get_all("Requires-Dist", []))
    assert set(metadata(sandbox_wheel).get_all("Requires-Dist", [])) < ours


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A project with packages named like our folders, and an environment with it and our wheel."""

    project: Path
    place: Path
    environment: dict[str, str]

    def run(self, program: str, *arguments: str, cwd: Path | None = None, **environment: str) -> str:
        """Run a program of the environment, by default in the project's folder; return its output."""
        done = subprocess.run(
            [str(self.place / "bin" / program), *arguments],
            cwd=cwd or self.project,
            env=self.environment | environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def neighbour(uv: Uv, wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Neighbour:
    """The project, installed beside imbrace-lake and what uv.lock lists.

    By default that is what the tests have, without our packages: to install and compile it takes long.
    """
    folder = tmp_path_factory.mktemp("beside")
    project, place = folder / "project", folder / "venv"
    for name in PACKAGES:
        (project / name).mkdir(parents=True)
        (project / name / "__init__.py").write_text("")
    (project / "flows" / "export.py").write_text(THEIR_FLOW)
    (project / "pyproject.toml").write_text(THEIR_PROJECT)
    if IS_FULL:
        uv(
            *("sync", "--quiet", "--locked", "--no-dev", "--no-install-project", "--python", sys.executable),
            UV_PROJECT_ENVIRONMENT=str(place),
        )
    else:
        uv.environment_at(place)
        (site,) = place.glob("lib/python3.*/site-packages")
        # Files like this one are not read in the folder that it names, so our packages stay out.
        (site / "locked.pth").write_text(sysconfig.get_path("purelib"))
    uv("pip", "install", "--quiet", "--no-deps", "--python", place / "bin" / "python", wheel, project)
    return Neighbour(project, place, uv.environment)


@pytest.mark.parametrize("is_in_project", [True, False], ids=["in the project", "elsewhere"])
def test_a_project_with_packages_named_like_our_folders_and_ours_are_imported_side_by_side(
    neighbour: Neighbour, tmp_path: Path, is_in_project: bool
) -> None:
    ours = ["imbrace_lake", *(f"imbrace_{name}" for name in PACKAGES)]
    deployed = neighbour.run("python", "-c", "from imbrace_deployments.deploy import *; print(PREFECT_FILE)")
    entrypoints = re.findall(r"entrypoint: (\S+)", Path(deployed.strip()).read_text(encoding="utf-8"))
    folder = neighbour.project if is_in_project else tmp_path

    names, flows = " ".join([*PACKAGES, *ours]), " ".join(["flows.export.greet", *entrypoints])
    look = json.loads(neighbour.run("python", "-c", LOOK, names, flows, cwd=folder))

    theirs = neighbour.project if is_in_project else neighbour.place
    assert all(look["files"][name].startswith(f"{theirs}/") for name in PACKAGES)
    assert all(look["files"][name].startswith(f"{neighbour.place}/") for name in ours)
    assert look["flows"][:2] == ["greet", "export-conversations"]
    assert len(look["flows"]) >= 8


def test_the_command_line_works_in_a_project_with_packages_named_like_our_folders(
    neighbour: Neighbour, tmp_path: Path
) -> None:
    with Sandbox(SandboxOptions(conversations=3)) as box:
        planned = neighbour.run(
            *("imbrace-lake", "plan", *box.phones, "--lake", str(tmp_path / "lake")),
            *("--gateway", box.url, "--organization", box.options.organization_id),
            IMBRACE_TOKEN=box.options.token,
        )

    assert "3 new to the lake" in planned


def test_setup_creates_the_deployments_of_the_wheel_or_of_the_clone(neighbour: Neighbour) -> None:
    look = "from imbrace_deployments.deploy import PREFECT_FILE; print(PREFECT_FILE)"

    path = Path(neighbour.run("python", "-c", look).strip())

    assert path.is_relative_to(neighbour.place)
    assert path.read_bytes() == (ROOT / "prefect.yaml").read_bytes()
    assert PREFECT_FILE == ROOT / "prefect.yaml"


def test_the_fake_gateway_can_be_installed_alone(uv: Uv, sandbox_wheel: Path, tmp_path: Path) -> None:
    programs = uv.environment_at(tmp_path / "venv")
    uv("pip", "install", "--quiet", "--python", programs / "python", sandbox_wheel)

    with subprocess.Popen(
        [programs / "imbrace-sandbox", "--port", "0", "--conversations", "0", "--sizes", "5,7"],
        cwd=tmp_path,
        env=uv.environment,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            lines = [process.stdout.readline() for _ in range(8)]
            gateway = lines[2].split()[1]
            answer = httpx.get(f"{gateway.removesuffix('/3rd')}/_sandbox/conversations")
        finally:
            process.terminate()

    assert process.returncode == 0
    assert sorted(answer.json().values()) == [5, 7]


@pytest.mark.skipif(not IS_FULL, reason="installs everything again: IMBRACE_ACCEPTANCE=full")
def test_uvx_runs_the_demo_from_the_wheel_alone(uv: Uv, wheel: Path, tmp_path: Path) -> None:
    run = ("tool", "run", "--python", sys.executable, "--from", str(wheel), "imbrace-lake")
    try:
        output = uv(*run, "demo", "--conversations", "20", cwd=tmp_path)
    finally:
        uv(*run, "server", "stop", cwd=tmp_path)

    assert "Run it again:" in output
    assert list((tmp_path / "lake" / "messages").rglob("*.parquet"))
