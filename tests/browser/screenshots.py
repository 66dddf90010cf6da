"""Make the pictures of docs/operator.md again, from made-up data.

Not part of the tests: ``./dev docs --pictures``. A font with emoji should be installed.
"""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import FloatRect, expect

from imbrace_cli.local_server import LocalServer
from imbrace_sandbox import Sandbox
from tests.browser.ui import SIZE, Ui
from tests.deployments.conftest import TOKEN
from tests.deployments.operator import ROOT, Operator

IMAGES = ROOT / "docs" / "images"
# The graph of a run is drawn when its data have arrived, which the page does not show.
DRAWING_MS = 8_000
pytestmark = pytest.mark.timeout(4_000)


@pytest.fixture(scope="package")
def operator(
    server: LocalServer,
    box: Sandbox,
    keys: dict[str, str],
    address: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Operator:
    """An operator with lake and list in a bucket, so that pictures do not show paths of this machine."""
    settings = {
        "IMBRACE_TOKEN": TOKEN,
        "IMBRACE_ORGANIZATION": box.options.organization_id,
        "IMBRACE_GATEWAY": box.url,
        "IMBRACE_LAKE": f"{address.rpartition('/')[0]}/lake",
    }
    return Operator(server, tmp_path_factory.mktemp("operator"), settings | keys)


@pytest.fixture(scope="module")
def has_graphs() -> bool:
    """Pictures show them."""
    return True


@pytest.fixture(scope="package")
def phones(address: str) -> str:
    """The list of the hourly ingestion."""
    return address


@pytest.mark.usefixtures("worker")
def test_all_pictures(classic: Ui, new: Ui, address: str, box: Sandbox, deployed: Operator) -> None:
    ui, page = classic, classic.page
    deployed.until(lambda: _is_ready(deployed), "the work queue is ready")

    form = ui.open_form("export")
    form.write("List of phone numbers", address)
    _shoot(ui, "form")
    form.write("Default country", "Taiwan")
    form.submit()
    expect(page.get_by_text("two letters of a country").first).to_be_visible()
    _shoot(ui, "rejected", wait_ms=1_000)
    form.write("Default country", "TW")
    form.switch("Ask before reading")
    run_id = form.start()
    # Opened again, or the message about the started run covers the dialog.
    ui.open_run(run_id)
    ui.expect_state("Suspended")
    _draw_times(ui, 276)
    question = ui.resume()
    question.choose("approve")
    _shoot(ui, "plan", 740)
    # Not before, because the plan requests it too.
    box.break_conversation(next(one for ids in box.links.values() for one in ids), "400")
    _allow(deployed, 0.25)
    question.submit()
    deployed.until(lambda: _has_an_estimate(deployed, run_id), "progress")
    ui.open_artifact(run_id, "export-progress")
    _shoot(ui, "progress")
    _allow(deployed, 20.0)
    ui.open_run(run_id)
    ui.expect_state("Partial")
    for picture in ("input", "summary", "failures", "picture"):
        ui.open_artifact(run_id, f"export-{picture}")
        _shoot(ui, picture)
    # By now the server has recorded the tasks.
    ui.open_run(run_id)
    ui.expect_state("Partial")
    _draw_times(ui, 468)
    # The rest of the log names a folder.
    _shoot(ui, "run", 780)

    ui.choose_events("prefect.asset.materialization.succeeded")
    expect(page.get_by_text("lake/messages").first).to_be_visible()
    _shoot(ui, "lineage")
    ui.choose_page("Deployments")
    expect(page.get_by_text("verify").first).to_be_visible()
    _shoot(ui, "deployments")
    ui.choose_page("Automations")
    expect(page.get_by_text("imbrace-lake-mark-dead-runs")).to_be_visible()
    _shoot(ui, "automations")
    ui.edit_limit("imbrace-requests")
    _shoot(ui, "budget")

    new.open_form("export").write("List of phone numbers", address)
    _shoot(new, "new-form")
    new.open_run(run_id)
    new.expect_state("Partial")
    # The rest of the log names a folder.
    _shoot(new, "new-run", 764)


def _is_ready(operator: Operator) -> bool | None:
    return operator.ask("GET", "/work_pools/imbrace/queues/default")["status"] == "READY" or None


def _allow(operator: Operator, requests_per_second: float) -> None:
    """Change the budget."""
    body = {"limit": max(1, int(requests_per_second)), "slot_decay_per_second": requests_per_second}
    operator.ask("PATCH", "/v2/concurrency_limits/imbrace-requests", body)


def _has_an_estimate(operator: Operator, run_id: str) -> bool | None:
    wanted = {"artifacts": {"flow_run_id": {"any_": [run_id]}, "key": {"any_": ["export-progress"]}}}
    found = operator.ask("POST", "/artifacts/filter", wanted)
    return any(re.search("about .* left", one["description"]) for one in found) or None


def _draw_times(ui: Ui, height: int) -> None:
    """Draw the times above the graph of a run again: a slow browser draws them over each other."""
    ui.page.wait_for_timeout(DRAWING_MS)
    # The button that fits the run into the graph, which does not have a name.
    ui.page.mouse.click(1076, height)


def _shoot(ui: Ui, name: str, height: int = SIZE["height"], wait_ms: int = DRAWING_MS) -> None:
    ui.page.wait_for_timeout(wait_ms)
    IMAGES.mkdir(exist_ok=True)
    clip = FloatRect(x=0, y=0, width=SIZE["width"], height=height)
    ui.page.screenshot(path=IMAGES / f"{name}.png", clip=clip)
