"""Compactions that are killed, that run twice at once or beside exports, and their readers."""

from __future__ import annotations

import shutil
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import polars
import pyarrow as pa
import pytest
from deltalake import DeltaTable

from imbrace_lake.lake.lake import Lake, open_lake
from imbrace_lake.store.lease import LeaseHeld, exclusive_lease
from imbrace_lake.tables import delta_log, messages
from imbrace_lake.tables.compact import compact_lake
from imbrace_sandbox import Sandbox, SandboxOptions
from tests.core.lake_runs import Bench
from tests.core.s3_servers import FakeS3, options_for
from tests.tables.kills import compact_and_kill
from tests.tables.lakes import SAME, compact, difference, open_table
from tools.seaweed import Seaweed

pytestmark = pytest.mark.slow


@pytest.fixture
def box() -> Iterator[Sandbox]:
    with Sandbox(SandboxOptions(conversations=4, sizes=(3, 40, 130))) as made:
        yield made


@pytest.fixture
def bench(box: Sandbox, tmp_path: Path) -> Bench:
    made = Bench(box, str(tmp_path / "lake"), settings={"rewalk_days": 0})
    made.run()
    return made


def change(bench: Bench) -> None:
    """Add, edit and delete messages, and export them."""
    ids = list(bench.box.conversations)
    bench.box.append(ids[0], 2)
    bench.box.edit(ids[-1], [bench.box.truth(ids[-1])[-1]["_id"]])
    if len(bench.box.truth(ids[-2])) > 1:
        bench.box.delete(ids[-2], 1)
    bench.run()


def test_after_a_kill_at_any_call_the_next_compaction_ends_right(bench: Bench, tmp_path: Path) -> None:
    compact(bench)
    for _ in range(2):
        change(bench)
        compact(bench)
    change(bench)
    killed = 0
    for at in range(1, 200):
        for is_after in (False, True):
            copy = Bench(bench.box, str(tmp_path / f"copy-{at}-{is_after}"), now=bench.now)
            shutil.copytree(bench.lake, copy.lake)
            is_killed = compact_and_kill(copy.lake, bench.now, at, is_after=is_after)
            killed += is_killed

            report = compact(copy, bench.now + timedelta(minutes=1))

            assert difference(copy) == SAME
            assert not report.differences
            shutil.rmtree(copy.lake)
            if not is_killed:
                assert killed >= 16
                return
    pytest.fail("the compaction never ended")


def test_two_at_once_write_each_row_once(bench: Bench) -> None:
    for _ in range(4):
        both = threading.Barrier(2)

        def one_of_two(both: threading.Barrier = both) -> int:
            both.wait()
            return compact(bench).commits

        with ThreadPoolExecutor(2) as threads:
            commits = [each.result() for each in [threads.submit(one_of_two) for _ in range(2)]]

        assert sum(commits) >= 1
        assert difference(bench) == SAME
        change(bench)


def test_readers_meet_each_message_once_while_the_table_changes(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(messages, "MOST_SMALL_FILES", 2)
    monkeypatch.setattr(delta_log, "COMMITS_PER_CHECKPOINT", 2)
    compact(bench)
    stop = threading.Event()
    found: Counter[str] = Counter()
    counts = {open_table(bench).to_pyarrow_table().num_rows}

    def read() -> None:
        while not stop.is_set():
            for name, rows in (
                ("deltalake", open_table(bench).to_pyarrow_table()),
                ("polars", polars.read_delta(f"{bench.lake}/tables/messages").to_arrow()),
            ):
                owners, ids = (rows.column(one).to_pylist() for one in ("conversation_id", "message_id"))
                found[name] += 1
                found["twice"] += len(ids) - len({*zip(owners, ids, strict=True)})
                found["other"] += rows.num_rows not in counts

    reader = ThreadPoolExecutor(1)
    reading = reader.submit(read)
    for _ in range(6):
        change(bench)
        counts.add(bench.rows().num_rows)
        compact(bench)
    stop.set()
    reading.result()

    assert not found["twice"]
    assert not found["other"]
    assert found["deltalake"] > 5
    assert difference(bench) == SAME


def storage_options(s3: Seaweed) -> Mapping[str, str]:
    return {
        "AWS_ENDPOINT_URL": s3.endpoint_url,
        "AWS_ACCESS_KEY_ID": s3.key,
        "AWS_SECRET_ACCESS_KEY": s3.secret,
        "AWS_REGION": "us-east-1",
        "AWS_ALLOW_HTTP": "true",
    }


def test_a_lake_in_a_bucket(box: Sandbox, s3: Seaweed, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(messages, "MOST_SMALL_FILES", 2)
    monkeypatch.setattr(delta_log, "COMMITS_PER_CHECKPOINT", 2)
    bench = Bench(box, f"s3://{bucket}/lake", store=options_for(s3), settings={"rewalk_days": 0})
    bench.run()
    for _ in range(4):
        with ThreadPoolExecutor(2) as threads:
            reports = [each.result() for each in [threads.submit(compact, bench) for _ in range(2)]]
        assert not [one.differences for one in reports if one.differences]
        assert difference(bench, storage_options(s3)) == SAME
        change(bench)
    compact(bench)

    table = DeltaTable(f"{bench.lake}/tables/messages", storage_options=dict(storage_options(s3)))

    assert pa.table(table.to_pyarrow_table()).num_rows == bench.rows().num_rows


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
