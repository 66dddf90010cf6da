"""The links endpoint, and the phones behind it."""

from __future__ import annotations

from collections import Counter

import httpx
import phonenumbers

from imbrace_sandbox import Sandbox
from tests.sandbox.conftest import Connect, StartBox
from tests.sandbox.reading import conversation_of, get_links

UNKNOWN = "+85290000000"


def test_the_array_names_conversations_inside_links_only(start: StartBox, connect: Connect) -> None:
    box = start(conversations=60)

    entries = get_links(connect(box), box, *box.phones, UNKNOWN).json()

    read = {
        f"+{entry['phone_number']}": [conversation_of(each["link"]) for each in entry["conversation_links"]]
        for entry in entries
    }
    assert read == box.links | {UNKNOWN: []}


def test_links_have_different_forms_and_contain_decoys(start: StartBox, connect: Connect) -> None:
    box = start(conversations=60)

    entries = get_links(connect(box), box, *box.phones).json()

    links = [each["link"] for entry in entries for each in entry["conversation_links"]]
    assert len({link.split("/")[2] for link in links}) > 2
    assert any("?conv_id=conv_" in link for link in links)
    assert any("&conv_id=" in link for link in links)
    assert any("conv_id=%63%6f%6e%76" in link for link in links)
    assert any("conv_id%3D" in link for link in links)


def test_plain_links_are_like_the_example_of_the_vendor(start: StartBox, connect: Connect) -> None:
    box = start(plain_links=True)

    body = get_links(connect(box), box, *box.phones).text

    assert body.count("https://webapp.dev.imbrace.co/chatroom-routing?conv_id=conv_") == body.count('"link"')


def test_the_envelope_lists_found_and_missing_numbers(start: StartBox, connect: Connect) -> None:
    box = start(links_shape="envelope")
    phones = [phone for phone, ids in box.links.items() if ids]

    body = get_links(connect(box), box, *phones, UNKNOWN).json()

    named = [(f"+{entry['phone_number']}", entry["conversation_id"]) for entry in body["data"]]
    assert named == [(phone, each) for phone in phones for each in box.links[phone]]
    assert (body["count"], body["found"]) == (len(named), len(phones))
    assert body["not_found"] == [UNKNOWN[1:]]


def test_both_shapes_can_alternate(start: StartBox, connect: Connect) -> None:
    box = start(links_shape="alternating")
    client = connect(box)

    shapes = [type(get_links(client, box, *box.phones).json()) for _ in range(4)]

    assert shapes == [list, dict, list, dict]


def test_only_unknown_numbers_is_a_404_that_is_an_answer(box: Sandbox, client: httpx.Client) -> None:
    empty = next(phone for phone, ids in box.links.items() if not ids)

    answer = get_links(client, box, UNKNOWN, empty)

    assert answer.status_code == 404
    assert answer.json() == {"message": "No conversations found for the provided phone numbers"}


def test_a_number_requested_twice_is_answered_once(box: Sandbox, client: httpx.Client) -> None:
    phone = next(phone for phone, ids in box.links.items() if ids)

    entries = get_links(client, box, phone, phone).json()

    assert [entry["phone_number"] for entry in entries] == [phone[1:]]


def test_a_missing_parameter_is_named(client: httpx.Client) -> None:
    without_phone = client.get("/conversations/links", params={"organization_id": "org_sandbox"})
    without_organization = client.get("/conversations/links", params={"phone_numbers": "1"})

    assert without_phone.status_code == without_organization.status_code == 400
    assert without_phone.json() == {"message": "phone_numbers is required"}
    assert without_organization.json() == {"message": "organization_id is required"}


def test_another_organization_is_forbidden_with_details(client: httpx.Client) -> None:
    answer = client.get("/conversations/links", params={"phone_numbers": "1", "organization_id": "org_other"})

    assert answer.status_code == 403
    assert answer.json() == {
        "message": "Forbidden - organization mismatch",
        "details": {"expected": "org_sandbox", "received": "org_other"},
    }


def test_an_address_of_more_than_8_kilobytes_is_rejected(box: Sandbox, client: httpx.Client) -> None:
    short = get_links(client, box, *(f"+8529{number:07}" for number in range(250)))
    long = get_links(client, box, *(f"+8529{number:07}" for number in range(400)))

    assert short.status_code == 404
    assert (long.status_code, long.headers["content-type"].split(";")[0]) == (414, "text/html")


def test_phones_are_possible_numbers_of_several_countries(start: StartBox) -> None:
    box = start(conversations=120)

    numbers = [phonenumbers.parse(phone) for phone in box.phones]

    assert all(phonenumbers.is_possible_number(number) for number in numbers)
    assert len({number.country_code for number in numbers}) > 5


def test_phones_have_none_one_or_several_and_share_some(start: StartBox) -> None:
    box = start(conversations=120)

    links = box.links

    phones_of = Counter(each for ids in links.values() for each in ids)
    many = Counter(min(len(ids), 2) for ids in links.values())
    assert set(phones_of) == set(box.conversations)
    assert many[1] > many[2] > 0 < many[0]
    assert max(phones_of.values()) == 2


def test_messy_phones_contain_every_phone_in_some_spelling(start: StartBox) -> None:
    box = start(conversations=60)

    lines = box.messy_phones(region="TW")

    read = set()
    for line in lines:
        try:
            number = phonenumbers.parse(line, "TW")
        except phonenumbers.NumberParseException:
            continue
        read.add(phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.E164))
    assert set(box.phones) <= read
    assert len(lines) > len(box.phones)
