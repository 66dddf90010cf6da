"""A window of a long conversation is found by bisecting, read completely, and proves nothing else."""

from __future__ import annotations

import math
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any

import pytest

from imbrace_lake.lake.checkpoint import read_states
from imbrace_lake.lake.ledger_schema import WINDOW
from imbrace_lake.lake.schema import to_item
from imbrace_lake.policy import Window
from imbrace_sandbox import Sandbox, SandboxOptions
from tests.core.lake_runs import START, Bench

pytestmark = pytest.mark.slow

SIZE = 100_000
DAYS = timedelta(days=2)


def at(item: dict[str, Any]) -> datetime:
    return datetime.fromisoformat(item["created_at"])


def inside(items: list[dict[str, Any]], window: Window) -> dict[str, dict[str, Any]]:
    return {
        item["_id"]: item
        for item in items
        if (window.since is None or at(item) >= window.since)
        and (window.until is None or at(item) < window.until)
    }


@pytest.fixture(scope="module")
def box() -> Iterator[Sandbox]:
    with Sandbox(SandboxOptions(conversations=0, sizes=(SIZE, 120))) as box:
        yield box


@pytest.fixture(scope="module")
def truth(box: Sandbox) -> list[dict[str, Any]]:
    return box.truth(next(iter(box.conversations)))


@pytest.fixture
def bench(box: Sandbox, tmp_path: Path) -> Iterator[Bench]:
    box.reset_stats()
    yield Bench(box, str(tmp_path / "lake"))
    box.before_page(None)


@pytest.mark.parametrize("share", [0.0, 0.003, 0.3, 0.5, 0.97])
def test_two_days_of_100_000_messages_cost_at_most_40_requests_beyond_their_pages(
    bench: Bench, truth: list[dict[str, Any]], share: float
) -> None:
    one = next(iter(bench.box.conversations))
    since = at(truth[int(share * SIZE)])
    window = Window(since, since + DAYS)
    expected = inside(truth, window)

    bench.run([one], window=window)

    assert bench.box.stats().accepted <= math.ceil(len(expected) / 100) + 40
    assert {key: to_item(row) for key, row in bench.messages(one).items()} == expected
    entry = bench.ledger("conversations")[0]
    assert (entry["status"], entry["proof_method"], entry["distinct_messages"]) == (
        "complete",
        WINDOW,
        len(expected),
    )
    assert (entry["proven_from"], entry["proven_until"], entry["full_walk_at"]) == (since, since + DAYS, None)
    states = bench.look(lambda lake: read_states(lake, bench.box.options.organization_id))
    assert not states.of_each([one])
    assert bench.verify().is_sound
    assert bench.verify().unrecorded == 0


def test_a_window_that_is_empty_or_open_on_one_side_costs_only_its_pages(
    bench: Bench, truth: list[dict[str, Any]]
) -> None:
    one = next(iter(bench.box.conversations))
    first, last = at(truth[0]), at(truth[-1])
    second = timedelta(milliseconds=1)
    for window in (
        Window(last + DAYS, last + 2 * DAYS),
        Window(first - 2 * DAYS, first),
        Window(last - timedelta(hours=3), None),
        Window(None, first + timedelta(hours=3)),
        Window(at(truth[5_000]), at(truth[5_000]) + second),
    ):
        bench.box.reset_stats()
        before = bench.messages(one) if Path(bench.lake, "messages").exists() else {}
        expected = inside(truth, window)

        assert not bench.run([one], window=window).dead_letters

        assert bench.box.stats().accepted <= math.ceil(len(expected) / 100) + 40
        if before or expected:
            assert bench.messages(one).keys() == before.keys() | expected.keys()


@pytest.mark.parametrize("wrong", ["1970-01-01T00:00:00.000Z", "2099-01-01T00:00:00.000Z", None])
@pytest.mark.parametrize("position", [0, 40, 120, 199])
def test_a_window_is_complete_although_a_message_has_a_wrong_time(
    tmp_path: Path, wrong: str | None, position: int
) -> None:
    begin = datetime(2026, 1, 1, tzinfo=UTC)
    times = [(begin + timedelta(minutes=number)).isoformat() for number in range(300)]
    items: list[dict[str, Any]] = [{"_id": f"m{n}", "created_at": time} for n, time in enumerate(times)]
    items[-1 - position]["created_at"] = wrong
    with Sandbox(SandboxOptions(conversations=0)) as box:
        one = box.put(items)
        for number, window in enumerate(
            (
                Window(begin + timedelta(minutes=20), None),
                Window(begin + timedelta(minutes=20), begin + timedelta(minutes=180)),
                Window(None, begin + timedelta(minutes=180)),
            )
        ):
            bench = Bench(box, str(tmp_path / f"lake-{number}"))

            bench.run([one], window=window)

            expected = inside([item for item in items if item["created_at"] is not None], window)
            assert bench.messages(one).keys() == expected.keys()


@pytest.mark.parametrize(("chance", "most", "cost"), [(0.1, 2, 1.0), (0.4, 30, 10.0)])
def test_a_window_of_a_moving_list_is_complete(tmp_path: Path, chance: float, most: int, cost: float) -> None:
    rng = Random(5)
    with Sandbox(SandboxOptions(conversations=0, sizes=(5_000,))) as box:
        one = next(iter(box.conversations))
        for number in range(3):
            truth = box.truth(one)
            since = at(truth[rng.randrange(len(truth) // 2)])
            window = Window(since, since + timedelta(days=rng.choice([0.02, 0.3, 0.6])))
            before = inside(truth, window)
            bench = Bench(box, str(tmp_path / f"lake-{number}"))
            box.reset_stats()

            def move(conversation_id: str, _: int) -> None:
                if rng.random() < chance:
                    box.append(conversation_id, rng.randint(1, most))
                if rng.random() < chance:
                    box.delete(conversation_id, rng.randint(1, most))

            box.before_page(move)
            summary = bench.run([one], window=window)
            box.before_page(None)

            assert not summary.dead_letters, summary.dead_letters
            assert box.stats().accepted <= cost * math.ceil(len(before) / 100) + 40
            after = inside(box.truth(one), window)
            stayed = before.keys() & after.keys()
            found = bench.messages(one) if stayed else {}
            assert stayed <= found.keys() <= before.keys() | after.keys()


def test_after_a_window_an_export_reads_the_rest_without_duplicates(bench: Bench) -> None:
    one = list(bench.box.conversations)[1]
    middle = bench.box.truth(one)[40:60]
    bench.run([one], window=Window(at(middle[0]), at(middle[-1])))

    summary = bench.run([one])

    assert dict(summary.totals.conversations) == {"complete": 1}
    assert not bench.differences([one])
    assert not bench.wrong_hashes()


def test_a_window_finds_an_old_edit_and_the_next_run_keeps_it(bench: Bench) -> None:
    box = bench.box
    box_before = box.conversations
    one = list(box_before)[1]
    bench.run([one])
    old = box.truth(one)[5]
    box.edit(one, [old["_id"]])

    bench.run([one], window=Window(at(old), at(old) + timedelta(milliseconds=1)))

    assert (
        to_item(bench.messages(one)[old["_id"]]) == {item["_id"]: item for item in box.truth(one)}[old["_id"]]
    )
    assert [row["message_id"] for row in bench.ledger("revisions")] == [old["_id"]]
    assert bench.verify().is_sound
    summary = bench.run([one])
    assert dict(summary.totals.conversations) == {"complete": 1}
    assert not bench.differences([one])
    assert not bench.wrong_hashes()
    assert dict(bench.run([one]).totals.conversations) == {"unchanged": 1}


def test_a_window_marks_no_message_deleted(bench: Bench) -> None:
    box = bench.box
    one = list(box.conversations)[1]
    bench.run([one])
    lost = box.truth(one)[7]
    box.delete(one, [lost["_id"]])

    bench.run([one], window=Window(at(lost), at(lost) + timedelta(hours=1)))
    assert not bench.messages(one)[lost["_id"]]["is_deleted"]

    bench.run([one])
    assert bench.messages(one)[lost["_id"]]["is_deleted"]
    assert not bench.wrong_hashes()


def test_a_window_that_ends_in_the_future_is_proven_only_until_now(bench: Bench) -> None:
    one = list(bench.box.conversations)[1]

    bench.run([one], window=Window(None, datetime(2999, 1, 1, tzinfo=UTC)))

    entry = bench.ledger("conversations")[0]
    assert entry["proven_until"] == bench.now > START
    assert entry["proven_from"] == entry["first_message_at"]
