"""Lists are what `Ranker.rank` says of the candidates, without what a user has seen."""

from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm4msr import Ranker, RankRequest, storage
from llm4msr.score import stage
from llm4msr.score.candidates import Candidates
from llm4msr.score.lists import Job, ListMaker, Piece, best_places
from llm4msr.storage import StageOutput
from tests.support.bundles import flip_code, publish_bundle, publish_codes, read_codes
from tests.support.data import config_of, prepare_and_make_knowledge, prepared_table, write_data
from tests.unit.conftest import World
from tests.unit.score.conftest import Score

USERS = 40


def lists_of(output: StageOutput) -> pa.Table:
    files = sorted(name for name in output.manifest.files if name.startswith("lists/"))
    return pa.concat_tables(storage.read_table(output.folder / name) for name in files)


def by_list(table: pa.Table) -> dict[tuple[str, str], list[tuple[str, float]]]:
    """Items and scores by user and scenario, in the order of the rows."""
    lists = defaultdict(list)
    for row in table.to_pylist():
        lists[row["user_id"], row["scenario"]].append((row["item_id"], row["score"]))
        assert row["rank"] == len(lists[row["user_id"], row["scenario"]])
    return dict(lists)


def history(world: World, liked: bool = False) -> dict[str, set[str]]:
    """Items that each user has rows of, or likes."""
    users, items = (prepared_table(world.data, f"{side}s")[f"{side}_id"].to_pylist() for side in ("user", "item"))
    taken = defaultdict(set)
    for row in prepared_table(world.data, "events").to_pylist():
        if row["label"] > 0.5 or not liked:
            taken[users[row["user"]]].add(items[row["item"]])
    return taken


def expected(ranker: Ranker, user: str, scenario: str, items: list[str], top_k: int) -> list[tuple[str, Any]]:
    if not items:
        return []
    request = RankRequest(user_id=user, scenario=scenario, items=items, top_k=top_k)
    return [(one.item_id, pytest.approx(one.score, abs=1e-6)) for one in ranker.rank(request).ranked]


def candidates_of(output: StageOutput) -> dict[str, list[str]]:
    found = Candidates.of(output.table("candidates.parquet"))
    return {name: found.id_U.take(pa.array(places)).to_pylist() for name, places in found.places.items()}


def test_texts_that_repeat_are_written_once(score: Score):
    output = score(top_k=4)
    (name,) = (name for name in output.manifest.files if name.startswith("lists/"))
    for column in ("user_id", "scenario", "item_id", "model_version"):
        (texts,) = {tuple(part.dictionary.to_pylist()) for part in output.table(name)[column].chunks}
        assert len(texts) == len({*texts})
    with output.parquet(name) as parquet:
        group = parquet.metadata.row_group(0)
        encodings = [{*group.column(at).encodings} for at in range(group.num_columns)]
    assert all("RLE_DICTIONARY" in found for found in encodings)


@pytest.mark.parametrize(("leave_out", "liked"), [("seen", False), ("liked", True), ("nothing", None)])
def test_a_list_is_what_the_ranker_says_of_the_candidates_that_are_not_left_out(
    score: Score, world: World, ranker: Ranker, leave_out: str, liked: bool | None
):
    output = score(top_k=4, leave_out=leave_out)
    lists, candidates = by_list(lists_of(output)), candidates_of(output)
    out = {} if liked is None else history(world, liked)
    for user in (f"u{at}" for at in range(USERS)):
        for scenario in ("home", "search"):
            left = [item for item in candidates[scenario] if item not in out.get(user, set())]
            assert lists.get((user, scenario), []) == expected(ranker, user, scenario, left, 4)
    assert output.manifest.rows == len(lists_of(output)) == sum(map(len, lists.values())) > 0


def test_the_table_has_plain_columns_that_say_which_model_it_was(score: Score, ranker: Ranker):
    table = lists_of(score(top_k=2, leave_out="nothing"))
    plain = {field.name: field.type for field in table.schema}
    text = pa.dictionary(pa.int32(), pa.string())
    assert plain == {
        "user_id": text,
        "scenario": text,
        "item_id": text,
        "rank": pa.int32(),
        "score": pa.float32(),
        "model_version": text,
    }
    assert table["model_version"].unique().to_pylist() == [ranker.model_version]
    assert len(table) == USERS * 2 * 2


def test_a_user_to_forget_is_in_no_list(score: Score, tmp_path: Path):
    (tmp_path / "forget.txt").write_text("u3\nu7\n")
    output = score(top_k=2, leave_out="nothing", forget=str(tmp_path / "forget.txt"))
    users = set(lists_of(output)["user_id"].to_pylist())
    assert users == {f"u{at}" for at in range(USERS)} - {"u3", "u7"}
    assert output.folder != score(top_k=2, leave_out="nothing").folder


def test_newer_codes_give_other_lists(score: Score, bundle: StageOutput, tmp_path: Path):
    uri = publish_codes(bundle, tmp_path / "codes", flip_code(read_codes(bundle.folder), "u1"))
    old, new = (by_list(lists_of(score(codes=codes, leave_out="nothing"))) for codes in ("", uri))
    assert {user for user, _ in old if old[user, "home"] != new[user, "home"]} == {"u1"}


def test_scenarios_of_the_own_history_alone(tmp_path: Path):
    rows = [[f"u{u}", f"i{i}", ("home", "search")[(u + i) % 2], 1, u + i, "tv"] for u in range(20) for i in range(12)]
    rows = [row for row in rows if row[0] != "u5" or row[2] == "home"]
    config = config_of(
        write_data(tmp_path, rows), split={"by": "user"}, score={"scenarios": "history", "leave_out": "nothing"}
    )
    world = (config, *prepare_and_make_knowledge(config))
    bundle = publish_bundle(world, tmp_path).output
    lists = by_list(lists_of(stage.score(config, world[1], bundle, "")))
    assert {name for user, name in lists if user == "u5"} == {"home"}
    assert {name for user, name in lists if user == "u4"} == {"home", "search"}
    assert "u30" not in {user for user, _ in lists}, "who is described and has done nothing"
    named = config.model_copy(update={"score": config.score.model_copy(update={"scenarios": ("search",)})})
    lists = by_list(lists_of(stage.score(named, world[1], bundle, "")))
    assert ("u5", "search") in lists
    assert ("u30", "search") in lists
    assert {name for _, name in lists} == {"search"}


def test_a_partition_in_pieces_has_the_lists_of_the_whole(
    score: Score, world: World, bundle: StageOutput, ranker: Ranker
):
    whole = score(top_k=5, leave_out="nothing")
    folder = str(whole.folder)
    job = Job(str(world.data.folder), str(bundle.folder), "", (), folder, 5, False, "nothing")
    maker, nobody = ListMaker(job), pa.array([], pa.string())
    cuts = [0, 1, 13, 14, USERS + 1]
    parts = [maker.make(Piece(0, 0, a, b), nobody) for a, b in pairwise(cuts)]
    assert len(parts[0]) == 0, "the unknown user alone"
    assert by_list(pa.concat_tables(parts)) == by_list(lists_of(whole))


@pytest.mark.parametrize(("top_k", "scenarios"), [(1, 1), (100, 1), (100, 6), (10_000, 300)])
def test_a_piece_is_bounded_in_users_and_in_rows(world: World, top_k: int, scenarios: int):
    plan = stage.pieces(world.data, top_k, scenarios)
    sizes = [piece.end - piece.start for piece in plan]
    assert sum(sizes) == USERS + 1
    assert max(sizes) <= stage.PIECE_USERS
    assert max(sizes) == 1 or max(sizes) * top_k * scenarios <= stage.PIECE_ROWS
    assert [piece.start for piece in plan] == [*np.cumsum([0, *sizes[:-1]])]
    assert len({piece.file for piece in plan}) == len(plan)


@given(st.lists(st.sampled_from([-1, 0, 0.25, 0.5, 1]), max_size=40), st.integers(1, 45))
def test_best_places_are_those_of_a_stable_sort(scores: list[float], most: int):
    score_B = np.array(scores, np.float32)
    whole = [at for at in np.argsort(-score_B, kind="stable").tolist() if score_B[at] >= 0]
    assert best_places(score_B, most).tolist() == whole[:most]


def test_equal_scores_stand_in_the_order_of_ids(score: Score, tmp_path: Path, ranker: Ranker, world: World):
    output = score(leave_out="nothing")
    for items in by_list(lists_of(output)).values():
        assert items == sorted(items, key=lambda one: (-one[1], one[0].encode()))
