"""A browser, for the server of the tests of deployments."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Page

from imbrace_sandbox import Sandbox
from tests.acceptance.scale import IS_FULL
from tests.browser.ui import NewUi, Ui, find_browser, open_page
from tests.deployments.conftest import (
    box,
    deployed,
    halted,
    impatient,
    lake,
    listed,
    operator,
    phones,
    server,
)
from tests.deployments.operator import Operator, Worker
from tools.seaweed import Seaweed

__all__ = [
    "box",
    "deployed",
    "halted",
    "impatient",
    "lake",
    "listed",
    "operator",
    "phones",
    "server",
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave what both interfaces show alike to the classic one, except in full runs."""
    if not IS_FULL:
        items[:] = [one for one in items if not (one.get_closest_marker("classic_first") and _is_new(one))]


def _is_new(item: pytest.Item) -> bool:
    return isinstance(item, pytest.Function) and item.callspec.params.get("interface") is NewUi


@pytest.fixture(scope="package")
def browser() -> str:
    """The browser's path; without one, these tests are skipped with a message."""
    found = find_browser()
    if found is None:
        pytest.skip("no Chromium or Chrome on the PATH: the forms were not tried in a browser")
    return found


@pytest.fixture(scope="module")
def has_graphs() -> bool:
    """Whether the pages of runs show their graphs."""
    return False


@pytest.fixture(scope="module")
def page(browser: str, has_graphs: bool, request: pytest.FixtureRequest) -> Iterator[Page]:
    """A page of the server, with everything deployed."""
    # Not an argument, so that a server is started only where there is a browser.
    operator: Operator = request.getfixturevalue("deployed")
    with open_page(browser, operator.server.ui_url, has_graphs=has_graphs) as page:
        yield page


@pytest.fixture
def classic(page: Page) -> Ui:
    """The classic UI, before any click."""
    return Ui(page)


@pytest.fixture
def new(page: Page) -> Ui:
    """The new UI, before any click."""
    return NewUi(page)


# By module, so that pytest runs the tests of one interface after those of the other: loading one takes long.
@pytest.fixture(scope="module", params=[Ui, NewUi], ids=["classic", "new"])
def interface(request: pytest.FixtureRequest) -> type[Ui]:
    """Each of the two."""
    chosen: type[Ui] = request.param
    return chosen


@pytest.fixture
def ui(interface: type[Ui], page: Page) -> Ui:
    """Each of the two, before any click."""
    return interface(page)


@pytest.fixture(scope="package")
def keys(s3: Seaweed) -> dict[str, str]:
    """The settings that reach the bucket."""
    return {
        "AWS_ACCESS_KEY_ID": s3.key,
        "AWS_SECRET_ACCESS_KEY": s3.secret,
        "AWS_ENDPOINT_URL": s3.endpoint_url,
        "AWS_REGION": "us-east-1",
    }


@pytest.fixture(scope="package")
def address(s3: Seaweed, box: Sandbox) -> str:
    """The address of a list of all customers, in a bucket."""
    s3.create_bucket("example")
    # One customer without a number, for the picture of the list report.
    rows = [f"Customer {index},{phone}" for index, phone in enumerate(["", *box.phones], 1)]
    s3.client().put_object(
        Bucket="example", Key="customers.csv", Body="\n".join(["name,phone", *rows]).encode()
    )
    return "s3://example/customers.csv"


@pytest.fixture(scope="module")
def worker(deployed: Operator, keys: dict[str, str]) -> Iterator[Worker]:
    """A worker with access to the list."""
    with Worker(Operator(deployed.server, deployed.folder), "imbrace", **keys) as worker:
        yield worker
