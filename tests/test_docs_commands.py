"""The commands of the documentation work as they are written.

A test takes every command from the pages: from blocks of code, and from sentences. It replaces the words that
stand for values of the reader, such as `api_…`, and runs the command. Those that do not run here are listed
with their reasons.

A shell runs them; only calls of our program that need nothing of a shell run in this process, because most of
the time of a call is the import of Prefect.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import chdir, redirect_stdout, suppress
from dataclasses import dataclass
from functools import cache
from io import StringIO
from pathlib import Path
from typing import Any
from unittest.mock import patch

import duckdb
import httpx
import pytest
import sqlglot
import typer.main

from imbrace_cli.local_server import LocalServer, ensure_server, keep_alive, stop_server
from imbrace_cli.main import main, make_app
from imbrace_cli.prefect_environment import prepare_client
from imbrace_cli.terminal import PROGRAM
from imbrace_sandbox import Sandbox, SandboxOptions
from tests.cli.conftest import prefect_leaks
from tests.environment import restored_environment
from tests.ports import free_port
from tests.prefect_homes import make_home, one_certificate
from tests.prefect_threads import end_threads
from tools.seaweed import Seaweed

pytestmark = prefect_leaks
ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
NAMES = (
    "README.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "sandbox/README.md",
    "benchmarks/README.md",
    "dbt/README.md",
)
PAGES = [*(ROOT / name for name in NAMES), *sorted((ROOT / "docs").rglob("*.md"))]
NOTEBOOKS = sorted((ROOT / "docs").glob("*.ipynb"))

# Commands begin with one of these programs.
RUN_HERE = ("./dev", PROGRAM, "imbrace-sandbox", "prefect", "python", "curl", "mkdir", "chmod")
# Commands that do not run here begin with one of these patterns.
NOT_HERE = {
    "docker ": "needs a Docker daemon and a registry",
    "git clone ": "needs the network",
    r"apt |pip |(\.uv/bin/)?uv |pre-commit ": "installs, builds or publishes packages",
    r"\./dev (test|lint|docs|unlocked|audit|sbom)": "takes minutes, or needs the network",
    "ruff .* && mypy |pytest -n 4 ": "`./dev test` runs it",
    r"(IMBRACE_TEST_DATABASE=\S+ )?pytest ": "part of the tests, or needs PostgreSQL or a browser",
    "python -m benchmarks": "takes minutes",
    "dbt ": "installs dbt: tests/acceptance/test_dbt.py",
    "imbrace-lake notify (slack|teams|email)": "needs a receiver: tests/deployments/test_notifications.py",
    "prefect deployment run --flow-run-name$": "names an option",
}
# Commands that run until an interrupt, and what they print when they are ready.
ANSWERS = "nothing, but they answer requests"
SERVES = {
    "prefect server start": ANSWERS,
    "prefect worker start": "started!",
    r"(\./dev run|imbrace-lake) up": "worker   ",
    r"(\./dev run|imbrace-lake) sandbox|imbrace-sandbox ": "listens until Ctrl-C",
}
# The situation that a command is for, where it is not that of most commands.
BEFORE = {
    "mkdir lake": "rm -r lake",
    r"(\./dev|imbrace-lake) demo": "rm -rf lake",
    "imbrace-lake new-key": "rm lake/lake.json",
}
INTERRUPTED = 130
PATIENCE_SECONDS = 240
# The README of the fake gateway uses a number of this one.
GENERATED = SandboxOptions(conversations=200, seed=7)
CUSTOMER = "+85262602239"


@dataclass(frozen=True)
class Block:
    """Lines of a page that belong together."""

    page: Path
    line: int
    kind: str
    text: str

    @property
    def name(self) -> str:
        """The address of the block, as an editor opens it."""
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def commands(self) -> list[str]:
        """The commands of a shell block, without comments."""
        lines = (line.strip() for line in self.text.replace("\\\n", " ").splitlines())
        return [re.sub(r"\s+# .*", "", line) for line in lines if line and not line.startswith("#")]


def read_blocks(page: Path) -> Iterator[Block]:
    """Yield the blocks of code of a page."""
    text = page.read_text(encoding="utf-8")
    fenced = r"^```(?P<kind>sh|sql|python|text)\n(?P<code>.*?)^```"
    for found in re.finditer(
        rf"{fenced}|^\n(?P<indented>(?: {{4}}[^\n]+\n)+)", text, re.MULTILINE | re.DOTALL
    ):
        kind, code = found["kind"] or "sh", found["code"] or found["indented"]
        line = text.count("\n", 0, found.start()) + 2
        if kind == "text":
            kind, code = "sh", "".join(re.findall(r"^Examples:\n((?:  .+\n)+)", code, re.MULTILINE))
        # Other indented blocks show folders or answers.
        if code and (found["kind"] or begins_with_a_program(code.strip())):
            yield Block(page, line, kind, code)


def read_spans(page: Path) -> Iterator[Block]:
    """Yield the code within the sentences of a page."""
    text = page.read_text(encoding="utf-8")
    # Line numbers stay the same.
    text = re.sub(
        "^```.*?^```", lambda code: "\n" * code[0].count("\n"), text, flags=re.MULTILINE | re.DOTALL
    )
    for found in re.finditer("(?<!`)`([^`]+)`(?!`)", text):
        yield Block(page, text.count("\n", 0, found.start()) + 1, "sh", " ".join(found[1].split()))


def read_notebook(path: Path) -> Block:
    """Return the code of a notebook as one program."""
    cells = json.loads(path.read_text("utf-8"))["cells"]
    return Block(
        path, 1, "python", "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "code")
    )


def begins_with_a_program(command: str) -> bool:
    """Whether a command begins with a known program and an argument."""
    program, _, arguments = command.partition(" ")
    return bool(arguments) and (program in RUN_HERE or why_not(command) is not None)


def why_not(command: str) -> str | None:
    """Why a command does not run here; None if it does."""
    return find(NOT_HERE, command)


def find(table: Mapping[str, str], command: str) -> str | None:
    """What a table has for a command, by the command's first words."""
    return next((found for pattern, found in table.items() if re.match(pattern, command)), None)


def without_dev(command: str) -> str:
    """The call of our program that `./dev` makes (tests/test_dev_script.py); other commands as they are."""
    return re.sub(r"^\./dev (run |(?=demo))", f"{PROGRAM} ", command)


@dataclass(frozen=True)
class Call:
    """A call of our program that runs in this process, with what a shell would add to it."""

    arguments: list[str]
    input: str | None
    output: str | None
    filter: str | None


def own_call(command: str) -> Call | None:
    """The call of a command; None if it runs in a shell."""
    form = rf"{PROGRAM} ([^|&;<>$*~]*?)(?: < (\S+))?(?: > (\S+))?(?: \| (jq \S+))?"
    found = re.fullmatch(form, without_dev(command))
    if found is None or find(SERVES, command) is not None:
        return None
    return Call(shlex.split(found[1]), *found.groups()[1:])


def is_name(command: str) -> bool:
    """Whether the text names a command of ours instead of calling it: `imbrace-lake export`."""
    return re.fullmatch(r"(\./dev|\./dev run|imbrace-lake)( [a-z-]+)*", command) is not None


def is_repeated(block: Block, command: str) -> bool:
    """Whether a server or a worker is started by an earlier block too, in the same environment."""
    if find(SERVES, command) is None:
        return False
    others = [one for one in HERE[: HERE.index(block)] if _exports(one) == _exports(block)]
    return any(without_dev(command) in map(without_dev, one.commands) for one in others)


def _exports(block: Block) -> list[str]:
    # The token is in the clone's `.env`.
    return [one for one in block.commands if one.startswith("export ") and "IMBRACE_TOKEN=" not in one]


BLOCKS = [block for page in PAGES for block in read_blocks(page)] + [*map(read_notebook, NOTEBOOKS)]
SCRIPTS = [block for block in BLOCKS if block.kind == "sh"]
_in_blocks = {command for block in SCRIPTS for command in block.commands}
SPANS = [span for page in PAGES for span in read_spans(page)]
CALLS = {
    span.text: span
    for span in SPANS
    if begins_with_a_program(span.text) and not is_name(span.text) and span.text not in _in_blocks
}
SHELL = [*SCRIPTS, *CALLS.values()]
# A page whose blocks continue each other, from an empty terminal on.
JOURNEY = [block for block in BLOCKS if block.page.name == "analysts.md"]
HERE = [block for block in SHELL if not all(map(why_not, block.commands)) and block not in JOURNEY]
# Engines that do not run here have their pages from their documentation.
FOREIGN = [
    block for block in BLOCKS if block.kind == "sql" and "**Not run here:**" in block.page.read_text("utf-8")
]
SQL = [block for block in BLOCKS if block.kind == "sql" and block not in FOREIGN]
# tests/acceptance/test_views.py runs the page of Spark, which starts a virtual machine.
PYTHON = [
    block for block in BLOCKS if block.kind == "python" and block.page.name not in ("spark.md", "analysts.md")
]
ELSEWHERE = sorted({command for block in SHELL for command in block.commands if why_not(command)})


@dataclass(frozen=True)
class Machine:
    """A folder of a clone, the environment of its commands, and the values of a reader."""

    folder: Path
    environment: Mapping[str, str]
    values: Mapping[str, str]

    def fill(self, text: str) -> str:
        """Replace the words that stand for values."""
        for word, value in self.values.items():
            text = text.replace(word, value)
        assert "…" not in text, f"the test has no value for a word in {text!r}"
        return text

    def run(self, command: str, exports: str = "") -> None:
        """Run a command, or start it, and expect success."""
        before, served = find(BEFORE, command), find(SERVES, command)
        call = own_call(self.fill(command))
        if call is not None:
            subprocess.run(["sh", "-c", before or ":"], cwd=self.folder, check=True)
            self.call(call, self.fill(exports))
            return
        script = self.fill(f"{exports}{before or ':'}\n{command}")
        if served and "sandbox" in command and "--port" not in command:
            script += " --port 0"
        output = self.folder / "output"
        with output.open("wb") as log:
            # A failure within a pipe counts too, and plain sh has no such option.
            process = subprocess.Popen(
                ["bash", "-eo", "pipefail", "-c", script],
                cwd=self.folder,
                env=dict(self.environment),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            if served:
                self._wait_for(served, process, output)
                os.killpg(process.pid, signal.SIGINT)
            code = process.wait(PATIENCE_SECONDS)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        assert code in ({0, INTERRUPTED} if served else {0}), f"{script}\n{output.read_text()}"

    def call(self, call: Call, exports: str = "", code: int = 0) -> str:
        """Call our program in this process, and return its output."""
        exported = [word.partition("=") for line in exports.splitlines() for word in shlex.split(line)[1:]]
        environment = {**self.environment, **{name: value for name, _, value in exported}}
        # Only differences, because C code in other threads reads the environment; a fixture restores it.
        for name in os.environ.keys() - environment.keys():
            del os.environ[name]
        for name, value in environment.items():
            if os.environ.get(name) != value:
                os.environ[name] = value
        given = "" if call.input is None else (self.folder / call.input).read_text()
        output = StringIO()
        with chdir(self.folder), patch("sys.stdin", StringIO(given)), redirect_stdout(output):
            assert main(call.arguments) == code, call
        if call.output is not None:
            (self.folder / call.output).write_text(output.getvalue())
        if call.filter is not None:
            command = shlex.split(call.filter)
            subprocess.run(command, input=output.getvalue(), text=True, check=True, capture_output=True)
        return output.getvalue()

    def _wait_for(self, line: str, process: subprocess.Popen[bytes], output: Path) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not (self._answers() if line == ANSWERS else line in output.read_text()):
            assert process.poll() is None, output.read_text()
            assert time.monotonic() < deadline, output.read_text()
            time.sleep(0.1)

    def _answers(self) -> bool:
        """Whether the server that a command started answers, and asks for the login of the page."""
        url = f"http://127.0.0.1:{self.environment['PREFECT_SERVER_API_PORT']}/api/admin/version"
        with suppress(httpx.TransportError):
            return httpx.get(url).status_code == httpx.codes.UNAUTHORIZED
        return False


@pytest.fixture(scope="module")
def box() -> Iterator[Sandbox]:
    """A fake gateway with the conversations that the pages name."""
    with Sandbox(GENERATED) as box:
        for number in ("+886911425977", "+886911000111"):
            box.append(box.put([], phone=number), 2)
        for conversation_id in ("conv_1", "conv_2"):
            box.append(box.put([], conversation_id=conversation_id), 2)
        yield box


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServer]:
    """A Prefect server for all commands."""
    home = make_home(tmp_path_factory, "home")
    server = ensure_server(home)
    with keep_alive(home):
        yield server
        stop_server(home)


@pytest.fixture(scope="module")
def exported(
    box: Sandbox, server: LocalServer, client: None, s3: Seaweed, tmp_path_factory: pytest.TempPathFactory
) -> Machine:
    """The reader's clone, and a lake in a folder and a bucket, from a run with a failed conversation."""
    folder = tmp_path_factory.mktemp("clone")
    _write_lists(folder, box)
    _clone(folder)
    environment = _environment(folder, server, s3)
    # For the server that a command starts.
    home = make_home(tmp_path_factory, "other-home") / "prefect"
    shutil.copytree(home, folder / "home" / "demo" / "prefect")
    environment["PREFECT_HOME"] = str(home)
    failing = box.links[CUSTOMER][0]
    box.break_conversation(failing, "400")
    machine = Machine(folder, environment, {})
    export = ["export", "--phones", "customers.csv", "--lake", "lake", "--json"]
    compact = ["compact", "--lake", "lake"]
    with patch.dict(os.environ):
        run_id = json.loads(machine.call(Call(export, None, None, None), code=3))["run_id"]
        box.repair(failing)
        machine.call(Call(compact, None, None, None))
    objects = s3.client()
    for bucket in ("bucket", "example"):
        s3.create_bucket(bucket)
        objects.put_object(Bucket=bucket, Key="customers.csv", Body=(folder / "customers.csv").read_bytes())
    for path in (folder / "lake").rglob("*"):
        if path.is_file() and ".tmp" not in path.parts:
            for lake in ("prefix", "conversations"):
                key = f"{lake}/{path.relative_to(folder / 'lake')}"
                objects.put_object(Bucket="bucket", Key=key, Body=path.read_bytes())
    part = next(folder.glob("lake/messages/*/*/part-00000.parquet"))
    shutil.copy(part, folder / "part-00000.parquet")
    values = {
        "api_…": box.options.token,
        "org_…": box.options.organization_id,
        "conv_…": failing,
        "operator:…": "operator:password",
        # PostgreSQL is tested with `IMBRACE_TEST_DATABASE`.
        "postgresql+asyncpg://prefect:…@database.example.net/prefect": f"sqlite+aiosqlite:///{home}/prefect.db",
        "…/imbrace_deployments/prefect.yaml": "prefect.yaml",
        "http://127.0.0.1:4200/api": server.api_url,
        "http://127.0.0.1:8899/3rd": box.url,
        "http://127.0.0.1:8899": box.url.removesuffix("/3rd"),
        "--port 8899": "--port 0",
        "--conversations 1000 --lake /tmp/lake": "--conversations 20 --lake other-lake",
        "RUN_ID": run_id,
        "--object COPY": "--object part-00000.parquet",
        "--phones FILE": "--phones customers.csv",
        "COMMAND": "export",
        "'…' IN": f"'{run_id}' IN",
        "chgrp analysts": f"chgrp {os.getgid()}",
    }
    return Machine(folder, environment, values)


@pytest.fixture
def machine(exported: Machine, server: LocalServer, tmp_path: Path) -> Machine:
    """A copy of the clone, with a server whose budget is not configured."""
    folder = tmp_path / "clone"
    shutil.copytree(exported.folder, folder, symlinks=True)
    _clone(folder)
    httpx.delete(f"{server.api_url}/v2/concurrency_limits/imbrace-requests")
    return Machine(folder, {**exported.environment, "IMBRACE_HOME": str(folder / "home")}, exported.values)


def _write_lists(folder: Path, box: Sandbox) -> None:
    numbers = [CUSTOMER, "+886911425977"]
    (folder / "customers.csv").write_text("\n".join(["name,phone", *(f"A,{number}" for number in numbers)]))
    (folder / "numbers.txt").write_text("0911 000 111\n")
    message = {"speaker": "customer", "text": "Hello", "at": "2026-05-13T13:14:57Z", "kind": "text"}
    record = {"conversation_key": "1", "phone": numbers[1], "messages": [message]}
    (folder / "conversations.jsonl.gz").write_bytes(gzip.compress(json.dumps(record).encode()))
    settings = {
        "TOKEN": box.options.token,
        "ORGANIZATION": box.options.organization_id,
        "GATEWAY": box.url,
        "LAKE": "s3://bucket/conversations",
    }
    (folder / ".env").write_text("".join(f"IMBRACE_{name}={value}\n" for name, value in settings.items()))


def _clone(folder: Path) -> None:
    """Write a clone with an environment in which `./dev` has nothing to install."""
    for name in ("dev", "pyproject.toml", "uv.lock", "prefect.yaml"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / "sql", folder / "sql", dirs_exist_ok=True)
    (folder / ".venv").mkdir(exist_ok=True)
    if not (folder / ".venv/bin").exists():
        (folder / ".venv/bin").symlink_to(BIN)
    stamp = 'printf "%s\n" "$(pwd -P)" && cat pyproject.toml uv.lock | cksum'
    made = subprocess.run(["sh", "-c", stamp], cwd=folder, capture_output=True, check=True)
    (folder / ".venv/.dev-test").write_bytes(made.stdout)
    # The project's environment has the package, and not this program of its other distribution.
    (folder / "programs").mkdir(exist_ok=True)
    program = folder / "programs/imbrace-sandbox"
    program.write_text(
        f"#!{sys.executable}\nfrom imbrace_sandbox.main import main\nraise SystemExit(main())\n"
    )
    program.chmod(0o755)


def _environment(folder: Path, server: LocalServer, s3: Seaweed) -> dict[str, str]:
    foreign = ("PREFECT_", "AWS_", "COVERAGE_", "IMBRACE_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    own = {
        "PATH": f"{folder / 'programs'}:{BIN}:{os.environ['PATH']}",
        "PREFECT_API_URL": server.api_url,
        "PREFECT_API_SSL_CERT_FILE": one_certificate(server.directory),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_API_PORT": str(free_port()),
        "AWS_ACCESS_KEY_ID": s3.key,
        "AWS_SECRET_ACCESS_KEY": s3.secret,
        "AWS_ENDPOINT_URL": s3.endpoint_url,
        "AWS_REGION": "us-east-1",
        "NO_COLOR": "1",
        "DO_NOT_TRACK": "1",
    }
    return kept | own


@pytest.fixture(scope="module")
def client(server: LocalServer) -> Iterator[None]:
    """Prefect in this process, with the server of all commands."""
    with restored_environment():
        prepare_client(server.api_url)
        # Its settings are fixed by the first import, in whichever test that is.
        from prefect.settings import (
            PREFECT_API_SSL_CERT_FILE,
            PREFECT_API_URL,
            PREFECT_SERVER_ALLOW_EPHEMERAL_MODE,
            temporary_settings,
        )

    with temporary_settings(
        {
            PREFECT_API_URL: server.api_url,
            PREFECT_API_SSL_CERT_FILE: one_certificate(server.directory),
            PREFECT_SERVER_ALLOW_EPHEMERAL_MODE: False,
        }
    ):
        yield
        end_threads()


@pytest.mark.parametrize("block", HERE, ids=lambda block: block.name)
def test_commands_run(machine: Machine, block: Block) -> None:
    run_commands(machine, block)


def test_the_analysts_page_leads_from_an_empty_terminal_to_response_times(machine: Machine) -> None:
    shutil.rmtree(machine.folder / "lake")

    for block in JOURNEY:
        if block.kind == "python":
            run_program(machine, block)
        else:
            run_commands(machine, block)

    weeks = (machine.folder / "weeks.csv").read_text().splitlines()
    assert weeks[0].startswith("week_start,episodes,answered,share_unanswered,median_minutes")
    assert len(weeks) > 10


def run_commands(machine: Machine, block: Block) -> None:
    exports = ""
    for command in block.commands:
        if command.startswith("export "):
            exports += f"{command}\n"
        elif why_not(command) is None and not is_repeated(block, command):
            assert command.split()[0] in RUN_HERE, f"the test does not know how to run {command!r}"
            machine.run(command, exports)


@pytest.mark.parametrize("block", SQL, ids=lambda block: block.name)
def test_queries_run(machine: Machine, monkeypatch: pytest.MonkeyPatch, block: Block) -> None:
    # An expression for a query.
    query = block.text if "FROM" in block.text else f"SELECT {block.text} FROM (SELECT 'a' AS id)"  # noqa: S608
    monkeypatch.chdir(machine.folder)

    with duckdb.connect() as connection:
        connection.execute(machine.fill(query))
    assert "QUALIFY" not in query.upper()


@pytest.mark.parametrize("block", FOREIGN, ids=lambda block: block.name)
def test_statements_of_other_engines_are_in_their_languages(block: Block) -> None:
    statements = sqlglot.parse(block.text, read=block.page.stem)

    assert [*filter(None, statements)]
    assert not re.search("QUALIFY", block.text)


@pytest.mark.parametrize("block", PYTHON, ids=lambda block: block.name)
def test_python_runs(machine: Machine, block: Block) -> None:
    run_program(machine, block)


def run_program(machine: Machine, block: Block) -> None:
    program = machine.folder / "program.py"
    program.write_text(block.text.replace("...  # a client reads", "read = box.truth(conversation_id)  #"))

    machine.run("python program.py")


def test_examples_that_read_messages_leave_out_deleted_ones() -> None:
    # Views over `lake_messages` leave them out; the page about the lake reads whole files.
    found = [
        block
        for block in [*SQL, *PYTHON]
        if re.search("lake/(tables/)?messages", block.text)
        and "lake_messages" not in block.text
        and block.page.name != "lake.md"
    ]

    assert len(found) > 7
    assert [block.name for block in found if "is_deleted" not in block.text] == []


@pytest.mark.parametrize("command", ELSEWHERE)
def test_commands_that_do_not_run_here_are_in_the_shells_language_and_name_real_files(command: str) -> None:
    assert subprocess.run(["sh", "-n", "-c", command], check=False).returncode == 0

    folders = {path.name for path in ROOT.iterdir() if path.is_dir()}
    for word in command.split():
        if word.partition("/")[0] in folders:
            assert (ROOT / word).exists()


@pytest.mark.slow
@pytest.mark.parametrize("command", [command for command in ELSEWHERE if "-m benchmarks" in command])
def test_options_of_benchmarks_exist(command: str) -> None:
    _, _, module, *arguments = command.split()
    options = {word for word in arguments if word.startswith("--")}

    assert not options or options <= _options_of(module)


@cache
def _options_of(module: str) -> set[str]:
    asked = [sys.executable, "-m", module, "--help"]
    return set(re.findall(r"--[a-z-]+", subprocess.check_output(asked, cwd=ROOT, text=True)))


def test_names_of_commands_and_options_exist() -> None:
    tree, unknown = typer.main.get_command(make_app()), []
    for span in SPANS:
        first, *words = span.text.split()
        if first == "./dev" and words and words[0] != "run":
            known = f"\n  {words[0]} " in (ROOT / "dev").read_text()
        elif first in {PROGRAM, "./dev"}:
            known = _is_known(tree, words[first == "./dev" :])
        elif first in _children(tree) and any(word.startswith("--") for word in words):
            known = _is_known(tree, [first, *words])
        else:
            known = True
        if not known:
            unknown.append(f"{span.name}: {span.text}")

    assert unknown == []


def _children(command: Any) -> dict[str, Any]:
    return dict(getattr(command, "commands", {}))


def _is_known(command: Any, words: list[str]) -> bool:
    """Whether our command line has these commands and options."""
    for word in words:
        if children := _children(command):
            if word != "COMMAND" and not word.startswith("-") and word not in children:
                return False
            command = children.get(word, command)
        elif (
            word.startswith("--")
            and word != "--help"
            and not any(word in option.opts for option in command.params)
        ):
            return False
    return True


def test_no_reason_is_left_over() -> None:
    here = [command for block in [*HERE, *JOURNEY] for command in block.commands]

    unused = [pattern for pattern in NOT_HERE if not any(re.match(pattern, one) for one in ELSEWHERE)]
    unused += [pattern for pattern in (*SERVES, *BEFORE) if not any(re.match(pattern, one) for one in here)]

    assert unused == []
