"""The tables of the ledgers have all rows, and the latest row of each conversation and number."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, get_args

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from imbrace_lake import Lake as Reader
from imbrace_lake.lake.lake import Lake
from imbrace_lake.lake.ledger import Journal
from imbrace_lake.lake.ledger_schema import LEDGER_SCHEMAS, PHONES, Ledger
from imbrace_lake.policy import Window
from imbrace_lake.tables import ledgers
from imbrace_lake.tables.rows_hash import RowsHash
from imbrace_sandbox import Sandbox, SandboxOptions
from tests.core.lake_runs import START, Bench
from tests.tables.lakes import compact_all, open_table

pytestmark = pytest.mark.slow
ALL: tuple[Ledger, ...] = ("conversations", "phones", "runs", "revisions")


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with Sandbox(SandboxOptions(conversations=3, sizes=(3, 40))) as box:
        made = Bench(box, str(tmp_path / "lake"), settings={"rewalk_days": 0})
        made.run()
        yield made


def rows_of(bench: Bench, name: str, ledger: Ledger) -> list[str]:
    rows = pa.table(open_table(bench, name).to_pyarrow_table()).cast(LEDGER_SCHEMAS[ledger], safe=False)
    return sorted(map(repr, rows.to_pylist()))


def as_texts(phones: list[dict[str, Any]]) -> list[str]:
    return sorted(
        f"{one['phone_hash']} {one['status']} {one['run_id']} {one['resolved_at']}" for one in phones
    )


def ledger_of(bench: Bench, ledger: Ledger) -> list[str]:
    return sorted(map(repr, bench.ledger(ledger)))


def add_phones(bench: Bench, run_id: str, seconds: int, *rows: dict[str, Any]) -> None:
    """Add rows to the ledger of numbers, as a run does."""
    values = [
        {
            "run_id": run_id,
            "organization_id": "org_sandbox",
            "position": position,
            "status": "resolved",
            "resolved_at": START + timedelta(seconds=seconds),
            **row,
        }
        for position, row in enumerate(rows)
    ]

    async def add(lake: Lake) -> None:
        await Journal(lake, run_id, START).add("phones", pa.Table.from_pylist(values, schema=PHONES))

    bench.look(add)


def test_each_ledger_has_a_table_with_all_its_rows(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledgers, "MAX_SMALL_FILES", 2)
    add_phones(bench, "run_a", 0, {"phone_hash": "x"}, {"phone_hash": None, "status": "invalid"})
    one = next(iter(bench.box.conversations))
    for _ in range(3):
        compact_all(bench)
        bench.box.edit(one, [bench.box.truth(one)[0]["_id"]])
        bench.run()
    compact_all(bench)

    assert {*ALL} < {*get_args(Ledger)}
    for ledger in ALL:
        assert rows_of(bench, ledger, ledger) == ledger_of(bench, ledger)
    assert len(ledger_of(bench, "revisions")) == 3
    assert len(open_table(bench, "conversations").file_uris()) <= 3


def test_the_current_tables_have_the_latest_row(bench: Bench) -> None:
    compact_all(bench)
    bench.run()
    add_phones(bench, "run_a", 2, {"phone_hash": "x"}, {"phone_hash": None, "status": "invalid"})
    compact_all(bench)
    add_phones(
        bench, "run_b", 3, {"phone_hash": "x", "status": "none"}, {"phone_hash": "x", "status": "duplicate"}
    )
    add_phones(bench, "run_c", 1, {"phone_hash": "x", "status": "error"}, {"phone_hash": "y"})
    compact_all(bench)
    # A failed request shows nothing about the conversations of a number.
    add_phones(bench, "run_d", 4, *({"phone_hash": one, "status": "error", "reason": "500"} for one in "xyz"))
    add_phones(bench, "run_e", 5, {"phone_hash": "z", "status": "error", "resolved_at": None})
    compact_all(bench)

    entries = open_table(bench, "conversations_current").to_pyarrow_table().to_pylist()
    phones = open_table(bench, "phones_current").to_pyarrow_table().to_pylist()

    assert sorted(row["conversation_id"] for row in entries) == sorted(bench.box.conversations)
    assert {row["run_id"] for row in entries} == {bench.ledger("runs")[-1]["run_id"]}
    assert sorted((row["phone_hash"], row["status"], row["reason"]) for row in phones) == [
        ("x", "none", None), ("y", "resolved", None), ("z", "error", "500"),
    ]  # fmt: skip
    with Reader.open(bench.lake) as reader:
        assert as_texts(phones) == as_texts(reader.phones().to_arrow().to_pylist())


def test_of_rows_with_the_same_time_the_last_run_and_the_first_entry_count() -> None:
    at, later, earlier = START, "run_b", "run_a"
    same = {"organization_id": "o", "conversation_id": "c", "status": "complete", "finished_at": at}
    entries = [{**same, "run_id": run} for run in (later, earlier)]
    number = {"organization_id": "o", "phone_hash": "x", "status": "none", "resolved_at": at}
    phones = [{**number, "run_id": later, "position": position} for position in (1, 0, 2)]
    phones.append({**number, "run_id": earlier, "position": 0})

    current = {
        one.ledger: one.choose(pa.Table.from_pylist(rows, schema=LEDGER_SCHEMAS[one.ledger])).to_pylist()
        for one in ledgers.LEDGER_TABLES
        for ledger, rows in (("conversations", entries), ("phones", phones))
        if one.choose is not None and one.ledger == ledger
    }

    assert [row["run_id"] for row in current["conversations"]] == [later]
    assert [(row["run_id"], row["position"]) for row in current["phones"]] == [(later, 0)]


def test_a_window_of_time_is_not_the_current_state_of_a_conversation(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, *_ = bench.box.conversations
    bench.run([one], window=Window(since=START))
    # As a version wrote it that took windows for the current state.
    monkeypatch.setattr(ledgers, "_RULE", b"1")
    monkeypatch.setattr(ledgers, "WINDOW", "none")
    compact_all(bench)
    earlier = open_table(bench, "conversations_current").to_pyarrow_table()
    assert "window" in earlier["proof_method"].to_pylist()

    monkeypatch.undo()
    compact_all(bench)

    entries = open_table(bench, "conversations_current").to_pyarrow_table().to_pylist()
    assert sorted(row["conversation_id"] for row in entries) == sorted(bench.box.conversations)
    assert "window" not in {row["proof_method"] for row in entries}


def test_only_new_objects_are_read(bench: Bench) -> None:
    compact_all(bench)
    bench.run()

    again, after = compact_all(bench), compact_all(bench)

    read = {one.table: one.objects_read for one in again if one.unit != "conversations"}
    assert read.pop("conversations") == read.pop("conversations_current") == read.pop("runs") == 1
    assert read == {"phones": 0, "phones_current": 0, "revisions": 0}
    assert [one.commits for one in after] == [0] * 7


def test_a_damaged_ledger_object_is_reported_and_left_out_until_it_is_restored(bench: Bench) -> None:
    (path,) = Path(bench.lake, "conversations").glob("*.parquet")
    body = path.read_bytes()
    path.write_bytes(body[:-1] + b"x")
    compact_all(bench)
    assert rows_of(bench, "conversations", "conversations") == []

    again = {one.table: one for one in compact_all(bench)}

    for table in ("conversations", "conversations_current"):
        assert again[table].commits == 0
        ((name, problem),) = [(one.name, one.problem) for one in again[table].differences]
        assert name == str(path.relative_to(bench.lake))
        assert "imbrace-lake verify" in problem
    path.write_bytes(body)
    assert not [one for report in compact_all(bench) for one in report.differences]
    assert rows_of(bench, "conversations", "conversations") == ledger_of(bench, "conversations")


def test_a_lost_state_is_built_again(bench: Bench) -> None:
    compact_all(bench)
    shutil.rmtree(Path(bench.lake, "tables", "state"))

    compact_all(bench)

    for ledger in ALL:
        assert rows_of(bench, ledger, ledger) == ledger_of(bench, ledger)


def change_a_row(bench: Bench, name: str, column: str) -> str:
    """Give the first row of a table another text, behind the back of the compaction; return the file."""
    (path,) = Path(bench.lake, "tables", name).glob("*.parquet")
    rows = pq.read_table(path)
    index = rows.schema.get_field_index(column)
    texts = ["other", *rows.column(column).to_pylist()[1:]]
    pq.write_table(rows.set_column(index, rows.schema.field(index), pa.array(texts)), path)
    return str(path.relative_to(bench.lake))


@pytest.mark.parametrize("damage", ["another value", "no Parquet"])
def test_a_table_with_other_rows_than_its_ledger_is_built_again(bench: Bench, damage: str) -> None:
    compact_all(bench)
    name = change_a_row(bench, "conversations_current", "status")
    if damage == "no Parquet":
        Path(bench.lake, name).write_bytes(b"x")
    bench.run()

    reports = {one.table: one for one in compact_all(bench)}

    found = reports["conversations_current"]
    assert [one.name for one in found.differences] == [name]
    assert found.is_repaired
    rows = open_table(bench, "conversations_current").to_pyarrow_table().to_pylist()
    assert {row["status"] for row in rows} == {"complete"}
    assert not [one for report in compact_all(bench) for one in report.differences]


def test_a_new_file_with_other_rows_is_written_again_before_a_reader_sees_it(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    compact_all(bench)
    bench.run()
    upload = ledgers.LedgerCompaction._upload
    damaged: list[str] = []

    async def damaging(self: ledgers.LedgerCompaction, file: Any, path: Path) -> None:
        await upload(self, file, path)
        if self.report.table == "runs" and not damaged:
            # The file in the lake may be a hard link to the one that was written.
            pq.write_table(pq.read_table(path).slice(1), f"{path}-other")
            await self._store.delete(f"{self._folder}{file.path}")
            await self._store.create(f"{self._folder}{file.path}", Path(f"{path}-other"))
            damaged.append(f"{self._folder}{file.path}")

    monkeypatch.setattr(ledgers.LedgerCompaction, "_upload", damaging)

    reports = {one.table: one for one in compact_all(bench)}

    assert [one.name for one in reports["runs"].differences] == damaged
    assert reports["runs"].is_repaired
    assert rows_of(bench, "runs", "runs") == ledger_of(bench, "runs")
    assert not set(damaged) & {
        f"tables/runs/{Path(uri).name}" for uri in open_table(bench, "runs").file_uris()
    }


def test_the_hash_of_rows_depends_on_values_and_order_only() -> None:
    rows = pa.Table.from_pylist(
        [
            {"a": "x", "b": [1, None], "c": {"d": None, "e": True}, "f": 1.5},
            {"a": None, "b": None, "c": None, "f": None},
            {"a": "", "b": [], "c": {"d": "y", "e": None}, "f": 0.0},
        ]
    )

    def hash_of(*tables: pa.Table) -> str:
        found = RowsHash()
        for one in tables:
            found.add(one)
        return found.hexdigest()

    same = {
        hash_of(rows),
        hash_of(rows.slice(0, 1), rows.slice(1)),
        hash_of(*(rows.slice(n, 1) for n in range(3))),
    }
    others = {hash_of(rows.take([1, 0, 2])), hash_of(rows.slice(0, 2)), hash_of(rows.slice(1, 1))}
    for name in rows.schema.names:
        others.add(hash_of(rows.drop_columns([name])))
        column = rows.column(name).take(pa.array([0, 1, 1]))
        others.add(hash_of(rows.set_column(rows.schema.get_field_index(name), name, column)))

    assert len(same) == 1
    assert len(others | same) == 12
