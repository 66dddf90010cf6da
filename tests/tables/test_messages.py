"""The table of messages always has exactly the rows of the parts."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import duckdb
import polars
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from imbrace_lake.errors import DamagedObject, InputError
from imbrace_lake.export.chunk import export_chunk
from imbrace_lake.export.run import RunContext
from imbrace_lake.lake.lake import Lake, Part
from imbrace_lake.tables import delta_log, messages
from imbrace_lake.tables.delta_log import TableFile
from imbrace_lake.tables.rows import iter_file
from imbrace_sandbox import Sandbox, SandboxOptions
from tests.core.lake_runs import Bench
from tests.core.runs_of import exporting
from tests.core.test_conversation_ids import CANONICAL, UUID, serving
from tests.tables.lakes import SAME, compact, compact_all, difference, log_texts, open_table, table_rows

OLD = f"tcu_{UUID}"

pytestmark = pytest.mark.slow


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with Sandbox(SandboxOptions(conversations=6, sizes=(3, 40, 130))) as box:
        made = Bench(box, str(tmp_path / "lake"))
        made.run()
        yield made


def test_the_table_has_the_rows_of_the_parts_in_few_sorted_files(bench: Bench) -> None:
    report = compact(bench)

    table = open_table(bench)
    assert difference(bench) == SAME
    assert report.rows == bench.rows().num_rows
    assert not report.differences
    assert not report.unproven
    assert len(table.file_uris()) == 1
    (path,) = Path(bench.lake, "tables", "messages").glob("*.parquet")
    days = pq.read_table(path, columns=["created_at"]).column(0).cast(pa.date32()).to_pylist()
    assert days == sorted(days)
    month = table.to_pyarrow_table(columns=["month", "created_at"]).to_pylist()
    assert all(row["month"] == row["created_at"].strftime("%Y-%m") for row in month)


def test_other_engines_read_the_same_rows(bench: Bench) -> None:
    compact(bench)
    box = bench.box
    box.append(next(iter(box.conversations)), 3)
    bench.run()
    compact(bench)

    counts = [
        polars.scan_delta(f"{bench.lake}/tables/messages").select(polars.len()).collect().item(),
        duckdb.connect().from_arrow(open_table(bench).to_pyarrow_dataset()).limit(100_000).fetchall(),
    ]

    assert [counts[0], len(counts[1])] == [bench.rows().num_rows] * 2


def test_rows_that_another_writer_deleted_are_written_again(bench: Bench) -> None:
    compact(bench)
    # In the file that it writes, the type of texts is another one.
    open_table(bench).delete("sender_role = 'contact'")

    report = compact(bench)

    assert report.differences
    assert report.is_repaired
    assert difference(bench) == SAME
    assert not compact(bench).differences


def test_new_messages_are_added_without_reading_anything_else(bench: Bench) -> None:
    compact(bench)
    before = {path.name for path in Path(bench.lake, "tables", "messages").glob("*.parquet")}
    one = next(iter(bench.box.conversations))
    bench.box.append(one, 5)
    bench.run()

    report = compact(bench)

    assert (report.changed, report.objects_read, report.rows_added, report.rows_removed) == (1, 1, 5, 0)
    assert before < {path.name for path in Path(bench.lake, "tables", "messages").glob("*.parquet")}
    assert difference(bench) == SAME
    assert not report.differences


def test_edits_and_deletions_replace_rows_in_one_commit(bench: Bench) -> None:
    compact(bench)
    version = open_table(bench).version()
    ids = list(bench.box.conversations)
    bench.box.edit(ids[-1], [bench.box.truth(ids[-1])[-1]["_id"]])
    bench.box.delete(ids[-2], 2)
    bench.box.append(ids[-1], 2)
    bench.settings["rewalk_days"] = 0
    bench.run()

    report = compact(bench)

    assert report.rows_removed
    assert report.changed == 2
    assert open_table(bench).version() == version + 1
    assert difference(bench) == SAME
    assert not report.differences
    assert not report.unproven


def test_a_second_compaction_changes_nothing(bench: Bench) -> None:
    compact(bench)
    before = open_table(bench).version()

    report = compact(bench, bench.now + timedelta(hours=1))

    assert (report.commits, report.objects_read, report.changed) == (0, 0, 0)
    assert open_table(bench).version() == before


def test_a_run_without_changes_advances_the_time_of_the_table(bench: Bench) -> None:
    first = compact(bench)
    bench.run()

    second = compact(bench)

    assert second.commits == 1
    assert not second.objects_read
    assert first.as_of is not None
    assert second.as_of is not None
    assert second.as_of > first.as_of
    assert second.run_id != first.run_id
    assert second.run_id == bench.ledger("runs")[-1]["run_id"]


def test_the_log_contains_no_message(bench: Bench) -> None:
    compact(bench)
    one = next(iter(bench.box.conversations))
    bench.box.edit(one, [bench.box.truth(one)[0]["_id"]])
    bench.settings["rewalk_days"] = 0
    bench.run()
    compact(bench)

    log = log_texts(bench)

    texts = {text for row in bench.rows().to_pylist() for text in (row["text"], row["content"]) if text}
    spelled = {json.dumps(text)[1:-1] for text in texts}
    assert not [text for text in texts | spelled if len(text) > 5 and text in log]
    stats = [json.loads(line)["add"]["stats"] for line in log.splitlines() if line.startswith('{"add"')]
    allowed = {"organization_id", "conversation_id", "created_at", "month"}
    assert stats
    for one in map(json.loads, stats):
        assert one.keys() == {"numRecords", "minValues", "maxValues", "nullCount"}
        assert {*one["minValues"], *one["maxValues"], *one["nullCount"]} == allowed


def test_a_dry_run_writes_nothing_and_counts_what_would_be_read(bench: Bench) -> None:
    report = compact_all(bench, is_dry_run=True)[0]

    parts = [*Path(bench.lake, "messages").glob("*/*/*.parquet")]
    assert report.objects_read == len(parts) == report.changed
    assert report.read_bytes == sum(path.stat().st_size for path in parts)
    assert report.requests > len(parts)
    assert not Path(bench.lake, "tables").exists()


def test_tables_can_be_deleted_and_a_lost_state_is_built_again(bench: Bench) -> None:
    compact(bench)
    shutil.rmtree(Path(bench.lake, "tables", "state"))

    rebuilt = compact(bench)

    assert difference(bench) == SAME
    assert rebuilt.rows == bench.rows().num_rows
    shutil.rmtree(Path(bench.lake, "tables"))
    compact(bench)
    assert difference(bench) == SAME


def test_a_lost_state_is_built_again_in_one_commit_however_many_conversations_there_are(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(messages, "STEP_CONVERSATIONS", 2)
    monkeypatch.setattr(messages, "COMPARED_CONVERSATIONS", 1)
    first = compact(bench)
    assert first.commits > 2
    shutil.rmtree(Path(bench.lake, "tables", "state"))

    rebuilt = compact(bench)

    assert difference(bench) == SAME
    assert (rebuilt.commits, rebuilt.changed, rebuilt.files) == (1, first.changed, 1)
    assert not rebuilt.differences
    assert not rebuilt.unproven
    assert compact(bench).commits == 0


def test_removed_conversations_leave_the_table(bench: Bench) -> None:
    compact(bench)
    folder = next(Path(bench.lake, "messages").glob("*/*"))
    shutil.rmtree(folder)
    bench.box.conversations.pop(next(one for one in bench.box.conversations if folder.name.endswith(one)))

    report = compact(bench, bench.now + timedelta(minutes=1))

    assert report.rows_removed
    assert difference(bench) == SAME
    ((name, problem),) = [(one.name, one.problem) for one in report.differences]
    assert name == str(folder.relative_to(bench.lake))
    assert "part-00000.parquet" in problem
    assert "imbrace-lake verify" in problem
    assert not report.unproven


def lose_a_part(bench: Bench) -> Path:
    """Delete a part of three messages that the table has."""
    one = next(iter(bench.box.conversations))
    bench.box.append(one, 3)
    bench.run()
    compact(bench)
    (path,) = Path(bench.lake, "messages").glob("*/*/part-00001.parquet")
    path.unlink()
    return path


def test_a_lost_part_is_reported(bench: Bench) -> None:
    path = lose_a_part(bench)

    report = compact(bench)

    ((name, problem),) = [(one.name, one.problem) for one in report.differences]
    assert name == str(path.parent.relative_to(bench.lake))
    assert report.rows_removed - report.rows_added == 3
    assert path.name in problem
    assert difference(bench) == SAME


def test_a_gone_conversation_is_compared_with_its_last_proof(bench: Bench) -> None:
    gone = next(iter(bench.box.conversations))
    bench.box.vanish(gone)
    bench.run()
    shutil.rmtree(Path(bench.lake, "tables"), ignore_errors=True)

    report = compact(bench)

    assert (report.unproven, report.differences) == (0, [])
    (path,) = Path(bench.lake, "messages").glob(f"*/conv={gone}/part-00000.parquet")
    path.unlink()
    (found,) = compact(bench).differences
    assert "has lost part-00000.parquet" in found.problem


def test_what_was_lost_is_reported_until_it_is_there_again(bench: Bench, tmp_path: Path) -> None:
    compact(bench)
    folder = next(Path(bench.lake, "messages").glob("*/*"))
    shutil.move(folder, tmp_path / "copy")
    first = compact(bench)

    again = compact(bench, bench.now + timedelta(minutes=1))

    assert first.differences
    assert (again.commits, again.differences) == (0, first.differences)
    # A later change of another conversation does not make it forget.
    bench.box.append(next(one for one in bench.box.conversations if not folder.name.endswith(one)), 1)
    bench.run([one for one in bench.box.conversations if not folder.name.endswith(one)])
    assert compact(bench).differences == first.differences
    shutil.move(tmp_path / "copy", folder)
    assert not compact(bench).differences
    assert not compact(bench, bench.now + timedelta(minutes=1)).differences
    assert difference(bench) == SAME


def test_a_copy_of_a_lake_reports_what_was_lost_before(bench: Bench, tmp_path: Path) -> None:
    lose_a_part(bench)
    before = compact(bench)
    copy = Bench(bench.box, str(tmp_path / "copy"), now=bench.now)
    # All parts have new versions there.
    shutil.copytree(bench.lake, copy.lake, copy_function=shutil.copyfile)

    first = compact(copy)
    again = compact(copy, copy.now + timedelta(minutes=1))

    assert before.differences
    assert first.commits
    assert first.differences == again.differences == before.differences


@pytest.mark.parametrize("deleted", [OLD, CANONICAL])
def test_only_an_out_of_date_spelling_of_a_conversation_can_be_deleted(tmp_path: Path, deleted: str) -> None:
    with serving(CANONICAL) as box:
        box.put(box.truth(CANONICAL), conversation_id=OLD)

        async def export(run: RunContext) -> None:
            # As earlier versions did, which made a conversation of each spelling.
            await export_chunk(run, "chunk", [OLD, CANONICAL])

        exporting(box, tmp_path / "lake", export)
        bench = Bench(box, str(tmp_path / "lake"))
        compact(bench)
        (folder,) = Path(bench.lake, "messages").glob(f"*/conv={deleted}")
        shutil.rmtree(folder)

        reports = [compact(bench, bench.now + timedelta(minutes=minute)) for minute in (1, 2)]

        expected = [] if deleted == OLD else [str(folder.relative_to(bench.lake))]
        assert [[one.name for one in report.differences] for report in reports] == [expected] * 2
        assert not reports[0].unproven
        names = [one.name for one in bench.verify().differences]
        assert names == [f"{one}/part-00000.parquet" for one in expected]


def test_a_part_that_is_not_proven_yet_is_no_difference(bench: Bench) -> None:
    compact(bench)
    bench.box.append(next(iter(bench.box.conversations)), 3)
    ledgers = Path(bench.lake, "conversations")
    before = {*ledgers.iterdir()}
    bench.run()
    (entries,) = {*ledgers.iterdir()} - before
    entries.unlink()

    report = compact(bench)

    assert (report.differences, report.unproven, report.rows_added) == ([], 1, 3)


def test_a_part_that_was_proven_after_the_list_of_parts_is_no_difference(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    compact(bench)
    one = next(iter(bench.box.conversations))
    bench.box.append(one, 3)
    bench.run()
    bench.box.append(one, 2)
    list_below = Lake.list_below

    async def run_after(lake: Lake) -> list[Part]:
        monkeypatch.undo()
        listed = await list_below(lake)
        await asyncio.to_thread(bench.run)
        return listed

    monkeypatch.setattr(Lake, "list_below", run_after)

    report = compact(bench)

    assert (report.differences, report.unproven, report.rows_added) == ([], 1, 3)
    assert compact(bench).rows_added == 2
    assert difference(bench) == SAME


def test_small_files_are_merged_and_old_ones_deleted_after_the_grace_period(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(messages, "MAX_SMALL_FILES", 3)
    monkeypatch.setattr(delta_log, "COMMITS_PER_CHECKPOINT", 3)
    one = next(iter(bench.box.conversations))
    for _ in range(5):
        bench.box.append(one, 1)
        bench.run()
        compact(bench)
    assert difference(bench) == SAME
    table = Path(bench.lake, "tables", "messages")
    assert len(open_table(bench).file_uris()) <= 4 < len([*table.glob("*.parquet")])
    assert [*table.glob("_delta_log/*.checkpoint.parquet")]

    bench.now += timedelta(days=9000)
    bench.box.append(one, 1)
    bench.run()
    compact(bench)
    bench.now += timedelta(days=2)
    report = compact(bench)

    assert report.files_deleted
    left = {path.name for path in table.glob("*.parquet")}
    assert left == {uri.rpartition("/")[2] for uri in open_table(bench).file_uris()}
    assert len([*Path(bench.lake, "tables", "state").glob("messages-*")]) == 1
    assert difference(bench) == SAME


def test_months_larger_than_memory_are_sorted_in_files(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imbrace_lake.tables.rows.SPILL_BYTES", 20_000)
    monkeypatch.setattr("imbrace_lake.tables.rows.SORTED_ROWS", 10)
    monkeypatch.setattr("imbrace_lake.tables.rows.FILE_BYTES", 20_000)
    monkeypatch.setattr("imbrace_lake.tables.rows.ROW_GROUP_ROWS", 40)
    monkeypatch.setattr(messages, "STEP_BYTES", 60_000)
    monkeypatch.setattr(messages, "LARGE_BYTES", 10_000)

    report = compact(bench)

    assert report.commits > 1
    assert report.files > 2
    assert not report.differences
    assert difference(bench) == SAME
    for path in Path(bench.lake, "tables", "messages").glob("*.parquet"):
        days = pq.read_table(path, columns=["created_at"]).column(0).cast(pa.date32()).to_pylist()
        assert days == sorted(days)


def test_a_first_compaction_takes_some_conversations_at_a_time(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(messages, "STEP_CONVERSATIONS", 2)

    report = compact(bench)

    assert report.commits == -(-report.conversations // 2) > 1
    assert difference(bench) == SAME


@pytest.mark.parametrize(("letters", "count", "most"), [(10, 2_000, 2_000), (100_000, 200, 83)])
def test_large_rows_are_read_few_at_a_time(letters: int, count: int, most: int, tmp_path: Path) -> None:
    path = tmp_path / "file.parquet"
    pq.write_table(
        pa.table({"text": [f"{number:0{letters}}" for number in range(count)]}), path, use_dictionary=False
    )

    sizes = [rows.num_rows for rows in iter_file(path)]

    assert sum(sizes) == count
    assert max(sizes) == most


def test_a_damaged_row_is_found_and_written_again(bench: Bench) -> None:
    compact(bench)
    # The last row of the table gets another text, behind the back of the compaction.
    (path,) = Path(bench.lake, "tables", "messages").glob("*.parquet")
    rows = pq.read_table(path)
    texts = rows.column("content").to_pylist()
    index = rows.schema.get_field_index("content")
    pq.write_table(rows.set_column(index, rows.schema.field(index), pa.array([*texts[:-1], '"x"'])), path)
    owner = rows.column("conversation_id")[-1].as_py()
    bench.box.edit(owner, [bench.box.truth(owner)[-1]["_id"]])
    bench.settings["rewalk_days"] = 0
    bench.run()

    report = compact(bench)

    assert [owner in one.name for one in report.differences] == [True]
    assert report.is_repaired
    assert difference(bench) == SAME


@pytest.mark.parametrize("table", ["messages", "conversations"])
@pytest.mark.parametrize(
    ("damage", "problem"), [("missing", "is missing"), ("empty", "has 0 bytes"), ("cut", "has 100 bytes")]
)
def test_a_table_without_one_of_its_files_is_not_up_to_date(
    bench: Bench, table: str, damage: str, problem: str
) -> None:
    compact_all(bench)
    (path,) = Path(bench.lake, "tables", table).glob("*.parquet")
    body = path.read_bytes()
    path.unlink()
    if damage != "missing":
        path.write_bytes(b"" if damage == "empty" else body[:100])

    for is_dry_run in (True, False):
        with pytest.raises(
            DamagedObject, match=rf"{path.name} {problem}.*: delete the folder tables/{table}/,"
        ):
            compact_all(bench, is_dry_run=is_dry_run)

    shutil.rmtree(path.parent)
    compact_all(bench)
    assert [one.commits for one in compact_all(bench)] == [0] * 7


@pytest.mark.parametrize("name", ["numRecords", "size", "modificationTime", "path"])
def test_a_commit_without_one_of_its_statements_is_an_error_in_one_sentence(bench: Bench, name: str) -> None:
    compact(bench)
    for path in Path(bench.lake, "tables", "messages", "_delta_log").glob("*.json"):
        path.write_text(
            path.read_text()
            .replace(f'{name}\\":', f'{name[:-1]}_\\":')
            .replace(f'"{name}":', f'"{name[:-1]}_":')
        )
    bench.box.append(next(iter(bench.box.conversations)), 1)
    bench.run()

    with pytest.raises(DamagedObject, match="_delta_log/ cannot be read: delete tables/messages/"):
        compact(bench)


@pytest.mark.parametrize(("action", "damaged"), [("add", "adx"), ("remove", "remoxe")])
def test_a_table_whose_log_has_lost_an_action_is_repaired(bench: Bench, action: str, damaged: str) -> None:
    compact(bench)
    one = next(iter(bench.box.conversations))
    bench.box.edit(one, [bench.box.truth(one)[0]["_id"]])
    bench.run()
    compact(bench)
    path = max(Path(bench.lake, "tables", "messages", "_delta_log").glob("*.json"))
    assert f'{{"{action}":' in path.read_text()
    # Readers ignore actions that they do not know.
    path.write_text(path.read_text().replace(f'{{"{action}":', f'{{"{damaged}":'))
    assert table_rows(bench).num_rows != bench.rows().num_rows

    report = compact(bench)

    assert report.differences
    assert report.is_repaired
    assert difference(bench) == SAME


@pytest.mark.parametrize("damage", ["cut", "changed"])
def test_a_damaged_file_that_is_read_is_an_error_in_one_sentence(bench: Bench, damage: str) -> None:
    compact(bench)
    (path,) = Path(bench.lake, "tables", "messages").glob("*.parquet")
    body = path.read_bytes()
    path.write_bytes(body[:2_000] if damage == "cut" else body[:2_000] + b"damage" + body[2_006:])
    shutil.rmtree(next(Path(bench.lake, "messages").glob("*/*")))

    with pytest.raises(DamagedObject, match=rf"{path.name} is damaged: delete the folder tables/messages/,"):
        compact(bench)


def damage_an_upload(monkeypatch: pytest.MonkeyPatch, is_chosen: Callable[[Path, int], bool]) -> None:
    """Upload one file without its first row; chosen by its path and the number of uploads before it."""
    upload = messages.MessagesCompaction._upload
    uploads: list[bool] = []

    async def damaging(self: messages.MessagesCompaction, file: TableFile, path: Path) -> None:
        uploads.append(is_chosen(path, len(uploads)) and not any(uploads))
        if uploads[-1]:
            pq.write_table(pq.read_table(path).slice(1), f"{path}-other")
            path = Path(f"{path}-other")
        await upload(self, file, path)

    monkeypatch.setattr(messages.MessagesCompaction, "_upload", damaging)


def test_a_copy_with_other_rows_is_found_and_its_conversations_are_written_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    compact(bench)
    damage_an_upload(monkeypatch, lambda path, before: path.name.startswith("copy-"))
    owner = next(iter(bench.box.conversations))
    bench.box.edit(owner, [bench.box.truth(owner)[-1]["_id"]])
    bench.settings["rewalk_days"] = 0
    bench.run()

    report = compact(bench)

    assert {"is not as before" in one.problem for one in report.differences} == {True}
    assert len(report.differences) == len(bench.box.conversations)
    assert report.is_repaired
    assert difference(bench) == SAME


def test_without_deltalake_one_sentence_says_what_to_install(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "deltalake", None)

    with pytest.raises(InputError, match=r"imbrace-lake\[tables\]"):
        compact_all(bench)


def test_rows_without_a_time_have_no_month(bench: Bench) -> None:
    bench.box.put([{"_id": "m1", "created_at": "no time", "content": {"text": "x"}, "from": "u_1"}])
    bench.run()
    compact(bench)

    rows = open_table(bench).to_pyarrow_table()
    without = [row for row in rows.to_pylist() if row["created_at"] is None]

    assert difference(bench) == SAME
    assert [row["month"] for row in without] == [None]


def test_a_message_without_a_time_is_replaced_when_it_is_edited(bench: Bench) -> None:
    bench.settings["rewalk_days"] = 0
    timeless = {"_id": "m1", "created_at": "no time", "content": {"text": "x"}, "from": "u_1"}
    conversation = bench.box.put([timeless])
    bench.run()
    compact(bench)
    bench.box.edit(conversation, ["m1"])
    bench.run()

    report = compact(bench)

    assert (report.rows_removed, report.rows_added) == (1, 1)
    assert difference(bench) == SAME


def test_a_table_that_could_not_be_repaired_is_compared_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = str(next(Path(bench.lake, "messages").glob("*/*")).relative_to(bench.lake))

    async def is_wrong(*arguments: object) -> set[str]:
        return {owner}

    with monkeypatch.context() as patch:
        patch.setattr(messages.MessagesCompaction, "_prove", is_wrong)
        assert not compact(bench).is_repaired

    assert compact(bench).read_bytes > 0
    assert compact(bench).read_bytes == 0
    assert difference(bench) == SAME


def test_a_version_that_does_not_name_its_files_is_an_error(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    compact(bench)
    bench.box.append(next(iter(bench.box.conversations)), 1)
    bench.run()
    commit = delta_log.DeltaLog.commit

    async def without_files(
        self: delta_log.DeltaLog, before: Any, added: Any, *others: Any, **options: Any
    ) -> None:
        await commit(self, before, (), *others, **options)

    monkeypatch.setattr(delta_log.DeltaLog, "commit", without_files)

    with pytest.raises(DamagedObject, match=r"version 1 of .* does not name its files"):
        compact(bench)


def test_a_merged_file_with_other_rows_is_found_and_its_conversations_are_written_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    compact(bench)
    one = next(iter(bench.box.conversations))
    bench.box.append(one, 1)
    bench.run()
    compact(bench)
    monkeypatch.setattr(messages, "MAX_SMALL_FILES", 2)
    # The first file has the new messages, the second one is the merged one.
    damage_an_upload(monkeypatch, lambda path, before: before == 1)
    bench.box.append(one, 1)
    bench.run()

    report = compact(bench)

    assert len(report.differences) == 1
    assert report.is_repaired
    assert difference(bench) == SAME


def test_a_step_that_was_killed_before_its_proof_is_proven_by_the_next_compaction(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def killed(*arguments: object) -> set[str]:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(messages.MessagesCompaction, "_prove", killed)
        with pytest.raises(KeyboardInterrupt):
            compact(bench)
    (path,) = Path(bench.lake, "tables", "messages").glob("*.parquet")
    rows = pq.read_table(path)
    pq.write_table(rows.slice(1), path)

    report = compact(bench)

    assert [rows.column("conversation_id")[0].as_py() in one.name for one in report.differences] == [True]
    assert report.is_repaired
    assert difference(bench) == SAME
    again = compact(bench)
    assert (again.differences, again.read_bytes) == ([], 0)
