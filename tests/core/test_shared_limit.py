"""Processes share one limit by leases: all of it is used, none of them exceeds it, whatever happens."""

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
from imbrace_lake.gateway.shared_limit import ROUND_SECONDS, Lease, LeasesUnreachable, fair_share, share_limit
from tests.core.clock import run_timeless
from tests.core.load import Load

LIFE_SECONDS = 30.0
SETTLED_SECONDS = 20.0


class Wall:
    """The leases of all processes; it notes the highest sum of rates in use."""

    def __init__(self, limit: float | None) -> None:
        self.limit = limit
        self.is_away = False
        self.leases: dict[int, tuple[float, Lease]] = {}
        self.gates: list[RequestLimiter] = []
        self.most_used = 0.0

    def note(self, owner: int, lease: Lease) -> None:
        self.leases[owner] = (asyncio.get_running_loop().time(), lease)

    def measure(self) -> None:
        self.most_used = max(self.most_used, sum(limiter.per_second or 0.0 for limiter in self.gates))


class WallLeases:
    """One process's view of the wall; the way to it takes a while."""

    def __init__(self, wall: Wall, seconds: float = 0.05) -> None:
        self._wall = wall
        self._seconds = seconds

    async def read_limit(self) -> float | None:
        await self._reach()
        return self._wall.limit

    async def read_leases(self) -> Sequence[Lease]:
        await self._reach()
        oldest = asyncio.get_running_loop().time() - LIFE_SECONDS
        leases = self._wall.leases.items()
        return [claim for owner, (at, claim) in leases if owner != id(self) and at >= oldest]

    async def write_lease(self, lease: Lease) -> None:
        await self._reach()
        self._wall.note(id(self), lease)

    async def drop_lease(self) -> None:
        await self._reach()
        self._wall.leases.pop(id(self), None)

    async def _reach(self) -> None:
        await asyncio.sleep(self._seconds)
        if self._wall.is_away:
            raise LeasesUnreachable("it rains")


class Process:
    """A process that exports under a shared limit."""

    def __init__(self, wall: Wall, load: Load, *, own: float | None = None, many: int = 50) -> None:
        self.limiter = RequestLimiter(per_second=own)
        self._wall = wall
        self._load = load
        self._own = own
        self._many = many

    async def run(self, since: float, until: float) -> None:
        await asyncio.sleep(since - asyncio.get_running_loop().time())
        async with share_limit(self.limiter, WallLeases(self._wall), "imbrace-requests", self._own):
            self._wall.gates.append(self.limiter)
            working = asyncio.create_task(self._load.press(self.limiter, until=until, many=self._many))
            while not working.done():
                self._wall.measure()
                await asyncio.sleep(0.1)
            self._wall.gates.remove(self.limiter)


@pytest.fixture(autouse=True)
def same_jitter_every_time() -> None:
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
def test_nobody_gets_more_than_somebody_with_less_still_wants(
    wanted: float, others: list[float], share: float
) -> None:
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
    wall, load = Wall(per_second), Load(limit, window_seconds, kind)

    async def job() -> None:
        everybody = [Process(wall, load) for _ in range(processes)]
        await asyncio.gather(*(each.run(0.3 * position, 120.0) for position, each in enumerate(everybody)))

    run_timeless(job())

    use = load.use(60.0, 120.0)
    assert use.per_second >= 0.85 * per_second
    assert use.refused_share < 0.02
    assert wall.most_used <= per_second * 1.001


def test_what_one_process_does_not_need_the_other_gets_and_gives_back() -> None:
    wall, load = Wall(10.0), Load(10)

    async def job() -> None:
        busy, idle = Process(wall, load), Process(wall, load, many=0)
        runs = [asyncio.create_task(each.run(0.0, 100.0)) for each in (busy, idle)]
        await asyncio.sleep(50.0)
        assert busy.limiter.per_second == pytest.approx(10.0, abs=0.1)
        pressing = asyncio.create_task(load.press(idle.limiter, until=100.0))
        await asyncio.sleep(SETTLED_SECONDS)
        assert busy.limiter.per_second == pytest.approx(5.0, rel=0.2)
        assert idle.limiter.per_second == pytest.approx(5.0, rel=0.2)
        await asyncio.gather(pressing, *runs)

    run_timeless(job())

    assert wall.most_used <= 10.01
    assert load.use(30.0, 50.0).per_second >= 9.0
    assert load.use(70.0, 100.0).per_second >= 8.5


def test_processes_that_come_go_and_die_never_lease_too_much_together() -> None:
    wall, load = Wall(20.0), Load(20)

    async def job() -> None:
        rng = random.Random(3)
        starts = [rng.uniform(0.0, 200.0) for _ in range(12)]
        runs = [
            asyncio.create_task(Process(wall, load).run(start, start + rng.uniform(5.0, 100.0)))
            for start in starts
        ]
        # Somebody who says goodbye to nobody: nothing else is left of a killed process.
        wall.note(0, Lease(15.0, 20.0))
        await asyncio.gather(*runs)

    run_timeless(job())

    assert wall.most_used <= 20.02
    assert [*wall.leases] == [0]


def test_a_change_of_the_limit_is_followed_within_15_seconds() -> None:
    wall, load = Wall(10.0), Load(0)

    async def job() -> None:
        runs = asyncio.gather(*(Process(wall, load).run(0.0, 200.0) for _ in range(2)))
        for at, limit in ((50.0, 4.0), (100.0, 40.0), (150.0, 0.0)):
            await asyncio.sleep(at - asyncio.get_running_loop().time())
            wall.limit = limit
        await runs

    run_timeless(job())

    assert load.use(65.0, 100.0).per_second == pytest.approx(4.0, rel=0.05)
    assert load.use(115.0, 150.0).per_second == pytest.approx(40.0, rel=0.05)
    assert [at for at, _ in load.answers if at > 165.0] == []


# -- what is said, and what happens without the board -----------------------------------------------


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_while_the_lease_store_is_away_everybody_keeps_the_last_share_and_says_so_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    wall, load = Wall(10.0), Load(10)

    async def job() -> None:
        runs = asyncio.gather(*(Process(wall, load).run(0.0, 200.0) for _ in range(2)))
        await asyncio.sleep(40.0)
        wall.is_away = True
        await asyncio.sleep(100.0)
        wall.is_away = False
        await runs

    with caplog.at_level(logging.INFO):
        run_timeless(job())

    use = load.use(40.0, 200.0)
    assert use.per_second >= 8.5
    assert use.refused_share < 0.02
    assert wall.most_used <= 10.01
    reported = r"the limit imbrace-requests cannot be read \(it rains\): the run keeps to .* until it can"
    assert [bool(re.fullmatch(reported, line)) for line in warnings_in(caplog)] == [True, True]
    assert caplog.text.count("can be read again") == 2


def test_without_a_limit_the_setting_counts_alone_and_nothing_is_said(
    caplog: pytest.LogCaptureFixture,
) -> None:
    wall, load = Wall(None), Load(0)

    run_timeless(Process(wall, load, own=7.0).run(0.0, 60.0))

    assert load.use(10.0, 60.0).per_second == pytest.approx(7.0, rel=0.05)
    assert wall.leases == {}
    assert warnings_in(caplog) == []


def test_the_setting_bounds_one_process_whatever_its_share() -> None:
    wall, load = Wall(10.0), Load(0)

    run_timeless(Process(wall, load, own=3.0).run(0.0, 60.0))

    assert load.use(10.0, 60.0).per_second == pytest.approx(3.0, rel=0.05)


def test_a_limit_that_is_nought_or_goes_away_is_said_and_obeyed(caplog: pytest.LogCaptureFixture) -> None:
    wall, load = Wall(0.0), Load(0)

    async def job() -> None:
        run = asyncio.create_task(Process(wall, load, own=5.0).run(0.0, 120.0))
        await asyncio.sleep(50.0)
        assert load.answers == []
        wall.limit = None
        await run

    run_timeless(job())

    assert load.use(50.0 + 2 * ROUND_SECONDS, 120.0).per_second == pytest.approx(5.0, rel=0.05)
    assert warnings_in(caplog) == [
        "the limit imbrace-requests is 0: all requests wait until it is raised",
        "the limit imbrace-requests was deleted or switched off: the run keeps to 5 requests a second",
    ]


def test_a_limit_that_is_set_during_a_run_is_obeyed() -> None:
    wall, load = Wall(None), Load(0)

    async def job() -> None:
        run = asyncio.create_task(Process(wall, load).run(0.0, 60.0))
        await asyncio.sleep(20.0)
        wall.limit = 10.0
        await run

    run_timeless(job())

    assert load.use(10.0, 20.0).per_second > 100
    assert load.use(20.0 + 2 * ROUND_SECONDS, 60.0).per_second == pytest.approx(10.0, rel=0.05)


def test_a_lease_store_that_is_away_at_the_end_or_from_the_start_fails_no_run() -> None:
    wall, load = Wall(10.0), Load(0)

    async def job() -> None:
        leaving = asyncio.create_task(Process(wall, load).run(0.0, 20.0))
        await asyncio.sleep(15.0)
        wall.is_away = True
        await leaving
        await Process(wall, load, own=2.0).run(30.0, 60.0)

    run_timeless(job())

    assert load.use(31.0, 60.0).per_second == pytest.approx(2.0, rel=0.1)


def test_before_the_limit_was_read_a_process_without_a_bound_keeps_to_one_request_per_second() -> None:
    wall, load = Wall(10.0), Load(0)

    async def job() -> None:
        wall.is_away = True
        run = asyncio.create_task(Process(wall, load).run(0.0, 80.0))
        await asyncio.sleep(40.0)
        wall.is_away = False
        await run

    run_timeless(job())

    assert load.use(5.0, 40.0).per_second == pytest.approx(1.0, rel=0.05)
    assert load.use(70.0, 80.0).per_second == pytest.approx(10.0, rel=0.1)


def test_a_process_that_comes_while_others_use_all_gets_its_first_turn_soon() -> None:
    wall, load = Wall(3.0), Load(0)

    async def job() -> float:
        busy = [asyncio.create_task(Process(wall, load).run(0.0, 60.0)) for _ in range(2)]
        await asyncio.sleep(30.0)
        began = asyncio.get_running_loop().time()
        limiter = RequestLimiter()
        async with share_limit(limiter, WallLeases(wall), "imbrace-requests", None):
            await limiter.acquire()
            waited = asyncio.get_running_loop().time() - began
            limiter.release()
        await asyncio.gather(*busy)
        return waited

    assert run_timeless(job()) <= 1.5 * ROUND_SECONDS
    assert wall.most_used <= 3.01


def test_after_the_lease_store_was_away_a_lease_that_was_not_renewed_yet_counts() -> None:
    wall, load = Wall(10.0), Load(0)

    async def job() -> None:
        # Their rounds are two seconds apart, so one of them finds only claims that look abandoned.
        runs = asyncio.gather(*(Process(wall, load).run(start, 200.0) for start in (0.0, 2.0)))
        await asyncio.sleep(40.0)
        wall.is_away = True
        await asyncio.sleep(100.0)
        wall.is_away = False
        await runs

    run_timeless(job())

    assert wall.most_used <= 10.01
