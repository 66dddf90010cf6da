"""A run that asks before it reads, answered through the API as the UI does it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from prefect.events.schemas.automations import EventTrigger

from imbrace_deployments.automations import automations
from imbrace_sandbox import Sandbox
from tests.acceptance.scale import IS_FULL
from tests.deployments.lakes import messages
from tests.deployments.operator import Operator, Worker

pytestmark = pytest.mark.timeout(4_000)


def ask(operator: Operator, number: str, worker: Worker) -> str:
    """Start a run that asks, and return its id once it waits."""
    run_id = operator.start("export", numbers=number, ask_first=True)

    def is_waiting() -> bool | None:
        state = operator.flow_run(run_id)["state"]
        assert state["type"] not in ("FAILED", "CRASHED"), f"{state}\n{worker.log.read_text()}"
        return True if state["name"] == "Suspended" else None

    operator.until(is_waiting, "the question")
    return run_id


def question(operator: Operator, run_id: str) -> str:
    """Return the text in the form of the answer; Prefect stores it after the run is suspended."""
    key = operator.flow_run(run_id)["state"]["state_details"]["run_input_keyset"]["description"]

    def stored() -> list[dict[str, Any]] | None:
        return operator.ask("POST", f"/flow_runs/{run_id}/input/filter", {"prefix": key}) or None

    (found,) = operator.until(stored, "the question to be stored")
    return str(json.loads(found["value"]))


def answer(operator: Operator, run_id: str, decision: str) -> dict[str, Any]:
    body = {"run_input": {"decision": decision}}
    return dict(operator.ask("POST", f"/flow_runs/{run_id}/resume", body))


def decide(operator: Operator, run_id: str, decision: str) -> None:
    """Answer as a person does: again, if a busy server did not accept the answer."""

    def is_taken() -> bool | None:
        return answer(operator, run_id, decision)["status"] == "ACCEPT" or None

    operator.until(is_taken, "the answer to be taken")


def artifact(operator: Operator, run_id: str, key: str) -> list[str]:
    wanted = {"artifacts": {"flow_run_id": {"any_": [run_id]}, "key": {"any_": [key]}}}
    return [one["data"] for one in operator.ask("POST", "/artifacts/filter", wanted)]


def test_an_approved_run_reads_what_it_planned(
    deployed: Operator, worker: Worker, box: Sandbox, lake: Path
) -> None:
    new = box.put([], phone="+886911000333")
    box.append(new, 3)
    run_id = ask(deployed, "+886911000333", worker)
    (plan,) = artifact(deployed, run_id, "export-plan")
    shown = question(deployed, run_id)
    before = messages(lake)[new]

    rejected = answer(deployed, run_id, "perhaps")
    decide(deployed, run_id, "approve")
    state = deployed.wait(run_id)

    assert "- **conversations:** 1 new to the lake" in plan
    assert "about 3 in the new ones" in plan
    assert "911000333" not in plan
    assert shown == plan
    assert before == 0
    assert rejected["status"] == "REJECT"
    assert state["name"] == "Completed", state["message"]
    assert messages(lake)[new] == 3
    # Resumed, it does not plan again.
    assert len(artifact(deployed, run_id, "export-plan")) == 1


@pytest.mark.skipif(not IS_FULL, reason="the browser tests do this: IMBRACE_ACCEPTANCE=full")
def test_a_declined_run_reads_nothing_and_is_shown_as_declined(
    deployed: Operator, worker: Worker, box: Sandbox, lake: Path
) -> None:
    new = box.put([], phone="+886911000444")
    box.append(new, 3)
    run_id = ask(deployed, "+886911000444", worker)

    decide(deployed, run_id, "decline")
    state = deployed.wait(run_id)

    assert (state["type"], state["name"]) == ("CANCELLED", "Declined")
    assert state["message"] == "declined: the plan was not approved, and nothing was read into the lake"
    assert new not in messages(lake)


def test_a_run_that_waits_for_an_answer_is_not_considered_dead() -> None:
    trigger = automations()[0].trigger

    assert isinstance(trigger, EventTrigger)
    assert {"prefect.flow-run.Suspended", "prefect.flow-run.Declined"} <= trigger.expect
