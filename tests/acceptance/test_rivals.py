"""Two concurrent runs over the same 200 growing conversations, by default 50."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest
from pydantic import SecretStr

from imbrace_lake.store.contract import StoreOptions
from imbrace_sandbox import Sandbox, SandboxOptions
from tests.acceptance.scale import IS_FULL
from tests.core.lake_runs import Bench
from tests.core.rivals import contend, settle
from tools.seaweed import Seaweed

CONVERSATIONS = 200 if IS_FULL else 50


@pytest.mark.timeout(1_800)
@pytest.mark.skipif(not IS_FULL, reason="tests/core has shorter ones on a disk: IMBRACE_ACCEPTANCE=full")
def test_two_concurrent_runs_export_every_message_once_on_a_disk(tmp_path: Path) -> None:
    with Sandbox(SandboxOptions(conversations=CONVERSATIONS)) as box:
        ids = list(box.conversations)
        bench = Bench(box, str(tmp_path / "lake"))
        for number in range(8):
            contend(bench, ids, Random(number))
        settle(bench, ids)


@pytest.mark.timeout(1_800)
def test_two_concurrent_runs_export_every_message_once_on_s3(s3: Seaweed, bucket: str) -> None:
    store = StoreOptions(endpoint_url=s3.endpoint_url, key=SecretStr(s3.key), secret=SecretStr(s3.secret))
    with Sandbox(SandboxOptions(conversations=CONVERSATIONS)) as box:
        ids = list(box.conversations)
        bench = Bench(box, f"s3://{bucket}/lake", store=store)
        for number in range(2 if IS_FULL else 1):
            contend(bench, ids, Random(number))
        settle(bench, ids)
