"""Lakes with hostile values from an earlier version are read, extended and repaired."""

from __future__ import annotations

import asyncio
import json
import shutil
import uuid
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from threading import Thread
from typing import Any

import duckdb
import pytest

from imbrace_lake.errors import StoreError
from imbrace_lake.export.repair import Repaired, repair_lake
from imbrace_lake.gateway.exact_json import parse, write
from imbrace_lake.lake.lake import Lake, Part
from imbrace_lake.lake.memory import MemoryBudget
from imbrace_lake.lake.schema import to_item
from imbrace_lake.store.contract import Body
from imbrace_lake.store.factory import open_store
from imbrace_lake.store.lease import LEASE_KEY, exclusive_lease
from imbrace_lake.verify.part import judge_part
from imbrace_sandbox import Sandbox, SandboxOptions
from tests import hostile
from tests.core.lake_runs import START, Bench
from tests.core.test_hostile_json import strictly
from tests.fixtures import make_hostile_lake, make_lake
from tests.fixtures.make_hostile_lake import CONVERSATION, LATER

PROOF = ("conversation_id", "proof_method", "server_count")
LOST = {"m07", "m08", "m09"}


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    """Return the old lake, and the gateway as it was."""
    shutil.copytree(make_hostile_lake.LAKE, tmp_path / "lake")
    with Sandbox(SandboxOptions(conversations=0)) as box:
        box.put(make_hostile_lake.hostile_messages(), conversation_id=CONVERSATION)
        box.put(make_hostile_lake.plain_messages(), conversation_id=LATER)
        yield Bench(box, str(tmp_path / "lake"), now=START + timedelta(days=1))


def repair(bench: Bench, *, apply: bool = True, memory: MemoryBudget | None = None) -> Repaired:
    bench.now += timedelta(seconds=1)
    return bench.look(
        lambda lake: repair_lake(lake, str(uuid.uuid4()), lambda: bench.now, apply=apply, memory=memory)
    )


def objects(bench: Bench) -> dict[Path, bytes]:
    files = [path for path in Path(bench.lake).rglob("*") if path.is_file() and ".tmp" not in path.parts]
    return {path: path.read_bytes() for path in files}


def items(bench: Bench) -> dict[str, str]:
    """Return every message as the lake rebuilds it."""
    rows = bench.rows().to_pylist()
    return {row["message_id"]: write(to_item(row), is_sorted=True) for row in rows}


def walk_again(bench: Bench) -> Any:
    """Walk every conversation in full, as after thirty days."""
    bench.now += timedelta(days=40)
    return bench.run()


def is_strict(bench: Bench) -> bool:
    rows = bench.rows().to_pylist()
    try:
        return bool([(strictly(row["content"]), strictly(row["extra"])) for row in rows])
    except (AssertionError, ValueError, RecursionError):
        return False


def test_an_old_lake_is_read_and_verified_without_a_repair(bench: Bench) -> None:
    sent = {
        parse(one)["_id"]: write(parse(one), is_sorted=True) for one in make_hostile_lake.hostile_messages()
    }

    assert bench.verify().is_sound
    assert not is_strict(bench)
    assert {key: value for key, value in items(bench).items() if sent.get(key, value) != value}.keys() == LOST


def test_values_from_an_old_lake_are_not_edits(bench: Bench) -> None:
    summary = walk_again(bench)

    edits = {row["message_id"] for row in bench.ledger("revisions")}
    assert edits == LOST
    assert summary.status == "complete"
    assert not bench.wrong_hashes()
    assert bench.verify().is_sound
    assert bench.run().totals.conversations == {"unchanged": 2}


def test_without_apply_nothing_is_written(bench: Bench) -> None:
    before = objects(bench)

    found = repair(bench, apply=False)

    assert [key.split("/")[2] for key in found.keys] == [f"conv={CONVERSATION}"]
    assert (found.parts, found.rows, found.is_applied) == (2, 7, False)
    assert objects(bench) == before


@pytest.mark.parametrize("memory", [16 * 2**20, 1], ids=["in memory", "in files"])
def test_a_repaired_lake_has_strict_json_and_the_same_messages(bench: Bench, memory: int) -> None:
    rows, before = bench.rows(), items(bench)

    found = repair(bench, memory=MemoryBudget(memory))

    assert (found.rows, found.is_applied) == (7, True)
    assert is_strict(bench)
    assert items(bench) == before
    remarks = ["message_id", "first_seen_at", "last_changed_at", "run_id", "is_deleted", "text", "type"]
    assert bench.rows().select(remarks).sort_by("message_id") == rows.select(remarks).sort_by("message_id")
    assert not bench.wrong_hashes()
    assert bench.verify().is_sound
    assert bench.verify().unrecorded == 0
    with duckdb.connect() as connection:
        messages = connection.read_parquet(f"{bench.lake}/messages/**/*.parquet")
        assert len(messages.project("content->>'text', extra->>'x'").fetchall()) == len(before)
    # A repaired part states the proof of its conversation from the ledger.
    report = judge_part(Path(bench.lake, found.keys[0]))
    assert report.is_proven
    assert report.claim is not None
    proof = (report.claim.conversation_id, report.claim.proof_method, report.claim.server_count)
    assert None not in proof
    assert proof in {tuple(row[name] for name in PROOF) for row in bench.ledger("conversations")}


def test_after_a_repair_a_run_finds_all_conversations_unchanged(bench: Bench) -> None:
    repair(bench)
    before = objects(bench)

    summary = bench.run()

    assert summary.totals.conversations == {"unchanged": 2}
    assert summary.totals.requests == 2
    assert {path: body for path, body in objects(bench).items() if "messages" in path.parts} == {
        path: body for path, body in before.items() if "messages" in path.parts
    }
    assert bench.verify().is_sound


@pytest.mark.slow
def test_after_a_repair_a_full_walk_finds_only_the_values_that_were_lost(bench: Bench) -> None:
    repair(bench)

    walk_again(bench)

    assert {row["message_id"] for row in bench.ledger("revisions")} == LOST
    assert bench.verify().is_sound
    assert not bench.wrong_hashes()
    assert repair(bench, apply=False).rows == 0


def test_a_second_repair_finds_nothing_and_writes_nothing(bench: Bench) -> None:
    repair(bench)
    before = objects(bench)

    assert repair(bench).rows == 0
    assert objects(bench) == before


def test_long_numbers_in_a_lake_of_the_first_version_are_repaired(tmp_path: Path) -> None:
    shutil.copytree(make_lake.LAKE, tmp_path / "lake")
    with Sandbox(SandboxOptions(conversations=0)) as box:
        bench = Bench(box, str(tmp_path / "lake"))
        before = {
            (row["conversation_id"], row["message_id"]): to_item(row) for row in bench.rows().to_pylist()
        }
        outdated = [row for row in bench.rows().to_pylist() if '"reference":118' in row["content"]]

        found = repair(bench)

        assert outdated
        assert (found.rows, found.parts) == (len(outdated), 6)
        after = bench.rows().to_pylist()
        assert {(row["conversation_id"], row["message_id"]): to_item(row) for row in after} == before
        assert bench.verify().is_sound
        assert repair(bench, apply=False).rows == 0


@pytest.mark.slow
def test_a_lake_of_this_version_needs_no_repair(tmp_path: Path) -> None:
    with Sandbox(SandboxOptions(conversations=2, sizes=(120,), surprises=0.5)) as box:
        box.put(hostile.messages(), conversation_id="hostile")
        bench = Bench(box, str(tmp_path / "lake"))
        assert bench.run().status == "complete"

        assert repair(bench, apply=False).keys == []
        walk_again(bench)
        assert bench.ledger("revisions") == []
        assert bench.verify().is_sound


class Killed(BaseException):
    """Ends a repair at once, as a signal would."""


@pytest.mark.slow
@pytest.mark.parametrize("writes", range(1, 9))
def test_a_killed_repair_leaves_a_sound_lake_and_the_next_one_completes_it(
    bench: Bench, writes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = items(bench)
    kill_after(writes, monkeypatch)
    with pytest.raises(Killed):
        repair(bench)
    monkeypatch.undo()

    assert bench.verify().is_sound
    assert items(bench) == before
    bench.now += timedelta(hours=1)
    repair(bench)
    assert is_strict(bench)
    assert items(bench) == before
    assert bench.verify().is_sound
    bench.run()
    assert not bench.wrong_hashes()
    assert {row["message_id"] for row in bench.ledger("revisions")} <= LOST
    assert bench.run().totals.conversations == {"unchanged": 2}
    assert bench.verify().is_sound


def kill_after(writes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulate a kill before the given write to the store."""
    from imbrace_lake.store.local import LocalStore

    done = 0
    for name in ("overwrite", "create", "update", "delete"):
        original = getattr(LocalStore, name)

        async def counted(self: Any, *args: Any, original: Any = original, **kwargs: Any) -> Any:
            nonlocal done
            done += 1
            if done >= writes:
                raise Killed
            return await original(self, *args, **kwargs)

        monkeypatch.setattr(LocalStore, name, counted)


@pytest.mark.slow
def test_an_edit_during_a_repair_is_kept(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Lake.replace_part
    edits: list[str] = []

    async def late(lake: Lake, part: Part, body: Body) -> Any:
        if not edits:
            edits.append(part.key)
            bench.box.edit(CONVERSATION, ["m06"])
            await asyncio.to_thread(bench.run)
        return await original(lake, part, body)

    monkeypatch.setattr(Lake, "replace_part", late)
    found = repair(bench)
    monkeypatch.undo()

    assert found.is_applied
    assert edits
    assert is_strict(bench)
    assert {"m06"} <= {row["message_id"] for row in bench.ledger("revisions")} <= {"m06", *LOST}
    assert bench.verify().is_sound
    bench.run()
    assert not bench.wrong_hashes()
    assert bench.verify().is_sound


@pytest.mark.slow
def test_an_export_that_began_before_the_repair_may_end_after_it(bench: Bench) -> None:
    def repaired_meanwhile(run: Any) -> None:
        thread = Thread(target=repair, args=(bench,))
        thread.start()
        thread.join()
        bench.now += timedelta(seconds=5)
        fixed = bench.now
        run.clock = lambda: fixed

    summary = bench.run(prepare=repaired_meanwhile)

    assert summary.totals.conversations == {"unchanged": 2}
    assert is_strict(bench)
    assert bench.verify().is_sound
    bench.run()
    assert bench.verify().is_sound
    assert not bench.wrong_hashes()


def test_revisions_are_strict_json_even_if_the_lake_is_not(bench: Bench) -> None:
    bench.box.edit(CONVERSATION, ["m00", "m02", "m03"])

    bench.run()

    replaced = bench.ledger("revisions")
    assert {"m00", "m02", "m03"} <= {row["message_id"] for row in replaced}
    for row in replaced:
        strictly(row["content"])
        strictly(row["extra"])
    originals = {parse(one)["_id"]: parse(one) for one in make_hostile_lake.hostile_messages()}
    half = next(row for row in replaced if row["message_id"] == "m00")
    assert to_item(half) == originals["m00"]
    assert json.loads(half["extra"])["$original"]


DEEP_JSON = ["[" * 100_000, "[" * 1_000 + "]" * 1_000, '{"checksum":"0","a":' + hostile.nested(980) + "}"]


@pytest.mark.parametrize("body", DEEP_JSON, ids=["unclosed", "array", "object"])
def test_a_deeply_nested_marker_is_damaged(bench: Bench, body: str) -> None:
    Path(bench.lake, "lake.json").write_text(body)

    with pytest.raises(StoreError, match=r"lake\.json is damaged"):
        bench.verify()


@pytest.mark.parametrize("body", DEEP_JSON, ids=["unclosed", "array", "object"])
def test_a_deeply_nested_header_of_a_journal_stops_no_run(bench: Bench, body: str) -> None:
    header = Path(bench.lake, "journal", "dead", "run.json")
    header.parent.mkdir(parents=True)
    header.write_text(body)

    assert bench.run().status == "complete"


@pytest.mark.parametrize("body", [*DEEP_JSON, "{}", '{"run_id":1,"until":2}'])
def test_a_damaged_lock_is_reported_in_one_sentence(tmp_path: Path, body: str) -> None:
    async def run() -> None:
        async with open_store(str(tmp_path)) as store:
            await store.overwrite(LEASE_KEY, body.encode())
            async with exclusive_lease(store, "run", lambda: START, settle_seconds=0):
                pass

    with pytest.raises(StoreError, match=r"lock/run\.json is damaged: delete it if no run is writing"):
        asyncio.run(run())


@pytest.mark.slow
@pytest.mark.parametrize("levels", [995, 1_000, 1_023, 9_990])
def test_a_conversation_with_a_message_of_any_depth_is_exported(tmp_path: Path, levels: int) -> None:
    with Sandbox(SandboxOptions(conversations=0)) as box:
        box.put(make_hostile_lake.plain_messages(), conversation_id=LATER)
        box.put([hostile.message("deep", hostile.nested(levels))], conversation_id="deep")
        bench = Bench(box, str(tmp_path / "lake"))

        assert bench.run().totals.conversations == {"complete": 2}
        assert bench.run().totals.conversations == {"unchanged": 2}
        assert bench.verify().is_sound
        assert is_strict(bench)
        assert items(bench)["deep"] == write(
            parse(hostile.message("deep", hostile.nested(levels))), is_sorted=True
        )


@pytest.mark.slow
def test_a_message_nested_without_end_fails_only_its_conversation(tmp_path: Path) -> None:
    with Sandbox(SandboxOptions(conversations=0)) as box:
        box.put(make_hostile_lake.plain_messages(), conversation_id=LATER)
        box.put([hostile.message("deep", hostile.nested(100_000))], conversation_id="deep")
        summary = Bench(box, str(tmp_path / "lake"), settings={"tries": 1}).run()

        assert summary.totals.conversations == {"complete": 1, "failed": 1}
        assert [letter.conversation_id for letter in summary.dead_letters] == ["deep"]
        assert "nested deeper than 10,000 levels" in summary.dead_letters[0].reason
