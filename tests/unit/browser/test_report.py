"""The report in a real browser."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from llm4msr.config import Config
from llm4msr.explain.stage import REPORT
from llm4msr.storage import StageOutput
from tests.support.browser import SCHEMES, WIDTHS, Opened, browser, needs_chromium, serious

if TYPE_CHECKING:
    from playwright.sync_api import Browser

__all__ = ["browser"]
pytestmark = needs_chromium


@pytest.fixture(scope="module")
def address(report: tuple[Config, StageOutput]) -> str:
    return (Path(str(report[1].folder)) / REPORT).as_uri()


@pytest.fixture(scope="module", params=[(w, s) for w in WIDTHS for s in SCHEMES], ids="-".join)
def opened(request: pytest.FixtureRequest, browser: "Browser", address: str) -> Iterator[Opened]:
    width, scheme = request.param
    context = browser.new_context(viewport={"width": WIDTHS[width], "height": 800}, color_scheme=scheme)
    yield Opened(context.new_page(), address)
    context.close()


def test_every_section_is_there_and_seen(opened: Opened):
    heads = opened.page.locator("h2")
    assert heads.all_inner_texts() == [
        *("Who gains", "The models side by side", "The scenarios", "The users", "Single users", "How to read this"),
    ]
    for link in opened.page.locator("nav a").all():
        target = opened.page.locator(str(link.get_attribute("href")))
        box = target.bounding_box()
        assert box is not None
        assert box["height"] > 100
    for wanted in (
        ".verdict",
        "svg.plot circle",
        "svg.chart",
        ".heat td",
        "svg.map circle",
        ".case .rank li",
        "blockquote",
    ):
        assert opened.page.locator(wanted).first.is_visible(), wanted
    assert opened.page.locator(".case").count() == 4


def test_it_asks_for_nothing_and_complains_of_nothing(opened: Opened, address: str):
    opened.page.mouse.wheel(0, 20_000)
    opened.page.locator("summary").first.click()
    assert opened.requests == [address]
    assert opened.complaints == []


def test_hostile_texts_are_shown_as_text_and_run_nothing(opened: Opened):
    page = opened.page
    assert page.evaluate("window.hacked") is None
    assert page.evaluate("document.scripts.length + document.images.length") == 0
    assert page.title().endswith("LLM4MSR report")
    assert page.evaluate("document.querySelectorAll('[onload], [onerror], [onclick]').length") == 0
    shown = "\n".join(page.locator("main bdi").all_inner_texts())
    for text in (
        "<script>window.hacked",
        "<img src=x onerror='window.hacked",
        '"><svg onload=window',
        "&lt;escaped&gt;",
    ):
        assert text in shown
    assert "{{ 7 * 7 }}{% raw %} ${x} </style></title><b>bold" in shown
    assert "مرحبا بالعالم" in shown


def test_nothing_reaches_beyond_its_place(opened: Opened):
    wide, tall = opened.page.evaluate(
        """() => [document.documentElement.scrollWidth - window.innerWidth,
                  Math.max(...[...document.querySelectorAll('bdi')].map(e => e.getBoundingClientRect().height))]"""
    )
    assert wide <= 0
    assert tall < 3000
    rows = opened.page.locator(".rank li").evaluate_all("all => all.map(e => e.getBoundingClientRect().height)")
    assert max(rows) < 160, "a title of 10,000 characters takes a few lines"


def test_light_and_dark_differ(browser: "Browser", address: str):
    shades = []
    for scheme in SCHEMES:
        page = browser.new_page(color_scheme=scheme)
        page.goto(address)
        shades.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        page.close()
    light, dark = (sum(int(n) for n in shade[4:-1].split(",")) for shade in shades)
    assert light > 600 > 200 > dark


@pytest.mark.parametrize("opened", [("phone", "light"), ("desktop", "dark")], indirect=True, ids="-".join)
def test_axe_finds_nothing_serious(opened: Opened):
    assert serious(opened.page) == []
