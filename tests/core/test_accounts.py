"""Every conversation of a run has one outcome, however the run ends, and a rerun exports the missing ones."""

from __future__ import annotations

import asyncio
import json
import re
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import pytest

from imbrace_lake.errors import InputError, StoreError, TokenRejected
from imbrace_lake.export.chunk import export_chunk
from imbrace_lake.export.recovery import DEAD_AFTER, RESUME_WITHIN, read_header, recover_dead_runs
from imbrace_lake.export.rerun import Missed, read_missed
from imbrace_lake.export.run import RunContext, RunSummary, close_run, utc_now
from imbrace_lake.lake.lake import Lake, open_lake
from imbrace_lake.lake.ledger import Journal, read_ledger
from imbrace_lake.lake.ledger_schema import PHONES, RunTotals
from imbrace_lake.policy import Reading, Window
from imbrace_lake.store.local import LocalStore
from imbrace_sandbox import Sandbox
from tests.acceptance.accidents import EXCEPTIONS, SECRET
from tests.core.conftest import StartBox
from tests.core.test_runs import settings_for
from tests.gateways import open_run

pytestmark = pytest.mark.slow

ROW = {"run_id": "run_1", "organization_id": "org_sandbox", "status": "failed"}
OWN = {"run_id": "run_1", "organization_id": "org_sandbox"}
STEPS = (
    "imbrace_lake.gateway.client.GatewayClient.get_page",
    "imbrace_lake.gateway.client.parse_page",
    "imbrace_lake.export.conversation.rows_of_page",
    "imbrace_lake.export.conversation.content_hash",
    "imbrace_lake.lake.snapshot.PartitionSnapshot.read",
    "imbrace_lake.export.conversation.publish",
    "imbrace_lake.lake.lake.Lake.add_part",
    "imbrace_lake.export.recovery.entry_line",
)


@pytest.fixture
def box(start: StartBox) -> Sandbox:
    """Start a gateway with ten conversations."""
    return start(conversations=10, gateway_timeout_seconds=0.0)


def run(
    box: Sandbox,
    lake: Path,
    work: Callable[[RunContext], Awaitable[Any]],
    run_id: str = "run_1",
    **closing: Any,
) -> RunSummary:
    """Open a run that finds all conversations, do some work, and close it."""

    async def main() -> RunSummary:
        async with open_run(settings_for(box, lake), run_id) as opened:
            await opened.load_prior_state("all")
            await opened.record_found(box.conversations)
            await work(opened)
            return await close_run(opened, {}, Counter(resolved=10), **closing)

    return asyncio.run(main())


def kill(box: Sandbox, lake: Path, found: Iterable[str] | None = None, done: Sequence[str] = ()) -> None:
    """Start a run `run_1` that is killed after it has found some conversations and exported some of them."""

    async def main() -> None:
        async with open_run(settings_for(box, lake), "run_1") as opened:
            await opened.load_prior_state("all")
            if found is not None:
                await opened.record_found(found)
            if done:
                await export_chunk(opened, "chunk", done)

    asyncio.run(main())


def in_lake(folder: Path, job: Callable[[Lake], Awaitable[Any]]) -> Any:
    async def main() -> Any:
        async with open_lake(str(folder), now=utc_now()) as lake:
            return await job(lake)

    return asyncio.run(main())


def ledger_of(folder: Path, run_id: str) -> Counter[str]:
    """Return the outcomes of a run in the ledger; assert that no conversation has two."""
    rows = ds.dataset(folder / "conversations").to_table().to_pylist()
    own = [row for row in rows if row["run_id"] == run_id]
    assert len({row["conversation_id"] for row in own}) == len(own)
    return Counter(row["status"] for row in own)


def missed(folder: Path, run_id: str = "run_1", tolerated: float = 0.0) -> Missed:
    found: Missed = in_lake(
        folder,
        lambda lake: read_missed(
            lake, run_id, utc_now(), organization_id="org_sandbox", tolerated_unreadable=tolerated
        ),
    )
    return found


def test_a_fatal_error_leaves_the_rest_not_reached_and_a_rerun_takes_only_that(
    box: Sandbox, tmp_path: Path
) -> None:
    done, refused = list(box.conversations)[:4], list(box.conversations)[4]

    async def work(opened: RunContext) -> None:
        await export_chunk(opened, "chunk-1", done)
        box.set_options(token_expired=True)
        with pytest.raises(TokenRejected):
            await export_chunk(opened, "chunk-2", [refused])

    summary = run(box, tmp_path, work, failure="the token was rejected")

    assert summary.status == "failed"
    assert summary.reason == "the token was rejected; 6 conversations not reached"
    assert summary.totals.found == 10
    assert summary.totals.conversations == {"complete": 4, "not_reached": 6} == ledger_of(tmp_path, "run_1")
    assert {letter.reason for letter in summary.dead_letters} == {"not reached: the token was rejected"}
    assert set(missed(tmp_path).conversation_ids) == box.conversations.keys() - set(done)


def test_every_outcome_records_the_pages_that_were_requested_for_its_conversation(
    start: StartBox, tmp_path: Path
) -> None:
    box = start(conversations=0, sizes=(0, 150, 250, 250, 250, 450, 150), gateway_timeout_seconds=0.0)
    *first, gone, failing, stopping, unasked = box.conversations
    repeating = box.put(
        [{"_id": "same"}, {"_id": "other"}, {"_id": "same"}], conversation_id="conv_repeating"
    )

    def fail(conversation_id: str, number: int) -> None:
        if (conversation_id, number) == (gone, 2):
            box.vanish(gone)
        elif (conversation_id, number) == (failing, 1):
            box.break_conversation(failing, "400")
        elif (conversation_id, number) == (stopping, 4):
            box.set_options(token_expired=True)

    async def work(opened: RunContext) -> None:
        opened.slots, opened.pages_ahead = asyncio.Semaphore(1), 1
        await export_chunk(opened, "chunk-1", [*first, gone, failing, repeating])
        with pytest.raises(TokenRejected):
            await export_chunk(opened, "chunk-2", [stopping])
        await opened.record_found([*box.conversations])

    box.before_page(fail)
    run(box, tmp_path, work)

    rows = {
        row["conversation_id"]: row
        for row in in_lake(tmp_path, lambda lake: read_ledger(lake, "conversations")).to_pylist()
    }
    statuses = {
        **dict.fromkeys(first, "complete"),
        gone: "gone",
        failing: "failed",
        repeating: "incomplete",
        stopping: "not_reached",
        unasked: "not_reached",
    }
    assert {one: row["status"] for one, row in rows.items()} == statuses
    # The client believes a 401 after four tries, and asks again for a body that may be truncated.
    pages = box.stats().pages - Counter({stopping: 3, repeating: 1})
    assert {one: row["requests"] for one, row in rows.items()} == {**pages, unasked: 0}


def test_the_pages_of_all_tries_of_a_chunk_count(box: Sandbox, tmp_path: Path) -> None:
    one = next(iter(box.conversations))

    async def work(opened: RunContext) -> None:
        for is_last_try in (False, True):
            box.break_conversation(one, "500")
            await export_chunk(opened, "chunk", list(box.conversations), is_last_try=is_last_try)

    run(box, tmp_path, work)

    rows = in_lake(tmp_path, lambda lake: read_ledger(lake, "conversations")).to_pylist()
    assert {row["conversation_id"]: row["requests"] for row in rows} == box.stats().pages
    assert box.stats().pages[one] == 2


@pytest.mark.parametrize("window", [Window(), Window(until=utc_now())])
def test_an_unchanged_or_vanished_conversation_costs_the_pages_that_its_entry_states(
    window: Window, box: Sandbox, tmp_path: Path
) -> None:
    async def work(opened: RunContext) -> None:
        opened.window = window
        await export_chunk(opened, "chunk", list(box.conversations))
        assert (
            not opened.accounts.pages_requested
        )  # or a run over a million conversations would keep a million counts

    run(box, tmp_path, work)
    box.vanish(next(iter(box.conversations)))
    box.reset_stats()
    run(box, tmp_path, work, run_id="run_2")

    rows = in_lake(tmp_path, lambda lake: read_ledger(lake, "conversations")).to_pylist()
    own = [row for row in rows if row["run_id"] == "run_2"]
    assert Counter(row["status"] for row in own) == {"unchanged": 9, "gone": 1}
    assert {row["conversation_id"]: row["requests"] for row in own} == box.stats().pages


@pytest.mark.parametrize("step", STEPS)
def test_an_unexpected_exception_fails_only_its_conversation_and_is_reported_by_its_class(
    step: str, start: StartBox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    box = start(conversations=len(EXCEPTIONS) + 1)
    monkeypatch.setattr("imbrace_lake.export.prior.PriorStates.of_each", lambda *_: {})
    exceptions = [make() for make in EXCEPTIONS]
    names = Counter(type(exception).__name__ for exception in exceptions)
    before = resolve_name(step)

    def failing(*arguments: Any, **options: Any) -> Any:
        if exceptions:
            raise exceptions.pop()
        return before(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(step, failing)
        summary = run(box, tmp_path, lambda opened: export_chunk(opened, "chunk", list(box.conversations)))

    assert summary.status == "partial"
    outcomes = {"complete": 1, "failed": names.total()}
    assert summary.totals.conversations == outcomes == ledger_of(tmp_path, "run_1")
    reasons = [letter.reason for letter in summary.dead_letters]
    assert Counter(re.findall("|".join(names), " ".join(reasons))) == names
    assert SECRET not in json.dumps(summary.as_json())
    assert set(missed(tmp_path).conversation_ids) == {one.conversation_id for one in summary.dead_letters}


def test_a_cancelled_run_has_all_outcomes_and_the_same_job_continues_it(box: Sandbox, tmp_path: Path) -> None:
    done = list(box.conversations)[:4]
    summary = run(box, tmp_path, lambda opened: export_chunk(opened, "chunk", done), is_cancelled=True)

    assert summary.status == "cancelled"
    assert summary.totals.conversations == {"complete": 4, "not_reached": 6} == ledger_of(tmp_path, "run_1")
    assert set(missed(tmp_path).conversation_ids) == box.conversations.keys() - set(done)

    box.reset_stats()
    again = run(
        box, tmp_path, lambda opened: export_chunk(opened, "chunk", list(box.conversations)), run_id="run_2"
    )

    assert again.status == "complete"
    assert not box.stats().pages.keys() & set(done)
    assert not list((tmp_path / "journal").rglob("*.json*"))


def test_a_run_and_its_recovery_name_their_objects_by_the_start_in_the_header(
    box: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begins = iter([utc_now()])
    # The store is slow to open.
    monkeypatch.setattr("imbrace_lake.export.run.utc_now", lambda: next(begins, utc_now() + DEAD_AFTER))

    async def work(opened: RunContext) -> None:
        header = await read_header(opened.lake, "run_1")
        assert header is not None
        assert header.started_at == opened.started_at

    assert run(box, tmp_path, work).totals.found == 10


@pytest.mark.parametrize("status", ["unchanged", "complete"])
def test_the_next_attempt_does_not_request_what_the_previous_one_recorded(
    status: str, box: Sandbox, tmp_path: Path
) -> None:
    everything = list(box.conversations)
    if status == "unchanged":
        run(box, tmp_path, lambda opened: export_chunk(opened, "chunk", everything), run_id="earlier")

    kill(box, tmp_path, everything, everything[:8])
    box.reset_stats()
    summary = run(box, tmp_path, lambda opened: export_chunk(opened, "chunk", everything))

    assert set(box.stats().pages) == set(everything[8:])
    assert summary.totals.conversations == {status: 10} == ledger_of(tmp_path, "run_1")


def test_an_attempt_that_finds_less_than_the_previous_one_accounts_for_both(
    box: Sandbox, tmp_path: Path
) -> None:
    first, rest = list(box.conversations)[:3], list(box.conversations)[3:]

    async def restarted() -> RunSummary:
        async with open_run(settings_for(box, tmp_path), "run_1") as opened:
            await opened.load_prior_state("all")
            await export_chunk(opened, "chunk", await opened.record_found(rest))
            return await close_run(opened, {}, Counter())

    kill(box, tmp_path, first)
    summary = asyncio.run(restarted())

    assert summary.totals.conversations == {"complete": 10}


def test_a_killed_run_is_closed_by_its_rerun_with_every_outcome(box: Sandbox, tmp_path: Path) -> None:
    done = list(box.conversations)[:4]

    kill(box, tmp_path, box.conversations, done)
    with pytest.raises(InputError, match="still under way"):
        missed(tmp_path)
    later = utc_now() + 3 * DEAD_AFTER
    found = in_lake(
        tmp_path,
        lambda lake: read_missed(
            lake, "run_1", later, organization_id="org_sandbox", tolerated_unreadable=0.0
        ),
    )

    assert set(found.conversation_ids) == box.conversations.keys() - set(done)
    assert found.closed is not None
    assert found.closed.totals.found == 10
    assert ledger_of(tmp_path, "run_1") == {"complete": 4, "not_reached": 6}
    (row,) = in_lake(tmp_path, lambda lake: read_ledger(lake, "runs")).to_pylist()
    assert json.loads(row["totals"])["conversations"] == {"complete": 4, "not_reached": 6}


def test_a_run_that_was_killed_before_it_had_found_all_its_conversations_cannot_be_rerun(
    box: Sandbox, tmp_path: Path
) -> None:
    kill(box, tmp_path)
    later = utc_now() + 3 * DEAD_AFTER

    with pytest.raises(InputError, match="ended before it had found all its conversations: start it again"):
        in_lake(
            tmp_path,
            lambda lake: read_missed(
                lake, "run_1", later, organization_id="org_sandbox", tolerated_unreadable=0.0
            ),
        )


def test_two_runs_that_close_a_killed_run_write_the_same_accounts(box: Sandbox, tmp_path: Path) -> None:
    async def both(lake: Lake) -> None:
        later = utc_now() + 3 * DEAD_AFTER
        await asyncio.gather(
            *(recover_dead_runs(lake, f"next-{number}", "all", later) for number in range(2))
        )

    kill(box, tmp_path, box.conversations)
    in_lake(tmp_path, both)

    assert ledger_of(tmp_path, "run_1") == {"not_reached": 10}


@pytest.mark.parametrize(
    ("statuses", "tolerated", "sentence"),
    [
        ({"invalid": 1}, 0.0, "1 entry of its input could not be read: correct the list and export it"),
        ({"invalid": 2}, 0.0, "2 entries of its input could not be read: correct the list and export it"),
        ({"invalid": 6, "none": 94}, 0.05, "6 entries of its input could not be read"),
        ({"error": 1}, 0.0, "1 number that it could not resolve is masked in the lake"),
        ({"error": 3}, 0.0, "3 numbers that it could not resolve are masked in the lake"),
    ],
)
def test_a_rerun_that_cannot_export_anything_missing_does_not_succeed(
    statuses: dict[str, int], tolerated: float, sentence: str, tmp_path: Path
) -> None:
    rows = [
        {"run_id": "run_1", "organization_id": "org_sandbox", "position": position, "status": status}
        for position, status in enumerate(Counter(statuses).elements(), 1)
    ]

    async def job(lake: Lake) -> None:
        journal = Journal(lake, "run_1", utc_now())
        await journal.note("phones", "1", pa.Table.from_pylist(rows, schema=PHONES))
        await journal.close(
            {"run_id": "run_1", "organization_id": "org_sandbox", "status": "failed"}, RunTotals(found=0)
        )

    in_lake(tmp_path, job)

    with pytest.raises(InputError, match=sentence):
        missed(tmp_path, tolerated=tolerated)


def test_a_tolerated_share_of_unreadable_entries_is_not_missing(tmp_path: Path) -> None:
    statuses = ["invalid"] * 5 + ["none"] * 95
    rows = [
        {"run_id": "run_1", "organization_id": "org_sandbox", "position": position, "status": status}
        for position, status in enumerate(statuses, 1)
    ]

    async def job(lake: Lake) -> None:
        journal = Journal(lake, "run_1", utc_now())
        await journal.note("phones", "1", pa.Table.from_pylist(rows, schema=PHONES))
        await journal.close({**ROW, "parameters": {"entries": 100}}, RunTotals(found=0))

    in_lake(tmp_path, job)

    assert missed(tmp_path, tolerated=0.05) == Missed([], [], Reading(Window(), is_full=False))


def test_the_ledger_has_all_numbers_of_a_row_with_several(tmp_path: Path) -> None:
    rows = [
        {**OWN, "position": 1, "phone_hash": "a", "phone": "+886911425977", "status": "error"},
        {**OWN, "position": 1, "phone_hash": "b", "phone": "+886911425978", "status": "error"},
        {**OWN, "position": 1, "phone_hash": "a", "phone": "+886911425977", "status": "duplicate",
         "duplicate_of": 1},
    ]  # fmt: skip
    # Of these, only the number of the entry differs.
    rows += [{**OWN, "position": 2, "status": "invalid"}] * 2
    rows += [{**OWN, "position": 3, "phone_hash": "a", "status": "duplicate", "duplicate_of": 1}] * 2
    rows = [{**row, "entry": number} for number, row in enumerate(rows, 1)]

    async def job(lake: Lake) -> None:
        journal = Journal(lake, "run_1", utc_now())
        await journal.note("phones", "1", pa.Table.from_pylist(rows, schema=PHONES))
        await journal.close({**ROW, "parameters": {"entries": 7}}, RunTotals(found=0))

    in_lake(tmp_path, job)

    numbers = ["+886911425977", "+886911425978"]
    assert missed(tmp_path, tolerated=0.3) == Missed([], numbers, Reading(Window(), is_full=False))
    assert len(ds.dataset(tmp_path / "phones").to_table()) == 7


@pytest.mark.parametrize(
    ("count", "sentence"),
    [
        (1, "of the 1 entry of its list, the ledger lacks 1"),
        (7, "of the 7 entries of its list, the ledger lacks 7"),
    ],
)
def test_entries_without_a_row_in_the_ledger_are_missing(count: int, sentence: str, tmp_path: Path) -> None:
    async def job(lake: Lake) -> None:
        await Journal(lake, "run_1", utc_now()).close(
            {**ROW, "parameters": {"entries": count}}, RunTotals(found=0)
        )

    in_lake(tmp_path, job)

    with pytest.raises(InputError, match=sentence):
        missed(tmp_path)


@pytest.mark.parametrize(
    ("count", "sentence"),
    [
        (1, "of its 1 outcome, the ledger has lost 1"),
        (2, "of its 2 outcomes, the ledger has lost 2"),
    ],
)
def test_outcomes_that_the_ledger_lost_are_counted(count: int, sentence: str, tmp_path: Path) -> None:
    async def job(lake: Lake) -> None:
        times = {"started_at": utc_now(), "finished_at": utc_now()}
        totals = RunTotals(found=count, conversations={"failed": count})
        await Journal(lake, "run_1", utc_now()).close({**ROW, **times, "parameters": {}}, totals)

    in_lake(tmp_path, job)

    with pytest.raises(InputError, match=sentence):
        missed(tmp_path)


def test_a_run_without_a_row_in_runs_cannot_be_rerun(box: Sandbox, tmp_path: Path) -> None:
    run(box, tmp_path, lambda opened: export_chunk(opened, "chunk", list(box.conversations)))
    for path in (tmp_path / "runs").iterdir():
        path.unlink()

    with pytest.raises(InputError, match="its row in runs/ is missing: export its input again"):
        missed(tmp_path)


def test_a_killed_second_attempt_is_closed_although_the_first_had_ended(box: Sandbox, tmp_path: Path) -> None:
    async def nothing(_: RunContext) -> None:
        pass

    done = list(box.conversations)[:4]
    first = run(box, tmp_path, nothing, failure="the token was rejected")

    kill(box, tmp_path, box.conversations, done)
    with pytest.raises(InputError, match="still under way"):
        missed(tmp_path)
    later = utc_now() + 3 * DEAD_AFTER
    found = in_lake(
        tmp_path,
        lambda lake: read_missed(
            lake, "run_1", later, organization_id="org_sandbox", tolerated_unreadable=0.0
        ),
    )

    assert first.totals.conversations == {"not_reached": 10}
    assert set(found.conversation_ids) == box.conversations.keys() - set(done)


def test_an_attempt_that_fails_at_its_start_accounts_for_the_previous_one(
    box: Sandbox, tmp_path: Path
) -> None:
    done = list(box.conversations)[:4]

    async def failing() -> RunSummary:
        async with open_run(settings_for(box, tmp_path), "run_1") as opened:
            await opened.recall()
            await opened.record_found([])
            return await close_run(opened, {}, Counter(), failure="the token was rejected")

    kill(box, tmp_path, box.conversations, done)
    summary = asyncio.run(failing())

    assert summary.totals.found == 10
    assert summary.totals.conversations == {"complete": 4, "not_reached": 6} == ledger_of(tmp_path, "run_1")


def test_an_attempt_that_fails_before_its_first_export_keeps_the_outcomes_of_the_previous_one(
    box: Sandbox, tmp_path: Path
) -> None:
    async def fail(opened: RunContext) -> None:
        pass

    kill(box, tmp_path, box.conversations, list(box.conversations)[:4])
    summary = run(box, tmp_path, fail, failure="the token was rejected")

    assert summary.totals.conversations == {"complete": 4, "not_reached": 6} == ledger_of(tmp_path, "run_1")


def test_an_old_result_of_a_previous_attempt_is_checked_again(box: Sandbox, tmp_path: Path) -> None:
    everything = list(box.conversations)
    run(box, tmp_path, lambda opened: export_chunk(opened, "chunk", everything), is_cancelled=True)
    box.reset_stats()

    async def retried() -> RunSummary:
        async with open_run(settings_for(box, tmp_path), "run_1") as opened:
            opened.clock = lambda: utc_now() + 2 * RESUME_WITHIN
            await opened.load_prior_state("all")
            await export_chunk(opened, "chunk", await opened.record_found(everything))
            return await close_run(opened, {}, Counter())

    summary = asyncio.run(retried())

    assert summary.totals.conversations == {"unchanged": 10}
    assert set(box.stats().pages) == set(everything)


@pytest.mark.parametrize("name", ["run.json", "found"])
def test_an_unreadable_journal_does_not_stop_other_runs(
    name: str, box: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kill(box, tmp_path, box.conversations)
    before = LocalStore.get

    async def get(self: LocalStore, key: str) -> bytes:
        if f"run_1/{name}" in key:
            raise StoreError("permission denied")
        return await before(self, key)

    monkeypatch.setattr(LocalStore, "get", get)
    summary = run(
        box, tmp_path, lambda opened: export_chunk(opened, "chunk", list(box.conversations)), run_id="run_2"
    )

    assert summary.status == "complete"


def test_a_run_is_found_only_by_its_complete_id(box: Sandbox, tmp_path: Path) -> None:
    run(box, tmp_path, lambda opened: export_chunk(opened, "chunk", list(box.conversations)), run_id="run_10")

    with pytest.raises(InputError, match="has no run run_1:"):
        missed(tmp_path, "run_1")


def test_a_run_whose_accounts_do_not_add_up_is_never_complete(
    box: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work(opened: RunContext) -> None:
        await export_chunk(opened, "chunk", list(box.conversations))
        # The journal loses an object.
        for path in (tmp_path / "journal").rglob("chunk*"):
            path.unlink()

    summary = run(box, tmp_path, work)

    assert summary.status == "failed"
    assert "10 conversations were found and 0 have an outcome" in (summary.reason or "")
