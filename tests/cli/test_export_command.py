"""`imbrace-lake export`, run in this process against a real Prefect server and a real gateway."""

from __future__ import annotations

import errno
import gc
import io
import json
import os
import re
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pyarrow.dataset as ds
import pytest

from imbrace_cli.local_server import LocalServer
from imbrace_lake.errors import StoreError
from imbrace_lake.export.recovery import ChunkJournal
from imbrace_lake.lake.ledger_schema import ConversationEntry
from imbrace_lake.tuning import MEMORY_POOL_VARIABLE
from imbrace_sandbox import Sandbox
from tests.cli.conftest import Run, prefect_leaks
from tests.deployments.operator import until
from tests.prefect_api import send

pytestmark = [pytest.mark.usefixtures("settings", "prefect"), prefect_leaks]


def exported(workdir: Path) -> dict[str, int]:
    """Return the number of messages of each conversation in the lake."""
    rows = ds.dataset(workdir / "lake" / "messages").to_table(columns=["conversation_id"])
    counts = rows.column("conversation_id").value_counts().to_pylist()
    return {row["values"]: row["counts"] for row in counts}


def linked(box: Sandbox) -> dict[str, int]:
    """Return the number of messages of each linked conversation at the gateway."""
    ids = {one for each in box.links.values() for one in each}
    return {one: count for one, count in box.conversations.items() if one in ids and count}


def flow_run(server: LocalServer, run_id: str) -> Any:
    """Wait for the end of a run, and return Prefect's description of it."""
    for _ in range(50):
        found = httpx.get(f"{server.api_url}/flow_runs/{run_id}").json()
        if found["state"]["type"] not in ("RUNNING", "PENDING", "CANCELLING"):
            break
        time.sleep(0.1)
    return found


def test_a_phone_number_in_the_name_of_a_list_reaches_neither_prefect_nor_the_ledgers(
    run: Run, box: Sandbox, prefect: LocalServer, workdir: Path
) -> None:
    name, spoken = "export 0988 752 959.csv", re.compile("0988.{0,3}752.{0,3}959")
    rows = [f"{phone},0988752959" for phone in box.phones]
    (workdir / name).write_text("\n".join(["phone,number of 0988752959", *rows]), encoding="utf-8")

    result = run("export", "--phones", name, "--column", "1", "--json")
    by_name = run("export", "--phones", name, "--column", "number of 0988752959")

    summary = json.loads(result.out)
    assert (result.code, exported(workdir)) == (0, linked(box))
    assert summary["input"]["files"][0]["name"] == "export ….csv"
    found = flow_run(prefect, summary["run_id"])
    artifacts = send("POST", f"{prefect.api_url}/artifacts/filter", {}).json()
    ledger = ds.dataset(workdir / "lake" / "runs").to_table().to_pylist()
    assert not spoken.search(f"{result}{found}{artifacts}{ledger}")
    assert found["name"] == "export export ….csv"
    assert by_name.code == 2
    assert "the name of the column may contain a phone number" in by_name.err


def test_a_run_whose_accounts_cannot_be_written_shows_what_it_did(
    run: Run, box: Sandbox, monkeypatch: pytest.MonkeyPatch, workdir: Path
) -> None:
    async def publish(*_: object) -> None:
        raise StoreError("the disk is full")

    monkeypatch.setattr("imbrace_lake.lake.ledger.Journal.publish", publish)

    result = run("export", *box.phones, "--json")

    summary = json.loads(result.out)
    assert (result.code, summary["status"]) == (1, "failed")
    assert "could not be written: the disk is full" in summary["reason"]
    assert summary["totals"]["requests"] == sum(box.stats().requests.values())
    assert summary["totals"]["messages_new"] == sum(exported(workdir).values())
    assert summary["totals"]["written_bytes"] > 0


def test_a_file_is_exported_and_its_flaws_are_listed(
    run: Run, box: Sandbox, phones: Path, workdir: Path
) -> None:
    result = run("export", "--phones", str(phones))

    assert result.code == 0
    assert exported(workdir) == linked(box)
    assert result.out.startswith("complete: 3 of 18 input entries could not be read (entries 3, 6, 12)\n")
    assert "3 invalid" in result.out
    assert "/runs/flow-run/" in result.out
    assert result.err.count("input: line ") == 3
    assert not any(number in result.out + result.err for number in box.phones)


def test_a_terminal_that_is_closed_does_not_end_the_run(
    run: Run, box: Sandbox, phones: Path, workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def closed(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("imbrace_cli.progress_view._LineView.update", closed)

    assert run("export", "--phones", str(phones)).code == 0
    assert exported(workdir) == linked(box)


def test_results_stay_in_the_process_even_if_prefect_stores_results_by_default(
    run: Run, box: Sandbox, phones: Path, workdir: Path, prefect: LocalServer
) -> None:
    from prefect.settings import PREFECT_LOCAL_STORAGE_PATH, PREFECT_RESULTS_PERSIST_BY_DEFAULT
    from prefect.settings import temporary_settings as temporary

    stored = workdir / "results"
    with temporary({PREFECT_RESULTS_PERSIST_BY_DEFAULT: True, PREFECT_LOCAL_STORAGE_PATH: stored}):
        summary = json.loads(run("export", "--phones", str(phones), "--json").out)

    run_id = summary["run_id"]
    assert summary["totals"]["phones"]["invalid"] == 3
    states = httpx.get(f"{prefect.api_url}/flow_run_states/", params={"flow_run_id": run_id}).json()
    assert "Completed" in str([state["name"] for state in states])

    def tasks() -> list[Any]:
        asked = {"flow_runs": {"id": {"any_": [run_id]}}}
        found: list[Any] = httpx.post(f"{prefect.api_url}/task_runs/filter", json=asked).json()
        # A task that the server has just heard of has no state.
        return [one for one in found if one["state"] and one["state"]["type"] == "COMPLETED"]

    # Two tasks for the work, and one for the lineage.
    for one in until(lambda: tasks()[2:] and tasks(), "the tasks of the run"):
        states += httpx.get(f"{prefect.api_url}/task_run_states/", params={"task_run_id": one["id"]}).json()
    assert {state["data"] for state in states} == {None}
    assert not [*stored.glob("**/*")]


def test_the_report_of_a_list_is_shown_recorded_and_an_artifact(
    run: Run, box: Sandbox, workdir: Path, prefect: LocalServer
) -> None:
    first, second, third = box.phones[:3]
    (workdir / "lists").mkdir()
    (workdir / "lists" / "a.csv").write_text(
        f"Contacts export\nid;name;phone;phone_2;fax\n1;A;{first} / {second};{third};{third}\n2;B;unknown;;\n"
    )
    (workdir / "lists" / "b.txt").write_text(f"{first}\n")

    result = run("export", "--phones", "lists", "--json")

    summary = json.loads(result.out)
    assert summary["totals"]["phones"]["duplicate"] == 1
    assert summary["totals"]["phones"]["invalid"] == 1
    read = summary["input"]
    assert [file["columns"] for file in read["files"]] == [["phone", "phone_2"], []]
    assert read["files"][0]["left_out"] == [{"column": "fax", "cells": 1}]
    assert read["rejected"] == [{"reason": "it has letters", "count": 1, "where": ["data row 2 of a.csv"]}]
    assert "columns phone, phone_2, header in row 2" in result.err
    assert "column fax was not read, but 1 cell looks like a phone number" in result.err
    artifact = httpx.post(
        f"{prefect.api_url}/artifacts/filter",
        json={"artifacts": {"key": {"any_": ["export-input"]}, "flow_run_id": {"any_": [summary["run_id"]]}}},
    ).json()
    page = artifact[0]["data"]
    assert page.startswith("# 5 entries = 3 to be read + 1 repeated + 1 unreadable\n")
    assert "- **1 × it has letters:** `data row 2 of a.csv`" in page
    assert "column `fax` not read, though 1 cell may be numbers" in page
    assert "1 row above the header skipped" in page
    ledger = (
        ds.dataset(workdir / "lake" / "runs")
        .to_table(columns=["parameters"])
        .column("parameters")
        .to_pylist()
    )
    assert json.loads(ledger[-1])["input"] == read
    shown = result.out + result.err + str(artifact) + str(ledger)
    assert not any(number.lstrip("+") in shown for number in (first, second, third))


def test_standard_input_and_json_write_one_object_to_standard_output(
    run: Run, box: Sandbox, phones: Path, workdir: Path, prefect: LocalServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = io.TextIOWrapper(io.BytesIO(b"phone,name\n" + "\n".join(box.phones).encode()))
    monkeypatch.setattr(sys, "stdin", stream)

    result = run("export", "--phones", "-", "--column", "phone", "--json", "--chunk-size", "3")

    summary = json.loads(result.out)
    assert result.code == 0
    assert summary["status"] == "complete"
    assert summary["totals"]["messages_total"] == sum(linked(box).values())
    assert summary["flow_run_url"].endswith(summary["run_id"])
    parameters = str(flow_run(prefect, summary["run_id"])["parameters"])
    assert "memory://" in parameters
    assert not any(number.lstrip("+") in parameters for number in box.phones)


def made(prefect: LocalServer, kind: str, **fields: str) -> str:
    """Create an object in Prefect, and return its id."""
    return str(send("POST", f"{prefect.api_url}/{kind}/", fields).json()["id"])


def test_shards_without_a_worker_are_reported_before_anything_is_read(
    run: Run, box: Sandbox, phones: Path, workdir: Path, prefect: LocalServer
) -> None:
    unknown = run("export", "--phones", str(phones), "--shard-size", "5")
    flow = made(prefect, "flows", name="export-shard")
    deployment = made(prefect, "deployments", name="export-shard", flow_id=flow)
    os.environ["IMBRACE_SHARD_SIZE"] = "5"
    idle = run("export", "--phones", str(phones))
    send("DELETE", f"{prefect.api_url}/deployments/{deployment}")

    assert (unknown.code, idle.code) == (1, 1)
    assert "no deployment export-shard/export-shard" in unknown.out + unknown.err
    assert "no worker asks for runs of export-shard/export-shard" in idle.out + idle.err
    assert sum(box.stats().requests.values()) == 0
    assert not (workdir / "lake").exists()


def test_arguments_are_exported_within_the_rate_limit(
    run: Run, box: Sandbox, workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    number = next(phone for phone, ids in box.links.items() if ids)
    monkeypatch.setattr(sys, "stdin", io.StringIO())

    result = run(
        "export", number, "12", "--requests-per-second", "50", "--max-in-flight", "2", "--region", "TW"
    )

    assert result.code == 0
    assert set(exported(workdir)) == set(box.links[number]) & set(linked(box))
    assert "number 2 of the arguments" in result.err
    assert box.stats().max_in_flight <= 2
    assert "IMBRACE_MAX_IN_FLIGHT" not in os.environ


def test_a_rerun_completes_a_partial_run(run: Run, box: Sandbox, phones: Path, workdir: Path) -> None:
    broken = [*linked(box)][1]
    box.break_conversation(broken, "400")

    partial = run("export", "--phones", str(phones), "--json")
    reported = run("export", "--phones", str(phones), "--lake", str(workdir / "other"))
    box.repair(broken)
    run_id = json.loads(partial.out)["run_id"]
    repaired = run("export", "--rerun", run_id)

    assert (partial.code, reported.code, repaired.code) == (3, 3, 0)
    assert broken in reported.out
    assert "imbrace-lake export --rerun" in reported.out
    assert exported(workdir) == linked(box)
    assert "1 complete" in repaired.out


@pytest.mark.parametrize(("has_conversations", "code"), [(True, 3), (False, 1)])
def test_an_export_that_misses_numbers_ends_as_its_plan(
    has_conversations: bool, code: int, run: Run, box: Sandbox
) -> None:
    numbers = sorted(box.phones, key=lambda phone: bool(box.links[phone]) == has_conversations)[-2:]

    for command in ("plan", "export"):
        # The request of both numbers, and that of the first.
        box.fail_next("400", "400")
        assert run(command, *numbers).code == code


def test_failures_that_are_tolerated_leave_the_run_complete(run: Run, box: Sandbox, phones: Path) -> None:
    box.break_conversation([*linked(box)][1], "400")

    result = run("export", "--phones", str(phones), "--tolerated-failures", "0.5")

    assert result.code == 0
    assert "which the run tolerates" in result.out
    assert "warning: not exported conversation=" in result.err


def test_an_unknown_run_cannot_be_rerun(run: Run, phones: Path) -> None:
    run("export", "--phones", str(phones))

    result = run("export", "--rerun", "3f2504e0-4f89-41d3-9a0c-0305e82c3301")

    assert result.code == 1
    assert "has no run 3f2504e0-4f89-41d3-9a0c-0305e82c3301" in result.err


@pytest.mark.parametrize("as_json", [False, True])
def test_a_rejected_token_fails_the_run_in_one_sentence(
    as_json: bool, run: Run, phones: Path, prefect: LocalServer
) -> None:
    os.environ["IMBRACE_TOKEN"] = "api_wrong"

    result = run("export", "--phones", str(phones), *["--json"][: int(as_json)])

    assert result.code == 1
    assert result.err.count("error: the gateway does not accept the token") == 1
    assert "api_wrong" not in result.out + result.err
    if as_json:
        summary = json.loads(result.out)
        assert summary["status"] == "failed"
        assert flow_run(prefect, summary["run_id"])["state"]["type"] == "FAILED"
    else:
        assert result.out.startswith("failed\n")


def test_a_lake_that_cannot_be_written_fails_the_run_and_still_leaves_a_summary(
    run: Run, phones: Path, workdir: Path
) -> None:
    (workdir / "lake").write_text("in the way")

    result = run("export", "--phones", str(phones), "--json")

    assert result.code == 1
    assert json.loads(result.out)["status"] == "failed"
    assert "is a file where the lake needs a folder" in result.err


def test_a_bug_in_a_task_fails_its_conversations_and_is_reported_by_its_class(
    run: Run, phones: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a text that may hold anything")

    monkeypatch.setattr("imbrace_tasks.export.export_chunk", fail)

    result = run("export", "--phones", str(phones))

    assert result.code == 1
    assert "13 found: 13 not reached" in result.out
    assert "not reached: unexpected ZeroDivisionError in imbrace_tasks.export:" in result.out
    assert "a text that may hold anything" not in result.out + result.err
    assert "Traceback" not in result.err


def test_ctrl_c_keeps_complete_conversations_and_the_next_run_continues(
    run: Run, box: Sandbox, phones: Path, workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stalled = [*linked(box)][1]
    box.break_conversation(stalled, "stall")
    add, recorded = ChunkJournal.add, set[str]()

    async def note(journal: ChunkJournal, entry: ConversationEntry) -> None:
        await add(journal, entry)
        recorded.add(entry.conversation_id)

    def interrupt() -> None:
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline and linked(box).keys() - recorded != {stalled}:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(ChunkJournal, "add", note)
    thread = threading.Thread(target=interrupt)
    thread.start()
    result = run("export", "--phones", str(phones))
    thread.join()
    box.repair(stalled)

    assert result.code == 130
    assert result.out == ""
    last = result.err.splitlines()[-1]
    assert last.startswith("interrupted: ")
    assert "conversations are complete in the lake" in last
    before = exported(workdir)
    assert linked(box).keys() - before == {stalled}
    box.reset_stats()
    again = run("export", "--phones", str(phones), "--json")
    assert again.code == 0
    assert exported(workdir) == linked(box)
    assert sum(json.loads(again.out)["totals"]["conversations"].values()) == len(linked(box))
    assert not box.stats().pages.keys() & before


@pytest.mark.usefixtures("terminal")
def test_on_a_terminal_the_progress_is_shown_and_removed(run: Run, box: Sandbox, phones: Path) -> None:
    box.set_options(latency_seconds=0.2)
    box.break_conversation([*linked(box)][1], "400")

    result = run("export", "--phones", str(phones))

    assert result.code == 3
    assert "exporting" in result.err
    assert "conversations" in result.err
    assert "requests/s" in result.err
    # The summary contains the warnings, which would break the display.
    assert "warning" not in result.err
    assert "exporting" not in result.out


def test_a_retried_failure_is_logged_without_an_empty_traceback(
    run: Run, box: Sandbox, phones: Path, prefect: LocalServer
) -> None:
    os.environ.update(IMBRACE_TRIES="1", IMBRACE_TASK_RETRIES="1", IMBRACE_TASK_RETRY_SECONDS="0")
    box.break_conversation([*linked(box)][1], "500")

    result = run("export", "--phones", str(phones), "--json")

    assert result.code == 3
    run_id = json.loads(result.out)["run_id"]
    wanted = {"logs": {"flow_run_id": {"any_": [run_id]}, "level": {"ge_": 40}}}
    deadline = time.monotonic() + 300
    reported: list[str] = []
    while not any("Finished" in message for message in reported) and time.monotonic() < deadline:
        time.sleep(0.2)
        reported = [
            log["message"] for log in httpx.post(f"{prefect.api_url}/logs/filter", json=wanted).json()
        ]
    assert "Finished in state Failed('12 complete, 1 failed')" in reported
    assert not any("NoneType" in message or "exhausted" in message for message in reported)


def test_the_command_tunes_its_process_and_no_longer_than_it_runs(
    run: Run, phones: Path, monkeypatch: pytest.MonkeyPatch, unfrozen: None
) -> None:
    from imbrace_flows.pipeline import read_conversations

    seen: list[tuple[str, bool]] = []

    async def read(*arguments: Any, **more: Any) -> Any:
        seen.append((pa.default_memory_pool().backend_name, gc.get_freeze_count() > 0))
        return await read_conversations(*arguments, **more)

    monkeypatch.setattr("imbrace_flows.export.read_conversations", read)
    monkeypatch.delenv(MEMORY_POOL_VARIABLE, raising=False)
    before = pa.default_memory_pool().backend_name

    run("export", "--phones", str(phones))

    assert seen == [("system", True)]
    assert (pa.default_memory_pool().backend_name, gc.get_freeze_count()) == (before, 0)
