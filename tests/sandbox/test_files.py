"""Conversations from a file of JSON lines."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from tests.sandbox.conftest import Connect, StartBox
from tests.sandbox.reading import first_of, walk

TIMED: dict[str, Any] = {
    "conversation_key": "star-1",
    "phone": "886911425977",
    "language": "en",
    "source": "STAR",
    "messages": [
        {
            "speaker": "customer",
            "text": "Hello\u2028\x00 \U0001f600",
            "at": "2020-05-13T13:14:57Z",
            "kind": "text",
        },
        {"speaker": "agent", "text": '{"query":"x"}', "at": "2020-05-13T13:15:55Z", "kind": "action"},
        {"speaker": "system", "text": '{"result":{}}', "at": "2020-05-13T13:15:55Z", "kind": "action_result"},
        {"speaker": "agent", "text": "", "at": "2020-05-13T13:17:00", "kind": "text"},
    ],
}
UNTIMED: dict[str, Any] = {
    "conversation_key": "mwoz-1",
    "phone": None,
    "messages": [
        {"speaker": "customer", "text": f"line {at}", "at": None, "kind": "text"} for at in range(90)
    ],
}


def write(path: Path, *records: Any) -> Path:
    """Write a file, compressed if its name ends in .gz."""
    lines = "".join(json.dumps(record) + "\n" for record in records).encode()
    path.write_bytes(gzip.compress(lines) if path.suffix == ".gz" else lines)
    return path


@pytest.mark.parametrize("name", ["small.jsonl", "small.jsonl.gz"])
def test_texts_are_served_unchanged_and_in_order(
    tmp_path: Path, start: StartBox, connect: Connect, name: str
) -> None:
    box = start(file=write(tmp_path / name, TIMED, UNTIMED))
    client = connect(box)

    read = [walk(client, each)[::-1] for each in box.conversations]

    texts = [[item["content"] for item in items] for items in read]
    assert texts == [
        [{"text": message["text"], "is_mail": False} for message in record["messages"]]
        for record in (TIMED, UNTIMED)
    ]
    assert read == [box.truth(each) for each in box.conversations]


def test_times_of_the_file_are_kept_in_milliseconds(tmp_path: Path, start: StartBox) -> None:
    box = start(file=write(tmp_path / "a.jsonl", TIMED))

    times = [item["created_at"] for item in box.truth(first_of(box))]

    assert times == [
        "2020-05-13T13:14:57.000Z",
        "2020-05-13T13:15:55.000Z",
        "2020-05-13T13:15:55.000Z",
        "2020-05-13T13:17:00.000Z",
    ]


def test_times_that_the_file_lacks_strictly_increase(tmp_path: Path, start: StartBox) -> None:
    box = start(file=write(tmp_path / "a.jsonl", UNTIMED))

    times = [item["created_at"] for item in box.truth(first_of(box))]

    assert times == sorted(set(times))


def test_speakers_become_a_contact_and_users(tmp_path: Path, start: StartBox) -> None:
    box = start(file=write(tmp_path / "a.jsonl", TIMED))

    customer, agent, system, again = (item["from"] for item in box.truth(first_of(box)))

    assert customer.startswith("con_")
    assert agent.startswith("u_")
    assert system.startswith("u_")
    assert agent == again != system


def test_ids_are_the_same_in_every_start_and_seed(tmp_path: Path, start: StartBox) -> None:
    path = write(tmp_path / "a.jsonl", TIMED)

    once, again = (start(file=path, seed=seed) for seed in (1, 2))

    assert once.truth(first_of(once)) == again.truth(first_of(again))


def test_a_phone_of_the_file_is_linked_and_others_are_made_up(tmp_path: Path, start: StartBox) -> None:
    box = start(file=write(tmp_path / "a.jsonl", TIMED, UNTIMED))

    timed, untimed = box.conversations

    assert box.links["+886911425977"] == [timed]
    assert any(untimed in ids for phone, ids in box.links.items() if phone != "+886911425977")


def test_a_limit_serves_the_first_conversations_of_a_file(tmp_path: Path, start: StartBox) -> None:
    box = start(file=write(tmp_path / "a.jsonl", TIMED, UNTIMED), file_limit=1)

    assert list(box.conversations.values()) == [4]


@pytest.mark.parametrize(
    "wrong",
    [
        {"messages": []},
        {"conversation_key": "k", "messages": [{"speaker": "dog", "text": "wuff"}]},
        {"conversation_key": "k", "messages": [{"speaker": "agent", "text": 7}]},
        {"conversation_key": "k", "messages": [{"speaker": "agent", "text": "x", "at": "soon"}]},
        [],
    ],
)
def test_a_line_that_is_not_a_conversation_is_named(tmp_path: Path, start: StartBox, wrong: object) -> None:
    path = write(tmp_path / "a.jsonl", TIMED, wrong)

    with pytest.raises(ValueError, match=r"^line 2 of a\.jsonl is not a conversation: "):
        start(file=path)


def test_appended_messages_follow_those_of_a_file(tmp_path: Path, start: StartBox) -> None:
    box = start(file=write(tmp_path / "a.jsonl", TIMED))

    (added,) = box.append(first_of(box))

    truth = box.truth(first_of(box))
    assert truth[-1]["_id"] == added
    assert truth[-1]["created_at"] == "2020-05-13T13:17:01.000Z"
