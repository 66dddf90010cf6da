"""A walk finds every message that existed throughout, or reports that it is incomplete."""

from __future__ import annotations

import asyncio
import gc
import random
from collections.abc import Container, Iterable
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from imbrace_lake.gateway.message_list import DEFAULT_BOUNDS, Bounds, Fetch, MessageList
from imbrace_lake.gateway.models import Page
from imbrace_lake.gateway.passes import Moved, PositionReading
from imbrace_lake.gateway.read_ahead import MAX_AHEAD_BYTES
from imbrace_lake.gateway.walk import REPEATS, Proof, Walk
from tests.acceptance.scale import IS_FULL
from tests.core.moving_list import MovingList, plain_offset_walk

CAPS = (5, 7, 50, 100, None)
WALKS, GROUPS = (3_000, 15) if IS_FULL else (800, 4)
LENGTHS = (
    *range(26),
    49,
    50,
    51,
    99,
    100,
    101,
    199,
    200,
    201,
    350,
    699,
    700,
    701,
    1_000,
    1_999,
    2_000,
    2_001,
)


@dataclass
class Walked:
    """The result of a walk over a list."""

    moving: MovingList
    proof: Proof
    pages: list[Page]

    @property
    def seen(self) -> set[str]:
        return {message_id for page in self.pages for message_id in page.ids}


def walked(
    moving: MovingList,
    *,
    limit: int = 100,
    read_ahead: int = 8,
    known: Container[str] = frozenset(),
    **options: Any,
) -> Walked:
    pages: list[Page] = []

    async def read() -> Proof:
        async with Walk(moving.fetch, limit=limit, read_ahead=read_ahead, **options) as walk:
            async for page in walk:
                pages.append(page)
                if any(message_id in known for message_id in page.ids):
                    walk.stop()
        return walk.proof

    return Walked(moving, asyncio.run(read()), pages)


def a_moving_list(seed: int) -> MovingList:
    """Make a list of random length that changes rarely or often, on a server with random habits."""
    rng = random.Random(seed)
    return MovingList(
        [f"m{n}" for n in range(rng.choice((0, 1, 2, 5, 30, 99, 100, 101, 250, rng.randint(0, 500))))],
        rng,
        cap=rng.choice(CAPS),
        arrive=rng.choice((0.0, 0.02, 0.1, 0.4)),
        vanish=rng.choice((0.0, 0.02, 0.1, 0.4)),
        swap=rng.choice((0.0, 0.0, 0.1)),
        flicker=rng.choice((0.0, 0.0, 0.2)),
        burst=rng.choice((1, 3, 12, 60)),
        counts=rng.choice(("right", "swapped", "both", "none")),
        has_more=rng.random() < 0.7,
    )


# -- lists that move ------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("group", range(GROUPS))
def test_no_message_is_lost_silently_while_the_list_moves(group: int) -> None:
    complete = 0
    for seed in range(group, WALKS, GROUPS):
        moving = a_moving_list(seed)

        result = walked(moving, limit=random.Random(seed).choice((10, 100)))

        if result.proof.is_complete:
            complete += 1
            assert moving.must_see() <= result.seen, f"seed {seed}: {result.proof}"
            assert result.proof.distinct == len(result.seen), f"seed {seed}"
            assert result.proof.reason == ""
        else:
            assert result.proof.reason
    # A walk that always gave up would keep the promise, but be useless.
    assert complete > 0.8 * WALKS / GROUPS


def test_a_plain_offset_walk_of_the_same_lists_loses_messages() -> None:
    losses = 0
    for seed in range(300):
        moving = a_moving_list(seed)
        moving.counts = "right"

        seen = asyncio.run(plain_offset_walk(moving, 100))

        losses += not moving.must_see() <= set(seen)
    assert losses > 20


@pytest.mark.parametrize("cap", CAPS)
@pytest.mark.parametrize("counts", ["right", "both", "none"])
def test_a_list_that_moves_now_and_then_is_always_proven(cap: int | None, counts: str) -> None:
    for seed in range(15):
        moving = MovingList.of(
            300, seed, cap=cap, counts=counts, arrive=0.03, vanish=0.03, swap=0.03, burst=3
        )

        result = walked(moving)

        assert result.proof.is_complete, f"seed {seed}: {result.proof}"
        assert moving.must_see() <= result.seen


@pytest.mark.slow
@pytest.mark.parametrize("group", range(4))
def test_pages_read_ahead_edge_to_edge_lose_nothing(group: int) -> None:
    """Walk long lists in small pages, answered in any order, with as many arrivals as deletions."""
    for seed in range(group, 240, 4):
        rng = random.Random(seed)
        cap = rng.choice((2, 3, 5, 7))
        moving = MovingList.of(
            cap * rng.randint(20, 35), seed, cap=cap, swap=rng.choice((0.01, 0.1)), burst=12, delay=12
        )
        known = frozenset(moving.ids[rng.randrange(len(moving.ids)) :]) if seed % 2 else frozenset()

        result = walked(moving, known=known)

        if result.proof.is_complete:
            assert moving.must_see() - known <= result.seen, f"seed {seed}: {result.proof}"


def a_turnover(late: int, early: int) -> MovingList:
    """While pages are under way, twenty messages arrive and the twenty oldest vanish: the count stays.

    The page at `late` is served after that, those up to `early` before: it has only messages that
    arrived, so no message comes twice and no count differs.
    """
    moving = MovingList.of(150, cap=5)
    is_early_served = asyncio.Event()

    async def fetch(skip: int, limit: int) -> Page:
        if skip == late and early not in moving.asked:
            await is_early_served.wait()
            for _ in range(20):
                moving.insert()
                moving.delete(len(moving.ids) - 1)
        page = moving.serve(skip, limit)
        if skip == early:
            is_early_served.set()
        return page

    moving.fetch = fetch  # type: ignore[method-assign]
    return moving


@pytest.mark.parametrize("known", [frozenset(), frozenset(f"m{n}" for n in range(40, 150))])
def test_a_late_page_with_only_new_messages_is_noticed(known: frozenset[str]) -> None:
    moving = a_turnover(late=10, early=40)

    result = walked(moving, known=known)

    assert moving.must_see() - known <= result.seen
    assert result.proof.is_complete


@pytest.mark.parametrize("cap", [1, 5, 7, 50, None])
def test_a_list_emptied_while_it_is_read_ends(cap: int | None) -> None:
    def empty(moving: MovingList) -> None:
        if moving.requests == 2:
            while moving.ids:
                moving.delete(0)

    result = walked(MovingList.of(260, cap=cap, on_move=empty))

    assert result.proof.is_complete
    assert result.proof.server_count == 0


def test_a_list_that_grows_faster_than_it_is_read_ends_as_incomplete() -> None:
    moving = MovingList.of(200, cap=10, arrive=1.0, burst=40)

    result = walked(moving)

    assert not result.proof.is_complete
    assert "the gateway's list did not end within 232 requests: it counted 233 messages at first, then" in (
        result.proof.reason
    )
    assert moving.requests <= 232


@pytest.mark.slow
@pytest.mark.parametrize("has_more", [True, False])
@pytest.mark.parametrize("counts", ["right", "frozen", "none"])
@pytest.mark.parametrize("kind", ["inflow", "older"])
@pytest.mark.parametrize("cap", [5, 100])
def test_a_walk_of_a_list_without_end_is_bounded_by_its_length_at_first(
    kind: str, counts: str, has_more: bool, cap: int
) -> None:
    """More messages arrive than fit into a page, or the server keeps inventing older ones."""

    def grow(moving: MovingList) -> None:
        for _ in range(2 * cap):
            moving.insert(0 if kind == "inflow" else len(moving.ids))
        if counts == "frozen":
            moving.count_error = 1_100 - len(moving.ids)

    moving = MovingList.of(1_100, cap=cap, has_more=has_more, on_move=grow)
    moving.counts = "none" if counts == "none" else "right"
    moving.is_lying = has_more

    result = walked(moving, bounds=Bounds(uncounted_messages=2_000))

    first = 2_000 if counts == "none" else 1_100 + 2 * cap
    assert moving.requests <= 40 + 8 * (first / cap + 1)
    assert len(result.seen) <= cap * moving.requests
    if not result.proof.is_complete:
        assert result.proof.reason
    else:
        # A list whose count never grows ends at its count, unless the server states that there is more.
        assert counts == "frozen"


@pytest.mark.slow
def test_a_list_without_count_or_end_names_the_setting_that_bounds_it() -> None:
    def grow(moving: MovingList) -> None:
        for _ in range(100):
            moving.insert(len(moving.ids))

    moving = MovingList.of(1_000, counts="none", is_lying=True, on_move=grow)

    result = walked(moving)

    assert result.proof.reason == (
        "the gateway lists more than 100,000 messages without a count: set IMBRACE_MAX_UNCOUNTED_MESSAGES to"
        " more if the conversation is that long"
    )
    assert moving.requests < 1_100


def test_a_list_with_a_huge_count_is_bounded_by_the_setting() -> None:
    def grow(moving: MovingList) -> None:
        moving.count_error = 10**12 - len(moving.ids)
        for _ in range(100):
            moving.insert(len(moving.ids))

    moving = MovingList.of(1_000, on_move=grow)

    result = walked(moving, bounds=Bounds(messages=20_000))

    assert not result.proof.is_complete
    assert len(result.seen) <= 20_000 + 100
    assert moving.requests < 500


@pytest.mark.parametrize("counts", ["right", "none"])
@pytest.mark.parametrize("burst", [3, 40])
def test_a_long_conversation_that_grows_while_it_is_read_is_proven(counts: str, burst: int) -> None:
    """Up to 40 messages arrive during each page of 100."""
    moving = MovingList.of(20_000, counts=counts, arrive=1.0, burst=burst)

    result = walked(moving)

    assert result.proof.is_complete, result.proof
    assert moving.must_see() <= result.seen


@pytest.mark.parametrize("counts", ["right", "none"])
def test_back_dated_arrivals_hide_no_message_if_pages_overlap(counts: str) -> None:
    for seed in range(60):
        moving = MovingList.of(
            400, seed, cap=50, counts=counts, arrive=0.3, vanish=0.1, burst=5, backdated=0.5
        )

        result = walked(moving)

        if result.proof.is_complete and result.proof.method == "overlap":
            assert moving.must_see() <= result.seen, f"seed {seed}: {result.proof}"


def test_a_back_dated_arrival_is_found_by_another_pass_of_a_moving_list() -> None:
    def move(moving: MovingList) -> None:
        if moving.requests == 4:
            moving.insert(150)  # between messages of the second page, which has been read
        elif moving.requests > 5:
            moving.insert()

    moving = MovingList.of(350, on_move=move)

    result = walked(moving, read_ahead=1)

    assert result.proof.is_complete, result.proof
    assert result.proof.method == "overlap"
    assert "new1" in result.seen


def test_a_full_page_without_older_messages_is_not_the_end_of_a_list_without_counts() -> None:
    def move(moving: MovingList) -> None:
        if moving.requests in (2, 3):
            for _ in range(8):  # moves the list down by the length of the next page
                moving.insert()
        elif moving.requests == 4:
            for _ in range(20):  # moves it up again, so that it ends above the next position
                moving.delete(0)

    moving = MovingList.of(30, counts="none", has_more=False, on_move=move)

    result = walked(moving, limit=10)

    assert result.proof.is_complete
    assert moving.must_see() <= result.seen


def test_short_pages_without_older_messages_are_not_the_end_while_there_is_a_message_below() -> None:
    def shorten(moving: MovingList) -> None:
        moving.cap = 2 if moving.requests in (2, 3) else None

    moving = MovingList.of(30, counts="none", has_more=False, on_move=shorten)

    result = walked(moving, limit=10)

    assert result.proof.is_complete
    assert result.seen == set(moving.ids)


@pytest.mark.parametrize("counts", ["right", "none"])
def test_a_conversation_of_tiny_pages_that_loses_messages_is_not_complete(counts: str) -> None:
    """Pages of one message cannot overlap, so without a count they prove nothing."""
    for seed in range(60):
        moving = MovingList.of(30, seed, cap=1, counts=counts, vanish=0.1)

        result = walked(moving)

        if result.proof.is_complete:
            assert moving.must_see() <= result.seen, f"seed {seed}: {result.proof}"
        if counts == "none":
            assert "too short to be tied" in result.proof.reason


# -- generated sequences of events ------------------------------------------------------------------


@pytest.mark.slow
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    length=st.integers(0, 60),
    cap=st.sampled_from([1, 2, 3, 5, 7, None]),
    limit=st.sampled_from([3, 10, 100]),
    counts=st.sampled_from(["right", "swapped", "both", "none"]),
    has_more=st.booleans(),
    read_ahead=st.integers(1, 4),
    known_from=st.none() | st.integers(0, 60),
    events=st.lists(
        st.tuples(st.integers(1, 12), st.sampled_from("+-="), st.integers(0, 80), st.integers(1, 12)),
        max_size=6,
    ),
)
def test_a_complete_walk_saw_everything_whatever_happens_before_any_page(
    length: int,
    cap: int | None,
    limit: int,
    counts: str,
    has_more: bool,
    read_ahead: int,
    known_from: int | None,
    events: list[tuple[int, str, int, int]],
) -> None:
    def happen(moving: MovingList) -> None:
        for number, kind, position, many in events:
            if number != moving.requests:
                continue
            for _ in range(many):
                if kind in "+=":
                    moving.insert()
                if kind in "-=" and moving.ids:
                    moving.delete(min(position, len(moving.ids) - 1))

    moving = MovingList.of(length, cap=cap, counts=counts, has_more=has_more, on_move=happen)
    known = frozenset(moving.ids[known_from:]) if known_from is not None else frozenset()

    result = walked(moving, limit=limit, read_ahead=read_ahead, known=known)

    if result.proof.is_complete:
        assert moving.must_see() - known <= result.seen
    else:
        assert result.proof.reason


# -- unchanged lists -------------------------------------------------------------------------------


@pytest.mark.parametrize("cap", [*CAPS, 1, 2, 99])
@pytest.mark.parametrize("has_more", [True, False])
def test_an_unchanged_list_costs_at_most_a_twentieth_more_than_the_fewest_requests(
    cap: int | None, has_more: bool
) -> None:
    for length in LENGTHS:
        moving = MovingList.of(length, cap=cap, has_more=has_more)

        result = walked(moving)

        assert result.proof.is_complete, f"{length} messages: {result.proof}"
        assert len(result.seen) == length == result.proof.distinct
        assert result.proof.did_not_move
        assert 20 * moving.requests <= 21 * moving.fewest(100) + 19, f"{length} messages: {moving.requests}"


@pytest.mark.parametrize("counts", ["both", "none"])
@pytest.mark.parametrize("has_more", [True, False])
@pytest.mark.parametrize("cap", CAPS)
def test_an_unchanged_list_is_proven_whatever_the_server_leaves_out(
    counts: str, has_more: bool, cap: int | None
) -> None:
    for length in (0, 2, 4, 5, 6, 49, 50, 51, 100, 101, 350):
        result = walked(MovingList.of(length, cap=cap, counts=counts, has_more=has_more))

        assert result.proof.is_complete, f"{length} messages: {result.proof}"
        assert len(result.seen) == length


def test_a_single_message_without_count_and_has_more_proves_nothing() -> None:
    result = walked(MovingList.of(1, counts="none", has_more=False))

    assert result.seen == {"m0"}
    assert not result.proof.is_complete


@pytest.mark.parametrize("error", [1, 3, -1, -3])
@pytest.mark.parametrize("length", [0, 3, 50, 100, 230])
def test_a_walk_with_a_wrong_count_is_incomplete_with_the_reason(error: int, length: int) -> None:
    moving = MovingList.of(length, cap=50, count_error=error)
    claimed = max(0, length + error)

    result = walked(moving)

    assert len(result.seen) == length
    assert result.proof.is_complete == (claimed == length)
    if claimed > length:
        assert result.proof.reason == f"the gateway counts {claimed} messages, but lists {length}"
    elif claimed < length:
        assert result.proof.reason == f"the gateway lists {length} messages, but counts {claimed}"


@pytest.mark.parametrize("counts", ["right", "both", "none"])
@pytest.mark.parametrize("cap", [1, 2, 5, 50, None])
def test_has_more_that_is_always_true_counts_only_if_the_count_allows(counts: str, cap: int | None) -> None:
    moving = MovingList.of(120, cap=cap, counts=counts, is_lying=True)

    result = walked(moving)

    assert moving.requests <= 400
    if result.proof.is_complete:
        assert len(result.seen) == 120
        assert counts != "none"
    if cap not in (1, 2) and counts == "right":
        assert result.proof.is_complete


def test_has_more_that_is_always_false_counts_only_if_the_count_allows() -> None:
    moving = MovingList.of(250)
    serve = moving.serve
    moving.serve = lambda skip, limit: replace(serve(skip, limit), has_more=False)  # type: ignore[method-assign]

    result = walked(moving)

    assert result.proof.is_complete
    assert result.seen == set(moving.ids)
    assert moving.requests <= moving.fewest(100) + 1


# -- lists that contain messages more than once ----------------------------------------------------


def with_repeats(length: int, copies: Iterable[tuple[int, int]], **options: Any) -> MovingList:
    """Make a list in which some positions repeat the message of another one."""
    moving = MovingList.of(length, **options)
    for position, original in copies:
        moving.ids[position] = moving.ids[original]
    return moving


REPEATED: dict[str, tuple[int, list[tuple[int, int]]]] = {
    "far apart": (230, [(120, 7)]),
    "side by side": (230, [(100, 99)]),
    "within a page": (230, [(20, 10)]),
    "at the head": (230, [(1, 0)]),
    "at the end": (230, [(229, 228)]),
    "first and last": (230, [(229, 0)]),
    "three times": (230, [(100, 7), (200, 7)]),
    "a complete page": (300, [(100 + n, n) for n in range(100)]),
    "every message twice": (200, [(2 * n + 1, 2 * n) for n in range(100)]),
    "nothing else": (60, [(n, 0) for n in range(1, 60)]),
    "a long list": (3_000, [(2_500, 3), (17, 900)]),
}


@pytest.mark.parametrize("cap", [7, 50, None])
@pytest.mark.parametrize("has_more", [True, False])
@pytest.mark.parametrize("case", REPEATED)
def test_a_list_with_repeats_is_incomplete_and_can_be_accepted(
    case: str, cap: int | None, has_more: bool
) -> None:
    length, copies = REPEATED[case]
    refused = walked(with_repeats(length, copies, cap=cap, has_more=has_more))
    accepted = walked(with_repeats(length, copies, cap=cap, has_more=has_more), accept_repeats=True)

    distinct = length - len(copies)
    assert (
        refused.proof.reason
        == accepted.proof.reason
        == (
            f"{len(copies)} of the {length:,} positions in the gateway's list repeat a message,"
            f" the same in two readings, so its count cannot match the {distinct:,} different messages"
        )
    )
    assert (refused.proof.is_complete, accepted.proof.is_complete) == (False, True)
    assert refused.proof.method == accepted.proof.method == REPEATS
    assert accepted.proof.distinct == distinct == len(accepted.seen)
    assert accepted.seen == set(accepted.moving.ids)


@pytest.mark.parametrize("group", range(4))
def test_a_list_with_repeats_that_moves_is_accepted_only_if_nothing_is_missing(group: int) -> None:
    accepted = 0
    for seed in range(group, 240, 4):
        rng = random.Random(seed)
        moving = with_repeats(
            300, [(rng.randrange(300), rng.randrange(300)) for _ in range(rng.choice((1, 5)))], seed=seed,
            cap=rng.choice((20, 50, 100)), arrive=rng.choice((0.0, 0.05)), vanish=rng.choice((0.0, 0.05)),
            swap=rng.choice((0.0, 0.05)),
        )  # fmt: skip

        result = walked(moving, accept_repeats=True)

        if result.proof.is_complete:
            accepted += 1
            assert moving.must_see() <= result.seen, f"seed {seed}: {result.proof}"
            assert result.proof.distinct == len(result.seen)
    assert accepted > 10


@pytest.mark.parametrize("what", ["position", "message"])
def test_repeats_that_differ_between_two_readings_are_not_accepted(what: str) -> None:
    def change(moving: MovingList) -> None:
        # Each reading begins at the head; the list does not move during a reading.
        reading = moving.asked.count(0)
        moving.ids[:] = [f"m{n}" for n in range(229)]
        if what == "position":
            moving.ids.insert(100 + reading, "m7")
        else:
            moving.ids.insert(100, f"m{reading}")

    result = walked(MovingList.of(229, on_move=change), accept_repeats=True)

    assert not result.proof.is_complete
    assert result.proof.reason == "the gateway counts 230 messages, but lists 229"


def test_a_message_that_arrives_between_two_readings_does_not_change_the_repeats() -> None:
    still = walked(with_repeats(300, [(250, 7)], cap=50))
    last_reading = still.moving.asked.count(0)

    def arrive(moving: MovingList) -> None:
        if moving.asked[-1] == 0 and moving.asked.count(0) == last_reading:
            moving.insert()

    result = walked(with_repeats(300, [(250, 7)], cap=50, on_move=arrive), accept_repeats=True)

    assert (result.proof.is_complete, result.proof.method) == (True, REPEATS)
    assert result.seen == set(result.moving.ids)


@pytest.mark.parametrize("is_count_the_same", [True, False])
def test_a_reading_of_positions_ends_when_the_list_moves(is_count_the_same: bool) -> None:
    moving = with_repeats(300, [(250, 7)], cap=50)

    async def read() -> None:
        reading = PositionReading(MessageList(moving.fetch, 100, DEFAULT_BOUNDS, None))
        await reading.next_page()
        moving.insert()
        if is_count_the_same:
            moving.delete(200)
        else:
            moving.ids[49] = moving.ids[50]  # the message that the next page shares with the first
        await reading.next_page()

    with pytest.raises(Moved):
        asyncio.run(read())


def test_repeats_are_not_accepted_when_a_message_was_deleted_during_the_walk() -> None:
    """The repeats are the count less the different messages, one of which was deleted after it was read."""

    def vanish(moving: MovingList) -> None:
        # During the first pass, which has already read the message.
        if moving.asked.count(0) == 1 and moving.asked[-1] > 150 and "m100" in moving.ids:
            moving.delete(moving.ids.index("m100"))

    result = walked(with_repeats(300, [(250, 7)], cap=50, on_move=vanish), accept_repeats=True)

    assert "m100" in result.seen
    assert "m100" not in result.moving.ids
    assert not result.proof.is_complete


def test_a_walk_is_not_stopped_while_it_checks_for_repeats() -> None:
    plain, moving = (with_repeats(230, [(120, 7)], cap=50, delay=0) for _ in range(2))
    most_heads = sum(page.skip == 0 for page in walked(plain).pages)

    async def read() -> Proof:
        heads = 0
        async with Walk(moving.fetch) as walk:
            async for page in walk:
                heads += page.skip == 0
                # The check is the last reading that begins at the head.
                if heads == most_heads:
                    walk.stop()
        return walk.proof

    proof = asyncio.run(read())

    assert (proof.method, proof.is_complete) == (REPEATS, False)
    assert moving.asked == plain.asked


@pytest.mark.parametrize("length", [101, 230])
def test_a_list_longer_than_its_count_is_not_a_list_with_repeats(length: int) -> None:
    """By the count of 100, the list of 101 ends with its first page."""
    moving = with_repeats(length, [(50, 7)], count_error=-1, has_more=False)

    result = walked(moving, accept_repeats=True)

    assert f"m{length - 1}" in result.seen or not result.proof.is_complete


def test_messages_that_the_gateway_never_lists_make_the_walk_incomplete() -> None:
    moving = MovingList.of(230, cap=50)
    serve = moving.serve

    def leave_out(skip: int, limit: int) -> Page:
        page = serve(skip, limit)
        ids = [message_id for message_id in page.ids if message_id not in ("m70", "m71")]
        items = [{"_id": message_id} for message_id in ids]
        return Page(page.skip, items, ids, page.total_count, page.has_more, count_matches=True)

    moving.serve = leave_out  # type: ignore[method-assign]

    result = walked(moving)

    assert result.proof.reason == "the gateway counts 230 messages, but lists 228"


# -- servers with a changing cap ------------------------------------------------------------------


@pytest.mark.parametrize(("first", "then"), [(100, 50), (100, 20), (100, 10), (20, 100), (7, 50), (50, 7)])
@pytest.mark.parametrize("length", [500, 3_000])
def test_a_cap_that_changes_costs_few_requests(first: int, then: int, length: int) -> None:
    def change(moving: MovingList) -> None:
        moving.cap = first if moving.requests <= 3 else then

    moving = MovingList.of(length, on_move=change)

    result = walked(moving)

    assert result.proof.is_complete
    assert len(result.seen) == length
    # The pass that found the change, and another with overlap.
    assert moving.requests <= 2.4 * length / then + length / first + 20


def test_a_list_that_moves_after_its_pages_grew_is_read_again_with_overlap() -> None:
    """Small pages are read ahead edge to edge, then long ones overlap, then a message arrives."""

    def change(moving: MovingList) -> None:
        moving.cap = 7 if moving.requests <= 30 else 50
        if moving.requests == 45:
            moving.insert()

    moving = MovingList.of(1_050, on_move=change)

    result = walked(moving)

    assert result.proof.is_complete
    assert moving.must_see() <= result.seen
    assert result.proof.method == "overlap"


def test_pages_of_every_length_overlap_without_needless_requests() -> None:
    def vary(moving: MovingList) -> None:
        moving.cap = moving.rng.randint(20, 100)

    moving = MovingList.of(3_000, on_move=vary)

    result = walked(moving)

    assert result.proof.is_complete
    assert len(result.seen) == 3_000
    assert moving.requests < 3 * 3_000 / 60


@pytest.mark.parametrize("has_more", [True, False])
def test_changing_caps_of_a_moving_list_lose_nothing(has_more: bool) -> None:
    for seed in range(120):
        rng = random.Random(seed)
        moving = MovingList.of(
            rng.randint(50, 400), seed, cap=50, caps=(1, 2, 3, 5, 10, 50, None), arrive=0.05, vanish=0.05,
            burst=3, counts=rng.choice(("right", "both", "none")), has_more=has_more,
        )  # fmt: skip

        result = walked(moving)

        if result.proof.is_complete:
            assert moving.must_see() <= result.seen, f"seed {seed}: {result.proof}"


# -- down to known messages ------------------------------------------------------------------------


@pytest.mark.parametrize("cap", CAPS)
@pytest.mark.parametrize("new", [0, 1, 5, 99, 100, 240])
def test_a_walk_ends_at_the_first_page_with_a_known_message(cap: int | None, new: int) -> None:
    moving = MovingList.of(1_000, cap=cap)
    known = frozenset(moving.ids[new:])

    result = walked(moving, known=known, read_ahead=1)

    assert result.proof.is_complete
    assert result.proof.method == "joined"
    assert set(moving.ids[:new]) <= result.seen
    assert moving.requests <= new / min(100, cap or 100) * 1.25 + 3


def test_a_walk_down_to_known_messages_never_skips_arrivals_in_a_moving_list() -> None:
    for seed in range(200):
        moving = MovingList.of(
            random.Random(seed).randint(20, 400), seed, cap=random.Random(seed).choice(CAPS), arrive=0.1,
            vanish=0.1, swap=0.1, burst=6,
        )  # fmt: skip
        known = frozenset(moving.ids[random.Random(seed).randint(0, len(moving.ids)) :])

        result = walked(moving, known=known)

        if result.proof.is_complete:
            assert moving.must_see() - known <= result.seen, f"seed {seed}: {result.proof}"


def test_a_conversation_whose_known_messages_are_all_deleted_is_read_to_the_bottom() -> None:
    result = walked(MovingList.of(120, cap=50), known=frozenset({"gone1", "gone2"}))

    assert result.proof.is_complete
    assert result.proof.method != "joined"
    assert len(result.seen) == 120


@pytest.mark.parametrize("length", [0, 40, 230, 3_000])
def test_a_head_that_was_read_already_is_not_requested_again(length: int) -> None:
    plain, given = MovingList.of(length, delay=0), MovingList.of(length, delay=0)
    head = given.serve(0, 100)

    without, result = walked(plain), walked(given, head=head)

    assert result.pages[0] is head
    assert given.asked == plain.asked
    assert result.proof == without.proof


def test_there_is_no_proof_before_the_last_page() -> None:
    async def read_two_pages() -> None:
        async with Walk(MovingList.of(1_000).fetch) as walk:
            pages = aiter(walk)
            await anext(pages)
            await anext(pages)
            with pytest.raises(RuntimeError, match="has not ended"):
                _ = walk.proof

    asyncio.run(read_two_pages())


# -- read-ahead -----------------------------------------------------------------------------------


@pytest.mark.parametrize("cap", [10, 100])
@pytest.mark.parametrize("read_ahead", [1, 3, 8])
def test_pages_of_a_long_conversation_are_read_ahead_within_the_limit(cap: int, read_ahead: int) -> None:
    moving = MovingList.of(3_000, cap=cap, delay=6)

    result = walked(moving, read_ahead=read_ahead)

    assert result.proof.is_complete
    assert moving.most_under_way == read_ahead


def test_a_moving_list_has_at_most_the_allowed_pages_under_way() -> None:
    for seed in range(60):
        moving = MovingList.of(
            800, seed, cap=random.Random(seed).choice((10, 50)), caps=(10, 50, 100) if seed % 2 else (),
            arrive=0.1, vanish=0.1, burst=3, delay=6,
        )  # fmt: skip

        walked(moving, read_ahead=4)

        assert moving.most_under_way <= 5


def test_large_pages_are_not_read_ahead() -> None:
    """Eight pages of several megabytes per conversation would not fit into memory."""
    moving = MovingList.of(3_000, cap=100)
    serve = moving.serve
    under_way: list[int] = []

    def serve_large(skip: int, limit: int) -> Page:
        under_way.append(moving.under_way)
        return replace(serve(skip, limit), size_bytes=MAX_AHEAD_BYTES + 1)

    moving.serve = serve_large  # type: ignore[method-assign]

    result = walked(moving)

    assert result.proof.is_complete
    assert max(under_way) == 1


def test_a_large_page_that_was_read_ahead_is_dropped_and_requested_in_its_turn() -> None:
    moving = MovingList.of(3_000, cap=100, delay=0)
    serve = moving.serve
    large = 1_000
    served: dict[int, int] = {}

    def serve_sizes(skip: int, limit: int) -> Page:
        page = serve(skip, limit)
        served[skip] = served.get(skip, 0) + 1
        return replace(page, size_bytes=MAX_AHEAD_BYTES + 1 if large <= skip < large + 100 else 1_000)

    moving.serve = serve_sizes  # type: ignore[method-assign]

    result = walked(moving)

    assert result.proof.is_complete
    again = [skip for skip, times in served.items() if times > 1 and skip > 0]
    assert len(again) == 1
    assert large <= again[0] < large + 100


async def read_all(fetch: Fetch) -> None:
    async with Walk(fetch) as walk:
        async for _ in walk:
            pass


def test_a_walk_that_ends_early_cancels_its_requests() -> None:
    moving = MovingList.of(3_000, cap=100, delay=30)

    async def leave() -> set[asyncio.Task[object]]:
        async with Walk(moving.fetch) as walk:
            async for page in walk:
                if page.skip > 200:
                    break
        return asyncio.all_tasks() - {asyncio.current_task()}

    left = asyncio.run(leave())

    assert not left
    assert moving.under_way == 0


class Failure(Exception):
    """The error of a page under way."""


@pytest.mark.parametrize("failing_skip", [490, 500, 980, 1_000])
def test_an_error_of_one_page_ends_the_walk_and_leaves_no_task_behind(failing_skip: int) -> None:
    moving = MovingList.of(3_000, cap=100, delay=3)
    complaints: list[str] = []

    async def fetch(skip: int, limit: int) -> Page:
        page = await moving.fetch(skip, limit)
        if skip >= failing_skip:
            raise Failure
        return page

    async def check() -> set[asyncio.Task[object]]:
        asyncio.get_running_loop().set_exception_handler(
            lambda _, context: complaints.append(context["message"])
        )
        with pytest.raises(Failure):
            await read_all(fetch)
        return asyncio.all_tasks() - {asyncio.current_task()}

    # What other modules left would be reported to this event loop.
    gc.collect()
    left = asyncio.run(check())
    gc.collect()

    assert not left
    assert not complaints


@pytest.mark.parametrize("error", [StopIteration, StopAsyncIteration])
@pytest.mark.parametrize("failing_skip", [0, 294, 980])
def test_an_iterator_that_ends_inside_a_request_is_not_the_end_of_the_list(
    failing_skip: int, error: type[Exception]
) -> None:
    moving = MovingList.of(3_000, cap=100)

    async def fetch(skip: int, limit: int) -> Page:
        if skip >= failing_skip:
            raise error
        return await moving.fetch(skip, limit)

    with pytest.raises(RuntimeError, match=error.__name__):
        asyncio.run(read_all(fetch))


@pytest.mark.parametrize("turns", [1, 5, 9, 20])
def test_a_cancelled_walk_cancels_its_requests(turns: int) -> None:
    moving = MovingList.of(3_000, cap=100, delay=30)
    complaints: list[str] = []

    async def check() -> set[asyncio.Task[object]]:
        asyncio.get_running_loop().set_exception_handler(
            lambda _, context: complaints.append(context["message"])
        )
        task = asyncio.create_task(read_all(moving.fetch))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return asyncio.all_tasks() - {asyncio.current_task()}

    # What other modules left would be reported to this event loop.
    gc.collect()
    left = asyncio.run(check())
    gc.collect()

    assert not left
    assert not complaints
    assert moving.under_way == 0
