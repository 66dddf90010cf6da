"""A lake that is copied elsewhere, tables included, is readable and continues."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import pyarrow as pa
import pytest

from imbrace_lake.query.reader import Lake
from imbrace_lake.tables.ledgers import LEDGER_TABLES
from imbrace_sandbox import Sandbox, SandboxOptions
from tests.core.lake_runs import Bench
from tests.core.s3_servers import options_for
from tests.tables.lakes import SAME, compact_all, difference, open_table, storage_options

pytestmark = pytest.mark.slow


@pytest.fixture
def original(tmp_path: Path) -> Iterator[Bench]:
    with Sandbox(SandboxOptions(conversations=3, sizes=(3, 40))) as box:
        made = Bench(box, str(tmp_path / "lake"), settings={"rewalk_days": 0})
        made.run()
        yield made


@pytest.fixture(params=["folder", "bucket"])
def copy(original: Bench, tmp_path: Path, request: pytest.FixtureRequest) -> tuple[Bench, Mapping[str, str]]:
    """Compact a lake, move it elsewhere as a copy does, and return it and how readers reach it."""
    compact_all(original)
    options: Mapping[str, str] = {}
    if request.param == "folder":
        made = Bench(original.box, str(tmp_path / "copy"))
        # Not the times of the files, by which the lake recognizes their versions.
        shutil.copytree(original.lake, made.lake, copy_function=shutil.copyfile)
    else:
        s3, bucket = request.getfixturevalue("s3"), request.getfixturevalue("bucket")
        made = Bench(original.box, f"s3://{bucket}/copy", store=options_for(s3))
        options = storage_options(s3)
        client = s3.client()
        for path in Path(original.lake).rglob("*"):
            key = path.relative_to(original.lake).as_posix()
            if path.is_file() and not key.startswith("."):
                client.put_object(Bucket=bucket, Key=f"copy/{key}", Body=path.read_bytes())
    made.now, made.settings = original.now, original.settings
    shutil.rmtree(original.lake)
    return made, options


def test_a_copy_is_readable_and_continues(copy: tuple[Bench, Mapping[str, str]]) -> None:
    bench, options = copy
    assert difference(bench, options) == SAME
    with Lake.open(bench.lake, options=bench.store, source="table") as lake:
        assert lake.messages(deleted=True).to_arrow().num_rows == bench.rows().num_rows
    names = [one.name for one in LEDGER_TABLES]
    before = {name: pa.table(open_table(bench, name, options).to_pyarrow_table()).num_rows for name in names}
    assert before["conversations"] == before["conversations_current"] == len(bench.box.conversations)
    ids = list(bench.box.conversations)
    bench.box.append(ids[0], 1)
    bench.box.edit(ids[1], [bench.box.truth(ids[1])[0]["_id"]])
    bench.run()

    reports = {one.table: one for one in compact_all(bench)}

    assert not [one for report in reports.values() for one in report.differences]
    assert reports["messages"].rows_added == reports["messages"].rows_removed + 1
    assert difference(bench, options) == SAME
    # Ledger objects have the same names in the copy, and are not read again.
    assert [reports[name].objects_read for name in ("conversations", "runs", "revisions")] == [1, 1, 1]
    assert bench.verify().is_sound


def test_tables_that_are_newer_than_a_restored_lake_are_reported_and_built_again(tmp_path: Path) -> None:
    with Sandbox(SandboxOptions(conversations=3, sizes=(3, 40))) as box:
        bench = Bench(box, str(tmp_path / "lake"))
        bench.run()
        backup = Bench(box, str(tmp_path / "backup"), now=bench.now)
        shutil.copytree(bench.lake, backup.lake)
        box.append(next(iter(box.conversations)), 2)
        bench.run()
        compact_all(bench)
        shutil.copytree(Path(bench.lake, "tables"), Path(backup.lake, "tables"))
        last_run = bench.ledger("runs")[-1]["run_id"]

        found = {one.name: one.problem for one in backup.verify().differences}
        planned = compact_all(backup, is_dry_run=True)
        reports = compact_all(backup)

    messages = found.pop("tables/messages/")
    assert messages.startswith(f"has the messages until run {last_run}, which the lake does not have: ")
    again = "the next `imbrace-lake compact` writes it again"
    assert found == {
        f"tables/{name}/": f"has the rows of 1 ledger object that the lake does not have: {again}"
        for name in ("conversations", "conversations_current", "runs")
    }
    problem = "had the rows of 1 ledger object that the lake does not have, and the table was built again"
    assert {one.problem for report in reports for one in report.differences} == {problem}
    assert [one.objects_read for one in planned[1:]] == [one.objects_read for one in reports[1:]]
    assert difference(backup) == SAME
    runs = open_table(backup, "runs").to_pyarrow_table().to_pylist()
    assert [row["run_id"] for row in runs] == [row["run_id"] for row in backup.ledger("runs")]
    current = open_table(backup, "conversations_current").to_pyarrow_table().to_pylist()
    assert sorted(row["conversation_id"] for row in current) == sorted(box.conversations)
    assert backup.verify().is_sound
    assert [one.commits for one in compact_all(backup)] == [0] * 7
