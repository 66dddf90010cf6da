"""A run that is cancelled in the UI stops soon and leaves complete conversations; the next run continues."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pyarrow.dataset as ds
import pytest

from imbrace_sandbox import Sandbox
from tests.deployments.conftest import Halted
from tests.deployments.lakes import messages
from tests.deployments.operator import BIN, CEILING_SECONDS, Operator, until

# On an idle machine 15 s; long enough for a busy one, and far less than a stuck run takes by itself.
CANCELLED_WITHIN_SECONDS = 120.0

pytestmark = [pytest.mark.usefixtures("worker"), pytest.mark.timeout(4_000)]


def test_a_cancelled_run_stops_and_the_next_run_exports_the_rest(
    deployed: Operator, box: Sandbox, lake: Path, halted: Halted
) -> None:
    run_id = deployed.start("export", phones=str(halted.phones))
    deployed.until(lambda: all(box.stats().pages[one] for one in halted.stuck) or None, "the run to be stuck")
    deployed.until(lambda: set(halted.quick) <= messages(lake).keys() or None, "what is answered")
    pid = int(deployed.flow_run(run_id)["infrastructure_pid"].rpartition(":")[2])

    deployed.ask("POST", f"/flow_runs/{run_id}/set_state", {"state": {"type": "CANCELLING"}})

    def is_cancelled() -> bool | None:
        return deployed.flow_run(run_id)["state"]["name"] == "Cancelled" or None

    until(is_cancelled, "the state Cancelled", CANCELLED_WITHIN_SECONDS)
    until(lambda: not is_running(pid) or None, "the end of its process")
    # The run reports its end; a worker that has looked for hooks repeats it.
    states = deployed.states(run_id)
    assert set(states[states.index("Cancelling") + 1 :]) == {"Cancelled"}
    assert not any("Traceback" in line for line in deployed.logs(run_id))
    found = messages(lake)
    assert {one: found[one] for one in halted.quick} == dict.fromkeys(halted.quick, 3)
    assert found.keys().isdisjoint(halted.stuck)

    halted.release(box)
    state = deployed.wait(deployed.start("export", phones=str(halted.phones)))

    assert state["name"] == "Completed", state["message"]
    found = messages(lake)
    assert {one: found[one] for one in (*halted.quick, *halted.stuck)} == dict.fromkeys(
        (*halted.quick, *halted.stuck), 3
    )
    pages = box.stats().pages
    assert [pages[one] for one in halted.quick] == [0] * len(halted.quick), (
        "what was done was asked for again"
    )


def test_a_run_that_is_deleted_ends_as_if_it_was_cancelled(
    deployed: Operator, box: Sandbox, lake: Path, halted: Halted
) -> None:
    run_id = deployed.start("export", phones=str(halted.phones))
    deployed.until(lambda: all(box.stats().pages[one] for one in halted.stuck) or None, "the run to be stuck")
    pid = int(deployed.flow_run(run_id)["infrastructure_pid"].rpartition(":")[2])
    log = deployed.folder / "worker.log"
    before = log.stat().st_size

    deployed.ask("DELETE", f"/flow_runs/{run_id}")

    until(lambda: not is_running(pid) or None, "the end of its process", CANCELLED_WITHIN_SECONDS)
    rows = ds.dataset(lake / "runs").to_table(columns=["run_id", "status"]).to_pylist()
    statuses = {row["run_id"]: row["status"] for row in rows}
    assert statuses[run_id] == "cancelled"
    lines = log.read_bytes()[before:].decode()
    assert "the run was deleted in Prefect: Cancelled." in lines
    assert "Traceback" not in lines


def test_a_run_that_no_worker_watches_ends_when_it_is_cancelled(
    deployed: Operator, box: Sandbox, lake: Path, halted: Halted
) -> None:
    command = [str(BIN / "imbrace-lake"), "export", "--phones", str(halted.phones)]
    run = subprocess.Popen(
        command, cwd=deployed.folder, env=deployed.environment(), stderr=subprocess.PIPE, text=True
    )
    deployed.until(lambda: all(box.stats().pages[one] for one in halted.stuck) or None, "the run to be stuck")
    body = {"flow_runs": {"state": {"type": {"any_": ["RUNNING"]}}, "deployment_id": {"is_null_": True}}}
    (found,) = deployed.ask("POST", "/flow_runs/filter", body)

    deployed.ask("POST", f"/flow_runs/{found['id']}/set_state", {"state": {"type": "CANCELLING"}})

    def is_cancelled() -> bool | None:
        return deployed.flow_run(found["id"])["state"]["name"] == "Cancelled" or None

    until(is_cancelled, "the state Cancelled", CANCELLED_WITHIN_SECONDS)
    _, reported = run.communicate(timeout=CEILING_SECONDS)
    assert run.returncode == 1, reported
    assert "the run was cancelled; " in reported
    assert "Traceback" not in reported
    assert deployed.states(found["id"])[-2:] == ["Cancelling", "Cancelled"]
    assert messages(lake).keys().isdisjoint(halted.stuck)


def is_running(pid: int) -> bool:
    """Whether there is a process with this id."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
