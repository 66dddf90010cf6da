"""Prefect's pages as a user sees them: elements are found by their words."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

from playwright.sync_api import Locator, Page, Response, ViewportSize, expect, sync_playwright

PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
SIZE = ViewportSize(width=1200, height=900)
# The graph of a run is drawn 60 times per second, which without a graphics card takes three quarters of a
# core, and animations take half of the rest.
HARDLY_MOVING = """
window.requestAnimationFrame = (draw) => setTimeout(() => draw(performance.now()), 250);
window.cancelAnimationFrame = clearTimeout;
document.addEventListener("DOMContentLoaded", () => {
    const style = document.createElement("style");
    style.textContent = "*, ::before, ::after { animation: none !important; transition: none !important; }";
    document.head.append(style);
});
"""
# A busy machine needs long to draw a page, and longer to start a run.
PAGE_MS = 60_000
RUN_MS = 240_000
SUBMITTED_AT_MOST = 5


def find_browser() -> str | None:
    """The path of an installed browser; None is downloaded."""
    return next((path for name in PROGRAMS if (path := shutil.which(name))), None)


@contextmanager
def open_page(browser: str, url: str) -> Iterator[Page]:
    """A page in a new browser; addresses are relative to the server's."""
    # Chromium does not support its sandbox for root, often the only user of a container.
    with sync_playwright() as playwright, playwright.chromium.launch(
        executable_path=browser, args=["--no-sandbox"], timeout=2 * PAGE_MS
    ) as chromium:  # fmt: skip
        page = chromium.new_page(base_url=url, viewport=SIZE, timezone_id="UTC", locale="en-US")
        page.add_init_script(HARDLY_MOVING)
        page.set_default_timeout(PAGE_MS)
        expect.set_options(timeout=PAGE_MS)
        yield page


@dataclass(frozen=True, slots=True)
class Ui:
    """The UI of one server; `words` are the names of the used buttons and fields, in order."""

    page: Page
    words: list[str] = field(default_factory=list)

    def press(self, where: Locator, word: str) -> None:
        """Press the element with a word."""
        self.words.append(word)
        where.click()

    def send(self, press: Callable[[], None], to: str) -> None:
        """Press a button that sends a request to that endpoint, and again while the server is too busy."""
        steps = len(self.words)
        for _ in range(SUBMITTED_AT_MOST):
            # Pressing again is not another step.
            del self.words[steps:]
            with self.page.expect_response(partial(_is_answer, to)) as answer:
                press()
            if answer.value.ok:
                return

    def choose_page(self, name: str) -> None:
        """Go to one of the pages in the menu."""
        self.page.goto("/dashboard")
        self.press(self.page.get_by_role("button", name=name, exact=True), name)

    def open_form(self, deployment: str) -> Form:
        """Go from the list of deployments to the form of one."""
        page = self.page
        self.choose_page("Deployments")
        self.press(page.get_by_role("link", name=deployment, exact=True).first, deployment)
        self.press(page.get_by_role("button", name="Run", exact=True), "Run")
        self.press(page.get_by_text("Custom run"), "Custom run")
        expect(page.get_by_role("button", name="Submit")).to_be_visible()
        return Form(self)

    def open_run(self, run_id: str) -> None:
        """Show the page of a run."""
        self.page.goto(f"/runs/flow-run/{run_id}")

    def cancel(self) -> None:
        """Cancel the shown run."""
        banner = self.page.get_by_role("banner")
        self.press(banner.get_by_role("button", name="Cancel", exact=True), "Cancel")
        confirm = self.page.get_by_role("dialog").get_by_role("button", name="Confirm")
        self.send(lambda: self.press(confirm, "Confirm"), "/set_state")

    def resume(self) -> Answer:
        """Open the question of the shown run."""
        self.press(self.page.get_by_role("banner").get_by_role("button", name="Resume"), "Resume")
        return Answer(self, self.page.get_by_role("dialog"))

    def edit_limit(self, name: str) -> Limit:
        """Open the dialog of a global concurrency limit."""
        self.choose_page("Concurrency")
        self.press(self.page.get_by_role("row", name=name).get_by_role("button").last, "⋮")
        self.press(self.page.get_by_role("button", name="Edit", exact=True), "Edit")
        return Limit(self, self.page.get_by_role("dialog"))

    def open_artifact(self, run_id: str, key: str) -> None:
        """Go from the page of a run to one of its artifacts."""
        self.open_run(run_id)
        self.press(self.page.get_by_role("listitem").get_by_text("Artifacts", exact=True), "Artifacts")
        self.press(self.page.get_by_text(key, exact=True).first, key)
        self.page.wait_for_url(re.compile("/artifacts/artifact/"))

    def choose_events(self, name: str) -> None:
        """Show the events of one kind."""
        self.choose_page("Event Feed")
        self.words.append("Events")
        label = self.page.get_by_text("Events", exact=True)
        _choose(self, self.page.locator(".p-label").filter(has=label).last, name)
        # Only a click elsewhere closes the list.
        self.page.get_by_role("banner").first.click()

    def expect_state(self, name: str) -> None:
        """Wait until the shown run has that state; the page is updated every few seconds."""
        state = self.page.get_by_role("banner").get_by_text(name, exact=True)
        expect(state).to_be_visible(timeout=RUN_MS)


@dataclass(frozen=True, slots=True)
class Form:
    """The form of a deployment, with the parameters of a run."""

    ui: Ui

    def field(self, title: str) -> Locator:
        """A field with its title, description and message."""
        label = self.ui.page.get_by_text(re.compile(rf"^{re.escape(title)}( \(Optional\))?$"))
        # The outer group also contains the title, and comes first.
        return self.ui.page.locator(".schema-form-property").filter(has=label).last

    def titles(self) -> list[str]:
        """The titles of all fields, from top to bottom."""
        labels = self.ui.page.get_by_text(re.compile(r" \(Optional\)$"))
        return [text.removesuffix(" (Optional)") for text in labels.all_inner_texts()]

    def write(self, title: str, text: str) -> None:
        """Write into a field."""
        self.ui.words.append(title)
        self.field(title).locator("input, textarea").first.fill(text)

    def choose(self, title: str, option: str) -> None:
        """Choose one of several answers."""
        self.ui.words.append(title)
        _choose(self.ui, self.field(title), option)

    def choose_day(self, title: str, day: str) -> None:
        """Choose a day, in ISO 8601."""
        self.ui.words.append(title)
        self.field(title).get_by_text("Select date and time").click()
        self.ui.page.locator("input[type=date]").fill(day)
        self.ui.press(self.ui.page.get_by_role("button", name="Apply"), "Apply")

    def switch(self, title: str) -> None:
        """Switch something on or off."""
        self.ui.press(self.field(title).get_by_role("switch"), title)

    def submit(self) -> None:
        """Press the button only."""
        self.ui.press(self.ui.page.get_by_role("button", name="Submit"), "Submit")

    def start(self) -> str:
        """Submit valid input, go to the page of the run, and return its id."""
        page = self.ui.page
        self.ui.send(self.submit, "/create_flow_run")
        self.ui.words.append("View run")
        # By keyboard, because the message moves in and out.
        page.get_by_role("button", name="View run").first.press("Enter")
        page.wait_for_url(re.compile("/runs/flow-run/"))
        return page.url.rpartition("/")[2].partition("?")[0]


@dataclass(frozen=True, slots=True)
class Answer:
    """The dialog with the question of a paused run."""

    ui: Ui
    dialog: Locator

    def choose(self, decision: str) -> None:
        """Choose a decision."""
        self.ui.words.append("Decision")
        _choose(self.ui, self.dialog, decision)

    def submit(self) -> None:
        """Send it."""
        button = self.dialog.get_by_role("button", name="Submit")
        self.ui.send(lambda: self.ui.press(button, "Submit"), "/resume")
        expect(self.dialog).to_be_hidden()


@dataclass(frozen=True, slots=True)
class Limit:
    """The dialog of a concurrency limit."""

    ui: Ui
    dialog: Locator

    def write(self, title: str, number: str) -> None:
        """Write a number into the field with that title."""
        self.ui.words.append(title)
        label = self.ui.page.get_by_text(title, exact=True)
        self.dialog.locator(".p-label").filter(has=label).get_by_role("spinbutton").fill(number)

    def update(self) -> bool:
        """Save the value; False if the server was too busy, which the UI does not show."""
        with self.ui.page.expect_response(_is_change) as answer:
            self.ui.press(self.dialog.get_by_role("button", name="Update"), "Update")
        expect(self.dialog).to_be_hidden()
        return answer.value.ok


def _is_change(answer: Response) -> bool:
    return answer.request.method == "PATCH" and "/concurrency_limits/" in answer.url


def _choose(ui: Ui, where: Locator, option: str) -> None:
    # A click on the word opens the list and closes it again; a click on the arrow opens it. The
    # arrow passes clicks to the element below, which Playwright considers an obstacle.
    where.locator(".p-label__body svg").last.click(force=True)
    ui.press(ui.page.get_by_role("option", name=option, exact=True), option)


def _is_answer(to: str, answer: Response) -> bool:
    """Whether a response is the answer to a request to that endpoint, or that the server was too busy."""
    if answer.request.method != "POST" or "/api/" not in answer.url:
        return False
    return answer.url.endswith(to) or (answer.url.endswith("/schemas/validate") and not answer.ok)
