"""The memory budget: which conversation spills, and which parts are read into files."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from pathlib import Path
from random import Random

import pytest

from imbrace_lake.lake.claim import PartClaim
from imbrace_lake.lake.lake import open_lake
from imbrace_lake.lake.memory import MemoryBudget, Reservation, in_groups
from imbrace_lake.lake.rows import Rows, SortBuffer
from imbrace_lake.lake.snapshot import EXPANSION, PartitionSnapshot
from tests.core.test_rows import page

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def test_a_short_conversation_does_not_spill_while_a_long_one_fills_the_budget(tmp_path: Path) -> None:
    rows = page(Random(1), 300)
    memory = MemoryBudget(most_bytes=10 * rows.get_total_buffer_size())
    with Reservation(memory, lambda: tmp_path) as long, Reservation(memory, lambda: tmp_path) as short:
        reading, other = SortBuffer(long), SortBuffer(short)
        for _ in range(10):
            reading.add(rows)

        other.add(rows)  # exceeds the budget

        assert memory.reserved_bytes > memory.most_bytes
        assert not other.is_spilled
        reading.add(rows)
        assert reading.is_spilled
        assert not other.is_spilled


@pytest.mark.parametrize("fitting", [0, 1, 2])
def test_parts_that_do_not_fit_into_the_budget_are_read_into_files(tmp_path: Path, fitting: int) -> None:
    async def work() -> None:
        async with open_lake(str(tmp_path / "lake"), now=NOW) as lake:
            bodies = [
                Rows.of(page(Random(1), 600).slice(start, 300)).encode(
                    Reservation(MemoryBudget(), lambda: tmp_path),
                    PartClaim("org_1", "c1", "run", "complete", "overlap", 1).metadata(),
                )
                for start in (0, 300)
            ]
            parts = [await lake.add_part("org_1", "c1", *one, 1) for one in enumerate(bodies)]
            memory = MemoryBudget(most_bytes=EXPANSION * sum(part.size_bytes for part in parts[:fitting]))
            with Reservation(memory, lambda: tmp_path) as reservation:
                snapshot = await PartitionSnapshot.read(lake, parts, reservation)

                assert [isinstance(one, Path) for one in snapshot.sources] == [
                    number >= fitting for number in (0, 1)
                ]
                assert memory.reserved_bytes == memory.most_bytes
                assert snapshot.is_in_memory == (fitting == 2)

    asyncio.run(work())


@pytest.mark.parametrize(
    ("sizes", "most", "groups"),
    [
        ([], 2, []),
        ([9, 1, 0], None, [[9, 1, 0]]),
        ([9, 2], None, [[9], [2]]),
        ([11, 1, 11], None, [[11], [1], [11]]),
        ([1, 1, 1], 2, [[1, 1], [1]]),
    ],
)
def test_groups_are_limited_in_size_and_number_and_keep_the_order(
    sizes: list[int], most: int | None, groups: list[list[int]]
) -> None:
    assert [*in_groups(sizes, lambda size: size, 10, most)] == groups
