"""`imbrace-lake budget`: one number for the requests of all runs."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from uuid import uuid4

import httpx
import pytest

from imbrace_cli.budget import Budget, _lines
from imbrace_cli.local_server import LocalServer
from tests.cli.conftest import Run, prefect_leaks
from tests.cli.fake_server import fake_server
from tests.prefect_api import send

pytestmark = prefect_leaks


@pytest.fixture
def limit(prefect: LocalServer) -> Iterator[str]:
    """A limit's name that no other test uses."""
    name = os.environ["IMBRACE_REQUEST_LIMIT"] = f"limit-{uuid4().hex[:8]}"
    yield name
    send("DELETE", f"{prefect.api_url}/v2/concurrency_limits/{name}")


def stored(server: LocalServer, name: str) -> tuple[int, float, bool]:
    """Both numbers of a limit as the server has them, and whether it is active."""
    found = httpx.get(f"{server.api_url}/v2/concurrency_limits/{name}").raise_for_status().json()
    return found["limit"], found["slot_decay_per_second"], found["active"]


def test_one_number_sets_both_values_of_the_limit(run: Run, prefect: LocalServer, limit: str) -> None:
    missing = run("budget")
    made = run("budget", "5")
    shown = run("budget", "--json")
    changed = run("budget", "0.5")

    assert (missing.code, made.code, shown.code, changed.code) == (0, 0, 0, 0)
    assert f"there is no active limit {limit}" in missing.out
    assert made.out.startswith("the budget is 5 requests per second for all runs together (before: none)\n")
    assert json.loads(shown.out) == {
        "limit": limit, "requests_per_second": 5.0, "before": 5.0, "in_use": 0, "runs": 0,
        "page": f"{prefect.ui_url}/concurrency-limits",
    }  # fmt: skip
    assert "is 0.5 requests per second for all runs together (before: 5)" in changed.out
    assert stored(prefect, limit) == (1, 0.5, True)


def test_an_inactive_limit_becomes_active_and_zero_pauses_all_runs(
    run: Run, prefect: LocalServer, limit: str
) -> None:
    url = f"{prefect.api_url}/v2/concurrency_limits/"
    body = {"name": limit, "limit": 9, "slot_decay_per_second": 9, "active": False}
    send("POST", url, body)

    paused = run("budget", "0")

    assert paused.out.startswith("the budget is 0: all runs pause until it is raised (before: none)\n")
    assert stored(prefect, limit) == (0, 0.0, True)


def test_the_use_counts_the_leases_of_present_runs(run: Run, prefect: LocalServer, limit: str) -> None:
    run("budget", "10")
    leases = {"a": (4.0, 10.0), "b": (6.0, 1.5)}
    for name, (rate, wanted) in leases.items():
        body = {"name": f"share-{limit}-{name}", "value": {"rate": rate, "wanted": wanted},
                "tags": ["imbrace-request-share", limit]}  # fmt: skip
        send("POST", f"{prefect.api_url}/variables/", body)

    assert "  in use   up to 5.5 requests per second, by 2 runs\n" in run("budget").out


@pytest.mark.parametrize(
    ("arguments", "reported"),
    [
        (["-5"], "greater than or equal to 0"),
        (["five"], "valid number"),
        (["nan"], "'N'"),
        (["inf"], "'N'"),
        (["5", "6"], "unexpected extra argument"),
    ],
)
def test_a_value_that_is_not_a_budget_is_wrong_use(
    arguments: list[str], reported: str, run: Run, prefect: LocalServer
) -> None:
    os.environ["PREFECT_API_URL"] = "http://127.0.0.1:9/api"

    result = run("budget", *arguments)

    assert (result.code, result.out) == (2, "")
    assert reported in result.err


def test_an_empty_name_of_the_limit_is_wrong_use(run: Run) -> None:
    os.environ["IMBRACE_REQUEST_LIMIT"] = ""

    result = run("budget")

    assert result.code == 2
    assert "IMBRACE_REQUEST_LIMIT is empty" in result.err


def test_a_server_that_does_not_answer_is_a_failure(run: Run, workdir: object) -> None:
    os.environ["PREFECT_API_URL"] = "http://127.0.0.1:9/api"

    result = run("budget", "5")

    assert result.code == 1
    assert "the Prefect server at http://127.0.0.1:9/api does not answer" in result.err


def test_an_address_that_is_none_of_an_api_is_named_with_advice(run: Run) -> None:
    with fake_server(404, "Not Found") as api_url:
        os.environ["PREFECT_API_URL"] = api_url.removesuffix("/api")
        wrong, checked = run("budget"), run("check")
    os.environ["PREFECT_API_URL"] = "localhost:4200"
    invalid = run("budget")

    advice = f"{api_url.removesuffix('/api')} answered with status 404: PREFECT_API_URL ends with /api"
    assert wrong.err.startswith(f"error: the Prefect server at {advice}")
    assert f"prefect server: {advice}" in checked.out
    advice = "localhost:4200 is not an address: write PREFECT_API_URL as http://host:4200/api"
    assert invalid.err == f"error: the Prefect server at {advice}\n"
    assert [one.code for one in (wrong, checked, invalid)] == [1, 1, 1]


def test_without_a_budget_no_use_of_it_is_shown_and_one_request_is_singular() -> None:
    without, one = (
        _lines(Budget(per_second, None, 1.0, 1), "limit", None, is_set=False) for per_second in (None, 1.0)
    )

    assert without == [
        "no budget: there is no active limit limit, so each run has its own limit",
        "  change   imbrace-lake budget N",
    ]
    assert one[:2] == [
        "the budget is 1 request per second for all runs together",
        "  in use   up to 1 request per second, by 1 run",
    ]


def test_without_a_page_of_the_ui_none_is_shown() -> None:
    lines = _lines(Budget(2.0, 2.0, 0.25, 1), "limit", None, is_set=False)

    assert lines == [
        "the budget is 2 requests per second for all runs together",
        "  in use   up to 0.25 requests per second, by 1 run",
        "  change   imbrace-lake budget N",
    ]
