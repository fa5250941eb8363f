"""Airflow's pages, driven as a person would: log in, fill in the connection form, press Test."""

from __future__ import annotations

import os
import re
import shutil
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from playwright.sync_api import expect, sync_playwright

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from playwright.sync_api import Locator, Page

    from stack.airflow import Airflow

#: Nothing of the browser's own goes out to the network.
FLAGS = (
    "--no-sandbox",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)

#: Milliseconds to wait for what a page is to show: generous, because two cores run all of Airflow beside it.
PATIENCE = 60_000

#: Pixels of the page.
WIDTH = 1000

#: Where pictures for the docs go; none are taken without it.
SCREENSHOTS = os.environ.get("SCREENSHOTS")


class ConnectionsPage:
    """Admin > Connections."""

    def __init__(self, page: Page, airflow: Airflow) -> None:
        self._page = page
        self._url = f"{airflow.url}/connections"
        page.set_default_timeout(PATIENCE)
        expect.set_options(timeout=PATIENCE)
        page.goto(self._url)
        page.locator("input[name=username]").fill(airflow.username)
        page.locator("input[name=password]").fill(airflow.password)
        page.get_by_role("button", name="Sign in").click()
        page.wait_for_url("**/connections")

    def row(self, conn_id: str) -> Locator:
        """The line of a connection in the list."""
        return self._page.get_by_role("row").filter(has=self._page.get_by_text(conn_id, exact=True))

    def add(self, conn_id: str, kind: str) -> ConnectionForm:
        """Open the form for a new connection of a type."""
        self._page.get_by_role("button", name="Add Connection").first.click()
        form = ConnectionForm(self._page)
        form.dialog.get_by_label("Connection ID").fill(conn_id)
        form.dialog.get_by_role("combobox", name="Connection Type").fill(kind)
        self._page.get_by_role("option", name=kind, exact=True).click()
        return form

    def edit(self, conn_id: str) -> ConnectionForm:
        """Open the form of a connection."""
        self.row(conn_id).get_by_role("button", name="Edit Connection").click()
        return ConnectionForm(self._page)

    def test(self, conn_id: str) -> tuple[str, str]:
        """Press a connection's Test button: title and text of what the page says then."""
        self.row(conn_id).get_by_role("button", name="Test Connection").click()
        toast = self._page.locator("[data-scope=toast][data-part=root]").filter(has_text=re.compile("Test Connection"))
        expect(toast.first).to_be_visible()
        title = toast.first.locator("[data-part=title]").inner_text()
        text = toast.first.locator("[data-part=description]").inner_text()
        return title, text

    def reload(self) -> None:
        """Start afresh: what the page said is gone."""
        self._page.goto(self._url)
        expect(self._page.get_by_role("button", name="Add Connection").first).to_be_visible()

    def picture(self, name: str) -> None:
        """Keep what the page shows, where pictures are wanted."""
        _picture(self._page, name, height=480)


class ConnectionForm:
    """The form, new or of a connection."""

    def __init__(self, page: Page) -> None:
        self._page = page
        self.dialog = page.get_by_role("dialog")
        expect(self.dialog.get_by_label("Connection ID")).to_be_visible()

    def groups(self) -> list[str]:
        """The groups of fields, in order."""
        return [
            button.inner_text().strip() for button in self.dialog.locator("h3 button, [data-part=item-trigger]").all()
        ]

    def open(self, group: str) -> None:
        """Open a group of fields, which closes the others."""
        trigger = self.dialog.get_by_role("button", name=group, exact=True)
        if trigger.get_attribute("aria-expanded") != "true":
            trigger.click()
        expect(trigger).to_have_attribute("aria-expanded", "true")

    def field(self, label: str) -> Locator:
        """The field with a label; its group must be open."""
        # Airflow ties no label to its text areas: look for what stands beside it.
        beside = self.dialog.get_by_role("group").filter(has=self._page.get_by_text(label, exact=True))
        return beside.locator("textarea, input")

    def fill(self, group: str, fields: Mapping[str, str]) -> None:
        """Fill in the fields of a group by their labels."""
        self.open(group)
        for label, value in fields.items():
            self.field(label).fill(value)

    def save(self) -> None:
        """Press Save and wait until the form is gone."""
        self.dialog.get_by_role("button", name="Save").click()
        expect(self.dialog).to_have_count(0)

    def picture(self, name: str) -> None:
        """Keep what the form shows, where pictures are wanted."""
        _picture(self._page, name, height=1060)


def _picture(page: Page, name: str, *, height: int) -> None:
    if SCREENSHOTS:
        page.set_viewport_size({"width": WIDTH, "height": height})
        page.screenshot(path=Path(SCREENSHOTS) / f"{name}.png", animations="disabled", caret="hide")


@contextmanager
def connections_page(airflow: Airflow) -> Iterator[ConnectionsPage]:
    """The page of all connections, in Debian's own chromium."""
    chromium = shutil.which("chromium")
    assert chromium, "chromium is not installed: apt-get install chromium (make test-airflow does it as root)"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=list(FLAGS))
        try:
            page = browser.new_page(viewport={"width": WIDTH, "height": 1000})
            yield ConnectionsPage(page, airflow)
        finally:
            browser.close()
