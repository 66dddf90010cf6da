"""Every fault, as a client sees it."""

from __future__ import annotations

import json
from collections.abc import Callable
from time import monotonic
from typing import Any

import httpx
import pytest

from imbrace_sandbox import Sandbox
from imbrace_sandbox.fault_names import FAULTS, FORMS, PASSING
from tests.sandbox.conftest import Connect, StartBox
from tests.sandbox.reading import first_of, get_links, get_page, walk

Ask = Callable[..., httpx.Response]


@pytest.fixture
def ask(box: Sandbox, client: httpx.Client) -> Ask:
    """Request one page, with a fault."""

    def begin(fault: str) -> httpx.Response:
        box.fail_next(fault)
        return get_page(client, first_of(box), limit=10)

    return begin


@pytest.mark.parametrize(
    ("fault", "body"),
    [
        ("400", {"message": "conversation_id is required"}),
        ("401", {"message": "Unauthorized - Invalid third party token"}),
        (
            "403",
            {
                "message": "Forbidden - organization mismatch",
                "details": {"expected": "org_sandbox", "received": ""},
            },
        ),
        ("404", {"message": "Conversation not found"}),
    ],
)
def test_an_error_of_the_gateway_is_json(ask: Ask, fault: str, body: dict[str, Any]) -> None:
    answer = ask(fault)

    assert (answer.status_code, answer.json()) == (int(fault), body)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("400", "phone_numbers is required"),
        ("404", "No conversations found for the provided phone numbers"),
    ],
)
def test_errors_of_links_have_their_own_message(
    box: Sandbox, client: httpx.Client, fault: str, message: str
) -> None:
    box.fail_next(fault)

    answer = get_links(client, box, *box.phones)

    assert (answer.status_code, answer.json()) == (int(fault), {"message": message})


def test_429_is_plain_text_without_retry_after(ask: Ask) -> None:
    answer = ask("429")

    assert (answer.status_code, answer.text) == (429, "Too many requests. Please try again later.")
    assert answer.headers["content-type"].startswith("text/plain")
    assert "retry-after" not in answer.headers


@pytest.mark.parametrize("status", ["500", "502", "503"])
@pytest.mark.parametrize(
    ("form", "content_type"), [("json", "application/json"), ("text", "text/plain"), ("html", "text/html")]
)
def test_a_server_error_comes_in_the_form_asked_for(
    ask: Ask, status: str, form: str, content_type: str
) -> None:
    answer = ask(f"{status}:{form}")

    assert (answer.status_code, answer.headers["content-type"].split(";")[0]) == (int(status), content_type)


def test_a_server_error_comes_in_every_form_when_none_is_asked_for(ask: Ask) -> None:
    forms = {ask("500").headers["content-type"].split(";")[0] for _ in range(30)}

    assert len(forms) == len(FORMS)


def test_504_comes_in_plain_text_and_late(box: Sandbox, ask: Ask) -> None:
    box.set_options(gateway_timeout_seconds=0.1)
    began = monotonic()

    answer = ask("504")

    assert (answer.status_code, answer.headers["content-type"].split(";")[0]) == (504, "text/plain")
    assert monotonic() - began >= 0.1


def test_a_connection_cut_early_sends_nothing(ask: Ask) -> None:
    with pytest.raises((httpx.RemoteProtocolError, httpx.ReadError)):
        ask("cut_before")


def test_a_connection_cut_in_the_body_fails_in_both_ways_of_sending(ask: Ask) -> None:
    reasons: set[str] = set()

    for _ in range(12):
        with pytest.raises(httpx.RemoteProtocolError) as caught:
            ask("cut_body")
        reasons.add("chunked" if "chunked" in str(caught.value) else "length")

    assert reasons == {"chunked", "length"}


def test_a_short_page_is_valid_and_claims_to_be_complete(ask: Ask) -> None:
    page = ask("short").json()

    assert page["count"] == 35
    assert len(page["items"]) < page["total"] == 10


def test_a_lossy_page_is_detected_only_by_the_count_of_the_conversation(ask: Ask) -> None:
    page = ask("lossy").json()

    assert page["count"] == 35
    assert len(page["items"]) == page["total"] < 10
    assert page["has_more"] is True


@pytest.mark.parametrize("fault", ["short", "lossy"])
def test_nothing_can_be_lost_from_an_empty_page(start: StartBox, connect: Connect, fault: str) -> None:
    box = start(sizes=(0,))
    box.fail_next(fault)

    page = get_page(connect(box), first_of(box)).json()

    assert page == {"items": [], "count": 0, "total": 0, "has_more": False}


def test_short_links_lack_a_requested_number(box: Sandbox, client: httpx.Client) -> None:
    box.fail_next("short")

    entries = get_links(client, box, *box.phones).json()

    assert len(entries) == len(box.phones) - 1


def test_a_short_envelope_counts_its_lost_entries(start: StartBox, connect: Connect) -> None:
    box = start(links_shape="envelope")
    box.fail_next("short")

    body = get_links(connect(box), box, *box.phones).json()

    assert len(body["data"]) == body["count"] - 1


def test_html_comes_under_status_200(ask: Ask) -> None:
    answer = ask("html")

    assert (answer.status_code, answer.headers["content-type"].split(";")[0]) == (200, "text/html")
    assert answer.text.startswith("<!DOCTYPE html>")


def test_half_a_body_can_have_a_matching_length_and_not_be_json(ask: Ask) -> None:
    answer = ask("not_json")

    assert answer.status_code == 200
    with pytest.raises(json.JSONDecodeError):
        answer.json()


@pytest.mark.parametrize("fault", ["stall", "stall_body"])
def test_a_stall_lasts_until_the_client_gives_up_and_delays_no_other_client(
    box: Sandbox, client: httpx.Client, fault: str
) -> None:
    box.fail_next(fault)

    with pytest.raises(httpx.ReadTimeout):
        client.get(f"/conversations/{first_of(box)}/messages", timeout=0.1)
    after = get_page(client, first_of(box))

    assert after.status_code == 200


def test_a_stall_can_end(box: Sandbox, ask: Ask) -> None:
    box.set_options(stall_seconds=0.05)

    with pytest.raises((httpx.RemoteProtocolError, httpx.ReadError)):
        ask("stall")


def test_a_drip_outlasts_every_read_timeout(box: Sandbox, client: httpx.Client) -> None:
    box.fail_next("drip")

    with client.stream("GET", f"/conversations/{first_of(box)}/messages", timeout=2.0) as answer:
        first, second, *_ = (next(pieces) for pieces in [answer.iter_raw()] * 2)

    assert first + second == b'{"'


def test_a_drip_sends_the_complete_body_in_the_end(box: Sandbox, ask: Ask) -> None:
    box.set_options(drip_seconds=0)

    page = ask("drip").json()

    assert page["total"] == 10


def test_latency_delays_every_answer(box: Sandbox, client: httpx.Client) -> None:
    box.set_options(latency_seconds=0.05, latency_jitter_seconds=0.01)
    began = monotonic()

    get_page(client, first_of(box))

    assert monotonic() - began >= 0.05


def test_a_pinned_fault_stays_until_it_is_fixed(box: Sandbox, client: httpx.Client) -> None:
    broken, sound, *_ = box.conversations

    box.break_conversation(broken, "500")
    statuses = [get_page(client, each).status_code for each in (broken, sound, broken)]
    box.repair(broken)
    after = get_page(client, broken).status_code

    assert statuses == [500, 200, 500]
    assert after == 200


def test_links_can_be_broken_permanently(box: Sandbox, client: httpx.Client) -> None:
    box.break_conversation("links", "503:json")

    answers = [get_links(client, box, *box.phones) for _ in range(2)]

    assert [answer.status_code for answer in answers] == [503, 503]


def test_only_what_exists_can_be_pinned_or_queued(box: Sandbox) -> None:
    with pytest.raises(ValueError, match="no conversation conv_nobody"):
        box.break_conversation("conv_nobody", "500")
    with pytest.raises(ValueError, match="no fault '418'"):
        box.break_conversation(first_of(box), "418")
    with pytest.raises(ValueError, match="does not have the form 'xml'"):
        box.fail_next("ok", "500:xml")


def test_queued_faults_occur_in_order_of_arrival(box: Sandbox, client: httpx.Client) -> None:
    box.fail_next("401", "ok", "429")

    statuses = [get_page(client, first_of(box)).status_code for _ in range(4)]

    assert statuses == [401, 200, 429, 200]


def test_equal_seeds_fail_equal_requests(start: StartBox, connect: Connect) -> None:
    rates = {"401": 0.2, "500": 0.2, "429": 0.1}
    boxes = [start(seed=seed, rates=rates) for seed in (3, 3, 4)]

    once, again, other = (
        [get_page(client, first_of(box)).status_code for _ in range(60)]
        for box, client in [(box, connect(box)) for box in boxes]
    )

    assert once == again
    assert once != other
    assert set(once) == {200, 401, 429, 500}


@pytest.mark.slow
def test_mixed_faults_contain_every_passing_fault_at_about_its_rate(
    start: StartBox, connect: Connect
) -> None:
    box = start(mixed=0.2, gateway_timeout_seconds=0.001, stall_seconds=0.001)
    client = connect(box)

    for _ in range(400):
        try:
            get_page(client, first_of(box))
        except httpx.TransportError:
            continue

    faults = box.stats().faults
    assert set(faults) == set(PASSING)
    assert 50 < sum(faults.values()) < 115


def test_every_fault_has_been_described() -> None:
    assert all(text and not text.endswith(".") for text in FAULTS.values())


def test_no_fault_occurs_after_its_rate_is_zero(box: Sandbox, client: httpx.Client) -> None:
    box.set_options(rates={"500": 1.0})
    broken = get_page(client, first_of(box)).status_code

    box.set_options(rates={})

    assert broken == 500
    assert walk(client, first_of(box))[::-1] == box.truth(first_of(box))
