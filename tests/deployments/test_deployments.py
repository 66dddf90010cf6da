"""Every deployment, run once by a real worker, as an operator would start it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import pyarrow.dataset as ds
import pytest

from imbrace_cli.local_server import LocalServer
from imbrace_sandbox import Sandbox
from tests.deployments.conftest import TOKEN
from tests.deployments.database import dump
from tests.deployments.lakes import messages
from tests.deployments.operator import ROOT, Operator, Worker
from tools.seaweed import Seaweed

TYPED = "886911000111"
BACKWARDS = "the window ends before it begins: Until must be later than From"

pytestmark = [pytest.mark.usefixtures("worker"), pytest.mark.timeout(4_000)]


@pytest.fixture(scope="module")
def exported(deployed: Operator, worker: Worker, phones: Path) -> str:
    """The run that filled the lake."""
    run_id = deployed.start("export", phones=str(phones))
    state = deployed.wait(run_id)
    assert state["name"] == "Completed", f"{state['message']}\n{worker.log.read_text()}"
    return run_id


def test_an_export_on_demand_fills_the_lake_and_is_named_after_its_list(
    deployed: Operator, exported: str, phones: Path, listed: set[str], lake: Path
) -> None:
    run = deployed.flow_run(exported)

    assert messages(lake).keys() >= listed
    assert run["name"] == f"export {phones.name}"
    assert set(run["tags"]) >= {"imbrace-lake", "export"}
    # Lines reach the server in bundles, the last of them after the state of the run.
    assert deployed.until(
        lambda: [line for line in deployed.logs(exported) if line.startswith("found: ")] or None,
        "the lines of the run",
    )


def test_ingestion_finds_new_messages_and_conversations_and_the_next_run_is_left_out_meanwhile(
    deployed: Operator, exported: str, box: Sandbox, lake: Path
) -> None:
    known = next(one for ids in box.links.values() for one in ids)
    before = messages(lake)[known]
    box.append(known)
    began = box.put([], phone=next(iter(box.links)))
    box.append(began)
    box.set_options(latency_seconds=2.0)

    first, second = deployed.start("ingest"), deployed.start("ingest")
    states = {deployed.wait(first)["name"], deployed.wait(second)["name"]}

    box.set_options(latency_seconds=0.0)
    assert states == {"Completed", "Cancelled"}
    found = messages(lake)
    assert (found[known], found[began]) == (before + 1, 1)


def test_schedules_have_runs_that_wait_for_their_time(deployed: Operator) -> None:
    deployed.set_clock("resume")
    for name in ("ingest", "verify"):
        body = {"flow_runs": {"deployment_id": {"any_": [deployed.deployment(name)["id"]]}}}

        def waiting(body: object = body) -> dict[str, Any] | None:
            runs = deployed.ask("POST", "/flow_runs/filter", body)
            return next((run for run in runs if run["auto_scheduled"]), None)

        # The server looks at schedules once a minute.
        assert deployed.until(waiting, f"a run that {name} is to start by itself")["expected_start_time"]
    deployed.set_clock("pause")


def test_a_backfill_reads_everything_the_lake_knows_again(deployed: Operator, exported: str) -> None:
    state = deployed.wait(deployed.start("backfill", everything=True))

    assert state["name"] == "Completed", state["message"]


def test_a_rerun_by_id_exports_the_failures_and_typed_numbers_are_shown_nowhere_else(
    deployed: Operator, exported: str, box: Sandbox, lake: Path, server: LocalServer, worker: Worker
) -> None:
    broken = box.put([], phone=f"+{TYPED}")
    box.append(broken)
    box.break_conversation(broken, "400")
    partial = deployed.start("export", numbers=f"+{TYPED}")
    assert deployed.wait(partial)["name"] == "Failed"
    box.repair(broken)

    state = deployed.wait(deployed.start("retry-failed", rerun=partial))

    assert state["name"] == "Completed", state["message"]
    assert broken in messages(lake)
    # The form accepts any window, and the run rejects it in the worker's process.
    window = {"since": "2026-01-02T00:00:00Z", "until": "2026-01-01T00:00:00Z"}
    rejected = deployed.start("backfill", numbers=f"+{TYPED}", **window)
    assert deployed.wait(rejected)["message"] == BACKWARDS
    # Lines reach the server in bundles, the last of them after the state of the run.
    deployed.until(lambda: BACKWARDS in deployed.logs(rejected) or None, "the line of the rejected run")
    assert [line for line in deployed.logs(rejected) if "\n" in line] == []
    names = [deployed.flow_run(each)["name"] for each in (partial, rejected)]
    assert names == ["export typed numbers", "backfill typed numbers 2026-01-02…2026-01-01"]
    places = {line.partition("(")[0] for line in _dump(server) if TYPED in line}
    assert places == {'INSERT INTO "flow_run" VALUES'}
    assert TYPED not in worker.log.read_text()
    assert TYPED not in repr(ds.dataset(lake / "runs").to_table().to_pylist())


def emit(operator: Operator, name: str, payload: dict[str, object]) -> None:
    """Send an event, as `prefect event emit` does (tests/test_docs_commands.py)."""
    event = {
        "id": str(uuid4()),
        "occurred": datetime.now(UTC).isoformat(),
        "event": name,
        "resource": {"prefect.resource.id": "imbrace.test"},
        "payload": payload,
    }
    operator.ask("POST", "/events", [event])


def test_an_event_that_names_a_list_starts_an_export_of_that_list(
    deployed: Operator, exported: str, box: Sandbox, lake: Path, tmp_path: Path
) -> None:
    new = box.put([], phone="+886911000222")
    box.append(new)
    uploaded = tmp_path / "today.csv"
    uploaded.write_text("phone\n+886911000222\n", encoding="utf-8")

    emit(deployed, "imbrace.phones.uploaded", {"list": str(uploaded)})

    deployment = deployed.deployment("export-on-upload")
    runs = {"flow_runs": {"deployment_id": {"any_": [deployment["id"]]}}}
    run = deployed.until(lambda: next(iter(deployed.ask("POST", "/flow_runs/filter", runs)), None), "the run")
    assert run["parameters"]["params"] == {"phones": str(uploaded)}
    assert deployed.wait(run["id"])["name"] == "Completed"
    assert new in messages(lake)


def test_an_event_with_a_conversation_lets_a_run_visit_it(
    deployed: Operator, exported: str, box: Sandbox, lake: Path
) -> None:
    one = next(iter(box.conversations))
    emit(deployed, "imbrace.conversation.changed", {"conversations": [one]})

    deployment = deployed.deployment("ingest-changed")
    runs = {"flow_runs": {"deployment_id": {"any_": [deployment["id"]]}}}
    run = deployed.until(lambda: next(iter(deployed.ask("POST", "/flow_runs/filter", runs)), None), "the run")
    assert run["parameters"]["params"] == {"conversations": one}
    assert deployed.wait(run["id"])["name"] == "Completed"


def test_an_event_that_names_nothing_is_a_failed_run_with_the_reason(
    deployed: Operator, exported: str
) -> None:
    emit(deployed, "imbrace.phones.uploaded", {"list": None})

    deployment = deployed.deployment("export-on-upload")
    runs = {"flow_runs": {"deployment_id": {"any_": [deployment["id"]]}}}

    def found() -> dict[str, Any] | None:
        runs_of_events = deployed.ask("POST", "/flow_runs/filter", runs)
        return next((run for run in runs_of_events if run["parameters"]["params"] == {"phones": "?"}), None)

    state = deployed.wait(deployed.until(found, "the run")["id"])
    assert (state["name"], state["message"]) == (
        "Failed",
        'List of phone numbers: the event names none: its payload must be {"list": "s3://bucket/list.csv"}',
    )


def lake_block(operator: Operator) -> dict[str, Any]:
    """The block of the lake, with its secrets."""
    blocks = operator.ask("POST", "/block_documents/filter", {"include_secrets": True})
    return next(one for one in blocks if one["block_type"]["slug"] == "conversation-lake")


def test_a_lake_in_a_bucket_is_reached_with_the_keys_of_its_block(
    deployed: Operator,
    exported: str,
    listed: set[str],
    phones: Path,
    s3: Seaweed,
    bucket: str,
    server: LocalServer,
) -> None:
    keys = {
        "AWS_ACCESS_KEY_ID": s3.key,
        "AWS_SECRET_ACCESS_KEY": s3.secret,
        "AWS_ENDPOINT_URL": s3.endpoint_url,
        "AWS_REGION": "us-east-1",
    }
    before = lake_block(deployed)
    reported = deployed.run("imbrace-lake", "setup", IMBRACE_LAKE=f"s3://{bucket}/lake", **keys).stdout

    # The worker has no keys, and the deployment still refers to the block.
    state = deployed.wait(deployed.start("export", phones=str(phones)))
    body = {"data": before["data"], "merge_existing_data": False}
    deployed.ask("PATCH", f"/block_documents/{before['id']}", body)

    assert "lake: put, get, list and delete work" in reported
    assert "changed the block conversation-lake/default" in reported
    assert state["name"] == "Completed", state["message"]
    found = s3.client().list_objects_v2(Bucket=bucket, Prefix="lake/messages/")["Contents"]
    assert len(found) >= len(listed)
    assert not any(s3.secret in line for line in _dump(server))


def test_a_schedule_starts_the_nightly_verification_which_finds_the_lake_sound(
    deployed: Operator, exported: str
) -> None:
    found = deployed.deployment("verify")
    deployment = found["id"]
    assert [one["schedule"]["cron"] for one in found["schedules"]] == ["30 2 * * *"]
    # A run per night would be too late for a test.
    schedules = f"/deployments/{deployment}/schedules"
    (made,) = deployed.ask("POST", schedules, [{"active": True, "schedule": {"interval": 10}}])
    deployed.ask("POST", f"/deployments/{deployment}/resume_deployment")
    ended = {"type": {"any_": ["COMPLETED", "FAILED", "CRASHED"]}}
    body = {"flow_runs": {"deployment_id": {"any_": [deployment]}, "state": ended}}

    def scheduled() -> dict[str, Any] | None:
        runs = deployed.ask("POST", "/flow_runs/filter", body)
        return next((run for run in runs if run["auto_scheduled"]), None)

    try:
        run = deployed.until(scheduled, "the end of a run that its schedule started")
        assert run["created_by"]["type"] == "SCHEDULE"
        assert run["state"]["name"] == "Completed", run["state"]["message"]
    finally:
        deployed.ask("DELETE", f"{schedules}/{made['id']}")
        deployed.set_clock("pause")


def test_deploying_again_asks_nothing_and_changes_nothing(deployed: Operator, exported: str) -> None:
    """By Prefect's own command, which takes the schedules of the file."""
    before = deployed.deployment("ingest")

    done = deployed.run(
        "prefect", "--no-prompt", "deploy", "--all", "--prefect-file", str(ROOT / "prefect.yaml")
    )

    deployed.set_clock("pause")
    assert done.returncode == 0, done.stdout
    after = deployed.deployment("ingest")
    assert (after["id"], after["parameters"]) == (before["id"], before["parameters"])
    assert [one["schedule"]["cron"] for one in after["schedules"]] == ["7 * * * *"]


def test_neither_parameters_nor_anything_else_on_the_server_contains_the_token(
    deployed: Operator, exported: str, server: LocalServer
) -> None:
    parameters = deployed.flow_run(exported)["parameters"]
    dump = "\n".join(_dump(server))

    assert parameters["credentials"].keys() == {"$ref"}
    # The searched text does contain the runs and the blocks.
    assert exported.replace("-", "") in dump.replace("-", "")
    assert "imbrace-credentials" in dump
    assert TOKEN not in dump


def _dump(server: LocalServer) -> Iterator[str]:
    time.sleep(2)  # the server writes the last requests to its database a second later
    yield from dump(server)
