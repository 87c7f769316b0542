"""A model that matches pasts, trained on rows in which what a user takes next follows from what they took before."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llm4msr.config import Config
from llm4msr.knowledge.item_vectors import of_unit_length
from llm4msr.knowledge.store import KnowledgeStore
from llm4msr.pipeline import prepare
from llm4msr.training.checkpoint import Checkpoint
from llm4msr.training.dataset import Dataset, scenario_names
from llm4msr.training.feature_tables import FeatureTables
from llm4msr.training.loop import fit
from llm4msr.training.pasts import Pasts
from tests.support.data import SCENARIOS, config_of, write_data

USERS, ITEMS, TASTES = 60, 30, 3
VECTORS = ("candidate", "cosines", "attention")


def config(folder: Path, **model: Any) -> Config:
    """Every user likes a third of the items; nothing but the past tells which."""
    rng, rows = np.random.default_rng(1), []
    for user in range(USERS):
        for at, item in enumerate(rng.choice(ITEMS, 20, replace=False)):
            liked = (item % TASTES == user % TASTES) != (rng.random() < 0.05)
            rows.append([f"u{user}", f"i{item}", SCENARIOS[at % 2], int(liked), at, "tv"])
    write_data(folder, rows, items=ITEMS, users=USERS)
    return config_of(
        folder,
        split={"by": "user"},
        table={"user_features": [], "users": ""},
        extract={"reads": "items"},
        model={"backbone": "shared_bottom", "user_embedding": "none", "knowledge": "none", "dropout": 0.0} | model,
        train={"epochs": 10, "patience": 10, "precision": "float32"},
    )


def dataset(config: Config) -> Dataset:
    """Items' vectors tell their third, and a little noise."""
    prepared = prepare(config)
    raw_ids, rng = prepared.table("items.parquet", ["item_id"])["item_id"].to_pylist(), np.random.default_rng(2)
    items_ID = 0.2 * rng.standard_normal((len(raw_ids), 8))
    for number, raw_id in enumerate(raw_ids):
        items_ID[number, int(raw_id.removeprefix("i") or 0) % TASTES] += float(number > 0)
    items_ID[0] = 0
    users = np.zeros((prepared.manifest.info["users"], 4), np.float16)
    scenarios = np.zeros((prepared.manifest.info["scenarios"], 4), np.float16)
    store = KnowledgeStore.in_memory(users, np.arange(len(users)) > 0, scenarios)
    store.items_ID = of_unit_length(items_ID.astype(np.float16))
    store = store.with_control(config.model.control, config.seed)
    pasts = Pasts(prepared, config.model.past_events, config.model.past == "fresh") if config.model.match else None
    return Dataset(prepared, FeatureTables.open(prepared, config.model), scenario_names(prepared), store, pasts)


def trained(config: Config) -> Checkpoint:
    return fit(config, dataset(config))


def valid_auc(config: Config) -> float:
    auc = trained(config).progress.best_auc
    assert auc is not None
    return auc


def test_the_past_tells_what_a_plain_model_and_wrong_vectors_do_not(tmp_path: Path):
    plain, match, din, random = (
        valid_auc(config(tmp_path / name, **changes))
        for name, changes in {
            "plain": {},
            "match": {"match": VECTORS},
            "din": {"match": ("ids",)},
            "random": {"match": VECTORS, "control": "random"},
        }.items()
    )
    assert plain < 0.6
    assert min(match, din) > 0.9
    assert match > random + 0.1


@pytest.mark.parametrize("control", ["shuffled", "random"])
def test_wrong_item_vectors_follow_the_seed_and_leave_unknown_items_without_one(tmp_path: Path, control: str):
    right = dataset(config(tmp_path)).knowledge
    assert right is not None
    items_ID = right.items_ID
    assert items_ID is not None
    items_ID[3] = 0
    one, same, other = (right.with_control(control, seed).items_ID for seed in (1, 1, 2))
    assert one is not None
    assert other is not None
    np.testing.assert_array_equal(one, same)
    assert (one != other).any()
    assert not one[[0, 3]].any()
    assert (one[1:] != items_ID[1:]).any(1).mean() > 0.8
    lengths = np.linalg.norm(one.astype(np.float32), axis=1)
    np.testing.assert_allclose(lengths, [0.0 if at in (0, 3) else 1.0 for at in range(len(one))], atol=2e-3)
    if control == "shuffled":
        assert sorted(map(tuple, one.tolist())) == sorted(map(tuple, items_ID.tolist()))


def test_a_training_can_go_on_where_it_was_left(tmp_path: Path):
    wanted = config(tmp_path, match=(*VECTORS, "ids"))
    whole = trained(wanted)
    short = wanted.model_copy(update={"train": wanted.train.model_copy(update={"epochs": 4})})
    rest = fit(wanted, dataset(wanted), fit(short, dataset(short)))
    assert [epoch["valid_auc"] for epoch in rest.progress.history] == [
        epoch["valid_auc"] for epoch in whole.progress.history
    ]


def test_sparse_gradients_reach_the_embeddings_of_the_past(tmp_path: Path):
    wanted = config(tmp_path, match=("ids",))
    sparse = wanted.model_copy(update={"train": wanted.train.model_copy(update={"sparse": True})})
    assert valid_auc(sparse) > 0.65
