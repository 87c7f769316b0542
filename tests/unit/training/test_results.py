"""Numbers of several models and seeds, and the table that shows them, whatever scenarios are called."""

from typing import Any

import numpy as np
import pytest

from llm4msr.training.popularity import CONSTANT, POPULARITY
from llm4msr.training.results import UNKNOWN, compare, summarise
from llm4msr.training.table import markdown_table

NAMES = ["", "home", "overall", "**all**", "a|b\n| 9 | c", "<img src=x>`x`", UNKNOWN, "\x1b[2J\u202e"]
"""By number."""


def metrics_of(auc: float | None, logloss: float | None = 0.5, rows: int = 10) -> dict[str, Any]:
    gauc = None if auc is None else auc - 0.1
    users = {"ndcg_at_10": auc, "recall_at_10": gauc}
    return {"auc": auc, "gauc": gauc, "logloss": logloss, **users, "ece": 0.01, "rows": rows, "auc_bound": 0.0}


def report(overall: float | None, scenarios: dict[int, float | None], seed: int = 1) -> dict[str, Any]:
    places = [{"scenario": n, "scenario_id": NAMES[n], **metrics_of(auc, rows=n)} for n, auc in scenarios.items()]
    return {"seed": seed, "overall": metrics_of(overall), "scenarios": places}


def found(
    none: list[dict[str, Any]] | None, both: list[dict[str, Any]] | None, popular: float = 0.4, read: int = 3
) -> dict[str, Any]:
    runs = {name: reports for name, reports in (("none", none), ("both", both)) if reports}
    scenarios = {place["scenario"]: 0.5 for place in next(iter(runs.values()))[0]["scenarios"]}
    baselines = {CONSTANT: [report(0.5, scenarios)], POPULARITY: [report(popular, scenarios)]}
    return compare(runs, baselines, (read, 10))


def cells(text: str) -> list[list[str]]:
    """Of each line of the first table, split where GitHub's Markdown splits."""
    lines = text.split("\n\n")[0].splitlines()
    return [[cell.strip() for cell in line.replace("\\|", "\0").strip("|").split("|")] for line in lines]


def test_summary_is_mean_and_deviation_over_seeds():
    one = summarise([report(0.6, {1: 0.7}), report(0.8, {1: 0.7}), report(0.7, {1: 0.4})])
    assert one["overall"]["auc"] == {"mean": pytest.approx(0.7), "std": pytest.approx(0.1)}
    assert one["overall"]["gauc"]["mean"] == pytest.approx(0.6)
    (home,) = one["scenarios"]
    assert (home["scenario"], home["scenario_id"], home["rows"]) == (1, "home", 1)
    assert home["auc"] == {"mean": pytest.approx(0.6), "std": pytest.approx(np.std([0.7, 0.7, 0.4], ddof=1))}


def test_summary_of_one_seed_has_no_deviation():
    assert summarise([report(0.6, {1: 0.7})])["overall"]["auc"] == {"mean": 0.6, "std": None}


def test_summary_leaves_undefined_metrics_out_of_the_mean():
    home, other = summarise([report(0.6, {1: None, 2: None}), report(0.8, {1: 0.5, 2: None})])["scenarios"]
    assert home["auc"] == {"mean": 0.5, "std": None}
    assert other["auc"] == {"mean": None, "std": None}
    assert other["logloss"]["mean"] == 0.5


def test_a_scenario_is_the_same_whatever_number_a_seeds_split_gave_it():
    renumbered = report(0.8, {1: 0.9})
    renumbered["scenarios"][0]["scenario"] = 7
    (home,) = summarise([report(0.6, {1: 0.7}), renumbered])["scenarios"]
    assert home["auc"]["mean"] == pytest.approx(0.8)


def test_table_of_one_seed():
    text = markdown_table("star", found([report(0.6, {1: 0.7, 2: None})], [report(0.65, {1: 0.75})]))
    assert text == (
        "| no. | test rows of | rows | constant AUC | popularity AUC | none AUC | both AUC "
        "| constant logloss | none logloss | both logloss |\n"
        "| ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n"
        "|  | **all** | 10 | 0.5000 | 0.4000 | 0.6000 | 0.6500 | 0.5000 | 0.5000 | 0.5000 |\n"
        "| 1 | home | 1 | 0.5000 | 0.5000 | 0.7000 | 0.7500 | 0.5000 | 0.5000 | 0.5000 |\n"
        "| 2 | overall | 2 | 0.5000 | 0.5000 | n/a | n/a | 0.5000 | 0.5000 | n/a |\n"
        "\n"
        "| on all test rows | GAUC | NDCG@10 | Recall@10 | ECE |\n"
        "| --- | ---: | ---: | ---: | ---: |\n"
        "| constant | 0.4000 | 0.5000 | 0.4000 | 0.0100 |\n"
        "| popularity | 0.3000 | 0.4000 | 0.3000 | 0.0100 |\n"
        "| none | 0.5000 | 0.6000 | 0.5000 | 0.0100 |\n"
        "| both | 0.5500 | 0.6500 | 0.5500 | 0.0100 |\n"
        "\n"
        "Backbone star, 1 seed: one seed, so differences below 0.005 say little.\n"
        "\n"
        "GAUC: mean AUC within a user, weighted by rows. NDCG@10, Recall@10: how a user's own test rows are ordered, "
        "mean over the users with both classes. ECE: expected calibration error, how far rates of positives are from "
        "the predicted ones on average, in 15 bins of equally many rows.\n"
        "\n"
        "`popularity`: positives of the item in the scenario's training rows. `constant`: the share of positives of "
        "the scenario's training rows, for every row.\n"
        "\n"
        "Against the plain model (`none`, same backbone and seeds): `both` AUC +0.0500, GAUC +0.0500. Test rows of "
        "users with knowledge: 3 of 10 (30.0%). Without `shuffled` and `random` beside it (evaluate.variants), a "
        "difference may be capacity and not knowledge.\n"
    )


def test_an_auc_in_bins_is_told_with_its_bound():
    result = found([report(0.6, {1: 0.7})], None)
    assert "in bins" not in markdown_table("mmoe", result)
    result["runs"]["none"][0]["overall"]["auc_bound"] = 2.4e-6
    assert "\n\nAUC was summed in bins of scores; it is wrong by 2e-06 at most.\n" in markdown_table("mmoe", result)


def test_table_of_several_seeds_shows_deviations_and_pairs_seeds():
    both = [report(0.6, {1: None}, seed=1), report(0.8, {1: 0.5}, seed=2)]
    none = [report(0.7, {1: None}, seed=2), report(0.6, {1: None}, seed=1)]
    result = found(none, both)
    text = markdown_table("mmoe", result)
    assert "| 0.6500 ± 0.0707 | 0.7000 ± 0.1414 |" in text
    assert "2 seeds: mean ± standard deviation over the seeds" in text
    assert "`both` AUC +0.0500 ± 0.0707" in text
    assert result["against_none"]["both"]["seeds"] == 2


def test_names_are_shown_and_never_mixed_up():
    aucs = {number: 0.3 + number / 100 for number in range(len(NAMES))}
    text = markdown_table("mmoe", found(None, [report(0.9, aucs)]))
    rows = cells(text)
    assert {len(row) for row in rows} == {8}
    body = rows[2:]
    assert [row[0] for row in body] == ["", *(str(n) for n in sorted(aucs, key=lambda n: (n == 0, NAMES[n])))]
    assert len(body) == 1 + len(NAMES)
    by_number = {row[0]: row for row in body}
    for number, auc in aucs.items():
        assert by_number[str(number)][5] == f"{auc:.4f}"
    assert by_number[""][1:6:2] == ["**all**", "0.5000", "0.9000"]
    assert by_number["2"][1] == "overall"
    assert by_number["3"][1] == r"\*\*all\*\*"
    assert by_number["4"][1] == "a\0b \0 9 \0 c"
    assert by_number["5"][1] == r"\<img src=x\>\`x\`"
    assert by_number["0"][1:3] == [f"*{UNKNOWN}*", "0"]
    assert body[-1] == by_number["0"], "the unknown ones come last"
    assert by_number["6"][1] == UNKNOWN
    assert "\x1b" not in text
    assert "\u202e" not in text


def test_without_a_plain_model_nothing_is_said_of_knowledge():
    result = found(None, [report(0.9, {1: 0.9})])
    text = markdown_table("mmoe", result)
    assert result["against_none"] == {}
    assert 'this table says nothing about what knowledge brings: add "none" to evaluate.variants' in text
    assert "Against the plain model" not in text
    alone = markdown_table("mmoe", found([report(0.9, {1: 0.9})], None))
    assert "knowledge" not in alone


def test_a_model_that_loses_is_told_below_the_table():
    result = found([report(0.9, {1: 0.9})], [report(0.55, {1: 0.9})], popular=0.6)
    assert [line.split(" on ")[0] for line in result["warnings"]] == [
        "'both' loses to item popularity within the scenario"
    ]
    text = markdown_table("mmoe", result)
    assert f"\n\n**Warning**: {result['warnings'][0]}.\n" in text
    assert "AUC 0.5500 against 0.6000" in text


def test_metrics_that_are_nowhere_defined_are_not_applicable():
    text = markdown_table("mmoe", found([report(None, {1: None})], [report(None, {1: None})]))
    assert "`both` AUC n/a, GAUC n/a" in text
    assert {"none AUC", "both AUC"} <= set(cells(text)[0])
    assert cells(text)[2][5:7] == ["n/a", "n/a"]


def test_a_share_of_few_users_is_not_shown_as_none():
    assert "3 of 10 (30.0%)" in markdown_table("mmoe", found([report(0.6, {})], [report(0.6, {})]))
    runs = {"none": [report(0.6, {})], "both": [report(0.6, {})]}
    beside = {CONSTANT: [report(0.5, {})], POPULARITY: [report(0.5, {})]}
    assert "150 of 30,431 (0.5%)" in markdown_table("mmoe", compare(runs, beside, (150, 30_431)))
    assert "1 of 30,431 (< 0.1%)" in markdown_table("mmoe", compare(runs, beside, (1, 30_431)))
