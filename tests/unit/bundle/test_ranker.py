from pathlib import Path

import numpy as np
import pytest

from llm4msr import Ranker, storage
from llm4msr.bundle.user_features import UserFeatures
from llm4msr.errors import ConfigError
from llm4msr.model.embedding import Field
from llm4msr.storage.vectors import to_matrix
from tests.support.bundles import (
    Published,
    flip_code,
    publish_bundle,
    publish_codes,
    rank_request,
    read_codes,
    scores,
)
from tests.unit.conftest import World


def is_known(world: World, user: str) -> bool:
    file = next(f for f in world.knowledge.manifest.files if "users-" in f)
    rows = storage.read_table(world.knowledge.folder / file, ["id", "error"]).to_pylist()
    ids = storage.read_table(world.data.folder / "users/p=00000.parquet")["user_id"].to_pylist()
    return not next(row["error"] for row in rows if ids[row["id"]] == user)


def test_many_candidates_score_like_each_alone(ranker: Ranker):
    items = [f"i{i}" for i in range(20)]
    together = scores(ranker, items=items)
    for item in items:
        assert scores(ranker, items=[item])[item] == pytest.approx(together[item], abs=1e-6)


def test_the_best_comes_first(ranker: Ranker):
    ranked = ranker.rank(rank_request(items=[f"i{i}" for i in range(20)])).ranked
    in_order = [item.score for item in ranked]
    assert in_order == sorted(in_order, reverse=True)
    assert len({item.item_id for item in ranked}) == 20
    assert all(0 < score < 1 for score in in_order)


@pytest.mark.parametrize(("top_k", "count"), [(1, 1), (2, 2), (99, 3), (None, 3)])
def test_top_k_cuts_the_answer(ranker: Ranker, top_k: int | None, count: int):
    whole = ranker.rank(rank_request()).ranked
    assert ranker.rank(rank_request(top_k=top_k)).ranked == whole[:count]


def test_equal_scores_keep_the_order_of_the_request(ranker: Ranker):
    strangers = [f"never-seen-{i * 7 % 500}" for i in range(500)]
    mixed = [item for pair in zip(strangers, ["i1", "i2"] * 250, strict=True) for item in pair]
    ranked = [item.item_id for item in ranker.rank(rank_request(items=mixed)).ranked]
    assert [item for item in ranked if item.startswith("never")] == strangers
    items = strangers[:5]
    assert [item.item_id for item in ranker.rank(rank_request(items=items, top_k=2)).ranked] == items[:2]


def test_unknown_ids_are_told_and_ranked(ranker: Ranker):
    response = ranker.rank(rank_request(user_id="stranger", scenario="nowhere", items=["i1", "odd", "i2", ""]))
    assert response.unknown.user
    assert response.unknown.scenario
    assert response.unknown.items == ["odd", ""]
    assert len(response.ranked) == 4
    assert response.knowledge == "none"
    known = ranker.rank(rank_request()).unknown
    assert (known.user, known.scenario, known.items) == (False, False, [])


def test_all_strangers_score_alike(ranker: Ranker):
    assert scores(ranker, user_id="a") == scores(ranker, user_id="b")
    assert scores(ranker, user_id="a") != scores(ranker)


def test_knowledge_is_used_for_who_has_some(ranker: Ranker, world: World):
    for user in (f"u{i}" for i in range(40)):
        expected = "stored" if is_known(world, user) else "none"
        assert ranker.rank(rank_request(user_id=user)).knowledge == expected
    assert ranker.info().users_with_knowledge == 37


def test_requests_ranked_together_score_like_each_alone(ranker: Ranker):
    requests = [
        rank_request(),
        rank_request(user_id="u2", scenario="search", items=["i5", "odd"], context={}),
        rank_request(user_id="stranger", scenario="nowhere", top_k=1),
    ]
    together = ranker.rank_many(requests, ["a", "b", "c"])
    for request, id_, answer in zip(requests, "abc", together, strict=True):
        alone = ranker.rank(request, id_)
        assert [item.item_id for item in answer.ranked] == [item.item_id for item in alone.ranked]
        assert [i.score for i in answer.ranked] == pytest.approx([i.score for i in alone.ranked], abs=1e-6)
        assert answer.model_copy(update={"ranked": []}) == alone.model_copy(update={"ranked": []})


def test_as_many_ids_as_requests_or_an_error(ranker: Ranker):
    for ids in ([], ["a"], ["a", "b", "c"]):
        with pytest.raises(ValueError, match=f"2 requests, but {len(ids)} request_ids"):
            ranker.rank_many([rank_request(), rank_request()], ids)
    assert ranker.rank_many([], []) == []


def test_context_matters_and_may_be_left_out(ranker: Ranker):
    contexts = ({"device": "tv"}, {"device": "phone"}, {}, {"device": "fax"})
    tv, phone, none, unknown = (scores(ranker, context=context) for context in contexts)
    assert tv != phone
    assert none == unknown
    assert none not in (tv, phone)


def test_unknown_context_field_is_refused(ranker: Ranker):
    with pytest.raises(ConfigError, match="context: unknown field 'weather'; this model knows: device"):
        ranker.rank(rank_request(context={"device": "tv", "weather": "rain"}))


def test_features_that_a_request_tells_are_those_of_a_user_who_has_them(world: World, tmp_path: Path):
    """Ids are no features of this model, so that a user is what their country and their code say."""
    bundle = publish_bundle(world, tmp_path, user_embedding="none", knowledge="scenario")
    ranker = Ranker.load(str(bundle.output.folder))
    french, german, nobody = (scores(ranker, user_id=user) for user in ("u0", "u1", "stranger"))
    assert len({str(one) for one in (french, german, nobody)}) == 3
    for told, expected in (
        ("fr", french),
        (["de"], german),
        ("it", nobody),
        ([], nobody),
        (["it", "de", "fr"], german),
    ):
        for user in ("stranger", "u0"):
            assert scores(ranker, user_id=user, user_features={"country": told}) == expected
    assert ranker.info().user_features == ["country"]
    assert ranker.rank(rank_request(user_id="new", user_features={"country": "fr"})).unknown.user


def test_of_a_feature_of_several_values_the_first_known_ones_count():
    fields = [Field("user_id", "user", 5, 1), Field("tags", "user", 4, 2), Field("country", "user", 3, 1)]
    features = UserFeatures(fields, {"tags": ["a", "b", "c"], "country": ["de", "fr"]})
    kept = np.array([2, 6, 7, 11], np.int32)
    assert features.nobody_S.tolist() == [0, 5, 5, 9]
    assert features.put(kept, {"tags": ["?", "c", "a", "b"]}).tolist() == [2, 8, 6, 11]
    assert features.put(kept, {"tags": "b", "country": "de"}).tolist() == [2, 7, 5, 10]
    assert features.put(kept, {"tags": [], "nothing": "x"}).tolist() == [2, 5, 5, 11]
    assert kept.tolist() == [2, 6, 7, 11]


def test_an_unknown_feature_is_refused(ranker: Ranker):
    with pytest.raises(ConfigError, match="user_features: unknown feature 'age'; this model knows: country"):
        ranker.rank(rank_request(user_features={"country": "de", "age": "9"}))


def test_a_code_that_was_made_since_takes_the_place_of_the_stored_one(
    ranker: Ranker, published: Published, tmp_path: Path
):
    flipped = flip_code(read_codes(published.output.folder), "u1")
    other = ranker.with_codes(publish_codes(published.output, tmp_path, flipped))
    fresh = to_matrix(flipped["code"])[flipped["id"].to_pylist().index("u1")]
    for request, same_code in ((rank_request(), rank_request()), (rank_request(history_mode="replace"), None)):
        (answer,) = ranker.rank_many([request], [""], codes=[fresh])
        expected = other.rank(same_code) if same_code else ranker.rank(request)
        assert answer.ranked == expected.ranked
        assert answer.knowledge == ("events" if same_code else "stored")
    (answer, before) = ranker.rank_many([rank_request(user_id="new")] * 2, ["", ""], codes=[fresh, None])
    assert (answer.knowledge, before.knowledge) == ("events", "none")
    assert answer.ranked != before.ranked
    assert other.knowledge.coder == ranker.knowledge.coder


def test_answers_carry_version_and_request_id(ranker: Ranker, published: Published):
    response = ranker.rank(rank_request(), "my-id")
    assert response.request_id == "my-id"
    assert response.scenario == "home"
    assert response.model_version == published.output.manifest.fingerprint == ranker.info().model_version
    one, two = ranker.rank(rank_request()).request_id, ranker.rank(rank_request()).request_id
    assert one
    assert one != two


def test_info_says_what_is_loaded(ranker: Ranker):
    info = ranker.info()
    assert (info.name, info.backbone, info.knowledge) == ("tiny", "mmoe", "both")
    assert (info.scenarios, info.context, info.users, info.items) == (["home", "search"], ["device"], 40, 20)
    assert (ranker.title("i3"), ranker.title("odd")) == ("Title 3", "")


@pytest.mark.parametrize("rows_at_once", [2, 100])
def test_rows_have_the_scores_of_their_items(ranker: Ranker, monkeypatch: pytest.MonkeyPatch, rows_at_once: int):
    monkeypatch.setattr("llm4msr.bundle.ranker.AT_ONCE", rows_at_once)
    ids = ["i3", "nobody's", "i1", "i2", "i7"]
    for user, scenario in (("u1", "home"), ("nobody", "home"), ("u2", "nowhere")):
        expected = scores(ranker, user_id=user, scenario=scenario, items=ids, context={})
        found = ranker.score_rows(user, scenario, ranker.items.find_all(ids))
        assert found.tolist() == pytest.approx([expected[item] for item in ids], abs=1e-6)
        assert found.dtype == "float32"
