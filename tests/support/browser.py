"""A real browser: Debian's Chromium, headless, steered by Playwright; accessibility checked by axe."""

import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or ""
needs_chromium = pytest.mark.skipif(not CHROMIUM, reason="no chromium here; `apt-get install chromium` brings it")

FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
]
WIDTHS, SCHEMES = {"phone": 390, "desktop": 1280}, ("light", "dark")


class Opened:
    """A page, and what it asked for and complained of since it was opened."""

    def __init__(self, page: "Page", address: str):
        self.page, self.requests, self.complaints = page, list[str](), list[str]()
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("console", lambda message: self.complaints.append(message.text))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("dialog", lambda dialog: self.complaints.append(dialog.message))
        page.goto(address, wait_until="networkidle")


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    """One for a module's tests; import it to use it."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


def serious(page: "Page") -> list[Any]:
    """What axe finds that is serious or worse."""
    from axe_playwright_python.sync_playwright import Axe

    response = Axe().run(page).response
    assert {"color-contrast", "heading-order"} <= {one["id"] for one in response["passes"]}, "axe looked"
    found: list[dict[str, Any]] = response["violations"]
    return [
        (one["id"], one["help"], one["nodes"][0]["html"][:200])
        for one in found
        if one["impact"] in ("serious", "critical")
    ]
