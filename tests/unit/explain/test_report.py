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
from llm4msr.explain.finished_run import FinishedRun
from llm4msr.explain.report.cases import Case, case_section
from llm4msr.explain.report.effect import effect_section, score_test_rows
from llm4msr.explain.report.layers import layer_section, score_test_levels
from llm4msr.explain.stage import REPORT
from llm4msr.export import user_codes
from llm4msr.export.write import write_bundle
from llm4msr.knowledge.rows import read_texts, read_vectors, row_groups
from llm4msr.knowledge.store import KnowledgeStore
from llm4msr.pipeline import evaluate, explain, extracted, seeds
from llm4msr.storage import StageOutput
from llm4msr.text import signed
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

Report = tuple[Config, StageOutput]


def csv_of(output: StageOutput, name: str) -> pd.DataFrame:
    return pd.read_csv(io.BytesIO(storage.read_bytes(output.folder / name)), dtype={"user_id": str})


def html_of(output: StageOutput) -> str:
    return storage.read_bytes(output.folder / REPORT).decode()


def open_run(config: Config) -> FinishedRun:
    return FinishedRun.open(seeds(config))


def cases_of(run: FinishedRun) -> dict[str, Case]:
    levels = score_test_levels(run.net, run.data, 4096, run.partitions)
    return {case.kind: case for case in case_section(run, levels).cases}


def test_it_publishes_a_page_and_the_data_beneath(report: Report):
    config, output = report
    assert output.manifest.stage == "explain"
    assert set(output.manifest.files) == {
        *(REPORT, "scenarios.csv", "similarity.csv", "knowledge.csv", "users.parquet", "groups.csv"),
        *("effect.csv", "levels.csv", "rankings.csv"),
    }
    assert output.manifest.files[REPORT].bytes < 1e6
    assert set(output.manifest.info["users"]) == {"moved closer", "moved away", "typical", "new"}
    assert explain(config).reused
    for name in output.manifest.files:
        assert f'href="{name}"' in html_of(output) or name == REPORT


def test_contributions_in_the_file_add_up_to_the_logit(report: Report):
    rows = csv_of(report[1], "rankings.csv")
    total = rows["logit_without"] + rows["user_part"] + rows["scenario_part"]
    np.testing.assert_allclose(total, rows["logit_with"], rtol=0, atol=1e-9)
    assert rows["user_part"].abs().max() > 0.01
    assert rows["scenario_part"].abs().max() > 0.01


def test_contributions_on_the_page_add_up_to_the_logit_shown(report: Report):
    rows = re.findall(r'<tr><th scope="row">.*?</tr>', html_of(report[1]), re.DOTALL)
    shown = [[float(n.replace("−", "-")) for n in re.findall(r">([+−]?\d+\.\d\d)<", row)] for row in rows]
    moved = [numbers for numbers in shown if len(numbers) == 5]
    assert len(moved) > 8
    for without, user, _own, scenario, with_ in moved:
        assert without + user + scenario == pytest.approx(with_, abs=0.021), "each is rounded to two digits"


def test_what_is_shown_is_what_serving_answers(report: Report, tmp_path: Path):
    config, output = report
    run = open_run(config)
    parts = pa.concat_tables([read_vectors(group) for group in row_groups(run.extracted)])
    encoded = [user_codes.encode(parts, run.net.user_code)]  # what `export` does on Ray

    def build(folder: Any) -> storage.StageResult:
        return write_bundle(config, run.net, run.data, encoded, {}, "", folder)

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
            assert scores[row.item_id] == pytest.approx(1 / (1 + math.exp(-row.logit_with)), abs=1e-4)


def test_the_effect_is_that_of_the_trained_models(report: Report):
    config, output = report
    run = open_run(config)
    logits = score_test_rows(run, lambda note: None)
    section = effect_section(run, logits)
    levels, plain = logits.levels[0], logits.plain[0]
    label = run.test["label"]
    overall = csv_of(output, "effect.csv").iloc[0]
    assert overall["auc_own"] == pytest.approx(auc(label, levels.both))
    assert overall["auc_plain"] == pytest.approx(auc(label, plain))
    assert overall["auc_difference"] == pytest.approx(overall["auc_own"] - overall["auc_plain"])
    left_out = dict(layer_section(run, logits.levels, logits.plain).left_out)
    assert left_out["this model"] == pytest.approx(overall["auc_own"])
    assert left_out["without both levels"] == pytest.approx(auc(label, levels.none))
    assert left_out["the plain model, trained on its own"] == pytest.approx(overall["auc_plain"])
    assert sum(row.rows for row in section.rows if row.kind == "scenario") == len(run.test)
    for kind in ("activity", "overlap"):
        assert sum(row.rows for row in section.rows if row.kind == kind) == len(run.test)


def test_the_results_are_those_of_evaluate(report: Report):
    config, output = report
    table = json.loads(storage.read_bytes(evaluate(config).folder / "metrics.json"))
    run = open_run(config)
    section = effect_section(run, score_test_rows(run, lambda note: None))
    for name in ("constant", "popularity", "none", "both"):
        assert section.results["summary"][name] == table["summary"][name]
    assert section.results["test_rows_of_users_with_knowledge"] == table["test_rows_of_users_with_knowledge"]
    assert output.manifest.info["metrics"]["overall"]["auc"] == table["summary"]["both"]["overall"]["auc"]["mean"]
    assert output.manifest.info["baselines"]["none"]["gauc"] == table["summary"]["none"]["overall"]["gauc"]["mean"]


CLAIMS = re.compile(
    r"\b(raise[sd]?|lower(s|ed)?|improve[sd]?|help(s|ed|ful)?|harm(s|ed)?|hurts?|better|worse|gains?|benefits?)\b", re.I
)


def test_a_report_before_and_after_the_plain_model_is_trained(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    config = hostile_config(tmp_path)
    publish_trained(config)
    before = explain(config)
    printed = capsys.readouterr().err
    page = words_of(before)
    remedy = "llm4msr train CONFIG --set model.knowledge=none --set model.control=none --set seed=1"
    assert before.manifest.info["headline"].startswith("Nothing can be said here of what knowledge brings")
    for text in (page, printed, before.manifest.info["headline"]):
        assert remedy in text
    assert before.manifest.info["against_none"] is None
    assert "Difference to the plain model n/a" in page
    assert "the plain model not trained" in page
    assert csv_of(before, "effect.csv")[["auc_plain", "auc_difference"]].isna().all(axis=None)
    claims = {match[0].lower() for match in CLAIMS.finditer(page)}
    assert claims == set()

    publish_trained(config.using("none", 1))
    after = explain(config)
    assert after.folder != before.folder
    page = words_of(after)
    assert remedy not in page
    headline = after.manifest.info["headline"]
    own, plain = (after.manifest.info[key] for key in ("metrics", "baselines"))
    assert headline.startswith(
        f"Test AUC {own['overall']['auc']:.4f} (both) and {plain['none']['auc']:.4f} (plain), difference "
        f"{signed(own['overall']['auc'] - plain['none']['auc'])}; GAUC {own['overall']['gauc']:.4f} (both) and "
    )
    rows = after.manifest.rows
    assert f"Test rows of users with knowledge: {rows:,} of {rows:,} (100%)." in headline
    assert "One seed was trained, and another may move the difference as far" in headline
    assert {match[0].lower() for match in CLAIMS.finditer(page)} == set(), "numbers, and no verdict"


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
    for name, columns in (("effect.csv", ["kind", "scenario", "rows"]), ("levels.csv", ["scenario"])):
        table = csv_of(output, name)
        numbers = table["scenario"].dropna().astype(int).tolist()
        assert numbers == np.unique(test).tolist()
        if "rows" in columns:
            counts = table[table["kind"] == "scenario"].set_index("scenario")["rows"]
            assert counts.to_dict() == {number: int((test == number).sum()) for number in numbers}
            assert table.set_index("scenario").loc[0, "rows_of"] == UNKNOWN
    page = html_of(output)
    assert page.count("<em>(not in the training rows)</em>") == 2, "in the results and in the layers"
    for name in names[:5]:
        assert f"<bdi>{name}</bdi>" in page
    known = csv_of(output, "knowledge.csv")
    assert known["scenario"].isna().tolist() == [True, *[False] * 6]
    assert known["users"].iloc[0] == 40


def test_one_class_only_is_explained_without_numbers(tmp_path: Path):
    rows = [[*row[:3], 1, *row[4:]] for row in interactions()]
    config = config_of(write_data(tmp_path, rows), split={"by": "user"})
    prepare_and_make_knowledge(config)
    for run in (config, config.using("none", 1)):
        publish_trained(run)
    output = explain(config)
    assert output.manifest.info["headline"].startswith("Test AUC n/a (both) and n/a (plain), difference n/a; GAUC n/a")
    assert output.manifest.info["metrics"]["overall"]["auc"] is None
    assert "n/a: one class" in html_of(output)
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


def test_an_explanation_changes_when_and_only_when_its_inputs_do(report: Report):
    config = report[0]
    before = cases_of(open_run(config))
    users = {case.user for case in before.values()}
    others = [user for user in range(1, 61) if user not in users]
    kept = [case_at(with_vectors(open_run(config), others), case) for case in before.values()]
    for old, new in zip(before.values(), kept, strict=True):
        pd.testing.assert_frame_equal(old.ranked, new.ranked)
        assert (old.prompt, old.answer, old.history) == (new.prompt, new.answer, new.history)
    for old in before.values():
        new = case_at(with_vectors(open_run(config), [old.user]), old)
        by_item = new.ranked.set_index("item_id").loc[old.ranked["item_id"]].reset_index()
        assert (by_item["user_part"] != old.ranked["user_part"]).all()
        pd.testing.assert_series_equal(by_item["logit_without"], old.ranked["logit_without"])


def case_at(run: FinishedRun, like: Case) -> Case:
    """The explanation of the same user in the same scenario, whoever would be chosen now."""
    explain = run.config.explain.model_copy(update={"users": (like.user_id,)})
    run.config = run.config.model_copy(update={"explain": explain})
    return cases_of(run)["asked for"]


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
    for case in cases_of(open_run(config)).values():
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
    page, levels = html_of(output), csv_of(output, "levels.csv")
    assert (levels["user"] > 0).all() == (level != "scenario")
    assert (levels["scenario_level"] > 0).all() == (level == "scenario")
    assert ("users.parquet" in output.manifest.files) == (level != "scenario")
    assert ("no codes to draw" in page) == (level == "scenario")
    assert ("The model has no scenario level" in page) == (level != "scenario")
    assert "the plain model, trained on its own" in page


def test_a_model_without_knowledge_has_nothing_to_explain(report: Report):
    with pytest.raises(ConfigError, match=r"model\.knowledge = 'none': nothing to explain"):
        explain(report[0].using("none", 1))


def test_a_control_is_called_one(report: Report):
    control = report[0].using("shuffled", 1)
    publish_trained(control)
    assert "This model is a control: its vectors are shuffled" in html_of(explain(control))


def test_where_each_seed_has_rows_of_its_own_the_configs_seed_is_explained(tmp_path: Path):
    data = write_data(tmp_path)
    config = config_of(data, split={"kind": "random"}, evaluate={"seeds": [5]}, train={"epochs": 1})
    for seed in (1, 5):
        run = config.model_copy(update={"seed": seed})
        prepare_and_make_knowledge(run)
        publish_trained(run)
    assert [pair.model.config.seed for pair in seeds(config)] == [1]


def test_several_seeds_and_no_plain_backbone(tmp_path: Path):
    config = hostile_config(tmp_path, evaluate={"seeds": [1, 2], "variants": []})
    for seed in (1, 2):
        publish_trained(config.model_copy(update={"seed": seed}))
    publish_trained(config.using("none", 2))
    output = explain(config)
    page = html_of(output)
    assert "is not trained for seed 1. Train it: " in page
    assert "means over 2 seeds" in page
    assert "drawing users and seeds again" in page
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
    publish_trained(config)
    page = html_of(explain(config))
    assert "as the LLM read items, not users" in page
    assert "each item once; users are pooled from items" in page
    assert "<summary>The prompt" not in page
