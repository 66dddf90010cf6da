"""A competitor that lost, doubled or invented a message does not count as complete."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.expected import Expected, as_ids, judge, read_ids
from benchmarks.gateway import fake_gateway
from benchmarks.runner import Competitor, check

SERVED = Expected.unmoved(as_ids(["m1", "m2", "m3"]))


def test_exactly_the_served_messages_are_complete() -> None:
    verdict = judge(as_ids(["m3", "m1", "m2"]), SERVED)

    assert verdict.is_complete
    assert str(verdict) == "complete"


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (["m1", "m3"], "lost 1"),
        (["m1", "m2", "m2", "m3"], "doubled 1"),
        (["m1", "m2", "m3", "m4"], "unknown 1"),
        # The number of rows is right, but one message is missing and one is doubled.
        (["m1", "m1", "m3"], "lost 1, doubled 1"),
        ([], "lost 3"),
    ],
)
def test_a_lost_a_doubled_and_an_unknown_id_are_reported(found: list[str], expected: str) -> None:
    verdict = judge(as_ids(found), SERVED)

    assert not verdict.is_complete
    assert str(verdict) == expected


def test_of_a_list_that_moved_only_messages_that_stayed_are_needed() -> None:
    expected = Expected.moved(before=as_ids(["deleted", "stayed"]), after=as_ids(["stayed", "arrived"]))

    assert judge(as_ids(["stayed"]), expected).is_complete
    assert judge(as_ids(["deleted", "stayed", "arrived"]), expected).is_complete
    assert str(judge(as_ids(["deleted", "arrived"]), expected)) == "lost 1"


def test_files_are_read_in_all_folders_and_a_missing_folder_has_no_rows(tmp_path: Path) -> None:
    for number in range(2):
        folder = tmp_path / f"conv={number}"
        folder.mkdir()
        pq.write_table(pa.table({"id": [f"m{number}"]}), folder / "part.parquet")

    assert sorted(read_ids(str(tmp_path), "id", is_lake=False).to_pylist()) == ["m0", "m1"]
    assert len(read_ids(str(tmp_path / "none"), "id", is_lake=False)) == 0


def test_files_without_the_lakes_columns_are_rejected(tmp_path: Path) -> None:
    pq.write_table(pa.table({"message_id": ["m1"]}), tmp_path / "part.parquet")

    with pytest.raises(ValueError, match="other columns"):
        check(Competitor("some", ()), str(tmp_path), SERVED)


@pytest.mark.slow
def test_the_expected_ids_are_those_that_the_fake_gateway_serves() -> None:
    with fake_gateway(conversations=3, sizes=(120,)) as gateway:
        served = gateway.ids_now()
        arrived = gateway.append(gateway.conversation_ids[1], 2)

        assert len(gateway.conversation_ids) == 4
        assert sorted(gateway.message_ids.to_pylist()) == sorted(served.to_pylist())
        moved = Expected.moved(served, gateway.ids_now())
        assert str(judge(served, moved)) == "complete"
        assert str(judge(as_ids([*served.to_pylist(), *arrived, "m0"]), moved)) == "unknown 1"
        assert gateway.count_requests() == 0
