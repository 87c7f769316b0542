"""The verdicts of the quality benchmark, on runs whose answer is known."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from benchmarks import quality_report

PLAIN = {"shared_bottom": 0.70, "mmoe": 0.72}
ABOUT = {"made": "Made-up rows."}
BESIDE = {
    "made": {
        "constant": {"auc": 0.5, "gauc": 0.5, "logloss": 0.69},
        "popularity": {"auc": 0.6, "gauc": None, "logloss": None},
    }
}


def runs(gains: dict[str, float], noise: float = 1e-4, seeds: int = 5) -> list[dict[str, object]]:
    """Each system's AUC is its backbone's and its gain, and noise that pairs of seeds share in part."""
    rng = np.random.default_rng(0)
    found = []
    for backbone, base in PLAIN.items():
        for variant, gain in {"none": 0.0, **gains}.items():
            for seed in range(seeds):
                auc = base + gain + 1e-3 * seed + noise * rng.standard_normal()
                names = {"data": "made", "switch": "", "backbone": backbone, "variant": variant, "seed": seed}
                metrics = {"test_auc": auc, "read_auc": auc, "test_gauc": None, "test_logloss": 0.5}
                found.append({**names, **metrics, "learning_rate": 1e-3, "dropout": 0.1, "train_cpu_seconds": 1.0})
    return found


def verdict(rows: list[dict[str, object]]) -> str:
    return report_of(rows).split("| backbone")[0]


def report_of(rows: list[dict[str, object]]) -> str:
    return quality_report.report("made", table(rows), "command", 4, ABOUT, BESIDE)


def table(rows: list[dict[str, object]]) -> pd.DataFrame:
    made = pd.DataFrame(rows)
    return made.assign(system=[v.split("-")[-1] for v in made["variant"]])


def test_a_gain_over_every_control_is_counted() -> None:
    text = verdict(runs({"feature": 0.001, "both": 0.01, "both-shuffled": 0.002, "both-random": 0.0}))
    assert "`both` beats `none`, `feature`, `shuffled`, `random` with p < 0.05 each on 2 of 2 backbones" in text
    assert "mean change against `none` is +1.4" in text  # the mean of 0.01 / 0.702 and 0.01 / 0.722
    assert "Best plain backbone: mmoe, 0.7220. Best with knowledge: mmoe with both, 0.732" in text


def test_what_knowledge_adds_is_paired_over_backbones_too() -> None:
    text = verdict(runs({"both": 0.01, "both-shuffled": 0.01}, noise=1e-6))
    assert "Paired over the means of 2 backbones, `both` differs from `none` +0.0100 (p = 0.000)" in text
    assert "`shuffled` +0.0000" in text or "`shuffled` -0.0000" in text
    rows = [row for row in runs({"both": 0.01}) if row["backbone"] == "mmoe"]
    assert "Paired" not in verdict(rows)


def test_backbones_that_are_not_the_papers_are_judged_too() -> None:
    rows = [
        row | {"backbone": {"mmoe": "epnet", "shared_bottom": "hamur"}[str(row["backbone"])]}
        for row in runs({"both": 0.01})
    ]
    assert "`both` beats `none` with p < 0.05 each on 2 of 2 backbones: hamur, epnet; its mean" in verdict(rows)


def test_a_gain_that_a_control_has_too_is_none() -> None:
    assert "on 0 of 2 backbones" in verdict(runs({"both": 0.01, "both-shuffled": 0.01}))


def test_a_gain_inside_the_noise_is_none() -> None:
    assert "on 0 of 2 backbones" in verdict(runs({"both": 0.001, "both-shuffled": 0.0}, noise=0.02))


def test_a_loss_is_no_gain_however_sure_it_is() -> None:
    assert "on 0 of 2 backbones" in verdict(runs({"both": -0.01}))


def test_popularity_and_a_constant_stand_in_the_table_and_what_loses_to_them_is_told() -> None:
    rows = [row | {"test_auc": 0.55} if row["variant"] == "both" else row for row in runs({"both": 0.01})]
    rows = [row | {"test_logloss": 0.8} if row["backbone"] == "mmoe" else row for row in rows]
    text = report_of(rows)
    assert "| n/a | constant | 0.5000 |  |  |  | 0.5000 | 0.6900 |  |" in text
    assert "| n/a | popularity | 0.6000 |  |  |  | n/a | n/a |  |" in text
    assert "- **These lose to item popularity in AUC (0.6000)**: shared_bottom both, mmoe both." in text
    assert "- **These lose to a constant in logloss (0.6900)**: mmoe none, mmoe both." in text
    assert "lose to" not in verdict(runs({"both": 0.01}))


def test_without_a_plain_model_there_is_no_verdict() -> None:
    text = report_of([row for row in runs({"both": 0.01, "feature": 0.0}) if row["variant"] != "none"])
    assert "- No plain model was trained beside these: nothing is said of what knowledge brings." in text
    assert "beats" not in text
    assert "nan" not in text


def test_the_paired_test_is_scipys_on_pairs_of_seeds() -> None:
    rows = table(runs({"both": 0.01}))
    both = rows[(rows["variant"] == "both") & (rows["backbone"] == "mmoe")].sample(frac=1, random_state=0)
    change, p = quality_report.against(rows, both, "mmoe")
    assert change == pytest.approx(0.01 / 0.722, abs=1e-3)
    assert p < 1e-6  # unpaired, the seeds' common part would leave p above 1e-6
    assert np.isnan(quality_report.against(rows, both[both["seed"] == 0], "mmoe")[1])


def test_all_files_are_written_and_the_runs_are_whole(tmp_path: Path) -> None:
    rows = runs({"both": 0.01})
    quality_report.write(tmp_path, "made", rows, "python -m benchmarks.quality made", 1, ABOUT, BESIDE)
    assert len(pd.read_parquet(tmp_path / "made.parquet")) == len(rows)
    assert (tmp_path / "made.png").stat().st_size > 5000
    text = (tmp_path / "made.md").read_text()
    assert "![" in text
    assert "## made\n\nMade-up rows.\n" in text
    assert "`python -m benchmarks.quality made`" in text
    widths = {line.count("|") for line in text.splitlines() if line.startswith("|")}
    assert len(widths) == 1
