"""Every deployment, run once by a real worker, as an operator would start it."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow.dataset as ds
import pytest

from cli.local_server import LocalServer
from sandbox import Sandbox
from tests.deployments.conftest import TOKEN
from tests.deployments.operator import Operator, Worker, until

ROUTINE = ["Scheduled", "Pending", "Running", "Completed"]

pytestmark = [pytest.mark.usefixtures("worker"), pytest.mark.timeout(400)]


@pytest.fixture(scope="module")
def exported(deployed: Operator, worker: Worker, phones: Path) -> str:
    """The run that filled the lake."""
    run_id = deployed.start("export-on-demand", phones=str(phones))
    state = deployed.wait(run_id)
    assert state["name"] == "Completed", f"{state['message']}\n{worker.log.read_text()}"
    return run_id


def conversations(lake: Path) -> set[str]:
    """Which conversations a reader of the lake finds."""
    table = ds.dataset(lake / "messages").to_table(columns=["conversation_id"])
    return set(table.column(0).to_pylist())


def test_an_export_on_demand_fills_the_lake_and_is_named_after_the_organization(
    deployed: Operator, exported: str, box: Sandbox, lake: Path
) -> None:
    run = deployed.flow_run(exported)

    assert conversations(lake) == {one for ids in box.links.values() for one in ids}
    assert run["name"].startswith(f"export-{box.options.organization_id}-")
    assert set(run["tags"]) >= {"imbrace-lake", "export"}
    logs = deployed.ask("POST", "/logs/filter", {"logs": {"flow_run_id": {"any_": [exported]}}})
    assert any("exported chunk=" in line["message"] for line in logs)


def test_ingestion_finds_new_messages_and_conversations_that_began_since(
    deployed: Operator, exported: str, box: Sandbox, lake: Path
) -> None:
    known = next(one for ids in box.links.values() for one in ids)
    before = ds.dataset(lake / "messages").count_rows()
    box.append(known)
    began = box.put([], phone=next(iter(box.links)))
    box.append(began)

    state = deployed.wait(deployed.start("ingest-hourly"))

    assert state["name"] == "Completed", state["message"]
    assert ds.dataset(lake / "messages").count_rows() == before + 2
    assert began in conversations(lake)


def test_a_backfill_reads_everything_the_lake_knows_again(deployed: Operator, exported: str) -> None:
    state = deployed.wait(deployed.start("backfill-on-demand", source="everything"))

    assert state["name"] == "Completed", state["message"]


def test_what_a_run_left_undone_is_brought_by_its_id(
    deployed: Operator, exported: str, box: Sandbox, lake: Path
) -> None:
    broken = box.put([], phone="+886911000111")
    box.append(broken)
    box.break_conversation(broken, "400")
    partial = deployed.start("export-on-demand", numbers="+886911000111, +886911000112")
    assert deployed.wait(partial)["name"] == "Failed"
    box.mend(broken)

    state = deployed.wait(deployed.start("rerun-failed", rerun=partial))

    assert state["name"] == "Completed", state["message"]
    assert broken in conversations(lake)


def test_an_event_that_names_a_list_starts_an_export_of_that_list(
    deployed: Operator, exported: str, box: Sandbox, lake: Path, tmp_path: Path
) -> None:
    new = box.put([], phone="+886911000222")
    box.append(new)
    uploaded = tmp_path / "today.csv"
    uploaded.write_text("phone\n+886911000222\n", encoding="utf-8")

    emitted = deployed.run(
        "prefect", "event", "emit", "imbrace.phones.uploaded",
        "--resource-id", "imbrace.phones.today", "--payload", f'{{"list": "{uploaded}"}}',
    )  # fmt: skip
    assert emitted.returncode == 0, emitted.stderr

    deployment = deployed.deployment("export-on-phones-uploaded")
    runs = {"flow_runs": {"deployment_id": {"any_": [deployment["id"]]}}}
    run = until(lambda: next(iter(deployed.ask("POST", "/flow_runs/filter", runs)), None), "the run")
    assert run["parameters"]["params"] == {"phones": str(uploaded)}
    assert deployed.wait(run["id"])["name"] == "Completed"
    assert new in conversations(lake)


def test_neither_parameters_nor_anything_else_of_the_server_holds_the_token(
    deployed: Operator, exported: str, server: LocalServer
) -> None:
    parameters = deployed.flow_run(exported)["parameters"]
    dump = "\n".join(_dump(server))

    assert parameters["credentials"].keys() == {"$ref"}
    # What is searched does hold the runs and the blocks.
    assert exported.replace("-", "") in dump.replace("-", "")
    assert "imbrace-credentials" in dump
    assert TOKEN not in dump


def _dump(server: LocalServer) -> Iterator[str]:
    time.sleep(2)  # what the server was told last is in its database a second later
    connection = sqlite3.connect(f"file:{server.directory / 'prefect.db'}?mode=ro", uri=True)
    try:
        yield from connection.iterdump()
    finally:
        connection.close()
