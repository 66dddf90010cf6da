"""Peaks of memory of processes that run the flow are bounded by settings, not by data."""

from __future__ import annotations

from pathlib import Path

import pyarrow.dataset as ds
import pytest

from imbrace_cli.local_server import LocalServer
from imbrace_sandbox import Sandbox, SandboxOptions
from tests.acceptance.exporter import Exporter, credentials, settings_for, write_phones
from tests.acceptance.scale import IS_FULL
from tools.seaweed import Seaweed

LONG = 1_000_000 if IS_FULL else 150_000
# The rows of 150,000 messages are 100 MB, and sorting them in memory takes three times that.
MAX_GROWTH_BYTES = 190 * 10**6
MAX_BYTES = 512 * 10**6


@pytest.mark.timeout(1_800)
@pytest.mark.parametrize("folder", ["folder", "bucket"] if IS_FULL else ["folder"])
def test_a_long_conversation_takes_little_more_memory_than_a_short_one(
    request: pytest.FixtureRequest, prefect_server: LocalServer, tmp_path: Path, folder: str
) -> None:
    lake, others = str(tmp_path / "lake"), {}
    if folder == "bucket":
        s3: Seaweed = request.getfixturevalue("s3")
        lake, others = f"s3://{request.getfixturevalue('bucket')}/lake", credentials(s3)
    peaks = []
    with Exporter(prefect_server, tmp_path / "exporter") as exporter:
        for size in (2_000, LONG):
            with Sandbox(SandboxOptions(conversations=0, sizes=(size,))) as box:
                phones = write_phones(tmp_path / "phones.txt", [*box.links])
                outcome = exporter.run({**settings_for(box, f"{lake}-{size}"), **others}, phones=phones)
            assert outcome.state_type == "COMPLETED", outcome.message
            assert outcome.totals["messages_new"] == size
            peaks.append(outcome.most_memory_bytes)

    assert peaks[1] - peaks[0] < MAX_GROWTH_BYTES
    assert peaks[1] < MAX_BYTES
    if folder == "folder":
        ids = ds.dataset(f"{lake}-{LONG}/messages").to_table(columns=["message_id"]).column("message_id")
        assert len(ids.unique()) == len(ids) == LONG
