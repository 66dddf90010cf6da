"""Content codings, redirects, forms of 401 and 403, publishers, notes, and spellings of ids."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from imbrace_sandbox import Sandbox
from tests.sandbox.conftest import Connect, StartBox
from tests.sandbox.reading import first_of, get_page, walk


@pytest.mark.parametrize("compression", ["gzip", "deflate", "raw-deflate"])
def test_answers_are_compressed_for_clients_that_accept_it(
    start: StartBox, connect: Connect, compression: str
) -> None:
    box = start(sizes=(80,), compression=compression)
    client = connect(box)

    page = get_page(client, first_of(box), limit=80)
    plain = client.get(page.url, headers={"accept-encoding": "identity"})

    assert page.headers["content-encoding"] == compression.removeprefix("raw-")
    assert "content-encoding" not in plain.headers
    assert page.json() == plain.json()
    assert box.stats().bytes_sent == int(page.headers["content-length"]) + len(plain.content)


@pytest.mark.parametrize("status", ["301", "302", "307", "308"])
def test_a_redirect_goes_to_a_sign_in_page_with_the_address(
    box: Sandbox, client: httpx.Client, status: str
) -> None:
    box.fail_next(status)

    answer = get_page(client, first_of(box), limit=7)

    assert answer.status_code == int(status)
    assert answer.headers["location"].startswith("https://login.example.invalid/sso?next=http")
    assert "limit%3D7" in answer.headers["location"]


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("401", "Unauthorized - Invalid third party token"),
        ("401:plain", "Unauthorized"),
        ("401:missing", "Unauthorized - missing x-access-token"),
        ("403:plain", "Forbidden"),
        ("403:other", "Forbidden - organization mismatch"),
    ],
)
def test_401_and_403_have_the_known_forms(
    box: Sandbox, client: httpx.Client, fault: str, message: str
) -> None:
    box.fail_next(fault)

    answer = get_page(client, first_of(box))

    assert (answer.status_code, answer.json()["message"]) == (int(fault[:3]), message)


def test_an_expired_token_is_answered_like_a_wrong_one(box: Sandbox, client: httpx.Client) -> None:
    wrong = client.get(f"/conversations/{first_of(box)}/messages", headers={"x-access-token": "api_wrong"})
    box.set_options(token_expired=True)
    expired = get_page(client, first_of(box))

    assert (expired.status_code, expired.content) == (wrong.status_code, wrong.content)


def test_a_missing_token_has_its_own_message(box: Sandbox) -> None:
    answer = httpx.get(f"{box.url}/conversations/{first_of(box)}/messages")

    assert answer.json() == {"message": "Unauthorized - missing x-access-token"}


def test_publishers_write_what_bots_write_and_texts_for_workflows(start: StartBox, connect: Connect) -> None:
    box = start(sizes=(600,), publishers=True, comments=0.25)
    items: list[dict[str, Any]] = walk(connect(box), first_of(box), limit=100)

    published = [item for item in items if item["from"].startswith("pub_")]
    texts = [item["content"]["text"] for item in published if item["type"] == "text"]
    commented = [item for item in items if "comments" in item]

    assert len(published) > 30
    assert len({item["from"] for item in published}) == 1
    assert texts
    assert all("intent" in json.loads(text) for text in texts)
    assert 100 < len(commented) < 200
    assert commented[0]["comments"][0]["from"].keys() == {"_id", "display_name"}


@pytest.mark.parametrize("spelling", ["conv", "tcu", "bare", "mixed"])
@pytest.mark.parametrize("shape", ["array", "envelope"])
def test_three_spellings_of_an_id_are_one_conversation(
    start: StartBox, connect: Connect, spelling: str, shape: str
) -> None:
    box = start(sizes=(5,), id_spelling=spelling, links_shape=shape)
    client = connect(box)
    one = first_of(box)
    stem = one.removeprefix("conv_")

    pages = [get_page(client, each).json() for each in (one, stem, f"tcu_{stem}", stem.upper())]
    phone = next(phone for phone, ids in box.links.items() if one in ids)
    query = {"phone_numbers": phone[1:], "organization_id": "org_sandbox"}
    links = client.get("/conversations/links", params=query).text

    assert [page["count"] for page in pages] == [5] * 4
    assert box.stats().pages[one] == 4
    assert ("tcu_" in links) <= (spelling in ("tcu", "mixed"))
