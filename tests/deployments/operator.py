"""The tools of an operator: a Prefect server, its API, its command line, and a worker."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, TypeVar

import httpx

from imbrace_cli.local_server import LocalServer
from imbrace_lake.settings import PREFIX
from tests.prefect_homes import one_certificate

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
# Without a sign of progress; a busy machine does everything more slowly.
PATIENCE_SECONDS = 240.0
# With signs of progress. Only a test that never ends takes longer.
CEILING_SECONDS = 1_800.0
SIGNS_SECONDS = 5.0
# Each look is work for the server and for the busy machine.
LOOK_SECONDS = 0.7
# In its own session, as the supervisor.
ENGINE = "import os, runpy; os.setsid(); runpy.run_module('prefect.engine', run_name='__main__')"
# Not needed here, and reading them takes longer than a request.
CERTIFICATES = httpx.create_ssl_context()

T = TypeVar("T")


class _Patient(httpx.HTTPTransport):
    """Repeats requests that a busy server answers with 503, while its database is locked, as Prefect does."""

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        for wait in (1, 2, 4, 8, 16):
            answer = super().handle_request(request)
            if answer.status_code != httpx.codes.SERVICE_UNAVAILABLE:
                return answer
            answer.close()
            time.sleep(wait)
        return super().handle_request(request)


def patient_client(url: str, **options: Any) -> httpx.Client:
    """Return a client whose addresses are relative to a server's."""
    return httpx.Client(base_url=url, transport=_Patient(verify=CERTIFICATES), **options)


@dataclass(frozen=True, slots=True)
class Operator:
    """A person who works with a server from an empty folder; only its address is configured."""

    server: LocalServer
    folder: Path
    settings: Mapping[str, str] = field(default_factory=dict)

    def environment(self, **more: str) -> dict[str, str]:
        """The environment of every command."""
        foreign = ("PREFECT_", "AWS_", "COVERAGE_", PREFIX)
        kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
        own = {
            "PYTHONPATH": str(ROOT),
            "PREFECT_API_URL": self.server.api_url,
            "PREFECT_API_SSL_CERT_FILE": one_certificate(self.server.directory),
            "PREFECT_HOME": str(self.folder / "home"),
            "NO_COLOR": "1",
            "DO_NOT_TRACK": "1",
        }
        return {**kept, **own, **self.settings, **more}

    def run(self, *command: str, **more: str) -> subprocess.CompletedProcess[str]:
        """Run `imbrace-lake` or `prefect` with arguments, without a terminal; `more` is environment."""
        program, *arguments = command
        return subprocess.run(
            [str(BIN / program), *arguments],
            cwd=self.folder,
            env=self.environment(**more),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=CEILING_SECONDS,
            check=False,
        )

    def ask(self, method: str, path: str, body: object = None) -> Any:
        """Send a request to the API, and return the answer as plain values."""
        with patient_client(self.server.api_url, timeout=120) as client:
            answer = client.request(method, path, json=body)
        answer.raise_for_status()
        return answer.json() if answer.content else None

    def deployment(self, name: str) -> dict[str, Any]:
        """Look a deployment up by its own name."""
        body = {"deployments": {"name": {"any_": [name]}}}
        (found,) = self.ask("POST", "/deployments/filter", body)
        return dict(found)

    def set_clock(self, to: Literal["pause", "resume"]) -> None:
        """Pause or resume the schedules of all deployments."""
        for deployment in self.ask("POST", "/deployments/filter", {}):
            self.ask("POST", f"/deployments/{deployment['id']}/{to}_deployment")

    def start_runs_directly(self, pool: str) -> None:
        """Let the workers of a pool start the program of a run without Prefect's supervisor.

        The supervisor fetches the code of a run, and there is none to fetch; then it becomes the program. Its
        imports cost as much CPU as the run itself. The runs of `imbrace-lake up` have it in their tests.
        """
        # Imported here, because others import this module before they set Prefect up.
        from prefect.workers.process import ProcessWorker

        template = ProcessWorker.get_default_base_job_template()
        template["variables"]["properties"]["command"]["default"] = shlex.join([sys.executable, "-c", ENGINE])
        self.ask("PATCH", f"/work_pools/{pool}", {"base_job_template": template})

    def start(self, name: str, **params: object) -> str:
        """Start a run of a deployment, as its form does, and return the run's id."""
        given = {"parameters": {"params": params}} if params else {}
        path = f"/deployments/{self.deployment(name)['id']}/create_flow_run"
        return str(self.ask("POST", path, given)["id"])

    def flow_run(self, run_id: str) -> dict[str, Any]:
        """A run, as the API returns it."""
        return dict(self.ask("GET", f"/flow_runs/{run_id}"))

    def states(self, run_id: str) -> list[str]:
        """The names of the states a run went through."""
        states = self.ask("GET", f"/flow_run_states/?flow_run_id={run_id}")
        return [state["name"] for state in sorted(states, key=lambda one: one["timestamp"])]

    def logs(self, run_id: str) -> list[str]:
        """The log lines of a run."""
        lines = self.ask("POST", "/logs/filter", {"logs": {"flow_run_id": {"any_": [run_id]}}})
        return [line["message"] for line in lines]

    def artifact(self, run_id: str, key: str) -> dict[str, Any]:
        """An artifact of a run."""
        wanted = {"artifacts": {"flow_run_id": {"any_": [run_id]}, "key": {"any_": [key]}}}
        (found,) = self.ask("POST", "/artifacts/filter", wanted)
        return dict(found)

    def wait(self, run_id: str) -> dict[str, Any]:
        """Wait for the end of a run, and return its last state."""
        final = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")

        def state() -> dict[str, Any] | None:
            found = self.flow_run(run_id)["state"]
            return found if found["type"] in final else None

        return self.until(state, f"the end of run {run_id}")

    def wait_for_restart(self, run_id: str) -> dict[str, Any]:
        """Wait until a run that crashed has been started again and has ended, and return its last state."""
        self.until(lambda: self.states(run_id).count("Running") == 2 or None, f"a restart of run {run_id}")
        return self.wait(run_id)

    def until(self, look: Callable[[], T | None], what: str, seconds: float = PATIENCE_SECONDS) -> T:
        """Look repeatedly, as `until` does, as long as anything on the server makes progress."""
        try:
            return until(look, what, seconds, self.signs)
        except TimeoutError as exc:
            runs = self.ask("POST", "/flow_runs/filter", {"sort": "START_TIME_DESC", "limit": 20})
            lines = self.ask("POST", "/logs/filter", {"sort": "TIMESTAMP_DESC", "limit": 40})
            states = [f"{run['id'][:8]} {run['name']}: {run['state_name']}" for run in runs]
            logged = [
                f"{line['timestamp']} {str(line['flow_run_id'])[:8]} {line['message']}" for line in lines
            ]
            raise TimeoutError("\n".join([str(exc), "runs:", *states, "newest lines:", *logged])) from None

    def signs(self) -> object:
        """The progress of everything on the server: runs, tasks, artifacts and the last line of the logs."""
        last = self.ask("POST", "/logs/filter", {"sort": "TIMESTAMP_DESC", "limit": 1})
        runs = self.ask("POST", "/flow_runs/filter", {"sort": "START_TIME_DESC", "limit": 50})
        shown = self.ask("POST", "/artifacts/filter", {"sort": "UPDATED_DESC", "limit": 20})
        return (
            [line["id"] for line in last],
            [(run["id"], run["state_id"]) for run in runs],
            [(one["id"], one["data"]) for one in shown],
            self.ask("POST", "/task_runs/count", {}),
        )


def until(
    look: Callable[[], T | None],
    what: str,
    seconds: float = PATIENCE_SECONDS,
    signs: Callable[[], object] = lambda: None,
) -> T:
    """Look repeatedly, until something is found.

    Args:
        look: Returns what is waited for, or None.
        what: Names it in the error.
        seconds: How long to wait without a sign of progress. Only the time between looks counts, because the
            duration of a look depends on how busy the machine is.
        signs: Returns a value that differs after progress.

    Raises:
        TimeoutError: Nothing was found.
    """
    began = time.monotonic()
    waited, unseen, sign = 0.0, 0.0, signs()
    while (found := look()) is None:
        if waited > seconds or time.monotonic() - began > CEILING_SECONDS:
            raise TimeoutError(f"waited {time.monotonic() - began:.0f} s for {what}")
        time.sleep(LOOK_SECONDS)
        waited, unseen = waited + LOOK_SECONDS, unseen + LOOK_SECONDS
        if unseen >= SIGNS_SECONDS:
            unseen = 0.0
            if (latest := signs()) != sign:
                waited, sign = 0.0, latest
    return found


class Worker:
    """`prefect worker start` and the runs that it starts; killed when the ``with`` block ends."""

    def __init__(self, operator: Operator, pool: str, *arguments: str, **environment: str) -> None:
        self.log = operator.folder / "worker.log"
        self._operator = operator
        self._command = [str(BIN / "prefect"), "worker", "start", "--pool", pool, *arguments]
        self._environment = operator.environment(PREFECT_WORKER_QUERY_SECONDS="1", **environment)
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def start(self) -> None:
        """Start the worker, also again after its end."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                cwd=self._operator.folder,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # So that a signal to the tests does not reach it.
                start_new_session=True,
            )

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    def end(self, number: signal.Signals) -> None:
        """Send a signal to the worker alone, and wait for its end."""
        assert self._process is not None
        self._process.send_signal(number)
        self._process.wait(CEILING_SECONDS)
        self._process = None

    def kill(self) -> None:
        """End the worker and its runs at once, as when a machine loses its power."""
        if self._process is not None:
            # Each run has its own session. While it is stopped, the worker starts no further run.
            os.kill(self._process.pid, signal.SIGSTOP)
            self.kill_runs()
            self._process.kill()
            self._process.wait()
            self._process = None

    def kill_run(self, run: Mapping[str, Any]) -> None:
        """Kill the process of one of its runs."""
        os.kill(int(run["infrastructure_pid"].rpartition(":")[2]), signal.SIGKILL)

    def kill_runs(self) -> None:
        """Kill the processes of its runs, as when the machine has no more memory."""
        assert self._process is not None
        found = subprocess.run(["pgrep", "-P", str(self._process.pid)], capture_output=True, check=False)
        for pid in map(int, found.stdout.split()):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
