"""The tables of the ledgers have all rows, and the latest row of each conversation and number."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, get_args

import pyarrow as pa
import pytest

from imbrace_lake.lake.lake import Lake
from imbrace_lake.lake.ledger import Journal
from imbrace_lake.lake.ledger_schema import LEDGER_SCHEMAS, PHONES, Ledger
from imbrace_lake.tables import ledgers
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
    monkeypatch.setattr(ledgers, "MOST_SMALL_FILES", 2)
    add_phones(bench, "run_a", 0, {"phone_hash": "x"}, {"phone_hash": None, "status": "invalid"})
    one = next(iter(bench.box.conversations))
    for _ in range(4):
        compact_all(bench)
        bench.box.edit(one, [bench.box.truth(one)[0]["_id"]])
        bench.run()
    compact_all(bench)

    assert {*ALL} < {*get_args(Ledger)}
    for ledger in ALL:
        assert rows_of(bench, ledger, ledger) == ledger_of(bench, ledger)
    assert len(ledger_of(bench, "revisions")) == 4
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

    entries = open_table(bench, "conversations_current").to_pyarrow_table().to_pylist()
    phones = open_table(bench, "phones_current").to_pyarrow_table().to_pylist()

    assert sorted(row["conversation_id"] for row in entries) == sorted(bench.box.conversations)
    assert {row["run_id"] for row in entries} == {bench.ledger("runs")[-1]["run_id"]}
    assert sorted((row["phone_hash"], row["status"]) for row in phones) == [("x", "none"), ("y", "resolved")]


def test_only_new_objects_are_read(bench: Bench) -> None:
    compact_all(bench)
    bench.run()

    again, after = compact_all(bench), compact_all(bench)

    read = {one.table: one.objects_read for one in again if one.unit != "conversations"}
    assert read.pop("conversations") == read.pop("conversations_current") == read.pop("runs") == 1
    assert read == {"phones": 0, "phones_current": 0, "revisions": 0}
    assert [one.commits for one in after] == [0] * 7


def test_a_damaged_ledger_object_is_left_out_until_it_is_restored(bench: Bench) -> None:
    (path,) = Path(bench.lake, "conversations").glob("*.parquet")
    body = path.read_bytes()
    path.write_bytes(body[:-1] + b"x")
    compact_all(bench)
    assert rows_of(bench, "conversations", "conversations") == []

    path.write_bytes(body)
    compact_all(bench)

    assert rows_of(bench, "conversations", "conversations") == ledger_of(bench, "conversations")


def test_a_lost_state_is_built_again(bench: Bench) -> None:
    compact_all(bench)
    shutil.rmtree(Path(bench.lake, "tables", "state"))

    compact_all(bench)

    for ledger in ALL:
        assert rows_of(bench, ledger, ledger) == ledger_of(bench, ledger)
