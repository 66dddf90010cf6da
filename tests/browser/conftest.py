"""A browser, for the server of the tests of deployments."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Page

from tests.browser.ui import Ui, find_browser, open_page
from tests.deployments.conftest import box, deployed, halted, lake, listed, operator, phones, server, worker
from tests.deployments.operator import Operator

__all__ = ["box", "deployed", "halted", "lake", "listed", "operator", "phones", "server", "worker"]


@pytest.fixture(scope="package")
def browser() -> str:
    """The browser's path; without one, these tests are skipped with a message."""
    found = find_browser()
    if found is None:
        pytest.skip("no Chromium or Chrome on the PATH: the forms were not tried in a browser")
    return found


@pytest.fixture(scope="module")
def page(browser: str, request: pytest.FixtureRequest) -> Iterator[Page]:
    """A page of the server, with everything deployed."""
    # Not an argument, so that a server is started only where there is a browser.
    operator: Operator = request.getfixturevalue("deployed")
    with open_page(browser, operator.server.ui_url) as page:
        yield page


@pytest.fixture
def ui(page: Page) -> Ui:
    """The UI, before any click."""
    return Ui(page)
