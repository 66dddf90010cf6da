"""Prefect's pages, as a person uses them: found by the words that stand on them."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from playwright.sync_api import Locator, Page, ViewportSize, expect, sync_playwright

PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
SIZE = ViewportSize(width=1200, height=900)
# A busy machine takes long to draw a page, and longer to start a run.
PAGE_MS = 60_000
RUN_MS = 150_000


def find_browser() -> str | None:
    """The path of a browser of this machine; None is downloaded."""
    return next((path for name in PROGRAMS if (path := shutil.which(name))), None)


@contextmanager
def open_page(browser: str, url: str) -> Iterator[Page]:
    """A page in a browser of its own; addresses are relative to the server's."""
    # Chromium refuses its sandbox to root, and containers often have no other user.
    with sync_playwright() as playwright, playwright.chromium.launch(
        executable_path=browser, args=["--no-sandbox"]
    ) as chromium:  # fmt: skip
        page = chromium.new_page(base_url=url, viewport=SIZE, timezone_id="UTC", locale="en-US")
        page.set_default_timeout(PAGE_MS)
        yield page


@dataclass(frozen=True, slots=True)
class Ui:
    """The UI of one server."""

    page: Page

    def open_form(self, deployment: str) -> Form:
        """Go from the list of deployments to the form of one: Run, Custom run."""
        self.page.goto("/deployments")
        self.page.get_by_role("link", name=deployment, exact=True).first.click()
        self.page.get_by_role("button", name="Run", exact=True).click()
        self.page.get_by_text("Custom run").click()
        expect(self.page.get_by_role("button", name="Submit")).to_be_visible()
        return Form(self.page)

    def open_run(self, run_id: str) -> None:
        """Show the page of a run."""
        self.page.goto(f"/runs/flow-run/{run_id}")

    def cancel(self) -> None:
        """Cancel the run that is shown."""
        self.page.get_by_role("banner").get_by_role("button", name="Cancel", exact=True).click()
        self.page.get_by_role("dialog").get_by_role("button", name="Confirm").click()

    def edit_limit(self, name: str) -> Limit:
        """Open the dialog of a global concurrency limit."""
        self.page.goto("/concurrency-limits")
        self.page.get_by_role("row", name=name).get_by_role("button").last.click()
        self.page.get_by_role("button", name="Edit", exact=True).click()
        return Limit(self.page.get_by_role("dialog"))

    def open_artifact(self, run_id: str, key: str) -> None:
        """Go from the page of a run to one of its artifacts."""
        self.open_run(run_id)
        self.page.get_by_role("listitem").get_by_text("Artifacts", exact=True).click()
        self.page.get_by_text(key, exact=True).first.click()
        self.page.wait_for_url(re.compile("/artifacts/artifact/"))

    def expect_state(self, name: str) -> None:
        """Wait until the run that is shown has that state."""
        state = self.page.get_by_role("banner").get_by_text(name, exact=True)
        expect(state).to_be_visible(timeout=RUN_MS)


@dataclass(frozen=True, slots=True)
class Form:
    """The form of a deployment: what to run it with."""

    page: Page

    def field(self, title: str) -> Locator:
        """A field with its title, description and message."""
        label = self.page.get_by_text(f"{title} (Optional)", exact=True)
        # The group around it holds the title as well, and comes first.
        return self.page.locator(".schema-form-property").filter(has=label).last

    def titles(self) -> list[str]:
        """The titles of all fields, from top to bottom."""
        labels = self.page.get_by_text(re.compile(r" \(Optional\)$"))
        return [text.removesuffix(" (Optional)") for text in labels.all_inner_texts()]

    def write(self, title: str, text: str) -> None:
        """Write into a field; one that is empty at first offers to hold something."""
        field = self.field(title)
        offer = field.get_by_role("button", name=re.compile("^(str|password|int|float|datetime)$"))
        if offer.count():
            offer.click()
        # A field for secrets has no role.
        field.locator("input, textarea").first.fill(text)

    def choose(self, title: str, option: str) -> None:
        """Choose one of several answers."""
        # A click on the word opens the answers and closes them again; one on the arrow opens them. The
        # arrow lets clicks through to what is below, which Playwright takes for an obstacle.
        self.field(title).locator("fieldset svg").click(force=True)
        self.page.get_by_role("option", name=option, exact=True).click()

    def submit(self) -> None:
        """Press the button, and nothing more."""
        self.page.get_by_role("button", name="Submit").click()

    def start(self) -> str:
        """Submit what is to be accepted, go to the page of the run, and give its id."""
        self.submit()
        # By keyboard, for the message slides in and out and is hard to hit.
        self.page.get_by_role("button", name="View run").first.press("Enter")
        self.page.wait_for_url(re.compile("/runs/flow-run/"))
        return self.page.url.rpartition("/")[2].partition("?")[0]


@dataclass(frozen=True, slots=True)
class Limit:
    """The dialog in which a concurrency limit is changed."""

    dialog: Locator

    def write(self, title: str, number: str) -> None:
        """Write a number into the field with that title."""
        label = self.dialog.get_by_text(title, exact=True)
        self.dialog.locator(".p-label").filter(has=label).get_by_role("spinbutton").fill(number)

    def update(self) -> None:
        """Keep what was written."""
        self.dialog.get_by_role("button", name="Update").click()
        expect(self.dialog).to_be_hidden()
