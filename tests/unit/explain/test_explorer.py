"""What the explorer shows of models that read items instead of prompts."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from llm4msr.arrays import Singles
from llm4msr.errors import ConfigError
from llm4msr.explain.candidates import choose_candidates, first_test_event, frequent_items
from llm4msr.explain.explorer.histories import open_histories
from llm4msr.explain.explorer.messages import SHOWN_TITLES, RankedItem, RankingRequest, ScenarioHistory
from llm4msr.explain.explorer.nearest import COSINE, LEAST, SHARE, nearest
from llm4msr.explain.explorer.search import Search
from llm4msr.explain.explorer.view import View
from llm4msr.explain.finished_run import batch_of
from llm4msr.knowledge import item_vectors, user_pooling
from llm4msr.pipeline import extracted, prepare, trained
from tests.support.data import config_of, prepare_and_make_knowledge, publish_trained, write_data

MATCH = {"knowledge": "none", "match": ["candidate", "cosines", "attention"]}
USER = {"knowledge": "user"}
BOTH = {"knowledge": "user", "match": ["cosines", "ids"]}


def never_asked(prompt: str) -> Singles:
    raise AssertionError("no LLM is needed")


def view_of(folder: Path, **model: Any) -> View:
    sections: dict[str, Any] = {"model": model, "extract": {"reads": "items"}, "split": {"by": "user"}}
    config = config_of(write_data(folder), table={"context": []}, train={"epochs": 2}, **sections)
    if config.model.uses_knowledge or config.model.matches_vectors:
        prepare_and_make_knowledge(config, unknown_users=0)
    else:
        prepare(config)
    publish_trained(config)
    return View(trained(config), None, never_asked)


def first(view: View) -> RankingRequest:
    """Of a user with a history."""
    users = [view.user(user.user_id) for user in view.search.users("")]
    user = next(user for user in users if sum(len(part.titles) for part in user.history) > 1)
    return RankingRequest(user_id=user.user_id, scenario=user.scenario)


def scores(lines: list[RankedItem]) -> dict[str, float]:
    return {line.title: line.score_with for line in lines}


@pytest.mark.parametrize("match", [["candidate", "cosines", "attention"], ["ids"]], ids=["vectors", "ids"])
def test_the_past_of_a_match_is_edited_without_an_llm(tmp_path: Path, match: list[str]):
    view = view_of(tmp_path, knowledge="none", match=match)
    request, details = first(view), view.details()
    assert (details.editable, details.levels, details.rivals, details.titles_read) == (True, [], ["bare"], 0)
    own, user = view.rank(request), view.user(request.user_id)
    same = view.rank(request.model_copy(update={"history": user.history}))
    assert scores(same.lines) == pytest.approx(scores(own.lines), abs=1e-6)
    assert (own.knowledge, same.knowledge) == ("own", "edited")
    less = [part.model_copy(update={"titles": part.titles[1:]}) for part in user.history]
    assert scores(view.rank(request.model_copy(update={"history": less})).lines) != scores(own.lines)


def test_without_a_past_a_match_is_what_it_is_compared_with(tmp_path: Path):
    view = view_of(tmp_path, **MATCH)
    lines = view.rank(first(view)).lines
    assert any(line.score_with != line.score_without for line in lines)
    with pytest.raises(ConfigError, match="no plain model of this seed"):
        view.rank(first(view).model_copy(update={"rival": "plain"}))


def test_a_candidate_comes_with_the_liked_items_of_the_nearest_vectors(tmp_path: Path):
    view = view_of(tmp_path, **MATCH)
    request = first(view)
    answer, run = view.rank(request), view.run
    assert answer.nearness == COSINE
    unit_ID = item_vectors.of_unit_length(item_vectors.read(extracted(run.config)).vectors_ID).astype(np.float64)
    number = {title: place for place, title in enumerate(run.items["title"])}
    titles = [title for part in view.user(request.user_id).history for title in part.titles]
    for line in answer.lines:
        cosine = {title: unit_ID[number[title]] @ unit_ID[number[line.title]] for title in titles}
        wanted = sorted((one for one in cosine.items() if one[1] >= LEAST), key=lambda one: -one[1])[:3]
        assert [near.title for near in line.nearest] == [title for title, _ in wanted]
        assert [near.near for near in line.nearest] == pytest.approx([near for _, near in wanted], abs=1e-3)


def test_attention_over_ids_says_what_share_each_liked_item_has(tmp_path: Path):
    view = view_of(tmp_path, knowledge="none", match=["ids"])
    answer = view.rank(first(view))
    assert answer.nearness == SHARE
    assert any(line.nearest for line in answer.lines)
    for line in answer.lines:
        assert 0 <= sum(near.near for near in line.nearest) < 1, "the empty place has a share too"
    net = view.run.net
    batch = batch_of(view.run.data, net, 1, np.array([1, 2]), 1)
    bare = batch._replace(past=batch.past._replace(liked_BN=torch.zeros_like(batch.past.liked_BN)))
    assert nearest(net, bare) == [[], []]


def test_users_who_are_pooled_from_items_are_pooled_again(tmp_path: Path):
    """As extraction pools them."""
    view = view_of(tmp_path, **USER)
    request, run = first(view), view.run
    number = view._number(request.user_id)
    scenario = 1 + view.scenarios.index(request.scenario)
    event = first_test_event(run, number, scenario)
    items = choose_candidates(run, frequent_items(run), number, scenario)
    batch = batch_of(run.data, run.net, number, items, scenario, event)
    changed, prompt = view.histories.put(batch, number, event, view.histories.of(number, event))
    assert prompt == ""
    histories, seen = (run.prepared.table(f"{name}/p=00000.parquet") for name in ("histories", "seen"))
    vectors = item_vectors.read(extracted(run.config))
    pooled = user_pooling.pooled_rows(histories, seen, *vectors).to_pylist()
    (expected,) = [row["vector"] for row in pooled if row["id"] == number]
    np.testing.assert_array_equal(changed.z_NZ[0].numpy(), np.array(expected, np.float16))


def test_a_title_that_no_item_has_is_refused(tmp_path: Path):
    view = view_of(tmp_path, **MATCH)
    request = first(view)
    for title in ("no such <b>title</b>", ""):
        wrong = [ScenarioHistory(scenario=request.scenario, titles=[title])]
        with pytest.raises(ConfigError, match="history: no item is called"):
            view.rank(request.model_copy(update={"history": wrong}))
    many = [ScenarioHistory(scenario=request.scenario, titles=view.search.titles("title")[:1] * 200)] * 6
    with pytest.raises(ConfigError, match="1200 titles, allowed are 1000"):
        view.rank(request.model_copy(update={"history": many}))


def test_a_history_that_is_refused_costs_no_ranking(tmp_path: Path):
    view = view_of(tmp_path, **MATCH)
    ranked: list[int] = []
    view.run.net.register_forward_hook(lambda *_: ranked.append(1))
    request = first(view)
    wrong = [ScenarioHistory(scenario=request.scenario, titles=["no such title"])]
    with pytest.raises(ConfigError, match="history: no item is called"):
        view.rank(request.model_copy(update={"history": wrong}))
    assert not ranked
    view.rank(request)
    assert len(ranked) == 2


def test_a_title_of_two_lines_is_completed_as_a_field_can_hold_it(tmp_path: Path):
    view = view_of(tmp_path, **MATCH)
    view.run.items.iloc[1, view.run.items.columns.get_loc("title")] = "Two\nlines  and a\ttab"
    view.search, view.histories = Search(view.run), open_histories(view.run, never_asked)
    assert view.search.titles("two") == ["Two lines and a tab"]
    request = first(view)
    history = [ScenarioHistory(scenario=request.scenario, titles=view.search.titles("two"))]
    assert view.rank(request.model_copy(update={"history": history})).knowledge == "edited"


def test_a_title_can_be_added_to_the_longest_history_that_is_shown():
    most = ScenarioHistory(scenario="home", titles=["t"] * SHOWN_TITLES)
    history = [{"scenario": "home", "titles": [*most.titles, "one more"]}]
    assert RankingRequest.model_validate({"user_id": "u", "scenario": "home", "history": history})


def test_nobody_can_add_to_wrong_vectors(tmp_path: Path):
    view = view_of(tmp_path, **MATCH, control="shuffled")
    request = first(view)
    assert not view.details().editable
    with pytest.raises(ConfigError, match="This model’s vectors are wrong ones"):
        view.rank(request.model_copy(update={"history": []}))


def test_a_model_with_codes_and_a_match_is_edited_in_both(tmp_path: Path):
    view = view_of(tmp_path, **BOTH)
    assert view.details().levels == ["user"]
    request = first(view)
    nothing = view.rank(request.model_copy(update={"history": []}))
    assert not any(line.nearest for line in nothing.lines)
    assert any(line.nearest for line in view.rank(request).lines)
