"""`imbrace-lake compact`, which needs no Prefect, no token and no organization."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from deltalake import DeltaTable

from imbrace_sandbox import Sandbox, SandboxOptions
from tests.cli.conftest import Run
from tests.core.lake_runs import Bench
from tests.fixtures import make_hostile_lake


@pytest.fixture
def lake(tmp_path: Path) -> Path:
    folder = tmp_path / "a lake"
    shutil.copytree(make_hostile_lake.LAKE, folder)
    return folder


def test_a_dry_run_reports_bytes_and_requests_and_writes_nothing(run: Run, lake: Path) -> None:
    result = run("compact", "--dry-run", "--lake", str(lake))

    assert (result.code, result.out) == (0, "")
    assert result.err.startswith("messages: would read 2 objects of 2 conversations and 0 files")
    assert "requests" in result.err
    assert not (lake / "tables").exists()


@pytest.mark.slow
def test_compact_writes_the_tables_and_finds_nothing_to_do_afterwards(run: Run, lake: Path) -> None:
    first = run("compact", "--lake", str(lake))
    second = run("compact", "--lake", str(lake), "--json")

    assert (first.code, first.out) == (0, "")
    assert first.err.startswith("messages: 2 conversations read, ")
    report = json.loads(second.out)["tables"][0]
    assert (second.code, report["commits"], report["changed"]) == (0, 0, 0)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", report["as_of"])
    assert DeltaTable(lake / "tables" / "messages").to_pyarrow_table().num_rows == report["rows"]


@pytest.mark.slow
def test_a_copied_lake_is_read_again_and_nothing_is_called_a_change(
    run: Run, lake: Path, tmp_path: Path
) -> None:
    run("compact", "--lake", str(lake))
    # Without the times of the files.
    copied = shutil.copytree(lake, tmp_path / "copy", copy_function=shutil.copyfile)

    dry = run("compact", "--dry-run", "--lake", str(copied))
    result = run("compact", "--lake", str(copied))

    assert dry.err.startswith("messages: would read 2 objects of 2 conversations and 1 file ")
    assert result.err.startswith("messages: 2 conversations read, 0 rows added, 0 removed; ")
    assert "changed" not in dry.err + result.err


def test_a_folder_without_a_lake_is_an_error(run: Run, tmp_path: Path) -> None:
    result = run("compact", "--lake", str(tmp_path))

    assert result.code == 1
    assert "there is no lake" in result.err


@pytest.mark.slow
def test_a_lost_conversation_is_a_difference(run: Run, tmp_path: Path) -> None:
    lake = tmp_path / "lake"
    with Sandbox(SandboxOptions(conversations=2, sizes=(3,))) as box:
        Bench(box, str(lake)).run()
    run("compact", "--lake", str(lake))
    copy = shutil.copytree(lake, tmp_path / "copy")
    for root in (lake, copy):
        shutil.rmtree(sorted(root.glob("messages/*/*"))[0])

    as_text = run("compact", "--lake", str(lake))
    as_json = run("compact", "--lake", str(copy), "--json")
    dry = run("compact", "--dry-run", "--lake", str(lake))

    assert (as_text.code, as_json.code) == (3, 3)
    assert (dry.code, dry.out) == (3, as_text.out)
    assert "were replaced" not in dry.err + as_text.err
    assert as_text.err.endswith("find the cause of the differences with `imbrace-lake verify`\n")
    assert "has lost part-00000.parquet, which the ledger names: run `imbrace-lake verify`" in as_text.out
    (found,) = json.loads(as_json.out)["tables"][0]["differences"]
    assert as_text.out == f"{found['name']}: {found['problem']}\n"


@pytest.mark.parametrize("hours", ["-1", "1e400", "99999999999", "nan"])
def test_hours_that_are_no_time_are_wrong_use(run: Run, lake: Path, hours: str) -> None:
    result = run("compact", "--lake", str(lake), "--keep-hours", hours)

    assert result.code == 2
    assert result.err.startswith("error: Invalid value for '--keep-hours': ")
    assert result.err.count("\n") == 1
    assert not (lake / "tables").exists()
