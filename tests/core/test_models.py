"""Parsed answers of the gateway: pages, also contradictory ones, and all forms of links."""

from __future__ import annotations

import json
from functools import partial
from itertools import product
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imbrace_lake.gateway.models import (
    ConversationLink,
    Links,
    Malformed,
    decode_json,
    parse_counts,
    parse_links,
    parse_page,
)
from imbrace_lake.phones.numbers import PhoneNumber

ONE, TWO = PhoneNumber("+886911425977"), PhoneNumber("+12345678")


def a_page(items: int, **fields: Any) -> bytes:
    return json.dumps({"items": [{"_id": f"m{n}"} for n in range(items)], **fields}).encode()


@pytest.mark.parametrize(
    ("fields", "total_count", "count_matches"),
    [
        ({"count": 304, "total": 10}, 304, True),
        ({"count": 10, "total": 304}, 304, True),
        ({"count": 304, "total": 304}, 304, False),
        ({"count": 10, "total": 10}, 10, True),
        ({"count": 304, "total": 11}, 304, False),
        ({"count": 304}, None, False),
        ({"total": 10}, None, False),
        ({}, None, False),
        ({"count": "304", "total": 10}, None, False),
        ({"count": True, "total": 10}, None, False),
        ({"count": -1, "total": 10}, None, False),
        ({"count": None, "total": 10}, None, False),
    ],
)
def test_the_larger_count_is_the_total_count_in_either_field(
    fields: dict[str, Any], total_count: int | None, count_matches: bool
) -> None:
    page = parse_page(a_page(10, **fields), skip=20)

    assert (page.total_count, page.count_matches) == (total_count, count_matches)
    assert (page.skip, page.next_skip, len(page.items)) == (20, 30, 10)
    assert page.size_bytes == len(a_page(10, **fields))


@pytest.mark.parametrize(
    ("value", "has_more"), [(True, True), (False, False), (None, None), ("yes", None), (1, None)]
)
def test_has_more_counts_only_if_it_is_a_bool(value: Any, has_more: bool | None) -> None:
    assert parse_page(a_page(1, has_more=value), 0).has_more is has_more
    assert parse_page(a_page(1), 0).has_more is None


@pytest.mark.parametrize(
    ("item", "message_id"),
    [
        ({"_id": "a", "public_id": "b"}, "a"),
        ({"public_id": "b"}, "b"),
        ({"_id": None, "public_id": "b"}, "b"),
        ({"_id": "", "public_id": "b"}, "b"),
        ({"_id": "7"}, "7"),
        ({"_id": 7}, "$7"),
        ({"_id": 0, "public_id": "b"}, "$0"),
        ({"_id": False}, "$false"),
        ({"_id": ""}, '$""'),
        ({"_id": "", "public_id": None}, '$""'),
        ({"_id": {"$oid": "x"}}, '${"$oid":"x"}'),
        ({"_id": "$7"}, '$"$7"'),
        ({"_id": "half \ud83d"}, '$"half \\ud83d"'),
        ({"_id": None, "public_id": "\udc00"}, '$"\\udc00"'),
    ],
)
def test_the_id_of_a_message_has_a_second_source(item: dict[str, Any], message_id: str) -> None:
    assert parse_page(json.dumps({"items": [item]}).encode(), 0).ids == [message_id]


IDS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec=None, min_codepoint=0x20) | st.sampled_from("$0\ud800\udfff")),
    lambda values: st.lists(values, max_size=2) | st.dictionaries(st.text(max_size=2), values, max_size=2),
    max_leaves=3,
)  # fmt: skip


@pytest.mark.slow
@given(st.lists(IDS, min_size=1, max_size=8))
def test_ids_that_differ_in_the_json_stay_different_and_are_valid_utf_8(values: list[Any]) -> None:
    body = json.dumps({"items": [{"_id": value, "public_id": "of none"} for value in values]}).encode()
    received = [item["_id"] for item in json.loads(body)["items"]]
    named = ["of none" if value in (None, "") else value for value in received]

    ids = parse_page(body, 0).ids

    assert "".join(ids).encode()
    for one, other in product(range(len(ids)), repeat=2):
        is_same = json.dumps(named[one], sort_keys=True) == json.dumps(named[other], sort_keys=True)
        assert (ids[one] == ids[other]) == is_same


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"items":null}',
        b'{"items":{}}',
        b'{"items":[1]}',
        b'{"items":[{}]}',
        b'{"items":[{"_id":null}]}',
        b'{"items":[NaN]}',
        b'{"items":[-Infinity]}',
        b"\xff\xfe",
        b"[" * 5_000,
    ],
)
def test_a_body_that_is_not_a_page_is_malformed_and_not_quoted(body: bytes) -> None:
    with pytest.raises(Malformed) as caught:
        parse_page(body, 0)

    assert "items" not in str(caught.value).replace("list of items", "")


@pytest.mark.parametrize("pair", [b"\xed\xa0\xbd\xed\xb8\x80", rb"\ud83d\ude00", b"\xed\xa0\xbd\\ude00"])
@pytest.mark.parametrize("before", ["", "\\", "\\\\", '"', "\ud83d"])
def test_the_halves_of_a_character_become_that_character(pair: bytes, before: str) -> None:
    written = json.dumps(before)[1:-1].encode()

    assert decode_json(b'{"text":"' + written + pair + b'"}') == {"text": before + "\U0001f600"}


@given(st.integers(-(10**40), 10**40), st.text(st.characters(exclude_categories=())))
def test_no_digit_and_no_surrogate_is_lost(number: int, text: str) -> None:
    text = json.loads(json.dumps(text))
    for ascii_only in (True, False):
        body = json.dumps({"n": number, "t": text, "x": 0.5}, ensure_ascii=ascii_only)
        # Raw surrogates are not UTF-8, but some programs write them.
        assert decode_json(body.encode("utf-8", "surrogatepass")) == {"n": number, "t": text, "x": 0.5}


@pytest.mark.parametrize(
    "number", [2**63 - 1, 2**63, 2**64 - 1, 2**64, 10**19, -(2**63), -(2**63) - 1, 10**30]
)
def test_integers_around_64_bits_stay_integers(number: int) -> None:
    decoded = decode_json(json.dumps([number]).encode())

    assert decoded == [number]
    assert type(decoded[0]) is int


# -- links ----------------------------------------------------------------------------------------


def an_array(*entries: tuple[str, list[str]]) -> bytes:
    return json.dumps(
        [
            {"phone_number": number, "conversation_links": [{"link": link} for link in links]}
            for number, links in entries
        ]
    ).encode()


def test_the_examples_of_the_vendors_page_are_read() -> None:
    links = parse_links(
        an_array(
            ("886911425977", ["https://webapp.dev.imbrace.co/chatroom-routing?conv_id=conv_8"]),
            ("12345678", []),
        ),
        [ONE, TWO],
    )
    envelope = parse_links(
        json.dumps(
            {
                "data": [
                    {"phone_number": "886911425977", "conversation_id": "conv_8", "contact_id": "con_1"}
                ],
                "count": 1,
                "found": 1,
                "not_found": ["12345678"],
            }
        ).encode(),
        [ONE, TWO],
    )

    assert links == envelope
    assert links.links == (ConversationLink(ONE, "conv_8"),)
    assert links.missing == ()


@pytest.mark.parametrize(
    "link",
    [
        "https://webapp.imbrace.co/chatroom-routing?conv_id=conv_8",
        "http://x:8443/?a=b&conv_id=conv_8&c",
        "https://x/r/?conv_id=conv%5F8#conv_id=conv_2",
        "https://x/?prev_conv_id=conv_1&conv_id=conv_8&conv_id_hint=conv_2",
        "https://x/?back=" + quote("https://x/?conv_id=conv_1", safe="") + "&conv_id=conv_8",
        "https://x/#/chat?conv_id=conv_8",
        "/chatroom-routing?conv_id=conv_8",
        "?conv_id=conv_8&conv_id=conv_9",
        "https://x/?conv_id=conv_8%20",
        "https://x/?conv_id=+%0Aconv_8+&c",
    ],
)
def test_the_conversation_is_the_conv_id_of_the_link_beside_any_other_field(link: str) -> None:
    assert parse_links(an_array(("886911425977", [link])), [ONE]).links == (ConversationLink(ONE, "conv_8"),)


@pytest.mark.parametrize(
    "link",
    [
        "",
        "https://x/",
        "https://x/?conv_id=",
        "https://x/?conv_id=%20",
        "https://x/conv_id=conv_8",
        None,
        7,
        "http://[bad?conv_id=conv_8",
    ],
)
def test_a_link_without_a_conversation_is_an_error_only_of_its_number(link: Any) -> None:
    good = [{"link": "https://x/?conv_id=c"}]
    entries = [
        {"phone_number": "886911425977", "conversation_links": [*good, {"link": link}]},
        {"phone_number": TWO[1:], "conversation_links": good},
    ]

    answer = parse_links(json.dumps(entries).encode(), [ONE, TWO])

    assert answer.malformed == (ONE,)
    assert answer.links == (ConversationLink(ONE, "c"), ConversationLink(TWO, "c"))
    assert answer.missing == ()


def test_blanks_around_the_id_of_an_envelope_are_not_part_of_it() -> None:
    rows = [{"phone_number": ONE[1:], "conversation_id": " conv_8\t"}]

    assert parse_links(json.dumps({"data": rows}).encode(), [ONE]).links == (ConversationLink(ONE, "conv_8"),)


@pytest.mark.parametrize(
    "number",
    [
        "886911425977",
        "+886 911 425 977",
        886911425977,
        886911425977.0,
        "886-911-425-977",
        "00886911425977",
        "0911425977",
        "911-425-977",
    ],
)
def test_a_number_is_recognized_in_every_notation_of_the_answer(number: Any) -> None:
    body = json.dumps({"data": [{"phone_number": number, "conversation_id": "c"}]}).encode()

    assert parse_links(body, [ONE]).links == (ConversationLink(ONE, "c"),)


@pytest.mark.parametrize("shape", ["array", "envelope"])
def test_a_conversation_id_that_no_url_can_contain_is_an_error_of_its_number(shape: str) -> None:
    entries: dict[str, dict[str, Any]] = {
        "array": {"conversation_links": [{"link": "https://x/?conv_id=\ud800"}]},
        "envelope": {"conversation_id": "\ud800"},
    }
    entry = entries[shape] | {"phone_number": "886911425977"}
    body = json.dumps([entry] if shape == "array" else {"data": [entry]}).encode()

    assert parse_links(body, [ONE]).malformed == (ONE,)


def test_repeated_links_and_numbers_that_were_not_requested_are_left_out() -> None:
    link = "https://x/?conv_id=c"

    links = parse_links(an_array(("886911425977", [link, link]), ("999", [link])), [ONE, TWO])

    assert links.links == (ConversationLink(ONE, "c"),)
    assert links.missing == (TWO,)
    assert links.has_others
    assert not parse_links(an_array(("886911425977", [link]), ("999", [])), [ONE, TWO]).has_others


@pytest.mark.parametrize("number", [None, "n/a", "999", "5977"])
def test_a_conversation_of_an_unclear_number_is_not_that_of_a_requested_one(number: str | None) -> None:
    body = json.dumps({"data": [{"phone_number": number, "conversation_id": "c"}]}).encode()

    assert parse_links(body, [ONE, TWO]) == Links((), (ONE, TWO), (), has_others=True)


@pytest.mark.parametrize("bad", [7, {"phone_number": TWO[1:], "conversation_links": None}])
def test_an_unreadable_entry_does_not_spoil_the_others(bad: Any) -> None:
    good = {"phone_number": "886911425977", "conversation_links": [{"link": "https://x/?conv_id=c"}]}

    links = parse_links(json.dumps([good, bad]).encode(), [ONE, TWO])

    assert links.links == (ConversationLink(ONE, "c"),)
    assert (links.malformed == (TWO,)) != (links.missing == (TWO,) and links.has_others)


LINKS = '"conversation_links":[{"link":"https://x/?conv_id=c"}]'


@pytest.mark.parametrize(
    "body",
    [
        '{"data":[{"phone_number":"12345678","conversation_id":"c"}],"data":[]}',
        '{"data":[{"phone_number":"12345678","conversation_id":"c","conversation_id":"d"}]}',
        f'[{{"phone_number":"12345678",{LINKS},"conversation_links":[]}}]',
        f'[{{"phone_number":"12345678",{LINKS[:-2]},"link":"https://x/?conv_id=d"}}]}}]',
    ],
)
def test_links_with_a_key_twice_are_malformed_because_only_one_value_would_be_read(body: str) -> None:
    with pytest.raises(Malformed, match="repeats a key"):
        parse_links(body.encode(), [TWO])


@pytest.mark.parametrize("repeated", [b'"items":[],"count":0,"total":0', b'"count":2'])
def test_a_page_with_a_key_twice_is_malformed_because_only_one_value_would_be_read(repeated: bytes) -> None:
    body = a_page(1, count=1, total=1)[:-1] + b"," + repeated + b"}"

    for parse in (partial(parse_page, skip=0), parse_counts):
        with pytest.raises(Malformed, match="repeats a key"):
            parse(body)


@pytest.mark.parametrize(
    "stated", [{"count": 2}, {"found": 2}, {"count": 1, "found": 2}, {"total": 2}, {"has_more": True}]
)
def test_an_envelope_with_fewer_entries_than_it_states_is_malformed(stated: dict[str, object]) -> None:
    data = [{"phone_number": "886911425977", "conversation_id": "c"}]

    with pytest.raises(Malformed, match="fewer entries than it states"):
        parse_links(json.dumps({"data": data, **stated}).encode(), [ONE, TWO])


def test_a_number_that_is_found_and_not_found_is_unclear() -> None:
    data = [{"phone_number": "886911425977", "conversation_id": "c"}]

    links = parse_links(json.dumps({"data": data, "not_found": ["886911425977"]}).encode(), [ONE])

    assert links.malformed == (ONE,)


def test_numbers_that_an_answer_does_not_mention_are_unanswered() -> None:
    body = json.dumps({"data": [{"phone_number": "886911425977", "conversation_id": "c"}]}).encode()

    assert parse_links(body, [ONE, TWO]).missing == (TWO,)


@pytest.mark.parametrize(
    "body",
    [
        "7",
        "{}",
        "[7]",
        '[{"phone_number": "1"}]',
        '[{"conversation_links": {}}]',
        '{"data": {}}',
        '{"data": [7]}',
    ],
)
def test_an_answer_in_neither_form_is_malformed(body: str) -> None:
    with pytest.raises(Malformed):
        parse_links(body.encode(), [ONE])
