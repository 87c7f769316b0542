"""Pictures of a real run for the site: the quickstart's report and explorer, in light and dark.

    python -m docs.pictures jobs/configs/quickstart.toml

The run must be finished (`make quickstart`). Writes docs/pictures, which is no part of the repository; `make docs`
takes what is there.
"""

import sys
from pathlib import Path

from playwright.sync_api import Page, expect, sync_playwright

from llm4msr import config as configs
from llm4msr import pipeline
from llm4msr.explain.stage import REPORT
from llm4msr.pipeline import explain
from llm4msr.serve import endpoint
from tests.support.browser import CHROMIUM, FLAGS, SCHEMES, WIDTHS

FOLDER = Path(__file__).parent / "pictures"
PAGE = """# Pictures of the quickstart's run

![The explorer: a user's two rankings, and a history with one title more](explorer-desktop-light.png)

![The report](report-desktop-light.png)
"""


def main(file: str) -> None:
    config = configs.load(file, ["serve.explore=true"])
    report = (Path(str(explain(config).folder)) / REPORT).as_uri()
    FOLDER.mkdir(exist_ok=True)
    address = pipeline.serve(config)
    try:
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
            for width, pixels in WIDTHS.items():
                for scheme in SCHEMES:
                    page = browser.new_page(viewport={"width": pixels, "height": 900}, color_scheme=scheme)
                    page.goto(report, wait_until="networkidle")
                    page.screenshot(path=FOLDER / f"report-{width}-{scheme}.png")
                    explore(page, f"{address}/explore/")
                    page.screenshot(path=FOLDER / f"explorer-{width}-{scheme}.png", full_page=width == "phone")
                    page.close()
            browser.close()
    finally:
        endpoint.stop()
    (FOLDER / "index.md").write_text(PAGE)


def explore(page: Page, address: str) -> None:
    """A user, more of the user level, and a film more."""
    page.goto(address, wait_until="networkidle")
    page.locator("#found button").first.click()
    expect(page.locator("#status")).to_contain_text("candidates ranked")
    page.get_by_label("User level").fill("1.5")
    page.get_by_label("Title", exact=True).fill("Alien")
    page.get_by_role("button", name="Add to the history").click()
    expect(page.locator("#status")).to_contain_text("edited history", timeout=180_000)
    page.evaluate("window.scrollTo(0, 0)")


if __name__ == "__main__":
    main(sys.argv[1])
