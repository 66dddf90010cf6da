"""What docs/operator.md tells an operator to do, in a browser; each deployment runs once."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from playwright.sync_api import expect

from sandbox import Sandbox
from tests.browser.ui import Ui
from tests.deployments.conftest import Halted
from tests.deployments.lakes import messages
from tests.deployments.operator import Operator, Worker

LIST = "List of phone numbers"

pytestmark = [pytest.mark.usefixtures("worker"), pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def exported(ui: Ui, worker: Worker, phones: Path) -> str:
    """The run that filled the lake, started from its form."""
    form = ui.open_form("export-on-demand")
    form.write(LIST, str(phones))
    run_id = form.start()
    ui.expect_state("Completed")
    return run_id


def test_an_export_is_started_by_the_address_of_a_list(
    exported: str, lake: Path, listed: set[str], deployed: Operator
) -> None:
    assert messages(lake).keys() >= listed
    assert deployed.flow_run(exported)["state"]["name"] == "Completed"


def test_the_hourly_ingestion_is_started_ahead_of_time_with_what_its_form_holds(
    ui: Ui, exported: str, box: Sandbox, lake: Path
) -> None:
    before = messages(lake).total()
    box.append(next(one for ids in box.links.values() for one in ids))

    ui.open_form("ingest-hourly").start()

    ui.expect_state("Completed")
    assert messages(lake).total() == before + 1


def test_a_backfill_of_one_customer_is_started_by_choosing_the_source(
    ui: Ui, exported: str, box: Sandbox, deployed: Operator, tmp_path: Path
) -> None:
    customer = tmp_path / "customer.txt"
    customer.write_text(next(iter(box.links)), encoding="utf-8")
    box.reset_stats()

    form = ui.open_form("backfill-on-demand")
    form.choose("Which conversations", "phones")
    form.write(LIST, str(customer))
    run_id = form.start()

    ui.expect_state("Completed")
    given = deployed.flow_run(run_id)["parameters"]["params"]
    assert (given["source"], given["phones"]) == ("phones", str(customer))
    read = {one for one, pages in box.stats().pages.items() if pages}
    assert read == set(box.links[next(iter(box.links))])


def test_what_a_run_left_undone_is_exported_once_its_cause_is_mended(
    ui: Ui, exported: str, box: Sandbox, lake: Path
) -> None:
    broken = box.put([], phone="+886911000333")
    box.append(broken)
    box.break_conversation(broken, "400")
    form = ui.open_form("export-on-demand")
    form.write("A few phone numbers", "+886911000333")
    run_id = form.start()
    ui.expect_state("Failed")
    box.mend(broken)

    form = ui.open_form("rerun-failed")
    form.write("Only what this run left undone", run_id)
    form.start()

    ui.expect_state("Completed")
    assert broken in messages(lake)


def test_what_an_event_starts_can_be_started_by_hand(ui: Ui, exported: str, phones: Path) -> None:
    form = ui.open_form("export-on-phones-uploaded")
    form.write(LIST, str(phones))
    form.start()

    ui.expect_state("Completed")


def test_a_verification_is_started_ahead_of_time(ui: Ui, exported: str) -> None:
    ui.open_form("verify-nightly").start()

    ui.expect_state("Completed")


def test_a_run_is_cancelled_on_its_page(ui: Ui, exported: str, deployed: Operator, halted: Halted) -> None:
    form = ui.open_form("export-on-demand")
    form.write(LIST, str(halted.phones))
    run_id = form.start()
    ui.expect_state("Running")

    ui.cancel()

    ui.expect_state("Cancelled")
    assert deployed.flow_run(run_id)["state"]["name"] == "Cancelled"


def test_the_budget_of_requests_is_changed_where_the_limits_are(ui: Ui, deployed: Operator) -> None:
    limit = ui.edit_limit("imbrace-requests")
    limit.write("Concurrency Limit", "10")
    limit.write("Slot Decay Per Second", "10")
    limit.update()

    found = deployed.ask("GET", "/v2/concurrency_limits/imbrace-requests")
    assert (found["limit"], found["slot_decay_per_second"]) == (10, 10)


@pytest.mark.parametrize(
    ("title", "text", "message"),
    [
        ("Tolerated share of failures", "7", "7 is greater than the maximum of 1"),
        ("Default country", "Taiwan", "'Taiwan' is not valid"),
        ("Conversations a task", "0", "0 is less than the minimum of 1"),
    ],
)
def test_nonsense_is_refused_with_a_message_before_anything_runs(
    ui: Ui, deployed: Operator, phones: Path, title: str, text: str, message: str
) -> None:
    before = _runs(deployed)
    form = ui.open_form("export-on-demand")
    form.write(LIST, str(phones))
    form.write(title, text)

    form.submit()

    expect(ui.page.get_by_text(message).first).to_be_visible()
    assert _runs(deployed) == before


def test_a_form_asks_first_what_matters_most_and_explains_every_field(ui: Ui) -> None:
    form = ui.open_form("backfill-on-demand")

    titles = form.titles()

    assert titles[:2] == ["Which conversations", LIST]
    assert titles.index("From") + 1 == titles.index("Until")
    assert titles[-2:] == ["credentials", "lake"]
    for title in titles:
        expect(form.field(title).locator(".schema-form-property__description").last).to_have_text(
            re.compile(r"\w+ \w+")
        )


def _runs(deployed: Operator) -> int:
    found = {"deployments": {"name": {"any_": ["export-on-demand"]}}}
    count = deployed.ask("POST", "/flow_runs/count", found)
    return int(count)
