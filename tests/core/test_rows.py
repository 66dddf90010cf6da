"""Rows in sorted files equal rows in memory, in whatever order they were added."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from datetime import UTC, date, datetime
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from imbrace_lake.gateway.passes import OVERLAP
from imbrace_lake.lake import sorting
from imbrace_lake.lake.hashes import DIGEST, content_hash
from imbrace_lake.lake.memory import MemoryBudget, Reservation
from imbrace_lake.lake.parquet import to_parquet, write_parquet
from imbrace_lake.lake.rows import Rows, SortBuffer
from imbrace_lake.lake.schema import Origin, to_rows
from imbrace_lake.lake.sorting import in_order, without_repeats
from tests.acceptance.scale import IS_FULL

ORIGIN = Origin("org_1", "c1", "run-1", datetime(2026, 1, 1, tzinfo=UTC))


def item(number: int, version: int, created: int | None) -> dict[str, Any]:
    return {
        "_id": f"m{number:04d}",
        "conversation_id": "c1",
        "organization_id": "org_1",
        "from": "con_1",
        "type": "text",
        "content": {"text": f"{number} as of {version} " + "x" * (number % 40)},
        "created_at": None if created is None else f"2025-01-01T00:{created // 60:02}:{created % 60:02}.000Z",
        "updated_at": None if version == 0 else f"2025-01-02T00:00:{version:02}.000Z",
    }


def page(rng: Random, newest: int) -> pa.Table:
    """Make messages around an index of the list, newest first, some in another version than before."""
    numbers = sorted({max(0, newest - rng.randrange(30)) for _ in range(rng.randint(1, 20))}, reverse=True)
    items = []
    for number in numbers:
        # Equal times, messages without a time, and now and then one whose time differs by version.
        created = None if number % 13 == 0 else number // 3 + (rng.randrange(9) if rng.random() < 0.05 else 0)
        items.append(item(number, rng.randrange(3), created))
    return to_rows(items, [one["_id"] for one in items], ORIGIN)


@pytest.fixture
def reservation(tmp_path: Path) -> Iterator[Reservation]:
    with Reservation(MemoryBudget(most_bytes=20_000), lambda: tmp_path) as reservation:
        yield reservation


def spilled(rows: Rows) -> bool:
    return rows.table is None


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(12 if IS_FULL else 3))
def test_spilled_rows_equal_rows_in_memory(
    reservation: Reservation, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.setattr(sorting, "BATCH_ROWS", 7)
    monkeypatch.setattr(sorting, "MAX_REPEATED", 11)
    rng = Random(seed)
    pages = [page(rng, newest) for _ in range(1 + seed % 3) for newest in range(400, 0, -8)]
    buffer = SortBuffer(reservation)
    for one in pages:
        buffer.add(one)
    expected = in_order(without_repeats(pa.concat_tables(pages)))

    rows = buffer.rows()

    assert spilled(rows)
    found = pa.concat_tables(rows.batches())
    assert found.combine_chunks().equals(expected)
    times = pc.min_max(expected.column("created_at")).as_py()
    assert (rows.num_rows, rows.first_at, rows.last_at) == (expected.num_rows, times["min"], times["max"])
    assert rows.content_hash == content_hash(expected)
    days: Counter[date] = Counter()
    for day, count in rows.days():
        days[day] += count
    created = expected.column("created_at").to_pylist()
    assert days == Counter(moment.date() for moment in created if moment is not None)


@pytest.mark.parametrize("is_counted", [True, False])
def test_pages_in_any_order_become_the_same_rows(tmp_path: Path, is_counted: bool) -> None:
    rng = Random(2)
    read = [page(rng, newest) for newest in range(400, 0, -20)]
    every = in_order(without_repeats(pa.concat_tables(read)))
    cuts = [every.slice(begin, 9) for begin in range(0, every.num_rows, 9)]
    # In the order of an unchanged list, and in any other order.
    for pages in (cuts[::-1], cuts, rng.sample(cuts, len(cuts))):
        with Reservation(MemoryBudget(), lambda: tmp_path) as reservation:
            buffer = SortBuffer(reservation)
            for one in pages:
                buffer.add(one)

            rows = buffer.rows(distinct=every.num_rows if is_counted else None)

            assert not spilled(rows)
            assert pa.concat_tables(rows.batches()).equals(every)


@pytest.mark.parametrize("shared", [0, 1, 2, 3])
def test_pages_that_share_messages_hold_each_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shared: int
) -> None:
    items = [item(number, 0, number // 3) for number in range(100)]
    every = to_rows(items, [one["_id"] for one in items], ORIGIN)
    starts = [max(0, end - 10 - shared) for end in range(100, 0, -10)]
    pages = [every.slice(start, end - start) for start, end in zip(starts, range(100, 0, -10), strict=True)]
    if shared <= OVERLAP:
        # Pages of an unchanged list are added without comparing every row.
        monkeypatch.delattr("imbrace_lake.lake.rows.without_repeats")
    with Reservation(MemoryBudget(), lambda: tmp_path) as reservation:
        buffer = SortBuffer(reservation)
        for one in pages:
            buffer.add(one)

        assert pa.concat_tables(buffer.rows(distinct=100).batches()).equals(every)


def test_of_a_message_edited_between_two_pages_the_later_version_counts(tmp_path: Path) -> None:
    newer = [item(number, 0, number) for number in (1, 2, 3)]
    older = [item(0, 0, 0), item(1, 1, 1)]
    with Reservation(MemoryBudget(), lambda: tmp_path) as reservation:
        buffer = SortBuffer(reservation)
        for items in (newer, older):
            buffer.add(to_rows(items, [one["_id"] for one in items], ORIGIN))

        rows = pa.concat_tables(buffer.rows(distinct=4).batches())

    assert rows.column("message_id").to_pylist() == ["m0000", "m0001", "m0002", "m0003"]
    assert rows.column("updated_at").null_count == 3


@pytest.mark.slow
def test_rows_are_filtered_after_their_latest_version_is_chosen(
    reservation: Reservation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sorting, "BATCH_ROWS", 7)
    rng = Random(1)
    pages = [page(rng, newest) for newest in range(400, 0, -4)]
    buffer = SortBuffer(reservation)
    for one in pages:
        buffer.add(one)
    middle = pa.scalar(datetime(2025, 1, 1, 0, 1, tzinfo=UTC), pa.timestamp("ms", "UTC"))

    def keep(rows: pa.Table) -> pa.ChunkedArray:
        return pc.fill_null(pc.less(rows.column("created_at"), middle), False)

    everything = in_order(without_repeats(pa.concat_tables(pages)))
    expected = everything.filter(keep(everything)).combine_chunks()

    rows = buffer.rows(keep)

    assert pa.concat_tables(rows.batches()).combine_chunks().equals(expected)
    assert (rows.num_rows, rows.content_hash) == (expected.num_rows, content_hash(expected))


def test_rows_that_fit_stay_in_memory_and_no_folder_is_made(tmp_path: Path) -> None:
    memory = MemoryBudget()
    with Reservation(memory, lambda: tmp_path) as reservation:
        buffer = SortBuffer(reservation)
        buffer.add(page(Random(1), 100))
        assert memory.reserved_bytes > 0
        assert buffer.rows().table is not None

    assert memory == MemoryBudget()
    assert not list(tmp_path.iterdir())


def test_files_are_removed_however_the_reservation_ends(tmp_path: Path) -> None:
    memory = MemoryBudget(most_bytes=1)

    def fail() -> None:
        with Reservation(memory, lambda: tmp_path) as reservation:
            SortBuffer(reservation).add(page(Random(1), 100))
            assert list(tmp_path.rglob("0*"))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()

    assert not list(tmp_path.iterdir())
    assert (memory.reserved_bytes, memory.reservations) == (0, 0)


def test_the_long_conversation_spills_and_not_the_short_ones(tmp_path: Path) -> None:
    memory = MemoryBudget(most_bytes=100_000)
    rng = Random(2)
    with Reservation(memory, lambda: tmp_path) as long, Reservation(memory, lambda: tmp_path) as short:
        reading, other = SortBuffer(long), SortBuffer(short)
        for _ in range(60):
            reading.add(page(rng, 300))
            if rng.random() < 0.1:
                other.add(page(rng, 300))
            assert memory.reserved_bytes < 110_000

        assert spilled(reading.rows())
        assert not spilled(other.rows())


@pytest.mark.slow
@pytest.mark.parametrize("rows_a_group", [10, 50_000])
def test_a_file_written_by_batches_has_the_bytes_of_one_encoded_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows_a_group: int
) -> None:
    monkeypatch.setattr("imbrace_lake.lake.parquet.ROW_GROUP_ROWS", rows_a_group)
    items = [item(number, number % 3, number // 2) for number in range(3_000)]
    rows = to_rows(items, [one["_id"] for one in items], ORIGIN).drop_columns([DIGEST])
    rng = Random(3)
    cuts = sorted({0, 3_000, *(rng.randrange(3_000) for _ in range(20))})
    batches = [rows.slice(begin, end - begin) for begin, end in pairwise(cuts)]

    write_parquet(tmp_path / "part", batches, {"run_id": "r"})

    assert (tmp_path / "part").read_bytes() == to_parquet(rows, {"run_id": "r"})


def test_row_groups_are_shorter_where_rows_are_very_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("imbrace_lake.lake.parquet.ROW_GROUP_BYTES", 5_000)
    items = [item(number, 1, number) for number in range(100)]
    rows = to_rows(items, [one["_id"] for one in items], ORIGIN).drop_columns([DIGEST])

    write_parquet(tmp_path / "part", (rows.slice(position, 1) for position in range(100)), {})

    file = pq.ParquetFile(tmp_path / "part")
    assert file.num_row_groups >= 3
    assert file.read().column("message_id").equals(rows.column("message_id"))
