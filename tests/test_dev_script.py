"""`./dev`, with a small program instead of uv, so that nothing is downloaded."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "dev"
FAKE_UV = """#!/bin/sh
[ "$1" = --version ] && exit
[ -f "$UV_PROJECT_ENVIRONMENT/broken" ] && exit 2
echo "uv ${VIRTUAL_ENV-no environment} $UV_PYTHON_DOWNLOADS $*" >>"$UV_PROJECT_ENVIRONMENT/calls"
case $1 in
venv)
    for place; do :; done
    mkdir -p "$place/bin"
    cp "$UV_PROJECT_ENVIRONMENT/bin/imbrace-lake" "$place/bin"
    ;;
pip) echo "prefect 3" ;;
esac
"""
FAKE_PROGRAM = """#!/bin/sh
printf '%s|' "$(pwd -P)" "$IMBRACE_HOME" "$@"
"""


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository without its packages, at a path with a space."""
    root = tmp_path.resolve() / "my repository"
    for program, text in ((".uv/bin/uv", FAKE_UV), (".venv/bin/imbrace-lake", FAKE_PROGRAM)):
        (root / program).parent.mkdir(parents=True)
        (root / program).write_text(text)
        (root / program).chmod(0o755)
    (root / ".venv/bin/python").symlink_to(sys.executable)
    (root / "pyproject.toml").write_text("")
    (root / "uv.lock").write_text("one")
    shutil.copy2(SCRIPT, root / "dev")
    return root


def dev(
    repository: Path, *arguments: str, cwd: Path | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if name != "IMBRACE_HOME"}
    return subprocess.run(
        [str(repository / "dev"), *arguments],
        cwd=cwd or repository,
        env={**inherited, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


def calls(repository: Path) -> list[str]:
    path = repository / ".venv" / "calls"
    return path.read_text().splitlines() if path.exists() else []


def test_arguments_and_the_callers_folder_reach_the_program(repository: Path, tmp_path: Path) -> None:
    run = dev(repository, "run", "export", "two words", "*", cwd=tmp_path)

    assert run.returncode == 0
    assert run.stdout == f"{tmp_path.resolve()}|{repository}/.imbrace-lake|export|two words|*|"


def test_the_demo_runs_in_the_repository(repository: Path, tmp_path: Path) -> None:
    run = dev(repository, "demo", cwd=tmp_path, IMBRACE_HOME="elsewhere")

    assert run.stdout == f"{repository}|elsewhere|demo|"


def test_packages_are_installed_once_and_again_when_the_lock_changes(repository: Path) -> None:
    assert dev(repository, "run", VIRTUAL_ENV="foreign").returncode == 0
    (first,) = calls(repository)
    assert first.startswith("uv no environment never sync --locked")
    assert "--no-dev --inexact --extra query --extra tables" in first

    assert dev(repository, "demo").returncode == 0
    assert len(calls(repository)) == 1

    (repository / "uv.lock").write_text("two")
    assert dev(repository, "run").returncode == 0
    assert len(calls(repository)) == 2


def test_packages_that_cannot_be_installed_are_tried_again(repository: Path) -> None:
    (repository / ".venv" / "broken").touch()

    run = dev(repository, "run")
    assert run.returncode == 1
    assert "./dev: the packages could not be installed" in run.stderr

    (repository / ".venv" / "broken").unlink()
    assert dev(repository, "run").returncode == 0


@pytest.fixture
def checks(repository: Path) -> Callable[..., None]:
    """Replace the programs of all checks by ones that print their arguments and end with these codes."""
    (repository / "tools").mkdir()
    (repository / "tools/prose.py").touch()

    def replace(**codes: int) -> None:
        for program in ("ruff", "mypy", "lint-imports", "codespell", "pytest"):
            path = repository / ".venv" / "bin" / program
            path.write_text(f"#!/bin/sh\necho {program} $*\nexit {codes.get(program, 0)}\n")
            path.chmod(0o755)

    return replace


def test_the_first_failing_check_ends_the_test(repository: Path, checks: Callable[..., None]) -> None:
    checks(codespell=3)

    run = dev(repository, "test", "-k", "x")

    assert run.returncode == 3
    assert run.stdout.split("\n== ")[1:] == [
        "format\nruff format --check .\n",
        "lint\nruff check .\n",
        "import contracts\nlint-imports\n",
        "spelling\ncodespell\n",
    ]

    checks(pytest=4)
    assert dev(repository, "test").returncode == 4

    checks()
    run = dev(repository, "test", "-k", "x")
    assert run.returncode == 0
    assert re.search("\npytest -n .* -k x\n", run.stdout)
    assert run.stdout.endswith("\n== types\nmypy\n\n== all checks passed\n")


def test_types_are_checked_beside_the_tests_and_alone(repository: Path, checks: Callable[..., None]) -> None:
    checks(mypy=5)

    run = dev(repository, "test")
    assert run.returncode == 5
    assert "\npytest -n " in run.stdout
    assert run.stdout.endswith("\n== types\nmypy\n")

    assert dev(repository, "lint").returncode == 5

    checks()
    lint = dev(repository, "lint")
    assert lint.returncode == 0
    assert "\n== types\nmypy\n" in lint.stdout
    assert "\n== spelling\ncodespell\n" in lint.stdout


def test_the_fast_tests_need_no_server_and_take_arguments(repository: Path) -> None:
    pytest_program = repository / ".venv" / "bin" / "pytest"
    pytest_program.write_text('#!/bin/sh\nprintf "%s|" "$@"\n')
    pytest_program.chmod(0o755)

    run = dev(repository, "test", "--fast", "-k", "x")

    assert run.returncode == 0
    assert "|-m|not slow and not server|" in run.stdout
    assert run.stdout.endswith("|-k|x|")


def test_the_coverage_of_the_fast_tests_has_a_lower_limit(repository: Path) -> None:
    program = repository / ".venv/bin/coverage"
    program.write_text('#!/bin/sh\necho coverage "$@"\n')
    program.chmod(0o755)

    run = dev(repository, "test", "--coverage")

    assert run.returncode == 0
    assert re.search("\ncoverage run -m pytest -n .* -m not slow and not server", run.stdout)
    assert run.stdout.endswith("coverage combine --quiet\ncoverage report --fail-under=86\n")


def test_the_pictures_of_the_documentation_are_made_again(repository: Path) -> None:
    program = repository / ".venv/bin/pytest"
    program.write_text('#!/bin/sh\nprintf "%s|" "$@"\n')
    program.chmod(0o755)

    run = dev(repository, "docs", "--pictures")

    assert run.returncode == 0
    assert run.stdout == "-n|0|tests/browser/screenshots.py|"
    assert "--all-groups" in calls(repository)[0]


@pytest.mark.slow
def test_the_audit_asks_for_the_locked_packages_and_fails_with_uv(repository: Path) -> None:
    assert dev(repository, "audit", "--no-dev").returncode == 0
    assert (
        f"audit --locked --preview-features audit-command --project {repository} --no-dev"
        in calls(repository)[-1]
    )

    (repository / ".venv/broken").touch()
    failed = dev(repository, "audit")

    assert failed.returncode == 1
    assert failed.stderr.startswith("./dev: the audit found something, or could not ask")


@pytest.mark.slow
def test_the_bill_of_materials_is_made_from_the_lock(repository: Path) -> None:
    assert dev(repository, "sbom").returncode == 0
    assert "export --quiet --locked --format cyclonedx1.5" in calls(repository)[-1]
    assert "--no-dev --all-extras" in calls(repository)[-1]


def test_an_install_without_the_lock_runs_the_demo_from_a_temporary_folder(
    repository: Path, tmp_path: Path
) -> None:
    run = dev(repository, "unlocked", TMPDIR=str(tmp_path))

    assert run.returncode == 0, run.stderr
    _, venv, install, _ = calls(repository)
    place = venv.rpartition(" ")[2].removesuffix("/venv")
    assert install.endswith(f"{place}/venv/bin/python {repository}")
    assert "--locked" not in install
    assert f"{place}|{place}/home|demo|" in run.stdout
    assert run.stdout.endswith(f"/|{place}/home|server|stop|")
    assert not Path(place).exists()


def test_an_install_without_the_lock_that_does_not_work_fails(repository: Path, tmp_path: Path) -> None:
    (repository / ".venv/bin/imbrace-lake").write_text("#!/bin/sh\nexit 3\n")

    run = dev(repository, "unlocked", TMPDIR=str(tmp_path))

    assert run.returncode == 3
    assert "the project works" not in run.stdout


def test_a_missing_python_is_one_sentence(repository: Path, tmp_path: Path) -> None:
    (repository / ".venv" / "bin" / "python").unlink()
    tools = tmp_path / "tools"
    tools.mkdir()
    for tool in ("sh", "dirname", "cat", "cksum", "head", "rm"):
        found = shutil.which(tool)
        assert found is not None
        (tools / tool).symlink_to(found)
    (tools / "python3").write_text("#!/bin/sh\nexit 1\n")
    (tools / "python3").chmod(0o755)

    run = dev(repository, "run", PATH=str(tools))

    assert run.returncode == 1
    assert run.stderr.startswith("./dev: Python 3.11 or newer is needed")
    assert run.stderr.count("\n") == 1


def test_help_is_shown_on_request_and_for_an_unknown_command(repository: Path) -> None:
    assert dev(repository, "help").stdout.startswith("usage: ./dev")
    assert dev(repository).returncode == 0

    unknown = dev(repository, "dmeo")
    assert unknown.returncode == 1
    assert "there is no command dmeo" in unknown.stderr
