"""What compactions delete, and what they leave to readers and to other compactions."""

from __future__ import annotations

import os
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from imbrace_lake.errors import DamagedObject
from imbrace_lake.lake.lake import Lake
from imbrace_lake.tables import delta_log
from imbrace_lake.tables.cleaning import RUN, check_files
from imbrace_lake.tables.delta_log import Snapshot
from imbrace_lake.tables.messages import FOLDER, MessagesCompaction, messages_log
from imbrace_lake.tables.report import TableReport
from tests.core.lake_runs import Bench
from tests.tables.lakes import SAME, compact, difference

pytestmark = pytest.mark.slow

NO_GRACE = timedelta(0)


def append(bench: Bench, count: int = 1) -> None:
    """Add messages to a conversation, and export them."""
    bench.box.append(next(iter(bench.box.conversations)), count)
    bench.run()


def compact_without_grace(bench: Bench, now: datetime) -> TableReport:
    async def job(lake: Lake) -> TableReport:
        return await MessagesCompaction(lake, lambda: now, grace=NO_GRACE).run()

    return bench.look(job)


def read_snapshot(bench: Bench) -> Snapshot:
    async def job(lake: Lake) -> Snapshot:
        snapshot = await messages_log(lake).read()
        assert snapshot is not None
        return snapshot

    return bench.look(job)


@pytest.mark.parametrize(("hours", "is_there"), [(23, True), (25, False)])
def test_files_of_another_compaction_have_a_day_even_without_a_grace_period(
    bench: Bench, hours: int, is_there: bool
) -> None:
    uploaded = Path(bench.lake, FOLDER, "not-committed-yet.parquet")
    uploaded.write_bytes(b"rows")
    written_at = bench.now
    os.utime(uploaded, (written_at.timestamp(),) * 2)
    append(bench)

    compact_without_grace(bench, written_at + timedelta(hours=hours))

    assert uploaded.exists() == is_there


def test_files_that_another_compaction_has_deleted_since_are_not_missing(bench: Bench) -> None:
    older = read_snapshot(bench)
    one = next(iter(bench.box.conversations))
    bench.box.edit(one, [bench.box.truth(one)[0]["_id"]])
    bench.settings["rewalk_days"] = 0
    bench.run()
    compact(bench)
    for file in older.files:
        Path(bench.lake, FOLDER, file.path).unlink(missing_ok=True)

    async def check(lake: Lake, snapshot: Snapshot) -> None:
        await check_files(lake.store, messages_log(lake), FOLDER, snapshot)

    bench.look(lambda lake: check(lake, older))
    newest = read_snapshot(bench)
    Path(bench.lake, FOLDER, newest.files[0].path).unlink()
    with pytest.raises(DamagedObject, match="is missing"):
        bench.look(lambda lake: check(lake, newest))


def test_old_entries_of_a_log_are_deleted_from_the_oldest_on(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delta_log, "COMMITS_PER_CHECKPOINT", 3)
    for _ in range(4):
        append(bench)
        compact(bench)
    deleted: list[str] = []

    async def job(lake: Lake) -> int:
        delete = lake.store.delete

        async def record(key: str) -> None:
            deleted.append(key.rpartition("/")[2])
            await delete(key)

        monkeypatch.setattr(lake.store, "delete", record)
        return await messages_log(lake).delete_old(bench.now + timedelta(days=9_000), NO_GRACE)

    count = bench.look(job)

    assert count == len(deleted) > 1
    assert deleted == sorted(deleted)
    assert compact(bench).commits == 0
    assert difference(bench) == SAME


def test_a_checkpoint_that_another_compaction_wrote_is_not_written_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delta_log, "COMMITS_PER_CHECKPOINT", 3)
    append(bench)
    compact(bench)
    append(bench)
    monkeypatch.setattr(delta_log.DeltaLog, "checkpoint", _nothing)
    compact(bench)
    monkeypatch.undo()
    monkeypatch.setattr(delta_log, "COMMITS_PER_CHECKPOINT", 3)
    snapshot = read_snapshot(bench)
    assert snapshot.commits == 3
    written: list[str] = []

    async def job(lake: Lake) -> None:
        overwrite = lake.store.overwrite

        async def record(key: str, body: bytes) -> Any:
            written.append(key)
            return await overwrite(key, body)

        monkeypatch.setattr(lake.store, "overwrite", record)
        log = messages_log(lake)
        await log.checkpoint(snapshot)
        await log.checkpoint(snapshot)

    bench.look(job)

    assert written == [f"{FOLDER}_delta_log/_last_checkpoint"]


async def _nothing(*args: object) -> None:
    pass


def test_a_foreign_file_among_the_runs_does_not_hide_the_last_run(bench: Bench) -> None:
    Path(bench.lake, "runs/zzz.tmp").touch()
    one = next(iter(bench.box.conversations))
    bench.box.append(one, 1)
    bench.run()
    compact(bench)

    assert read_snapshot(bench).configuration[RUN] == bench.ledger("runs")[-1]["run_id"]
