"""The steps of docs/operator.md, in a browser, in both of Prefect's interfaces.

Where a test follows steps of the page, it compares the words that it used with the words of the page. What
takes long is done in one of the interfaces, and a part of it only at full length: with `works`, runs begin
only then, in the classic one, because tests/deployments starts the same runs without a browser. Otherwise,
and with `waiting`, no run begins, and the test looks at what the form sent.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import pyarrow.dataset as ds
import pytest
from playwright.sync_api import Page, expect

from imbrace_flows.params import BackfillParams
from imbrace_sandbox import Sandbox
from tests.acceptance.scale import IS_FULL
from tests.browser.ui import SIZE, SUBMITTED_AT_MOST, NewUi, Ui
from tests.deployments.conftest import Halted
from tests.deployments.lakes import messages
from tests.deployments.operator import ROOT, Operator, Worker
from tools.seaweed import Seaweed

OPERATOR_PAGE = ROOT / "docs" / "operator.md"
LIST = "List of phone numbers"
TYPED = "A few phone numbers"
LOCAL_NUMBER = "0911 000 888"
MANY = ", ".join(f"+8869110001{number}" for number in range(10, 31))

WRONG: Mapping[str, list[tuple[dict[str, str], str]]] = {
    "export": [
        ({}, "one of these: a list of phone numbers, a few phone numbers"),
        ({LIST: "a.csv", TYPED: "+886911425977"}, "only one of these: a list of phone numbers"),
        ({LIST: "a.csv", "Default country": "Taiwan"}, "two letters of a country"),
        ({TYPED: MANY}, "at most 20 phone numbers"),
    ],
    "backfill": [
        ({}, "one of these: everything, a list of phone numbers"),
        ({LIST: "a.csv", "List of conversations": "b.csv"}, "only one of these: everything"),
    ],
    "export-on-upload": [({}, "should be non-empty")],
    "retry-failed": [
        ({}, "the id of a run, or the address of its page"),
        ({"Run to retry": "the last one"}, "the id of a run, or the address of its page"),
    ],
    "verify": [({"Stale after": "-1"}, "-1 is less than or equal to the minimum of 0")],
}

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
def exported(page: Page, worker: Worker, box: Sandbox, s3: Seaweed, address: str) -> Exported:
    """A first export by the steps of the page, of a list in a bucket; one number lacks a country code."""
    local = box.put([], phone="+886911000888")
    box.append(local)
    body = "\n".join([*box.phones, LOCAL_NUMBER]).encode()
    s3.client().put_object(Bucket="example", Key="numbers.txt", Body=body)
    ui = Ui(page)
    form = ui.open_form("export")
    form.write(LIST, f"{address.rpartition('/')[0]}/numbers.txt")
    form.write("Default country", "TW")
    run_id = form.start()
    ui.expect_state("Completed")
    return Exported(run_id, ui, local)


@contextmanager
def paused(deployed: Operator) -> Iterator[None]:
    """Let no run begin, and delete those that wait: a process costs seconds."""
    deployed.ask("PATCH", "/work_pools/imbrace", {"is_paused": True})
    yield
    begun = {"flow_runs": {"state": {"type": {"any_": ["SCHEDULED", "RUNNING", "CANCELLING"]}}}}
    for run in deployed.ask("POST", "/flow_runs/filter", begun):
        deployed.ask("DELETE", f"/flow_runs/{run['id']}")
    deployed.ask("PATCH", "/work_pools/imbrace", {"is_paused": False})


@pytest.fixture
def waiting(deployed: Operator) -> Iterator[None]:
    """No run of a test begins."""
    with paused(deployed):
        yield


@pytest.fixture
def works(interface: type[Ui], deployed: Operator) -> Iterator[bool]:
    """Whether the runs of a test begin."""
    begin = IS_FULL and interface is Ui
    with nullcontext() if begin else paused(deployed):
        yield begin


def given(deployed: Operator, run_id: str) -> dict[str, Any]:
    """What a form sent for a run, without blocks."""
    params: dict[str, Any] = deployed.flow_run(run_id)["parameters"]["params"]
    return params


def put_in_state(deployed: Operator, run_id: str, kind: str) -> None:
    """Let the server show a state that no process has reported."""
    deployed.ask("POST", f"/flow_runs/{run_id}/set_state", {"state": {"type": kind}, "force": True})


def test_a_first_export(exported: Exported, lake: Path, listed: set[str], deployed: Operator) -> None:
    assert exported.ui.words == words("The first export", exported.ui)
    assert messages(lake).keys() >= {*listed, exported.local}
    assert deployed.flow_run(exported.run_id)["state"]["name"] == "Completed"


@pytest.mark.classic_first
def test_what_a_run_leaves_behind_is_where_the_page_says(ui: Ui, exported: Exported) -> None:
    shown = {
        "export-progress": "Progress: 100%",
        "export-summary": "Every conversation was read and proven complete",
        "export-input": "to be read",
    }
    for key, text in shown.items():
        ui.open_artifact(exported.run_id, key)
        expect(ui.page.get_by_text(text).first).to_be_visible()


@pytest.mark.classic_first
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


@pytest.mark.classic_first
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


@pytest.mark.classic_first
def test_one_customer_again(
    ui: Ui, exported: Exported, box: Sandbox, deployed: Operator, works: bool
) -> None:
    customer, *_ = box.links
    box.reset_stats()

    form = ui.open_form("backfill")
    form.write(TYPED, customer)
    run_id = form.start()

    assert ui.words == words("One customer again", ui)
    assert given(deployed, run_id)["numbers"] == customer
    if not works:
        return
    ui.expect_state("Completed")
    read = {one for one, pages in box.stats().pages.items() if pages}
    assert read == set(box.links[customer])


@pytest.mark.usefixtures("waiting")
def test_a_number_that_prefect_must_not_store_is_given_in_a_list(
    classic: Ui, deployed: Operator, box: Sandbox, tmp_path: Path
) -> None:
    number = next(iter(box.links))
    customer = tmp_path / "customer.txt"
    customer.write_text(number, encoding="utf-8")

    form = classic.open_form("backfill")
    form.write(LIST, str(customer))
    run_id = form.start()

    assert given(deployed, run_id)["phones"] == str(customer)
    assert number.lstrip("+") not in str(deployed.flow_run(run_id))


@pytest.mark.classic_first
@pytest.mark.usefixtures("waiting")
def test_a_window_of_time_again(ui: Ui, deployed: Operator) -> None:
    form = ui.open_form("backfill")
    form.switch("Everything")
    form.choose_day("From", date(2026, 1, 1))
    form.choose_day("Until", date(2026, 2, 1))
    run_id = form.start()

    assert ui.words == words("A window of time again", ui)
    # The flow begins by validating it.
    sent = BackfillParams.model_validate(given(deployed, run_id))
    assert sent.everything is True
    assert (sent.since, sent.until) == (datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 2, 1, tzinfo=UTC))


@pytest.mark.skipif(not IS_FULL, reason="test_deployments.py starts such a run: IMBRACE_ACCEPTANCE=full")
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


@pytest.mark.classic_first
def test_a_plan_is_approved_in_one_interface_and_declined_in_the_other(
    ui: Ui, exported: Exported, box: Sandbox, lake: Path, deployed: Operator
) -> None:
    is_approved = isinstance(ui, NewUi)
    number = f"+{886911000770 + is_approved}"
    conversation_id = box.put([], phone=number)
    box.append(conversation_id, 3)
    form = ui.open_form("export")
    form.write(TYPED, number)
    ui.words.clear()
    form.switch("Ask before reading")
    run_id = form.start()
    # Opened again, or the message about the started run covers the dialog.
    ui.open_run(run_id)
    ui.expect_state("Suspended")
    question = ui.resume()
    expect(question.dialog.get_by_text("1 new")).to_be_visible()
    decision = "approve" if is_approved else "decline"
    question.choose(decision)
    _be_busy_once(ui, "resume")

    question.submit()

    steps = [decision if word == "approve" else word for word in words("See the plan first", ui)]
    assert ui.words == steps
    ui.expect_state("Completed" if is_approved else "Declined")
    if not is_approved:
        state = deployed.flow_run(run_id)["state"]
        assert state["type"] == "CANCELLED"
        assert state["message"] == "declined: the plan was not approved, and nothing was read into the lake"
    assert messages(lake).get(conversation_id) == (3 if is_approved else None)


@dataclass(frozen=True, slots=True)
class Unread:
    """A run that failed, and the conversation that it could not read."""

    run_id: str
    url: str
    conversation_id: str


@pytest.fixture(scope="module")
def unread(page: Page, exported: Exported, box: Sandbox) -> Unread:
    """A failed run; the gateway answers again."""
    broken = box.put([], phone="+886911000330")
    box.append(broken)
    box.break_conversation(broken, "400")
    ui = Ui(page)
    form = ui.open_form("export")
    form.write(TYPED, "+886911000330")
    run_id = form.start()
    ui.expect_state("Failed")
    box.repair(broken)
    return Unread(run_id, page.url, broken)


@pytest.mark.classic_first
def test_the_failures_of_a_run_are_repaired(
    ui: Ui, unread: Unread, box: Sandbox, lake: Path, deployed: Operator, works: bool
) -> None:
    ui.open_artifact(unread.run_id, "export-failures")
    expect(ui.page.get_by_text("send the request id to the vendor").first).to_be_visible()
    ui.words.clear()
    box.reset_stats()

    form = ui.open_form("retry-failed")
    # Either of them is accepted.
    rerun = unread.run_id if isinstance(ui, NewUi) else unread.url
    form.write("Run to retry", rerun)
    run_id = form.start()

    assert ui.words == words("Export what is missing", ui)
    assert given(deployed, run_id)["rerun"] == rerun
    if not works:
        return
    ui.expect_state("Completed")
    assert {one for one, pages in box.stats().pages.items() if pages} == {unread.conversation_id}
    assert unread.conversation_id in messages(lake)


def test_a_run_is_started_over_and_shows_each_report_once(ui: Ui, unread: Unread, deployed: Operator) -> None:
    # Afterwards its failures are not shown any more, which the other interface needs.
    is_last = isinstance(ui, NewUi)
    before = len(deployed.states(unread.run_id))
    ui.open_run(unread.run_id)
    with nullcontext() if is_last else paused(deployed):
        ui.retry()

        deployed.until(lambda: deployed.states(unread.run_id)[before:] or None, "the state of a retry")
        assert deployed.states(unread.run_id)[before] == "AwaitingRetry"
        if not is_last:
            put_in_state(deployed, unread.run_id, "FAILED")
            return
    ui.expect_state("Completed")
    found = {"artifacts": {"flow_run_id": {"any_": [unread.run_id]}}}
    shown = [one["key"] for one in deployed.ask("POST", "/artifacts/filter", found)]
    assert sorted(shown) == ["export-input", "export-picture", "export-progress", "export-summary"]


@pytest.mark.classic_first
def test_a_run_is_cancelled_on_its_page(
    ui: Ui, exported: Exported, deployed: Operator, halted: Halted, works: bool
) -> None:
    form = ui.open_form("export")
    form.write(LIST, str(halted.phones))
    run_id = form.start()
    if not works:
        put_in_state(deployed, run_id, "RUNNING")
    ui.expect_state("Running")
    ui.words.clear()

    _be_busy_once(ui, "set_state")
    ui.cancel()

    assert ui.words == words("Cancel", ui)
    if not works:
        assert deployed.flow_run(run_id)["state"]["type"] in ("CANCELLING", "CANCELLED")
        return
    ui.expect_state("Cancelled")
    assert deployed.flow_run(run_id)["state"]["name"] == "Cancelled"


@pytest.mark.classic_first
def test_the_budget_of_requests_is_changed(ui: Ui, deployed: Operator) -> None:
    budget = 10 + isinstance(ui, NewUi)
    for _ in range(SUBMITTED_AT_MOST):
        ui.words.clear()
        limit = ui.edit_limit("imbrace-requests")
        limit.write("Concurrency Limit", str(budget))
        limit.write("Slot Decay Per Second", str(budget))
        if limit.update():
            break

    assert ui.words == words("Change the budget", ui)
    found = deployed.ask("GET", "/v2/concurrency_limits/imbrace-requests")
    assert (found["limit"], found["slot_decay_per_second"]) == (budget, budget)


@pytest.mark.classic_first
def test_ingestion_uploads_and_verification_are_started_by_their_forms(
    ui: Ui,
    exported: Exported,
    address: str,
    box: Sandbox,
    listed: set[str],
    deployed: Operator,
    works: bool,
) -> None:
    box.reset_stats()
    # An event starts a run of it in another test.
    with paused(deployed) if works else nullcontext():
        form = ui.open_form("export-on-upload")
        form.write(LIST, address)
        assert given(deployed, form.start())["phones"] == address
    ingested = ui.open_form("ingest").start()
    ui.words.clear()
    form = ui.open_form("verify")
    form.switch("Ask the gateway for every count")
    verified = form.start()
    assert ui.words == words("Check the lake", ui)

    assert given(deployed, verified)["counts"] is True
    if not works:
        assert deployed.flow_run(ingested)["state"]["type"] == "SCHEDULED"
        return
    # The runs work at the same time.
    ui.expect_state("Completed")
    assert deployed.wait(ingested)["name"] == "Completed"
    pages = box.stats().pages
    assert {pages[one] for one in listed} == {2}, "one request for each conversation by each run"
    ui.open_artifact(verified, "verify-summary")
    expect(ui.page.get_by_text("counts").first).to_be_visible()


@pytest.mark.skipif(not IS_FULL, reason="test_deployments.py sends such an event: IMBRACE_ACCEPTANCE=full")
def test_the_run_that_an_event_started_is_shown(
    classic: Ui, new: Ui, exported: Exported, phones: Path, deployed: Operator
) -> None:
    uploads = {"deployments": {"name": {"any_": ["export-on-upload"]}}}
    before = [run["id"] for run in deployed.ask("POST", "/flow_runs/filter", uploads)]
    event = {
        "id": str(uuid4()),
        "occurred": datetime.now(UTC).isoformat(),
        "event": "imbrace.phones.uploaded",
        "resource": {"prefect.resource.id": "imbrace.phones.today"},
        "payload": {"list": str(phones)},
    }
    deployed.ask("POST", "/events", [event])

    def started() -> str | None:
        runs = deployed.ask("POST", "/flow_runs/filter", uploads)
        return next((run["id"] for run in runs if run["id"] not in before), None)

    run_id = deployed.until(started, "the run of the automation")
    for ui in (classic, new):
        ui.open_run(run_id)
        ui.expect_state("Completed")
        expect(ui.page.get_by_text(f"export-on-upload {phones.name}").first).to_be_visible()


# The server checks the input alike for both; the new interface needs one form to show that it displays it.
@pytest.mark.parametrize(
    "deployment",
    ["export", *(pytest.param(one, marks=pytest.mark.classic_first) for one in WRONG if one != "export")],
)
def test_wrong_input_is_rejected_with_a_message_before_a_run(
    ui: Ui, deployed: Operator, deployment: str
) -> None:
    before = _runs(deployed, deployment)
    form = ui.open_form(deployment)
    filled: dict[str, str] = {}
    for fields, message in WRONG[deployment]:
        for title, text in (dict.fromkeys(filled, "") | fields).items():
            form.write(title, text)
        filled = fields
        form.expect_rejection(message)

    assert _runs(deployed, deployment) == before


@pytest.mark.parametrize("asked", ["schemas/validate", "create_flow_run"])
def test_a_busy_server_shows_the_message_of_the_page(
    classic: Ui, deployed: Operator, phones: Path, asked: str
) -> None:
    (reported,) = re.findall(r"If the form shows \*(.+?)\*", OPERATOR_PAGE.read_text(encoding="utf-8"))
    form = classic.open_form("export")
    form.write(LIST, str(phones))
    _be_busy_once(classic, asked)

    form.submit()

    expect(classic.page.get_by_text(reported).first).to_be_visible()


def test_a_form_begins_with_the_most_important_fields_and_explains_each(ui: Ui, deployed: Operator) -> None:
    form = ui.open_form("backfill")
    # Prefect shows them when it has found the blocks.
    for block in ("iMBrace credentials", "Conversation lake"):
        expect(form.field(block)).to_be_visible()

    titles = form.titles()

    assert titles[:2] == ["Everything", LIST]
    assert titles.index("From") + 1 == titles.index("Until")
    assert titles[-2:] == ["iMBrace credentials", "Conversation lake"]
    for title in titles:
        assert re.search(r"\w+ \w+", form.description(title)), title


@pytest.mark.skipif(not IS_FULL, reason="test_death.py does so without a browser: IMBRACE_ACCEPTANCE=full")
def test_a_run_whose_process_and_worker_are_killed_restarts_and_completes(
    classic: Ui,
    new: Ui,
    exported: Exported,
    impatient: Operator,
    worker: Worker,
    box: Sandbox,
    lake: Path,
    halted: Halted,
) -> None:
    """Of a run whose worker dies first: tests/deployments/test_death.py."""
    run_id = _halt(classic, impatient, lake, halted)

    worker.kill_run(impatient.flow_run(run_id))
    classic.expect_state("AwaitingRestart")
    worker.kill()
    halted.release(box)
    worker.start()

    assert impatient.wait_for_restart(run_id)["name"] == "Completed"
    for ui in (new, classic):
        ui.open_run(run_id)
        ui.expect_state("Completed")
    assert messages(lake).keys() >= {*halted.quick, *halted.stuck}


def _halt(ui: Ui, operator: Operator, lake: Path, halted: Halted) -> str:
    """Start a run that stops in the middle of its work, and return its id."""
    form = ui.open_form("export")
    form.write(LIST, str(halted.phones))
    run_id = form.start()
    ui.expect_state("Running")
    operator.until(lambda: set(halted.quick) <= messages(lake).keys() or None, "what is answered")
    return run_id


def _be_busy_once(ui: Ui, asked: str) -> None:
    """Answer the next such request of the page as a busy server does."""
    busy = {"exception_message": "Service Unavailable"}
    ui.page.route(f"**/{asked}", lambda route: route.fulfill(status=503, json=busy), times=1)


def _runs(deployed: Operator, deployment: str) -> int:
    found = {"deployments": {"name": {"any_": [deployment]}}}
    count = deployed.ask("POST", "/flow_runs/count", found)
    return int(count)
