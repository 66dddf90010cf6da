"""`imbrace-lake repair`, which needs no Prefect, no token and no organization."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.cli.conftest import Run
from tests.fixtures import make_hostile_lake
from tools.seaweed import Seaweed


@pytest.fixture
def old_lake(tmp_path: Path) -> Path:
    """Return a lake of hostile values that version 0.1 wrote."""
    lake = tmp_path / "old lake"
    shutil.copytree(make_hostile_lake.LAKE, lake)
    return lake


def test_without_apply_repair_lists_the_parts_and_ends_with_3(run: Run, old_lake: Path) -> None:
    result = run("repair", "--lake", str(old_lake))

    assert result.code == 3
    assert result.out.splitlines() == [
        str(path.relative_to(old_lake)) for path in old_lake.glob("messages/*/conv=conv_hostile/*.parquet")
    ]
    assert result.err == (
        "to repair: 7 messages in 1 of 2 parts; run the command with --apply to write them again\n"
    )
    assert run("repair", "--lake", str(old_lake)).code == 3


def test_with_apply_repair_makes_the_lake_sound(run: Run, old_lake: Path) -> None:
    result = run("repair", "--apply", "--lake", str(old_lake))

    assert (result.code, result.out) == (0, "")
    assert result.err == "repaired: 7 messages in 1 of 2 parts\n"
    assert run("verify", "--lake", str(old_lake)).code == 0
    again = run("repair", "--apply", "--lake", str(old_lake))
    assert (again.code, again.err) == (0, "nothing to repair: 2 parts\n")


def test_a_lake_on_s3_is_repaired_in_place(
    run: Run, s3: Seaweed, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3.key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3.secret)
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.endpoint_url)
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    client = s3.client()

    def objects() -> dict[str, str]:
        found = client.list_objects_v2(Bucket=bucket, Prefix="old lake/messages/")["Contents"]
        return {one["Key"]: one["ETag"] for one in found}

    for path in make_hostile_lake.LAKE.rglob("*"):
        if path.is_file():
            key = f"old lake/{path.relative_to(make_hostile_lake.LAKE)}"
            client.put_object(Bucket=bucket, Key=key, Body=path.read_bytes())
    before = objects()
    lake = ["--lake", f"s3://{bucket}/old lake"]

    listed = run("repair", *lake)

    (outdated,) = listed.out.splitlines()
    assert (listed.code, objects()) == (3, before)
    applied = run("repair", "--apply", *lake)
    assert (applied.code, applied.out, applied.err) == (0, "", "repaired: 7 messages in 1 of 2 parts\n")
    after = objects()
    assert before.keys() == after.keys()
    assert {key for key in before if before[key] != after[key]} == {f"old lake/{outdated}"}
    assert run("verify", *lake).code == 0
    again = run("repair", "--apply", *lake)
    assert (again.code, again.err) == (0, "nothing to repair: 2 parts\n")


def test_json_output_has_the_findings(run: Run, old_lake: Path) -> None:
    found = json.loads(run("repair", "--json", "--lake", str(old_lake)).out)

    assert (found["parts"], found["rows"], found["is_applied"], len(found["keys"])) == (2, 7, False, 1)


def test_a_missing_lake_is_reported_in_one_sentence(run: Run, tmp_path: Path) -> None:
    result = run("repair", "--lake", str(tmp_path / "nothing"))

    assert result.code == 1
    assert "there is no lake" in result.err
    assert len(result.err.splitlines()) == 1
