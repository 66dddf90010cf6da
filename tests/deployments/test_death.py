"""A worker that dies takes its runs with it: they are restarted and continue their work, and only once."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from imbrace_sandbox import Sandbox
from tests.deployments.conftest import PAUSE, Halted
from tests.deployments.lakes import messages
from tests.deployments.operator import Operator, Worker

# A second restart would follow the crash after the pause, within a second or two.
LONG_ENOUGH_SECONDS = PAUSE.total_seconds() + 8.0

pytestmark = pytest.mark.timeout(4_000)


def test_a_run_whose_worker_died_is_restarted_and_continues_but_only_once(
    hasty: Operator, box: Sandbox, lake: Path, halted: Halted
) -> None:
    bare = Operator(hasty.server, hasty.folder)
    run_id = hasty.start("export", phones=str(halted.phones))
    with Worker(bare, "imbrace") as worker:
        hasty.until(lambda: set(halted.quick) <= messages(lake).keys() or None, "what is answered")
        hasty.until(
            lambda: all(box.stats().pages[one] for one in halted.stuck) or None, "the run to be stuck"
        )
        worker.kill()
    halted.release(box)

    hasty.until(lambda: "Restarting" in hasty.states(run_id) or None, "the run to be started again")
    with Worker(bare, "imbrace"):
        state = hasty.wait(run_id)

    assert state["name"] == "Completed", state["message"]
    reported = [
        name for name in hasty.states(run_id) if name in ("Running", "Crashed", "Restarting", "Completed")
    ]
    assert reported == ["Running", "Crashed", "Restarting", "Running", "Completed"]
    found = messages(lake)
    everything = (*halted.quick, *halted.stuck)
    assert {one: found[one] for one in everything} == dict.fromkeys(everything, 3)
    # The journal lacks the work of the last second; each of these conversations costs one request.
    assert all(box.stats().pages[one] <= 1 for one in halted.quick), "finished conversations were read again"


def test_a_run_that_crashes_again_is_not_restarted(hasty: Operator, halted: Halted) -> None:
    bare = Operator(hasty.server, hasty.folder)
    crash = {"state": {"type": "CRASHED", "message": "as if its process had been killed"}}
    run_id = hasty.start("export", phones=str(halted.phones))
    with Worker(bare, "imbrace"):
        hasty.until(lambda: hasty.states(run_id).count("Running") == 1 or None, "the first try")
        hasty.ask("POST", f"/flow_runs/{run_id}/set_state", crash)
        hasty.until(lambda: hasty.states(run_id).count("Running") == 2 or None, "the second try")
        hasty.ask("POST", f"/flow_runs/{run_id}/set_state", crash)
        # As if the infrastructure had failed before the run could begin.
        hasty.ask("POST", f"/flow_runs/{run_id}/set_state", crash | {"force": True})
        time.sleep(LONG_ENOUGH_SECONDS)

    assert hasty.states(run_id).count("Restarting") == 1
    assert hasty.flow_run(run_id)["state"]["name"] == "Crashed"
