"""A page of another origin can neither read nor change anything on a Prefect server of ours."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from playwright.sync_api import expect

from cli.local_server import LocalServer, ensure_server, keep_alive, stop_server
from tests.browser.attacks import FOREIGN_HOST, MARK, Attacker, attacker
from tests.browser.ui import PAGE_MS
from tests.prefect_homes import make_home

pytestmark = pytest.mark.timeout(600)

SECRET = {"name": "secret", "value": "not for other pages"}


@pytest.fixture(scope="module")
def pages(browser: str) -> Iterator[Attacker]:
    with attacker(browser) as attacking:
        yield attacking


@pytest.fixture(scope="module")
def local(browser: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServer]:
    home = make_home(tmp_path_factory, "home")
    running = ensure_server(home)
    with keep_alive(home):
        httpx.post(f"{running.api_url}/variables/", json=SECRET).raise_for_status()
        yield running
        stop_server(home)


def planted(api: httpx.Client) -> list[str]:
    """What attacks have left behind on a server, or changed there."""

    def ask(path: str, body: object) -> Any:
        return api.post(path, json=body).raise_for_status().json()

    variables = [{name: one[name] for name in SECRET} for one in ask("/variables/filter", {})]
    limits = ask("/v2/concurrency_limits/filter", {})
    events = ask("/events/filter", {"filter": {"event": {"name": [MARK]}}})
    changed = [one for one in [*variables, SECRET] if variables != [SECRET]]
    return [str(one) for one in [*changed, *limits, *events["events"]]]


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", FOREIGN_HOST])
def test_a_page_of_another_server_can_do_nothing_to_the_local_one(
    host: str, pages: Attacker, local: LocalServer
) -> None:
    for name in ("127.0.0.1", "localhost"):
        read = pages.attack(f"http://{host}:{pages.port}/", f"http://{name}:{local.port}")

        assert not read
    with httpx.Client(base_url=local.api_url) as api:
        assert planted(api) == []


def test_a_page_whose_name_was_made_to_lead_to_the_local_server_can_do_nothing(
    pages: Attacker, local: LocalServer
) -> None:
    rebound = f"http://{FOREIGN_HOST}:{local.port}"

    # The page itself is refused; what it would do from there is tried all the same.
    read = pages.attack(f"{rebound}/", rebound)

    assert all("403" in text and "answers only to" in text for text in read.values())
    with httpx.Client(base_url=local.api_url) as api:
        assert planted(api) == []


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost"])
@pytest.mark.parametrize(
    "path", ["/dashboard", "/v1/dashboard", "/v2/dashboard", "/variables", "/v2/variables"]
)
def test_the_pages_of_the_local_server_work_and_reach_no_other_server(
    name: str, path: str, pages: Attacker, local: LocalServer
) -> None:
    own = f"http://{name}:{local.port}"
    page = pages.browser.new_page(base_url=own)
    failed: list[str] = []
    outside: list[str] = []
    page.on("response", lambda answer: None if answer.ok else failed.append(f"{answer.status} {answer.url}"))
    page.on(
        "request", lambda request: None if f":{local.port}/" in request.url else outside.append(request.url)
    )
    shown = "secret" if path.endswith("variables") else "Run a task or flow to get started"
    try:
        page.goto(path, timeout=PAGE_MS)
        expect(page.get_by_text(shown, exact=True).first).to_be_visible(timeout=PAGE_MS)
        page.wait_for_timeout(1_000)
    finally:
        page.close()

    assert not failed
    assert not outside
