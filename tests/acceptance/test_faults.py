"""Temporary faults of the gateway and the network do not change the lake.

Each fault alone meets 200 conversations, by default 60; all of them mixed meet 200.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from imbrace_lake.gateway import limiter
from imbrace_sandbox import Sandbox, SandboxOptions
from imbrace_sandbox.fault_names import FORMS, PASSING, WITH_FORMS
from tests.acceptance.exporter import Exporter, Outcome, linked, settings_for, write_phones
from tests.acceptance.lakes import export_with_core, messages_in
from tests.acceptance.scale import IS_FULL

CONVERSATIONS = 200
# For one fault at a time: there are two dozen.
FEW, LEAST_FAULTS = (CONVERSATIONS, 10) if IS_FULL else (60, 1)
SHARE = 0.1
# Half of a time-out: the answer is late but not too late.
SLOW_SECONDS = 0.25
WRONG_TOKEN = "api_11111111-1111-4111-8111-111111111111"

FAULTS = [
    f"{fault}:{form}" if form else fault
    for fault in PASSING
    for form in (FORMS if fault in WITH_FORMS else ("",))
]


Faultless = tuple[str, list[dict[str, Any]]]
"""The list of phones, and the messages of a lake that was exported without faults."""


def _options(conversations: int = CONVERSATIONS, **fault: Any) -> SandboxOptions:
    return SandboxOptions(
        conversations=conversations - 2,
        sizes=(101, 450),
        surprises=0.05,
        gateway_timeout_seconds=SLOW_SECONDS,
        **fault,
    )


@pytest.fixture(scope="module")
def faultless(tmp_path_factory: pytest.TempPathFactory) -> Faultless:
    """All conversations."""
    return _export_without_faults(CONVERSATIONS, tmp_path_factory.mktemp("faultless"))


@pytest.fixture(scope="module")
def few_faultless(tmp_path_factory: pytest.TempPathFactory) -> Faultless:
    """Some conversations."""
    return _export_without_faults(FEW, tmp_path_factory.mktemp("faultless"))


def _export_without_faults(conversations: int, folder: Path) -> Faultless:
    with Sandbox(_options(conversations)) as box:
        phones = write_phones(folder / "phones.txt", box.phones)
        summary = export_with_core(box, folder / "lake", phones)
        assert summary.totals.conversations == {"complete": conversations}
        assert summary.totals.messages_total == sum(box.conversations.values())
    return phones, messages_in(folder / "lake")


@pytest.fixture
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limiter, "FIRST_PAUSE_SECONDS", 0.02)


@pytest.mark.usefixtures("_short_pauses")
@pytest.mark.parametrize("fault", FAULTS)
def test_one_fault_in_a_tenth_of_all_requests_changes_nothing(
    fault: str, few_faultless: Faultless, tmp_path: Path
) -> None:
    phones, expected = few_faultless
    with Sandbox(_options(FEW, rates={fault: SHARE})) as box:
        summary = export_with_core(box, tmp_path / "lake", phones)
        met = box.stats().faults

    assert summary.status == "complete", summary.reason
    assert summary.dead_letter_count == 0
    assert met[fault.partition(":")[0]] > LEAST_FAULTS
    assert messages_in(tmp_path / "lake") == expected


@pytest.mark.usefixtures("_short_pauses")
def test_all_faults_mixed_in_a_tenth_of_all_requests_change_nothing(
    faultless: Faultless, tmp_path: Path
) -> None:
    phones, expected = faultless
    with Sandbox(_options(mixed=SHARE)) as box:
        summary = export_with_core(box, tmp_path / "lake", phones)
        met = box.stats().faults

    assert summary.status == "complete", summary.reason
    assert set(PASSING) <= set(met)
    assert messages_in(tmp_path / "lake") == expected


def test_the_flow_also_survives_all_faults_mixed(
    exporter: Exporter, faultless: Faultless, tmp_path: Path
) -> None:
    phones, expected = faultless
    # A 429 pauses the limiter for at least a second, and the waits of the flow cannot be patched.
    faults = [fault for fault in PASSING if fault != "429"]
    rates = dict.fromkeys(faults, SHARE / len(faults))
    with Sandbox(_options(rates=rates)) as box:
        environment = settings_for(box, tmp_path / "lake", timeout_seconds="0.5", task_retry_seconds="1")
        outcome = exporter.run(environment, phones=phones)

    assert outcome.state_type == "COMPLETED", outcome.message
    assert outcome.totals["retries"] > 10
    assert messages_in(tmp_path / "lake") == expected


@pytest.mark.usefixtures("_short_pauses")
def test_a_run_waits_while_the_budget_is_used_up(faultless: Faultless, tmp_path: Path) -> None:
    phones, expected = faultless
    # A window so long that even a busy machine requests more than the rest of its budget.
    with Sandbox(_options(budget_requests=150, budget_window_seconds=6.0)) as box:
        summary = export_with_core(box, tmp_path / "lake", phones)
        refused = box.stats().refused

    assert summary.status == "complete", summary.reason
    assert summary.totals.refusals == refused > 0
    assert messages_in(tmp_path / "lake") == expected


def test_a_wrong_token_ends_the_run_within_30_seconds_with_one_sentence(
    exporter: Exporter, tmp_path: Path
) -> None:
    with Sandbox(_options()) as box:
        outcome = _run_that_is_rejected(exporter, box, tmp_path, token=WRONG_TOKEN)

    assert "the gateway does not accept the token" in outcome.message
    assert WRONG_TOKEN not in outcome.message


def test_a_wrong_organization_ends_the_run_within_30_seconds_with_one_sentence(
    exporter: Exporter, tmp_path: Path
) -> None:
    with Sandbox(_options()) as box:
        outcome = _run_that_is_rejected(exporter, box, tmp_path, organization="org_other")

    assert "the token belongs to organization org_sandbox, not to org_other" in outcome.message


@pytest.mark.parametrize(
    ("fault", "reported"),
    [
        ("401", "the token"),
        ("403", "nothing was exported"),
        ("500:html", "no request has succeeded for over 2 s"),
    ],
)
def test_what_every_conversation_meets_ends_the_run_within_30_seconds_with_one_sentence(
    fault: str, reported: str, exporter: Exporter, tmp_path: Path
) -> None:
    with Sandbox(_options(broken={})) as box:
        # The phones are resolved first; then every conversation has this answer.
        for conversation_id in linked(box):
            box.break_conversation(conversation_id, fault)
        outcome = _run_that_is_rejected(exporter, box, tmp_path, outage_seconds="2")

    assert reported in outcome.message


def _run_that_is_rejected(exporter: Exporter, box: Sandbox, folder: Path, **settings: str) -> Outcome:
    phones = write_phones(folder / "phones.txt", box.phones)
    began = time.monotonic()
    outcome = exporter.run(settings_for(box, folder / "lake", **settings), phones=phones)
    seconds = time.monotonic() - began

    assert seconds < 30
    assert (outcome.state_type, outcome.state_name) == ("FAILED", "Failed")
    assert outcome.summary is not None
    assert outcome.summary["status"] == "failed"
    assert outcome.message == outcome.summary["reason"]
    assert "\n" not in outcome.message
    return outcome
