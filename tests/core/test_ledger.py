"""The ledgers: the entries of a run are read whether it has ended, was killed or is under way."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from imbrace_lake.errors import DamagedObject, StoreUnavailable
from imbrace_lake.lake import ledger as ledger_module
from imbrace_lake.lake.checkpoint import read_states
from imbrace_lake.lake.conversation_states import ConversationStates
from imbrace_lake.lake.lake import Lake, Part
from imbrace_lake.lake.ledger import (
    LAST_RUNS,
    CondensedRows,
    Journal,
    last_of_each,
    read_last_end,
    read_ledger,
    read_objects,
)
from imbrace_lake.lake.ledger_schema import (
    CONVERSATIONS,
    LEDGERS,
    PHONES,
    RUNS,
    ConversationEntry,
    RunTotals,
    conversation_rows,
    entry_line,
    rows_of_lines,
    run_row,
)
from imbrace_lake.store.factory import ObjectMeta, Store
from tests.core.test_lake import NOW, ORG, in_lake

PART = Part("messages/org=org_1/conv=c/part-00000.parquet", 123, 4, "ab" * 32, "not recorded")


def entry(conversation_id: str, minute: int = 0, run_id: str = "run_1", **fields: Any) -> ConversationEntry:
    values: dict[str, Any] = {"status": "complete", "server_count": 4, "parts": (PART,), **fields}
    return ConversationEntry(
        run_id=run_id,
        organization_id=ORG,
        conversation_id=conversation_id,
        finished_at=NOW + timedelta(minutes=minute),
        **values,
    )


def a_phone(position: int, status: str, run_id: str = "run_1", phone: str | None = None) -> dict[str, Any]:
    return {"run_id": run_id, "organization_id": ORG, "position": position, "status": status, "phone": phone}


def phones(*rows: dict[str, Any]) -> pa.Table:
    return pa.Table.from_pylist(list(rows), schema=PHONES)


async def record(lake: Lake, name: str, *entries: ConversationEntry, run_id: str = "run_1") -> Journal:
    journal = Journal(lake, run_id, NOW)
    await journal.note_entries(name, entries)
    return journal


async def close(journal: Journal) -> None:
    row = {"run_id": journal.run_id, "organization_id": ORG, "status": "complete"}
    await journal.close(row, RunTotals())


def test_the_end_of_the_last_run_takes_few_reads_in_an_old_lake(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def job(lake: Lake) -> tuple[datetime | None, int]:
        assert await read_last_end(lake) is None
        ends = {number: NOW + timedelta(hours=number, minutes=1) for number in range(100)}
        long = ends.pop(10)
        for number, end in [*ends.items(), (10, long + timedelta(days=9))]:
            run_id = f"run_{number}"
            row = {"run_id": run_id, "organization_id": ORG, "status": "complete", "finished_at": end}
            await Journal(lake, run_id, NOW + timedelta(hours=number)).close(row, RunTotals())
        read: list[str] = []
        get = lake.store.get

        async def count(key: str) -> bytes:
            read.append(key)
            return await get(key)

        monkeypatch.setattr(lake.store, "get", count)
        return await read_last_end(lake), len(read)

    end, reads = in_lake(tmp_path, job)

    assert end == NOW + timedelta(hours=10, minutes=1, days=9)
    assert reads <= 2 * LAST_RUNS


# -- one run --------------------------------------------------------------------------------------


def test_a_closed_journal_becomes_one_object_named_by_its_hash(tmp_path: Path) -> None:
    async def job(lake: Lake) -> list[str]:
        await record(lake, "chunk-1", entry("a"), entry("b"))
        journal = await record(lake, "chunk-2", entry("c"))
        await journal.note("phones", "1", phones(a_phone(0, "none")))
        await close(journal)
        (run,) = (await read_ledger(lake, "runs")).to_pylist()
        return run["objects"]  # type: ignore[no-any-return]

    keys = in_lake(tmp_path, job)

    assert [key.split("/")[0] for key in keys] == ["phones", "conversations"]
    key = keys[1]
    assert [path.name for path in (tmp_path / "conversations").iterdir()] == [Path(key).name]
    body = (tmp_path / key).read_bytes()
    assert key == f"conversations/20260102T030405Z-run_1-{sha256(body).hexdigest()[:16]}.parquet"
    rows = pq.read_table(tmp_path / key)
    assert rows.column("conversation_id").to_pylist() == ["a", "b", "c"]
    assert rows.schema.remove_metadata() == CONVERSATIONS
    assert (pq.read_metadata(tmp_path / key).metadata or {})[b"schema_version"] == b"1"
    assert [path for path in (tmp_path / "journal").rglob("*") if path.is_file()] == []


def test_writing_the_same_name_again_replaces_the_entries(tmp_path: Path) -> None:
    async def job(lake: Lake) -> list[str]:
        journal = await record(lake, "chunk-1", entry("a", status="failed"))
        await journal.note_entries("chunk-1", [entry("a"), entry("b")])
        return (await read_ledger(lake, "conversations")).column("status").to_pylist()  # type: ignore[no-any-return]

    assert in_lake(tmp_path, job) == ["complete", "complete"]


def test_a_run_without_entries_adds_only_its_own_row(tmp_path: Path) -> None:
    async def job(lake: Lake) -> tuple[pa.Table, pa.Table]:
        await close(Journal(lake, "run_1", NOW))
        return await read_ledger(lake, "runs"), await read_ledger(lake, "phones")

    runs, rows = in_lake(tmp_path, job)

    assert [(row["run_id"], row["objects"]) for row in runs.to_pylist()] == [("run_1", [])]
    assert rows.schema == PHONES
    assert rows.num_rows == 0
    assert [path.name for path in tmp_path.iterdir() if path.name in LEDGERS] == ["runs"]


def test_a_ledger_object_that_already_exists_is_not_an_error(tmp_path: Path) -> None:
    async def job(lake: Lake) -> list[str]:
        journal = Journal(lake, "run_1", NOW)
        rows = phones(a_phone(0, "none"))
        return [await journal.add("phones", rows), await journal.add("phones", rows)]

    first, second = in_lake(tmp_path, job)

    assert first == second
    assert len(list((tmp_path / "phones").iterdir())) == 1


def test_a_run_is_one_row_with_its_parameters_versions_and_totals_as_json(tmp_path: Path) -> None:
    values = {
        "run_id": "run_1",
        "organization_id": ORG,
        "status": "partial",
        "parameters": {"region": "TW"},
        "versions": {"schema": "1"},
        "started_at": NOW,
        "objects": ["phones/x.parquet"],
    }

    async def job(lake: Lake) -> pa.Table:
        await Journal(lake, "run_1", NOW).add("runs", run_row(values, RunTotals(messages_new=7)))
        return await read_ledger(lake, "runs")

    rows = in_lake(tmp_path, job)

    assert rows.schema.remove_metadata() == RUNS
    row = rows.to_pylist()[0]
    assert json.loads(row["parameters"]) == {"region": "TW"}
    assert json.loads(row["totals"])["messages_new"] == 7
    assert row["objects"] == ["phones/x.parquet"]


# -- states --------------------------------------------------------------------------------------


def test_the_journal_of_a_killed_run_is_read_as_state(tmp_path: Path) -> None:
    async def job(lake: Lake) -> ConversationEntry | None:
        await record(lake, "chunk-1", entry("a", server_count=9), run_id="killed")
        return (await read_states(lake, ORG)).of_each(["a"]).get("a")

    states = in_lake(tmp_path, job)

    assert states == entry("a", server_count=9)


def test_the_last_proof_counts_even_after_failures(tmp_path: Path) -> None:
    async def job(lake: Lake) -> ConversationStates:
        await close(await record(lake, "1", entry("a", 1, server_count=1), entry("b", 1), run_id="r1"))
        await close(await record(lake, "1", entry("a", 3, server_count=3, status="unchanged"), run_id="r3"))
        await close(await record(lake, "1", entry("a", 2, server_count=2), run_id="r2"))
        await record(
            lake, "1", entry("a", 4, status="failed", run_id="r4"), entry("b", 4, status="gone"), run_id="r4"
        )
        return await read_states(lake, ORG)

    states = in_lake(tmp_path, job)

    found = states.of_each(["c", "b", "a"])
    a, b = found["a"], found["b"]
    assert (a.server_count, a.status, a.parts) == (3, "unchanged", (PART,))
    assert b.status == "gone"
    assert "c" not in found
    assert sorted(one.conversation_id for one in states) == ["a", "b"]


def test_all_fields_of_an_entry_that_the_next_run_needs_are_read_back(tmp_path: Path) -> None:
    whole = entry(
        "a",
        reason=None, distinct_messages=4, new_messages=4, first_message_at=NOW, last_message_at=NOW,
        proven_from=NOW, proven_until=NOW, proof_method="overlap", is_still=True, content_hash="00",
        newest_message_id="m", head_messages=4, head_hash="11", full_walk_at=NOW, requests=2,
    )  # fmt: skip

    async def job(lake: Lake) -> ConversationEntry | None:
        await record(lake, "1", whole)
        return (await read_states(lake, ORG)).of_each(["a"]).get("a")

    assert in_lake(tmp_path, job) == whole


@pytest.mark.slow
def test_entries_as_json_lines_and_as_parquet_are_the_same_rows() -> None:
    odd = entry(
        "größer\n\u2028", status="failed", reason='said "2026-01-01T00:00:00Z"', is_dead_letter=True,
        started_at=NOW + timedelta(microseconds=123_456), server_count=2**62, is_still=False,
        parts=(PART, PART),
    )  # fmt: skip
    many = [odd, entry("bare", parts=()), *(entry(f"c{number}", parts=(PART,) * 500) for number in range(40))]

    rows = rows_of_lines(b"\n".join(map(entry_line, many)))

    assert rows.equals(conversation_rows(many), check_metadata=True)
    assert rows_of_lines(entry_line(odd)).to_pylist() == conversation_rows([odd]).to_pylist()


@pytest.mark.slow
@pytest.mark.parametrize("hash_of", [hash, lambda values: 7, lambda values: len(values[0])])
@given(
    rows=st.lists(
        st.tuples(st.sampled_from(["a", "b", "cc", None]), st.none() | st.integers(0, 3)), max_size=12
    )
)
def test_of_rows_with_the_same_key_the_latest_counts_even_if_hashes_collide(
    hash_of: Callable[[tuple[str, ...]], int], rows: list[tuple[str | None, int | None]]
) -> None:
    names = [name for name, _ in rows]
    table = pa.table(
        {
            "name": pa.array(names, pa.string()),
            "at": pa.array([at for _, at in rows], pa.timestamp("ms", "UTC")),
        }
    )
    latest: dict[str | None, int] = {}
    for position, (name, at) in enumerate(rows):
        before = rows[latest[name]][1] if name in latest else None
        if name not in latest or (-1 if at is None else at) >= (-1 if before is None else before):
            latest[name] = position

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ledger_module, "hash", lambda values: hash_of((values[0] or "",)), raising=False)
        found = last_of_each(table, ["name"], "at")

    assert found.to_pylist() == table.take(pa.array(sorted(latest.values()), pa.int64())).to_pylist()


@pytest.mark.parametrize("is_colliding", [False, True])
def test_a_journal_that_is_published_in_groups_gives_each_row_its_latest_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_colliding: bool
) -> None:
    one_each = ledger_module.groups_of
    monkeypatch.setattr(ledger_module, "groups_of", lambda objects: one_each(objects, 1))
    if is_colliding:
        monkeypatch.setattr(ledger_module, "hash", lambda version: 7, raising=False)

    async def job(lake: Lake) -> tuple[int, list[int], dict[str, int | None]]:
        journal = Journal(lake, "run_1", NOW)
        for minute in range(3):
            entries = [entry(one, minute, server_count=minute) for one in ("each", f"only-{minute}")]
            await journal.note_entries(f"chunk-{minute}", entries)
        await close(journal)
        rows = (await read_ledger(lake, "conversations")).to_pylist()
        known = {one.conversation_id: one.server_count for one in await read_states(lake, ORG)}
        counts = [row["server_count"] for row in rows if row["conversation_id"] == "each"]
        return len(await lake.store.list("conversations/")), counts, known

    objects, counts, known = in_lake(tmp_path, job)

    assert objects == 3
    # Hashes that collide keep older versions, which count for no reader.
    assert sorted(counts) == ([0, 1, 2] if is_colliding else [2])
    assert known == {"each": 2, "only-0": 0, "only-1": 1, "only-2": 2}


def test_organizations_are_separate(tmp_path: Path) -> None:
    async def job(lake: Lake) -> list[str]:
        await record(lake, "1", entry("a"), replace(entry("b"), organization_id="org_2"))
        return [one.conversation_id for one in (await read_states(lake, "org_2"))]

    assert in_lake(tmp_path, job) == ["b"]


def test_a_new_lake_has_no_states(tmp_path: Path) -> None:
    async def job(lake: Lake) -> ConversationStates:
        return await read_states(lake, ORG)

    assert [*in_lake(tmp_path, job)] == [*ConversationStates.empty()] == []


class ClosingStore:
    """A store in which a run closes its journal while another run reads."""

    def __init__(self, store: Store, journal: Journal, at: str) -> None:
        self._store = store
        self._journal: Journal | None = journal
        self._at = at

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def _close(self, moment: str) -> None:
        if self._journal is not None and moment == self._at:
            journal, self._journal = self._journal, None
            await close(journal)

    async def list(self, prefix: str, *, start_after: str = "", most: int | None = None) -> list[ObjectMeta]:
        await self._close(f"before list {prefix}")
        found = await self._store.list(prefix, start_after=start_after, most=most)
        await self._close(f"after list {prefix}")
        return found

    async def get(self, key: str) -> bytes:
        await self._close(f"before get {key.split('/')[0]}")
        return await self._store.get(key)


@pytest.mark.parametrize(
    "at",
    ["before list journal/", "after list journal/", "before get journal", "before list conversations/",
     "after list conversations/", "before get conversations"],
)  # fmt: skip
def test_entries_of_a_run_that_closes_its_journal_meanwhile_are_never_missed(tmp_path: Path, at: str) -> None:
    async def job(lake: Lake) -> set[str]:
        await close(await record(lake, "1", entry("earlier"), run_id="r0"))
        journal = await record(lake, "1", entry("closing"))
        lake.store = ClosingStore(lake.store, journal, at)
        return {one.conversation_id for one in (await read_states(lake, ORG))}

    assert in_lake(tmp_path, job) == {"earlier", "closing"}


def test_an_unreadable_ledger_object_is_reported_and_skipped(tmp_path: Path) -> None:
    async def job(lake: Lake) -> None:
        key = await Journal(lake, "run_1", NOW).add("phones", phones(a_phone(0, "none")))
        kept = await Journal(lake, "run_2", NOW).add("phones", phones(a_phone(1, "none")))
        (tmp_path / key).unlink()
        (tmp_path / key).write_bytes(b"PAR1 not really")

        assert (await read_ledger(lake, "phones")).column("position").to_pylist() == [1]
        assert [*lake.damaged] == [key]
        with pytest.raises(DamagedObject, match=re.escape(key)):
            await read_objects(lake, [kept, key], is_strict=True)

    in_lake(tmp_path, job)


@pytest.mark.parametrize(
    ("lack", "error"),
    [
        (pa.ArrowMemoryError("malloc of size 64 failed"), MemoryError),
        (pa.ArrowException("Unknown error: Failed to launch worker thread: try again"), StoreUnavailable),
    ],
)
def test_a_ledger_object_is_not_damaged_because_the_process_gets_no_memory_or_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lack: Exception, error: type[Exception]
) -> None:
    async def main(lake: Lake) -> None:
        journal = Journal(lake, "run_1", NOW)
        await journal.note_entries("chunk-1", [entry("conv_1")])

        def reject(_: object) -> None:
            raise lack

        monkeypatch.setattr(ledger_module, "rows_of_lines", reject)
        with pytest.raises(error):
            await journal.publish()
        monkeypatch.undo()
        assert not lake.damaged
        assert (await journal.publish()).statuses["conversations"] == {"complete": 1}

    in_lake(tmp_path, main)


def test_a_run_can_have_the_name_of_a_ledger(tmp_path: Path) -> None:
    async def job(lake: Lake) -> tuple[int, int]:
        await record(lake, "1", entry("a"), run_id="phones")
        return (await read_ledger(lake, "phones")).num_rows, (
            await read_ledger(lake, "conversations")
        ).num_rows

    assert in_lake(tmp_path, job) == (0, 1)


# -- current views --------------------------------------------------------------------------------


def test_the_current_view_is_one_sql_statement(tmp_path: Path) -> None:
    async def job(lake: Lake) -> None:
        for minute, run_id in enumerate(["r1", "r2", "r3"]):
            entries = [
                entry("a", minute, run_id=run_id, new_messages=minute),
                entry(f"only-{run_id}", minute),
            ]
            await close(await record(lake, "1", *entries, run_id=run_id))

    in_lake(tmp_path, job)

    with duckdb.connect() as connection:
        rows = connection.execute(
            """
            SELECT conversation_id, new_messages FROM read_parquet(?)
            QUALIFY row_number() OVER (PARTITION BY conversation_id ORDER BY finished_at DESC) = 1
            ORDER BY conversation_id
            """,
            [str(tmp_path / "conversations/*.parquet")],
        ).fetchall()
    assert rows == [("a", 2), ("only-r1", 0), ("only-r2", 0), ("only-r3", 0)]


def test_condensed_rows_are_those_that_are_kept_of_all_in_a_time_that_grows_with_them_only() -> None:
    kept_of = 0

    def keep(rows: pa.Table) -> pa.Table:
        nonlocal kept_of
        kept_of += rows.num_rows
        return last_of_each(rows, ["key"], "at")

    schema = pa.schema([("key", pa.int64()), ("at", pa.timestamp("ms", "UTC"))])
    # Each of 2,000 runs has an entry of ten of 10,000 conversations, some of them older than those before.
    runs = [
        pa.table(
            {"key": [(run * 7 + one) % 10_000 for one in range(10)], "at": [run ^ 1] * 10}, schema=schema
        )
        for run in range(2_000)
    ]
    condensed = CondensedRows(keep, schema.empty_table())
    for rows in runs:
        condensed.add(rows)

    every = pa.concat_tables(runs)
    expected = last_of_each(every, ["key"], "at")
    order = [("key", "ascending")]
    assert condensed.rows().sort_by(order).equals(expected.sort_by(order))
    assert condensed.rows().num_rows > 5_000
    assert kept_of < 10 * every.num_rows


def test_without_rows_condensed_rows_are_empty() -> None:
    assert CondensedRows(lambda rows: rows, PHONES.empty_table()).rows().num_rows == 0
