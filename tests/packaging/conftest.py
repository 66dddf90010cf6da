"""Distributions built by uv, and environments with only these."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Settings of this process that would change Prefect, imbrace-lake or coverage in the environments.
# uv keeps its settings of indexes and certificates, which the machine may need to reach packages.
FOREIGN = ("COVERAGE_", "IMBRACE_", "PREFECT_", "PYTHON", "UV_PROJECT", "UV_PYTHON", "VIRTUAL_ENV")


class Uv:
    """uv with separate folders, but the usual cache.

    Args:
        program: The path of uv.
        home: The home folder of the programs that uv runs.
    """

    def __init__(self, program: str, home: Path) -> None:
        self._program = program
        self.environment = {name: text for name, text in os.environ.items() if not name.startswith(FOREIGN)}
        # The cache stays where it is, or every test would download hundreds of megabytes.
        if cache := self._run("cache", "dir").stdout.strip():
            self.environment["UV_CACHE_DIR"] = cache
        self.environment |= {
            "HOME": str(home),
            "IMBRACE_HOME": str(home / "imbrace"),
            "PREFECT_HOME": str(home / "prefect"),
            "UV_PYTHON_DOWNLOADS": "never",
            # The system's certificates, by the old and the new name of the setting, as in ./dev.
            "UV_NATIVE_TLS": "1",
            "UV_SYSTEM_CERTS": "1",
        }

    def __call__(self, *arguments: str | Path, cwd: Path = ROOT, **environment: str) -> str:
        """Run uv offline, and with the package index if its cache lacks something; return its output."""
        cached = self._run(*arguments, "--offline", cwd=cwd, **environment)
        done = self._run(*arguments, cwd=cwd, **environment) if cached.returncode else cached
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def environment_at(self, folder: Path) -> Path:
        """Make an empty virtual environment; return its folder of programs."""
        self("venv", "--quiet", "--python", sys.executable, folder)
        return folder / "bin"

    def _run(
        self, *arguments: str | Path, cwd: Path = ROOT, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self._program, *map(str, arguments)],
            cwd=cwd,
            env=self.environment | environment,
            capture_output=True,
            text=True,
            check=False,
        )


@pytest.fixture(scope="session")
def uv(tmp_path_factory: pytest.TempPathFactory) -> Uv:
    """The uv of `./dev`, or else the one on the PATH."""
    program = shutil.which("uv", path=f"{ROOT / '.uv' / 'bin'}{os.pathsep}{os.environ['PATH']}")
    if program is None:
        pytest.skip("no uv in .uv or on the PATH: nothing was built and installed")
    return Uv(program, tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="session")
def wheel(uv: Uv, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of imbrace-lake, built from its sdist."""
    return _built(uv, ROOT, tmp_path_factory.mktemp("lake"))


@pytest.fixture(scope="session")
def sandbox_wheel(uv: Uv, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of the fake gateway alone, built from its sdist."""
    return _built(uv, ROOT / "sandbox", tmp_path_factory.mktemp("sandbox"))


def _built(uv: Uv, project: Path, folder: Path) -> Path:
    # By default uv makes the sdist, and the wheel from that.
    uv("build", "--quiet", "--python", sys.executable, "--out-dir", folder, project)
    assert len(list(folder.glob("*.tar.gz"))) == 1
    (wheel,) = folder.glob("*.whl")
    return wheel
