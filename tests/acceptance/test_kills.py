"""A killed run leaves only complete conversations, and the next run continues from there."""

from __future__ import annotations

import logging
import random
import threading
import time
from pathlib import Path

import duckdb
import pytest

from imbrace_cli.local_server import LocalServer
from imbrace_sandbox import Sandbox, SandboxOptions
from tests.acceptance.exporter import Exporter, linked, settings_for, write_phones
from tests.acceptance.lakes import messages_in

KILLS = 5
logger = logging.getLogger(__name__)
OPTIONS = SandboxOptions(conversations=400, sizes=(0, 1, 999), latency_seconds=0.05, surprises=0.05)
# So slow that the run is killed in the middle: 400 conversations take about five seconds.
SLOWLY = {"max_in_flight": "4"}

pytestmark = pytest.mark.timeout(1_800)


class Reader:
    """Reads the lake repeatedly, and collects states that no reader may see."""

    def __init__(self, lake: Path, expected: dict[str, int]) -> None:
        self.scans = 0
        self.conversations_seen = 0
        self.faults: list[str] = []
        self._lake = lake
        self._expected = expected
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._read)

    def __enter__(self) -> Reader:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stop.set()
        self._thread.join()

    def _read(self) -> None:
        query = f"""
            SELECT conversation_id, count(*), count(DISTINCT message_id)
            FROM read_parquet('{self._lake}/messages/**/*.parquet') GROUP BY ALL
        """  # noqa: S608
        # A reader that pauses less takes a core away from the runs.
        pause = 0.05
        while not self._stop.wait(pause):
            began = time.monotonic()
            try:
                with duckdb.connect() as connection:
                    rows = connection.sql(query).fetchall()
            except duckdb.IOException as exc:
                # Before the first part there is nothing to read.
                if "No files found" not in str(exc):
                    self.faults.append(str(exc))
                continue
            pause = max(0.05, 3 * (time.monotonic() - began))
            self.scans += 1
            self.conversations_seen = len(rows)
            for conversation_id, count, distinct in rows:
                if not count == distinct == self._expected[conversation_id]:
                    self.faults.append(f"{conversation_id}: {count} rows, {distinct} messages")


def test_five_kills_at_any_moment_lose_nothing_and_show_no_reader_a_partial_conversation(
    prefect_server: LocalServer, tmp_path: Path
) -> None:
    moments = random.Random(20)
    lake = tmp_path / "lake"
    with Sandbox(OPTIONS) as box:
        environment = settings_for(box, lake, **SLOWLY)
        phones = write_phones(tmp_path / "phones.txt", box.phones)
        with Reader(lake, box.conversations) as reader:
            seen = [0]
            for number in range(KILLS):
                with Exporter(prefect_server, tmp_path / f"killed-{number}") as process:
                    process.begin(environment, phones=phones)
                    _wait_until_it_adds(process, lake, more_than=seen[-1])
                    time.sleep(moments.uniform(0.0, 0.5))
                    process.kill()
                seen.append(_parts(lake))
            with Exporter(prefect_server, tmp_path / "last") as process:
                last = process.run(environment, phones=phones)
        truth = {(each, item["_id"]) for each in linked(box) for item in box.truth(each)}

    logger.info("parts after each kill=%s scans=%d", seen, reader.scans)
    # Each run was killed in the middle: after some parts and before all.
    assert seen == sorted(set(seen))
    assert seen[-1] < len(linked(box)) - 1
    assert last.state_type == "COMPLETED", last.message
    rows = messages_in(lake)
    assert len(rows) == len(truth)
    assert {(row["conversation_id"], row["message_id"]) for row in rows} == truth
    assert reader.faults == []
    assert reader.scans > 20


def _parts(lake: Path) -> int:
    return sum(1 for _ in (lake / "messages").rglob("*.parquet"))


def _wait_until_it_adds(process: Exporter, lake: Path, *, more_than: int) -> None:
    deadline = time.monotonic() + 600
    while _parts(lake) <= more_than:
        assert time.monotonic() < deadline, process.console.read_text()[-4000:]
        time.sleep(0.02)
