"""Run the export flow in a separate process, and return its outcome."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from benchmarks.memory import Peaks, watched
from imbrace_cli.local_server import LocalServer
from imbrace_sandbox import Sandbox
from tests.acceptance.runner import DEBUGGING, OURS
from tools.seaweed import Seaweed

ROOT = Path(__file__).parents[2]
RUNNER = "tests.acceptance.runner"


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of a flow run; `summary` is the output of `imbrace-lake export --json`."""

    state_type: str
    state_name: str
    message: str
    problems: list[str]
    summary: dict[str, Any] | None
    seconds: float
    cpu_seconds: float
    most_memory_bytes: int

    @property
    def totals(self) -> dict[str, Any]:
        """Return the totals of the run, which must have a summary."""
        assert self.summary is not None, self.message
        totals: dict[str, Any] = self.summary["totals"]
        return totals


class Exporter:
    """A process that has imported all modules and waits for jobs.

    Args:
        server: The Prefect server of the runs.
        folder: Its working directory, without a `.env`; its console output goes to the file `console`.
        is_debugging: Whether every logger of the process writes debug messages.
    """

    def __init__(self, server: LocalServer, folder: Path, *, is_debugging: bool = False) -> None:
        self._debugging = {DEBUGGING: "1"} if is_debugging else {}
        self.console = folder / "console.log"
        self._folder = folder
        self._server = server
        self._process: subprocess.Popen[str] | None = None
        self._answers: IO[str] | None = None

    def __enter__(self) -> Self:
        self._folder.mkdir(parents=True, exist_ok=True)
        reading, writing = os.pipe()
        foreign = ("PREFECT_", "COVERAGE_", *OURS)
        environment = {name: text for name, text in os.environ.items() if not name.startswith(foreign)}
        with self.console.open("ab") as console:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-m", RUNNER),
                    *(str(writing), self._server.api_url, str(self._server.directory)),
                ],
                stdin=subprocess.PIPE,
                stdout=console,
                stderr=console,
                pass_fds=[writing],
                cwd=self._folder,
                # Unbuffered, because tests read the console while the process waits for its next job.
                env={**environment, **self._debugging, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"},
                text=True,
            )
        os.close(writing)
        self._answers = os.fdopen(reading)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        assert self._answers is not None
        self._process.stdin.close()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self.kill()
        self._answers.close()

    def begin(self, environment: Mapping[str, str], **params: Any) -> None:
        """Start a run without waiting for its end."""
        self._send(environment, params=params)

    def finish(self) -> Outcome:
        """Wait for the end of the run."""
        return Outcome(**self._receive())

    def run(self, environment: Mapping[str, str], **params: Any) -> Outcome:
        """Run the flow with its settings in the environment, as an operator gives them."""
        self.begin(environment, **params)
        return self.finish()

    def command(self, environment: Mapping[str, str], *arguments: str) -> dict[str, Any]:
        """Call the command line, and return its summary."""
        self._send(environment, arguments=[*arguments, "--json"])
        answer = self._receive()
        assert answer["output"], answer
        summary: dict[str, Any] = json.loads(answer["output"])
        return summary

    def backfill(self, environment: Mapping[str, str], parameters: Mapping[str, Any]) -> tuple[str, str]:
        """Run the backfill with the parameters of a deployment; return the state and its message."""
        self._send(environment, parameters=parameters)
        answer = self._receive()
        return answer["name"], answer["message"]

    def _send(self, environment: Mapping[str, str], **job: Any) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"environment": dict(environment), **job}) + "\n")
        self._process.stdin.flush()

    def _receive(self) -> dict[str, Any]:
        assert self._answers is not None
        line = self._answers.readline()
        assert line, f"the process that runs flows has ended:\n{self.console.read_text()[-4000:]}"
        answer: dict[str, Any] = json.loads(line)
        return answer

    def watched(self) -> AbstractContextManager[Peaks]:
        """Watch the memory of the process, and of those that it starts, until the block ends."""
        assert self._process is not None
        return watched(self._process.pid)

    def kill(self) -> None:
        """Kill the process, as a power failure would."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()


def settings_for(box: Sandbox, lake: str | Path, **others: str) -> dict[str, str]:
    """Return the settings of an export from a fake gateway; `others` are without their prefix."""
    return {
        "IMBRACE_TOKEN": box.options.token,
        "IMBRACE_ORGANIZATION": box.options.organization_id,
        "IMBRACE_GATEWAY": box.url,
        "IMBRACE_LAKE": str(lake),
        **{f"IMBRACE_{name.upper()}": text for name, text in others.items()},
    }


def credentials(s3: Seaweed) -> dict[str, str]:
    """Return the environment in which AWS tools find the test's S3 server."""
    return {
        "AWS_ACCESS_KEY_ID": s3.key,
        "AWS_SECRET_ACCESS_KEY": s3.secret,
        "AWS_ENDPOINT_URL": s3.endpoint_url,
        "AWS_REGION": "us-east-1",
    }


def write_phones(path: Path, lines: list[str]) -> str:
    """Write a list of numbers and return its address."""
    path.write_text("".join(f"{line}\n" for line in lines))
    return str(path)


def linked(box: Sandbox) -> set[str]:
    """Return all conversations with a linked phone number."""
    return {conversation_id for ids in box.links.values() for conversation_id in ids}
