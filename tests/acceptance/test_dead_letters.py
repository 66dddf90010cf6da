"""Permanent failures are reported and stop nothing else, and a rerun reads only them once they are fixed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.dataset as ds
import pytest

from imbrace_sandbox import Sandbox, SandboxOptions
from tests.acceptance.exporter import Exporter, linked, settings_for, write_phones
from tests.acceptance.lakes import messages_in

CONVERSATIONS = 1_000
FAULTS = ("404", "500", "not_json", "html", "stall", "404", "500:html", "stall_body", "drip", "short")
# Ten endless stalls, each with all retries: short waits keep the test short.
IMPATIENT = {"timeout_seconds": "1", "tries": "3", "task_retries": "1", "task_retry_seconds": "0.5"}


@pytest.mark.parametrize("seed", [7])
def test_ten_permanent_failures_of_a_thousand_leave_990_complete_and_are_listed(
    seed: int, exporter: Exporter, tmp_path: Path
) -> None:
    with Sandbox(SandboxOptions(conversations=CONVERSATIONS, seed=seed)) as box:
        lake = tmp_path / "lake"
        phones = write_phones(tmp_path / "phones.txt", box.phones)
        environment = settings_for(box, lake, **IMPATIENT)
        # Conversations of two pages or more, so that short pages cannot look complete.
        longest = sorted(box.conversations, key=lambda each: -box.conversations[each])
        broken = dict(zip(longest[::7][: len(FAULTS)], FAULTS, strict=True))
        for conversation_id, fault in broken.items():
            box.break_conversation(conversation_id, fault)

        partial = exporter.run(environment, phones=phones)

        assert (partial.state_type, partial.state_name) == ("FAILED", "Partial")
        assert partial.summary is not None
        assert partial.summary["status"] == "partial"
        assert {letter["conversation_id"] for letter in partial.summary["dead_letters"]} == set(broken)
        assert partial.summary["dead_letter_count"] == len(broken)
        assert all(letter["reason"] for letter in partial.summary["dead_letters"])
        assert _dead_letters_in(lake, partial.summary["run_id"]) == sorted(broken)
        _check(box, lake, linked(box) - set(broken))

        for conversation_id in broken:
            box.repair(conversation_id)
        box.reset_stats()
        rerun = exporter.run(environment, rerun=partial.summary["run_id"])

        assert rerun.state_type == "COMPLETED", rerun.message
        assert rerun.totals["conversations"] == {"complete": len(broken)}
        stats = box.stats()
        assert set(stats.pages) == set(broken)
        assert stats.requests["links"] == 0
        _check(box, lake, linked(box))


def test_numbers_that_could_not_be_resolved_are_resolved_by_the_rerun(
    exporter: Exporter, tmp_path: Path
) -> None:
    with Sandbox(SandboxOptions(conversations=50)) as box:
        phones = write_phones(tmp_path / "phones.txt", box.phones)
        environment = settings_for(box, tmp_path / "lake", **IMPATIENT)
        box.break_conversation("links", "500")

        failed = exporter.run(environment, phones=phones)

        assert failed.state_type == "FAILED"
        assert failed.summary is not None
        assert failed.totals["phones"] == {"error": len(box.phones)}

        box.repair("links")
        rerun = exporter.run(environment, rerun=failed.summary["run_id"])

        assert rerun.state_type == "COMPLETED", rerun.message
        _check(box, tmp_path / "lake", linked(box))


def _dead_letters_in(lake: Path, run_id: str) -> list[str]:
    ledger = ds.dataset(lake / "conversations").to_table()
    its = pc.and_(pc.equal(ledger.column("run_id"), run_id), ledger.column("is_dead_letter"))
    names: list[str] = ledger.filter(its).column("conversation_id").to_pylist()
    return sorted(names)


def _check(box: Sandbox, lake: Path, expected: Sequence[str] | set[str]) -> None:
    """Compare the lake with the fake gateway, message by message."""
    rows = messages_in(lake)
    found = {(row["conversation_id"], row["message_id"]): json.loads(row["content"]) for row in rows}
    truth = {(each, item["_id"]): item["content"] for each in expected for item in box.truth(each)}
    assert len(found) == len(rows)
    assert found.keys() == truth.keys()
    assert [key for key, content in truth.items() if found[key] != content] == []
