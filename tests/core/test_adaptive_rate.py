"""The limiter finds a gateway's limit by its 429 answers, and uses a given budget; in simulated time."""

from __future__ import annotations

import random

import pytest

from imbrace_lake.gateway.limiter import RequestLimiter
from tests.core.clock import run_timeless
from tests.core.load import LATENCY_SECONDS, Load

WARM_UP_SECONDS = 10.0


@pytest.fixture(autouse=True)
def same_jitter_every_time() -> None:
    random.seed(7)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["fixed", "bucket"])
@pytest.mark.parametrize("per_second", [10, 50, 200])
def test_a_given_budget_is_used_and_hardly_exceeded(per_second: int, kind: str) -> None:
    load = Load(per_second, kind=kind)

    end = WARM_UP_SECONDS + min(60.0, 4_000 / per_second)
    run_timeless(load.press(RequestLimiter(per_second=float(per_second)), until=end))

    use = load.use(WARM_UP_SECONDS, end)
    assert use.per_second >= 0.95 * per_second
    assert use.limited_share < 0.01


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["fixed", "bucket"])
@pytest.mark.parametrize(("per_second", "used_share"), [(10, 0.85), (50, 0.93), (200, 0.90)])
def test_an_unknown_limit_is_found_by_429_answers(per_second: int, used_share: float, kind: str) -> None:
    load = Load(per_second, kind=kind)

    end = WARM_UP_SECONDS + min(120.0, 8_000 / per_second)
    run_timeless(load.press(RequestLimiter(), until=end))

    use = load.use(WARM_UP_SECONDS, end)
    assert use.per_second >= used_share * per_second
    assert use.limited_share < 0.015


@pytest.mark.slow
@pytest.mark.parametrize("accepted", [30, 45])
def test_a_budget_above_the_gateways_limit_is_corrected_by_429_answers(accepted: int) -> None:
    load = Load(accepted)

    run_timeless(load.press(RequestLimiter(per_second=50.0), until=130.0))

    use = load.use(WARM_UP_SECONDS, 130.0)
    assert use.per_second >= 0.9 * accepted
    assert use.limited_share < 0.02


@pytest.mark.slow
def test_independent_limiters_find_one_limit_together() -> None:
    load = Load(50)

    run_timeless(load.press(*(RequestLimiter() for _ in range(4)), until=130.0))

    use = load.use(60.0, 130.0)
    assert use.per_second >= 0.9 * 50
    assert use.limited_share < 0.02


@pytest.mark.slow
def test_a_lower_limit_is_followed_at_once_and_a_higher_one_within_two_minutes() -> None:
    async def job() -> None:
        limiter = RequestLimiter()
        await load.press(limiter, until=60.0)
        load.set_limit(20)
        await load.press(limiter, until=120.0)
        load.set_limit(100)
        await load.press(limiter, until=240.0)

    load = Load(50)

    run_timeless(job())

    shrunk = load.use(75.0, 120.0)
    assert shrunk.per_second >= 0.85 * 20
    assert shrunk.limited_share < 0.02
    assert load.use(210.0, 240.0).per_second >= 0.85 * 100


def test_a_long_window_that_is_used_up_causes_few_429_answers() -> None:
    load = Load(100, 1800.0)

    run_timeless(load.press(RequestLimiter(), until=5400.0))

    assert sum(not is_limited for _, is_limited in load.answers) == 300
    assert load.use(0.0, 5400.0).limited_share < 0.4


@pytest.mark.slow
def test_429_answers_at_any_rate_do_not_stop_the_limiter() -> None:
    load = Load(0, stray_share=0.01)

    run_timeless(load.press(RequestLimiter(), until=120.0))

    assert load.use(WARM_UP_SECONDS, 120.0).per_second > 20


@pytest.mark.slow
def test_without_429_answers_the_rate_has_no_bound() -> None:
    load = Load(0)

    run_timeless(load.press(RequestLimiter(max_in_flight=32), until=20.0))

    assert load.use(0.0, 20.0).per_second == pytest.approx(32 / (LATENCY_SECONDS + 0.005), rel=0.05)


@pytest.mark.slow
def test_a_rate_that_is_not_used_does_not_grow() -> None:
    async def job() -> None:
        limiter = RequestLimiter()
        await load.press(limiter, until=60.0)
        learned = limiter.rate
        await load.press(limiter, until=300.0, many=1)
        assert limiter.rate < 1.2 * learned

    load = Load(50)

    run_timeless(job())
