"""The gateway client: the requests that it sends to the fake gateway, and every kind of answer."""

from __future__ import annotations

import asyncio
import json
import logging
import pickle
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any, TypeVar

import aiohttp
import httpx
import pytest
from pydantic import SecretStr

from imbrace_lake.errors import (
    AccessBlocked,
    BadRequest,
    ConversationForbidden,
    ConversationNotFound,
    GatewayDown,
    GatewayError,
    GatewayTimeout,
    GatewayUnavailable,
    MalformedAnswer,
    OrganizationMismatch,
    RateLimited,
    TokenRejected,
    UnusableId,
    WrongAddress,
)
from imbrace_lake.gateway.client import MAX_URL_BYTES, GatewayClient, link_batches
from imbrace_lake.gateway.limiter import RequestLimiter
from imbrace_lake.gateway.models import Page
from imbrace_lake.phones.numbers import PhoneNumber
from imbrace_sandbox import Sandbox, SandboxOptions
from tests.core.conftest import StartBox, client_of, played

T = TypeVar("T")

PASSING = ["401", "429", "500:json", "500:html", "502:text", "503:html", "504", "cut_before", "cut_body",
           "short", "lossy", "html", "not_json"]  # fmt: skip
PHONE = PhoneNumber("+886911425977")


def ask(client: GatewayClient, job: Callable[[GatewayClient], Awaitable[T]]) -> T:
    async def run() -> T:
        async with client:
            return await job(client)

    return asyncio.run(run())


def page_of(client: GatewayClient, conversation_id: str, **asked: int) -> Page:
    return ask(client, lambda each: each.get_page(conversation_id, **asked))


def first_of(box: Sandbox) -> str:
    return next(iter(box.conversations))


def newest(box: Sandbox, conversation_id: str, many: int = 100) -> list[dict[str, Any]]:
    return box.truth(conversation_id)[::-1][:many]


@pytest.fixture
def box(start: StartBox) -> Sandbox:
    """Serve a conversation of 35 messages and some others; slow proxies time out at once."""
    return start(conversations=3, sizes=(35,), gateway_timeout_seconds=0.0)


# Answers that a healthy server cannot send.
Play = (
    Callable[[httpx.Request], httpx.Response]
    | Callable[[httpx.Request], Coroutine[None, None, httpx.Response]]
)
NOWHERE = Sandbox(SandboxOptions(conversations=0))


def playing(play: Play, **options: Any) -> GatewayClient:
    return client_of(NOWHERE, open_session=played(play), **{"url": "http://played/3rd"} | options)


def body_of(ids: list[str], **fields: Any) -> dict[str, Any]:
    items = [{"_id": message_id} for message_id in ids]
    return {"items": items, "count": len(ids), "total": len(ids), "has_more": False} | fields


# -- clocks ----------------------------------------------------------------------------------------


def test_an_answer_from_a_cache_shows_no_wrong_clock() -> None:
    made = format_datetime(datetime.now(UTC) - timedelta(hours=3))

    def play(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json=body_of(["a"]), headers={"Date": made, "Age": "10800"})

    async def job(client: GatewayClient) -> float:
        await client.get_page("one")
        return client.traffic.seconds_ahead

    assert ask(playing(play), job) == pytest.approx(0, abs=60)


# -- conditional requests --------------------------------------------------------------------------


def test_a_head_is_recognized_by_its_etag_until_anything_in_it_changes(box: Sandbox) -> None:
    one = first_of(box)

    def head(etag: str | None) -> Page | None:
        return ask(client_of(box), lambda each: each.get_head(one, limit=20, etag=etag))

    first = head(None)
    assert first is not None
    assert first == page_of(client_of(box), one, limit=20)
    assert head(first.etag) is None
    box.edit(one, [first.ids[-1]])
    second = head(first.etag)
    assert second is not None
    assert (second.ids, second.etag != first.etag) == (first.ids, True)
    # A message below the head changes the count.
    box.delete(one, [box.truth(one)[0]["_id"]])
    assert head(second.etag) is not None
    assert page_of(client_of(box), one, skip=20).etag == ""


# -- temporary faults ----------------------------------------------------------------------------------


@pytest.mark.usefixtures("quick_gate")
@pytest.mark.parametrize("fault", PASSING)
def test_a_temporary_fault_costs_only_a_retry(box: Sandbox, fault: str) -> None:
    conversation_id = first_of(box)
    box.fail_next("ok", fault, fault)

    async def twice(client: GatewayClient) -> Page:
        await client.get_page(conversation_id, limit=20)
        return await client.get_page(conversation_id, limit=20)

    client = client_of(box)
    page = ask(client, twice)

    # A page that is too slow is requested again at half its length, and again at half of that.
    expected = 10 if fault == "504" else 20
    assert page.items == newest(box, conversation_id, expected)
    assert (page.total_count, page.has_more, page.count_matches) == (35, True, True)
    # The transport sends a request again if it was lost on a reused connection.
    assert client.traffic.requests == client.traffic.retries + 2
    assert sum(box.stats().requests.values()) == 4


@pytest.mark.usefixtures("quick_gate")
@pytest.mark.parametrize("fault", [fault for fault in PASSING if fault not in ("short", "lossy")])
def test_links_survive_temporary_faults(box: Sandbox, fault: str) -> None:
    box.fail_next(fault, fault)
    phones = [PhoneNumber(phone) for phone in box.phones]

    links = ask(client_of(box), lambda client: client.get_links(phones))

    assert {(link.phone, link.conversation_id) for link in links.links} == {
        (phone, conversation_id) for phone, ids in box.links.items() for conversation_id in ids
    }
    assert links.missing == ()


@pytest.mark.parametrize("fault", ["stall", "stall_body", "drip"])
def test_an_answer_that_never_ends_is_abandoned_in_time(box: Sandbox, fault: str) -> None:
    conversation_id = first_of(box)
    box.fail_next(fault)

    client = client_of(box, timeout_seconds=0.5)
    page = page_of(client, conversation_id)

    assert page.items == newest(box, conversation_id)
    assert client.traffic.retries == 1


# -- permanent faults -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "error", "requests"),
    [
        ("401", TokenRejected, 4),
        ("403", ConversationForbidden, 1),
        ("400", BadRequest, 1),
        ("404", ConversationNotFound, 1),
        ("500", GatewayUnavailable, 6),
        ("502", GatewayUnavailable, 6),
        ("503", GatewayUnavailable, 6),
        ("504", GatewayUnavailable, 6),
        ("cut_before", GatewayUnavailable, 6),
        ("cut_body", GatewayUnavailable, 6),
        ("html", MalformedAnswer, 6),
        ("not_json", MalformedAnswer, 6),
    ],
)
def test_a_permanent_fault_ends_the_request_after_its_tries(
    box: Sandbox, fault: str, error: type[GatewayError], requests: int
) -> None:
    conversation_id = first_of(box)
    box.break_conversation(conversation_id, fault)
    client = client_of(box)

    with pytest.raises(error) as caught:
        page_of(client, conversation_id)

    assert client.traffic.requests == requests
    assert caught.value.path == f"/conversations/{conversation_id}/messages"
    assert caught.value.is_fatal == (fault == "401")
    assert caught.value.is_transient == (requests == 6)


def test_a_wrong_token_is_believed_after_four_tries(box: Sandbox) -> None:
    with pytest.raises(TokenRejected, match="does not accept the token"):
        page_of(client_of(box, token=SecretStr("api_wrong")), first_of(box))

    assert sum(box.stats().requests.values()) == 4


@pytest.mark.parametrize("status", [200, 404, 401, 500, 429])
def test_a_401_of_the_last_conversation_is_compared_with_one_that_was_accepted(status: int) -> None:
    answers = iter([httpx.Response(200, json=body_of(["a"]))])
    missing = {"success": False, "message": "Conversation not found"}

    def play(request: httpx.Request) -> httpx.Response:
        if "/bad/" in request.url.path:
            return httpx.Response(401)
        return next(answers, httpx.Response(status, json=missing if status == 404 else body_of(["a"])))

    async def job(client: GatewayClient) -> None:
        await client.get_page("good")
        await client.get_page("bad")

    with pytest.raises(GatewayError, match="does not accept the token") as caught:
        ask(playing(play, patience_seconds=0.0), job)

    is_good = status in (200, 404)
    assert type(caught.value) is (GatewayUnavailable if is_good else TokenRejected)
    assert ("although it does for other requests" in str(caught.value)) == is_good


def test_a_token_that_expires_is_probed_once_for_all_conversations(box: Sandbox) -> None:
    async def job(client: GatewayClient) -> None:
        good, *others = sorted(box.conversations)
        await client.get_page(good)
        box.set_options(token_expired=True)
        answers = await asyncio.gather(*map(client.get_page, others), return_exceptions=True)
        assert {type(one) for one in answers} == {TokenRejected}
        assert box.stats().statuses["401"] == 4 * len(others) + 1

    ask(client_of(box), job)


def test_a_401_that_only_one_conversation_meets_does_not_end_the_run() -> None:
    async def play(request: httpx.Request) -> httpx.Response:
        await asyncio.sleep(0)
        is_bad = "/bad/" in request.url.path
        return httpx.Response(401) if is_bad else httpx.Response(200, json=body_of(["a"]))

    async def job(client: GatewayClient) -> None:
        bad = asyncio.create_task(client.get_page("bad"))
        while not bad.done():
            await client.get_page("good")
        await bad

    with pytest.raises(GatewayUnavailable, match="does not accept the token here") as caught:
        ask(playing(play), job)

    assert caught.value.is_transient
    assert not caught.value.is_fatal


def test_a_401_is_tried_as_often_as_other_failures_while_another_conversation_is_answered() -> None:
    rejections = iter([httpx.Response(401)] * 5)

    async def play(request: httpx.Request) -> httpx.Response:
        await asyncio.sleep(0)
        answer = httpx.Response(200, json=body_of(["a"]))
        return next(rejections, answer) if "/bad/" in request.url.path else answer

    async def job(client: GatewayClient) -> Page:
        bad = asyncio.create_task(client.get_page("bad"))
        while not bad.done():
            await client.get_page("good")
        return await bad

    assert ask(playing(play), job).ids == ["a"]


def test_the_message_of_a_403_names_both_organizations(box: Sandbox) -> None:
    client = client_of(box, organization="org_other")

    with pytest.raises(
        OrganizationMismatch, match="belongs to organization org_sandbox, not to org_other"
    ) as caught:
        ask(client, lambda each: each.get_links([PHONE]))

    assert client.traffic.requests == 1
    assert caught.value.is_fatal


def test_a_403_without_details_names_the_requested_organization() -> None:
    client = playing(lambda request: httpx.Response(403, text="Forbidden"), organization="org_mine")

    with pytest.raises(OrganizationMismatch, match="does not belong to organization org_mine"):
        page_of(client, "c")


@pytest.mark.parametrize("ask_for", [lambda each: each.get_links([PHONE]), lambda each: each.get_page("c")])
def test_a_403_with_a_page_is_that_of_a_firewall(ask_for: Any) -> None:
    page = "\n<!DOCTYPE html><html><title>Access Denied</title></html>"
    client = playing(lambda request: httpx.Response(403, text=page))

    with pytest.raises(
        AccessBlocked, match="something in front of the gateway, such as a firewall"
    ) as caught:
        ask(client, ask_for)

    assert caught.value.is_fatal
    assert "organization" not in f"{caught.value}{caught.value.advice}"


FORBIDDEN = ["403", "403:plain", "403:html", "403:other"]


@pytest.mark.parametrize("fault", FORBIDDEN)
@pytest.mark.parametrize("before", ["nothing", "links", "page"])
def test_a_403_on_one_conversation_is_its_own_error(box: Sandbox, before: str, fault: str) -> None:
    forbidden, other, *_ = box.conversations
    box.break_conversation(forbidden, fault)

    async def read(client: GatewayClient) -> GatewayError:
        if before == "links":
            await client.get_links([PhoneNumber(phone) for phone in box.phones])
        if before == "page":
            await client.get_page(other)
        with pytest.raises(ConversationForbidden) as caught:
            await client.get_page(forbidden)
        await client.get_page(other)
        return caught.value

    client = client_of(box)
    error = ask(client, read)

    assert (error.is_fatal, error.is_transient) == (False, False)
    assert "forbids access to this conversation (status 403)" in str(error)
    assert "belongs to" not in str(error)
    # Without an earlier answer, one harmless request decides.
    assert client.traffic.requests <= 4


@pytest.mark.parametrize("fault", FORBIDDEN)
def test_many_forbidden_conversations_at_once_cost_one_probe(start: StartBox, fault: str) -> None:
    box = start(conversations=20)
    for one in box.conversations:
        box.break_conversation(one, fault)

    async def read(client: GatewayClient) -> list[Any]:
        return await asyncio.gather(*map(client.get_page, box.conversations), return_exceptions=True)

    errors = ask(client_of(box), read)

    assert {type(error) for error in errors} == {ConversationForbidden}
    assert box.stats().requests.get("links", 0) <= 20
    assert sum(box.stats().requests.values()) <= 40


@pytest.mark.parametrize("fault", FORBIDDEN)
def test_a_wrong_organization_is_found_by_messages_too(box: Sandbox, fault: str) -> None:
    """The messages endpoint does not receive the organization, so it cannot check it."""
    box.break_conversation(first_of(box), fault)
    client = client_of(box, organization="org_mine")

    with pytest.raises(OrganizationMismatch, match="org_mine") as caught:
        page_of(client, first_of(box))

    assert caught.value.is_fatal


def test_a_403_on_links_that_worked_before_concerns_only_its_numbers(box: Sandbox) -> None:
    async def read(client: GatewayClient) -> None:
        await client.get_links([PHONE])
        box.break_conversation("links", "403:plain")
        await client.get_links([PHONE])

    with pytest.raises(BadRequest, match="forbids this request") as caught:
        ask(client_of(box), read)

    assert not caught.value.is_fatal


def test_the_same_organization_is_never_reported_as_another(box: Sandbox) -> None:
    box.break_conversation("links", "403")
    with pytest.raises(GatewayError) as caught:
        ask(client_of(box), lambda each: each.get_links([PHONE]))

    assert "not to" not in str(caught.value)


@pytest.mark.parametrize(
    ("body", "reported"),
    [
        ({"message": "Unauthorized - Invalid third party token"}, "which may have expired"),
        ({"message": "Unauthorized"}, "which may have expired"),
        ({"message": "Unauthorized - missing x-access-token"}, "removes the header x-access-token"),
        ({"message": {"text": 7}}, "which may have expired"),
        (["Unauthorized"], "which may have expired"),
    ],
)
def test_the_message_of_a_401_states_its_possible_causes(body: Any, reported: str) -> None:
    with pytest.raises(TokenRejected, match=reported) as caught:
        page_of(playing(lambda request: httpx.Response(401, json=body)), "c")

    assert "expire" in caught.value.advice
    assert caught.value.is_fatal


def test_an_expired_token_is_rejected_as_possibly_expired(box: Sandbox) -> None:
    box.set_options(token_expired=True)

    with pytest.raises(TokenRejected, match="which may have expired"):
        page_of(client_of(box), first_of(box))


@pytest.mark.parametrize("status", ["301", "302", "307", "308"])
def test_a_redirect_is_reported_with_its_target_and_not_followed(box: Sandbox, status: str) -> None:
    one = first_of(box)
    box.break_conversation(one, status)
    box.break_conversation("links", status)

    for job in (lambda each: each.get_page(one), lambda each: each.get_links([PHONE])):
        box.reset_stats()
        with pytest.raises(WrongAddress) as caught:
            ask(client_of(box), job)
        reported = f"redirects with status {status} to https://login.example.invalid/sso: is {box.url}"
        assert reported in str(caught.value)
        assert PHONE[1:] not in str(caught.value)
        assert sum(box.stats().requests.values()) == 1


@pytest.mark.parametrize("status", [300, 304, 305, 306])
def test_a_status_of_3xx_that_names_no_other_address_is_not_called_a_redirect(status: int) -> None:
    async def play(request: httpx.Request) -> httpx.Response:
        return httpx.Response(status)

    with pytest.raises(BadRequest, match=f"the gateway answers with status {status} instead of 200"):
        ask(playing(play), lambda client: client.get_page("c"))


@pytest.mark.parametrize("conversation_id", [".", "..", "a/../b", "../..", "..\\x", "x/.", "", "\ud800"])
def test_an_id_that_would_change_the_url_is_rejected_and_not_sent(box: Sandbox, conversation_id: str) -> None:
    client = client_of(box)
    for job in (
        lambda each: each.get_page(conversation_id),
        lambda each: each.get_head(conversation_id, limit=5, etag=None),
        lambda each: each.get_counts(conversation_id),
    ):
        with pytest.raises(UnusableId, match="cannot be part of a URL") as caught:
            ask(client_of(box), job)
        assert (caught.value.is_fatal, caught.value.is_transient) == (False, False)

    assert client.traffic.requests == 0
    assert box.stats().requests == {}


@pytest.mark.parametrize(
    "theirs",
    [
        "\x1b[31mred", "<img src=x onerror=alert(1)>", "x" * 7_000, "req-886911425977", "a b", "`id`",
        NOWHERE.options.token, NOWHERE.options.token[4:], f"t={NOWHERE.options.token.upper()}", "[x](http://e)",
    ],
)  # fmt: skip
@pytest.mark.parametrize("status", [200, 400, 401, 403, 404, 500])
def test_a_request_id_that_is_not_plain_is_replaced_by_our_own(theirs: str, status: int) -> None:
    def play(request: httpx.Request) -> httpx.Response:
        return httpx.Response(status, text="{", headers=[(b"x-request-id", theirs.encode())])

    with pytest.raises(GatewayError) as caught:
        page_of(playing(play, tries=1), "c")

    assert caught.value.request_id.startswith("lake-")
    assert theirs not in str(caught.value)


@pytest.mark.parametrize(
    "theirs", ["<b>org</b>", "org_\x1b[31m", "org_" + "x" * 9_000, "886911425977", 7, None]
)
def test_an_organization_that_is_not_plain_is_shown_printable(theirs: Any) -> None:
    body = {"message": "Forbidden - organization mismatch", "details": {"expected": theirs}}

    with pytest.raises(OrganizationMismatch) as caught:
        ask(playing(lambda request: httpx.Response(403, json=body)), lambda each: each.get_links([PHONE]))

    shown = str(caught.value)
    assert shown.isprintable()
    assert len(shown) < 400
    assert not [text for text in ("<b>", "\x1b", "886911425977") if text in shown]


@pytest.mark.parametrize(
    ("length", "error"), [(5_000, BadRequest), (9_000, UnusableId), (100_000, UnusableId)]
)
def test_an_id_of_any_length_makes_a_short_message(length: int, error: type[GatewayError]) -> None:
    with pytest.raises(error) as caught:
        page_of(playing(lambda request: httpx.Response(400)), "x" * length)

    assert len(str(caught.value)) < 500


def test_the_counts_are_read_as_they_were_sent(box: Sandbox) -> None:
    counts = ask(client_of(box), lambda each: each.get_counts(first_of(box)))

    assert (counts.items, counts.count, counts.total, counts.has_flag) == (1, 35, 1, True)


@pytest.mark.parametrize(
    "body",
    [
        {"message": "Cannot GET /wrong/conversations/links", "error": "Not Found", "statusCode": 404},
        {"message": "Not Found"},
        {"error": "no route"},
        ["conversation not found"],
        "<html>nginx 404: conversation not found</html>",
        "",
    ],
)
def test_a_404_in_other_words_than_the_gateways_is_an_error(body: Any) -> None:
    text = body if isinstance(body, str) else json.dumps(body)

    with pytest.raises(BadRequest, match="is http://played/3rd the right address"):
        ask(playing(lambda request: httpx.Response(404, text=text)), lambda each: each.get_links([PHONE]))
    with pytest.raises(BadRequest, match="right address"):
        page_of(playing(lambda request: httpx.Response(404, text=text)), "c")


def test_numbers_without_any_conversation_are_not_an_error(box: Sandbox) -> None:
    links = ask(client_of(box), lambda client: client.get_links([PHONE]))

    assert (links.links, links.missing) == ((), ())


def test_a_conversation_that_vanished_is_not_found_at_once(box: Sandbox) -> None:
    box.vanish(first_of(box))

    with pytest.raises(ConversationNotFound):
        page_of(client_of(box), first_of(box))

    assert sum(box.stats().requests.values()) == 1


def test_an_unreachable_gateway_is_unavailable() -> None:
    with Sandbox(SandboxOptions(conversations=1)) as box:
        url = box.url
    client = client_of(box, url=url, tries=3)

    with pytest.raises(GatewayUnavailable, match="the connection to the gateway failed"):
        page_of(client, "c")

    assert client.traffic.requests == 3


@pytest.mark.parametrize(
    ("status", "error"),
    [(302, BadRequest), (414, BadRequest), (408, GatewayUnavailable), (530, GatewayUnavailable)],
)
def test_any_other_status_is_an_error_that_states_it(status: int, error: type[GatewayError]) -> None:
    with pytest.raises(error, match=f"status {status}"):
        page_of(playing(lambda request: httpx.Response(status)), "c")


# -- rate limits -------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.usefixtures("quick_gate")
def test_a_429_pauses_the_limiter_for_all_requests_and_one_request_ends_the_pause(start: StartBox) -> None:
    box = start(conversations=12, budget_requests=6, budget_window_seconds=0.4)
    limiter = RequestLimiter(max_in_flight=4)
    ids = list(box.conversations)

    async def all_of_them(client: GatewayClient) -> list[Page]:
        return await asyncio.gather(*(client.get_page(each) for each in ids * 2))

    pages = ask(client_of(box, limiter), all_of_them)

    assert [page.items for page in pages] == [newest(box, each) for each in ids * 2]
    # At the end of a window of six, at most the four requests under way get a 429; then one goes at a time,
    # ever more slowly. A client without a pause would have got thousands of 429 answers.
    assert 0 < box.stats().refused == limiter.rate_limited < 60


def test_no_request_is_sent_while_the_limiter_is_paused(
    box: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    conversation_id = first_of(box)
    box.fail_next("429")

    async def during_the_pause(client: GatewayClient) -> int:
        first = asyncio.create_task(client.get_page(conversation_id))
        while not client.limiter.pause_seconds():  # noqa: ASYNC110 - the limiter has no event to wait for
            await asyncio.sleep(0.001)
        others = [asyncio.create_task(client.get_page(conversation_id)) for _ in range(5)]
        for _ in range(20):
            await asyncio.sleep(0)
        sent = client.traffic.requests
        for task in (first, *others):
            task.cancel()
        await asyncio.gather(first, *others, return_exceptions=True)
        return sent

    assert ask(client_of(box), during_the_pause) == 1


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_a_retry_after_is_obeyed(form: str) -> None:
    wait = (
        "30" if form == "seconds" else format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    )
    client = playing(lambda request: httpx.Response(429, headers={"Retry-After": wait}))

    async def until_closed(each: GatewayClient) -> float:
        task = asyncio.create_task(each.get_page("c"))
        while not each.limiter.pause_seconds():  # noqa: ASYNC110
            await asyncio.sleep(0)
        task.cancel()
        return each.limiter.pause_seconds()

    assert 28 < ask(client, until_closed) <= 30


@pytest.mark.usefixtures("quick_gate")
@pytest.mark.parametrize(
    "hint", ["soon", "-5", "0", "inf", "nan", "Fri, 99 Foo 2020", "Wed, 21 Oct 2015 07:28:00 GMT"]
)
def test_an_invalid_retry_after_does_no_harm(hint: str) -> None:
    answers = iter([httpx.Response(429, headers={"Retry-After": hint})] * 3)

    page = page_of(playing(lambda request: next(answers, httpx.Response(200, json=body_of(["a"])))), "c")

    assert page.ids == ["a"]


def test_a_pause_beyond_the_patience_ends_all_waiting_requests() -> None:
    refusals = Counter[str]()

    async def limit(request: httpx.Request) -> httpx.Response:
        refusals[request.url.path] += 1
        await asyncio.sleep(0.01)
        return httpx.Response(429, headers={"Retry-After": "3600"})

    async def many(client: GatewayClient) -> list[Any]:
        jobs = (client.get_page(f"c{n}") for n in range(20))
        crowd = await asyncio.gather(*jobs, return_exceptions=True)
        latecomer = await asyncio.gather(client.get_page("late"), return_exceptions=True)
        return [*crowd, *latecomer]

    errors = ask(playing(limit, limiter=RequestLimiter(max_in_flight=4), patience_seconds=60.0), many)

    assert [type(error) for error in errors] == [RateLimited] * 21
    assert [error.path for error in errors[:20]] == [f"/conversations/c{n}/messages" for n in range(20)]
    assert refusals.total() == 4
    assert "/3rd/conversations/late/messages" not in refusals


def test_requests_wait_for_endless_429_answers_no_longer_than_the_patience(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("imbrace_lake.gateway.limiter.FIRST_PAUSE_SECONDS", 0.001)
    client = playing(lambda request: httpx.Response(429), patience_seconds=0.02)

    with pytest.raises(RateLimited, match=r"over 0.02 s"):
        page_of(client, "c")

    assert 2 <= client.traffic.requests < 20


# -- outages --------------------------------------------------------------------------------------


def disconnect(request: httpx.Request) -> httpx.Response:
    raise aiohttp.ServerDisconnectedError("no server listens")


def time_out(request: httpx.Request) -> httpx.Response:
    raise aiohttp.SocketTimeoutError("no answer")


@pytest.mark.parametrize(
    "fail",
    [
        disconnect,
        time_out,
        lambda request: httpx.Response(503),
        lambda request: httpx.Response(502, html="<h1>Bad gateway</h1>"),
        lambda request: httpx.Response(200, html="<h1>Maintenance</h1>"),
    ],
    ids=["connection", "time-out", "503", "502", "page"],
)
def test_an_outage_ends_the_run_once_no_request_has_succeeded_for_long(fail: Play) -> None:
    async def job(client: GatewayClient) -> tuple[list[GatewayError], GatewayError]:
        failed: list[GatewayError] = []
        while True:
            try:
                await client.get_page(f"c{len(failed)}")
            except GatewayDown as exc:
                return failed, exc
            except GatewayError as exc:
                failed.append(exc)

    failed, last = ask(playing(fail, tries=2, outage_seconds=0.2), job)

    assert failed
    assert all(one.is_transient and not one.is_fatal for one in failed)
    assert (last.is_transient, last.is_fatal) == (False, True)
    assert last.reason.startswith("no request has succeeded for over 0.2 s, and of the last one: ")


def test_an_outage_of_a_gateway_that_hangs_began_with_the_first_request_without_an_answer(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("imbrace_lake.gateway.client.OUTAGE_SECONDS", 0.2)

    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # Until the client closes the connection.
        await reader.read()
        writer.close()
        closed.release()

    closed = asyncio.Semaphore(0)

    async def run() -> tuple[float, float]:
        server = await asyncio.start_server(hang, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        url = f"http://127.0.0.1:{port}/3rd"
        async with client_of(NOWHERE, url=url, timeout_seconds=0.5, tries=1) as client:
            pages = [asyncio.ensure_future(client.get_page(one)) for one in ("a", "b")]
            await asyncio.sleep(0.3)
            silent = client.traffic.silent_seconds
            assert client.traffic.failing_since is None
            await asyncio.wait(pages)
            assert all(isinstance(page.exception(), GatewayTimeout) for page in pages)
            failing = client.traffic.failing_seconds
        server.close()
        for _ in pages:
            await closed.acquire()
        await asyncio.sleep(0.01)
        return silent, failing

    silent, failing = asyncio.run(run())

    assert silent >= 0.25
    assert failing >= 0.45
    (warning,) = (one.getMessage() for one in caplog.records if one.levelno == logging.WARNING)
    assert warning.startswith("no request to the gateway has succeeded for ")


def test_a_gateway_that_answers_other_requests_is_not_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run(client: GatewayClient) -> tuple[float | None, float]:
        slow = asyncio.ensure_future(client.get_page("slow"))
        await asyncio.sleep(0.3)
        await client.get_page("fast")
        silent = client.traffic.silent_seconds
        slow.cancel()
        await asyncio.wait([slow])
        return client.traffic.waiting_since, silent

    async def play(request: httpx.Request) -> httpx.Response:
        if "slow" in request.url.path:
            await asyncio.sleep(60)
        return httpx.Response(200, json=body_of(["a"]))

    waiting_since, silent = ask(playing(play), run)

    assert silent < 0.2
    # A request that was cancelled waits no more.
    assert waiting_since is None


@pytest.mark.parametrize("works", [200, 404, 429])
def test_an_outage_is_logged_once_and_so_is_its_end(
    works: int, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("imbrace_lake.gateway.client.OUTAGE_SECONDS", 0.01)
    statuses = iter([503, 503, 503, works, 200, 200])
    bodies = {404: {"message": "Conversation not found"}, 429: {}}

    def play(request: httpx.Request) -> httpx.Response:
        status = next(statuses)
        return httpx.Response(status, json=bodies.get(status, body_of(["a"])))

    async def job(client: GatewayClient) -> None:
        for _ in range(3):
            with suppress(ConversationNotFound, GatewayUnavailable):
                await client.get_page("c")
            await asyncio.sleep(0.02)

    ask(playing(play, tries=2), job)

    outage, end = (one.getMessage() for one in caplog.records if one.levelno == logging.WARNING)
    assert outage.startswith("no request to the gateway has succeeded for 0 s, and the run tries again: ")
    assert end == "the gateway answers again, after 0 s"


@pytest.mark.parametrize("works", [200, 404])
def test_a_failure_long_after_another_is_no_outage_if_a_request_succeeded_between_them(works: int) -> None:
    statuses = iter([503, works, 503, works])

    def play(request: httpx.Request) -> httpx.Response:
        status = next(statuses)
        body = {"message": "Conversation not found"} if status == 404 else body_of(["a"])
        return httpx.Response(status, json=body)

    async def job(client: GatewayClient) -> None:
        for _ in range(2):
            with suppress(ConversationNotFound):
                await client.get_page("c")
            await asyncio.sleep(0.06)

    ask(playing(play, tries=2, outage_seconds=0.05), job)

    assert next(statuses, None) is None


def test_a_gateway_that_limits_the_rate_is_not_down() -> None:
    statuses = iter([503, 429, 503, 200])

    def play(request: httpx.Request) -> httpx.Response:
        return httpx.Response(next(statuses), json=body_of(["a"]), headers={"Retry-After": "1"})

    page_of(playing(play, tries=3, outage_seconds=0.5), "c")

    assert next(statuses, None) is None


# -- slow and short pages -------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [100, 15, 4])
def test_a_slow_page_is_requested_again_at_half_its_length_down_to_a_minimum(limit: int) -> None:
    asked: list[int] = []

    def late(request: httpx.Request) -> httpx.Response:
        asked.append(int(request.url.params["limit"]))
        if len(asked) == 2:
            raise aiohttp.SocketTimeoutError("late")
        return httpx.Response(504, text="upstream request timeout")

    with pytest.raises(GatewayUnavailable):
        page_of(playing(late), "c", limit=limit)

    assert asked == {100: [100, 50, 25, 12, 10, 10], 15: [15, 10, 10, 10, 10, 10], 4: [4] * 6}[limit]


def test_a_page_that_is_shorter_because_it_was_slow_is_accepted(box: Sandbox) -> None:
    conversation_id = first_of(box)

    async def twice(client: GatewayClient) -> Page:
        await client.get_page(conversation_id)
        box.fail_next("504")
        return await client.get_page(conversation_id, limit=34)

    client = client_of(box)
    page = ask(client, twice)

    assert page.items == newest(box, conversation_id, 17)
    assert client.traffic.requests == 3


@pytest.mark.parametrize("fault", ["short", "lossy"])
def test_a_page_that_always_lacks_something_is_returned_unchanged(box: Sandbox, fault: str) -> None:
    """The walk decides whether it can be proven without the missing messages."""
    whole = body_of([f"m{n}" for n in range(10)], count=30, total=10, has_more=True)
    total = 10 if fault == "short" else 9
    cut = body_of([f"m{n}" for n in range(9)], count=30, total=total, has_more=True)
    bodies = iter([whole, *[cut] * 9])

    async def twice(client: GatewayClient) -> Page:
        await client.get_page("c", limit=10)
        return await client.get_page("c", limit=10)

    client = playing(lambda request: httpx.Response(200, json=next(bodies)))
    page = ask(client, twice)

    assert (len(page.ids), page.total_count, page.count_matches) == (9, 30, fault == "lossy")
    assert client.traffic.requests == 1 + 3


def test_a_page_that_contradicts_itself_about_more_messages_is_requested_again() -> None:
    odd = body_of(["a", "b"], count=5, total=2, has_more=False)
    right = body_of(["a", "b"], count=5, total=2, has_more=True)
    bodies = iter([odd, right])

    page = page_of(playing(lambda request: httpx.Response(200, json=next(bodies))), "c", limit=2)

    assert page.has_more is True


def test_a_page_without_counts_is_accepted() -> None:
    body = {"items": [{"_id": "a"}]}

    page = page_of(playing(lambda request: httpx.Response(200, json=body)), "c")

    assert (page.ids, page.total_count, page.has_more) == (["a"], None, None)


def test_a_server_with_the_total_count_in_both_fields_is_recognized_after_the_first_retries() -> None:
    def both(request: httpx.Request) -> httpx.Response:
        skip, limit = int(request.url.params["skip"]), int(request.url.params["limit"])
        ids = [f"m{n}" for n in range(skip, min(200, skip + limit))]
        return httpx.Response(200, json=body_of(ids, count=200, total=200, has_more=skip + limit < 200))

    async def read(client: GatewayClient) -> list[str]:
        pages = [await client.get_page("c", skip=skip, limit=20) for skip in range(0, 200, 20)]
        return [message_id for page in pages for message_id in page.ids]

    client = playing(both)

    assert ask(client, read) == [f"m{n}" for n in range(200)]
    assert client.traffic.requests == 10 + 2


def test_a_server_with_other_counts_is_accepted_whatever_the_number_of_tries() -> None:
    def serve(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json=body_of(["a", "b", "c"], count=7))

    page = ask(playing(serve, tries=1), lambda client: client.get_page("c"))

    assert len(page.ids) == 3


def test_a_server_that_begins_to_send_shorter_pages_is_soon_accepted() -> None:
    cap = 50

    def serve(request: httpx.Request) -> httpx.Response:
        skip = int(request.url.params["skip"])
        ids = [f"m{n}" for n in range(skip, min(400, skip + cap))]
        return httpx.Response(
            200, json=body_of(ids, count=400, total=len(ids), has_more=skip + len(ids) < 400)
        )

    async def read(client: GatewayClient) -> int:
        nonlocal cap
        await client.get_page("c")
        cap = 20
        for skip in range(50, 400, 20):
            await client.get_page("c", skip=skip)
        return client.traffic.requests

    assert ask(playing(serve), read) == 1 + 18 + 2


@pytest.mark.parametrize(
    "body",
    [
        "",
        "{",
        "null",
        "7",
        '"x"',
        "[]",
        '{"items": {}}',
        '{"items": [7]}',
        '{"items": [{}]}',
        '{"items": [NaN]}',
    ],
)
def test_a_body_that_is_not_a_page_is_an_error_with_the_request_id(body: str) -> None:
    def play(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, text=body, headers={"x-request-id": "theirs-7"})

    with pytest.raises(MalformedAnswer) as caught:
        page_of(playing(play, tries=2), "c")

    assert caught.value.request_id == "theirs-7"
    assert "theirs-7" in str(caught.value)


UUID, OTHER_UUID = "0b8e6f3c-5d1a-4c7e-9f20-3a4b5c6d7e8f", "11111111-5d1a-4c7e-9f20-3a4b5c6d7e8f"


def named(field: str, *values: Any, **fields: Any) -> GatewayClient:
    """Return a client for a page with a message for each value of a field; None for a message without it."""
    items = [
        {"_id": f"m{number}"} | ({} if value is None else {field: value})
        for number, value in enumerate(values)
    ]
    body = {"items": items, "count": len(items), "total": len(items), "has_more": False} | fields
    return playing(lambda request: httpx.Response(200, json=body), tries=2, organization="org_1")


@pytest.mark.parametrize("spelling", ["{}", "conv_{}", "tcu_{}"])
@pytest.mark.parametrize("asked", ["{}", "conv_{}", "tcu_{}"])
@pytest.mark.parametrize("many", [1, 2, 100])
def test_a_page_of_another_conversation_is_malformed_however_it_is_spelled(
    asked: str, spelling: str, many: int
) -> None:
    own, other = spelling.format(UUID.upper()), spelling.format(OTHER_UUID)

    with pytest.raises(MalformedAnswer, match="all name another conversation"):
        page_of(named("conversation_id", *[other] * many), asked.format(UUID))

    assert len(page_of(named("conversation_id", *[own] * many), asked.format(UUID)).ids) == many


@pytest.mark.parametrize("many", [1, 2, 100])
def test_a_page_of_another_organization_is_malformed(many: int) -> None:
    with pytest.raises(MalformedAnswer, match="all name another organization"):
        page_of(named("organization_id", *["org_2"] * many), "c")

    assert len(page_of(named("organization_id", *["org_1"] * many), "c").ids) == many


@pytest.mark.parametrize(
    ("field", "own"), [("conversation_id", f"conv_{UUID}"), ("organization_id", "org_1")]
)
def test_a_page_is_kept_when_only_some_of_its_messages_name_another(field: str, own: str) -> None:
    for one in (own, None, "", 7, {"id": "x"}):
        assert page_of(named(field, "another", one, "another"), f"conv_{UUID}").ids == ["m0", "m1", "m2"]

    # One message of a longer conversation.
    assert page_of(named(field, "another", count=5, has_more=True), f"conv_{UUID}", limit=1).ids == ["m0"]
    assert page_of(named(field), f"conv_{UUID}").ids == []


# -- values ---------------------------------------------------------------------------------------


def test_integers_beyond_64_bits_and_lone_surrogates_survive(start: StartBox) -> None:
    box = start(conversations=0)
    items = [
        {"_id": "a", "content": {"n": 2**70, "m": -(2**64), "exact": 2**63}},
        {"_id": "b", "content": {"text": "half \ud83d and \ude00 half", "\udfff": 1}},
        {"_id": "c", "content": {"f": 0.1, "z": -0.0, "e": 1e308, "t": True, "n": None}},
    ]
    conversation_id = box.put(items)

    page = page_of(client_of(box), conversation_id)

    assert page.items == items[::-1]
    assert [*map(repr, page.items)] == [*map(repr, items[::-1])]


@pytest.mark.parametrize("conversation_id", ["a/b", "a b?c=d&limit=1#e", "%2F..%00", "対話", "a;b=c", "+"])
def test_ids_of_any_letters_reach_the_gateway_unchanged(start: StartBox, conversation_id: str) -> None:
    box = start(conversations=0)
    box.put([{"_id": "m"}], conversation_id=conversation_id)

    assert page_of(client_of(box), conversation_id).ids == ["m"]


# -- links ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", ["array", "envelope", "alternating"])
def test_both_shapes_of_the_links_mean_the_same_decoys_or_not(start: StartBox, shape: str) -> None:
    box = start(conversations=80, links_shape=shape)
    phones = [PhoneNumber(phone) for phone in box.phones]

    async def every(client: GatewayClient) -> set[tuple[str, str]]:
        found = [await client.get_links(batch) for batch in link_batches(phones, "org_sandbox", most=30)]
        return {(link.phone, link.conversation_id) for each in found for link in each.links}

    assert ask(client_of(box), every) == {
        (phone, conversation_id) for phone, ids in box.links.items() for conversation_id in ids
    }


def test_a_number_missing_from_the_answer_is_unanswered_and_not_without_conversations(
    start: StartBox,
) -> None:
    box = start(conversations=20)
    phones = [PhoneNumber(phone) for phone in box.phones]
    box.fail_next("short")

    links = ask(client_of(box), lambda client: client.get_links(phones))

    assert len(links.missing) == 1
    assert not {link.phone for link in links.links} & set(links.missing)


@pytest.mark.parametrize("many", [1, 7, 400, 5_000])
@pytest.mark.parametrize("organization", ["org_sandbox", "org_" + "x" * 2_000, "組織" * 60])
def test_no_batch_makes_a_url_that_a_proxy_rejects(many: int, organization: str) -> None:
    phones = [PhoneNumber(f"+{886_911_425_977_000 + n}") for n in range(many)]
    lengths: list[int] = []

    def play(request: httpx.Request) -> httpx.Response:
        lengths.append(len(request.url.raw_path))
        return httpx.Response(404, json={"message": "No conversations found for the provided phone numbers"})

    async def every(client: GatewayClient) -> None:
        for batch in batches:
            await client.get_links(batch)

    batches = link_batches(phones, organization, most=10_000)
    ask(playing(play, organization=organization), every)

    assert [phone for batch in batches for phone in batch] == phones
    assert max(lengths) <= MAX_URL_BYTES
    assert sum(map(len, batches)) == many


def test_a_large_batch_never_meets_a_414(start: StartBox) -> None:
    box = start(conversations=0)
    phones = [PhoneNumber(f"+{886_911_425_977_000 + n}") for n in range(1_000)]

    async def every(client: GatewayClient) -> None:
        for batch in link_batches(phones, "org_sandbox", most=1_000):
            await client.get_links(batch)

    ask(client_of(box), every)

    assert set(box.stats().statuses) == {"404"}
    assert box.stats().requests["links"] <= 5


# -- requests and errors -------------------------------------------------------------------------


def test_every_request_has_the_token_and_a_unique_id() -> None:
    heads: list[httpx.Headers] = []

    def play(request: httpx.Request) -> httpx.Response:
        heads.append(request.headers)
        return httpx.Response(500)

    with pytest.raises(GatewayUnavailable) as caught:
        page_of(playing(play), "c")

    ids = [head["x-request-id"] for head in heads]
    assert len(set(ids)) == len(ids) == 6
    assert {head["x-access-token"] for head in heads} == {NOWHERE.options.token}
    assert caught.value.request_id == ids[-1]


@pytest.mark.parametrize(
    "play",
    [
        lambda request: httpx.Response(500, text="about 886911425977"),
        lambda request: httpx.Response(400, text="bad number 886911425977"),
        lambda request: httpx.Response(401),
        lambda request: httpx.Response(403, json={"details": {"expected": "org_a", "received": "org_b"}}),
        lambda request: httpx.Response(404, text="no 886911425977"),
        lambda request: httpx.Response(429, headers={"Retry-After": "99999"}),
        lambda request: httpx.Response(504),
        lambda request: httpx.Response(200, text="<html>886911425977</html>"),
        lambda request: httpx.Response(200, json=[{"phone_number": "886911425977"}]),
    ],
)
def test_errors_can_be_pickled_and_contain_no_number_and_no_token(play: Play) -> None:
    with pytest.raises(GatewayError) as caught:
        ask(playing(play), lambda client: client.get_links([PHONE]))

    error = caught.value
    copy = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own bytes
    assert type(copy) is type(error)
    assert (str(copy), copy.is_transient, copy.is_fatal) == (str(error), error.is_transient, error.is_fatal)
    assert "911425977" not in f"{error!r} {error}"
    assert NOWHERE.options.token not in f"{error!r} {error}"


@pytest.mark.parametrize("compression", ["none", "gzip", "deflate", "raw-deflate"])
def test_compressed_answers_are_read_and_traffic_counts_the_received_bytes(
    start: StartBox, compression: str
) -> None:
    box = start(conversations=3, sizes=(230,), compression=compression)
    one = first_of(box)

    async def read(client: GatewayClient) -> list[dict[str, Any]]:
        links = await client.get_links([PhoneNumber(phone) for phone in box.phones])
        assert {link.conversation_id for link in links.links} == set(box.conversations)
        pages = [await client.get_page(one, skip=skip) for skip in (0, 100, 200)]
        head = await client.get_head(one, limit=100, etag=pages[0].etag)
        assert head is None
        return [item for page in pages for item in page.items]

    client = client_of(box)

    assert ask(client, read) == newest(box, one, 230)
    assert client.traffic.size_bytes == box.stats().bytes_sent
    plain = sum(len(json.dumps(item)) for item in box.truth(one))
    assert (client.traffic.size_bytes < plain / 2) == (compression != "none")


def test_waits_between_tries_grow_and_stay_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []

    async def note(seconds: float) -> None:
        waits.append(seconds)

    monkeypatch.setattr("imbrace_lake.gateway.client.asyncio.sleep", note)
    options: dict[str, Any] = {"first_delay_seconds": 1.0, "longest_delay_seconds": 5.0, "tries": 7}

    with pytest.raises(GatewayUnavailable):
        page_of(playing(lambda request: httpx.Response(500), **options), "c")

    for wait, longest in zip(waits, (1, 2, 4, 5, 5, 5), strict=True):
        assert longest / 2 <= wait <= longest
