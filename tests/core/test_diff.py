"""The diff of the rows of a walk and the rows of the lake."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from imbrace_lake.lake.diff import Diff, apply_diff, current_ids, diff_rows
from imbrace_lake.lake.hashes import DIGEST
from imbrace_lake.lake.schema import SCHEMA, Origin, to_rows
from imbrace_lake.lake.sorting import in_order

SEEN = datetime(2026, 1, 1, tzinfo=UTC)
NOW = datetime(2026, 2, 1, tzinfo=UTC)


def message(number: int, text: str | None = "hello", *, version: int = 0, **more: Any) -> dict[str, Any]:
    return {
        "_id": f"m{number}",
        "conversation_id": "c1",
        "organization_id": "org_1",
        "from": "con_1",
        "type": "text",
        "content": None if text is None else {"text": text},
        "created_at": f"2025-01-01T00:00:{number:02d}.000Z",
        "updated_at": f"2025-01-02T00:00:{version:02d}.000Z",
        **more,
    }


def read(*items: dict[str, Any], run_id: str = "run-2") -> pa.Table:
    origin = Origin("org_1", "c1", run_id, NOW)
    return in_order(to_rows(items, [item["_id"] for item in items], origin))


def lake_rows(*items: dict[str, Any]) -> pa.Table:
    origin = Origin("org_1", "c1", "run-1", SEEN)
    return in_order(to_rows(items, [item["_id"] for item in items], origin)).drop_columns([DIGEST])


def ids(rows: pa.Table) -> list[str]:
    found: list[str] = rows.column("message_id").to_pylist()
    return found


def delete(rows: pa.Table, *gone: str) -> pa.Table:
    nothing = read().slice(0, 0)
    return apply_diff(rows, Diff(nothing, nothing, pa.array(gone, pa.string())), NOW)[0]


def test_equal_rows_are_not_a_change() -> None:
    same = [message(1), message(2, None), message(3, odd=1)]

    changes = diff_rows(lake_rows(*same), read(*same), current_ids(lake_rows(*same)))

    assert not changes.new.num_rows
    assert not changes.is_rewrite
    assert not changes.outdated


def test_new_newer_and_missing_messages_are_distinguished() -> None:
    lake = lake_rows(message(1), message(2), message(3))

    changes = diff_rows(
        lake, read(message(1), message(2, "edited", version=1), message(4)), current_ids(lake)
    )

    assert ids(changes.new) == ["m4"]
    assert ids(changes.newer) == ["m2"]
    assert changes.deleted.to_pylist() == ["m3"]


def test_a_walk_without_proof_deletes_nothing() -> None:
    assert not diff_rows(lake_rows(message(1), message(2)), read(message(2))).is_rewrite


def test_messages_that_came_after_the_walk_began_are_not_deleted() -> None:
    before = lake_rows(message(1))
    now = lake_rows(message(1), message(2))

    assert not diff_rows(now, read(message(1)), current_ids(before)).is_rewrite


def test_a_deleted_message_is_not_deleted_again() -> None:
    lake = delete(lake_rows(message(1), message(2)), "m2")

    assert not diff_rows(lake, read(message(1)), pa.array(["m1", "m2"])).is_rewrite


def test_a_change_of_any_column_from_the_gateway_makes_a_version() -> None:
    lake = lake_rows(message(1))
    versions = [
        message(1, "other"),
        message(1, None),
        message(1, version=1),
        message(1) | {"from": "u_2"},
        message(1, type="image"),
        message(1, comments=[]),
        message(1, business_unit_id="bu"),
        message(1, created_at="2025-01-01T00:00:01.001Z"),
        message(1, updated_at=None),
        message(1, updated_at="2025-01-02T00:00:00.000+00:00"),
    ]

    assert all(ids(diff_rows(lake, read(version)).newer) == ["m1"] for version in versions)


def test_an_older_version_replaces_nothing_and_is_counted() -> None:
    changes = diff_rows(lake_rows(message(1, "new", version=2)), read(message(1, "old", version=1)))

    assert not changes.is_rewrite
    assert changes.outdated == 1


def test_versions_with_and_without_a_time_replace_each_other() -> None:
    timeless, timed = message(1, "a", updated_at=None), message(1, "b")

    assert ids(diff_rows(lake_rows(timed), read(timeless)).newer) == ["m1"]
    assert ids(diff_rows(lake_rows(timeless), read(timed)).newer) == ["m1"]


def test_a_deleted_message_that_is_listed_again_is_restored_in_any_version() -> None:
    lake = delete(lake_rows(message(1, "new", version=2)), "m1")

    for again in (message(1, "new", version=2), message(1, "old", version=1), message(1, "newer", version=3)):
        changes = diff_rows(lake, read(again))
        rows, replaced, deleted = apply_diff(lake, changes, NOW)

        row = rows.to_pylist()[0]
        assert (row["is_deleted"], row["deleted_at"], row["first_seen_at"]) == (False, None, SEEN)
        assert row["content"] == f'{{"text":"{again["content"]["text"]}"}}'
        assert replaced.equals(lake)
        assert not deleted.num_rows


def test_a_replaced_row_keeps_its_first_time_and_records_the_run_and_time_of_the_change() -> None:
    lake = lake_rows(message(1), message(2))

    rows, replaced, deleted = apply_diff(lake, diff_rows(lake, read(message(2, "x", version=1))), NOW)

    first, second = rows.to_pylist()
    assert rows.schema.equals(SCHEMA)
    assert first == lake.to_pylist()[0]
    assert (second["first_seen_at"], second["last_changed_at"], second["run_id"]) == (SEEN, NOW, "run-2")
    assert (second["text"], second["is_deleted"]) == ("x", False)
    assert replaced.to_pylist() == lake.to_pylist()[1:]
    assert not deleted.num_rows


def test_a_deleted_row_keeps_its_version_and_records_the_time_of_the_deletion() -> None:
    lake = lake_rows(message(1), message(2))

    rows, replaced, deleted = apply_diff(lake, diff_rows(lake, read(message(2)), current_ids(lake)), NOW)

    assert rows.to_pylist()[0] == lake.to_pylist()[0] | {"is_deleted": True, "deleted_at": NOW}
    assert ids(deleted) == ["m1"]
    assert not replaced.num_rows


def test_changes_of_other_parts_are_ignored() -> None:
    one, two = lake_rows(message(1), message(2)), lake_rows(message(3), message(4))
    changes = diff_rows(
        pa.concat_tables([one, two]),
        read(message(1, "x", version=1), message(2), message(3)),
        current_ids(pa.concat_tables([one, two])),
    )

    rows, replaced, deleted = apply_diff(two, changes, NOW)

    assert not replaced.num_rows
    assert ids(deleted) == ["m4"]
    assert rows.to_pylist()[0] == two.to_pylist()[0]


def test_applying_changes_twice_is_the_same_as_once() -> None:
    lake = lake_rows(message(1), message(2), message(3))
    changes = diff_rows(lake, read(message(1, "x", version=1), message(3)), current_ids(lake))
    once = apply_diff(lake, changes, NOW)[0]

    again = apply_diff(once, changes, datetime(2026, 3, 1, tzinfo=UTC))

    assert again[0].equals(once)
    assert not again[1].num_rows
    assert not again[2].num_rows


def test_an_empty_lake_and_an_empty_gateway_have_a_diff_too() -> None:
    empty = SCHEMA.empty_table()

    assert ids(diff_rows(empty, read(message(1)), current_ids(empty)).new) == ["m1"]
    gone = diff_rows(lake_rows(message(1)), read().slice(0, 0), current_ids(lake_rows(message(1))))
    assert gone.deleted.to_pylist() == ["m1"]
