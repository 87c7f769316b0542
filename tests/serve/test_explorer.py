"""The explorer on the real Ray Serve app with the real LLM, as `llm4msr serve` starts them, in a real browser."""

from collections.abc import Iterator

import httpx
import pytest
from playwright.sync_api import Browser, expect

from llm4msr import Config, pipeline
from llm4msr.errors import ConfigError
from llm4msr.serve import endpoint
from tests.support.browser import Opened, browser, needs_chromium
from tests.support.experiments import free_port

__all__ = ["browser"]
pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def config(real: Config) -> Config:
    served = real.serve.model_copy(update={"port": free_port(), "explore": True})
    return real.model_copy(update={"serve": served, "train": real.train.model_copy(update={"epochs": 1})})


@pytest.fixture(scope="module")
def address(config: Config) -> Iterator[str]:
    pipeline.train(config)
    pipeline.export(config)
    yield pipeline.serve(config)
    endpoint.stop()


def test_what_is_not_trained_is_told_before_anything_starts(config: Config) -> None:
    with pytest.raises(ConfigError, match="is not trained yet"):
        pipeline.serve(config.model_copy(update={"seed": 77}))


def test_the_ranker_serves_beside_it(address: str) -> None:
    assert httpx.get(f"{address}/readyz").json()["status"] == "ready"
    assert httpx.get(f"{address}/explore/api/run").json()["editable"] is True


@needs_chromium
def test_search_rank_turn_and_what_if(address: str, browser: Browser) -> None:
    opened = Opened(browser.new_page(), f"{address}/explore")
    page = opened.page

    def ranked(how: str) -> None:
        expect(page.locator("#status")).to_contain_text(how, timeout=180_000)

    page.get_by_label("Find a user").fill("40")
    page.get_by_role("button", name="405", exact=True).click()
    ranked("own vector")
    assert "Elm Street" in (page.locator("#prompt").text_content() or ""), "titles of MovieLens-100K"
    assert page.locator("#knowledge p").count() > 0, "interests as the LLM named them"
    page.get_by_label("User level").fill("0")
    page.get_by_label("Scenario level").fill("0")
    expect(page.locator("#with :is(.up, .down)")).to_have_count(0)
    page.get_by_label("User level").fill("1.5")
    expect(page.locator("#with .up").first).to_be_visible()

    page.get_by_label("Title", exact=True).fill("Alien (1979)")
    page.get_by_role("button", name="Add to the history").click()
    ranked("edited history")
    assert "Alien (1979)" in (page.locator("#prompt").text_content() or "")
    assert opened.complaints == []
    assert all(request.startswith((address, "data:")) for request in opened.requests)
