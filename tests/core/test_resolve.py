"""Resolving: every input number gets exactly one status, whatever the links endpoint answers."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from imbrace_lake.errors import BadRequest, GatewayUnavailable, OrganizationMismatch
from imbrace_lake.export.resolve import Recording, Resolved, ResolveResult, resolve, resolve_numbers
from imbrace_lake.gateway.client import GatewayClient
from imbrace_lake.gateway.limiter import RequestLimiter
from imbrace_lake.lake.lake import open_lake
from imbrace_lake.lake.ledger import Journal, read_ledger
from imbrace_lake.phones.lists import read_phone_list
from imbrace_lake.phones.numbers import PhoneNumber, phone_hash
from imbrace_sandbox import Sandbox, SandboxOptions
from tests.core.conftest import StartBox, client_of, played

NOW = datetime(2026, 1, 2, tzinfo=UTC)
KEY = b"k" * 32
NOWHERE = Sandbox(SandboxOptions(conversations=0))
ONE, TWO, BAD = PhoneNumber("+886911425977"), PhoneNumber("+85262602239"), PhoneNumber("+12025550123")


def resolved(
    gateway: GatewayClient, folder: Path, numbers: list[str], *, is_masked: bool = False
) -> tuple[ResolveResult, list[dict[str, Any]]]:
    async def run() -> tuple[ResolveResult, list[dict[str, Any]]]:
        async with open_lake(str(folder), now=NOW) as lake, gateway:
            recording = Recording("run_1", "org_sandbox", KEY, is_masked, NOW)
            given = read_phone_list(numbers).table
            result = await resolve_numbers(gateway, Journal(lake, "run_1", NOW), recording, "slice-1", given)
            return result, (await read_ledger(lake, "phones")).to_pylist()

    return asyncio.run(run())


def resolve_some(gateway: GatewayClient, *phones: PhoneNumber) -> dict[PhoneNumber, Resolved]:
    async def run() -> dict[PhoneNumber, Resolved]:
        async with gateway:
            return await resolve(gateway, phones)

    return asyncio.run(run())


def playing(answer: Callable[[list[str]], httpx.Response]) -> GatewayClient:
    def play(request: httpx.Request) -> httpx.Response:
        return answer(request.url.params.get_list("phone_numbers"))

    return client_of(NOWHERE, open_session=played(play), url="http://played/3rd", tries=2)


def link(conversation_id: str) -> dict[str, str]:
    return {"link": f"https://x/?conv_id={conversation_id}"}


# -- the ledger -----------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", ["array", "envelope", "alternating"])
def test_every_input_number_gets_exactly_one_status(start: StartBox, tmp_path: Path, shape: str) -> None:
    box = start(conversations=150, links_shape=shape)
    numbers = [*box.phones, "no number", box.phones[0], "+886911425977"]

    result, rows = resolved(client_of(box), tmp_path, numbers)

    assert [row["position"] for row in rows] == list(range(1, len(numbers) + 1))
    for row, number in zip(rows, box.phones, strict=False):
        conversation_ids = box.links[number]
        assert (row["phone"], row["conversation_ids"]) == (number, conversation_ids)
        assert row["status"] == ("resolved" if conversation_ids else "none")
        assert row["phone_hash"] == phone_hash(PhoneNumber(number), KEY)
        assert row["resolved_at"] == NOW
    assert [row["status"] for row in rows[-3:]] == ["invalid", "duplicate", "none"]
    assert rows[-2]["duplicate_of"] == 1
    assert rows[-3]["reason"]
    assert rows[-3]["phone_hash"] is None
    assert result.statuses == Counter(row["status"] for row in rows)
    assert result.error is None
    # A conversation of two phones is one conversation.
    assert sorted(result.conversation_ids) == sorted(box.conversations)


def test_masked_numbers_have_only_their_hash(start: StartBox, tmp_path: Path) -> None:
    box = start(conversations=5)

    _, rows = resolved(client_of(box), tmp_path, box.phones, is_masked=True)

    assert {row["phone"] for row in rows} == {None}
    assert all(row["phone_hash"] and "*" in row["phone_masked"] for row in rows)
    for path in tmp_path.rglob("*.parquet"):
        assert not any(phone[1:].encode() in path.read_bytes() for phone in box.phones)


def test_an_empty_list_needs_no_request(start: StartBox, tmp_path: Path) -> None:
    box = start(conversations=1)

    result, rows = resolved(client_of(box), tmp_path, ["nonsense"])

    assert result.conversation_ids == ()
    assert [row["status"] for row in rows] == ["invalid"]
    assert box.stats().requests == {}


def test_many_numbers_are_sent_in_batches(start: StartBox, tmp_path: Path) -> None:
    box = start(conversations=250)

    result, _ = resolved(client_of(box), tmp_path, box.phones)

    assert sorted(result.conversation_ids) == sorted(box.conversations)
    assert box.stats().requests["links"] == -(-len(box.phones) // 100)


# -- failures ------------------------------------------------------------------------------------


def test_numbers_missing_from_an_answer_are_requested_again(start: StartBox, tmp_path: Path) -> None:
    box = start(conversations=30)
    box.fail_next("short", "short")

    result, _ = resolved(client_of(box), tmp_path, box.phones)

    assert sorted(result.conversation_ids) == sorted(box.conversations)
    assert "error" not in result.statuses


def test_a_number_missing_from_every_answer_has_no_conversation() -> None:
    asked: list[list[str]] = []

    def answer(numbers: list[str]) -> httpx.Response:
        asked.append(numbers)
        entries = [
            {"phone_number": number, "conversation_links": [link("c")]}
            for number in numbers
            if number != BAD[1:]
        ]
        return httpx.Response(200, json=entries)

    found = resolve_some(playing(answer), ONE, BAD, TWO)

    assert found == {ONE: Resolved(("c",)), TWO: Resolved(("c",)), BAD: Resolved()}
    assert [len(numbers) for numbers in asked] == [3, 1, 1]


@pytest.mark.parametrize("most", [1, 7, 50])
def test_a_gateway_that_answers_only_the_first_numbers_of_a_request_is_asked_for_the_others(
    most: int,
) -> None:
    phones = [PhoneNumber(f"+8869114259{number:02}") for number in range(100)]

    def answer(numbers: list[str]) -> httpx.Response:
        entries = [
            {"phone_number": number, "conversation_links": [link(f"conv_{number}")]}
            for number in numbers[:most]
        ]
        return httpx.Response(200, json=entries)

    found = resolve_some(playing(answer), *phones)

    assert found == {phone: Resolved((f"conv_{phone[1:]}",)) for phone in phones}


@pytest.mark.parametrize("position", [0, 3, 6])
def test_a_number_that_fails_its_request_is_isolated(position: int) -> None:
    good = [PhoneNumber(f"+88691142597{n}") for n in range(6)]
    phones = [*good[:position], BAD, *good[position:]]

    def answer(numbers: list[str]) -> httpx.Response:
        if BAD[1:] in numbers:
            return httpx.Response(400, json={"message": "bad number"})
        return httpx.Response(
            200, json=[{"phone_number": number, "conversation_links": [link(number)]} for number in numbers]
        )

    found = resolve_some(playing(answer), *phones)

    assert {phone: found[phone].conversation_ids for phone in good} == {phone: (phone[1:],) for phone in good}
    assert found[BAD].conversation_ids == ()
    assert BAD[1:] not in (found[BAD].error or "")
    assert found[BAD].error


def test_a_number_without_a_conversation_in_its_entry_is_the_only_error() -> None:
    asked: list[list[str]] = []

    def answer(numbers: list[str]) -> httpx.Response:
        asked.append(numbers)
        links = {
            number: [{"link": "https://x/"}] if number == BAD[1:] else [link(number)] for number in numbers
        }
        return httpx.Response(
            200, json=[{"phone_number": number, "conversation_links": links[number]} for number in numbers]
        )

    found = resolve_some(playing(answer), ONE, BAD)

    assert found[ONE] == Resolved((ONE[1:],))
    assert found[BAD].error == "the gateway's entry for this number does not name all its conversations"
    assert asked == [[ONE[1:], BAD[1:]], [BAD[1:]], [BAD[1:]]]


@pytest.mark.parametrize("bad_answer", [httpx.Response(500), httpx.Response(200, json=[7])])
def test_a_number_for_which_the_gateway_fails_costs_no_other_number(
    bad_answer: httpx.Response, tmp_path: Path
) -> None:
    good = [f"+8869114259{number}" for number in range(10, 40)]
    requests = 0

    def answer(numbers: list[str]) -> httpx.Response:
        nonlocal requests
        requests += 1
        if BAD[1:] in numbers:
            return bad_answer
        return httpx.Response(
            200, json=[{"phone_number": number, "conversation_links": [link(number)]} for number in numbers]
        )

    result, rows = resolved(playing(answer), tmp_path, [*good[:7], BAD, *good[7:]])

    assert result.statuses == {"resolved": len(good), "error": 1}
    assert [row["position"] for row in rows if row["status"] == "error"] == [8]
    assert result.error is not None
    assert requests <= 20


def test_an_outage_is_not_searched_for_a_number(tmp_path: Path) -> None:
    requests = 0

    def answer(_: list[str]) -> httpx.Response:
        nonlocal requests
        requests += 1
        return httpx.Response(500)

    result, _ = resolved(playing(answer), tmp_path, [f"+8869114259{number}" for number in range(10, 40)])

    assert result.statuses == {"error": 30}
    assert requests == 5 * 2  # the batch, its halves and those of one half, two tries each


@pytest.mark.parametrize("positions", [(0, 99), (10, 60, 61), (49, 50), (3, 30, 70)])
def test_a_few_numbers_for_which_the_gateway_fails_cost_no_other_number(
    positions: tuple[int, ...], tmp_path: Path
) -> None:
    numbers = [f"+8869114259{number:02}" for number in range(100)]
    bad = {numbers[position][1:] for position in positions}
    requests = 0

    def answer(asked: list[str]) -> httpx.Response:
        nonlocal requests
        requests += 1
        if bad.intersection(asked):
            return httpx.Response(500)
        return httpx.Response(
            200, json=[{"phone_number": number, "conversation_links": [link(number)]} for number in asked]
        )

    result, rows = resolved(playing(answer), tmp_path, numbers)

    assert {row["position"] - 1 for row in rows if row["status"] == "error"} == {*positions}
    assert result.statuses["resolved"] == len(numbers) - len(positions)
    assert requests <= 2 * 41


def test_the_search_for_numbers_for_which_the_gateway_fails_is_bounded(tmp_path: Path) -> None:
    requests = 0

    def answer(asked: list[str]) -> httpx.Response:
        nonlocal requests
        requests += 1
        if any(int(number) % 3 == 0 for number in asked):
            return httpx.Response(500)
        return httpx.Response(200, json=[{"phone_number": one, "conversation_links": []} for one in asked])

    result, _ = resolved(playing(answer), tmp_path, [f"+8869114259{number:02}" for number in range(100)])

    assert result.statuses.total() == 100
    assert requests <= 2 * 43


def test_what_an_incomplete_entry_names_is_exported_and_its_number_is_an_error(tmp_path: Path) -> None:
    def answer(numbers: list[str]) -> httpx.Response:
        links = [link("c"), {"link": "https://x/"}]
        return httpx.Response(200, json=[{"phone_number": numbers[0], "conversation_links": links}])

    result, rows = resolved(playing(answer), tmp_path, [ONE])

    assert result.conversation_ids == ("c",)
    assert (rows[0]["status"], rows[0]["conversation_ids"]) == ("error", ["c"])


def test_a_number_is_not_without_conversations_if_the_answer_has_those_of_another(tmp_path: Path) -> None:
    def answer(numbers: list[str]) -> httpx.Response:
        known = [one for one in (ONE[1:],) if one in numbers]
        entries = [{"phone_number": one, "conversation_links": [link(one)]} for one in [*known, "4930901820"]]
        return httpx.Response(200, json=entries)

    result, rows = resolved(playing(answer), tmp_path, [ONE, TWO])

    assert result.statuses == {"resolved": 1, "error": 1}
    assert "conversations of other numbers" in rows[1]["reason"]


def test_an_outage_is_a_transient_error_of_its_numbers(start: StartBox, tmp_path: Path) -> None:
    box = start(conversations=3)
    box.break_conversation("links", "503")

    result, rows = resolved(client_of(box), tmp_path, [*box.phones, "nonsense"])

    assert result.statuses == {"error": len(box.phones), "invalid": 1}
    assert isinstance(result.error, GatewayUnavailable)
    assert result.conversation_ids == ()
    assert all("status 503" in row["reason"] and row["conversation_ids"] is None for row in rows[:-1])


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("400", "rejects this request with status 400"),
        ("503", "failed with status 503"),
        ("html", "not JSON"),
        ("302", "redirects with status 302 to https://login.example.invalid/sso"),
    ],
)
def test_the_reasons_of_unresolved_numbers_are_counted(
    start: StartBox, tmp_path: Path, fault: str, reason: str
) -> None:
    box = start(conversations=3)
    box.break_conversation("links", fault)

    result, _ = resolved(client_of(box, tries=1), tmp_path, box.phones)

    [(counted, count)] = result.reasons.items()
    assert (count, reason in counted) == (len(box.phones), True)


def test_an_isolated_number_keeps_the_class_of_its_error(start: StartBox) -> None:
    box = start(conversations=3)
    box.break_conversation("links", "400")

    found = resolve_some(client_of(box), *map(PhoneNumber, box.phones))

    assert {one.cause for one in found.values()} == {BadRequest}
    assert {one.reason for one in found.values()} == {"the gateway rejects this request with status 400"}


def test_a_redirect_is_not_requested_again_for_each_number(start: StartBox, tmp_path: Path) -> None:
    box = start(conversations=30)
    box.break_conversation("links", "302")

    result, _ = resolved(client_of(box), tmp_path, box.phones)

    assert result.statuses == {"error": len(box.phones)}
    assert box.stats().requests == {"links": 1}


def test_an_error_of_every_request_is_raised_and_leaves_no_request_behind(
    start: StartBox, tmp_path: Path
) -> None:
    box = start(conversations=300)
    box.break_conversation("links", "403")

    async def run() -> set[asyncio.Task[Any]]:
        limiter = RequestLimiter(max_in_flight=1)
        async with open_lake(str(tmp_path), now=NOW) as lake, client_of(box, limiter) as gateway:
            recording = Recording("run_1", "org_sandbox", KEY, False, NOW)
            given = read_phone_list(box.phones).table
            with pytest.raises(OrganizationMismatch):
                await resolve_numbers(gateway, Journal(lake, "run_1", NOW), recording, "slice-1", given)
            return asyncio.all_tasks() - {asyncio.current_task()}

    assert not asyncio.run(run())
