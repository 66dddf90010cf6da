"""Prefect's two interfaces as a user sees them: elements are found by their words.

`Ui` is the classic one. `NewUi`, below ``/v2``, has the same methods, so a test can use either.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date
from functools import partial
from typing import ClassVar

from playwright.sync_api import Locator, Page, Response, ViewportSize, expect, sync_playwright

PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
SIZE = ViewportSize(width=1200, height=900)
# The graph of a run is drawn 60 times per second, which without a graphics card takes three quarters of a
# core, and animations take half of the rest. Messages let clicks through: they appear at any time and cover
# buttons, for which a person waits.
HARDLY_MOVING = """
window.requestAnimationFrame = (draw) => setTimeout(() => draw(performance.now()), 250);
window.cancelAnimationFrame = clearTimeout;
document.addEventListener("DOMContentLoaded", () => {
    const style = document.createElement("style");
    style.textContent = "*, ::before, ::after { animation: none !important; transition: none !important; }"
        + "[data-sonner-toast], [data-sonner-toast] *, [class*=p-toast], [class*=p-toast] * {"
        + " pointer-events: none !important; }";
    document.head.append(style);
});
"""
# Even so, the graph takes a sixth of a core while a test waits for a run.
WITHOUT_GRAPHS = """
document.addEventListener("DOMContentLoaded", () => {
    const style = document.createElement("style");
    style.textContent = "canvas { display: none !important; }";
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
def open_page(browser: str, url: str, *, has_graphs: bool) -> Iterator[Page]:
    """A page in a new browser, with or without the graphs of runs; addresses are relative to the server's."""
    # Chromium does not support its sandbox for root, often the only user of a container.
    with sync_playwright() as playwright, playwright.chromium.launch(
        executable_path=browser, args=["--no-sandbox"], timeout=2 * PAGE_MS
    ) as chromium:  # fmt: skip
        page = chromium.new_page(base_url=url, viewport=SIZE, timezone_id="UTC", locale="en-US")
        page.add_init_script(HARDLY_MOVING)
        if not has_graphs:
            page.add_init_script(WITHOUT_GRAPHS)
        page.set_default_timeout(PAGE_MS)
        expect.set_options(timeout=PAGE_MS)
        yield page


@dataclass(frozen=True)
class Ui:
    """The classic UI of one server; `words` are the names of the used buttons and fields, in order."""

    page: Page
    words: list[str] = field(default_factory=list)

    root: ClassVar[str] = ""

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
            with self.page.expect_response(partial(self._is_answer, to)) as answer:
                press()
            if answer.value.url.endswith(to) and answer.value.ok:
                return

    def _is_answer(self, to: str, answer: Response) -> bool:
        """Whether a response is the answer to that endpoint, or the reason why it was not asked."""
        if answer.request.method != "POST" or "/api/" not in answer.url:
            return False
        return answer.url.endswith(to) or (answer.url.endswith("/schemas/validate") and not answer.ok)

    def choose_page(self, name: str) -> None:
        """Go to one of the pages in the menu."""
        # Loading a page takes long, and following a link does not.
        if not self._is_shown():
            self.page.goto(f"{self.root}/settings")
        self.press(self._in_menu(name), name)

    def _is_shown(self) -> bool:
        """Whether the browser shows a page of this interface, and no message about an earlier run."""
        _, _, path = self.page.url.partition("://")[2].partition("/")
        is_ours = bool(path) and path.startswith("v2/") == bool(self.root)
        return is_ours and not self.page.get_by_role("button", name="View run").count()

    def _in_menu(self, name: str) -> Locator:
        return self.page.get_by_role("button", name=name, exact=True)

    def open_deployment(self, name: str) -> None:
        """Go from the list of deployments to the page of one."""
        self.choose_page("Deployments")
        self.press(self.page.get_by_role("link", name=name, exact=True).first, name)

    def open_form(self, deployment: str) -> Form:
        """Go from the list of deployments to the form of one."""
        page = self.page
        self.open_deployment(deployment)
        self.press(page.get_by_role("button", name="Run", exact=True), "Run")
        self.press(page.get_by_text("Custom run"), "Custom run")
        expect(page.get_by_role("button", name="Submit")).to_be_visible()
        return self._form()

    def _form(self) -> Form:
        return Form(self)

    def open_run(self, run_id: str) -> None:
        """Show the page of a run."""
        self.page.goto(f"{self.root}/runs/flow-run/{run_id}")

    def cancel(self) -> None:
        """Cancel the shown run."""
        banner = self.page.get_by_role("banner")
        self.press(banner.get_by_role("button", name="Cancel", exact=True), "Cancel")
        confirm = self.page.get_by_role("dialog").get_by_role("button", name="Confirm")
        self.send(lambda: self.press(confirm, "Confirm"), "/set_state")

    def retry(self) -> None:
        """Let Prefect start the shown run over."""
        self.press(self.page.get_by_role("banner").get_by_role("button", name="Retry"), "Retry")
        confirm = self.page.get_by_role("dialog").get_by_role("button", name="Retry")
        self.send(lambda: self.press(confirm, "Retry"), "/set_state")

    def resume(self) -> Answer:
        """Open the question of the shown run."""
        self.press(self.page.get_by_role("banner").get_by_role("button", name="Resume"), "Resume")
        return Answer(self, self.page.get_by_role("dialog"))

    def edit_limit(self, name: str) -> Limit:
        """Open the dialog of a global concurrency limit."""
        self.choose_page("Concurrency")
        row = self.page.get_by_role("row", name=name)
        expect(row).to_be_visible()
        # By keyboard, because the message of an earlier change can cover both.
        for where, word in ((row.get_by_role("button").last, "⋮"), (self._menu_item("Edit"), "Edit")):
            self.words.append(word)
            where.press("Enter")
        return self._limit(self.page.get_by_role("dialog"))

    def _limit(self, dialog: Locator) -> Limit:
        return Limit(self, dialog)

    def _menu_item(self, name: str) -> Locator:
        return self.page.get_by_role("button", name=name, exact=True)

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
        self.choose_option(self.page.locator(".p-label").filter(has=label).last, name)
        # Only a click elsewhere closes the list.
        self.page.get_by_role("banner").first.click()

    def choose_option(self, where: Locator, option: str) -> None:
        """Choose an option of a list."""
        # A click on the word opens the list and closes it again; a click on the arrow opens it. The
        # arrow passes clicks to the element below, which Playwright considers an obstacle.
        where.locator(".p-label__body svg").last.click(force=True)
        self.press(self.page.get_by_role("option", name=option, exact=True), option)

    def expect_state(self, name: str) -> None:
        """Wait until the shown run has that state; the page is updated every few seconds."""
        expect(self._state(name)).to_be_visible(timeout=RUN_MS)

    def _state(self, name: str) -> Locator:
        return self.page.get_by_role("banner").get_by_text(name, exact=True)


class NewUi(Ui):
    """The new UI of one server."""

    root = "/v2"

    def _is_answer(self, to: str, answer: Response) -> bool:
        # After a rejected form, the first press only validates it again.
        is_validated = answer.url.endswith("/schemas/validate") and self._was_rejected()
        return super()._is_answer(to, answer) or is_validated

    def _was_rejected(self) -> bool:
        return self.page.get_by_text("was expected").count() > 0

    def _in_menu(self, name: str) -> Locator:
        return self.page.get_by_role("link", name=name, exact=True).first

    def _form(self) -> Form:
        return NewForm(self)

    def _limit(self, dialog: Locator) -> Limit:
        return NewLimit(self, dialog)

    def cancel(self) -> None:
        """Cancel the shown run."""
        self._open_menu("Cancel")
        confirm = self.page.get_by_role("alertdialog").get_by_role("button", name="Cancel Flow Run")
        self.send(lambda: self.press(confirm, "Cancel Flow Run"), "/set_state")

    def retry(self) -> None:
        """Let Prefect start the shown run over."""
        self._open_menu("Retry")
        confirm = self.page.get_by_role("alertdialog").get_by_role("button", name="Retry")
        self.send(lambda: self.press(confirm, "Retry"), "/set_state")

    def resume(self) -> Answer:
        """Open the question of the shown run."""
        self._open_menu("Resume")
        return NewAnswer(self, self.page.get_by_role("dialog"))

    def _open_menu(self, item: str) -> None:
        # The tags of the run are also buttons.
        self.press(self.page.locator("button[aria-haspopup=menu]").first, "⋮")
        self.press(self._menu_item(item), item)

    def _menu_item(self, name: str) -> Locator:
        return self.page.get_by_role("menuitem", name=name, exact=True)

    def open_artifact(self, run_id: str, key: str) -> None:
        """Show one of the artifacts of a run."""
        self.page.goto(f"{self.root}/runs/flow-run/{run_id}?tab=Artifacts")
        self.press(self.page.get_by_text(key, exact=True).first, key)
        self.page.wait_for_url(re.compile("/artifacts/artifact/"))

    def choose_option(self, where: Locator, option: str) -> None:
        """Choose an option of a list."""
        where.get_by_text("Select", exact=True).click()
        self.press(self.page.get_by_role("option", name=option, exact=True), option)

    def _state(self, name: str) -> Locator:
        return self.page.locator("[data-slot=badge]").get_by_text(name, exact=True).first


@dataclass(frozen=True)
class Form:
    """The form of a deployment, with the parameters of a run."""

    ui: Ui

    def field(self, title: str) -> Locator:
        """A field with its title, description and message."""
        # The outer group also contains the title, and comes first.
        return self.ui.page.locator(".schema-form-property").filter(has=self._label(title)).last

    def _label(self, title: str) -> Locator:
        return self.ui.page.get_by_text(re.compile(rf"^{re.escape(title)}( \(Optional\))?$"))

    def titles(self) -> list[str]:
        """The titles of all fields, from top to bottom."""
        labels = self.ui.page.get_by_text(re.compile(r" \(Optional\)$"))
        return [text.removesuffix(" (Optional)") for text in labels.all_inner_texts()]

    def description(self, title: str) -> str:
        """The description below the title of a field."""
        return self.field(title).locator(".schema-form-property__description").last.inner_text()

    def write(self, title: str, text: str) -> None:
        """Write into a field."""
        self.ui.words.append(title)
        self.field(title).locator("input, textarea").first.fill(text)

    def switch(self, title: str) -> None:
        """Switch something on or off."""
        self.ui.press(self.field(title).get_by_role("switch"), title)

    def choose_day(self, title: str, day: date) -> None:
        """Choose the midnight at which a day begins."""
        self.ui.words.append(title)
        self.field(title).get_by_text("Select date and time").click()
        self.ui.page.locator("input[type=date]").fill(day.isoformat())
        self.ui.press(self.ui.page.get_by_role("button", name="Apply"), "Apply")

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

    def expect_rejection(self, message: str) -> None:
        """Submit, and wait for a message below a field."""
        shown = self.ui.page.get_by_text(message).first
        for _ in range(SUBMITTED_AT_MOST):
            self.submit()
            # A busy server gives another answer, after which the page asks to submit again.
            expect(shown.or_(self.ui.page.get_by_text("Something went wrong").first).first).to_be_visible()
            if shown.is_visible():
                return
        expect(shown).to_be_visible()


class NewForm(Form):
    """The same form in the new UI."""

    def start(self) -> str:
        """Submit valid input, go to the page of the run, and return its id."""
        run_id = super().start()
        # The address changes before the page, which shows the states of earlier runs.
        expect(self.ui.page.get_by_role("tab", name="Job Variables")).to_be_visible()
        return run_id

    def field(self, title: str) -> Locator:
        """A field with its title, description and message."""
        rows = self.ui.page.locator("div:has(> fieldset)").filter(has=self._label(title))
        return rows.last

    def description(self, title: str) -> str:
        """The description below the title of a field."""
        return self.field(title).locator("label + p").first.inner_text()

    def choose_day(self, title: str, day: date) -> None:
        """Choose the midnight at which a day begins."""
        self.ui.words.append(title)
        self.field(title).locator("fieldset button").first.click()
        dialog = self.ui.page.get_by_role("dialog")
        dialog.get_by_label("Choose the Year").select_option(str(day.year))
        dialog.get_by_label("Choose the Month").select_option(f"{day:%b}")
        dialog.get_by_role("button", name=re.compile(rf"{day:%B} {day.day}\D\D, {day.year}")).click()
        self.ui.page.keyboard.press("Escape")


@dataclass(frozen=True)
class Answer:
    """The dialog with the question of a paused run."""

    ui: Ui
    dialog: Locator

    button: ClassVar[str] = "Submit"

    def choose(self, decision: str) -> None:
        """Choose a decision."""
        self.ui.words.append("Decision")
        self.ui.choose_option(self.dialog, decision)

    def submit(self) -> None:
        """Send it."""
        button = self.dialog.get_by_role("button", name=self.button)
        self.ui.send(lambda: self.ui.press(button, self.button), "/resume")
        expect(self.dialog).to_be_hidden()


class NewAnswer(Answer):
    """The same dialog in the new UI."""

    button = "Resume"


@dataclass(frozen=True, slots=True)
class Limit:
    """The dialog of a concurrency limit."""

    ui: Ui
    dialog: Locator

    def write(self, title: str, number: str) -> None:
        """Write a number into the field with that title."""
        self.ui.words.append(title)
        self._field(title).fill(number)

    def _field(self, title: str) -> Locator:
        # The label does not name its field.
        label = self.ui.page.get_by_text(title, exact=True)
        return self.dialog.locator(".p-label").filter(has=label).get_by_role("spinbutton")

    def update(self) -> bool:
        """Save the value; False if the server was too busy, which the UI does not show."""
        with self.ui.page.expect_response(_is_change) as answer:
            self.ui.press(self.dialog.get_by_role("button", name="Update"), "Update")
        expect(self.dialog).to_be_hidden()
        return answer.value.ok


class NewLimit(Limit):
    """The same dialog in the new UI."""

    __slots__ = ()

    def _field(self, title: str) -> Locator:
        return self.dialog.get_by_label(title, exact=True)


def _is_change(answer: Response) -> bool:
    return answer.request.method == "PATCH" and "/concurrency_limits/" in answer.url
