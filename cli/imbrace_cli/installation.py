"""What `imbrace-lake up` does with a Prefect server: setup, deployments, a worker, and lines about runs.

This module imports Prefect, whose environment has to be set before.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from datetime import datetime
from pathlib import Path
from typing import TextIO
from zlib import crc32

import httpx
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterTags,
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.client.schemas.sorting import FlowRunSort
from prefect.events.worker import EventsWorker
from prefect.logging.handlers import APILogWorker

from imbrace_cli.ending import Ending
from imbrace_cli.local_server import MAX_LOG_BYTES, ensure_server, server_status
from imbrace_cli.prefect_session import Session
from imbrace_cli.terminal import echo, echo_error, waiting
from imbrace_deployments.automations import TAG
from imbrace_deployments.setup import DesiredState, set_up
from imbrace_deployments.worker import LocalWorker, give_back_runs
from imbrace_flows.run_name import is_made_up
from imbrace_lake.errors import ImbraceLakeError, SettingsError

# As many as the deployments allow together; one more per core leaves slots for shards.
MAX_RUNS_WITHOUT_SHARDS = 8
SERVER_CHECK_SECONDS = 5.0
RETRY_SECONDS = 10.0
SCHEDULE_CHECK_SECONDS = 3.0
SCHEDULE_CHECKS = 40
GIVE_BACK_SECONDS = 20.0
DRAIN_SECONDS = 10.0
LONGEST_MESSAGE = 500


class SetupFailed(ImbraceLakeError):
    """A setting does not work, so nothing was saved."""


class Installation:
    """A server that is set up, and a worker.

    Args:
        desired: The desired state of the server.
        session: The server.
        home: The folder of the log, and of a local server.
        limit: The most runs at a time; None for one that suits the machine.
        ending: The signals that end it.
    """

    def __init__(
        self, desired: DesiredState, session: Session, home: Path, limit: int | None, ending: Ending
    ) -> None:
        self._desired = desired
        self._session = session
        self._home = home
        self._limit = limit or MAX_RUNS_WITHOUT_SHARDS + (os.cpu_count() or 1)
        self._ending = ending
        self._lines = Lines(session, sys.stdout)
        # The server knows a worker by its name. A local server has no other machine.
        self._name = f"up-{socket.gethostname()}-{crc32(bytes(home)):08x}"
        self._worker: LocalWorker | None = None

    def run(self) -> None:
        """Set the server up, and work until a signal comes.

        Raises:
            SetupFailed: A setting does not work.
            ImbraceLakeError: The server or the deployments do not work.
        """
        try:
            asyncio.run(self._run())
        finally:
            _drain()

    async def _run(self) -> None:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()

        def stop() -> None:
            if self._worker is not None:
                # Before the worker can report that they have crashed.
                self._worker.kill_runs()
            if task is not None:
                task.cancel()

        # The signal can arrive anywhere in this thread, also while the loop waits for the network.
        with self._ending.cancels(lambda: loop.call_soon_threadsafe(stop)):
            with waiting("testing token, gateway, lake and list, and creating the deployments"):
                outcome = await set_up(self._desired)
            if outcome.wrong:
                raise SetupFailed("; ".join(f"{one.name}: {one.message}" for one in outcome.wrong))
            for finding in outcome.findings:
                if finding.verdict == "note":
                    echo_error(f"{finding.name}: {finding.message}", "note")
            echo(*(f"setup    {line}" for line in outcome.done if _is_notable(line)))
            await self._check_pool()
            await self._give_back("cut off earlier, to be continued now")
            with self._log() as log:
                await self._work(log)

    async def _check_pool(self) -> None:
        pool = self._desired.pool
        async with get_client() as client:
            found = await client.read_work_pool(pool)
        if found.type != LocalWorker.type:
            raise SettingsError(
                f"the work pool {pool} starts runs by {found.type}, and `imbrace-lake up` only as processes:"
                " choose another --pool"
            )
        if found.is_paused:
            echo_error(f"the work pool {pool} is paused: its runs wait until you resume it in the UI", "note")

    async def _work(self, log: TextIO) -> None:
        """Work until a signal comes; the runs in progress then wait for the next worker."""
        pool = self._desired.pool
        echo(f"worker   {self._name}, at most {self._limit} runs at a time; log: {log.name}")
        self._ending.describe = self._describe_end
        self._ending.kill.append(self._kill_runs)
        try:
            with redirect_stdout(log), redirect_stderr(log):
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._keep_working(pool))
                    group.create_task(self._announce_schedules())
                    if self._session.ui_url is not None:
                        group.create_task(self._keep_server())
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None
        finally:
            self._worker = None
            await self._give_back("to be continued by the next worker")

    async def _keep_working(self, pool: str) -> None:
        """Start a worker, and another one if it ends because the server was away for long."""
        while True:
            self._worker = LocalWorker.make(self._name, pool, self._limit, self._lines)
            try:
                await self._worker.start()
            except Exception as exc:
                logging.getLogger("prefect").exception("the worker has ended")
                self._lines.say(f"the worker has ended ({type(exc).__name__}); starting another one")
            await asyncio.sleep(RETRY_SECONDS)

    async def _keep_server(self) -> None:
        """Start the local server again if it ends."""
        while True:
            await asyncio.sleep(SERVER_CHECK_SECONDS)
            if server_status(self._home) is None:
                self._lines.say("the Prefect server has ended unexpectedly; starting it again")
                server = await asyncio.to_thread(ensure_server, self._home)
                if server.api_url != self._session.api_url:
                    raise SettingsError(
                        f"the Prefect server is now at {server.ui_url}: start `imbrace-lake up` again"
                    )
                self._lines.say("the Prefect server is running again")

    async def _announce_schedules(self) -> None:
        """Show when the next scheduled runs begin, as soon as the server has made them."""
        for _ in range(SCHEDULE_CHECKS):
            await asyncio.sleep(SCHEDULE_CHECK_SECONDS)
            with suppress(httpx.HTTPError):
                if await self._lines.show_schedules():
                    return

    async def _give_back(self, what: str) -> None:
        """Let runs in progress start again, by this worker or another one."""
        worker = None if self._session.ui_url is not None else self._name
        try:
            async with asyncio.timeout(GIVE_BACK_SECONDS):
                names = await give_back_runs(self._desired.pool, worker)
        except (TimeoutError, httpx.HTTPError) as exc:
            self._lines.say(f"the Prefect server does not answer ({type(exc).__name__})")
            return
        if names:
            self._lines.say(f"{what}: {', '.join(names)}")

    def _describe_end(self) -> str:
        count = len(self._worker.processes) if self._worker is not None else 0
        runs = {0: "", 1: ": the run in progress continues with the next call"}
        return "stopping" + runs.get(count, f": the {count} runs in progress continue with the next call")

    def _kill_runs(self) -> None:
        if self._worker is not None:
            self._worker.kill_runs()

    @contextmanager
    def _log(self) -> Iterator[TextIO]:
        """Open the log, to which Prefect's worker and the processes of runs write."""
        path = self._home / "worker.log"
        if path.exists() and path.stat().st_size > MAX_LOG_BYTES:
            path.replace(path.with_suffix(".log.1"))
        with open(path, "a", buffering=1, encoding="utf-8", opener=_private) as log:
            handler = logging.StreamHandler(log)
            handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
            logging.getLogger().addHandler(handler)
            try:
                yield log
            finally:
                logging.getLogger().removeHandler(handler)


class Lines:
    """The lines about runs on the terminal."""

    def __init__(self, session: Session, stream: TextIO) -> None:
        self._session = session
        self._stream = stream

    def say(self, text: str) -> None:
        """Write a line with the time; a closed terminal ends nothing."""
        with suppress(OSError):
            print(f"{datetime.now().astimezone():%H:%M:%S} {text}", file=self._stream, flush=True)

    def started(self, deployment: str, run: FlowRun) -> None:
        """Show that a run has a process, and where its page is."""
        url = self._session.run_url(run.id)
        self.say(f"{_run_name(deployment, run)}: started" + (f", {url}" if url else ""))

    def ended(self, deployment: str, run: FlowRun) -> None:
        """Show the verdict of a run."""
        if run.state is None:
            return
        message = (run.state.message or "").partition("\n")[0]
        if len(message) > LONGEST_MESSAGE:
            message = f"{message[: LONGEST_MESSAGE - 1]}…"
        self.say(f"{_run_name(deployment, run)}: {run.state.name}" + (f", {message}" if message else ""))

    async def show_schedules(self) -> bool:
        """Show the next scheduled run of each deployment; return False if one is not there yet."""
        ours = DeploymentFilter(tags=DeploymentFilterTags(all_=[TAG]))
        scheduled = FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.SCHEDULED]))
        async with get_client() as client:
            deployments = await client.read_deployments(deployment_filter=ours)
            runs = await client.read_flow_runs(
                flow_run_filter=FlowRunFilter(state=scheduled),
                deployment_filter=ours,
                sort=FlowRunSort.EXPECTED_START_TIME_ASC,
            )
        due, paused = [], []
        for one in deployments:
            if not one.schedules:
                continue
            if one.paused or not any(schedule.active for schedule in one.schedules):
                paused.append(f"{one.name} is paused")
                continue
            first = next((run for run in runs if run.deployment_id == one.id and run.auto_scheduled), None)
            if first is None or first.expected_start_time is None:
                return False
            due.append((first.expected_start_time.astimezone(), one.name))
        shown = [f"{name} at {_clock(at)}" for at, name in sorted(due)]
        self.say(f"next scheduled runs: {', '.join([*shown, *paused])}")
        return True


def _run_name(deployment: str, run: FlowRun) -> str:
    """Return the name of a run, which it gets when it has begun, and the end of its id.

    Two runs of the same list have the same name. The ids of scheduled runs begin with a time, the same for
    all that are scheduled within 65 s.
    """
    return f"{deployment if is_made_up(run.name) else run.name} ({str(run.id)[-8:]})"


def _clock(at: datetime) -> str:
    is_today = at.date() == datetime.now().astimezone().date()
    return f"{at:%H:%M}" if is_today else f"{at:%a %H:%M}"


def _is_notable(line: str) -> bool:
    return line.startswith(("deployed", "removed", "left the schedule", "left the budget", "made the budget"))


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _drain() -> None:
    """Send the remaining logs and events, while there is a server.

    Prefect would do that at the end of the process, and wait for minutes for a server that has ended.
    """
    for worker in (APILogWorker, EventsWorker):
        worker.drain_all(timeout=DRAIN_SECONDS)
