"""A run that finds nothing new writes no message and sends one request per conversation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from imbrace_sandbox import Sandbox, SandboxOptions
from tests.acceptance.exporter import Exporter, credentials, linked, settings_for, write_phones
from tools.seaweed import Seaweed

# The longest have twelve pages, and one is empty.
OPTIONS = SandboxOptions(conversations=100, sizes=(0, 1, 100, 101, 1_150), surprises=0.1)


def test_the_second_and_third_run_write_no_file_and_send_one_request_per_conversation(
    exporter: Exporter, tmp_path: Path
) -> None:
    lake = tmp_path / "lake"

    def objects() -> dict[str, object]:
        found = (lake / "messages").rglob("*")
        return {str(path): (path.stat().st_mtime_ns, path.stat().st_ino) for path in found if path.is_file()}

    _check_three_runs(exporter, tmp_path, str(lake), {}, objects)


def test_the_second_and_third_run_write_no_s3_object_and_send_one_request_per_conversation(
    exporter: Exporter, tmp_path: Path, s3: Seaweed, bucket: str
) -> None:
    def objects() -> dict[str, object]:
        pages = s3.client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix="lake/messages/")
        found = [each for page in pages for each in page["Contents"]]
        return {each["Key"]: (each["ETag"], each["LastModified"]) for each in found}

    _check_three_runs(exporter, tmp_path, f"s3://{bucket}/lake", credentials(s3), objects)


def _check_three_runs(
    exporter: Exporter,
    folder: Path,
    lake: str,
    environment: dict[str, str],
    objects: Callable[[], dict[str, object]],
) -> None:
    with Sandbox(OPTIONS) as box:
        phones = write_phones(folder / "phones.txt", box.messy_phones())
        environment = {**settings_for(box, lake), **environment}
        first = exporter.run(environment, phones=phones)
        assert first.state_type == "COMPLETED", first.message
        conversations = len(linked(box))
        assert first.totals["conversations"] == {"complete": conversations}
        written = objects()
        # The conversation without messages needs no object.
        assert len(written) == conversations - 1

        for _ in range(2):
            box.reset_stats()
            again = exporter.run(environment, phones=phones)

            assert again.state_type == "COMPLETED", again.message
            assert again.totals["conversations"] == {"unchanged": conversations}
            assert again.totals["messages_new"] == 0
            assert objects() == written
            stats = box.stats()
            assert stats.requests["messages"] <= conversations
            assert max(stats.pages.values()) == 1
