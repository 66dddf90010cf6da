"""A page of another origin can neither read nor change anything on our Prefect servers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from playwright.sync_api import BrowserContext, Request, Response, expect

from imbrace_cli.local_server import LocalServer, ensure_server, keep_alive, stop_server
from tests.acceptance.scale import IS_FULL
from tests.browser.attacks import FOREIGN_HOST, MARK, Attacker, attacker
from tests.browser.ui import PAGE_MS
from tests.deployments.composed import LOGIN, ComposedServer, composed_server
from tests.prefect_homes import make_home

pytestmark = pytest.mark.timeout(600)

# Its login is also tested without a browser, and it takes 40 s of CPU.
full = pytest.mark.skipif(not IS_FULL, reason="the composed server in a browser: IMBRACE_ACCEPTANCE=full")
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


@pytest.fixture(scope="module")
def composed(browser: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComposedServer]:
    with composed_server(make_home(tmp_path_factory, "composed")) as server:
        with server.client() as client:
            client.post("/variables/", json=SECRET).raise_for_status()
        yield server


@pytest.fixture(scope="module")
def logged_in(pages: Attacker, composed: ComposedServer) -> BrowserContext:
    """A browser whose user is logged in to the server of the compose file."""
    context = pages.browser.new_context()
    page = context.new_page()
    page.goto(f"{composed.ui_url}/variables", timeout=PAGE_MS)
    page.get_by_role("textbox").fill(LOGIN, timeout=PAGE_MS)
    page.get_by_role("button", name="Login").click()
    expect(page.get_by_text("secret", exact=True).first).to_be_visible(timeout=PAGE_MS)
    page.close()
    return context


def planted(api: httpx.Client) -> list[str]:
    """What attacks have created or changed on a server."""

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

    # The page itself is rejected, and its attacks are sent all the same.
    read = pages.attack(f"{rebound}/", rebound)

    assert all("403" in text and "answers only to" in text for text in read.values())
    with httpx.Client(base_url=local.api_url) as api:
        assert planted(api) == []


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("127.0.0.1", "/dashboard"),
        ("localhost", "/variables"),
        ("localhost", "/v2/dashboard"),
        ("127.0.0.1", "/v2/variables"),
    ],
)
def test_the_pages_of_the_local_server_work_and_reach_no_other_server(
    name: str, path: str, pages: Attacker, local: LocalServer
) -> None:
    own = f"http://{name}:{local.port}"
    page = pages.browser.new_page(base_url=own)
    failed: list[str] = []
    outside: list[str] = []

    def note_failure(answer: Response) -> None:
        if not answer.ok:
            failed.append(f"{answer.status} {answer.url}")

    def note_outside(request: Request) -> None:
        if f":{local.port}/" not in request.url:
            outside.append(request.url)

    page.on("response", note_failure)
    page.on("request", note_outside)
    shown = "secret" if path.endswith("variables") else "Run a task or flow to get started"
    try:
        page.goto(path, timeout=PAGE_MS)
        expect(page.get_by_text(shown, exact=True).first).to_be_visible(timeout=PAGE_MS)
        page.wait_for_timeout(1_000)
    finally:
        page.close()

    assert not failed
    assert not outside


@full
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", FOREIGN_HOST])
def test_a_page_of_another_server_can_do_nothing_to_the_composed_one(
    host: str, pages: Attacker, composed: ComposedServer, logged_in: BrowserContext
) -> None:
    for name in ("127.0.0.1", "localhost"):
        target = f"http://{name}:{composed.port}"
        read = pages.attack(f"http://{host}:{pages.port}/", target, logged_in)

        assert not read
    with composed.client() as api:
        assert planted(api) == []


@full
def test_a_page_whose_name_was_made_to_lead_to_the_composed_server_cannot_log_in(
    pages: Attacker, composed: ComposedServer, logged_in: BrowserContext
) -> None:
    rebound = f"http://{FOREIGN_HOST}:{composed.port}"

    read = pages.attack(f"{rebound}/", rebound, logged_in)

    # Only the settings of the UI can be read.
    assert SECRET["value"] not in read.pop("fetch ui settings")
    refusals = ("Unauthorized", "Missing CSRF token")
    assert {name: text for name, text in read.items() if not any(one in text for one in refusals)} == {}
    with composed.client() as api:
        assert planted(api) == []


@full
@pytest.mark.parametrize("path", ["/variables", "/v2/variables"])
def test_the_pages_of_the_composed_server_work_after_a_login(
    path: str, composed: ComposedServer, logged_in: BrowserContext
) -> None:
    page = logged_in.new_page()
    try:
        page.goto(f"{composed.ui_url}{path}", timeout=PAGE_MS)
        expect(page.get_by_text("secret", exact=True).first).to_be_visible(timeout=PAGE_MS)
    finally:
        page.close()
