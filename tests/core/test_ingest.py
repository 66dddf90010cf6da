"""Repeated ingestion into a lake: changes are found, and unchanged conversations cost almost nothing."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any

import pytest
from pydantic import SecretStr

from imbrace_lake.export.drift import DriftMode
from imbrace_lake.export.recovery import WRITE_WALKED
from imbrace_lake.gateway import client
from imbrace_lake.gateway.models import Page, parse_page
from imbrace_lake.lake import schema
from imbrace_lake.lake.checkpoint import read_states
from imbrace_lake.lake.lake import Lake
from imbrace_lake.lake.schema import to_item
from imbrace_lake.store.contract import StoreOptions
from imbrace_lake.verify.counts import verify_counts
from imbrace_lake.verify.findings import Verification
from imbrace_sandbox import Sandbox, SandboxOptions
from tests.acceptance.scale import IS_FULL
from tests.core.conftest import client_of
from tests.core.kills import Killing
from tests.core.lake_runs import Bench
from tests.core.rivals import contend, settle
from tests.core.timeline import Amounts, Timeline, live_through
from tools.seaweed import Seaweed

OpenBench = Callable[..., Bench]


@pytest.fixture
def open_bench(tmp_path: Path) -> Iterator[OpenBench]:
    """Return a function that makes a fake gateway and a lake for it."""
    with ExitStack() as stack:

        def make(settings: dict[str, Any] | None = None, lake: str = "lake", **options: Any) -> Bench:
            box = stack.enter_context(Sandbox(SandboxOptions(**options)))
            return Bench(box, str(tmp_path / lake), settings=settings or {})

        yield make


@pytest.fixture
def bench(open_bench: OpenBench) -> Bench:
    """Return a fake gateway with one conversation of 250 messages, which the lake has."""
    bench = open_bench(conversations=0, sizes=(250,))
    bench.run()
    bench.box.reset_stats()
    return bench


def only(bench: Bench) -> str:
    return next(iter(bench.box.conversations))


def statuses(bench: Bench, **options: Any) -> dict[str, int]:
    return dict(bench.run(**options).totals.conversations)


def is_equal(bench: Bench) -> bool:
    return not bench.differences() and not bench.wrong_hashes() and bench.verify().is_sound


@pytest.mark.slow
def test_after_rounds_of_changes_at_little_cost_the_lake_equals_the_gateway(
    open_bench: OpenBench,
) -> None:
    bench = open_bench(conversations=50, sizes=(350,) * 4, messages_max=200)
    timeline = Timeline(bench.box, Random(3), Amounts(grow=4, edit_near=4, edit_far=2, lose=2, vanish=1))

    costs = live_through(bench, timeline, rounds=2)

    assert all(requests <= most for requests, most in costs), costs


def test_an_unchanged_conversation_costs_one_request_and_no_write(bench: Bench) -> None:
    before = bench.look(lambda lake: lake.store.list("messages/"))

    assert statuses(bench) == {"unchanged": 1}
    assert bench.box.stats().accepted == 1
    assert bench.look(lambda lake: lake.store.list("messages/")) == before


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return the list to which the `skip` of every parsed page is added."""
    pages: list[int] = []

    def parse(body: bytes, skip: int) -> Page:
        pages.append(skip)
        return parse_page(body, skip)

    monkeypatch.setattr(client, "parse_page", parse)
    return pages


@pytest.mark.slow
def test_an_answer_with_the_same_bytes_as_the_last_one_is_not_parsed(
    open_bench: OpenBench, parsed: list[int]
) -> None:
    bench = open_bench({"look_back_days": 7.0, "page_size": 80}, conversations=0, sizes=(30, 150))
    short, long = bench.box.conversations

    def read() -> list[int]:
        parsed.clear()
        assert not bench.run().totals.messages_new
        return sorted(parsed)

    bench.now = max(datetime.fromisoformat(bench.box.truth(one)[-1]["created_at"]) for one in (short, long))
    bench.run()
    # The look-back of the long conversation reaches below its head, until the messages are too old.
    assert read() == [0, 78]
    bench.now += timedelta(days=8)
    assert read() == []
    # A longer head shows the same conversation in a different body.
    bench.settings["page_size"] = 90
    assert read() == [0]
    assert read() == []

    for change in (bench.box.edit, bench.box.delete):
        for one in (short, long):
            change(one, [bench.box.truth(one)[-7]["_id"]])
        assert statuses(bench) == {"complete": 2}
        assert is_equal(bench)
    assert read() == []


@pytest.mark.slow
@pytest.mark.parametrize(("many", "pages"), [(1, 1), (99, 1), (100, 2), (101, 2), (300, 4)])
def test_a_grown_conversation_costs_its_new_pages_and_an_overlap(bench: Bench, many: int, pages: int) -> None:
    bench.box.append(only(bench), many)

    assert statuses(bench) == {"complete": 1}
    assert bench.box.stats().accepted == pages
    assert bench.ledger("conversations")[-1]["new_messages"] == many
    assert is_equal(bench)
    assert statuses(bench) == {"unchanged": 1}


@pytest.mark.slow
def test_all_messages_of_an_emptied_conversation_are_marked_deleted(open_bench: OpenBench) -> None:
    bench = open_bench(conversations=0, sizes=(30,))
    bench.run()
    ids = [item["_id"] for item in bench.box.truth(only(bench))]
    bench.box.delete(only(bench), ids)

    bench.run()

    assert all(row["is_deleted"] for row in bench.messages(only(bench)).values())
    assert is_equal(bench)
    bench.box.append(only(bench), 2)
    bench.run()
    assert is_equal(bench)
    assert statuses(bench) == {"unchanged": 1}


def test_messages_are_marked_deleted_if_others_replaced_all_of_them(open_bench: OpenBench) -> None:
    bench = open_bench(conversations=0, sizes=(30,))
    bench.run()
    ids = [item["_id"] for item in bench.box.truth(only(bench))]
    bench.box.append(only(bench), 30)
    bench.box.delete(only(bench), ids)

    bench.run()

    assert is_equal(bench)
    assert sum(row["is_deleted"] for row in bench.messages(only(bench)).values()) == 30


def test_a_deletion_that_a_new_message_hides_from_the_count_is_found(bench: Bench) -> None:
    bench.box.delete(only(bench), [bench.box.truth(only(bench))[3]["_id"]])
    bench.box.append(only(bench), 1)

    bench.run()

    assert is_equal(bench)


def test_a_message_inserted_among_old_ones_is_found(bench: Bench) -> None:
    bench.box.backdate(only(bench), 3)

    bench.run()

    assert is_equal(bench)


@pytest.mark.slow
def test_the_look_back_finds_edits_as_far_as_it_reaches_and_no_further(open_bench: OpenBench) -> None:
    bench = open_bench({"look_back_days": 7.0, "look_back_messages": 200}, conversations=0, sizes=(400,))
    truth = bench.box.truth(only(bench))
    bench.now = datetime.fromisoformat(truth[-1]["created_at"]) + timedelta(hours=1)
    bench.run()
    bench.box.edit(only(bench), [truth[-180]["_id"], truth[-250]["_id"]])
    bench.box.reset_stats()

    bench.run()

    assert bench.box.stats().accepted <= 3
    assert bench.differences() == {"other version": 1}
    assert [row["message_id"] for row in bench.ledger("revisions")] == [truth[-180]["_id"]]
    # A month later the messages are outside the look-back, and the re-walk that finds the other edit is due.
    bench.now += timedelta(days=31)
    bench.run()
    assert is_equal(bench)


@pytest.mark.slow
@pytest.mark.parametrize("wrong", [1, 2, 9])
def test_the_look_back_does_not_end_at_messages_with_a_wrong_time(open_bench: OpenBench, wrong: int) -> None:
    bench = open_bench({"look_back_days": 7.0, "look_back_messages": 200}, conversations=0)
    begin = bench.now - timedelta(days=1)
    items: list[dict[str, Any]] = [
        {"_id": f"m{n}", "content": {"text": "x"}, "created_at": (begin + timedelta(minutes=n)).isoformat()}
        for n in range(400)
    ]
    for item in items[-50:][:wrong]:
        item["created_at"] = "1970-01-01T00:00:00.000Z"
    one = bench.box.put(items)
    bench.run([one])
    bench.box.edit(one, ["m250"])

    bench.run([one])

    assert [row["message_id"] for row in bench.ledger("revisions")] == ["m250"]


@pytest.mark.slow
def test_a_deleted_message_that_comes_back_is_live_again(bench: Bench) -> None:
    items = [{**item, "conversation_id": "conv_back"} for item in bench.box.truth(only(bench))]
    one = bench.box.put(items, conversation_id="conv_back")
    bench.run([one])
    lost = [item["_id"] for item in items[5:9]]
    bench.box.delete(one, lost)
    bench.run([one])
    first_seen = {key: row["first_seen_at"] for key, row in bench.messages(one).items()}
    assert {key for key, row in bench.messages(one).items() if row["is_deleted"]} == set(lost)

    # The fake gateway cannot undo a deletion, so another one serves the same conversation.
    with Sandbox(SandboxOptions(conversations=0)) as again:
        again.put(items, conversation_id=one)
        later = Bench(again, bench.lake, now=bench.now)
        later.run([one])

        assert not later.differences([one])
        rows = later.messages(one)
        assert {key: row["first_seen_at"] for key, row in rows.items()} == first_seen
        assert all(rows[key]["deleted_at"] is None for key in lost)
        assert all(rows[key]["last_changed_at"] == later.now for key in lost)
        assert {row["message_id"]: row["is_deleted"] for row in later.ledger("revisions")} == dict.fromkeys(
            lost, True
        )
        assert not later.wrong_hashes()


ODD_IDS: tuple[dict[str, Any], ...] = (
    {"_id": 0},
    {"_id": "0"},
    {"_id": False},
    {"_id": ""},
    {"_id": -1.5},
    {"_id": 2**70},
    {"_id": {"$oid": "x"}},
    {"_id": ["a", None]},
    {"_id": None, "public_id": "msg_1"},
    {"public_id": "msg_2"},
    {"_id": "$0"},
    {"_id": "\ud800"},
    {"_id": "\ud801 and more"},
    {"_id": "half \udfff"},
    {"_id": "half ?"},
)


@pytest.mark.parametrize("newest", [0, 3, 11, 14])
def test_messages_with_odd_ids_are_all_stored_and_come_back_value_for_value(
    open_bench: OpenBench, newest: int
) -> None:
    bench = open_bench(conversations=1)
    items = [{**fields, "created_at": None, "content": None} for fields in ODD_IDS]
    items = [*items[:newest], *items[newest + 1 :], items[newest]]
    odd = bench.box.put(items, conversation_id="conv_odd")

    assert statuses(bench) == {"complete": 2}
    assert statuses(bench) == {"unchanged": 2}
    assert statuses(bench, ids=[odd]) == {"unchanged": 1}

    rows = bench.messages(odd)
    sent, back = (
        sorted(json.dumps(item, sort_keys=True) for item in some)
        for some in (items, map(to_item, rows.values()))
    )
    assert back == sent
    assert "".join(rows).encode()
    assert not bench.wrong_hashes()
    assert bench.verify().is_sound


@pytest.mark.parametrize("drift", ["evolve", "warn", "freeze"])
def test_names_that_utf_8_cannot_encode_fail_no_run(open_bench: OpenBench, drift: DriftMode) -> None:
    bench = open_bench(conversations=1)
    item = {"_id": "m", "\ud800": 1, "type": "\udfff", "content": {"half \ud83d": 1}, "created_at": None}
    odd = bench.box.put([item], conversation_id="conv_odd")

    summary = bench.run([odd, only(bench)], drift=drift)

    assert summary.totals.conversations["complete"] == (1 if drift == "freeze" else 2)
    shapes = {row["shape"] for row in bench.ledger("shapes")}
    # Not names as programs write them, so they may be words of a person.
    one, six = "(a name of 1 character)", "(a name of 6 characters)"
    assert (f"{one}.content.{six}:number" in shapes) == (drift != "freeze")
    assert [row["reason"] for row in bench.ledger("conversations") if row["is_dead_letter"]] == [
        f"conversation {odd} has messages of a new shape (item.{one}, {one}, {one}.content:object,"
        f" {one}.content.{six}:number): look at them, then export with drift=evolve"
    ] * (drift == "freeze")


def test_an_edit_of_a_given_message_is_exported(open_bench: OpenBench) -> None:
    bench = open_bench({"rewalk_days": 0.0}, conversations=0)
    time = "2025-01-01T00:00:00.000Z"
    item = {"_id": "m1", "from": "con_1", "content": {"text": "x"}, "created_at": time, "updated_at": time}
    one = bench.box.put([item], conversation_id="conv_given")
    bench.run([one])

    bench.box.edit(one, ["m1"])
    bench.run([one])

    assert bench.messages(one)["m1"]["text"] == "x (edit 1)"
    assert is_equal(bench)


@pytest.mark.slow
def test_a_role_that_earlier_versions_did_not_know_is_not_an_edit(
    open_bench: OpenBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = open_bench({"rewalk_days": 0.0}, conversations=0)
    items = [
        {"_id": f"m{number}", "from": "pub_1", "content": {"text": "x"}, "created_at": f"2025-01-0{number}"}
        for number in range(1, 4)
    ]
    one = bench.box.put(items, conversation_id="conv_bot")
    with monkeypatch.context() as earlier:
        earlier.setattr(schema, "_ROLES", {"con_": "contact", "u_": "user"})
        bench.run([one])

    assert bench.run([one]).totals.written_bytes == 0
    assert bench.ledger("revisions") == []
    bench.box.edit(one, ["m2"])
    bench.run([one])
    assert {key: row["sender_role"] for key, row in bench.messages(one).items()} == {
        "m1": "unknown", "m2": "bot", "m3": "unknown",
    }  # fmt: skip
    assert [row["message_id"] for row in bench.ledger("revisions")] == ["m2"]
    assert is_equal(bench)


# -- lists that repeat messages --------------------------------------------------------------------


@pytest.fixture
def repeating(open_bench: OpenBench) -> Bench:
    """Return a fake gateway whose only conversation, `conv_odd`, lists 3 of its 250 messages twice."""
    bench = open_bench(conversations=0, sizes=(250,))
    items = [{**item, "conversation_id": "conv_odd"} for item in bench.box.truth(only(bench))]
    for position in (20, 130, 250):
        items.insert(position, items[position - 7])
    bench.box.put(items, conversation_id="conv_odd")
    return bench


ODD = ["conv_odd"]
ACCEPTING = {"accept_repeats": True}


def entry_of_odd(bench: Bench) -> dict[str, Any]:
    (latest,) = bench.ledger("conversations")[-1:]
    return latest


def count_problems(bench: Bench) -> list[str]:
    found = Verification()

    async def ask(lake: Lake) -> None:
        states = await read_states(lake, bench.box.options.organization_id)
        async with client_of(bench.box) as gateway:
            await verify_counts(gateway, states, found)

    bench.look(ask)
    return [difference.problem for difference in found.differences]


@pytest.mark.slow
def test_a_list_with_repeats_is_exported_if_repeats_are_accepted(repeating: Bench) -> None:
    assert statuses(repeating, ids=ODD) == {"incomplete": 1}
    repeating.settings = ACCEPTING

    assert statuses(repeating, ids=ODD) == {"complete": 1}

    entry = entry_of_odd(repeating)
    assert (entry["proof_method"], entry["server_count"], entry["distinct_messages"]) == ("repeats", 253, 250)
    assert entry["reason"].startswith("3 of the 253 positions in the gateway's list repeat a message")
    assert not repeating.differences(ODD)
    assert not repeating.wrong_hashes()
    assert count_problems(repeating) == []


@pytest.mark.slow
@pytest.mark.parametrize("settings", [ACCEPTING, {}])
def test_later_runs_over_a_list_with_repeats_read_only_new_messages(
    repeating: Bench, settings: dict[str, Any]
) -> None:
    """They need no option to accept repeats, because these were accepted before."""
    repeating.settings = ACCEPTING
    repeating.run(ODD)
    repeating.settings = settings
    repeating.box.reset_stats()

    assert statuses(repeating, ids=ODD) == {"unchanged": 1}
    assert repeating.box.stats().requests == {"messages": 1}
    assert entry_of_odd(repeating)["proof_method"] == "repeats"

    repeating.box.append("conv_odd", 5)
    repeating.box.reset_stats()
    assert statuses(repeating, ids=ODD) == {"complete": 1}
    assert repeating.box.stats().requests == {"messages": 1}
    entry = entry_of_odd(repeating)
    assert (entry["proof_method"], entry["server_count"], entry["distinct_messages"]) == ("repeats", 258, 255)
    assert count_problems(repeating) == []

    repeating.settings = settings | {"rewalk_days": 0.0}
    assert statuses(repeating, ids=ODD) == {"complete": 1}
    assert statuses(repeating, ids=ODD) == {"complete": 1}
    assert not repeating.differences(ODD)
    assert not repeating.wrong_hashes()
    assert count_problems(repeating) == []


@pytest.mark.slow
def test_a_deletion_in_a_list_with_repeats_is_found(repeating: Bench) -> None:
    repeating.settings = ACCEPTING
    repeating.run(ODD)
    lost = repeating.box.truth("conv_odd")[40]["_id"]
    repeating.box.delete("conv_odd", [lost])
    assert count_problems(repeating) == ["has 252 messages at the gateway, 250 and 3 repeats in the lake"]

    assert statuses(repeating, ids=ODD) == {"complete": 1}

    assert {one for one, row in repeating.messages("conv_odd").items() if row["is_deleted"]} == {lost}
    assert count_problems(repeating) == []


def test_a_list_without_repeats_is_proven_like_any_other_again(repeating: Bench) -> None:
    repeating.settings = ACCEPTING
    repeating.run(ODD)
    items = {item["_id"]: item for item in repeating.box.truth("conv_odd")}
    with Sandbox(SandboxOptions(conversations=0)) as fixed:
        fixed.put([*items.values()], conversation_id="conv_odd")
        later = Bench(fixed, repeating.lake, now=repeating.now)

        assert dict(later.run(ODD).totals.conversations) == {"complete": 1}

        entry = entry_of_odd(later)
        assert (entry["proof_method"], entry["reason"], entry["server_count"]) == ("overlap", None, 250)
        assert not later.differences(ODD)


@pytest.mark.slow
def test_a_conversation_that_is_gone_keeps_its_rows_and_can_come_back(bench: Bench) -> None:
    before = bench.rows()
    bench.box.vanish(only(bench))

    assert statuses(bench) == {"gone": 1}
    assert statuses(bench) == {"gone": 1}
    assert bench.rows().equals(before)

    bench.box.append(only(bench), 2)
    bench.box.restore(only(bench))
    assert statuses(bench) == {"complete": 1}
    assert is_equal(bench)


@pytest.mark.slow
def test_a_shorter_head_is_not_a_change(bench: Bench) -> None:
    bench.box.fail_next("504")
    bench.box.set_options(gateway_timeout_seconds=0.01)

    bench.run()

    assert is_equal(bench)
    assert statuses(bench) == {"unchanged": 1}


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [(100, 30), (30, 100), (7, 100), (100, 7)])
def test_pages_may_have_a_different_length_in_each_run(open_bench: OpenBench, sizes: tuple[int, int]) -> None:
    bench = open_bench({"page_size": sizes[0]}, conversations=0, sizes=(130,))
    bench.run()
    bench.settings["page_size"] = sizes[1]

    bench.run()
    assert is_equal(bench)
    bench.box.append(only(bench), 40)
    bench.box.delete(only(bench), 1)
    bench.run()

    assert is_equal(bench)
    assert statuses(bench) == {"unchanged": 1}


def test_a_deletion_is_found_also_without_has_more(bench: Bench) -> None:
    one = only(bench)
    bench.box.delete(one, [bench.box.truth(one)[3]["_id"]])
    bench.box.append(one, 1)
    bench.box.set_options(without_has_more=True)

    bench.run()

    assert is_equal(bench)


@pytest.mark.slow
def test_conversations_that_change_during_incremental_runs_are_right_in_the_end(
    open_bench: OpenBench,
) -> None:
    bench = open_bench(conversations=6, sizes=(260, 150))
    rng = Random(7)
    bench.run()
    for _ in range(3):
        for one in bench.box.conversations:
            bench.box.append(one, rng.randint(0, 130))
        bench.box.set_options(churn_inserts=0.4, churn_deletes=0.3)
        bench.run()
        bench.box.set_options(churn_inserts=0.0, churn_deletes=0.0)

        bench.run()

        assert is_equal(bench)


@pytest.mark.slow
def test_a_clock_that_goes_back_between_runs_loses_nothing(bench: Bench) -> None:
    for hours in (-3, -50, 2):
        bench.now += timedelta(hours=hours)
        bench.box.append(only(bench), 5)
        bench.box.edit(only(bench), [bench.box.truth(only(bench))[-20]["_id"]])
        bench.box.delete(only(bench), 1)

        bench.run()

        assert not bench.differences()


@pytest.mark.slow
def test_surprising_values_do_not_change_the_hash_of_unchanged_messages(open_bench: OpenBench) -> None:
    bench = open_bench(conversations=0, sizes=(240,), surprises=0.5)
    bench.run()
    ids = [item["_id"] for item in bench.box.truth(only(bench))]
    bench.box.append(only(bench), 3)
    bench.box.edit(only(bench), ids[-60:-30])

    bench.run()

    assert is_equal(bench)


@pytest.mark.parametrize(
    ("drift", "status", "shapes"),
    [("evolve", "complete", 1), ("warn", "complete", 1), ("freeze", "failed", 0)],
)
def test_a_new_field_is_kept_and_reported_or_an_error_if_so_configured(
    open_bench: OpenBench, drift: DriftMode, status: str, shapes: int
) -> None:
    bench = open_bench(conversations=0, sizes=(1,))
    item = bench.box.truth(only(bench))[0] | {"mood": "sunny", "conversation_id": "conv_odd"}
    one = bench.box.put([item], conversation_id="conv_odd")

    summary = bench.run([one], drift=drift)

    assert dict(summary.totals.conversations) == {status: 1}
    assert summary.new_shapes == ["item.mood"]
    assert [row["shape"] for row in bench.ledger("shapes")] == ["item.mood"] * shapes
    if shapes:
        assert to_item(bench.messages(one)[item["_id"]]) == item
        assert not bench.run([one], drift="freeze").new_shapes


@pytest.mark.slow
def test_runs_that_are_killed_and_started_again_leave_the_lake_as_without_kills(
    open_bench: OpenBench, tmp_path: Path
) -> None:
    bench = open_bench(lake="base", conversations=100, sizes=(330,) * 3, messages_max=60)
    bench.now = datetime.now(UTC) - timedelta(hours=2)
    bench.run(list(bench.box.conversations)[:-8])
    Timeline(bench.box, Random(4), Amounts(grow=5, edit_near=3, edit_far=0, lose=2, vanish=1)).next_round()
    killing = Killing(bench, tmp_path, settings={"max_in_flight": 2})

    rng = Random(9)
    for _ in range(10 if IS_FULL else 5):
        killing.kill_once(rng)

    # The cost of a kill does not depend on the length of the run: the results that were not recorded, and the
    # conversations under way, some with several pages.
    assert max(killing.costs) <= killing.pages + 2 * WRITE_WALKED + 20
    assert killing.polls > 10


@pytest.mark.slow
def test_two_concurrent_runs_export_every_message_once(open_bench: OpenBench) -> None:
    bench = open_bench(conversations=12, messages_max=100)
    rng = Random(1)
    for _ in range(2):
        contend(bench, list(bench.box.conversations), rng)
    settle(bench, list(bench.box.conversations))


def test_two_concurrent_runs_export_every_message_once_on_s3(
    open_bench: OpenBench, s3: Seaweed, bucket: str
) -> None:
    bench = open_bench(conversations=5, messages_max=60)
    bench.lake = f"s3://{bucket}/lake"
    bench.store = s3_options(s3)

    contend(bench, list(bench.box.conversations), Random(2))
    settle(bench, list(bench.box.conversations))


def s3_options(s3: Seaweed) -> StoreOptions:
    return StoreOptions(endpoint_url=s3.endpoint_url, key=SecretStr(s3.key), secret=SecretStr(s3.secret))
