"""The baselines, each against a plain computation of the same number."""

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from sklearn.metrics import log_loss, roc_auc_score

from llm4msr import schema, storage
from llm4msr.storage import StageOutput
from llm4msr.training import popularity
from llm4msr.training.popularity import CONSTANT, POPULARITY, Popularity
from tests.support import data as helpers

NAMES = ["", "home", "search", "overall"]


def rows(count: int, seed: int, scenarios: int = 4) -> pd.DataFrame:
    """Items are liked the more, the lower their number; base rates differ by scenario; scenario 0 is unknown."""
    rng = np.random.default_rng(seed)
    item, scenario = rng.geometric(0.05, count).clip(0, 60), rng.integers(scenarios, size=count)
    label = rng.random(count) < 0.2 + 0.15 * scenario + 0.3 * (item < 10)
    columns = {"user": rng.integers(1, 30, count), "item": item, "scenario": scenario, "label": label.astype("float32")}
    return pd.DataFrame(columns | {"seen": 0, "event": 0})


def published(folder: Path, train: pd.DataFrame, test: pd.DataFrame, rows_per_group: int = 100) -> StageOutput:
    for name, frame in (("train", train), ("test", test)):
        table = pa.Table.from_pandas(frame, schema.INTERACTIONS, preserve_index=False)
        storage.write_table(storage.path(folder / f"{name}/p=00000.parquet"), table, rows_per_group)
    return helpers.published(folder, {"train/p=00000.parquet": len(train), "test/p=00000.parquet": len(test)})


@pytest.fixture
def train() -> pd.DataFrame:
    made = rows(2000, 0)
    return made[made["scenario"] > 0]


def slow_scores(train: pd.DataFrame, test: pd.DataFrame) -> np.ndarray:
    liked = train[train["label"] > 0.5]
    pairs, items = liked.groupby(["scenario", "item"]).size(), liked.groupby("item").size()
    everywhere = items.reindex(test["item"], fill_value=0).to_numpy()
    here = pairs.reindex(pd.MultiIndex.from_frame(test[["scenario", "item"]]), fill_value=0).to_numpy()
    here = np.where(test["scenario"] > 0, here, everywhere)
    return here + everywhere / (1 + items.max())


@pytest.mark.parametrize("pending", [1, 1 << 22])
def test_popularity_counts_positives_of_the_scenario_then_of_all(
    tmp_path: Path, train: pd.DataFrame, monkeypatch: pytest.MonkeyPatch, pending: int
):
    monkeypatch.setattr(popularity, "PENDING", pending)
    test = rows(500, 1)
    counts = Popularity.read(published(tmp_path, train, test), 4)
    found = counts.scores(test["scenario"].to_numpy(), test["item"].to_numpy())
    np.testing.assert_allclose(found, slow_scores(train, test), rtol=1e-12)


def test_unknown_items_tie_below_all_that_were_liked(tmp_path: Path, train: pd.DataFrame):
    counts = Popularity.read(published(tmp_path, train, train), 4)
    scores = counts.scores(np.array([1, 2, 0, 1]), np.array([1000, 2000, 0, 1]))
    assert scores[:2].tolist() == [0, 0]
    assert (scores[3:] > 0).all()
    assert (
        counts.scores(np.array([2]), np.array([1]))
        < counts.scores(np.array([0]), np.array([1]))
        < 1 + (train["label"][train["item"] == 1].sum())
    )


def test_the_reports_are_those_of_sklearn(tmp_path: Path, train: pd.DataFrame):
    test = rows(500, 1)
    found = popularity.reports(published(tmp_path, train, test), "test", NAMES)
    popular, constant = found[POPULARITY], found[CONSTANT]
    assert popular["overall"]["auc"] == pytest.approx(roc_auc_score(test["label"], slow_scores(train, test)))
    assert popular["overall"]["logloss"] is popular["overall"]["ece"] is None
    assert constant["overall"]["auc"] == constant["overall"]["gauc"] == 0.5
    rates = train.groupby("scenario")["label"].mean().to_dict() | {0: train["label"].mean()}
    likely = test["scenario"].map(rates)
    assert constant["overall"]["logloss"] == pytest.approx(log_loss(test["label"], likely), rel=1e-6)
    for place in constant["scenarios"]:
        here = test["scenario"] == place["scenario"]
        assert place["rows"] == here.sum()
        assert place["logloss"] == pytest.approx(log_loss(test["label"][here], likely[here]), rel=1e-6)
    assert [place["scenario_id"] for place in popular["scenarios"]] == NAMES


@pytest.mark.parametrize("label", [0.0, 1.0])
def test_one_class_only_has_no_auc_and_a_finite_logloss(tmp_path: Path, train: pd.DataFrame, label: float):
    train = train.assign(label=np.float32(label))
    found = popularity.reports(published(tmp_path, train, rows(300, 1)), "test", NAMES)
    assert np.isfinite(found[CONSTANT]["overall"]["logloss"])
    test = rows(300, 1).assign(label=np.float32(label))
    found = popularity.reports(published(tmp_path, train, test), "test", NAMES)
    assert found[POPULARITY]["overall"]["auc"] is None
    assert found[CONSTANT]["overall"]["gauc"] is None
    assert 0 < found[CONSTANT]["overall"]["logloss"] < 0.01


def metrics(auc: float | None, gauc: float | None, logloss: float | None) -> dict[str, float | None]:
    return {"auc": auc, "gauc": gauc, "logloss": logloss}


BESIDE = {POPULARITY: metrics(0.6, 0.55, None), CONSTANT: metrics(0.5, 0.5, 0.69)}


@pytest.mark.parametrize(
    ("model", "told"),
    [
        (metrics(0.7, 0.6, 0.6), []),
        (metrics(0.6, 0.55, 0.69), []),
        (metrics(0.59, 0.6, 0.6), ["popularity within the scenario on the test rows: AUC 0.5900 against 0.6000. "]),
        (metrics(0.7, 0.54, 0.6), ["popularity within the scenario on the test rows: GAUC 0.5400 against 0.5500. "]),
        (metrics(0.7, 0.6, 1.1), ["a constant on the test rows: logloss 1.1000 against 0.6900. "]),
        (
            metrics(0.4, 0.6, 1.1),
            ["popularity within", "a constant on the test rows: AUC 0.4000 against 0.5000, logloss 1.1"],
        ),
        (metrics(None, None, None), ["AUC n/a against 0.6000, GAUC n/a", "logloss n/a against 0.6900"]),
    ],
)
def test_a_model_that_loses_is_told_with_what_to_do(model: dict[str, float | None], told: list[str]):
    found = popularity.warnings("both", model, BESIDE, "test")
    assert len(found) == len(told)
    for line, part in zip(found, told, strict=True):
        assert line.startswith("'both' loses to ")
        assert part in line
        assert "train.learning_rate" in line


def test_nothing_is_lost_where_nothing_is_defined():
    assert (
        popularity.warnings("both", metrics(None, None, 0.1), {n: metrics(None, None, None) for n in BESIDE}, "") == []
    )
