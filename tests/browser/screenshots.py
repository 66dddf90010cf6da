"""Make the pictures of docs/operator.md again, from made-up data.

Not part of the tests: ``pytest tests/browser/screenshots.py``. A font with emoji should be installed.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import expect

from cli.local_server import LocalServer
from sandbox import Sandbox
from tests.browser.ui import Ui
from tests.deployments.conftest import TOKEN
from tests.deployments.operator import ROOT, Operator, Worker
from tests.seaweed import Seaweed

IMAGES = ROOT / "docs" / "images"
BUCKET = "example"
LIST = f"s3://{BUCKET}/customers.csv"
# The graph of a run is drawn when its data are there, and nothing in the page says that it was.
DRAWING_MS = 3_000

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="session")
def keys(s3: Seaweed) -> dict[str, str]:
    """What reaches the bucket."""
    return {
        "AWS_ACCESS_KEY_ID": s3.key,
        "AWS_SECRET_ACCESS_KEY": s3.secret,
        "AWS_ENDPOINT_URL": s3.endpoint_url,
        "AWS_REGION": "us-east-1",
    }


@pytest.fixture(scope="session")
def operator(
    server: LocalServer,
    box: Sandbox,
    s3: Seaweed,
    keys: dict[str, str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Operator:
    """An operator whose lake and list are in a bucket, for paths of this machine are in no picture."""
    s3.create_bucket(BUCKET)
    numbers = "\n".join(["phone", *box.messy_phones()])
    s3.client().put_object(Bucket=BUCKET, Key="customers.csv", Body=numbers.encode())
    settings = {
        "IMBRACE_TOKEN": TOKEN,
        "IMBRACE_ORGANIZATION": box.options.organization_id,
        "IMBRACE_GATEWAY": box.url,
        "IMBRACE_LAKE": f"s3://{BUCKET}/lake",
    }
    return Operator(server, tmp_path_factory.mktemp("operator"), settings | keys)


@pytest.fixture(scope="session")
def phones() -> str:
    """The list that the hourly ingestion is to read."""
    return LIST


@pytest.fixture(scope="module")
def worker(deployed: Operator, keys: dict[str, str]) -> Iterator[Worker]:
    """A worker that reaches the list."""
    with Worker(Operator(deployed.server, deployed.folder), "imbrace", **keys) as worker:
        yield worker


@pytest.mark.usefixtures("worker")
def test_all_pictures(ui: Ui, box: Sandbox) -> None:
    box.break_conversation(next(one for ids in box.links.values() for one in ids), "400")
    page = ui.page

    form = ui.open_form("export-on-demand")
    form.write("List of phone numbers", LIST)
    _shoot(ui, "form")
    form.write("Tolerated share of failures", "7")
    form.submit()
    expect(page.get_by_text("Validation failed").first).to_be_visible()
    _shoot(ui, "refused")
    form.write("Tolerated share of failures", "0")
    run_id = form.start()
    ui.expect_state("Partial")
    for picture in ("progress", "summary", "failures"):
        ui.open_artifact(run_id, f"export-{picture}")
        _shoot(ui, picture)
    # By now the server has recorded the tasks.
    ui.open_run(run_id)
    ui.expect_state("Partial")
    _shoot(ui, "run")

    page.goto("/deployments")
    expect(page.get_by_text("verify-nightly").first).to_be_visible()
    _shoot(ui, "deployments")
    page.goto("/automations")
    expect(page.get_by_text("imbrace-lake-mark-dead-runs")).to_be_visible()
    _shoot(ui, "automations")
    ui.edit_limit("imbrace-requests")
    _shoot(ui, "budget")


def _shoot(ui: Ui, name: str) -> None:
    ui.page.wait_for_timeout(DRAWING_MS)
    IMAGES.mkdir(exist_ok=True)
    ui.page.screenshot(path=IMAGES / f"{name}.png")
