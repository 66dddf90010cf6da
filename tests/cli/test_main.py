"""The command `imbrace-lake`: help, wrong use and exit codes."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import pytest

from imbrace_cli import plan as plan_command
from imbrace_cli.main import _command, main
from imbrace_cli.run import Outcome
from imbrace_cli.terminal import as_called, prepare_streams, program
from imbrace_lake.export.run import RunStatus, RunSummary
from tests.cli.conftest import Run

ROOT = Path(__file__).parents[2]
CRASHES = (-signal.SIGSEGV, -signal.SIGABRT, -signal.SIGBUS)
COMMANDS = ("demo", "export", "plan", "check", "sandbox", "server")


def test_the_version_is_that_of_the_package(run: Run) -> None:
    result = run("--version")

    assert (result.code, result.out) == (0, f"imbrace-lake {version('imbrace-lake')}\n")


def test_only_the_command_that_is_called_is_built() -> None:
    assert _command(["export", "--help"]).commands.keys() == {"export"}
    assert _command(["server", "stop"]).commands.keys() == {"server"}
    assert _command(["--help"]).commands.keys() > {*COMMANDS}
    assert _command([]).commands.keys() == _command(["unknown"]).commands.keys()


def test_only_the_command_that_is_called_is_loaded() -> None:
    program = """
import sys
from imbrace_cli.main import main
main(["new-key", "--help"])
print(sorted(name for name in sys.modules if name in ("imbrace_cli.compact", "imbrace_cli.new_key")))
"""
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)

    assert answer.stdout.splitlines()[-1] == "['imbrace_cli.new_key']", answer.stderr


def test_the_program_does_not_collect_garbage_while_it_loads_modules_or_ends() -> None:
    program = """
import gc, sys
from imbrace_cli.__main__ import main
sys.argv = ["imbrace-lake", "--version"]
main()
print(gc.isenabled(), gc.get_threshold()[0] > 10_000, gc.get_freeze_count() > 10_000)
"""
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)

    assert answer.stdout.splitlines()[-1] == "True True True", answer.stderr


@pytest.mark.parametrize("arguments", [(), ("--help",)])
def test_without_a_command_the_commands_are_listed(arguments: tuple[str, ...], run: Run) -> None:
    result = run(*arguments)

    assert result.code == 0
    assert all(command in result.out for command in COMMANDS)
    assert result.err == ""


@pytest.mark.parametrize("command", COMMANDS[:-1])
def test_the_help_of_each_command_has_examples(command: str, run: Run) -> None:
    result = run(command, "--help")

    assert result.code == 0
    assert f"  imbrace-lake {command}" in result.out


def _answer_of_another_process(command: list[str], folder: Path, **environment: str) -> str:
    variables = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True).stderr


@pytest.mark.parametrize("named", ["./dev run", "uvx --from imbrace-lake imbrace-lake"])
def test_help_and_hints_call_the_program_as_the_environment_names_it(named: str, run: Run) -> None:
    os.environ["IMBRACE_CALLED_AS"] = named

    assert f"Usage: {named} export [OPTIONS]" in run("export", "--help").out
    assert f"  {named} export --rerun RUN_ID" in run("export", "--help").out
    assert f"(see {named} export --help)" in run("export", "--xyz").err
    # This hint comes from the core.
    assert f"run `{named} new-key`" in as_called("run `imbrace-lake new-key`")


@pytest.mark.slow
def test_hints_call_the_program_as_the_user_typed_it(workdir: Path) -> None:
    place, name = Path(sys.executable).parent, Path(sys.executable).name
    program = workdir / "imbrace-lake"
    program.symlink_to(place / "imbrace-lake")
    on_path = {"PATH": f"{place}{os.pathsep}{os.environ['PATH']}"}

    def hint(*command: str, **environment: str) -> str:
        return _answer_of_another_process([*command, "fly"], workdir, **environment)

    assert "(see imbrace-lake --help)" in hint("imbrace-lake", **on_path)
    assert "(see ./imbrace-lake --help)" in hint("./imbrace-lake")
    assert f"(see {name} -m imbrace_cli --help)" in hint(name, "-m", "imbrace_cli", **on_path)
    assert f"(see {sys.executable} -m imbrace_cli" in hint(
        sys.executable, "-m", "imbrace_cli", PATH="/usr/bin:/bin"
    )


def test_a_program_in_an_environment_of_uvx_is_called_by_uvx(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("IMBRACE_CALLED_AS", raising=False)
    monkeypatch.setattr(sys, "prefix", "/home/me/.cache/uv/archive-v0/1Kf2x")
    monkeypatch.setattr(sys, "argv", ["/home/me/.cache/uv/archive-v0/1Kf2x/bin/imbrace-lake"])

    assert program() == "uvx imbrace-lake"


@pytest.mark.parametrize(
    "text", ["s3://bucket/imbrace-lake export", "imbrace-lake 0.1.0", "install a newer imbrace-lake, set"]
)
def test_only_commands_are_shown_as_called(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMBRACE_CALLED_AS", "./dev run")

    assert as_called(text) == text


def test_the_server_commands_are_listed(run: Run) -> None:
    assert "status" in run("server").out


@pytest.mark.parametrize(
    ("arguments", "reported"),
    [
        (["fly"], "No such command 'fly' (see imbrace-lake --help)"),
        (["export", "--xyz"], "No such option: --xyz (see imbrace-lake export --help)"),
        (["export", "--chunk-size", "0"], "'--chunk-size'"),
        (["demo", "--conversations", "many"], "'--conversations'"),
        (
            ["export", "--phones", "a.csv", "--phones=b.csv"],
            "--phones is given 2 times, and one is read: name a",
        ),
        (
            ["backfill", "--rerun", "r1", "--rerun", "r2"],
            "--rerun is given 2 times, and one is read: call the",
        ),
    ],
)
def test_wrong_use_is_one_sentence(arguments: list[str], reported: str, run: Run) -> None:
    result = run(*arguments)

    assert result.code == 2
    assert result.out == ""
    assert result.err.startswith("error: ")
    assert result.err.count("\n") == 1
    assert reported in result.err


@pytest.mark.parametrize("arguments", [["--token", "api_secret"], ["--token=api_secret"]])
def test_a_token_as_an_argument_is_rejected_and_not_repeated(arguments: list[str], run: Run) -> None:
    result = run("export", *arguments)

    assert result.code == 2
    assert "set IMBRACE_TOKEN" in result.err
    assert "api_secret" not in result.err


@pytest.mark.parametrize(
    ("status", "code"), [("complete", 0), ("partial", 3), ("failed", 1), ("cancelled", 1)]
)
def test_the_exit_code_of_a_run_is_that_of_its_status(status: RunStatus, code: int) -> None:
    summary = RunSummary("run_1", "org_1", "./lake", datetime(2026, 1, 1, tzinfo=UTC), status)

    assert Outcome(summary, []).exit_code == code


def test_ctrl_c_is_one_sentence(run: Run, settings: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(plan_command, "_made", interrupt)

    result = run("plan", "+886911425977")

    assert result.code == 130
    assert result.err == "interrupted: run the same command to start again\n"


def test_ctrl_c_that_a_library_turns_into_an_error_is_one_sentence_too(
    run: Run, settings: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def convert(*_: object) -> None:
        try:
            os.kill(os.getpid(), signal.SIGINT)
        except KeyboardInterrupt:
            raise ValueError("from a callback") from None

    monkeypatch.setattr(plan_command, "_made", convert)

    result = run("plan", "+886911425977")

    assert (result.code, result.err) == (130, "interrupted: run the same command to start again\n")


def test_a_bug_shows_its_traceback(
    workdir: Path, settings: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(plan_command, "_made", fail)

    with pytest.raises(ZeroDivisionError):
        main(["plan", "+886911425977"])


def test_a_stream_that_cannot_be_changed_stays_unchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", object())

    prepare_streams()


def _caused(by: Exception) -> Exception:
    exc = ValueError("wrapped")
    exc.__cause__ = by
    return exc


@pytest.mark.usefixtures("settings")
@pytest.mark.parametrize(
    "exc",
    [
        MemoryError(), OSError(errno.ENOMEM, "No memory"), RuntimeError("can't start new thread"),
        ImportError("libparquet.so.2600: failed to map segment from shared object"),
        ImportError("libc.so.6: cannot allocate memory in static TLS block"), _caused(MemoryError()),
    ],
)  # fmt: skip
def test_a_lack_of_memory_is_one_sentence(exc: Exception, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise exc

    monkeypatch.setattr(plan_command, "_made", fail)

    result = run("plan", "+886911425977")

    assert result.code == 1
    assert result.err.startswith("error: this process gets no more memory")
    assert "Traceback" not in result.err


@pytest.mark.usefixtures("settings")
@pytest.mark.parametrize(
    ("exc", "sentence"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "the output cannot be written: no space is left"),
        (
            ImportError("Using SOCKS proxy, but the 'socksio' package is not installed."),
            "a SOCKS proxy needs the package socksio: install it, or set another proxy in HTTP_PROXY",
        ),
        (
            RuntimeError("Found incompatible versions: client: 3.9.1, server: 2.20.3. Major versions differ"),
            "the Prefect server cannot be used: Found incompatible versions: client: 3.9.1, server: 2.20.3",
        ),
    ],
)
def test_what_the_environment_explains_is_one_sentence(
    exc: Exception, sentence: str, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise exc

    monkeypatch.setattr(plan_command, "_made", fail)
    monkeypatch.setenv("HTTP_PROXY", "socks5://name:password@127.0.0.1:1")
    monkeypatch.setenv("NO_PROXY", "*")

    result = run("plan", "+886911425977")

    assert result.code == 1
    assert result.err.startswith(f"error: {sentence}")
    assert "Traceback" not in result.err


@pytest.mark.usefixtures("settings")
def test_another_error_is_not_reported_as_a_lack_of_memory(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(plan_command, "_made", fail)

    with pytest.raises(RuntimeError, match="a bug"):
        run("plan", "+886911425977")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not enforce the limit")
def test_a_process_with_limited_memory_reports_it_without_a_traceback(workdir: Path) -> None:
    # OpenBLAS needs memory for each core, and ends the process itself when it gets none.
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"}
    for megabytes in range(230, 300, 10):
        limited = f"ulimit -v {megabytes * 1024}; exec {sys.executable} -m imbrace_cli verify --lake ./lake"
        done = subprocess.run(["bash", "-c", limited], capture_output=True, text=True, env=environment)
        # Depending on the limit and on chance, a native library that does not check for memory crashes, or
        # the interpreter's own clean-up of a lock fails.
        if done.returncode not in CRASHES and "Exception ignored in" not in done.stderr:
            break

    assert done.returncode == 1
    assert f"ulimit -v allows {megabytes} MB" in done.stderr
    assert len(done.stderr.splitlines()) == 1
