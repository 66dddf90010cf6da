"""`plan` estimates the cost of an export without writing."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import pytest

from imbrace_lake.errors import (
    BadRequest,
    GatewayError,
    GatewayUnavailable,
    MalformedAnswer,
    OrganizationMismatch,
    RateLimited,
    TokenRejected,
    WrongAddress,
)
from imbrace_lake.export.chunk import export_chunk
from imbrace_lake.export.plan import Plan, make_plan
from imbrace_lake.export.run import close_run
from imbrace_lake.phones.lists import read_phone_list
from imbrace_lake.settings import Settings
from imbrace_sandbox import Sandbox, SandboxOptions
from tests.core.conftest import client_of, played
from tests.gateways import gateway_of, open_run


def settings_of(box: Sandbox, lake: Path, **changes: Any) -> Settings:
    values: dict[str, Any] = {
        "token": box.options.token,
        "organization": box.options.organization_id,
        "gateway": box.url,
        "lake": str(lake),
        "tries": 1,
    }
    return Settings(**{**values, **changes})


def plan(settings: Settings, numbers: list[str]) -> Plan:
    async def main() -> Plan:
        async with gateway_of(settings) as gateway:
            return await make_plan(settings, gateway, read_phone_list(numbers))

    return asyncio.run(main())


def export(settings: Settings, ids: list[str]) -> None:
    async def main() -> None:
        async with open_run(settings, "earlier") as run:
            await run.load_prior_state("some")
            await export_chunk(run, "some", ids)
            await close_run(run, {}, Counter())

    asyncio.run(main())


def test_the_estimate_is_exact_if_every_conversation_was_requested(tmp_path: Path) -> None:
    with Sandbox(SandboxOptions(conversations=10, sizes=(450, 0), page_cap=50)) as box:
        numbers = [*box.phones, box.phones[0], "12"]

        found = plan(settings_of(box, tmp_path / "lake"), numbers)

        ids = {one for each in box.links.values() for one in each}
        lengths = [box.conversations[one] for one in ids]
    assert (found.new, found.known, found.conversations) == (len(ids), 0, len(ids))
    assert found.sampled == len(ids)
    assert found.messages == sum(lengths)
    assert found.page_size == 50
    assert found.requests == 1 + sum(max(1, -(-length // 50)) for length in lengths)
    assert found.numbers["duplicate"] == found.numbers["invalid"] == 1
    assert found.planning_requests == 1 + len(ids) + 1
    assert not found.lake_exists
    assert not (tmp_path / "lake").exists()


def test_a_known_conversation_costs_all_its_pages_in_a_full_walk(tmp_path: Path) -> None:
    with Sandbox(SandboxOptions(conversations=10, sizes=(450, 0))) as box:
        settings = settings_of(box, tmp_path / "lake")
        export(settings, list(box.conversations))
        lengths = list(box.conversations.values())

        async def everything(*, is_full_walk: bool) -> Plan:
            async with gateway_of(settings) as gateway:
                return await make_plan(settings, gateway, None, is_everything=True, is_full_walk=is_full_walk)

        again = asyncio.run(everything(is_full_walk=False))
        whole = asyncio.run(everything(is_full_walk=True))
    assert (again.known, again.new, again.requests) == (len(lengths), 0, len(lengths))
    assert whole.requests == sum(max(1, -(-length // 100)) for length in lengths)
    assert whole.numbers == dict.fromkeys(whole.numbers, 0)


def test_of_many_conversations_only_a_sample_is_requested(tmp_path: Path) -> None:
    with Sandbox(SandboxOptions(conversations=130, messages_mean=40, messages_spread=0)) as box:
        found = plan(settings_of(box, tmp_path), box.phones)

    assert 40 <= found.sampled <= 50
    assert found.messages == 40 * found.new
    assert found.page_size == 100
    assert list(tmp_path.iterdir()) == []


def test_a_known_conversation_costs_one_request(tmp_path: Path) -> None:
    with Sandbox(SandboxOptions(conversations=6)) as box:
        settings = settings_of(box, tmp_path)
        ids = list(dict.fromkeys(one for each in box.links.values() for one in each))

        export(settings, ids[:4])
        before = sorted((path, path.stat().st_mtime_ns) for path in tmp_path.rglob("*"))

        found = plan(settings, box.phones)

    assert (found.known, found.new, found.lake_exists) == (4, len(ids) - 4, True)
    assert before == sorted((path, path.stat().st_mtime_ns) for path in tmp_path.rglob("*"))


def test_the_pace_is_the_rate_limit_of_the_settings(tmp_path: Path) -> None:
    with Sandbox(SandboxOptions(conversations=2)) as box:
        found = plan(settings_of(box, tmp_path, requests_per_second=5.0), box.phones)

    assert (found.per_second, found.pace) == (5.0, "the limit in force")
    assert found.seconds == pytest.approx(found.requests / 5.0, abs=0.1)


def test_the_pace_follows_from_the_speed_of_the_gateway(tmp_path: Path) -> None:
    with Sandbox(SandboxOptions(conversations=2, latency_seconds=0.1)) as box:
        found = plan(settings_of(box, tmp_path, max_in_flight=2), box.phones)

    assert 5 < found.per_second <= 20
    assert "2 at a time" in found.pace


def test_the_pace_for_a_fast_gateway_is_that_of_one_process(tmp_path: Path) -> None:
    with Sandbox(SandboxOptions(conversations=2)) as box:
        found = plan(settings_of(box, tmp_path, max_in_flight=1_000), box.phones)

    assert found.per_second == 450.0


def test_conversations_that_are_deleted_upstream_have_no_messages(tmp_path: Path) -> None:
    with Sandbox(SandboxOptions(conversations=2)) as box:
        for conversation_id in box.conversations:
            box.break_conversation(conversation_id, "404")
        found = plan(settings_of(box, tmp_path), box.phones)

    assert (found.new, found.messages, found.failures) == (2, 0, {})


UNANSWERED = [
    ("302", WrongAddress), ("400", BadRequest), ("403", OrganizationMismatch), ("429", RateLimited),
    ("500", GatewayUnavailable), ("504", GatewayUnavailable), ("cut_before", GatewayUnavailable),
    ("cut_body", GatewayUnavailable), ("html", MalformedAnswer), ("not_json", MalformedAnswer),
]  # fmt: skip


@pytest.mark.parametrize(("fault", "error"), UNANSWERED)
def test_a_plan_fails_with_the_gateways_error_if_no_number_could_be_resolved(
    fault: str, error: type[GatewayError], tmp_path: Path
) -> None:
    options = SandboxOptions(conversations=2, gateway_timeout_seconds=0.0)
    with Sandbox(options) as box:
        box.break_conversation("links", fault)
        with pytest.raises(error):
            plan(settings_of(box, tmp_path, patience_seconds=0.0), box.phones)


def test_a_plan_has_the_conversations_of_numbers_whose_entries_are_incomplete(tmp_path: Path) -> None:
    links = [{"link": "https://x/?conv_id=c"}, {"link": "https://x/"}]

    def play(request: httpx.Request) -> httpx.Response:
        if "links" in request.url.path:
            entry = {"phone_number": request.url.params["phone_numbers"], "conversation_links": links}
            return httpx.Response(200, json=[entry])
        return httpx.Response(200, json={"items": [], "count": 0, "total": 0, "has_more": False})

    async def main(box: Sandbox) -> Plan:
        async with client_of(box, open_session=played(play), url="http://played/3rd") as gateway:
            return await make_plan(settings_of(box, tmp_path), gateway, read_phone_list(["+886911425977"]))

    found = asyncio.run(main(Sandbox(SandboxOptions(conversations=0))))

    assert (found.conversations, found.numbers["error"], len(found.failures)) == (1, 1, 1)


@pytest.mark.parametrize(("fault", "error"), [each for each in UNANSWERED if each[0] != "403"])
def test_a_plan_fails_with_the_gateways_error_if_no_conversation_could_be_read(
    fault: str, error: type[GatewayError], tmp_path: Path
) -> None:
    options = SandboxOptions(conversations=2, gateway_timeout_seconds=0.0)
    with Sandbox(options) as box:
        for conversation_id in box.conversations:
            box.break_conversation(conversation_id, fault)
        with pytest.raises(error):
            plan(settings_of(box, tmp_path, patience_seconds=0.0), box.phones)


def test_unreadable_conversations_do_not_count_as_empty_and_are_reported(tmp_path: Path) -> None:
    with Sandbox(SandboxOptions(conversations=10, messages_mean=40, messages_spread=0)) as box:
        for conversation_id in [*box.conversations][:4]:
            box.break_conversation(conversation_id, "403:plain")
        found = plan(settings_of(box, tmp_path), box.phones)

    assert (found.new, found.sampled, found.messages) == (10, 6, 400)
    [(reason, count)] = found.failures.items()
    assert (count, "forbids access to this conversation" in reason) == (4, True)
    assert ("failed", f"4: {reason}") in found.rows()


def test_numbers_that_could_not_be_resolved_are_counted_with_their_reasons(tmp_path: Path) -> None:
    with Sandbox(SandboxOptions(conversations=60)) as box:
        # The request of both numbers, and that of the first.
        box.fail_next("500", "500")
        found = plan(settings_of(box, tmp_path), box.phones[:2])

    assert found.failures == {"numbers: the gateway failed with status 500": 1}
    assert found.numbers["error"] == 1


@pytest.mark.parametrize("position", ["links", "messages"])
def test_a_rejected_token_ends_the_plan(
    position: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("imbrace_lake.gateway.client.TOKEN_TRIES", 1)
    with Sandbox(SandboxOptions(conversations=1)) as box:
        for name in ["links"] if position == "links" else box.conversations:
            box.break_conversation(name, "401")

        with pytest.raises(TokenRejected):
            plan(settings_of(box, tmp_path), box.phones)


def test_a_plan_is_plain_json(tmp_path: Path) -> None:
    with Sandbox(SandboxOptions(conversations=1)) as box:
        values = plan(settings_of(box, tmp_path), box.phones).as_json()

    assert values["conversations"] == 1
