"""Values that the contract allows and that clients do not expect."""

from __future__ import annotations

from typing import Any

import pytest

from imbrace_sandbox.edge_cases import LONG_TEXT_CHARACTERS
from tests.sandbox.conftest import Connect, StartBox
from tests.sandbox.reading import first_of, get_page


@pytest.fixture
def items(start: StartBox) -> list[dict[str, Any]]:
    """Many messages, half of them with an unusual value."""
    box = start(sizes=(600,), surprises=0.5, conversations=1, messages_mean=60, messages_spread=0)
    return [item for each in box.conversations for item in box.truth(each)]


def test_content_can_be_null_a_bare_string_or_of_an_unknown_shape(items: list[dict[str, Any]]) -> None:
    kinds = {type(item["content"]) for item in items}

    assert {type(None), str, list, int, bool, dict} <= kinds


def test_sender_business_unit_and_updated_at_can_be_missing(items: list[dict[str, Any]]) -> None:
    assert any(item["from"] is None for item in items)
    assert any(item["business_unit_id"] is None for item in items)
    assert any("updated_at" not in item for item in items)


def test_times_can_end_in_an_offset(items: list[dict[str, Any]]) -> None:
    endings = {item["created_at"][23:] for item in items}

    assert endings == {"Z", "+00:00"}


def test_texts_contain_nul_surrogates_and_very_many_characters(items: list[dict[str, Any]]) -> None:
    texts = [
        item["content"]["text"]
        for item in items
        if isinstance(item["content"], dict) and "text" in item["content"]
    ]

    assert any("\x00" in text for text in texts)
    assert any("\ud83d" in text for text in texts)
    assert any("\U0010ffff" in text for text in texts)
    assert max(map(len, texts)) == LONG_TEXT_CHARACTERS


def test_integers_exceed_64_bits_and_unknown_fields_occur(items: list[dict[str, Any]]) -> None:
    references = [item["content"].get("reference", 0) for item in items if isinstance(item["content"], dict)]

    assert max(references) > 2**64
    assert any(item.get("comments") for item in items)


def test_a_lone_surrogate_is_sent_escaped(start: StartBox, connect: Connect) -> None:
    box = start()
    conversation_id = box.put([{"_id": "msg_1", "content": {"text": "half \ud83d"}}])

    body = get_page(connect(box), conversation_id).content

    assert rb"half \ud83d" in body


def test_without_edge_cases_there_are_none(start: StartBox) -> None:
    box = start(sizes=(300,))

    items = box.truth(first_of(box))

    assert all(isinstance(item["content"], dict) and len(item) == 11 for item in items)
