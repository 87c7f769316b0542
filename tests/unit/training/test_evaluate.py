import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llm4msr import storage
from llm4msr.config import Config
from llm4msr.errors import ConfigError
from llm4msr.pipeline import datasets, evaluate, export, prepare, run, trainings
from llm4msr.training import popularity
from llm4msr.training.evaluate import compared_runs
from llm4msr.training.metrics import METRICS, Sums
from llm4msr.training.popularity import Popularity
from llm4msr.training.table import markdown_table
from tests.support.data import (
    SCENARIOS,
    config_of,
    interactions,
    prepare_and_make_knowledge,
    prepared_table,
    publish_trained,
    write_data,
)
from tests.support.partitioned import in_partitions


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
    runs = compared_runs(config_of(tmp_path, model=model, evaluate=evaluate))
    assert [(name, run.seed) for name, run in runs] == expected
    assert all(run.model.variant == name for name, run in runs)


def test_a_variant_that_is_named_twice_is_compared_once(tmp_path: Path):
    runs = compared_runs(config_of(tmp_path, evaluate={"variants": ["none", "none"]}))
    assert [name for name, _ in runs] == ["none", "both"]


@pytest.mark.parametrize(
    ("split", "seeds", "prepared"),
    [
        ({"kind": "random"}, [2, 3], [2, 3, 1]),
        ({"kind": "random"}, [], [1]),
        ({"by": "user"}, [2, 3], [1]),
    ],
)
def test_a_run_has_the_data_of_each_seed_and_the_model_that_it_exports(
    tmp_path: Path, split: dict[str, Any], seeds: list[int], prepared: list[int]
):
    config = config_of(write_data(tmp_path), split=split, model={"knowledge": "none"}, evaluate={"seeds": seeds})
    assert [one.seed for one in datasets(config)] == prepared
    for one in datasets(config):
        prepare(one)
    for _, training in trainings(config):
        publish_trained(training)
    assert evaluate(config).manifest.info["metrics"]["overall"]["auc"] is not None
    assert export(config).manifest.seed == 1


def test_data_of_another_seed_says_how_to_prepare_it(tmp_path: Path):
    config = config_of(write_data(tmp_path), split={"kind": "random"}, model={"knowledge": "none"})
    prepare(config)
    with pytest.raises(ConfigError, match="run `llm4msr prepare` with --set seed=2 first"):
        evaluate(config.using("none", 2))


def test_a_control_is_refused_before_the_work(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"control = 'random': wrong vectors are for measuring"):
        run(config_of(tmp_path, model={"control": "random"}))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Config:
    config = config_of(
        write_data(tmp_path_factory.mktemp("evaluate")), split={"by": "user"}, evaluate={"seeds": [1, 2]}
    )
    prepare_and_make_knowledge(config)
    for _, training in compared_runs(config):
        publish_trained(training)
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
    assert [(one["scenario"], one["scenario_id"]) for one in shown["scenarios"]] == [(1, "home"), (2, "search")]
    assert set(shown["overall"]) == {*METRICS}
    assert all(0 < value <= 1 for value in shown["overall"].values())
    text = storage.read_bytes(output.folder / "table.md").decode()
    assert text == markdown_table("mmoe", found)
    assert 0 < found["test_rows_of_users_with_knowledge"] < found["test_rows"] == output.manifest.rows
    popular = output.summary()["baselines"]["popularity"]
    assert popular["auc"] > 0.7, "every other item is liked"
    assert output.summary()["warnings"] == found["warnings"]


def test_evaluate_names_the_model_that_is_not_trained(trained: Config):
    more = trained.model_copy(update={"evaluate": trained.evaluate.model_copy(update={"variants": ("user",)})})
    with pytest.raises(ConfigError, match=r"'user' with seed 1 is not trained yet; .*--set model\.knowledge=user"):
        evaluate(more)


def rows_of_users_who_come_and_go(users: int = 60) -> list[list[Any]]:
    """Twelve of each user, who likes more or less than others do; the last users come when the first have gone."""
    rng = np.random.default_rng(0)
    rows = [
        [f"u{user}", f"i{item}", SCENARIOS[item % 2], int(rng.random() < user % 4 / 5 + item / 60), 5 * user + at, "tv"]
        for user in range(users)
        for at, item in enumerate(rng.integers(0, 20, 12).tolist())
    ]
    return sorted(rows, key=lambda row: row[4])


def test_rows_of_users_whom_the_data_does_not_know_are_measured_user_by_user(tmp_path: Path):
    """A table of users gives them numbers of their own, and no feature that a model could tell them apart by."""
    reports, told_apart = [], []
    for users in ("users.csv", ""):
        folder = write_data(tmp_path / f"described-{bool(users)}", rows_of_users_who_come_and_go(), users=60)
        config = config_of(folder, table={"users": users, "user_features": []}, model={"knowledge": "none"})
        assert (prepared_table(prepare(config), "test")["user"].to_numpy() == 0).any() == (not users)
        found = publish_trained(config).manifest.info["metrics"], evaluate(config).json("metrics.json")
        assert all(found[1]["summary"]["none"]["overall"][metric]["mean"] for metric in METRICS)
        rows = evaluate(config).table("predictions/p=00000.parquet")
        told_apart.append((len(rows["person"].unique()), len(rows["user_id"].unique())))
        reports.append(found)
    assert reports[0] == reports[1]
    (people, ids), (strangers, few_ids) = told_apart
    assert people == ids == strangers > few_ids


def test_users_whom_the_data_does_not_know_are_told_apart_in_every_partition(tmp_path: Path):
    folder = write_data(tmp_path, rows_of_users_who_come_and_go(), users=60)
    config = config_of(folder, table={"users": "", "user_features": []}, model={"knowledge": "none"})
    data, names = prepare(config), ["", *SCENARIOS]
    _, several = in_partitions(config, data, 4, tmp_path / "several")
    counts, wanted = Popularity.read(data, len(names)), popularity.reports(data, "test", names)["popularity"]
    parts = [popularity.sums_of(several, "test", number, counts)["popularity"] for number in range(4)]
    found = Sums.add(parts).report(names)
    for metric in ("auc", "gauc", "ndcg_at_10", "recall_at_10"):
        assert found["overall"][metric] == pytest.approx(wanted["overall"][metric])
        assert [s[metric] for s in found["scenarios"]] == pytest.approx([s[metric] for s in wanted["scenarios"]])


def test_one_class_only_is_not_applicable_from_table_to_card(tmp_path: Path):
    rows = [[*row[:3], 1, *row[4:]] for row in interactions()]
    config = config_of(write_data(tmp_path, rows), split={"by": "user"}, model={"knowledge": "none"})
    prepare(config)
    publish_trained(config)
    output = evaluate(config)
    assert output.summary()["metrics"]["overall"]["auc"] is None
    text = storage.read_bytes(output.folder / "table.md").decode()
    assert f"| **all** | {output.manifest.rows} | n/a | n/a | n/a |" in text
    card = storage.read_bytes(export(config).folder / "README.md").decode()
    assert "On validation rows: AUC n/a, GAUC n/a, logloss 0." in card
    assert "popularity: AUC n/a, GAUC n/a, logloss n/a." in card


def test_a_model_that_loses_is_told_by_table_manifest_card_and_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    config = config_of(
        write_data(tmp_path), split={"by": "user"}, model={"knowledge": "none"}, train={"learning_rate": 1e-9}
    )
    prepare(config)
    trained = publish_trained(config)
    for _ in range(2):  # the second time it is found finished
        output = evaluate(config)
        told = capsys.readouterr().err
        (popular, constant) = output.summary()["warnings"]
        assert "'none' loses to item popularity within the scenario on the test rows: AUC 0." in popular
        assert "'none' loses to a constant on the test rows: " in constant
        assert f"warning: {popular}\n" in told
    assert f"**Warning**: {popular}" in storage.read_bytes(output.folder / "table.md").decode()
    on_valid = trained.manifest.info["warnings"]
    card = storage.read_bytes(export(config).folder / "README.md").decode()
    assert on_valid
    assert all(f"- **Warning**: {line}." in card for line in on_valid)


def test_hostile_names_keep_table_and_card_whole(tmp_path: Path):
    names = ["overall", "a|b", "**all**", "x\n| y | z", "<script>`q`</script>", "\x1b[2J\u202e", "none"]
    rows = [[*row[:2], names[at % 7], *row[3:]] for at, row in enumerate(interactions(rows_per_user=30))]
    rows += [[row[0], row[1], "late|\n=1+1", *row[3:4], 10_000 + at, row[5]] for at, row in enumerate(rows[:9])]
    config = config_of(write_data(tmp_path, rows), model={"knowledge": "none"})
    prepare(config)
    publish_trained(config)
    output = evaluate(config)
    lines = storage.read_bytes(output.folder / "table.md").decode().splitlines()
    table = lines[: lines.index("")]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in table} == {len(re.findall(r"\|", table[1]))}
    assert len(table) == 2 + 1 + len(names) + 1
    assert table[-1].startswith("| 0 | *(not in the training rows)* | 9 |")
    assert not {*"\x1b\u202e`<"} & {*"".join(table).replace("\\<", "").replace("\\`", "")}
    found = json.loads(storage.read_bytes(output.folder / "metrics.json"))
    places = found["summary"]["none"]["scenarios"]
    assert {place["scenario_id"] for place in places} == {*names, ""}
    assert places[-1]["scenario"] == 0
    assert sum(place["rows"] for place in places) == output.manifest.rows
    assert export(config).folder.exists()
