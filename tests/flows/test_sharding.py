"""How a run follows its shards, with the states that a healthy server does not show."""

from __future__ import annotations

import asyncio
import json
import re
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import cycle, repeat
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar
from uuid import uuid4

import httpx
import pyarrow.dataset as ds
import pytest
from prefect.client.schemas.objects import FlowRun, State
from prefect.states import Cancelled, Completed, Crashed, Pending, Running, Scheduled

from imbrace_flows import sharding
from imbrace_flows.params import ShardParams
from imbrace_flows.sharding import export_by_shards, needs_shards
from imbrace_lake.errors import InputError, NotReached, StoreError, StoreUnavailable
from imbrace_lake.export.chunk import export_chunk
from imbrace_lake.export.recovery import work_fingerprint
from imbrace_lake.export.rerun import read_missed
from imbrace_lake.export.run import RunContext, RunSummary, close_run, utc_now
from imbrace_lake.export.shards import Shard, plan_shards
from imbrace_lake.lake.lake import open_lake
from imbrace_lake.lake.ledger import read_run as ledger_rows
from imbrace_lake.policy import Window
from imbrace_lake.settings import load_settings
from imbrace_sandbox import Sandbox, SandboxOptions
from tests.acceptance.accidents import EXCEPTIONS, SECRET
from tests.core.lake_runs import settings_for
from tests.flows.offline import Offline
from tests.gateways import open_run

T = TypeVar("T")


class Server:
    """A Prefect server where all shards but the first have completed, and the first has the given states.

    Attributes:
        runs: The runs of the shards, by their keys.
        first: The key of the first shard.
        answers: The remaining states of the first shard, one per request; the last is repeated.
        reported: Which runs were set to which type of state.
    """

    def __init__(self, shards: Sequence[Shard], answers: Sequence[State[Any] | Exception | None]) -> None:
        self.runs = {
            shard.key: FlowRun(
                id=uuid4(), flow_id=uuid4(), idempotency_key=shard.key, run_count=2, state=Completed()
            )
            for shard in shards
        }
        self.first = shards[0].key
        self.answers = [*answers]
        self.reported: list[tuple[str, str]] = []

    async def __aenter__(self) -> Server:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        pass

    async def read_flow_runs(self, **_: object) -> list[FlowRun]:
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        found = {**self.runs}
        first = found.pop(self.first)
        rest = [*found.values()]
        return rest if answer is None else [first.model_copy(update={"state": answer}), *rest]

    async def set_flow_run_state(self, flow_run_id: object, state: State[Any]) -> None:
        self.reported.append((str(flow_run_id), state.type.value))

    def first_run(self) -> str:
        return str(self.runs[self.first].id)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Poll at once, and wait for nothing."""
    monkeypatch.setattr(sharding, "POLL_SECONDS", 0.001)
    for name in ("CRASHED_SECONDS", "SILENT_SECONDS", "WAITING_SECONDS"):
        monkeypatch.setattr(sharding, name, 0.0)


def export(
    lake: Path,
    monkeypatch: pytest.MonkeyPatch,
    answers: Sequence[State[Any] | Exception | None],
    *,
    first_does: int = 3,
    spoil: Callable[[str], None] = lambda run_id: None,
) -> tuple[RunSummary, Server]:
    """Export six conversations by two shards, the first of which may not export all of its three.

    Args:
        lake: The folder of the lake.
        monkeypatch: Replaces the server.
        answers: As `Server` takes them.
        first_does: How many conversations of three the first shard exports.
        spoil: Called with the id of the first shard's run before the shards are followed.
    """
    with Sandbox(SandboxOptions(conversations=6)) as box:

        async def do(shard: Shard, run_id: str, most: int) -> None:
            async with open_run(settings_for(box, str(lake)), run_id, parent_run_id="parent") as run:
                ids = shard.conversation_ids[:most]
                await run.load_prior_state(work_fingerprint(ids))
                await export_chunk(run, "chunk", ids)
                if most == len(shard.conversation_ids):
                    await close_run(run, {}, Counter())

        async def main() -> tuple[RunSummary, Server]:
            async with open_run(settings_for(box, str(lake)), "parent") as run:
                ids = list(box.conversations)
                shards = await plan_shards(run, ids, 3)
                server = Server(shards, answers)
                monkeypatch.setattr(sharding, "get_client", lambda: server)
                for shard in shards:
                    most = first_does if shard.key == server.first else 3
                    await do(shard, str(server.runs[shard.key].id), most)
                spoil(server.first_run())
                await export_by_shards(run, shards, {})
                summary = await close_run(run, {}, Counter(), tolerated_share=1.0)
                return summary, server

        return asyncio.run(main())


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("answers", "reported"),
    [
        ([Completed(), None], "its run was deleted"),
        ([Crashed()], "its run ended as Crashed"),
        ([Running()], "its run is Running, and has given no sign of life for"),
        ([Pending()], "its run is Pending, and has given no sign of life for"),
        ([Scheduled(), Cancelled()], "its run ended as Cancelled"),
        ([Scheduled(), Completed()], "its run ended as Completed"),
    ],
)
def test_a_shard_that_does_not_end_leaves_dead_letters_of_what_it_has_not_recorded(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    answers: Sequence[State[Any] | None],
    reported: str,
) -> None:
    summary, server = export(tmp_path, monkeypatch, answers, first_does=2)

    assert summary.status == "partial"
    assert summary.totals.conversations == {"complete": 5, "not_reached": 1}
    (letter,) = summary.dead_letters
    assert reported in letter.reason
    is_alive = answers[-1] is not None and not answers[-1].is_final()
    # No shard outlives its run.
    assert server.reported == ([(server.first_run(), "CANCELLING")] if is_alive else [])


@pytest.mark.usefixtures("quick")
def test_a_run_waits_for_a_shard_without_a_worker_and_warns_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class AllWait(Server):
        async def read_flow_runs(self, **given: object) -> list[FlowRun]:
            found = await super().read_flow_runs(**given)
            state = found[0].state if found else None
            waits = state is not None and state.is_scheduled()
            return [each.model_copy(update={"state": state}) for each in found] if waits else found

    monkeypatch.setattr(f"{__name__}.Server", AllWait)

    summary, server = export(tmp_path, monkeypatch, [*[Scheduled()] * 5, Completed()])

    assert summary.status == "complete"
    assert server.reported == []
    assert caplog.text.count("no worker has picked up a shard") == 1


@pytest.mark.usefixtures("quick")
def test_a_run_restarts_a_crashed_shard_that_no_automation_restarts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class FirstTry(Server):
        async def read_flow_runs(self, **given: object) -> list[FlowRun]:
            found = await super().read_flow_runs(**given)
            return [each.model_copy(update={"run_count": 1}) for each in found]

    monkeypatch.setattr(f"{__name__}.Server", FirstTry)

    summary, server = export(tmp_path, monkeypatch, [Crashed(), Crashed(), Scheduled(), Completed()])

    assert summary.status == "complete"
    assert server.reported == [(server.first_run(), "SCHEDULED")]


@pytest.mark.usefixtures("quick")
def test_a_server_that_is_away_for_a_while_is_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    answers: list[State[Any] | Exception] = [
        Scheduled(),
        httpx.ConnectError("no connection"),
        httpx.ConnectError("no connection"),
        Completed(),
    ]

    summary, _ = export(tmp_path, monkeypatch, answers)

    assert summary.status == "complete"
    assert caplog.text.count("the Prefect server is away (ConnectError)") == 2


def missed(lake: Path) -> set[str]:
    """The conversations that a rerun of the run exports."""

    async def main() -> set[str]:
        async with open_lake(str(lake), now=None) as opened:
            found = await read_missed(
                opened, "parent", utc_now(), organization_id="org_sandbox", tolerated_unreadable=0.0
            )
            return set(found.conversation_ids)

    return asyncio.run(main())


def rows_of(lake: Path, ledger: str, run_id: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = ds.dataset(lake / ledger).to_table().to_pylist()
    return [row for row in rows if row["run_id"] == run_id]


def reading_fails(
    monkeypatch: pytest.MonkeyPatch, ledger: str, failures: Iterable[Exception]
) -> Callable[[str], None]:
    """Let each reading of a run's rows in a ledger fail with the next of the given errors."""
    remaining = iter(failures)

    def spoil(spoiled: str) -> None:
        async def read_run(lake: Any, name: Any, run_id: str, *arguments: Any) -> Any:
            if (name, run_id) == (ledger, spoiled) and (failure := next(remaining, None)) is not None:
                raise failure
            return await ledger_rows(lake, name, run_id, *arguments)

        monkeypatch.setattr("imbrace_lake.export.shards.read_run", read_run)

    return spoil


def check_lost(lake: Path, summary: RunSummary, reported: str) -> None:
    """Make sure that a run whose first shard is lost accounts for it, and that a rerun exports it."""
    assert summary.status == "partial"
    assert "3 conversations were not reached and 1 shard failed" in (summary.reason or "")
    assert summary.totals.found == 6
    assert summary.totals.conversations == {"complete": 3, "not_reached": 3}
    assert all(reported in letter.reason for letter in summary.dead_letters)
    assert SECRET not in repr(summary.as_json())
    (row,) = rows_of(lake, "runs", "parent")
    totals = json.loads(row["totals"])
    assert (totals["found"], totals["conversations"]) == (6, summary.totals.conversations)
    dead = {one["conversation_id"]: one["status"] for one in rows_of(lake, "conversations", "parent")}
    assert [*dead.values()] == ["not_reached"] * 3
    assert missed(lake) == dead.keys()


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("ledger", "failure", "reported"),
    [
        ("conversations", StoreError("permission denied"), "cannot be collected: permission denied"),
        ("runs", StoreUnavailable("the store is away"), "cannot be collected: the store is away"),
        ("shapes", StoreError("permission denied"), "cannot be collected: permission denied"),
        *(
            (ledger, make(), f"unexpected {type(make()).__name__} in ")
            for ledger, make in zip(cycle(("shapes", "runs", "conversations")), EXCEPTIONS[1:8], strict=False)
        ),
    ],
)
def test_a_shard_whose_results_cannot_be_read_is_lost_and_no_other(
    ledger: str,
    failure: Exception,
    reported: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    spoil = reading_fails(monkeypatch, ledger, repeat(failure))

    summary, _ = export(tmp_path, monkeypatch, [Completed()], spoil=spoil)

    check_lost(tmp_path, summary, reported)
    assert SECRET not in caplog.text


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("is_missing", [True, False])
def test_a_shard_whose_outcomes_are_damaged_or_missing_leaves_them_to_the_rerun(
    is_missing: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoiled: list[Path] = []

    def spoil(run_id: str) -> None:
        spoiled.extend((tmp_path / "conversations").glob(f"*{run_id}*"))
        for path in spoiled:
            if is_missing:
                path.unlink()
            else:
                path.write_bytes(b"damaged")

    summary, _ = export(tmp_path, monkeypatch, [Completed()], spoil=spoil)

    (path,) = spoiled
    assert summary.damaged == ([] if is_missing else [f"conversations/{path.name}"])
    path.unlink(missing_ok=True)
    check_lost(tmp_path, summary, "its run ended as Completed")


@pytest.mark.parametrize("ledger", ["conversations", "runs", "shapes"])
def test_results_that_could_not_be_read_at_first_count_once(
    ledger: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sharding, "POLL_SECONDS", 0.001)
    spoil = reading_fails(monkeypatch, ledger, [StoreUnavailable("away")] * 2)

    summary, _ = export(tmp_path, monkeypatch, [Completed()], first_does=2, spoil=spoil)

    lost = "1 conversation was not reached and 1 shard failed; the others are in the lake; shard 1 (run "
    assert (summary.reason or "").startswith(lost)
    assert summary.dead_letter_count == len(summary.dead_letters) == 1
    assert summary.totals.conversations == {"complete": 5, "not_reached": 1}


@pytest.mark.usefixtures("quick")
def test_a_server_that_is_away_when_all_shards_have_ended_does_not_make_the_run_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    answers: list[State[Any] | Exception] = [Completed(), Completed(), httpx.ConnectError("no connection")]

    summary, _ = export(tmp_path, monkeypatch, answers)

    assert (summary.status, summary.totals.conversations) == ("complete", {"complete": 6})
    assert "are not cancelled: ConnectError" in caplog.text


def test_another_attempt_restarts_shards_that_were_cancelled_with_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sharding, "POLL_SECONDS", 0.001)

    summary, server = export(tmp_path, monkeypatch, [Cancelled(), Scheduled(), Completed()])

    assert summary.status == "complete"
    assert server.reported == [(server.first_run(), "SCHEDULED")]


def test_a_shard_is_a_backfill_with_the_parameters_of_its_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[dict[str, Any]] = []

    class Nothing(Server):
        async def read_flow_runs(self, **_: object) -> list[FlowRun]:
            return []

    async def start(deployment: str, **options: Any) -> FlowRun:
        started.append({"deployment": deployment, **options})
        return FlowRun(id=uuid4(), flow_id=uuid4(), state=Scheduled())

    async def job(run: RunContext) -> None:
        run.window, run.drift, run.accept_repeats = (
            Window(since=datetime(2026, 1, 1, tzinfo=UTC)),
            "warn",
            True,
        )
        run.policy = replace(run.policy, rewalk_after=timedelta(0))
        shards = await plan_shards(run, ["conv_1", "conv_2"], 1)
        monkeypatch.setattr(sharding, "get_client", lambda: Nothing(shards, []))
        blocks = {"credentials": None, "lake": {"$ref": "lake"}}
        await export_by_shards(run, shards, blocks, chunk_size=7, tolerated_failures=0.5)

    monkeypatch.setattr(sharding, "arun_deployment", start)
    monkeypatch.setattr(sharding, "flow_run", SimpleNamespace(name="export a.csv"))
    monkeypatch.setattr(sharding, "POLL_SECONDS", 0.001)
    in_run(str(tmp_path), job)

    one, two = started
    assert (one["deployment"], one["tags"]) == ("export-shard/export-shard", ["imbrace-run-run"])
    assert (one["flow_run_name"], two["flow_run_name"]) == (
        "export a.csv shard 1 of 2",
        "export a.csv shard 2 of 2",
    )
    assert one["parameters"]["lake"] == {"$ref": "lake"}
    # The ids are in the lake, and only there.
    assert "conv_1" not in repr(started)
    assert ShardParams.model_validate_json(json.dumps(one["parameters"]["params"])) == ShardParams(
        conversations=one["idempotency_key"],
        parent_run="run",
        since=datetime(2026, 1, 1, tzinfo=UTC),
        walk_whole=True,
        drift="warn",
        chunk_size=7,
        tolerated_failures=0.5,
        accept_repeats=True,
    )


def test_a_run_that_is_cancelled_while_it_starts_shards_tells_started_ones_from_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Nothing(Server):
        async def read_flow_runs(self, **_: object) -> list[FlowRun]:
            return []

    async def start(*_: object, **options: Any) -> FlowRun:
        if options["flow_run_name"].endswith("2 of 2"):
            raise asyncio.CancelledError
        return FlowRun(id=uuid4(), flow_id=uuid4(), state=Scheduled())

    async def job(run: RunContext) -> dict[str, str]:
        shards = await plan_shards(run, ["conv_1", "conv_2"], 1)
        monkeypatch.setattr(sharding, "get_client", lambda: Nothing(shards, []))
        with pytest.raises(asyncio.CancelledError):
            await export_by_shards(run, shards, {})
        return {one: re.sub("run [0-9a-f-]{36}", "run ID", why) for one, why in run.accounts.reasons.items()}

    monkeypatch.setattr(sharding, "arun_deployment", start)
    monkeypatch.setattr(sharding, "flow_run", SimpleNamespace(name="export a.csv"))

    assert in_run(str(tmp_path), job) == {
        "conv_1": "not reached: shard 1 (run ID): its run was ended with this one",
        "conv_2": "not reached: shard 2 (run not started): this run ended first",
    }


@pytest.mark.slow
@pytest.mark.parametrize("is_ended", [True, False])
def test_a_cancelled_run_waits_for_its_shards_and_its_numbers_are_those_of_their_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_ended: bool
) -> None:
    monkeypatch.setattr(sharding, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(sharding, "ENDING_POLL_SECONDS", 0.01)
    if not is_ended:
        monkeypatch.setattr(sharding, "ENDING_SECONDS", 0.05)
    lake = str(tmp_path)

    class Ending(Server):
        """Its first shard exports one more conversation after it is cancelled, and then ends."""

        ending: asyncio.Task[None] | None = None

        async def set_flow_run_state(self, flow_run_id: object, state: State[Any]) -> None:
            await super().set_flow_run_state(flow_run_id, state)
            if is_ended:
                self.ending = asyncio.create_task(self.end(str(flow_run_id)))

        async def end(self, run_id: str) -> None:
            async with open_run(settings_for(box, lake), run_id, parent_run_id="parent") as run:
                await run.load_prior_state(work_fingerprint(first))
                await run.record_found(first)
                await export_chunk(run, "chunk", first[:1])
                await close_run(run, {}, Counter(), is_cancelled=True)
            self.answers = [Cancelled()]

    async def main() -> RunSummary:
        async with open_run(settings_for(box, lake), "parent") as run:
            shards = await plan_shards(run, [*box.conversations], 3)
            first.extend(shards[0].conversation_ids)
            server = Ending(shards, [Running()])
            monkeypatch.setattr(sharding, "get_client", lambda: server)
            work = asyncio.create_task(export_by_shards(run, shards[:1], {}))
            await asyncio.sleep(0.1)
            work.cancel()
            with pytest.raises(asyncio.CancelledError):
                await work
            run.accounts.found = first
            return await close_run(run, {}, Counter(), is_cancelled=True)

    first: list[str] = []
    with Sandbox(SandboxOptions(conversations=6)) as box:
        summary = asyncio.run(main())
        requests = box.stats().requests["messages"]

    done = 1 if is_ended else 0
    assert summary.totals.conversations == +Counter(complete=done, not_reached=3 - done)
    assert summary.totals.requests == requests
    assert summary.dead_letter_count == sum(summary.causes.values()) == 3 - done
    assert (
        {one.advice for one in summary.dead_letters} == {*summary.causes} == {NotReached.advice_if_cancelled}
    )
    unknown = "its last results are not known here"
    assert all(unknown in one.reason for one in summary.dead_letters) != is_ended


def in_run(lake: str, job: Callable[[RunContext], Awaitable[T]]) -> T:
    async def main() -> T:
        settings = load_settings(token="t", organization="org", lake=lake, gateway="http://127.0.0.1:9")
        async with open_run(settings, "run") as run:
            return await job(run)

    return asyncio.run(main())


@pytest.mark.parametrize(("conversations", "size"), [(20_000, None), (1_000_000, None), (12, 12)])
def test_a_run_that_is_small_or_without_a_deployment_sends_no_request_about_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, conversations: int, size: int | None
) -> None:
    monkeypatch.setattr(sharding, "get_client", lambda: pytest.fail("a request was sent"))

    assert not in_run(
        str(tmp_path), lambda run: needs_shards(run, load_settings(shard_size=size), conversations)
    )


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Offline]:
    """Two conversations and a lake, in which a run of both has one shard."""
    with Sandbox(SandboxOptions(conversations=2)) as box:
        yield Offline(box, tmp_path / "lake", monkeypatch)


def list_of(offline: Offline) -> str:
    """The list of the shard in the lake."""

    async def main() -> str:
        async with open_run(settings_for(offline.box, str(offline.lake)), "parent") as run:
            (shard,) = await plan_shards(run, list(offline.box.conversations), None)
            return shard.key

    return asyncio.run(main())


def test_a_shard_shows_its_progress_and_leaves_everything_else_to_its_parent(offline: Offline) -> None:
    state = offline.run_shard("shard", "parent", list_of(offline))

    assert state.is_completed(), state.message
    row = offline.row("shard")
    assert row is not None
    assert (row["parent_run_id"], offline.outcomes("shard")) == ("parent", {"complete": 2})
    assert offline.is_complete()
    assert offline.events == []
    assert {"'key': 'export-progress'"} == set(re.findall(r"'key': '[\w-]+'", repr(offline.shown)))
    assert "RunSummary" not in repr(offline.shown)


def test_a_run_that_closes_a_killed_shard_reports_only_itself(
    offline: Offline, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*arguments: object) -> None:
        raise StoreError("the disk is full")

    monkeypatch.setattr("imbrace_lake.export.recovery._is_running", lambda pid: False)
    key = list_of(offline)
    with monkeypatch.context() as patch:
        patch.setattr("imbrace_lake.lake.ledger.Journal.finish", fail)
        assert offline.run_shard("shard", "parent", key).is_failed()
    assert offline.row("shard") is None

    assert offline.run("next").is_completed()

    row = offline.row("shard")
    assert row is not None
    assert row["parent_run_id"] == "parent"
    assert {payload["run_id"] for _, payload in offline.events} == {"next"}


@pytest.mark.parametrize(
    ("organization", "lake", "reported"),
    [
        ("another", "lake", "this worker reads the organization another, and the run of this shard reads "),
        (None, "another", "has no shards/parent/"),
        (None, "none", "there is no lake at "),
    ],
)
def test_a_worker_with_another_lake_or_organization_than_the_run_reads_nothing(
    organization: str | None, lake: str, reported: str, offline: Offline, tmp_path: Path
) -> None:
    key = list_of(offline)
    offline.lake = tmp_path / "another"
    list_of(offline)
    offline.lake = tmp_path / lake
    given = {"organization": organization} if organization else {}

    state = offline.run_shard("shard", "parent", key, **given)

    assert state.is_failed()
    assert reported in (state.message or "")
    assert not sum(offline.box.stats().pages.values())
    assert (tmp_path / lake).exists() == (lake != "none")


def test_a_shard_is_not_split_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharding, "get_client", lambda: pytest.fail("a request was sent"))

    async def job(run: RunContext) -> bool:
        run.parent_run_id = "parent"
        return await needs_shards(run, load_settings(shard_size=1), 12)

    assert not in_run(str(tmp_path), job)


@pytest.mark.slow
def test_a_store_that_supports_one_run_at_a_time_has_no_shards(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("imbrace_lake.store.lease.SETTLE_SECONDS", 0.0)

    with pytest.raises(InputError, match="has no conditional writes"):
        in_run("memory://lone", lambda run: needs_shards(run, load_settings(shard_size=5), 6))
