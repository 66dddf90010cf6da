"""Processes that share one limit by leases use all of it and do not exceed it together, in simulated time."""

from __future__ import annotations

import asyncio
import logging
import random
import re
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imbrace_lake.gateway.limiter import RequestLimiter
from imbrace_lake.gateway.shared_limit import (
    ROUND_SECONDS,
    Lease,
    LeasesUnreachable,
    _in_words,
    fair_share,
    share_limit,
)
from tests.core.clock import run_timeless
from tests.core.load import Load

LIFE_SECONDS = 30.0
SETTLED_SECONDS = 20.0


class Board:
    """The limit and the leases of all processes, and the highest sum of rates in use."""

    def __init__(self, limit: float | None) -> None:
        self.limit = limit
        self.is_unreachable = False
        self.leases: dict[int, tuple[float, Lease]] = {}
        self.limiters: list[RequestLimiter] = []
        self.most_used = 0.0

    def write(self, owner: int, lease: Lease) -> None:
        self.leases[owner] = (asyncio.get_running_loop().time(), lease)

    def measure(self) -> None:
        self.most_used = max(self.most_used, sum(limiter.per_second or 0.0 for limiter in self.limiters))


class BoardLeases:
    """One process's view of the board, with a delay."""

    def __init__(self, board: Board, seconds: float = 0.05) -> None:
        self._board = board
        self._seconds = seconds

    async def read_limit(self) -> float | None:
        await self._reach()
        return self._board.limit

    async def read_leases(self) -> Sequence[Lease]:
        await self._reach()
        oldest = asyncio.get_running_loop().time() - LIFE_SECONDS
        leases = self._board.leases.items()
        return [lease for owner, (at, lease) in leases if owner != id(self) and at >= oldest]

    async def write_lease(self, lease: Lease) -> None:
        await self._reach()
        self._board.write(id(self), lease)

    async def drop_lease(self) -> None:
        await self._reach()
        self._board.leases.pop(id(self), None)

    async def _reach(self) -> None:
        await asyncio.sleep(self._seconds)
        if self._board.is_unreachable:
            raise LeasesUnreachable("status 503")


class Process:
    """A process that exports under a shared limit."""

    def __init__(self, board: Board, load: Load, *, own: float | None = None, many: int = 50) -> None:
        self.limiter = RequestLimiter(per_second=own)
        self._board = board
        self._load = load
        self._own = own
        self._many = many

    async def run(self, since: float, until: float) -> None:
        await asyncio.sleep(since - asyncio.get_running_loop().time())
        async with share_limit(self.limiter, BoardLeases(self._board), "imbrace-requests", self._own):
            self._board.limiters.append(self.limiter)
            working = asyncio.create_task(self._load.press(self.limiter, until=until, many=self._many))
            while not working.done():
                self._board.measure()
                await asyncio.sleep(0.1)
            self._board.limiters.remove(self.limiter)


@pytest.fixture(autouse=True)
def seeded_jitter() -> None:
    random.seed(7)


# -- the fair share ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "others", "share"),
    [
        (10.0, [], 10.0),
        (3.0, [], 10.0),
        (10.0, [10.0], 5.0),
        (10.0, [10.0, 10.0, 10.0], 2.5),
        (10.0, [1.0], 9.0),
        (1.0, [10.0], 1.0),
        (10.0, [1.0, 10.0], 4.5),
        (2.0, [4.0], 4.0),
        (0.0, [0.0], 5.0),
    ],
)
def test_fair_share_is_max_min_fair(wanted: float, others: list[float], share: float) -> None:
    assert fair_share(10.0, wanted, others) == pytest.approx(share)


RATES = st.floats(0.0, 1000.0)


@given(RATES, st.lists(RATES, min_size=1, max_size=8))
def test_all_shares_together_are_the_limit(limit: float, wanted: list[float]) -> None:
    shares = [
        fair_share(limit, each, [*wanted[:position], *wanted[position + 1 :]])
        for position, each in enumerate(wanted)
    ]

    assert sum(shares) == pytest.approx(limit)
    assert min(shares) >= 0.0


# -- many processes, one limit ----------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["fixed", "bucket"])
@pytest.mark.parametrize(
    ("processes", "limit", "window_seconds"), [(1, 10, 1), (2, 10, 1), (3, 50, 1), (8, 200, 1), (8, 100, 10)]
)
def test_processes_use_one_limit_and_hardly_exceed_it(
    processes: int, limit: int, window_seconds: int, kind: str
) -> None:
    per_second = limit / window_seconds
    board, load = Board(per_second), Load(limit, window_seconds, kind)

    async def job() -> None:
        all_processes = [Process(board, load) for _ in range(processes)]
        await asyncio.gather(
            *(each.run(0.3 * position, 120.0) for position, each in enumerate(all_processes))
        )

    run_timeless(job())

    use = load.use(60.0, 120.0)
    assert use.per_second >= 0.85 * per_second
    assert use.limited_share < 0.02
    assert board.most_used <= per_second * 1.001


def test_an_unused_share_goes_to_another_process_until_it_is_needed() -> None:
    board, load = Board(10.0), Load(10)

    async def job() -> None:
        busy, idle = Process(board, load), Process(board, load, many=0)
        runs = [asyncio.create_task(each.run(0.0, 100.0)) for each in (busy, idle)]
        await asyncio.sleep(50.0)
        assert busy.limiter.per_second == pytest.approx(10.0, abs=0.1)
        pressing = asyncio.create_task(load.press(idle.limiter, until=100.0))
        await asyncio.sleep(SETTLED_SECONDS)
        assert busy.limiter.per_second == pytest.approx(5.0, rel=0.2)
        assert idle.limiter.per_second == pytest.approx(5.0, rel=0.2)
        await asyncio.gather(pressing, *runs)

    run_timeless(job())

    assert board.most_used <= 10.01
    assert load.use(30.0, 50.0).per_second >= 9.0
    assert load.use(70.0, 100.0).per_second >= 8.5


@pytest.mark.slow
def test_rates_of_starting_ending_and_killed_processes_stay_within_the_limit() -> None:
    board, load = Board(20.0), Load(20)

    async def job() -> None:
        rng = random.Random(3)
        starts = [rng.uniform(0.0, 200.0) for _ in range(12)]
        runs = [
            asyncio.create_task(Process(board, load).run(start, start + rng.uniform(5.0, 100.0)))
            for start in starts
        ]
        # A killed process leaves only its lease.
        board.write(0, Lease(15.0, 20.0))
        await asyncio.gather(*runs)

    run_timeless(job())

    assert board.most_used <= 20.02
    assert [*board.leases] == [0]


@pytest.mark.slow
def test_a_change_of_the_limit_is_followed_within_15_seconds() -> None:
    board, load = Board(10.0), Load(0)

    async def job() -> None:
        runs = asyncio.gather(*(Process(board, load).run(0.0, 200.0) for _ in range(2)))
        for at, limit in ((50.0, 4.0), (100.0, 40.0), (150.0, 0.0)):
            await asyncio.sleep(at - asyncio.get_running_loop().time())
            board.limit = limit
        await runs

    run_timeless(job())

    assert load.use(65.0, 100.0).per_second == pytest.approx(4.0, rel=0.05)
    assert load.use(115.0, 150.0).per_second == pytest.approx(40.0, rel=0.05)
    assert [at for at, _ in load.answers if at > 165.0] == []


# -- messages, and an unreachable store -------------------------------------------------------------


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_without_the_lease_store_processes_keep_their_shares_and_warn_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    board, load = Board(10.0), Load(10)

    async def job() -> None:
        runs = asyncio.gather(*(Process(board, load).run(0.0, 200.0) for _ in range(2)))
        await asyncio.sleep(40.0)
        board.is_unreachable = True
        await asyncio.sleep(100.0)
        board.is_unreachable = False
        await runs

    with caplog.at_level(logging.INFO):
        run_timeless(job())

    use = load.use(40.0, 200.0)
    assert use.per_second >= 8.5
    assert use.limited_share < 0.02
    assert board.most_used <= 10.01
    reported = (
        r"the limit imbrace-requests cannot be read \(status 503\); until it can, the run sends at most .*"
    )
    assert [bool(re.fullmatch(reported, line)) for line in warnings_in(caplog)] == [True, True]
    assert caplog.text.count("can be read again") == 2


def test_a_rate_of_none_is_not_called_a_limit() -> None:
    assert [_in_words(one) for one in (0.0, 2.0, None)] == [
        "no request",
        "at most 2 requests per second",
        "as many requests as the gateway accepts",
    ]


@pytest.mark.slow
def test_without_a_limit_only_the_setting_counts_and_nothing_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    board, load = Board(None), Load(0)

    run_timeless(Process(board, load, own=7.0).run(0.0, 60.0))

    assert load.use(10.0, 60.0).per_second == pytest.approx(7.0, rel=0.05)
    assert board.leases == {}
    assert warnings_in(caplog) == []


def test_the_setting_bounds_one_process_with_any_share() -> None:
    board, load = Board(10.0), Load(0)

    run_timeless(Process(board, load, own=3.0).run(0.0, 60.0))

    assert load.use(10.0, 60.0).per_second == pytest.approx(3.0, rel=0.05)


def test_a_limit_of_zero_and_a_deleted_limit_are_followed_and_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    board, load = Board(0.0), Load(0)

    async def job() -> None:
        run = asyncio.create_task(Process(board, load, own=5.0).run(0.0, 120.0))
        await asyncio.sleep(50.0)
        assert load.answers == []
        board.limit = None
        await run

    run_timeless(job())

    assert load.use(50.0 + 2 * ROUND_SECONDS, 120.0).per_second == pytest.approx(5.0, rel=0.05)
    assert warnings_in(caplog) == [
        "the limit imbrace-requests is 0: all requests wait until it is raised",
        "the limit imbrace-requests was deleted or is inactive: the run sends at most 5 requests per second",
    ]


@pytest.mark.slow
def test_a_limit_that_is_created_during_a_run_is_followed() -> None:
    board, load = Board(None), Load(0)

    async def job() -> None:
        run = asyncio.create_task(Process(board, load).run(0.0, 60.0))
        await asyncio.sleep(20.0)
        board.limit = 10.0
        await run

    run_timeless(job())

    assert load.use(10.0, 20.0).per_second > 100
    assert load.use(20.0 + 2 * ROUND_SECONDS, 60.0).per_second == pytest.approx(10.0, rel=0.05)


def test_runs_start_and_end_without_the_lease_store() -> None:
    board, load = Board(10.0), Load(0)

    async def job() -> None:
        leaving = asyncio.create_task(Process(board, load).run(0.0, 20.0))
        await asyncio.sleep(15.0)
        board.is_unreachable = True
        await leaving
        await Process(board, load, own=2.0).run(30.0, 60.0)

    run_timeless(job())

    assert load.use(31.0, 60.0).per_second == pytest.approx(2.0, rel=0.1)


def test_before_its_first_look_at_the_limit_a_process_sends_one_request_per_second() -> None:
    board, load = Board(10.0), Load(0)

    async def job() -> None:
        board.is_unreachable = True
        run = asyncio.create_task(Process(board, load).run(0.0, 80.0))
        await asyncio.sleep(40.0)
        board.is_unreachable = False
        await run

    run_timeless(job())

    assert load.use(5.0, 40.0).per_second == pytest.approx(1.0, rel=0.05)
    assert load.use(70.0, 80.0).per_second == pytest.approx(10.0, rel=0.1)


def test_a_process_that_starts_while_others_use_all_sends_its_first_request_soon() -> None:
    board, load = Board(3.0), Load(0)

    async def job() -> float:
        busy = [asyncio.create_task(Process(board, load).run(0.0, 60.0)) for _ in range(2)]
        await asyncio.sleep(30.0)
        began = asyncio.get_running_loop().time()
        limiter = RequestLimiter()
        async with share_limit(limiter, BoardLeases(board), "imbrace-requests", None):
            await limiter.acquire()
            waited = asyncio.get_running_loop().time() - began
            limiter.release()
        await asyncio.gather(*busy)
        return waited

    assert run_timeless(job()) <= 1.5 * ROUND_SECONDS
    assert board.most_used <= 3.01


def test_after_an_outage_leases_that_are_not_yet_renewed_count() -> None:
    board, load = Board(10.0), Load(0)

    async def job() -> None:
        # Their rounds are two seconds apart, so one of them finds only leases that look expired.
        runs = asyncio.gather(*(Process(board, load).run(start, 200.0) for start in (0.0, 2.0)))
        await asyncio.sleep(40.0)
        board.is_unreachable = True
        await asyncio.sleep(100.0)
        board.is_unreachable = False
        await runs

    run_timeless(job())

    assert board.most_used <= 10.01
