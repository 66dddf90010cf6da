"""The rate limiter: order, requests in flight, requests per second, and pauses after a 429."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field

import pytest

from imbrace_lake.gateway.limiter import LATE_SECONDS, LONGEST_PAUSE_SECONDS, RequestLimiter, WaitersRejected
from tests.core.clock import run_timeless


@pytest.fixture(autouse=True)
def no_jitter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make each pause as long as the average."""
    monkeypatch.setattr(random, "uniform", lambda low, high: (low + high) / 2)


@dataclass
class Traffic:
    """Requests through a limiter, with their order, times and number in flight."""

    limiter: RequestLimiter
    order: list[int] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    under_way: int = 0
    most_under_way: int = 0

    async def send(
        self,
        number: int = 0,
        seconds: float = 1.0,
        end: Callable[[RequestLimiter, int], None] = RequestLimiter.on_success,
    ) -> None:
        ticket = await self.limiter.acquire()
        self.order.append(number)
        self.times.append(asyncio.get_running_loop().time())
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            await asyncio.sleep(seconds)
            end(self.limiter, ticket)
        finally:
            self.under_way -= 1
            self.limiter.release()


def rate_limit(limiter: RequestLimiter, ticket: int) -> None:
    limiter.on_rate_limited(ticket, None)


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def run(job: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        await job()

    run_timeless(main())


# -- order and requests in flight ---------------------------------------------------------------------


@pytest.mark.parametrize("limit", [1, 3, 32])
def test_requests_in_flight_stay_within_the_limit_and_are_admitted_in_order(limit: int) -> None:
    async def job() -> None:
        traffic = Traffic(RequestLimiter(max_in_flight=limit))

        await asyncio.gather(*(traffic.send(number, seconds=1 + number % 3) for number in range(100)))

        assert traffic.most_under_way == limit
        assert traffic.order == list(range(100))
        assert traffic.limiter.in_flight == 0

    run(job)


def test_a_new_request_does_not_overtake_waiting_ones() -> None:
    async def job() -> None:
        traffic = Traffic(RequestLimiter(max_in_flight=1))
        first = [asyncio.create_task(traffic.send(number)) for number in range(3)]
        await settle()
        first[0].cancel()

        await asyncio.gather(*first, traffic.send(9), return_exceptions=True)

        assert traffic.order == [0, 1, 2, 9]

    run(job)


@pytest.mark.parametrize("seed", range(20))
def test_cancelled_requests_do_not_block_others(seed: int) -> None:
    async def job() -> None:
        rng = random.Random(seed)
        traffic = Traffic(RequestLimiter(max_in_flight=rng.randint(1, 4)))
        tasks = [asyncio.create_task(traffic.send(number)) for number in range(40)]
        for _ in range(60):
            rng.choice(tasks).cancel()
            await asyncio.sleep(rng.choice((0, 0, 0.5)))

        await asyncio.gather(*tasks, return_exceptions=True)
        await traffic.send(99)

        assert traffic.limiter.in_flight == 0
        assert traffic.order[-1] == 99
        assert traffic.order == sorted(traffic.order)

    run(job)


def test_a_request_cancelled_while_it_is_admitted_admits_the_next() -> None:
    async def job() -> None:
        limiter = RequestLimiter(max_in_flight=1)
        await limiter.acquire()
        second = asyncio.create_task(limiter.acquire())
        third = asyncio.create_task(limiter.acquire())
        await settle()

        limiter.release()
        second.cancel()
        await settle()

        assert second.cancelled()
        assert third.done()
        assert limiter.in_flight == 1

    run(job)


# -- requests per second --------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [0.5, 7.0, 200.0])
def test_requests_per_second_stay_within_the_rate(rate: float) -> None:
    async def job() -> None:
        traffic = Traffic(RequestLimiter(max_in_flight=100, per_second=rate))

        await asyncio.gather(*(traffic.send(number, seconds=0.01) for number in range(50)))

        spans = [late - early for early, late in zip(traffic.times, traffic.times[10:], strict=False)]
        # The limiter catches up on a delay by one request, or 50 ms, at most.
        assert min(spans) >= 10 / rate - max(1 / rate, LATE_SECONDS) - 1e-6
        assert traffic.times[-1] <= 51 / rate

    run(job)


def test_the_rate_does_not_catch_up_on_idle_time() -> None:
    async def job() -> None:
        traffic = Traffic(RequestLimiter(max_in_flight=100, per_second=1.0))
        await traffic.send(seconds=0.0)
        await asyncio.sleep(100)

        await asyncio.gather(*(traffic.send(seconds=0.0) for _ in range(10)))

        assert traffic.times[-1] - traffic.times[1] >= 8

    run(job)


def test_the_rate_does_not_catch_up_on_a_pause() -> None:
    async def job() -> None:
        traffic = Traffic(RequestLimiter(per_second=1.0))
        await traffic.send(seconds=0.0, end=rate_limit)

        await asyncio.gather(*(traffic.send(number, seconds=0.0) for number in range(1, 4)))

        spans = [late - early for early, late in zip(traffic.times, traffic.times[1:], strict=False)]
        assert min(spans) >= 1.0

    run(job)


def test_a_new_rate_applies_to_waiting_requests() -> None:
    async def job() -> None:
        traffic = Traffic(RequestLimiter(per_second=0.001))
        waiting = [asyncio.create_task(traffic.send(seconds=0.0)) for _ in range(5)]
        await settle()
        assert traffic.limiter.per_second == 0.001

        traffic.limiter.per_second = None
        await asyncio.gather(*waiting)

        assert max(traffic.times) == 0.0
        traffic.limiter.per_second = 10.0

    run(job)


def test_a_rate_of_zero_admits_no_request_until_it_changes() -> None:
    async def job() -> None:
        traffic = Traffic(RequestLimiter(per_second=0.0))
        waiting = [asyncio.create_task(traffic.send(seconds=0.0)) for _ in range(3)]
        await asyncio.sleep(3600)
        assert traffic.order == []

        traffic.limiter.per_second = 10.0
        await asyncio.gather(*waiting)

        assert traffic.times == pytest.approx([3600, 3600, 3600 + 1 / 9.8], rel=1e-6)

    run(job)


def test_demand_is_infinite_only_if_the_rate_delayed_requests() -> None:
    async def job() -> None:
        traffic = Traffic(RequestLimiter(per_second=5.0))
        await asyncio.gather(*(traffic.send(seconds=0.0) for _ in range(10)))
        assert traffic.limiter.demand() == math.inf

        await asyncio.sleep(1)
        for _ in range(60):
            await traffic.send(seconds=0.5)

        assert traffic.limiter.demand() == pytest.approx(2.0, rel=0.1)

    run(job)


# -- pauses after a 429 ---------------------------------------------------------------------------------


def test_a_429_closes_the_limiter_and_a_single_request_follows() -> None:
    async def job() -> None:
        traffic = Traffic(RequestLimiter(max_in_flight=8))
        await traffic.send(end=rate_limit)
        assert traffic.limiter.pause_seconds() == 1.0
        assert traffic.limiter.in_flight_limit == 1

        crowd = [asyncio.create_task(traffic.send(number)) for number in range(1, 20)]
        await asyncio.sleep(0.99)
        assert traffic.order == [0]
        await asyncio.sleep(0.5)
        assert traffic.order == [0, 1]
        await asyncio.gather(*crowd)

        assert traffic.most_under_way <= 8
        assert traffic.times[2] == 3.0
        # Soon after a 429, the other requests are not all sent at once.
        assert traffic.times[3] > 3.5
        assert traffic.limiter.rate_limited_seconds() == 0.0

    run(job)


def test_pauses_double_up_to_a_bound_and_are_short_again_after_two_successes() -> None:
    async def job() -> None:
        limiter = RequestLimiter()
        pauses = []
        for _ in range(9):
            limiter.on_rate_limited(await limiter.acquire(), None)
            limiter.release()
            pauses.append(limiter.pause_seconds())
        assert pauses == [1, 2, 4, 8, 16, 32, *[LONGEST_PAUSE_SECONDS] * 3]
        assert limiter.rate_limited == 9
        assert limiter.rate_limited_seconds() == pytest.approx(sum(pauses[:-1]))

        for _ in range(2):
            limiter.on_success(await limiter.acquire())
            limiter.release()
        limiter.on_rate_limited(await limiter.acquire(), None)

        assert limiter.pause_seconds() == 1.0

    run(job)


def test_a_429_soon_after_a_pause_doubles_the_next_pause() -> None:
    async def job() -> None:
        limiter = RequestLimiter()
        for _ in range(2):
            limiter.on_rate_limited(await limiter.acquire(), None)
            limiter.release()
        limiter.on_success(await limiter.acquire())
        limiter.release()

        limiter.on_rate_limited(await limiter.acquire(), None)

        assert limiter.pause_seconds() == 4.0

    run(job)


def test_429_answers_to_requests_in_flight_together_cause_one_pause() -> None:
    async def job() -> None:
        traffic = Traffic(RequestLimiter(max_in_flight=8))

        await asyncio.gather(*(traffic.send(seconds=1 + number / 10, end=rate_limit) for number in range(8)))

        assert traffic.limiter.rate_limited == 8
        assert traffic.limiter.pause_seconds() == pytest.approx(0.3)

    run(job)


def test_a_success_of_a_request_sent_before_the_pause_does_not_end_it() -> None:
    async def job() -> None:
        traffic = Traffic(RequestLimiter(max_in_flight=8))
        early = [asyncio.create_task(traffic.send(number, seconds=0.5 + number / 10)) for number in range(4)]
        await traffic.send(seconds=0.1, end=rate_limit)

        crowd = [asyncio.create_task(traffic.send(seconds=5.0)) for _ in range(10)]
        await asyncio.sleep(2)

        assert all(task.done() for task in early)
        assert len(traffic.order) == 4 + 1 + 1
        assert traffic.limiter.rate_limited_seconds() > 0
        await asyncio.gather(*crowd)

    run(job)


def test_a_request_admitted_just_before_the_pause_is_not_its_probe() -> None:
    async def job() -> None:
        limiter = RequestLimiter(max_in_flight=2)
        await limiter.acquire()
        refused = await limiter.acquire()
        third = asyncio.create_task(limiter.acquire())
        await asyncio.sleep(0)

        # In one turn of the event loop: the third is admitted, and before it runs, the second gets a 429.
        limiter.release()
        limiter.on_rate_limited(refused, 30.0)
        limiter.release()
        limiter.on_success(await third)

        assert limiter.pause_seconds() == 30.0
        await asyncio.sleep(10.0)
        assert limiter.rate_limited_seconds() == 10.0

    run(job)


@pytest.mark.parametrize(("hint", "pauses"), [(30.0, [30, 30, 30]), (0.0, [0, 2, 4]), (3.0, [3, 3, 4])])
def test_retry_after_is_followed_but_does_not_shorten_later_pauses(hint: float, pauses: list[float]) -> None:
    async def job() -> None:
        limiter = RequestLimiter()
        met = []
        for _ in range(3):
            limiter.on_rate_limited(await limiter.acquire(), hint)
            limiter.release()
            met.append(limiter.pause_seconds())

        assert met == pauses

    run(job)


def test_after_a_probe_without_an_answer_the_next_request_probes() -> None:
    async def job() -> None:
        traffic = Traffic(RequestLimiter(max_in_flight=8))
        await traffic.send(end=rate_limit)

        await asyncio.gather(
            traffic.send(1, end=lambda limiter, ticket: None),
            traffic.send(2, end=RequestLimiter.on_overload),
            *(traffic.send(number) for number in range(3, 12)),
        )

        assert traffic.order == list(range(12))
        # One after the other, until the third has an answer.
        assert traffic.times[1:5] == [2.0, 3.0, 4.0, 5.0]

    run(job)


def test_waiting_requests_can_be_rejected_and_the_limiter_continues() -> None:
    async def job() -> None:
        traffic = Traffic(RequestLimiter(max_in_flight=1))
        await traffic.send(end=rate_limit)
        tasks = [asyncio.create_task(traffic.send(number)) for number in range(1, 5)]
        await settle()
        tasks[1].cancel()
        traffic.limiter.reject_waiters()
        tasks[2].cancel()

        ends = await asyncio.gather(*tasks, return_exceptions=True)
        await traffic.send(9)

        assert [type(end) for end in ends] == [
            WaitersRejected,
            asyncio.CancelledError,
            asyncio.CancelledError,
            WaitersRejected,
        ]
        assert traffic.order == [0, 9]
        assert traffic.limiter.in_flight == 0

    run(job)


# -- an overloaded gateway ------------------------------------------------------------------------------


def test_overload_counts_once_for_all_requests_in_flight() -> None:
    async def job() -> None:
        traffic = Traffic(RequestLimiter(max_in_flight=20))

        await asyncio.gather(*(traffic.send(end=RequestLimiter.on_overload) for _ in range(20)))
        assert traffic.limiter.in_flight_limit == 14

        await traffic.send(end=RequestLimiter.on_overload)
        assert traffic.limiter.in_flight_limit == 9

    run(job)


def limits(limiter: RequestLimiter, many: int) -> Iterator[int]:
    for _ in range(many):
        limiter.on_success(0)
        yield limiter.in_flight_limit


def test_the_limit_recovers_by_about_one_per_round_up_to_its_start() -> None:
    async def job() -> None:
        limiter = RequestLimiter(max_in_flight=20)
        for _ in range(30):
            limiter.on_overload(await limiter.acquire())
            limiter.release()
        assert limiter.in_flight_limit == 1

        seen = list(limits(limiter, 400))

        assert seen == sorted(seen)
        assert seen[9] <= 5
        assert 15 <= seen[160] < 20
        assert seen[-1] == 20

    run(job)
