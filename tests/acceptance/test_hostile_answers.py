"""32 concurrent hostile answers fail only their conversations, and memory stays below a bound."""

from __future__ import annotations

import sys
from collections import Counter
from itertools import cycle
from pathlib import Path

import pytest

from imbrace_cli.local_server import LocalServer
from imbrace_lake.errors import AnswerTooLarge, MalformedAnswer, WalkIncomplete
from imbrace_sandbox import Sandbox, SandboxOptions
from tests.acceptance.exporter import Exporter, settings_for, write_phones
from tests.acceptance.hostile_gateway import HOSTILE, LARGEST, Hostile, hostile_gateway
from tests.acceptance.scale import IS_FULL

AT_A_TIME = 32
MAX_BYTES = 512 * 10**6
EVERY = {**HOSTILE, **LARGEST}
# Answers that end as soon as they are read; the others take longer.
QUICK = {name: one for name, one in HOSTILE.items() if one.error in (AnswerTooLarge, MalformedAnswer)}
MIXES = {"quick": QUICK, "largest": LARGEST, "every": EVERY} if IS_FULL else {"quick": QUICK}


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has /proc")
@pytest.mark.parametrize("mix", MIXES)
def test_32_concurrent_hostile_answers_fail_only_their_conversations_in_little_memory(
    mix: str, prefect_server: LocalServer, tmp_path: Path
) -> None:
    with (
        Sandbox(SandboxOptions(conversations=AT_A_TIME + 20)) as box,
        Exporter(prefect_server, tmp_path / "exporter") as exporter,
    ):
        ids = sorted(box.conversations)[: AT_A_TIME + 8]
        hostile: dict[str, Hostile] = dict(zip(ids, cycle(MIXES[mix].values()), strict=False))
        with hostile_gateway(box, hostile, together=AT_A_TIME) as gateway, exporter.watched() as peaks:
            environment = settings_for(
                # Only the longer mixes have answers that do not end; a busy machine is slow with the others.
                box, tmp_path / "lake", timeout_seconds="120.0" if mix == "quick" else "35.0",
                tries="3", task_retries="0",
            )  # fmt: skip
            phones = write_phones(tmp_path / "phones.txt", box.phones)
            outcome = exporter.run({**environment, "IMBRACE_GATEWAY": gateway.url}, phones=phones)

    lost = {one: answered.error for one, answered in hostile.items() if answered.error is not None}
    assert outcome.state_name == ("Partial" if lost else "Completed"), outcome.message
    assert outcome.summary is not None
    letters = {one["conversation_id"]: one["advice"] for one in outcome.summary["dead_letters"]}
    # Each class of errors has its own advice.
    assert letters.keys() == lost.keys()
    for one, advice in letters.items():
        assert advice in {error.advice for error in (lost[one], hostile[one].or_error) if error}, one
    statuses = Counter("incomplete" if error is WalkIncomplete else "failed" for error in lost.values())
    assert outcome.totals["conversations"] == {"complete": len(box.conversations) - len(lost), **statuses}
    assert gateway.most_at_a_time >= AT_A_TIME
    assert peaks.together_bytes < MAX_BYTES, peaks.of_each
    print(f"{mix}: {peaks.together_bytes / 1e6:.0f} MB")  # noqa: T201 - shown with -s
