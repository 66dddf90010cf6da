"""`imbrace-lake up`: what it starts, how it ends, and how it continues after it was killed."""

from __future__ import annotations

import logging
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

import pytest

from imbrace_cli.local_server import LocalServer, ServerFiles, is_locked, server_status
from imbrace_sandbox import Sandbox, SandboxOptions
from tests.acceptance.scale import IS_FULL
from tests.cli.conftest import Run
from tests.deployments.operator import BIN, Operator, until
from tests.prefect_homes import make_home

PATIENCE_SECONDS = 240.0

pytestmark = [pytest.mark.server, pytest.mark.timeout(1_800)]


class Up:
    """The command in another process; what it leaves behind is killed when the ``with`` block ends."""

    def __init__(self, home: Path, settings: dict[str, str], *arguments: str) -> None:
        foreign = ("PREFECT_", "AWS_", "COVERAGE_", "IMBRACE_")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
        self.home = home
        self._arguments = arguments
        # Runs ask for more often than usual whether they are due.
        own = {"IMBRACE_HOME": str(home), "PREFECT_WORKER_QUERY_SECONDS": "1", "NO_COLOR": "1"}
        self._environment = {**kept, **own, **settings}
        self._output = home / "output.txt"

    def __enter__(self) -> Self:
        with self._output.open("wb") as output:
            self.process = subprocess.Popen(
                [str(BIN / "imbrace-lake"), "up", *self._arguments],
                cwd=self.home,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()

    @property
    def output(self) -> str:
        return self._output.read_text(encoding="utf-8")

    def shows(self, text: str) -> None:
        """Wait until it has shown a text, which is a regular expression."""

        def look() -> bool | None:
            assert self.process.poll() is None or re.search(text, self.output), self.output
            return re.search(text, self.output) is not None or None

        until(look, f"{text!r}", PATIENCE_SECONDS, lambda: self.output)

    def end(self, *signals: signal.Signals) -> tuple[int, float]:
        """Send signals, wait for the end, and return the exit code and the seconds it took."""
        began = time.monotonic()
        for number in signals:
            self.process.send_signal(number)
            time.sleep(0.2)
        return self.process.wait(PATIENCE_SECONDS), time.monotonic() - began


def processes(home: Path) -> list[str]:
    """The processes that have a home in their arguments or in their environment."""
    command = ["ps", "axeww", "-o", "pid=,command="]
    # Without the variable for the home, so that it is not in the list itself.
    environment = {"PATH": os.environ["PATH"]}
    listed = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return [line[:200] for line in listed.stdout.splitlines() if str(home) in line]


def nothing_is_left(home: Path) -> bool:
    files = ServerFiles(home / "prefect")
    # The system takes a moment to end a killed process.
    until(lambda: not processes(home) or None, "nothing to be left")
    assert not any(is_locked(lock) for lock in (files.lock, files.start_lock, home / "up.lock"))
    return True


@pytest.fixture(scope="module")
def box() -> Iterator[Sandbox]:
    with Sandbox(SandboxOptions(conversations=6, sizes=(30,))) as box:
        yield box


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    home = make_home(tmp_path_factory, "up")
    yield home
    for line in processes(home):
        with suppress(ProcessLookupError):
            os.kill(int(line.split()[0]), signal.SIGKILL)


@pytest.fixture(scope="module")
def settings(box: Sandbox, home: Path) -> dict[str, str]:
    (home / "phones.txt").write_text("\n".join(box.phones), encoding="utf-8")
    return {
        "IMBRACE_TOKEN": box.options.token,
        "IMBRACE_ORGANIZATION": box.options.organization_id,
        "IMBRACE_GATEWAY": box.url,
        "IMBRACE_LAKE": str(home / "lake"),
    }


@pytest.fixture(scope="module")
def start(home: Path, settings: dict[str, str]) -> Callable[[], Up]:
    return lambda: Up(home, settings, "--phones", str(home / "phones.txt"))


@pytest.fixture
def operator(home: Path, tmp_path: Path) -> Callable[[], Operator]:
    """A person at the local server, once there is one."""

    def at() -> Operator:
        server = server_status(home)
        assert server is not None
        return Operator(server, tmp_path)

    return at


def test_a_scheduled_run_completes_and_ctrl_c_ends_everything(
    start: Callable[[], Up], operator: Callable[[], Operator], home: Path, run: Run
) -> None:
    began = datetime.now(UTC)
    with start() as up:
        up.shows("ingest at ")
        waited = (datetime.now(UTC) - began).seconds // 60
        minute = minute_of_ingestion(operator())
        let_ingestion_be_due(operator())
        up.shows(r"ingest \([0-9a-f]{8}\): Completed")
        os.environ["IMBRACE_HOME"] = str(home)
        second = run("up", "--demo", "--lake", "s3://bucket/lake"), run("up")
        code, _ = up.end(signal.SIGINT)

    assert (minute - began.minute) % 60 <= waited + 3
    assert [one.code for one in second] == [2, 1]
    assert second[1].err.count("\n") == 1
    assert f"another `imbrace-lake up` is running already (process {up.process.pid})" in second[1].err
    assert (code, nothing_is_left(home)) == (0, True), up.output
    assert up.output.rstrip().endswith("has ended")
    assert (home / "lake" / "messages").exists()


def minute_of_ingestion(operator: Operator) -> int:
    (schedule,) = operator.deployment("ingest")["schedules"]
    minute, *other = schedule["schedule"]["cron"].split()
    assert other == ["*"] * 4
    return int(minute)


def let_ingestion_be_due(operator: Operator) -> None:
    ingest = operator.deployment("ingest")
    (schedule,) = ingest["schedules"]
    body = {"schedules": [{"slug": schedule["slug"], "schedule": {"interval": 20}}]}
    operator.ask("PATCH", f"/deployments/{ingest['id']}", body)


def test_killed_at_any_moment_and_called_again_it_continues(
    start: Callable[[], Up], operator: Callable[[], Operator], box: Sandbox, home: Path
) -> None:
    stuck = box.put([], phone="+886911500001")
    box.append(stuck, 3)
    box.break_conversation(stuck, "stall")
    (home / "more.txt").write_text("+886911500001\n", encoding="utf-8")
    # Each start takes 10 s of CPU, and the kill below is one at a moment with more to lose.
    for moment in ("server ", "worker ") if IS_FULL else ():
        with start() as up:
            up.shows(moment)
            up.end(signal.SIGKILL)
    with start() as up:
        up.shows("worker ")
        run_id = operator().start("export", phones=str(home / "more.txt"))
        up.shows(r"export \([0-9a-f]{8}\): started, http")
        until(lambda: box.stats().pages[stuck] or None, "the run to be stuck")
        up.end(signal.SIGKILL)
    assert processes(home), "the run goes on without its worker"

    box.repair(stuck)
    with start() as up:
        up.shows("cut off earlier, to be continued now")
        up.shows(r"export \S+ \([0-9a-f]{8}\): Completed")
        workers = operator().ask("POST", "/work_pools/imbrace/workers/filter", {})
        states = operator().states(run_id)
        pid = operator().server.pid
        os.kill(pid, signal.SIGKILL)
        up.shows("the Prefect server is running again")
        again = operator().start("export", phones=str(home / "more.txt"))
        state = operator().wait(again)
        code, _ = up.end(signal.SIGTERM)

    assert [name for name in states if name in ("Running", "Restarting", "Crashed", "Completed")] == [
        "Running",
        "Restarting",
        "Running",
        "Completed",
    ]
    assert len(workers) == 1
    assert state["name"] == "Completed"
    assert (code, nothing_is_left(home)) == (0, True), up.output


@pytest.mark.skipif(not IS_FULL, reason="test_death.py kills a process, too: IMBRACE_ACCEPTANCE=full")
def test_a_run_whose_process_was_killed_says_so_in_red_and_continues(
    start: Callable[[], Up], operator: Callable[[], Operator], box: Sandbox, home: Path
) -> None:
    stuck = box.put([], phone="+886911500003")
    box.append(stuck, 3)
    box.break_conversation(stuck, "stall")
    (home / "killed.txt").write_text("+886911500003\n", encoding="utf-8")
    with start() as up:
        up.shows("worker ")
        run_id = operator().start("export", phones=str(home / "killed.txt"))
        until(lambda: box.stats().pages[stuck] or None, "the run to be stuck")
        os.killpg(int(operator().flow_run(run_id)["infrastructure_pid"]), signal.SIGKILL)
        box.repair(stuck)
        wanted = {"logs": {"flow_run_id": {"any_": [run_id]}, "level": {"ge_": logging.ERROR}}}

        def red() -> list[str] | None:
            return [one["message"] for one in operator().ask("POST", "/logs/filter", wanted)] or None

        lines = until(red, "a red line", PATIENCE_SECONDS)
        # Crashed is its end only if it crashes again.
        until(lambda: "Completed" in operator().states(run_id) or None, "its end", PATIENCE_SECONDS)
        code, _ = up.end(signal.SIGINT)

    (line,) = [one for one in lines if one.startswith("the process of this run")]
    assert "was ended by SIGKILL (signal 9), perhaps because this machine lacks memory." in line
    assert (code, nothing_is_left(home)) == (0, True), up.output


@pytest.mark.skipif(not IS_FULL, reason="test_end_to_end.py presses it during a run: IMBRACE_ACCEPTANCE=full")
def test_a_second_ctrl_c_ends_at_once_and_the_run_continues_later(
    start: Callable[[], Up], operator: Callable[[], Operator], box: Sandbox, home: Path
) -> None:
    stuck = box.put([], phone="+886911500002")
    box.append(stuck, 3)
    box.break_conversation(stuck, "stall")
    (home / "others.txt").write_text("+886911500002\n", encoding="utf-8")
    with start() as up:
        up.shows("worker ")
        run_id = operator().start("export", phones=str(home / "others.txt"))
        up.shows(r"export \([0-9a-f]{8}\): started, http")
        until(lambda: box.stats().pages[stuck] or None, "the run to be stuck")
        code, seconds = up.end(signal.SIGINT, signal.SIGINT)
    assert (code, nothing_is_left(home)) == (130, True), up.output
    assert seconds < 30
    assert re.search("stopping: the .*run.* in progress continues? with the next", up.output), up.output

    box.repair(stuck)
    with start() as up:
        up.shows(r"export \S+ \([0-9a-f]{8}\): Completed")
        assert operator().states(run_id)[-1] == "Completed"
        up.end(signal.SIGTERM)


def test_a_configured_server_stays_and_a_wrong_token_stops_everything(
    prefect_server: LocalServer, settings: dict[str, str], tmp_path: Path
) -> None:
    configured = {**settings, "PREFECT_API_URL": prefect_server.api_url, "PREFECT_HOME": str(tmp_path)}
    operator = Operator(prefect_server, tmp_path)
    with Up(tmp_path, {**configured, "IMBRACE_TOKEN": "api_refused"}) as up:
        code, _ = up.end()
    refused, deployments = up.output, operator.ask("POST", "/deployments/filter", {})

    with Up(tmp_path, configured) as up:
        up.shows("ingest at ")
        ended = up.end(signal.SIGTERM)

    assert code == 1
    assert refused.splitlines()[-1].startswith("error: token: ")
    assert len(refused.splitlines()) == 2
    assert deployments == []
    assert (ended[0], nothing_is_left(tmp_path)) == (0, True), up.output
    assert server_status(prefect_server.directory.parent) is not None


@pytest.mark.parametrize(
    ("arguments", "reported"),
    [
        ((), "nothing to export from and to"),
        (("--demo", "--phones", "numbers.txt"), "leave these options out"),
        (("--demo", "--lake", "s3://bucket/lake"), "only to a local folder"),
        (("--pool", "a/b"), "not a valid name"),
        (("--limit", "1"), "--limit"),
    ],
)
def test_wrong_use_is_one_sentence_and_starts_nothing(
    run: Run, workdir: Path, arguments: tuple[str, ...], reported: str
) -> None:
    result = run("up", *arguments)

    assert result.code == 2
    assert reported in result.err
    assert len(result.err.splitlines()) == 1
    assert not (workdir.parent / "home" / "prefect").exists()
