"""The request budget of each client IP."""

from __future__ import annotations

import httpx
import pytest

from imbrace_sandbox import SandboxOptions
from imbrace_sandbox.budget import Budget
from tests.sandbox.conftest import Connect, StartBox
from tests.sandbox.reading import first_of, get_page


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        """Return the time."""
        return self.now


def test_a_fixed_window_admits_the_whole_budget_again_when_it_ends() -> None:
    clock = Clock()
    budget = Budget(SandboxOptions(budget_requests=2, budget_window_seconds=10), clock)

    first = [budget.wait_seconds("a") for _ in range(3)]
    clock.now += 9
    early = budget.wait_seconds("a")
    clock.now += 1
    later = [budget.wait_seconds("a") for _ in range(3)]

    assert first == [0, 0, 10]
    assert early == 1
    assert later == [0, 0, 10]


def test_a_bucket_refills_continuously() -> None:
    clock = Clock()
    options = SandboxOptions(budget_requests=2, budget_window_seconds=10, budget_kind="bucket")
    budget = Budget(options, clock)

    first = [budget.wait_seconds("a") for _ in range(3)]
    clock.now += 5
    later = [budget.wait_seconds("a") for _ in range(2)]

    assert first == [0, 0, 5]
    assert later == [0, 5]


@pytest.mark.parametrize("kind", ["fixed", "bucket"])
def test_each_client_has_a_separate_budget(kind: str) -> None:
    budget = Budget(SandboxOptions(budget_requests=1, budget_kind=kind), Clock())

    waits = [budget.wait_seconds(client) > 0 for client in ("a", "b", "a", "b")]

    assert waits == [False, False, True, True]


def test_beyond_the_budget_both_endpoints_answer_429_without_retry_after(
    start: StartBox, connect: Connect
) -> None:
    box = start(budget_requests=3)
    client = connect(box)

    answers = [get_page(client, first_of(box)) for _ in range(4)]
    links = client.get("/conversations/links")

    assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
    assert links.status_code == 429
    assert links.text == "Too many requests. Please try again later."
    assert "retry-after" not in links.headers


def test_the_budget_can_send_retry_after(start: StartBox, connect: Connect) -> None:
    box = start(budget_requests=1, budget_window_seconds=60, budget_retry_after=True)
    client = connect(box)

    answers = [get_page(client, first_of(box)) for _ in range(2)]

    assert answers[1].headers["retry-after"] == "60"


def test_the_budget_can_drop_connections_instead(start: StartBox, connect: Connect) -> None:
    box = start(budget_requests=1, budget_silent=True)
    client = connect(box)

    get_page(client, first_of(box))

    with pytest.raises((httpx.RemoteProtocolError, httpx.ReadError)):
        get_page(client, first_of(box))


def test_a_new_budget_begins_at_once(start: StartBox, connect: Connect) -> None:
    box = start(budget_requests=1)
    client = connect(box)

    first = [get_page(client, first_of(box)).status_code for _ in range(2)]
    box.set_options(budget_requests=2)
    later = [get_page(client, first_of(box)).status_code for _ in range(3)]

    assert first == [200, 429]
    assert later == [200, 200, 429]


def test_accepted_and_rate_limited_requests_are_counted(start: StartBox, connect: Connect) -> None:
    box = start(budget_requests=3)
    client = connect(box)

    for _ in range(5):
        get_page(client, first_of(box))

    stats = box.stats()
    assert (stats.accepted, stats.refused) == (3, 2)
    assert sum(stats.accepted_by_second.values()) == 3
    assert sum(stats.refused_by_second.values()) == 2
    assert stats.pages == {first_of(box): 3}
