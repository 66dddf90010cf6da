"""The messages endpoint of a list that does not change."""

from __future__ import annotations

import httpx
import pytest

from imbrace_sandbox import Sandbox
from imbrace_sandbox.content import TYPES
from tests.sandbox.conftest import Connect, StartBox
from tests.sandbox.reading import first_of, get_page, walk


def test_a_page_has_the_ten_newest_messages_by_default(box: Sandbox, client: httpx.Client) -> None:
    truth = box.truth(first_of(box))

    page = get_page(client, first_of(box)).json()

    assert page["items"] == truth[:-11:-1]
    assert page["has_more"] is True


def test_count_is_of_the_conversation_and_total_of_the_page(box: Sandbox, client: httpx.Client) -> None:
    page = get_page(client, first_of(box), limit=10, skip=30).json()

    assert (page["count"], page["total"], len(page["items"])) == (35, 5, 5)
    assert page["has_more"] is False


def test_count_and_total_can_be_swapped_and_has_more_can_be_missing(
    start: StartBox, connect: Connect
) -> None:
    box = start(sizes=(35,), counts_swapped=True, without_has_more=True)

    page = get_page(connect(box), first_of(box)).json()

    assert (page["count"], page["total"]) == (10, 35)
    assert "has_more" not in page


def test_a_page_is_capped_silently(start: StartBox, connect: Connect) -> None:
    box = start(sizes=(35,), page_cap=20)

    page = get_page(connect(box), first_of(box), limit=1_000).json()

    assert (page["total"], page["has_more"]) == (20, True)


def test_an_empty_conversation_is_an_empty_page(start: StartBox, connect: Connect) -> None:
    box = start(sizes=(0,))

    page = get_page(connect(box), first_of(box)).json()

    assert page == {"items": [], "count": 0, "total": 0, "has_more": False}


def test_skipping_all_of_a_list_is_an_empty_page(box: Sandbox, client: httpx.Client) -> None:
    page = get_page(client, first_of(box), skip=35).json()

    assert (page["items"], page["count"], page["has_more"]) == ([], 35, False)


@pytest.mark.parametrize("surprises", [0.0, 0.5])
def test_a_plain_walk_of_an_unchanged_list_reads_every_message_once(
    start: StartBox, connect: Connect, surprises: float
) -> None:
    box = start(surprises=surprises)
    client = connect(box)

    read = {each: walk(client, each, limit=7) for each in box.conversations}

    assert {each: items[::-1] for each, items in read.items()} == {each: box.truth(each) for each in read}


def test_the_demo_has_every_type_of_the_contract_and_unknown_ones(start: StartBox, connect: Connect) -> None:
    box = start(conversations=120)
    client = connect(box)

    seen = {item["type"] for each in box.conversations for item in walk(client, each, limit=100)}

    assert seen == set(TYPES)
    assert {"carousel.v2", "voice_call"} <= seen


def test_messages_with_the_same_time_keep_their_order(start: StartBox, connect: Connect) -> None:
    box = start(sizes=(400,))
    client = connect(box)

    first, second = (walk(client, first_of(box), limit=limit) for limit in (100, 33))

    times = [item["created_at"] for item in first]
    assert first == second
    assert len(set(times)) < len(times)
    assert times == sorted(times, reverse=True)


def test_a_page_of_a_million_messages_is_served_without_making_all(start: StartBox, connect: Connect) -> None:
    box = start(sizes=(1_000_000,), conversations=0)
    client = connect(box)

    middle = get_page(client, first_of(box), limit=100, skip=500_000).json()
    overlap = get_page(client, first_of(box), limit=100, skip=500_050).json()
    oldest = get_page(client, first_of(box), limit=100, skip=999_999).json()

    assert middle["count"] == 1_000_000
    assert middle["items"][50:] == overlap["items"][:50]
    assert (oldest["total"], oldest["has_more"]) == (1, False)


def test_equal_seeds_serve_equal_bytes_and_other_seeds_do_not(start: StartBox, connect: Connect) -> None:
    boxes = [start(seed=seed, surprises=0.3) for seed in (1, 1, 2)]

    once, again, other = (get_page(connect(box), first_of(box), limit=100).content for box in boxes)

    assert once == again
    assert once != other


@pytest.mark.slow
def test_prerendering_changes_nothing_but_speed(start: StartBox) -> None:
    sizes = (5_001,)  # one more than are ever kept
    plain, made = start(sizes=sizes, surprises=0.1), start(sizes=sizes, surprises=0.1, prerender=True)

    assert [plain.truth(each) for each in plain.conversations] == [
        made.truth(each) for each in made.conversations
    ]


def test_the_mean_of_the_counts_is_the_requested_one(start: StartBox) -> None:
    box = start(conversations=1_000, messages_mean=108)

    assert sum(box.conversations.values()) / 1_000 == pytest.approx(108, rel=0.1)


def test_without_a_spread_all_conversations_are_equally_long(start: StartBox) -> None:
    box = start(messages_mean=108, messages_spread=0)

    assert set(box.conversations.values()) == {108}


def test_an_unknown_or_missing_id_has_the_message_of_the_gateway(client: httpx.Client) -> None:
    unknown = client.get("/conversations/conv_nobody/messages")
    nameless = client.get("/conversations//messages")

    assert (unknown.status_code, unknown.json()) == (404, {"message": "Conversation not found"})
    assert (nameless.status_code, nameless.json()) == (400, {"message": "conversation_id is required"})


@pytest.mark.parametrize("params", ["limit=ten", "limit=0", "skip=-1", "limit=", "skip=" + "9" * 4_000])
def test_wrong_numbers_in_parameters_are_rejected(box: Sandbox, client: httpx.Client, params: str) -> None:
    answer = client.get(f"/conversations/{first_of(box)}/messages?{params}")

    assert answer.status_code == 400


def test_a_wrong_token_is_always_unauthorized(box: Sandbox, client: httpx.Client) -> None:
    answers = [
        client.get(f"/conversations/{first_of(box)}/messages", headers={"x-access-token": "api_other"})
        for _ in range(3)
    ]

    assert {answer.status_code for answer in answers} == {401}
    assert answers[0].json() == {"message": "Unauthorized - Invalid third party token"}


def test_a_request_id_is_returned_or_made(box: Sandbox, client: httpx.Client) -> None:
    path = f"/conversations/{first_of(box)}/messages"

    mine = client.get(path, headers={"x-request-id": "mine-1"})
    made = [client.get(path) for _ in range(2)]

    assert mine.headers["x-request-id"] == "mine-1"
    assert made[0].headers["x-request-id"] != made[1].headers["x-request-id"]
