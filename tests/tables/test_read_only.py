"""A compacted lake can be read without the permission to write into it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from imbrace_lake import Lake
from imbrace_lake.errors import StoreError
from imbrace_lake.tables.delta_log import COMMITS_PER_CHECKPOINT
from tests.core.lake_runs import Bench
from tests.tables.lakes import compact_all

pytestmark = pytest.mark.slow


@pytest.fixture(params=["no permission", "no folder"])
def read_only(bench: Bench, request: pytest.FixtureRequest) -> Iterator[Bench]:
    root = Path(bench.lake)
    folders = [root, *(path for path in root.rglob("*") if path.is_dir())]
    if request.param == "no folder":
        # The way that also works for root.
        shutil.rmtree(root / ".tmp")
        (root / ".tmp").symlink_to(root / "absent")
        folders = []
    for path in folders:
        path.chmod(0o500)
    try:
        if folders and os.access(root, os.W_OK):
            pytest.skip("root may write everywhere")
        yield bench
    finally:
        for path in folders:
            path.chmod(0o700)


def test_tables_are_verified_planned_and_queried_with_the_temporary_folder_of_the_system(
    read_only: Bench,
) -> None:
    found = read_only.verify()

    assert found.is_sound
    assert found.table_files == 4
    assert {one.changed for one in compact_all(read_only, is_dry_run=True)} == {0}
    with Lake.open(read_only.lake) as lake:
        rows = lake.sql("SELECT message_id FROM messages")
        assert len(rows.to_pandas()) == read_only.rows().num_rows


def test_a_path_with_characters_that_deltalake_changes_is_that_of_any_lake(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As in a workspace of Jenkins, which is named after a branch.
    moved = replace(bench, lake=str(tmp_path / "feature%2Flake\\"))
    shutil.copytree(bench.lake, moved.lake)
    for _ in range(COMMITS_PER_CHECKPOINT):
        bench.box.append(next(iter(bench.box.conversations)), 1)
        moved.run()
        compact_all(moved)

    assert moved.verify().is_sound
    with Lake.open(moved.lake, source="table") as lake:
        assert lake.messages(deleted=True).to_arrow().num_rows == moved.rows().num_rows

        monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "feature%2Flake\\"))
        with pytest.raises(StoreError, match="set TMPDIR to another"):
            lake.messages().to_arrow()


def test_without_any_temporary_folder_one_sentence_says_what_to_do(
    read_only: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(Path(read_only.lake, "absent")))

    with pytest.raises(StoreError, match="TMPDIR"):
        compact_all(read_only, is_dry_run=True)
