import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llm4msr import evaluate, export, storage
from llm4msr.config import Config
from llm4msr.errors import ConfigError
from llm4msr.evaluate import compared, summarise, table
from llm4msr.export import exported
from tests.unit.helpers import config_of, prepare_and_make_knowledge, publish_trained, write_data


def metrics_of(auc: float | None, logloss: float = 0.5) -> dict[str, Any]:
    return {"auc": auc, "gauc": None if auc is None else auc - 0.1, "logloss": logloss, "rows": 10}


def report(overall: float, **scenarios: float | None) -> dict[str, Any]:
    return {"overall": metrics_of(overall), "scenarios": {name: metrics_of(auc) for name, auc in scenarios.items()}}


def test_summary_is_mean_and_deviation_over_seeds():
    found = summarise([report(0.6, home=0.7), report(0.8, home=0.7), report(0.7, home=0.4)])
    assert found["overall"]["auc"] == {"mean": pytest.approx(0.7), "std": pytest.approx(0.1)}
    assert found["overall"]["gauc"]["mean"] == pytest.approx(0.6)
    home = found["scenarios"]["home"]["auc"]
    assert home == {"mean": pytest.approx(0.6), "std": pytest.approx(np.std([0.7, 0.7, 0.4], ddof=1))}


def test_summary_of_one_seed_has_no_deviation():
    found = summarise([report(0.6, home=0.7)])
    assert found["overall"]["auc"] == {"mean": 0.6, "std": None}


def test_summary_leaves_undefined_metrics_out_of_the_mean():
    found = summarise([report(0.6, home=None, search=None), report(0.8, home=0.5, search=None)])
    assert found["scenarios"]["home"]["auc"] == {"mean": 0.5, "std": None}
    assert found["scenarios"]["search"]["auc"] == {"mean": None, "std": None}
    assert found["scenarios"]["search"]["logloss"]["mean"] == 0.5


def test_summary_covers_scenarios_that_some_seeds_lack():
    found = summarise([report(0.6, home=0.7), report(0.8, search=0.9)])
    assert found["scenarios"]["home"]["auc"]["mean"] == 0.7
    assert found["scenarios"]["search"]["auc"]["mean"] == 0.9


def test_table_of_one_seed():
    summary = {"none": summarise([report(0.6, home=0.7, search=None)]), "both": summarise([report(0.65, home=0.75)])}
    assert table("star", summary, 1) == (
        "| test rows of | none AUC | both AUC | none logloss | both logloss |\n"
        "| --- | ---: | ---: | ---: | ---: |\n"
        "| overall | 0.6000 | 0.6500 | 0.5000 | 0.5000 |\n"
        "| home | 0.7000 | 0.7500 | 0.5000 | 0.5000 |\n"
        "| search | – | – | 0.5000 | – |\n"
        "\n"
        "Backbone star, 1 seed: one seed, so differences below 0.005 say little. "
        "GAUC (mean AUC within a user): none 0.5000, both 0.5500.\n"
    )


def test_table_of_several_seeds_shows_deviations():
    text = table("mmoe", {"both": summarise([report(0.6, home=None), report(0.8, home=0.5)])}, 2)
    assert "| overall | 0.7000 ± 0.1414 | 0.5000 ± 0.0000 |" in text
    assert "| home | 0.5000 | 0.5000 ± 0.0000 |" in text
    assert "2 seeds: mean ± standard deviation over the seeds" in text


@pytest.mark.parametrize(
    ("model", "evaluate", "expected"),
    [
        ({}, {}, [("none", 1), ("both", 1)]),
        ({}, {"seeds": [3, 4]}, [("none", 3), ("none", 4), ("both", 3), ("both", 4)]),
        ({"knowledge": "none"}, {}, [("none", 1)]),
        ({"knowledge": "user"}, {"variants": ["shuffled", "user"]}, [("user-shuffled", 1), ("user", 1)]),
        ({"control": "random"}, {"variants": ["both", "none"]}, [("both", 1), ("none", 1), ("both-random", 1)]),
        ({}, {"variants": []}, [("both", 1)]),
    ],
)
def test_what_is_compared(tmp_path: Path, model: dict[str, Any], evaluate: dict[str, Any], expected: list[Any]):
    runs = compared(config_of(tmp_path, model=model, evaluate=evaluate))
    assert [(name, run.seed) for name, run in runs] == expected
    assert all(run.model.variant == name for name, run in runs)


def test_a_variant_that_is_named_twice_is_compared_once(tmp_path: Path):
    runs = compared(config_of(tmp_path, evaluate={"variants": ["none", "none"]}))
    assert [name for name, _ in runs] == ["none", "both"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Config:
    config = config_of(
        write_data(tmp_path_factory.mktemp("evaluate")), split={"by": "user"}, evaluate={"seeds": [1, 2]}
    )
    prepare_and_make_knowledge(config)
    for _, run in compared(config):
        publish_trained(run)
    return config


def test_evaluate_publishes_numbers_and_a_table(trained: Config):
    output = evaluate(trained)
    assert evaluate(trained).reused
    found = json.loads(storage.read_bytes(output.folder / "metrics.json"))
    assert list(found["runs"]) == ["none", "both"]
    assert [len(reports) for reports in found["runs"].values()] == [2, 2]
    for name, reports in found["runs"].items():
        aucs = [one["overall"]["auc"] for one in reports]
        assert min(aucs) > 0.7
        assert found["summary"][name]["overall"]["auc"]["mean"] == pytest.approx(np.mean(aucs))
        assert output.manifest.info["compared_auc"][name] == pytest.approx(np.mean(aucs))
    shown = output.summary()["metrics"]
    assert shown["on"] == "test"
    assert set(shown["scenarios"]) == {"home", "search"}
    assert set(shown["overall"]) == {"auc", "gauc", "logloss"}
    text = storage.read_bytes(output.folder / "table.md").decode()
    assert text == table("mmoe", found["summary"], 2)


def test_evaluate_names_the_model_that_is_not_trained(trained: Config):
    more = trained.model_copy(update={"evaluate": trained.evaluate.model_copy(update={"variants": ("user",)})})
    with pytest.raises(ConfigError, match=r"'user' with seed 1 is not trained yet; .*--set model\.knowledge=user"):
        evaluate(more)


def test_export_finds_what_it_published(trained: Config):
    plain = trained.using("none", 1)
    with pytest.raises(ConfigError, match="no bundle for this config yet; run `llm4msr export` first"):
        exported(plain)
    output = export(plain)
    assert exported(plain).folder == output.folder
    assert export(plain).reused
    card = storage.read_bytes(output.folder / "README.md").decode()
    assert card.startswith("# tiny: a multi-scenario ranker")
    assert "Backbone `mmoe`, knowledge `none`, seed 1" in card
    assert "- Frozen LLM: none." in card


def test_nobody_serves_a_control(trained: Config):
    with pytest.raises(ConfigError, match="'shuffled': wrong vectors are for measuring, not for serving"):
        export(trained.using("shuffled", 1))
