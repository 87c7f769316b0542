"""A run whose users lie in several partitions, of which only some are held."""

import numpy as np
import pandas as pd
import pytest

from llm4msr.arrays import Singles
from llm4msr.config import Config
from llm4msr.data import partitions
from llm4msr.errors import ConfigError
from llm4msr.explain import finished_run
from llm4msr.explain.explorer.messages import RankingRequest
from llm4msr.explain.explorer.view import View
from llm4msr.explain.finished_run import FinishedRun
from llm4msr.explain.report.cases import case_section
from llm4msr.explain.report.rows import ScoredRows
from llm4msr.pipeline import trained
from llm4msr.training.trained import TrainedModel
from tests.support.data import hostile_config, publish_trained
from tests.support.partitioned import model_in_partitions

TOTAL = 4


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    config = hostile_config(tmp_path_factory.mktemp("partitions"), train={"epochs": 4})
    publish_trained(config)
    return config


@pytest.fixture(scope="module")
def model(config: Config, tmp_path_factory: pytest.TempPathFactory) -> TrainedModel:
    return model_in_partitions(trained(config), TOTAL, tmp_path_factory.mktemp("split"))


@pytest.fixture
def sampled(monkeypatch: pytest.MonkeyPatch, model: TrainedModel) -> FinishedRun:
    monkeypatch.setattr(finished_run, "SAMPLE_ROWS", 1)
    return open_run(model)


def open_run(model: TrainedModel) -> FinishedRun:
    return FinishedRun.open(model)


def users_elsewhere(run: FinishedRun) -> list[str]:
    everyone = partitions.read_each(run.prepared, "users", ["user_id"])
    return sorted({raw_id for table in everyone for raw_id in table["user_id"].to_pylist()} - {*run.users["user_id"]})


def test_all_partitions_of_a_small_run_are_held(config: Config, model: TrainedModel):
    whole, parts = open_run(trained(config)), open_run(model)
    assert list(parts.partitions) == [0, 1, 2, 3]
    assert whole.sample_note == parts.sample_note == ""
    ours, theirs = (run.users.set_index("user_id").sort_index() for run in (parts, whole))
    pd.testing.assert_frame_equal(ours, theirs)
    ids = whole.users["user_id"].to_numpy()
    for user in (1, 20, 40):
        (number,) = partitions.find_users(model.prepared, [ids[user]]).values()
        one, other = whole.codes(np.array([user])), parts.codes(np.array([number]))
        np.testing.assert_allclose(one, other, atol=1e-6)
        assert parts.user_texts(np.array([number]))[number] == whole.user_texts(np.array([user]))[user]


def test_a_sample_is_a_partition_at_least_and_says_so(sampled: FinishedRun):
    held = partitions.read(sampled.prepared, "users", 0, ["user_id"])["user_id"].to_pylist()
    assert sampled.users["user_id"].tolist() == held
    assert sampled.sample_note == (
        f"{len(held) - 1} of 60 users with all their rows: those of 1 of 4 partitions, into which a hash of the id "
        "puts users at random"
    )


def test_a_named_user_outside_the_sample_is_explained_as_in_the_whole(
    config: Config, model: TrainedModel, sampled: FinishedRun
):
    named = users_elsewhere(sampled)[:3]
    explained = config.explain.model_copy(update={"users": tuple(named)})
    found = []
    for run in (sampled, open_run(trained(config))):
        run.config = run.config.model_copy(update={"explain": explained})
        found.append([case for case in case_section(run, NOTHING, None).cases if case.kind == "asked for"])
    for ours, theirs in zip(*found, strict=True):
        assert ours.user_id == theirs.user_id in named
        assert (ours.rows, ours.known, ours.scenario) == (theirs.rows, theirs.known, theirs.scenario)
        assert (ours.history, ours.prompt, ours.answer) == (theirs.history, theirs.prompt, theirs.answer)
        columns = ["item_id", "logit_model", "test_label"]
        one, other = (case.ranked[columns].set_index("item_id") for case in (ours, theirs))
        both = one.index.intersection(other.index)
        assert len(both) > 10
        pd.testing.assert_frame_equal(one.loc[both], other.loc[both], atol=1e-5)


NOBODY = np.zeros(0, np.int64)
NOTHING = ScoredRows(
    1, NOBODY, NOBODY, NOBODY, NOBODY > 0, NOBODY + 0.0, NOBODY, NOBODY, NOBODY > 0, {"both": NOBODY + 0.0}
)
"""No test rows, so that no user is chosen."""


def never(prompt: str) -> Singles:
    raise AssertionError(prompt)


def test_the_explorer_finds_users_of_other_partitions(config: Config, model: TrainedModel, sampled: FinishedRun):
    ours, theirs = View(model, None, never), View(trained(config), None, never)
    assert len(ours.run.partitions) == 1
    for user_id in users_elsewhere(sampled)[:4]:
        assert user_id in [user.user_id for user in ours.search.users(user_id)]
        assert ours.user(user_id) == theirs.user(user_id)
        request = RankingRequest(user_id=user_id, scenario=ours.scenarios[0])
        lines, expected = ({line.title: line.score_with for line in v.rank(request).lines} for v in (ours, theirs))
        for title in lines.keys() & expected.keys():
            assert lines[title] == pytest.approx(expected[title], abs=1e-5)
        assert len(lines.keys() & expected.keys()) > 5
    assert len(ours.search.users("")) == 20
    assert ours.search.users("nobody begins so") == []
    with pytest.raises(ConfigError, match="no user 'nobody'"):
        ours.user("nobody")


def test_the_search_of_one_partition_shows_the_most_active_first(config: Config):
    view = View(trained(config), None, never)
    rows = [user.rows for user in view.search.users("")]
    assert rows == sorted(view.run.users["rows"].iloc[1:], reverse=True)[:20]
    assert {user.user_id for user in view.search.users("1")} <= {*view.run.users["user_id"]}
