"""`verify` covers the tables."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from imbrace_lake.errors import DamagedObject
from imbrace_lake.tables.ledgers import LEDGER_TABLES
from tests.core.lake_runs import Bench
from tests.tables.lakes import compact_all, open_table

pytestmark = pytest.mark.slow


def a_file(bench: Bench, table: str) -> Path:
    return next(Path(bench.lake, "tables", table).glob("*.parquet"))


def test_tables_are_sound_also_when_the_lake_is_newer(bench: Bench) -> None:
    bench.box.append(next(iter(bench.box.conversations)), 1)
    bench.run()

    found = bench.verify()

    assert found.is_sound
    assert found.table_files == 4
    assert found.parts == len(bench.box.conversations) + 1


def test_a_missing_and_a_damaged_file_are_reported(bench: Bench) -> None:
    missing, damaged = a_file(bench, "messages"), a_file(bench, "runs")
    missing.unlink()
    body = damaged.read_bytes()
    damaged.write_bytes(body[:100] + bytes([body[100] ^ 0xFF]) + body[101:])

    found = {one.name: one.problem for one in bench.verify().differences}

    assert found.keys() == {str(path.relative_to(bench.lake)) for path in (missing, damaged)}
    problem = found[str(missing.relative_to(bench.lake))]
    again = "delete the folder tables/messages/, which `imbrace-lake compact` then writes again"
    assert problem == f"is missing: {again}"
    with pytest.raises(DamagedObject, match=problem):
        compact_all(bench)


def test_all_missing_files_of_a_table_are_reported(bench: Bench) -> None:
    bench.box.append(next(iter(bench.box.conversations)), 1)
    bench.run()
    compact_all(bench)
    missing = [*Path(bench.lake, "tables", "messages").glob("*.parquet")]
    for path in missing:
        path.unlink()

    found = {one.name for one in bench.verify().differences}

    assert len(missing) > 1
    assert found == {str(path.relative_to(bench.lake)) for path in missing}
    with pytest.raises(
        DamagedObject, match="is missing, and 1 more of the 2 files are not as written: delete"
    ):
        compact_all(bench)


def test_a_row_that_is_not_that_of_the_part_is_reported(bench: Bench) -> None:
    path = a_file(bench, "messages")
    rows = pq.read_table(path)
    index = rows.schema.get_field_index("is_deleted")
    flipped = [True, *rows.column("is_deleted").to_pylist()[1:]]
    size = path.stat().st_size
    pq.write_table(
        rows.set_column(index, rows.schema.field(index), pa.array(flipped)), path, compression="zstd"
    )
    log = next(Path(bench.lake, "tables", "messages", "_delta_log").glob("*.json"))
    log.write_text(log.read_text().replace(f'"size":{size}', f'"size":{path.stat().st_size}'))

    (found,) = bench.verify().differences

    assert rows.column("conversation_id")[0].as_py() in found.name
    assert "rows in the table" in found.problem


def test_a_row_that_is_not_that_of_the_ledger_is_reported(bench: Bench) -> None:
    path = a_file(bench, "conversations")
    rows = pq.read_table(path)
    index = rows.schema.get_field_index("distinct_messages")
    values = [9_999, *rows.column(index).to_pylist()[1:]]
    size = path.stat().st_size
    pq.write_table(
        rows.set_column(index, rows.schema.field(index), pa.array(values, rows.schema.field(index).type)),
        path,
    )
    log = next(Path(bench.lake, "tables", "conversations", "_delta_log").glob("*.json"))
    log.write_text(log.read_text().replace(f'"size":{size}', f'"size":{path.stat().st_size}'))

    (found,) = bench.verify().differences

    assert found.name == str(path.relative_to(bench.lake))
    assert "other rows than the ledger" in found.problem


def test_a_log_with_a_wrong_number_of_rows_is_reported(bench: Bench) -> None:
    # Engines answer `count(*)` from the log.
    log = next(Path(bench.lake, "tables", "messages", "_delta_log").glob("*.json"))
    rows = bench.rows().num_rows
    log.write_text(log.read_text().replace(f'numRecords\\": {rows}', f'numRecords\\": {rows + 1}'))
    assert f"{rows + 1}" in log.read_text()

    (found,) = bench.verify().differences

    assert found.name == str(a_file(bench, "messages").relative_to(bench.lake))
    assert "is not the file that the log names" in found.problem


def test_a_lost_state_and_a_damaged_log_are_reported(bench: Bench) -> None:
    shutil.rmtree(Path(bench.lake, "tables", "state"))
    lost = {one.name for one in bench.verify().differences}
    assert lost == {f"tables/{name}/" for name in ("messages", *(one.name for one in LEDGER_TABLES))}

    compact_all(bench)
    next(Path(bench.lake, "tables", "runs", "_delta_log").glob("*.json")).write_text("{")
    assert [one.name for one in bench.verify().differences] == ["tables/runs/"]


def test_without_deltalake_the_rest_is_verified(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    assert open_table(bench).version() == 0
    monkeypatch.setitem(sys.modules, "deltalake", None)

    found = bench.verify()

    assert found.is_sound
    assert found.tables_not_verified is not None
    assert found.parts
