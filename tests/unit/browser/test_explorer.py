"""The explorer in a real browser on a run whose every text is hostile; without Ray, on uvicorn below a prefix."""

import re
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
import uvicorn
from playwright.sync_api import Browser, Page, Route, expect
from starlette.types import Receive, Scope, Send

from llm4msr.config import Config
from llm4msr.data import partitions
from llm4msr.errors import ConfigError
from llm4msr.explain.candidates import choose_candidates, frequent_items
from llm4msr.explain.explorer.messages import RankedItem, RankingRequest, ScenarioHistory
from llm4msr.explain.explorer.routes import explorer_app
from llm4msr.explain.explorer.view import TITLE_LENGTH, View
from llm4msr.explain.report.cases import ranking
from llm4msr.pipeline import trained
from llm4msr.serve import api_token
from llm4msr.serve.event_log import LoggedEvent
from llm4msr.storage import StageOutput
from llm4msr.text import MAX_ID, shorten
from tests.support.browser import SCHEMES, WIDTHS, Opened, browser, needs_chromium, serious
from tests.support.data import HOSTILE, WIDTH
from tests.support.experiments import free_port

__all__ = ["browser"]
PREFIX = "/explore"
READ: list[str] = []
"""Prompts that were read, in order."""


def read_prompt(prompt: str) -> Any:
    """A vector that follows the prompt alone, as the vectors of this run's users do not come from an LLM either."""
    READ.append(prompt)
    return np.random.default_rng(list(prompt.encode())).standard_normal(WIDTH).astype(np.float32)


def events_of(user_id: str) -> list[LoggedEvent]:
    """What the endpoint was told of the most active user: an item of the catalogue, and one that is not in it."""
    told = [("i3", HOSTILE[0], True), ("new <b>item</b>", "Plain shelf", False)]
    return [LoggedEvent(n, user_id, *one, 1e9 - n, 1e9) for n, one in enumerate(told)]


@pytest.fixture(scope="module")
def view(report: tuple[Config, StageOutput]) -> View:
    config = report[0]
    return View(trained(config), trained(config.using("none", config.seed)), read_prompt, events_of)


@pytest.fixture(scope="module")
def address(view: View) -> Iterator[str]:
    app = explorer_app(view, view.run.config.serve)

    async def mounted(scope: Scope, receive: Receive, send: Send) -> None:
        await app({**scope, "root_path": PREFIX} if scope["type"] == "http" else scope, receive, send)

    port = free_port()
    server = uvicorn.Server(uvicorn.Config(mounted, port=port, log_level="error"))
    threading.Thread(target=server.run, daemon=True).start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{port}{PREFIX}"
    server.should_exit = True


# --- the view ------------------------------------------------------------------------------------------------


def test_a_search_finds_ids_by_their_beginning_and_the_active_first(view: View):
    users = view.search.users("1")
    assert users
    assert all(user.user_id.startswith("1") for user in users)
    assert [user.rows for user in users] == sorted((user.rows for user in users), reverse=True)
    assert all(user.known for user in users)
    assert view.search.users("no such beginning") == []
    assert len(view.search.users("")) == 20


def test_the_ranking_at_full_strength_is_the_reports(view: View):
    user = view.user(view.search.users("")[0].user_id)
    answer = view.rank(RankingRequest(user_id=user.user_id, scenario=user.scenario, rival="plain"))
    number = partitions.find_users(view.run.prepared, [user.user_id])[user.user_id]
    scenario = 1 + view.scenarios.index(user.scenario)
    items = choose_candidates(view.run, frequent_items(view.run), number, scenario)
    plain = trained(view.run.config.using("none", view.run.config.seed)).load()
    expected = ranking(view.run, plain, number, scenario, items)
    assert [line.title for line in answer.lines] == [shorten(title, TITLE_LENGTH) for title in expected["title"]]
    assert [line.rank_without for line in answer.lines] == expected["rank_plain"].tolist()
    scores = [line.score_with for line in answer.lines]
    np.testing.assert_allclose(scores, 1 / (1 + np.exp(-expected["logit_model"])))
    marks = {1.0: "liked", 0.0: "negative"}
    assert [line.held_out for line in answer.lines] == [marks.get(one, "") for one in expected["test_label"]]
    assert {"liked", "negative"} <= {line.held_out for line in answer.lines}
    assert answer.knowledge == "own"


def test_without_both_levels_nothing_moves(view: View):
    user = view.user(view.search.users("")[0].user_id)
    request = RankingRequest(user_id=user.user_id, scenario=user.scenario, user_strength=0, scenario_strength=0)
    lines = view.rank(request).lines
    assert all(line.rank_with == line.rank_without and line.score_with == line.score_without for line in lines)


def scores(lines: list[RankedItem]) -> list[tuple[str, float]]:
    return sorted((line.title, line.score_with) for line in lines)


def test_titles_are_completed_from_the_catalogue(view: View):
    found = view.search.titles(" <SCRIPT")
    assert found
    assert all("<script" in title for title in found)
    assert view.search.titles("no such title") == view.search.titles(" ") == []


def test_what_the_endpoint_was_told_is_shown_with_titles_of_the_catalogue(view: View):
    events = view.user(view.search.users("")[0].user_id).events
    titles = view.run.items.set_index("item_id")["title"]
    assert [event.title for event in events] == [titles["i3"], "new <b>item</b>"]
    assert [event.liked for event in events] == [True, False]


def test_another_history_is_another_vector_read_once(view: View):
    user = view.user(view.search.users("")[0].user_id)
    request = RankingRequest(user_id=user.user_id, scenario=user.scenario)
    own = view.rank(request)
    READ.clear()
    for strength in (1.0, 0.5, 1.5, 1.0):
        edited = view.rank(request.model_copy(update={"history": user.history[:1], "user_strength": strength}))
    assert len(READ) == 1
    assert READ[0].startswith(user.prompt[:80])
    assert edited.knowledge == "edited"
    assert scores(edited.lines) != scores(own.lines)
    nothing = view.rank(request.model_copy(update={"history": [ScenarioHistory(scenario="x", titles=[])]}))
    assert nothing.knowledge == "none"
    assert len(READ) == 1


def test_what_cannot_be_shown_is_told(view: View):
    user = view.search.users("")[0].user_id
    with pytest.raises(ConfigError, match="no user 'nobody'"):
        view.user("nobody")
    with pytest.raises(ConfigError, match="scenario: no 'nowhere'"):
        view.rank(RankingRequest(user_id=user, scenario="nowhere"))


def test_an_edited_history_is_bounded(view: View, address: str):
    request = {"user_id": view.search.users("")[0].user_id, "scenario": view.scenarios[0]}
    long = [{"scenario": f"{i:03}" * 20, "titles": ["t" * 60] * 4} for i in range(900)]
    before = len(READ)
    answer = httpx.post(f"{address}/api/rank", json=request | {"history": long})
    assert answer.status_code == 422
    assert "characters, allowed are" in answer.json()["detail"]
    for wrong in (
        [{"scenario": "x", "titles": [0] * 200_000}],
        [0] * 400_000,
        [{"scenario": "x", "titles": []}] * 1001,
    ):
        answer = httpx.post(f"{address}/api/rank", json=request | {"history": wrong})
        assert answer.status_code == 422
        assert len(answer.content) < 2_000
    assert len(READ) == before


def test_ids_of_any_allowed_length_are_searched_for(address: str):
    assert httpx.get(f"{address}/api/users", params={"begins": "x" * MAX_ID}).json() == []
    for path, name in (("users", "begins"), ("user", "user_id")):
        assert httpx.get(f"{address}/api/{path}", params={name: "x" * (MAX_ID + 1)}).status_code == 422


def test_foreign_hosts_see_nothing_of_it(address: str):
    for path in ("", "page.js", "api/run", "api/users", "docs"):
        assert httpx.get(f"{address}/{path}", headers={"host": "evil.example"}).status_code == 403
        answer = httpx.get(f"{address}/{path}")
        assert (answer.status_code, answer.headers["cache-control"]) == (200, "no-store")


def test_strengths_are_bounded():
    for wrong in ({"user_strength": 1.6}, {"user_strength": -0.1}, {"scenario_strength": float("nan")}):
        with pytest.raises(ValueError, match="strength"):
            RankingRequest(user_id="u", scenario="s", **wrong)


# --- over HTTP ----------------------------------------------------------------------------------------------------


def test_the_page_forbids_what_it_does_not_need(address: str):
    page = httpx.get(address, follow_redirects=True)
    assert page.status_code == 200
    assert str(page.url) == f"{address}/"
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert "http" not in page.text
    assert httpx.get(f"{address}/app.py").status_code == 404
    assert httpx.get(f"{address}/../view.py").status_code == 404


def test_errors_say_what_is_wrong(address: str):
    answer = httpx.post(f"{address}/api/rank", json={"user_id": "nobody", "scenario": "Plain shelf"})
    assert (answer.status_code, answer.json()["detail"]) == (422, "user_id: no user 'nobody' in the prepared data")
    assert httpx.get(f"{address}/api/user").status_code == 422


def test_with_a_token_the_page_opens_and_asks_for_it(address: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(api_token.VARIABLE, "secret")
    assert httpx.get(f"{address}/").status_code == 200
    assert httpx.get(f"{address}/page.js").status_code == 200
    for path in ("api/run", "api/users", "api/user?user_id=x", "docs", "openapi.json"):
        assert httpx.get(f"{address}/{path}").status_code == 401
    assert httpx.get(f"{address}/api/run", headers={"authorization": "Bearer secret"}).status_code == 200


# --- in a browser -------------------------------------------------------------------------------------------------


@pytest.fixture(params=[(w, s) for w in WIDTHS for s in SCHEMES], ids="-".join)
def opened(request: pytest.FixtureRequest, browser: Browser, address: str) -> Iterator[Opened]:
    width, scheme = request.param
    context = browser.new_context(viewport={"width": WIDTHS[width], "height": 900}, color_scheme=scheme)
    yield Opened(context.new_page(), f"{address}/")
    context.close()


def choose_user(page: Page, number: int = 0) -> None:
    page.locator("#found button").nth(number).click()
    wait_for_ranking(page)


def wait_for_ranking(page: Page, how: str = "candidates ranked") -> None:
    expect(page.locator("#status")).to_contain_text(how)


def titles(page: Page, which: str) -> list[str]:
    """Of a list, whether it is shown or not."""
    texts: list[str] = page.locator(f"#{which} .title").all_text_contents()
    return texts


@needs_chromium
def test_one_looks_turns_and_edits(opened: Opened, address: str):
    page = opened.page
    page.get_by_label("Find a user").fill("1")
    expect(page.locator("#found button bdi").first).to_have_text(re.compile("^1"))
    choose_user(page)
    assert titles(page, "with") != titles(page, "without")
    whole = titles(page, "with")

    page.get_by_label("Compare with").select_option("This model without knowledge")
    for level in ("User level", "Scenario level"):
        page.get_by_label(level).focus()
        page.keyboard.press("Home")
    expect(page.locator("#with :is(.up, .down)")).to_have_count(0)
    assert titles(page, "with") == titles(page, "without")
    for level in ("User level", "Scenario level"):
        page.get_by_label(level).fill("1")
    expect(page.locator("#with .title").first).to_have_text(whole[0])

    page.get_by_label("Title", exact=True).fill("<b>What if</b>")
    page.get_by_role("button", name="Add to the history").click()
    wait_for_ranking(page, "edited history")
    assert "<b>What if</b>" in page.locator("#history").inner_text()
    assert "<b>What if</b>" in (page.locator("#prompt").text_content() or "")
    page.get_by_role("button", name="Back to the true one").click()
    wait_for_ranking(page, "own vector")
    assert titles(page, "with") == whole

    assert page.evaluate("document.documentElement.scrollWidth - window.innerWidth") <= 0
    assert all(request.startswith((address, "data:")) for request in opened.requests)
    assert opened.complaints == []
    assert serious(page) == []


@needs_chromium
def test_held_out_items_are_marked_and_a_phone_shows_one_list(opened: Opened):
    page = opened.page
    choose_user(page)
    lists = [page.locator(one) for one in ("#list-without", "#list-with")]
    for one in lists:
        assert one.locator(".held .tag").first.text_content() == "held out: liked"
        assert one.locator(".score").count() > 10
    is_phone = page.locator("#toggle").is_visible()
    assert is_phone == (page.evaluate("window.innerWidth") < 500)
    assert [one.is_visible() for one in lists] == [not is_phone, True]
    if is_phone:
        page.get_by_role("button", name="The plain model").click()
        assert [one.is_visible() for one in lists] == [True, False]
        assert serious(page) == []


@needs_chromium
def test_what_the_llm_does_not_read_is_folded(browser: Browser, view: View, address: str):
    page = browser.new_page()
    person = view.user(view.search.users("")[0].user_id)
    longest = max(person.history, key=lambda part: len(part.titles))
    read = len(longest.titles) - 1
    page.route("**/api/run", lambda route: route.fulfill(json=view.details().model_dump() | {"titles_read": read}))
    page.goto(f"{address}/", wait_until="networkidle")
    choose_user(page)
    folds = page.locator("#history details")
    assert folds.first.locator("summary").inner_text() == "1 earlier, which the LLM does not read"
    assert not folds.first.locator("li").first.is_visible()
    folds.first.locator("summary").click()
    assert folds.first.locator("li").first.is_visible()
    page.close()


@needs_chromium
def test_an_event_of_the_endpoint_is_added_to_the_history(browser: Browser, address: str):
    page = browser.new_page()
    page.goto(f"{address}/", wait_until="networkidle")
    choose_user(page)
    assert page.locator("#events li").count() == 2
    page.locator("#events").get_by_role("button").click()
    wait_for_ranking(page, "edited history")
    page.get_by_label("Title", exact=True).fill("<script")
    expect(page.locator("#titles option").first).to_have_count(1)
    page.close()


@needs_chromium
def test_a_log_that_does_not_answer_and_scores_that_are_calibrated_are_told(browser: Browser, view: View, address: str):
    page = browser.new_page()
    view = View(trained(view.run.config), None, read_prompt, lambda _: None, calibrated=True)
    page.route("**/api/run", lambda route: route.fulfill(json=view.details().model_dump()))
    page.route(
        "**/api/user?*",
        lambda route: route.fulfill(json=view.user(view.search.users("")[0].user_id).model_dump()),
    )
    page.goto(f"{address}/", wait_until="networkidle")
    choose_user(page)
    expect(page.locator("#events")).to_contain_text("could not be read")
    assert page.locator("#history li").count() > 0
    expect(page.locator("#legend")).to_contain_text("The endpoint calibrates its scores")
    page.close()


@needs_chromium
def test_an_answer_that_comes_late_does_not_replace_the_user_who_was_chosen_since(browser: Browser, address: str):
    page = browser.new_page()
    page.goto(f"{address}/", wait_until="networkidle")
    held: list[Route] = []
    page.route("**/api/user?*", lambda route: held.append(route))
    first, second = (page.locator("#found button").nth(number) for number in range(2))
    for user in (first, second):
        with page.expect_request("**/api/user?*"):
            user.click()
    page.evaluate("0")  # by now both are held
    held[1].continue_()
    wait_for_ranking(page)
    with page.expect_response("**/api/user?*"):
        held[0].continue_()
    page.wait_for_load_state("networkidle")
    expect(second).to_have_attribute("aria-pressed", "true")
    expect(first).to_have_attribute("aria-pressed", "false")
    page.close()


@needs_chromium
def test_hostile_texts_are_text(browser: Browser, address: str, view: View):
    opened = Opened(browser.new_page(), f"{address}/")
    page = opened.page
    for number in range(10):
        choose_user(page, number)
    for scenario in view.scenarios:
        page.get_by_label("Scenario", exact=True).select_option(scenario)
        page.wait_for_load_state("networkidle")
    assert page.evaluate("window.hacked") is None
    assert page.evaluate("document.scripts.length") == 1
    assert page.locator("main :is(img, svg, b, script)").count() == 0
    shown = "\n".join(page.locator("main bdi").all_inner_texts())
    assert "<script>window.hacked" in shown
    assert "\u202e" not in shown
    assert max(page.locator(".rank li").evaluate_all("all => all.map(e => e.getBoundingClientRect().height)")) < 160
    assert opened.complaints == []
    page.close()


@needs_chromium
def test_the_token_is_asked_for_and_kept_in_memory(browser: Browser, address: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(api_token.VARIABLE, "secret")
    page = browser.new_page()
    page.goto(f"{address}/", wait_until="networkidle")
    page.get_by_label("API token").fill("secret")
    page.get_by_role("button", name="Use it").click()
    page.locator("#found button").first.wait_for()
    assert page.evaluate("localStorage.length + sessionStorage.length + document.cookie.length") == 0
    page.close()
