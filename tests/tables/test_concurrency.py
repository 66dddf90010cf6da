"""Compactions that are killed, that run twice at once or beside exports, and their readers."""

from __future__ import annotations

import asyncio
import itertools
import shutil
import threading
from collections import defaultdict
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeAlias

import duckdb
import polars
import pyarrow as pa
import pytest

from imbrace_lake.lake.lake import Lake, open_lake
from imbrace_lake.store.lease import LeaseHeld, exclusive_lease
from imbrace_lake.tables import delta_log, messages
from imbrace_lake.tables.compact import compact_lake
from imbrace_lake.tables.ledgers import LEDGER_TABLES
from imbrace_lake.tables.verification import verify_tables
from imbrace_sandbox import Sandbox, SandboxOptions
from tests.acceptance.scale import IS_FULL
from tests.core.lake_runs import Bench
from tests.core.s3_servers import FakeS3, options_for
from tests.tables.kills import compact_and_kill, compact_tables
from tests.tables.lakes import SAME, compact, difference, open_table, storage_options
from tools.seaweed import Seaweed

pytestmark = pytest.mark.slow

# In the tables of the ledgers, rows are added, or replaced as in the current ones.
KILLED = [one.name for one in LEDGER_TABLES] if IS_FULL else ["conversations_current"]
# Every write of a full run, every fourth one by default.
STEP, FEWEST_KILLS = (1, 50) if IS_FULL else (4, 4)
COMPACTIONS = 100 if IS_FULL else 3
IDS = ["conversation_id", "message_id"]
# The ids of the messages of each conversation.
Ids: TypeAlias = dict[str, frozenset[str]]


@pytest.fixture
def box() -> Iterator[Sandbox]:
    with Sandbox(SandboxOptions(conversations=4, sizes=(3, 40, 130) if IS_FULL else (3, 10))) as made:
        yield made


@pytest.fixture
def bench(box: Sandbox, tmp_path: Path) -> Bench:
    made = Bench(box, str(tmp_path / "lake"), settings={"rewalk_days": 0})
    made.run()
    return made


@pytest.fixture
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Merge files and write checkpoints often."""
    monkeypatch.setattr(messages, "MAX_SMALL_FILES", 2)
    monkeypatch.setattr(delta_log, "COMMITS_PER_CHECKPOINT", 2)


def change(bench: Bench) -> None:
    """Add, edit and delete messages, and export them."""
    ids = list(bench.box.conversations)
    bench.box.append(ids[0], 2)
    bench.box.edit(ids[-1], [bench.box.truth(ids[-1])[-1]["_id"]])
    if len(bench.box.truth(ids[-2])) > 1:
        bench.box.delete(ids[-2], 1)
    bench.run()


def test_after_a_kill_at_any_write_the_next_compaction_ends_right(bench: Bench, tmp_path: Path) -> None:
    for _ in range(3):
        bench.look(lambda lake: compact_tables(lake, bench.now, KILLED))
        change(bench)
    killed = 0
    for at in itertools.count(1, STEP):
        copy = Bench(bench.box, str(tmp_path / f"copy-{at}"), now=bench.now)
        shutil.copytree(bench.lake, copy.lake)
        is_killed = compact_and_kill(copy.lake, bench.now, KILLED, at)
        now = bench.now + timedelta(minutes=1)

        reports = copy.look(lambda lake, now=now: compact_tables(lake, now, KILLED))  # type: ignore[misc]

        assert difference(copy) == SAME
        assert not [one for report in reports for one in report.differences]
        assert not copy.look(verify_tables).differences
        shutil.rmtree(copy.lake)
        if not is_killed:
            break
        killed += 1
    assert killed >= FEWEST_KILLS


def test_two_at_once_write_each_row_once(bench: Bench) -> None:
    for _ in range(2):
        both = threading.Barrier(2)

        def one_of_two(both: threading.Barrier = both) -> int:
            both.wait()
            return compact(bench).commits

        with ThreadPoolExecutor(2) as threads:
            commits = [each.result() for each in [threads.submit(one_of_two) for _ in range(2)]]

        assert sum(commits) >= 1
        assert difference(bench) == SAME
        change(bench)


def test_a_compaction_that_another_one_overtook_after_its_commit_begins_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    compact(bench)
    monkeypatch.setattr(messages, "STEP_CONVERSATIONS", 1)
    for one in bench.box.conversations:
        bench.box.append(one, 1)
    bench.run()
    commit = delta_log.DeltaLog.commit

    async def commit_slowly(self: delta_log.DeltaLog, *args: Any, **options: Any) -> None:
        monkeypatch.setattr(delta_log.DeltaLog, "commit", commit)
        await commit(self, *args, **options)
        await asyncio.to_thread(compact, bench)

    monkeypatch.setattr(delta_log.DeltaLog, "commit", commit_slowly)

    report = compact(bench)

    assert (report.conflicts, report.rows_added, report.differences) == (1, 1, [])
    assert difference(bench) == SAME
    assert not bench.look(verify_tables).differences


def ids_by_conversation(rows: pa.Table) -> Ids:
    """Return the ids of the messages of each conversation; each must be there once."""
    found: dict[str, list[str]] = defaultdict(list)
    for conversation, message in zip(*(rows.column(name).to_pylist() for name in IDS), strict=True):
        found[conversation].append(message)
    sets = {conversation: frozenset(ids) for conversation, ids in found.items()}
    assert {name: len(ids) for name, ids in sets.items()} == {name: len(ids) for name, ids in found.items()}
    return sets


def assert_follows(earlier: Ids, later: Ids, exported: Mapping[str, set[frozenset[str]]]) -> None:
    """Assert that each conversation is as it was after an export, and that it never shrinks."""
    assert earlier.keys() == exported.keys()
    for conversation, ids in earlier.items():
        assert ids in exported[conversation]
        assert ids <= later[conversation]


def read_with(engine: str, bench: Bench, options: Mapping[str, str]) -> pa.Table:
    """Read the ids of all messages of the table."""
    if engine == "polars":
        return polars.read_delta(
            f"{bench.lake}/tables/messages", storage_options=dict(options), columns=IDS
        ).to_arrow()
    table = open_table(bench, options=options)
    if engine == "deltalake":
        return pa.table(table.to_pyarrow_table(columns=IDS))
    connection = duckdb.connect()
    connection.register("messages", table.to_pyarrow_dataset())
    return connection.sql("SELECT conversation_id, message_id FROM messages").to_arrow_table()


@pytest.fixture(
    params=[
        "folder",
        pytest.param(
            "bucket", marks=pytest.mark.skipif(not IS_FULL, reason="minutes: IMBRACE_ACCEPTANCE=full")
        ),
    ]
)
def place(box: Sandbox, tmp_path: Path, request: pytest.FixtureRequest) -> tuple[Bench, Mapping[str, str]]:
    """Return a lake, and how readers reach its store."""
    if request.param == "folder":
        return Bench(box, str(tmp_path / "lake"), settings={"rewalk_days": 0}), {}
    s3, bucket = request.getfixturevalue("s3"), request.getfixturevalue("bucket")
    bench = Bench(box, f"s3://{bucket}/lake", store=options_for(s3), settings={"rewalk_days": 0})
    return bench, storage_options(s3)


@pytest.mark.usefixtures("_often")
def test_readers_meet_each_message_once_during_compactions_and_exports(
    place: tuple[Bench, Mapping[str, str]],
) -> None:
    bench, options = place
    bench.run()
    compact(bench)
    stop = threading.Event()
    # The ids that a conversation had after an export.
    exported: dict[str, set[frozenset[str]]] = defaultdict(set)

    def record() -> None:
        for conversation, ids in ids_by_conversation(bench.rows()).items():
            exported[conversation].add(ids)

    def export() -> None:
        while not stop.is_set():
            change(bench)
            record()

    def read(engine: str) -> list[Ids]:
        snapshots = []
        while not stop.is_set():
            snapshots.append(ids_by_conversation(read_with(engine, bench, options)))
        return snapshots

    record()
    with ThreadPoolExecutor(4) as threads:
        exporting = threads.submit(export)
        reading = [threads.submit(read, engine) for engine in ("deltalake", "polars", "duckdb")]
        try:
            commits = 0
            while commits < COMPACTIONS and not exporting.done():
                commits += min(1, compact(bench).commits)
        finally:
            stop.set()
        exporting.result()
        read_by_engine = [one.result() for one in reading]

    assert commits == COMPACTIONS
    for snapshots in read_by_engine:
        assert snapshots
        for earlier, later in zip(snapshots, [*snapshots[1:], snapshots[-1]], strict=True):
            assert_follows(earlier, later, exported)
    compact(bench)
    assert difference(bench, options) == SAME


@pytest.mark.usefixtures("_often")
def test_a_lake_in_a_bucket(box: Sandbox, s3: Seaweed, bucket: str) -> None:
    bench = Bench(box, f"s3://{bucket}/lake", store=options_for(s3), settings={"rewalk_days": 0})
    bench.run()
    for _ in range(2):
        with ThreadPoolExecutor(2) as threads:
            reports = [each.result() for each in [threads.submit(compact, bench) for _ in range(2)]]
        assert not [one.differences for one in reports if one.differences]
        assert difference(bench, storage_options(s3)) == SAME
        change(bench)
    compact(bench)

    assert difference(bench, storage_options(s3)) == SAME


def test_a_store_without_conditions_supports_one_writer_and_says_so(box: Sandbox) -> None:
    with FakeS3().running() as server:
        server.conditions = "ignored"
        bench = Bench(box, "s3://bucket/lake", store=server.options)
        bench.run()

        async def held(lake: Lake) -> None:
            lease = exclusive_lease(lake.store, "an export", lambda: bench.now, settle_seconds=0)
            async with lease, open_lake(bench.lake, now=None, options=bench.store) as other:
                await compact_lake(other, "compaction", lambda: bench.now)

        with pytest.raises(LeaseHeld, match="one run at a time"):
            bench.look(held)
