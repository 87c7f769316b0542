"""Codes of newer knowledge for a loaded bundle."""

from pathlib import Path

import pyarrow as pa
import pytest

from llm4msr import Ranker
from llm4msr.errors import StorageError
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


def test_newer_codes_change_their_users_scores_and_nobody_elses(published: Published, ranker: Ranker, tmp_path: Path):
    codes = flip_code(read_codes(published.output.folder), "u1")
    newer = ranker.with_codes(publish_codes(published.output, tmp_path / "a7", codes))
    assert scores(newer) != scores(ranker)
    assert scores(newer, user_id="u2") == scores(ranker, user_id="u2")
    assert (newer.rank(rank_request()).knowledge_version, newer.model_version) == ("a7", ranker.model_version)
    assert ranker.rank(rank_request()).knowledge_version == ranker.model_version


def test_a_new_user_gets_the_default_and_after_a_refresh_the_own_code(
    published: Published, ranker: Ranker, tmp_path: Path
):
    assert ranker.rank(rank_request(user_id="u1x")).knowledge == "none"
    table = read_codes(published.output.folder)
    row = table.slice(table["id"].to_pylist().index("u1"), 1)
    copy = row.set_column(0, "id", pa.array(["u1x"], pa.large_string()))
    both = pa.concat_tables([table, copy]).sort_by("id")
    newer = ranker.with_codes(publish_codes(published.output, tmp_path / "b", both))
    assert newer.rank(rank_request(user_id="u1x")).knowledge == "stored"
    assert newer.rank(rank_request(user_id="u1x")).unknown.user
    assert scores(newer, user_id="u1x") != scores(ranker, user_id="u1x")


def test_codes_of_another_model_are_refused(world: World, published: Published, ranker: Ranker, tmp_path: Path):
    other = publish_bundle(world, tmp_path, knowledge="user").output
    foreign = publish_codes(other, tmp_path / "foreign", read_codes(other.folder))
    with pytest.raises(StorageError, match=r"foreign/codes\.arrow: codes of another model.*llm4msr refresh"):
        ranker.with_codes(foreign)
    with pytest.raises(StorageError, match="not a finished set of codes"):
        ranker.with_codes(str(published.output.folder))
