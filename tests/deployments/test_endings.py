"""Runs that are ended at random moments before their work is done: the lake survives each of them."""

from __future__ import annotations

import logging
import os
import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from random import Random

import pyarrow.dataset as ds
import pytest

from imbrace_sandbox import Sandbox
from tests.acceptance.scale import IS_FULL
from tests.core.kills import Reader, counting
from tests.deployments.operator import Operator, Worker, until
from tests.deployments.test_cancel import CANCELLED_WITHIN_SECONDS, is_running

CONVERSATIONS = 60
GROWING = 30
ENDED_WITHIN_SECONDS = 400.0
WAYS = ("cancel", "SIGTERM flow", "SIGKILL flow", "SIGTERM worker", "SIGKILL worker")
logger = logging.getLogger(__name__)

pytestmark = [
    pytest.mark.timeout(5_400),
    pytest.mark.skipif(not IS_FULL, reason="waits for minutes: IMBRACE_ACCEPTANCE=full"),
]


@dataclass(frozen=True, slots=True)
class Stage:
    """Conversations that grow before each run, and the list of the numbers they belong to."""

    box: Sandbox
    ids: list[str]
    phones: Path

    def truth(self) -> dict[str, frozenset[str]]:
        """The messages of each conversation in the gateway."""
        return {one: frozenset(item["_id"] for item in self.box.truth(one)) for one in self.ids}

    def grow(self, rng: Random) -> None:
        """Add messages to conversations, and begin another one."""
        for one in rng.sample(self.ids, GROWING):
            self.box.append(one, rng.randint(1, 150))
        self.begin()

    def begin(self) -> None:
        """Begin another conversation, with another number."""
        number = f"+886912{len(self.ids):06}"
        self.ids.append(self.box.put([], phone=number))
        self.box.append(self.ids[-1], 120)
        with self.phones.open("a", encoding="utf-8") as file:
            file.write(f"{number}\n")


@pytest.fixture(scope="module")
def stage(box: Sandbox, tmp_path_factory: pytest.TempPathFactory) -> Stage:
    """Conversations that no run has seen."""
    stage = Stage(box, [], tmp_path_factory.mktemp("endings") / "phones.txt")
    for _ in range(CONVERSATIONS):
        stage.begin()
    return stage


def ways() -> Iterator[tuple[int, str]]:
    """Ten endings, each way twice, in a fixed random order; by default only the two fastest."""
    chosen = list(WAYS * 2)
    Random(11).shuffle(chosen)
    return enumerate(chosen if IS_FULL else ("cancel", "SIGKILL flow"))


@pytest.mark.parametrize(("number", "way"), [pytest.param(*one, id=f"{one[0]}-{one[1]}") for one in ways()])
def test_a_run_that_is_ended_at_any_moment_leaves_a_lake_that_the_next_one_completes(
    impatient: Operator, stage: Stage, lake: Path, number: int, way: str
) -> None:
    rng = Random(number)
    before = {one: frozenset(ids) for one, ids in _messages(lake).items()}
    stage.grow(rng)
    reader = Reader(lake, before, stage.truth())
    moment = rng.randint(0, len(stage.ids))
    bare = Operator(impatient.server, impatient.folder)

    with ExitStack() as stack:
        stack.enter_context(reader.reading())
        worker = stack.enter_context(Worker(bare, "imbrace"))
        with counting(stage.box, moment) as count:
            run_id = impatient.start("export", phones=str(stage.phones))
            impatient.until(
                lambda: impatient.flow_run(run_id)["state"]["name"] == "Running" or None, "its start"
            )
            if moment:
                assert count.reached.wait(ENDED_WITHIN_SECONDS)
        pid = int(impatient.flow_run(run_id)["infrastructure_pid"].rpartition(":")[2])
        logger.info("ending run=%s way=%s pages=%d of at least %d", run_id, way, moment, len(stage.ids))
        if way == "cancel":
            _cancel(impatient, run_id, pid)
            run_id = impatient.start("export", phones=str(stage.phones))
        elif way.endswith("flow"):
            os.kill(pid, getattr(signal, way.split()[0]))
        else:
            worker.end(getattr(signal, way.split()[0]))
            stack.enter_context(Worker(bare, "imbrace"))
        impatient.until(
            lambda: _is_completed(impatient, run_id), f"the end of run {run_id}", ENDED_WITHIN_SECONDS
        )

    assert not reader.wrong, reader.wrong[:3]
    assert reader.polls > 1
    truth = stage.truth()
    found = _messages(lake)
    assert {one: frozenset(found[one]) for one in truth} == truth
    assert {one: found[one].total() for one in truth} == {one: len(ids) for one, ids in truth.items()}
    assert impatient.run("imbrace-lake", "verify", "--json").returncode == 0


def _cancel(operator: Operator, run_id: str, pid: int) -> None:
    operator.ask("POST", f"/flow_runs/{run_id}/set_state", {"state": {"type": "CANCELLING"}})

    def is_over() -> bool | None:
        return (operator.flow_run(run_id)["state"]["name"] == "Cancelled" and not is_running(pid)) or None

    until(is_over, "the end of a cancelled run", CANCELLED_WITHIN_SECONDS)


def _is_completed(operator: Operator, run_id: str) -> bool | None:
    state = operator.flow_run(run_id)["state"]
    assert state["name"] not in ("Failed", "Partial", "Cancelled"), state["message"]
    return state["name"] == "Completed" or None


def _messages(lake: Path) -> dict[str, Counter[str]]:
    """How often each message of each conversation is in the lake."""
    if not (lake / "messages").is_dir():
        return {}
    found: dict[str, Counter[str]] = {}
    table = ds.dataset(lake / "messages").to_table(columns=["conversation_id", "message_id"])
    for row in table.to_pylist():
        found.setdefault(row["conversation_id"], Counter())[row["message_id"]] += 1
    return found
