"""The worker of `up`, without a server."""

from __future__ import annotations

import asyncio
import io
import logging
from types import SimpleNamespace
from typing import Any, cast
from uuid import uuid4

import pytest
from prefect.client.schemas.objects import FlowRun
from prefect.exceptions import ObjectNotFound
from prefect.states import Failed
from prefect.workers.process import ProcessWorker, ProcessWorkerResult

from imbrace_cli.installation import LONGEST_MESSAGE, Lines
from imbrace_deployments.worker import LocalWorker, Reports, WithoutAttempts, describe_crash


@pytest.mark.parametrize("is_deleted", [True, False])
def test_the_end_of_a_run_that_was_deleted_is_no_error_of_the_worker(
    monkeypatch: pytest.MonkeyPatch, *, is_deleted: bool
) -> None:
    process = ProcessWorkerResult(identifier="1", status_code=0)

    async def run(*_: object) -> ProcessWorkerResult:
        return process

    found = SimpleNamespace(state=None)

    async def read_flow_run(_: object) -> object:
        if is_deleted:
            raise ObjectNotFound(Exception())
        return found

    ended: list[object] = []
    monkeypatch.setattr(ProcessWorker, "run", run)
    worker = LocalWorker.make(
        "worker", "pool", 1, cast("Reports", SimpleNamespace(ended=lambda *one: ended.append(one)))
    )
    worker._client = cast("Any", SimpleNamespace(read_flow_run=read_flow_run))
    flow_run, configuration = SimpleNamespace(id=uuid4()), SimpleNamespace(labels={})

    result = asyncio.run(worker.run(cast("Any", flow_run), cast("Any", configuration)))

    assert result is process
    assert ended == [("run", found)] * (not is_deleted)


@pytest.mark.parametrize(
    ("exit_code", "what"),
    [
        (
            -9,
            "the process of this run was ended by SIGKILL (signal 9), perhaps because this machine",
        ),
        (-11, "the process of this run was ended by SIGSEGV (signal 11). A first crash needs no action"),
        (1, "the process of this run ended unexpectedly with exit code 1. A first crash needs no action"),
    ],
)
def test_a_crash_is_described_by_how_the_process_ended(exit_code: int, what: str) -> None:
    assert describe_crash(exit_code).startswith(what)


def test_the_log_of_a_run_that_waits_for_others_does_not_show_each_attempt_to_start_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    logger, waiting = logging.getLogger("test_worker"), "Aborted submission of flow run '1': Server"
    logger.addFilter(WithoutAttempts())
    first = ["Worker 'up' submitting flow run '1'", "Worker 'up' submitting flow run '2'"]
    started = "Flow run 'ingest' submitted to infrastructure"

    with caplog.at_level(logging.INFO, "test_worker"):
        for line in (*first, *first, f"{waiting} returned a non-pending state 'SCHEDULED'", started):
            logger.info(line)
        logger.info("%s returned a non-pending state 'CANCELLED'", waiting)

    assert caplog.messages == [*first, started, f"{waiting} returned a non-pending state 'CANCELLED'"]


def test_a_long_sentence_about_a_run_is_shown_or_marked_as_cut() -> None:
    stream = io.StringIO()
    lines = Lines(cast("Any", None), stream)

    for length in (LONGEST_MESSAGE, LONGEST_MESSAGE + 1):
        run = FlowRun(flow_id=uuid4(), name="export a.csv", state=Failed(message="x" * length))
        lines.ended("export", run)

    whole, cut = stream.getvalue().splitlines()
    assert whole.endswith(f": Failed, {'x' * LONGEST_MESSAGE}")
    assert cut.endswith(f": Failed, {'x' * (LONGEST_MESSAGE - 1)}…")
