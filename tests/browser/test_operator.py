"""The steps of docs/operator.md, in a browser, in both of Prefect's interfaces.

Where a test follows steps of the page, it compares the words that it used with the words of the page. What
takes long is done in one of the interfaces.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import pyarrow.dataset as ds
import pytest
from playwright.sync_api import Page, expect

from imbrace_sandbox import Sandbox
from tests.browser.ui import SIZE, SUBMITTED_AT_MOST, NewUi, Ui
from tests.deployments.conftest import Halted
from tests.deployments.lakes import messages
from tests.deployments.operator import ROOT, Operator, Worker

OPERATOR_PAGE = ROOT / "docs" / "operator.md"
LIST = "List of phone numbers"
TYPED = "A few phone numbers"
LOCAL_NUMBER = "0911 000 888"

pytestmark = pytest.mark.timeout(4_000)


def bold(text: str) -> list[str]:
    """The bold and italic words of a text: names of buttons and fields."""
    return [word.strip("*") for word in re.findall(r"\*\*.+?\*\*|\*.+?\*", text)]


def words(heading: str, ui: Ui) -> list[str]:
    """Buttons and fields in the numbered steps of a section, in the interface that the test uses."""
    text = OPERATOR_PAGE.read_text(encoding="utf-8")
    _, _, section = text.partition(f"\n## {heading}\n")
    steps = re.findall(r"^\d+\. .*(?:\n {3}.*)*", section.partition("\n## ")[0], re.MULTILINE)
    assert steps, f"no steps under {heading!r}"
    found = bold("\n".join(steps))
    if isinstance(ui, NewUi):
        _, _, table = text.partition("| classic | new |\n|---|---|\n")
        for row in table.partition("\n\n")[0].splitlines():
            _, classic, new, _ = row.split("|")
            found = _replaced(found, bold(classic), bold(new))
    return found


def _replaced(found: list[str], old: list[str], new: list[str]) -> list[str]:
    if not found:
        return []
    if found[: len(old)] == old:
        return [*new, *_replaced(found[len(old) :], old, new)]
    return [found[0], *_replaced(found[1:], old, new)]


@dataclass(frozen=True, slots=True)
class Exported:
    """The run that filled the lake, and the words used to start it."""

    run_id: str
    ui: Ui
    local: str


@pytest.fixture(scope="module")
def exported(
    page: Page, worker: Worker, box: Sandbox, phones: Path, tmp_path_factory: pytest.TempPathFactory
) -> Exported:
    """A first export by the steps of the page; one number of the list lacks a country code."""
    local = box.put([], phone="+886911000888")
    box.append(local)
    numbers = tmp_path_factory.mktemp("browser") / "customers.txt"
    numbers.write_text(phones.read_text(encoding="utf-8") + f"\n{LOCAL_NUMBER}\n", encoding="utf-8")
    ui = Ui(page)
    form = ui.open_form("export")
    form.write(LIST, str(numbers))
    form.write("Default country", "TW")
    run_id = form.start()
    ui.expect_state("Completed")
    return Exported(run_id, ui, local)


def test_a_first_export(exported: Exported, lake: Path, listed: set[str], deployed: Operator) -> None:
    assert exported.ui.words == words("The first export", exported.ui)
    assert messages(lake).keys() >= {*listed, exported.local}
    assert deployed.flow_run(exported.run_id)["state"]["name"] == "Completed"


def test_what_a_run_leaves_behind_is_where_the_page_says(ui: Ui, exported: Exported) -> None:
    shown = {
        "export-progress": "Progress: 100%",
        "export-summary": "Every conversation was read and proven complete",
        "export-input": "to be read",
    }
    for key, text in shown.items():
        ui.open_artifact(exported.run_id, key)
        expect(ui.page.get_by_text(text).first).to_be_visible()


def test_the_summary_fits_a_screen_and_its_numbers_add_up_to_the_ledger(
    ui: Ui, exported: Exported, deployed: Operator, lake: Path
) -> None:
    ui.page.goto(f"{ui.root}/artifacts/artifact/{deployed.artifact(exported.run_id, 'export-summary')['id']}")
    query = ui.page.locator("code").filter(has_text="GROUP BY ALL").first
    expect(query).to_be_in_viewport()
    # The address of a lake can be wider than the screen.
    assert query.evaluate("element => element.getBoundingClientRect().bottom") <= SIZE["height"]

    text = ui.page.get_by_role("listitem").filter(has_text="found = ").inner_text()
    total, parts = text.split(":", 1)[-1].split(" found = ")
    statuses = {one.partition(" ")[2]: int(one.partition(" ")[0]) for one in parts.split(" + ")}
    rows = ds.dataset(lake / "conversations").to_table(columns=["run_id", "status"]).to_pylist()
    assert statuses == Counter(row["status"] for row in rows if row["run_id"] == exported.run_id)
    assert sum(statuses.values()) == int(total)


def test_the_picture_of_a_run_is_an_image_without_text_around_it(
    ui: Ui, exported: Exported, deployed: Operator
) -> None:
    ui.page.goto(f"{ui.root}/artifacts/artifact/{deployed.artifact(exported.run_id, 'export-picture')['id']}")

    picture = ui.page.get_by_role("img", name="New messages by day, conversations by status")
    expect(picture).to_be_visible()
    assert picture.evaluate("image => image.complete && image.naturalWidth") == 720
    assert "base64" not in ui.page.locator("body").inner_text()


def test_the_event_feed_names_the_run_of_each_event(
    classic: Ui, exported: Exported, deployed: Operator
) -> None:
    # The new interface lists only some kinds of events.
    classic.choose_events("prefect.asset.materialization.succeeded")

    assert classic.words == words("Which run made what", classic)
    expect(classic.page.get_by_text("lake/messages").first).to_be_visible()
    name = deployed.flow_run(exported.run_id)["name"]
    expect(classic.page.get_by_role("link", name=name).first).to_be_visible()


def test_one_customer_again(ui: Ui, exported: Exported, box: Sandbox) -> None:
    customer, *_ = box.links
    box.reset_stats()

    form = ui.open_form("backfill")
    form.write(TYPED, customer)
    form.start()

    ui.expect_state("Completed")
    assert ui.words == words("One customer again", ui)
    read = {one for one, pages in box.stats().pages.items() if pages}
    assert read == set(box.links[customer])


def test_a_number_that_prefect_must_not_store_is_given_in_a_list(
    classic: Ui, exported: Exported, box: Sandbox, tmp_path: Path
) -> None:
    customer = tmp_path / "customer.txt"
    customer.write_text(next(iter(box.links)), encoding="utf-8")
    box.reset_stats()

    form = classic.open_form("backfill")
    form.write(LIST, str(customer))
    form.start()

    classic.expect_state("Completed")
    read = {one for one, pages in box.stats().pages.items() if pages}
    assert read == set(box.links[next(iter(box.links))])


def test_a_window_of_time_again(ui: Ui, exported: Exported, deployed: Operator) -> None:
    form = ui.open_form("backfill")
    form.switch("Everything")
    form.choose_day("From", date(2026, 1, 1))
    form.choose_day("Until", date(2026, 2, 1))
    run_id = form.start()

    ui.expect_state("Completed")
    assert ui.words == words("A window of time again", ui)
    given = deployed.flow_run(run_id)["parameters"]["params"]
    assert given["everything"] is True
    assert [given[name][:16] for name in ("since", "until")] == ["2026-01-01T00:00", "2026-02-01T00:00"]


def test_a_window_that_ends_before_it_begins_fails_at_once_with_one_sentence(
    classic: Ui, new: Ui, exported: Exported, deployed: Operator
) -> None:
    form = classic.open_form("backfill")
    form.switch("Everything")
    form.choose_day("From", date(2026, 2, 1))
    form.choose_day("Until", date(2026, 1, 1))
    run_id = form.start()

    classic.expect_state("Failed")
    reason = deployed.flow_run(run_id)["state"]["message"]
    assert reason == "the window ends before it begins: Until must be later than From"
    for ui in (classic, new):
        ui.open_run(run_id)
        expect(ui.page.get_by_text(reason, exact=True).first).to_be_visible()


def test_a_run_that_asks_is_approved(ui: Ui, exported: Exported, box: Sandbox, lake: Path) -> None:
    number = f"+88691100077{isinstance(ui, NewUi):d}"
    new = box.put([], phone=number)
    box.append(new, 3)

    form = ui.open_form("export")
    form.write(TYPED, number)
    ui.words.clear()
    form.switch("Ask before reading")
    form.start()
    ui.expect_state("Suspended")
    question = ui.resume()
    expect(question.dialog.get_by_text("1 new")).to_be_visible()
    question.choose("approve")
    _be_busy_once(ui, "resume")
    question.submit()

    ui.expect_state("Completed")
    assert messages(lake)[new] == 3
    assert ui.words == words("See the plan first", ui)


def test_a_plan_is_declined(new: Ui, exported: Exported, box: Sandbox, lake: Path) -> None:
    unread = box.put([], phone="+886911000779")

    form = new.open_form("export")
    form.write(TYPED, "+886911000779")
    form.switch("Ask before reading")
    form.start()
    new.expect_state("Suspended")
    question = new.resume()
    question.choose("decline")
    question.submit()

    new.expect_state("Declined")
    assert unread not in messages(lake)


def test_the_failures_of_a_run_are_repaired(ui: Ui, exported: Exported, box: Sandbox, lake: Path) -> None:
    number = f"+88691100033{isinstance(ui, NewUi):d}"
    broken = box.put([], phone=number)
    box.append(broken)
    box.break_conversation(broken, "400")
    form = ui.open_form("export")
    form.write(TYPED, number)
    run_id = form.start()
    ui.expect_state("Failed")
    # Either of them is accepted.
    run = ui.page.url if isinstance(ui, NewUi) else run_id
    ui.open_artifact(run_id, "export-failures")
    expect(ui.page.get_by_text("send the request id to the vendor").first).to_be_visible()
    box.repair(broken)
    ui.words.clear()

    form = ui.open_form("retry-failed")
    form.write("Run to retry", run)
    form.start()

    ui.expect_state("Completed")
    assert ui.words == words("Export what is missing", ui)
    assert broken in messages(lake)


def test_a_run_is_cancelled_on_its_page(
    ui: Ui, exported: Exported, deployed: Operator, halted: Halted
) -> None:
    form = ui.open_form("export")
    form.write(LIST, str(halted.phones))
    run_id = form.start()
    ui.expect_state("Running")
    ui.words.clear()

    _be_busy_once(ui, "set_state")
    ui.cancel()

    ui.expect_state("Cancelled")
    assert ui.words == words("Cancel", ui)
    assert deployed.flow_run(run_id)["state"]["name"] == "Cancelled"


def test_the_budget_of_requests_is_changed(classic: Ui, deployed: Operator) -> None:
    budget = 10
    for _ in range(SUBMITTED_AT_MOST):
        classic.words.clear()
        limit = classic.edit_limit("imbrace-requests")
        limit.write("Concurrency Limit", str(budget))
        limit.write("Slot Decay Per Second", str(budget))
        if limit.update():
            break

    assert classic.words == words("Change the budget", classic)
    found = deployed.ask("GET", "/v2/concurrency_limits/imbrace-requests")
    assert (found["limit"], found["slot_decay_per_second"]) == (budget, budget)


@pytest.mark.parametrize(
    ("title", "text", "message"),
    [
        (TYPED, "+886911425977", "only one of these: a list of phone numbers"),
        ("Default country", "Taiwan", "two letters of a country"),
    ],
)
def test_wrong_input_is_rejected_with_a_message_before_a_run(
    classic: Ui, deployed: Operator, phones: Path, title: str, text: str, message: str
) -> None:
    before = _runs(deployed, "export")
    form = classic.open_form("export")
    form.write(LIST, str(phones))
    form.write(title, text)

    shown = classic.page.get_by_text(message).first
    for _ in range(SUBMITTED_AT_MOST):
        form.submit()
        # A busy server gives another answer, after which the page asks to submit again.
        expect(shown.or_(classic.page.get_by_text("Something went wrong").first).first).to_be_visible()
        if shown.is_visible():
            break

    expect(shown).to_be_visible()
    assert _runs(deployed, "export") == before


@pytest.mark.parametrize("asked", ["schemas/validate", "create_flow_run"])
def test_a_busy_server_shows_the_message_of_the_page(
    classic: Ui, deployed: Operator, phones: Path, asked: str
) -> None:
    (reported,) = re.findall(r"If it shows \*(.+?)\*", OPERATOR_PAGE.read_text(encoding="utf-8"))
    form = classic.open_form("export")
    form.write(LIST, str(phones))
    _be_busy_once(classic, asked)

    form.submit()

    expect(classic.page.get_by_text(reported).first).to_be_visible()


def test_a_form_begins_with_the_most_important_fields_and_explains_each(
    classic: Ui, deployed: Operator
) -> None:
    form = classic.open_form("backfill")
    # Prefect shows them when it has found the blocks.
    for block in ("iMBrace credentials", "Conversation lake"):
        expect(form.field(block)).to_be_visible()

    titles = form.titles()

    assert titles[:2] == ["Everything", LIST]
    assert titles.index("From") + 1 == titles.index("Until")
    assert titles[-2:] == ["iMBrace credentials", "Conversation lake"]
    for title in titles:
        assert re.search(r"\w+ \w+", form.description(title)), title


def _be_busy_once(ui: Ui, asked: str) -> None:
    """Answer the next such request of the page as a busy server does."""
    busy = {"exception_message": "Service Unavailable"}
    ui.page.route(f"**/{asked}", lambda route: route.fulfill(status=503, json=busy), times=1)


def _runs(deployed: Operator, deployment: str) -> int:
    found = {"deployments": {"name": {"any_": [deployment]}}}
    count = deployed.ask("POST", "/flow_runs/count", found)
    return int(count)
