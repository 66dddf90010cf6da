"""A worker that gives its runs back when it ends, so that the next worker continues them at once.

Prefect's own worker leaves them *Crashed* when it is stopped, and *Running* or *Pending* when it is killed.
The automations restart a crashed run 30 s later, but only once. A run of a killed worker
becomes *Crashed* after 90 s without a heartbeat, and nothing restarts a pending one.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Protocol
from uuid import UUID

from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
    WorkPoolFilter,
    WorkPoolFilterName,
)
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.exceptions import ObjectNotFound
from prefect.states import Cancelled, Scheduled
from prefect.workers.process import ProcessJobConfiguration, ProcessWorker, ProcessWorkerResult

from imbrace_flows.run_name import is_made_up

RESTARTING = "Restarting"
# Prefect tries to start a run that waits for others of its deployment every 30 s, for hours if need be.
_STILL_WAITS = "Server returned a non-pending state 'SCHEDULED'"
_ATTEMPT = " submitting flow run "
_REMEMBERED = 1_000
_RUN_ID = "PREFECT__FLOW_RUN_ID"
_WORKER = "prefect.worker.name"


class Reports(Protocol):
    """Receives the start and the end of each run."""

    def started(self, deployment: str, run: FlowRun) -> None:
        """A run has a process."""

    def ended(self, deployment: str, run: FlowRun) -> None:
        """The process of a run has ended; the run has its last state."""


class WithoutAttempts(logging.Filter):
    """Keeps the attempts to start a run that waits for others out of its log, except for the first."""

    def __init__(self) -> None:
        super().__init__()
        self._attempts: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether the line is logged."""
        message = record.getMessage()
        if message.endswith(_STILL_WAITS):
            return False
        if _ATTEMPT not in message:
            return True
        is_first = message not in self._attempts
        if len(self._attempts) >= _REMEMBERED:
            self._attempts.clear()
        self._attempts.add(message)
        return is_first


class LocalWorker(ProcessWorker):
    """Prefect's process worker, which knows the processes of its runs.

    Attributes:
        reports: Receives the start and the end of each run.
        processes: The process of each run; it leads a process group.
    """

    reports: Reports
    processes: dict[UUID, int]

    @classmethod
    def __dispatch_key__(cls) -> str:
        # Prefect warns if two classes of workers have the same key.
        return "imbrace-lake-process"

    @classmethod
    def make(cls, name: str, pool: str, limit: int, reports: Reports) -> LocalWorker:
        """Return a worker that has not begun."""
        worker = cls(work_pool_name=pool, name=name, limit=limit, create_pool_if_not_found=False)
        worker.reports, worker.processes = reports, {}
        logging.getLogger("prefect.flow_runs.worker").addFilter(WithoutAttempts())
        return worker

    async def run(
        self, flow_run: FlowRun, configuration: ProcessJobConfiguration, task_status: _Status | None = None
    ) -> ProcessWorkerResult:
        """Start the process of a run, and wait for its end."""
        deployment = configuration.labels.get("prefect.io/deployment-name", "run")

        def started(pid: int) -> None:
            self.processes[flow_run.id] = pid
            self.reports.started(deployment, flow_run)
            if task_status is not None:
                task_status.started(pid)

        try:
            result = await super().run(flow_run, configuration, _Started(started))  # type: ignore[arg-type]
        finally:
            self.processes.pop(flow_run.id, None)
        # A run that was deleted meanwhile has no state.
        with suppress(ObjectNotFound):
            ended = await self.client.read_flow_run(flow_run.id)
            if result.status_code and ended.state is not None and ended.state.is_crashed():
                self.get_flow_run_logger(flow_run).error("%s", describe_crash(result.status_code))
            self.reports.ended(deployment, ended)
        return result

    def kill_runs(self) -> None:
        """End all runs at once; the lake is consistent, as after any kill."""
        for pid in self.processes.values():
            kill_group(pid)


def describe_crash(exit_code: int) -> str:
    """Return how the process of a run ended, and what to do; Prefect's own lines about it are half of that.

    Args:
        exit_code: That of the process, not zero; negative for a signal.
    """
    try:
        what = f"was ended by {signal.Signals(-exit_code).name} (signal {-exit_code})"
    except ValueError:
        what = f"ended unexpectedly with exit code {exit_code}"
    if exit_code == -signal.SIGKILL:
        what += ", perhaps because this machine lacks memory"
    return (
        f"the process of this run {what}. A first crash needs no action: the run is started again, and"
        " continues. After a second one, look at the memory and the system log of this machine, and start the"
        " run again"
    )


class _Status(Protocol):
    def started(self, value: int) -> None: ...


class _Started:
    def __init__(self, started: Callable[[int], None]) -> None:
        self.started = started


async def give_back_runs(pool: str, worker: str | None) -> list[str]:
    """End what is left of the runs that a worker of this machine took, and let a worker start them again.

    Args:
        pool: The work pool.
        worker: The name of the worker, which is not running any more; None for all workers of the pool.

    Returns:
        The names of the runs; for a run that has none yet, that of its deployment.
    """
    async with get_client() as client:
        runs = [run for run in await _unfinished(client, pool) if worker in (None, run.labels.get(_WORKER))]
        for run in runs:
            kill_process_of(run)
            await client.set_flow_run_state(run.id, _next_state(run), force=True)
        return [await _name(client, run) for run in runs]


async def _name(client: PrefectClient, run: FlowRun) -> str:
    if run.deployment_id is None or not is_made_up(run.name):
        return run.name
    return (await client.read_deployment(run.deployment_id)).name


async def _unfinished(client: PrefectClient, pool: str) -> list[FlowRun]:
    types = [StateType.PENDING, StateType.RUNNING, StateType.CANCELLING]
    return await client.read_flow_runs(
        flow_run_filter=FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=types))),
        work_pool_filter=WorkPoolFilter(name=WorkPoolFilterName(any_=[pool])),
    )


def _next_state(run: FlowRun) -> State[None]:
    if run.state is not None and run.state.is_cancelling():
        return Cancelled(message="The run was cancelled.")
    return Scheduled(
        name=RESTARTING, message="The worker of the run was stopped; the run continues with the next worker."
    )


def kill_process_of(run: FlowRun) -> None:
    """End the process of a run, if it is on this machine and still belongs to that run."""
    with suppress(TypeError, ValueError):
        pid = int(run.infrastructure_pid or "")
        if f"{_RUN_ID}={run.id}" in _environment_of(pid):
            kill_group(pid)


def kill_group(pid: int) -> None:
    """End a process and those it started."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def _environment_of(pid: int) -> str:
    if Path("/proc/self/environ").exists():
        with suppress(OSError):
            return Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace")
        return ""
    # macOS has no /proc.
    command = ["ps", "eww", "-o", "command=", "-p", str(pid)]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout  # noqa: S603
