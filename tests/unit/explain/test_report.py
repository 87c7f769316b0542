"""The stage `explain`: what it publishes and for which models, and that its numbers are those of the models."""

import html
import io
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch

from llm4msr import Ranker, RankRequest, storage
from llm4msr.config import Config
from llm4msr.errors import ConfigError
from llm4msr.explain.finished_run import FinishedRun, batch_of
from llm4msr.explain.report import bootstrap
from llm4msr.explain.report.cases import Case, case_section
from llm4msr.explain.report.rows import read_rows
from llm4msr.explain.stage import REPORT
from llm4msr.export import user_codes
from llm4msr.export.write import Sources, write_bundle
from llm4msr.knowledge.rows import read_texts, read_vectors, row_groups
from llm4msr.knowledge.store import KnowledgeStore
from llm4msr.pipeline import evaluate, explain, extracted, prepare, trained
from llm4msr.storage import StageOutput
from llm4msr.training.dataset import Dataset
from llm4msr.training.metrics import auc
from llm4msr.training.results import UNKNOWN
from tests.support.data import (
    HOSTILE,
    config_of,
    hostile_config,
    interactions,
    prepare_and_make_knowledge,
    publish_trained,
    write_data,
)
from tests.support.versions import make_version, with_extract

Report = tuple[Config, StageOutput]


def csv_of(output: StageOutput, name: str) -> pd.DataFrame:
    return pd.read_csv(io.BytesIO(storage.read_bytes(output.folder / name)), dtype={"user_id": str})


def html_of(output: StageOutput) -> str:
    return storage.read_bytes(output.folder / REPORT).decode()


def cases_of(config: Config, run: FinishedRun | None = None) -> dict[str, Case]:
    """The explanations of users, of the config's own seed."""
    own, plain = trained(config), trained(config.using("none", config.seed))
    run = run or FinishedRun.open(own)
    rows = read_rows(evaluate(config), [own, plain], run.partitions)
    return {case.kind: case for case in case_section(run, rows[0], plain).cases}


def test_it_publishes_a_page_and_the_data_beneath(report: Report):
    config, output = report
    assert output.manifest.stage == "explain"
    assert set(output.manifest.files) == {
        *(REPORT, "rivals.csv", "gains.csv", "curves.csv", "calibration.csv", "scenarios.csv", "similarity.csv"),
        *("users.parquet", "groups.csv", "rankings.csv"),
    }
    assert output.manifest.files[REPORT].bytes < 1e6
    assert set(output.manifest.info["users"]) == {"gains most", "loses most", "typical", "new"}
    assert explain(config).reused
    for name in output.manifest.files:
        assert f'href="{name}"' in html_of(output) or name == REPORT


def test_what_is_shown_is_what_serving_answers(report: Report, tmp_path: Path):
    config, output = report
    run = FinishedRun.open(trained(config))
    parts = pa.concat_tables([read_vectors(group) for group in row_groups(run.extracted)])
    encoded = [user_codes.encode(parts, run.net.user_code)]  # what `export` does on Ray

    def build(folder: Any) -> storage.StageResult:
        return write_bundle(Sources(config, run.net, run.data, encoded), folder, {}, "")

    served = storage.publish(storage.path(tmp_path / "bundle"), "export", 1, {}, {}, build)
    ranker = Ranker.load(str(served.folder))
    for (user, scenario), rows in csv_of(output, "rankings.csv").groupby(["user", "scenario"]):
        raw, name = run.users["user_id"][user], run.scenario_names[scenario]
        request = RankRequest(user_id=raw, scenario=name, items=rows["item_id"].tolist(), top_k=len(rows))
        answer = ranker.rank(request)
        assert not answer.unknown.user
        assert not answer.unknown.scenario
        scores = {one.item_id: one.score for one in answer.ranked}
        for row in rows.itertuples():
            assert scores[row.item_id] == pytest.approx(1 / (1 + math.exp(-row.logit_model)), abs=1e-4)


def test_the_gain_is_that_of_what_evaluate_published(report: Report):
    config, output = report
    published = storage.read_table(evaluate(config).folder / "predictions/p=00000.parquet").to_pandas()
    rivals = csv_of(output, "rivals.csv").set_index("name")
    assert list(rivals.index) == ["none", "popularity"]
    plain = rivals.loc["none"]
    assert plain["auc_model"] == pytest.approx(auc(published["label"], published["both-1"]))
    assert plain["auc_other"] == pytest.approx(auc(published["label"], published["none-1"]))
    assert plain["auc_gain"] == pytest.approx(plain["auc_model"] - plain["auc_other"])
    assert plain["auc_gain_low"] < plain["auc_gain"] < plain["auc_gain_high"]
    groups = csv_of(output, "gains.csv")
    assert (groups.groupby("kind")["rows"].sum() == len(published)).all()
    assert set(groups["kind"]) == {"scenario", "user", "item", "met"}


def test_the_gain_is_that_of_all_test_rows_where_intervals_are_from_some(
    report: Report, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(bootstrap, "MAX_ROWS", 50)
    config = report[0].model_copy(update={"name": "drawn"})
    output = explain(config)
    results = evaluate(config).json("metrics.json")
    means = {name: one["overall"]["auc"]["mean"] for name, one in results["summary"].items()}
    rivals = csv_of(output, "rivals.csv").set_index("name")
    assert 50 <= rivals["rows"].max() < results["test_rows"] / 2
    for name, rival in rivals.iterrows():
        assert rival["auc_model"] == pytest.approx(means["both"])
        assert rival["auc_other"] == pytest.approx(means[name])
        assert rival["auc_gain"] == pytest.approx(means["both"] - means[name])
        for part in ("auc_model", "auc_other", "auc_gain"):
            assert rival[f"{part}_low"] < rival[part] < rival[f"{part}_high"]
    gain = results["against_none"]["both"]["auc"]["mean"]
    info = output.manifest.info
    assert info["interval"][0] == pytest.approx(gain)
    assert f"{abs(gain):.4f}" in info["verdict"]
    assert " ".join([info["verdict"], *info["limits"]]) in capsys.readouterr().err
    page = words_of(output)
    assert f"{rivals['rows'].max():,} of {results['test_rows']:,} test rows" in page
    assert "the numbers are of all test rows, and the intervals around them as wide as those of the rows drawn" in page


def test_groups_of_rows_are_by_what_training_has_of_user_item_and_scenario(report: Report):
    config, output = report
    data = trained(config).prepared
    train, test = (
        storage.read_table(data.folder / f"{part}/p=00000.parquet").to_pandas() for part in ("train", "test")
    )
    rows = csv_of(output, "gains.csv").set_index(["kind", "name"])["rows"]
    met = {*zip(train["user"], train["scenario"], strict=True)}
    new = sum(pair not in met for pair in zip(test["user"], test["scenario"], strict=True))
    assert rows["met", "no training row of the user in the scenario"] == new > 0
    likes = train[train["label"] > 0.5]["item"].value_counts().reindex(test["item"], fill_value=0)
    few = int(likes.quantile(0.25))
    assert rows["item", f"{few} likes in training or fewer"] == (likes <= few).sum()
    mine = train["user"].value_counts().reindex(test["user"], fill_value=0)
    of_users = rows["user"]
    assert of_users.get("under 5 training rows", 0) == (mine < 5).sum()


def test_the_metrics_are_those_of_evaluate(report: Report):
    config, output = report
    table = json.loads(storage.read_bytes(evaluate(config).folder / "metrics.json"))
    page = words_of(output)
    for name in ("constant", "popularity", "none", "both"):
        for metric in ("auc", "gauc", "ndcg_at_10", "recall_at_10"):
            assert f"{table['summary'][name]['overall'][metric]['mean']:.4f}" in page
    assert output.manifest.info["metrics"]["overall"]["auc"] == table["summary"]["both"]["overall"]["auc"]["mean"]
    assert output.manifest.info["baselines"]["none"]["gauc"] == table["summary"]["none"]["overall"]["gauc"]["mean"]


def test_learning_curves_are_those_of_the_trainings(report: Report):
    config, output = report
    curves = csv_of(output, "curves.csv").set_index("model")
    for run in (config, config.using("none", 1)):
        model = trained(run)
        info, mine = model.output.manifest.info, curves.loc[model.variant]
        assert mine["epoch"].tolist() == list(range(1, info["epochs"] + 1))
        best = mine[mine["epoch"] == info["best_epoch"]]["valid_auc"].item()
        assert best == pytest.approx(info["metrics"]["overall"]["auc"])


def test_the_cost_of_the_llm_stands_against_the_gain(report: Report):
    config, output = report
    page, seconds = words_of(output), extracted(config).manifest.seconds
    assert re.search(f"Extraction took {seconds:,.0f} s, (and no gain is claimed|once and before serving)", page)
    assert ">25,000</bdi>" in html_of(output)


CLAIMS = re.compile(
    r"\b(raise[sd]?|lower(s|ed)?|improve[sd]?|help(s|ed|ful)?|harm(s|ed)?|hurts?|better|worse|gains?|benefits?)\b", re.I
)


def test_nothing_is_claimed_without_a_plain_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    config = hostile_config(tmp_path, evaluate={"variants": []})
    publish_trained(config)
    output = explain(config)
    printed, page = capsys.readouterr().err, words_of(output)
    verdict = output.manifest.info["verdict"]
    assert verdict.startswith("No claim: the plain model (none), with the same backbone and seeds, is not among")
    for text in (page, printed):
        assert 'Add "none" to evaluate.variants' in text
    assert output.manifest.info["against_none"] is None
    assert output.manifest.info["interval"] is None
    assert "Gain over the plain model n/a" in page
    assert "the plain model not trained" in page
    assert "no gain is claimed for it" in page
    assert "Ranked by the plain model" not in page
    assert csv_of(output, "gains.csv")[["auc_other", "auc_gain"]].isna().all(axis=None)
    claims = {match[0].lower() for match in CLAIMS.finditer(page)}
    assert claims <= {"gain", "gains"}, "as headings of what there is none of"

    with_plain = config.model_copy(update={"evaluate": config.evaluate.model_copy(update={"variants": ("none",)})})
    with pytest.raises(ConfigError, match="'none' with seed 1 is not trained yet"):
        explain(with_plain)
    publish_trained(config.using("none", 1))
    after = explain(with_plain)
    assert after.folder != output.folder
    value, low, high = after.manifest.info["interval"]
    page, verdict = words_of(after), after.manifest.info["verdict"]
    assert ("No claim" in verdict) == (low <= 0 <= high)
    assert f"{abs(value):.4f}" in verdict
    assert verdict in page
    rows = after.manifest.rows
    assert f"Test rows of users with knowledge 100% {rows:,} of {rows:,}" in page
    assert "One seed was trained, and another may move AUC as far" in page


def test_scenarios_of_any_name_and_those_of_test_rows_alone_have_their_own_rows(tmp_path: Path):
    names = ["all test rows", "all scenarios", "unknown", "(not in the training rows)", "overall", "a|b\n=c"]
    rows = [[*row[:2], names[at % 6], *row[3:]] for at, row in enumerate(interactions(rows_per_user=30))]
    rows += [[row[0], row[1], f"late {at % 2}", row[3], 10_000 + at, row[5]] for at, row in enumerate(rows[:40])]
    config = config_of(write_data(tmp_path, rows))
    data, _ = prepare_and_make_knowledge(config)
    for run in (config, config.using("none", 1)):
        publish_trained(run)
    output = explain(config)
    test = storage.read_table(data.folder / "test/p=00000.parquet")["scenario"].to_numpy()
    assert (test == 0).sum() == 40
    table = csv_of(output, "gains.csv")
    numbers = table["scenario"].dropna().astype(int).tolist()
    assert numbers == np.unique(test).tolist()
    counts = table[table["kind"] == "scenario"].set_index("scenario")["rows"]
    assert counts.to_dict() == {number: int((test == number).sum()) for number in numbers}
    assert table.set_index("scenario").loc[0, "name"] == UNKNOWN
    page = html_of(output)
    assert page.count("<em>(not in the training rows)</em>") == 1
    for name in names[:5]:
        assert f"<bdi>{name}</bdi>" in page


def test_one_class_only_is_explained_without_numbers(tmp_path: Path):
    rows = [[*row[:3], 1, *row[4:]] for row in interactions()]
    config = config_of(write_data(tmp_path, rows), split={"by": "user"})
    prepare_and_make_knowledge(config)
    for run in (config, config.using("none", 1)):
        publish_trained(run)
    output = explain(config)
    assert output.manifest.info["verdict"].startswith("No claim: the test rows are of one class only")
    assert output.manifest.info["metrics"]["overall"]["auc"] is None
    assert ">nan" not in html_of(output)


def words_of(output: StageOutput) -> str:
    """What a reader of the page sees of our own words: without names, texts and style."""
    body = re.sub(r"<(style|bdi|title)\b.*?</\1>", " ", html_of(output), flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", body)).split())


def with_vectors(run: FinishedRun, changed: list[int]) -> FinishedRun:
    """The same run, but for the vectors of these users."""
    store = run.data.knowledge
    assert store is not None
    vectors, known = (tensor.numpy() for tensor in store.lookup(torch.arange(len(store.users.known))))
    vectors[changed] += 1
    run.data.knowledge = KnowledgeStore.in_memory(vectors, known, store.scenarios_SZ)
    return run


def test_a_list_changes_when_and_only_when_what_is_known_of_the_user_does(report: Report):
    config = report[0]
    before = cases_of(config)
    users = {case.user for case in before.values()}
    others = [user for user in range(1, 61) if user not in users]
    kept = [case_at(config, others, case) for case in before.values()]
    for old, new in zip(before.values(), kept, strict=True):
        pd.testing.assert_frame_equal(old.ranked, new.ranked)
        assert (old.prompt, old.answer, old.history) == (new.prompt, new.answer, new.history)
    for old in before.values():
        new = case_at(config, [old.user], old)
        by_item = new.ranked.set_index("item_id").loc[old.ranked["item_id"]].reset_index()
        assert (by_item["logit_model"] != old.ranked["logit_model"]).all()
        pd.testing.assert_series_equal(by_item["logit_plain"], old.ranked["logit_plain"])


def case_at(config: Config, changed: list[int], like: Case) -> Case:
    """The explanation of the same user, whoever would be chosen now, with other vectors of the changed users."""
    named = config.model_copy(update={"explain": config.explain.model_copy(update={"users": (like.user_id,)})})
    return cases_of(config, with_vectors(FinishedRun.open(trained(named)), changed))["asked for"]


def test_lists_mark_what_was_held_out_and_show_it_wherever_it_stands(report: Report):
    config, output = report
    page = html_of(output)
    cases = cases_of(config)
    for case in cases.values():
        liked = case.ranked[case.ranked["test_label"] > 0.5]
        test = storage.read_table(trained(config).prepared.folder / "test/p=00000.parquet").to_pandas()
        own = test[(test["user"] == case.user) & (test["scenario"] == case.scenario) & (test["label"] > 0.5)]
        assert len(liked) == own["item"].nunique()
        for rank, shown in (("rank_plain", case.plain), ("rank_model", case.own)):
            assert shown[rank].is_monotonic_increasing
            top = shown[shown[rank] <= 10]
            assert top[rank].tolist() == list(range(1, 11))
            below = liked[liked[rank] > 10].sort_values(rank)["item_id"].head(3)
            assert shown["item_id"].iloc[10:].tolist() == below.tolist()
    marked = sum((rows["test_label"] > 0.5).sum() for case in cases.values() for rows in (case.plain, case.own))
    assert page.count("held out: liked</span>") == marked > 0


def test_hostile_texts_are_escaped_wherever_they_stand(report: Report):
    page = html_of(report[1])
    body = page[page.index("<body") :]
    for tag in ("<script", "<img", "onload=window.hacked=true>", "<b>bold", "</style></title>"):
        assert tag not in body
    assert page.count("<script") == 0
    assert "&lt;script&gt;window.hacked" in page
    assert "&#34;&gt;&lt;svg onload" in page
    assert "{{ 7 * 7 }}" in page
    assert not re.search("[\u202a-\u202e\u2066-\u2069]", page)
    assert "verylongword" * 340 not in page, "a long text is cut"
    assert "مرحبا" in page
    assert not re.search(r'(href|src)="(?!#|[a-z]+\.(csv|parquet)")', page), "nothing leads away from the page"
    assert "url(" not in page
    assert "@import" not in page


def test_a_spreadsheet_runs_no_cell(report: Report):
    for name in report[1].manifest.files:
        if name.endswith(".csv"):
            cells = csv_of(report[1], name).select_dtypes(["object", "string"]).stack()
            assert not cells.astype(str).str.match(r"[=+@\t\r]|-\D").any()


def test_an_answer_and_a_prompt_are_those_of_the_user(report: Report):
    config, _ = report
    texts = {row["raw_id"]: row for row in read_texts(extracted(config), "users")}
    for case in cases_of(config).values():
        assert (case.prompt, case.answer) == (texts[case.user_id]["prompt"], texts[case.user_id]["answer"])
        assert any(HOSTILE[i] in case.answer for i in range(10))


def test_the_groups_are_those_that_were_planted(report: Report):
    output = report[1]
    points = storage.read_table(output.folder / "users.parquet").to_pandas()
    taste = points["user_id"].str.split().str[0].astype(int) % 3
    assert len(points) == 60
    assert pd.crosstab(points["group"], taste).max(axis=1).sum() >= 0.85 * len(points)


@pytest.mark.parametrize("level", ["user", "scenario", "feature"])
def test_models_of_one_level(report: Report, level: str):
    config = report[0]
    one = config.model_copy(update={"model": config.model.model_copy(update={"knowledge": level})})
    with pytest.raises(ConfigError, match="is not trained yet"):
        explain(one)
    publish_trained(one)
    output = explain(one)
    assert ("users.parquet" in output.manifest.files) == (level != "scenario")
    assert ("so there is no map of them" in html_of(output)) == (level == "scenario")
    assert list(csv_of(output, "rivals.csv")["name"]) == ["none", "popularity"]


def test_attention_over_ids_is_reported_without_any_llm(tmp_path: Path):
    model = {"knowledge": "none", "match": ["ids"]}
    config = config_of(write_data(tmp_path), model=model, table={"context": []}, split={"by": "user"})
    prepare(config)
    for run in (config, config.using("none", 1)):
        publish_trained(run)
    output = explain(config)
    page = words_of(output)
    assert "This model reads no codes of users" in page
    assert "so no LLM was asked" in page
    assert "What the LLM made of it" not in page
    assert "users.parquet" not in output.manifest.files
    assert list(csv_of(output, "rivals.csv")["name"]) == ["none", "popularity"]
    check_that_lists_are_what_was_evaluated(config, output)


def test_models_that_match_vectors_are_reported_though_they_have_no_codes(tmp_path: Path):
    match = {"knowledge": "none", "match": ["candidate", "cosines", "attention"]}
    sections: dict[str, Any] = {"model": match, "extract": {"reads": "items"}, "split": {"by": "user"}}
    config = config_of(write_data(tmp_path), table={"context": []}, **sections)
    prepare_and_make_knowledge(config)
    for run in (config, config.using("none", 1)):
        publish_trained(run)
    output = explain(config)
    page = words_of(output)
    assert "so there is no map of them" in page
    assert "users.parquet" not in output.manifest.files
    check_that_lists_are_what_was_evaluated(config, output)


@pytest.mark.parametrize("past", ["fresh", "stale"])
def test_a_list_is_made_from_the_snapshot_that_test_rows_were_shown(tmp_path: Path, past: str):
    config = config_of(write_data(tmp_path), split={"by": "user"}, model={"past": past})
    config, data = with_extract(config, snapshots=3), prepare(config)
    version = make_version((config, data, data), tmp_path / "versions", "one", 1)
    dataset = Dataset.open(config, data, version)
    net = dataset.new_net(config)
    for rows in dataset.rows("test").in_file_order(1):
        assert rows.event_B is not None
        user, scenario, event = (int(column_1) for column_1 in (rows.user_B, rows.scenario_B, rows.event_B))
        shown, listed = dataset.batch(rows, net), batch_of(dataset, net, user, rows.item_B.numpy(), scenario, event)
        assert torch.equal(shown.z_NZ, listed.z_NZ)
        assert torch.equal(shown.known_N, listed.known_N)


def check_that_lists_are_what_was_evaluated(config: Config, output: StageOutput) -> None:
    """A held-out item has the score that `evaluate` gave it: no test row is in the past that it is matched with.

    That is so of a user's first test row, where rows have no context.
    """
    data = trained(config).prepared
    test = storage.read_table(data.folder / "test/p=00000.parquet").to_pandas()
    scores = storage.read_table(evaluate(config).folder / "predictions/p=00000.parquet")[f"{config.model.variant}-1"]
    test["logit"] = scores.to_numpy()
    rankings = csv_of(output, "rankings.csv").merge(data.table("items.parquet").to_pandas()[["item_id", "item"]])
    held = rankings.merge(
        test.sort_values("event").drop_duplicates(["user", "scenario"]), on=["user", "scenario", "item"]
    )
    assert len(held) >= 3
    np.testing.assert_allclose(held["logit_model"], held["logit"], atol=1e-4)


def test_a_model_without_knowledge_has_nothing_to_explain(report: Report):
    with pytest.raises(ConfigError, match=r"model\.knowledge = 'none': nothing to explain"):
        explain(report[0].using("none", 1))


def test_a_control_is_called_one(report: Report):
    control = report[0].using("shuffled", 1)
    publish_trained(control)
    page = html_of(explain(control))
    assert "This model is a control: its vectors are shuffled" in page
    assert "Without random vectors beside it" in page


def test_seeds_with_rows_of_their_own_are_compared_on_their_own(tmp_path: Path):
    data = write_data(tmp_path)
    config = config_of(data, split={"kind": "random"}, evaluate={"seeds": [5, 1]}, train={"epochs": 1})
    for seed in (1, 5):
        run = config.model_copy(update={"seed": seed})
        prepare_and_make_knowledge(run)
        for one in (run, run.using("none", seed)):
            publish_trained(one)
    output = explain(config)
    table = json.loads(storage.read_bytes(evaluate(config).folder / "metrics.json"))
    plain = csv_of(output, "rivals.csv").set_index("name").loc["none"]
    assert plain["auc_gain"] == pytest.approx(table["against_none"]["both"]["auc"]["mean"])
    assert "<dd><bdi>1, 5</bdi></dd>" in html_of(output)


def test_several_seeds_and_a_user_whom_nobody_knows(tmp_path: Path):
    config = hostile_config(tmp_path, evaluate={"seeds": [1, 2]})
    for seed in (1, 2):
        for run in (config.model_copy(update={"seed": seed}), config.using("none", seed)):
            publish_trained(run)
    page = html_of(explain(config))
    assert "means over 2 seeds" in page
    assert "drawing users and seeds again" in page
    assert "One seed was trained" not in page
    named = config.model_copy(update={"explain": config.explain.model_copy(update={"users": ("nobody",)})})
    with pytest.raises(ConfigError, match=r"explain\.users: no user 'nobody'"):
        explain(named)
    assert explain(config).reused, "what failed left nothing behind"


def test_users_pooled_from_items_have_no_prompt_and_are_explained_all_the_same(tmp_path: Path):
    config = hostile_config(tmp_path, extract={"reads": "items"})
    store = extracted(config)
    for name in store.manifest.files:  # as a pool writes them: no prompt, no answer
        if "users" in name:
            table = storage.read_table(store.folder / name)
            blank = pa.array([""] * len(table))
            for column in ("prompt", "answer"):
                table = table.set_column(table.column_names.index(column), column, blank)
            store.manifest.files[name] = storage.write_table(store.folder / name, table)
    storage.write_bytes(store.folder / "manifest.json", store.manifest.model_dump_json().encode())
    for run in (config, config.using("none", 1)):
        publish_trained(run)
    page = html_of(explain(config))
    assert "each item once; users are pooled from items" in page
    assert "<summary>The prompt" not in page


def test_counts_of_words_that_are_trained_are_a_rival_without_being_asked_for(tmp_path: Path):
    config = hostile_config(tmp_path, extract={"reads": "items"}, evaluate={"variants": ["none"], "seeds": [1, 2]})
    runs = [run.model_copy(update={"seed": seed}) for run in (config.using("none", 1), config) for seed in (1, 2)]
    for run in runs:
        publish_trained(run)
    assert "words" not in " ".join(evaluate(config).json("metrics.json")["runs"])

    change = {"reads": "items", "item_vectors": "words"}
    words = config.model_copy(update={"extract": config.extract.model_copy(update=change)})
    prepare_and_make_knowledge(words)
    publish_trained(words)
    assert "words" not in " ".join(evaluate(config).json("metrics.json")["runs"]), "of one seed of two"
    publish_trained(words.model_copy(update={"seed": 2}))

    table = evaluate(config)
    assert [*table.json("metrics.json")["runs"]] == ["none", "both-words", "both"]
    assert "both-words AUC" in table.read("table.md").decode()
    output = explain(config)
    rivals = csv_of(output, "rivals.csv").set_index("name")
    assert [*rivals.index] == ["none", "both-words", "popularity"]
    own = {
        name: sum(auc(*columns_of(table, f"{name}-{seed}")) for seed in (1, 2)) / 2 for name in ("both", "both-words")
    }
    assert rivals.loc["both-words", "auc_gain"] == pytest.approx(own["both"] - own["both-words"], abs=1e-6)
    page = words_of(output)
    assert "both with counts of words" in page
    assert "Gain over counts of words" in page
    if output.manifest.info["verdict"].startswith("A gain"):
        assert "the same model with counts of words" in output.manifest.info["verdict"]
    assert [*evaluate(words).json("metrics.json")["runs"]] == ["none", "both"], "it is no rival of itself"


def columns_of(output: StageOutput, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Labels, and the scores of a model."""
    table = output.table("predictions/p=00000.parquet", ["label", name])
    return table["label"].to_numpy(), table[name].to_numpy()
