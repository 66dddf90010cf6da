"""Lists that change while they are read, and the effect on a plain offset walk."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from imbrace_sandbox import Sandbox
from tests.acceptance.scale import IS_FULL
from tests.sandbox.conftest import Connect, StartBox
from tests.sandbox.reading import first_of, get_page, ids_of, walk


def test_an_arrival_makes_a_plain_walk_read_a_message_twice(box: Sandbox, client: httpx.Client) -> None:
    conversation_id = first_of(box)
    box.before_page(lambda each, number: number == 2 and box.append(each, 1))

    read = ids_of(walk(client, conversation_id))

    assert sum(many - 1 for many in Counter(read).values()) == 1
    assert set(read) < set(ids_of(box.truth(conversation_id)))


def test_a_deletion_makes_a_plain_walk_miss_a_message(box: Sandbox, client: httpx.Client) -> None:
    conversation_id = first_of(box)
    newest = box.truth(conversation_id)[-1]["_id"]
    box.before_page(lambda each, number: number == 2 and box.delete(each, [newest]))

    read = ids_of(walk(client, conversation_id))

    missed = set(ids_of(box.truth(conversation_id))) - set(read)
    assert len(missed) == 1


def test_churn_defeats_a_plain_walk_in_both_ways(start: StartBox, connect: Connect) -> None:
    box = start(sizes=(300,), churn_inserts=1, churn_deletes=2, churn_edits=0.5, churn_backdated=0.5)
    conversation_id = first_of(box)
    before = set(ids_of(box.truth(conversation_id)))

    read = ids_of(walk(connect(box), conversation_id))

    still_there = before & set(ids_of(box.truth(conversation_id)))
    assert len(set(read)) < len(read)
    assert still_there - set(read)


def test_equal_seeds_churn_alike(start: StartBox, connect: Connect) -> None:
    boxes = [start(seed=seed, sizes=(80,), churn_inserts=0.7, churn_deletes=0.7) for seed in (1, 1, 2)]

    once, again, other = (ids_of(walk(connect(box), first_of(box))) for box in boxes)

    assert once == again
    assert once != other


def test_churn_ends_after_its_limit(start: StartBox, connect: Connect) -> None:
    box = start(sizes=(80,), churn_inserts=2, churn_moves=5)
    client = connect(box)

    walk(client, first_of(box))
    settled = walk(client, first_of(box))

    assert box.conversations[first_of(box)] == 85
    assert settled[::-1] == box.truth(first_of(box))


def test_churn_never_deletes_more_messages_than_exist(start: StartBox, connect: Connect) -> None:
    box = start(sizes=(3,), churn_deletes=2, churn_edits=2)
    client = connect(box)

    counts = [get_page(client, first_of(box)).json()["count"] for _ in range(3)]

    assert counts == [1, 0, 0]


def test_an_arrival_has_the_given_time_unless_a_message_is_newer(box: Sandbox) -> None:
    conversation_id, at = first_of(box), datetime(2040, 5, 6, 7, 8, 9, 500_000, tzinfo=UTC)

    box.append(conversation_id, 2, at)

    assert [one["created_at"] for one in box.truth(conversation_id)[-2:]] == ["2040-05-06T07:08:09.500Z"] * 2
    with pytest.raises(ValueError, match="has a newer message"):
        box.append(conversation_id, 1, at - timedelta(milliseconds=1))


def test_an_arrival_is_the_newest_and_a_backdated_one_is_in_order_of_time(box: Sandbox) -> None:
    conversation_id = first_of(box)

    arrived = box.append(conversation_id, 2)
    backdated = box.backdate(conversation_id, 40)

    truth = box.truth(conversation_id)
    times = [item["created_at"] for item in truth]
    assert times == sorted(times)
    assert len(truth) == 35 + 42
    assert len(set(ids_of(truth))) == len(truth)
    assert set(ids_of(truth)) >= {*arrived, *backdated}
    assert ids_of(truth).index(arrived[0]) < ids_of(truth).index(arrived[1])


def test_an_edit_changes_content_and_updated_at_and_not_the_order(box: Sandbox) -> None:
    conversation_id = first_of(box)
    before = box.truth(conversation_id)

    (edited,) = box.edit(conversation_id, [before[7]["_id"]])

    after = box.truth(conversation_id)
    changed = {name for name in after[7] if after[7][name] != before[7][name]}
    assert edited == before[7]["_id"]
    assert changed == {"content", "updated_at"}
    assert after[:7] + after[8:] == before[:7] + before[8:]


@pytest.mark.parametrize("content", [None, "bare", [1], {"url": "x"}])
def test_an_edit_can_change_any_content(box: Sandbox, content: object) -> None:
    conversation_id = box.put([{"_id": "msg_1", "content": content}])

    box.edit(conversation_id, 1)

    (item,) = box.truth(conversation_id)
    assert item["content"]["text"].endswith("(edit 1)")
    assert item["updated_at"] > "2024"


@pytest.mark.parametrize(
    ("times", "edited_at"),
    [
        ({"created_at": "2025-03-01T00:00:00Z"}, "2025-03-01T00:01:00.000Z"),
        ({"created_at": "2025-03-01T08:00:00+08:00", "updated_at": "2025-04-01"}, "2025-04-01T00:01:00.000Z"),
        ({"created_at": "2025-04-01T00:00:00", "updated_at": "2025-03-01"}, "2025-04-01T00:01:00.000Z"),
        ({"created_at": "no time", "updated_at": 5}, "2024-01-01T00:01:00.000Z"),
        ({"created_at": None, "updated_at": "9999-12-31T23:59:59Z"}, "2024-01-01T00:01:00.000Z"),
        ({"created_at": "1999-01-01T00:00:00Z"}, "2024-01-01T00:01:00.000Z"),
    ],
)
def test_an_edit_of_a_given_message_is_newer_than_its_own_times(
    box: Sandbox, times: dict[str, object], edited_at: str
) -> None:
    conversation_id = box.put([{"_id": "msg_1", "content": {"text": "a"}, **times}])

    box.edit(conversation_id, ["msg_1"])

    (item,) = box.truth(conversation_id)
    assert item["updated_at"] == edited_at
    assert {name: item[name] for name in times if name != "updated_at"} == {
        name: value for name, value in times.items() if name != "updated_at"
    }


@pytest.mark.slow
def test_an_edit_in_very_many_messages_is_kept(start: StartBox, connect: Connect) -> None:
    box = start(sizes=(1_000_000 if IS_FULL else 100_000,), conversations=0)
    (added,) = box.append(first_of(box), 1)

    box.edit(first_of(box), [added])

    (item,) = get_page(connect(box), first_of(box), limit=1).json()["items"]
    assert item["_id"] == added
    assert item["content"]["text"].endswith("(edit 2)")


def test_a_vanished_conversation_is_named_by_links_and_not_found(box: Sandbox, client: httpx.Client) -> None:
    conversation_id = first_of(box)

    box.vanish(conversation_id)
    gone = get_page(client, conversation_id)
    box.restore(conversation_id)
    back = get_page(client, conversation_id)

    assert any(conversation_id in ids for ids in box.links.values())
    assert (gone.status_code, gone.json()) == (404, {"message": "Conversation not found"})
    assert back.json()["count"] == 35


def test_only_existing_messages_can_be_deleted(box: Sandbox) -> None:
    with pytest.raises(ValueError, match="there are 35 messages, not 36"):
        box.delete(first_of(box), 36)
    with pytest.raises(ValueError, match="no message with one of these ids"):
        box.delete(first_of(box), ["msg_nobody"])
    with pytest.raises(ValueError, match="no conversation conv_nobody"):
        box.delete("conv_nobody", 1)


def test_given_messages_are_served_unchanged(box: Sandbox, client: httpx.Client) -> None:
    items: list[dict[str, Any]] = [
        {"_id": "msg_a", "odd": 2**80},
        {"_id": "msg_b", "content": ["\ud800", 1.0]},
    ]

    conversation_id = box.put(items, phone="+886911425977", conversation_id="conv_mine")

    assert conversation_id == "conv_mine"
    assert walk(client, "conv_mine")[::-1] == items == box.truth("conv_mine")
    assert box.links["+886911425977"] == ["conv_mine"]


def test_a_conversation_can_be_given_once_and_needs_ids(box: Sandbox) -> None:
    with pytest.raises(ValueError, match="exists"):
        box.put([], conversation_id=first_of(box))
    with pytest.raises(ValueError, match="needs an _id"):
        box.put([{"content": None}])
    empty = box.put([])
    assert box.conversations[empty] == 0
