"""What the quality benchmark says, on runs whose answer is known."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from benchmarks import quality_picture, quality_report, quality_significance

PLAIN = {"shared_bottom": 0.70, "mmoe": 0.72, "ple": 0.71}
ABOUT = {"made": "Made-up rows."}
BESIDE = {
    "made": {
        "constant": {"auc": 0.5, "gauc": 0.5, "logloss": 0.69, "ndcg_at_10": None},
        "popularity": {"auc": 0.6, "gauc": None, "logloss": None, "ndcg_at_10": 0.4},
    }
}


def runs(gains: dict[str, float], noise: float = 1e-4, seeds: int = 5, data: str = "made") -> pd.DataFrame:
    """Each system's AUC is its backbone's and its gain, and noise that pairs of seeds share in part."""
    rng = np.random.default_rng(0)
    found = []
    for backbone, base in PLAIN.items():
        for system, gain in gains.items():
            for seed in range(seeds):
                auc = base + gain + 1e-3 * seed + noise * rng.standard_normal()
                names = {"data": data, "backbone": backbone, "system": system, "seed": seed}
                metrics = {"test_auc": auc, "test_gauc": None, "test_ndcg_at_10": 0.3, "test_logloss": 0.5}
                metrics |= {"slice_auc": {"cold items": auc - 0.1, "home": auc}, "train_cpu_seconds": 1.0}
                found.append({**names, **metrics, "learning_rate": 1e-3, "dropout": 0.1})
    return pd.DataFrame(found)


def report_of(rows: pd.DataFrame) -> str:
    return quality_report.report("made", rows, "command", 4, ABOUT, BESIDE)


def line_of(rows: pd.DataFrame, system: str, control: str) -> dict[str, float]:
    table = quality_significance.compare(rows)
    (line,) = table[(table["system"] == system) & (table["control"] == control)].to_dict("records")
    return {str(name): value for name, value in line.items()}


def test_a_gain_over_a_control_is_counted_on_each_backbone() -> None:
    line = line_of(runs({"none": 0.0, "match@llm": 0.01, "match@random": 0.0}), "match@llm", "match@random")
    assert line["change"] == pytest.approx(0.01 / 0.712, rel=0.02)
    assert (line["wins"], line["backbones"]) == (3, 3)
    assert line["p"] < 0.01


@pytest.mark.parametrize(("gain", "noise"), [(0.0, 1e-4), (0.001, 0.02), (-0.01, 1e-4)])
def test_what_is_inside_the_noise_or_a_loss_wins_nowhere(gain: float, noise: float) -> None:
    rows = runs({"none": 0.0, "match@llm": gain}, noise)
    assert line_of(rows, "match@llm", "none")["wins"] == 0


def test_p_is_scipys_of_pairs_and_corrected_for_the_number_of_tests() -> None:
    rows = runs({"none": 0.0, "din": 0.0, "match@llm": 0.004}, noise=3e-3)
    from scipy import stats

    means = rows.groupby(["system", "backbone"])["test_auc"].mean()
    raw = {control: stats.ttest_rel(means["match@llm"], means[control]).pvalue for control in ("none", "din")}
    less, more = sorted(raw, key=lambda control: raw[control])
    assert line_of(rows, "match@llm", less)["p"] == pytest.approx(min(2 * raw[less], 1))
    assert line_of(rows, "match@llm", more)["p"] == pytest.approx(max(2 * raw[less], raw[more]))


def test_holm_multiplies_the_least_p_by_the_number_of_tests_and_never_falls() -> None:
    corrected = quality_significance.holm(np.array([0.04, 0.01, np.nan, 0.03]))
    np.testing.assert_allclose(corrected, [0.06, 0.03, np.nan, 0.06])
    assert quality_significance.holm(np.array([0.9, 0.8])).tolist() == [1, 1]


@pytest.mark.parametrize(
    ("system", "controls"),
    [
        ("none", []),
        ("match@random", []),
        ("both", ["none", "din", "feature", "random", "shuffled"]),
        ("match@words", ["none", "din", "match@random", "match@shuffled"]),
        ("user@llm", ["none", "din", "user@random", "user@shuffled", "user@words", "user@words128"]),
    ],
)
def test_controls_of_a_system_are_the_same_form_with_less(system: str, controls: list[str]) -> None:
    assert [*filter(None, quality_significance.controls_of(system))] == controls


def test_meta_layers_are_compared_with_the_code_as_an_input() -> None:
    assert quality_significance.controls_of("candidate+both@llm")[-1] == "candidate+feature@llm"
    assert quality_significance.controls_of("contrast@llm")[-1] == "match@llm"
    text = report_of(runs({"none": 0.0, "candidate+both@llm": 0.01, "candidate+feature@llm": 0.005}))
    assert "| against | none | feature |" in text


def test_popularity_and_a_constant_stand_in_the_table_and_what_loses_to_them_is_told() -> None:
    rows = runs({"none": 0.0, "user@llm": 0.01})
    rows.loc[rows["system"] == "user@llm", "test_auc"] = 0.55
    rows.loc[rows["backbone"] == "mmoe", "test_logloss"] = 0.8
    text = report_of(rows)
    assert "| constant | 0.5000 | 0.5000 | 0.5000 | 0.5000 | n/a | 0.6900 |" in text
    assert "| popularity | 0.6000 | 0.6000 | 0.6000 | n/a | 0.4000 | n/a |" in text
    assert "**These lose to item popularity in AUC (0.6000)**: shared_bottom user@llm, mmoe user@llm, ple" in text
    assert "- **These lose to a constant in logloss (0.6900)**: mmoe none, mmoe user@llm." in text
    assert "lose to" not in report_of(runs({"none": 0.0, "user@llm": 0.01}))


def test_slices_are_means_over_backbones_and_seeds() -> None:
    text = report_of(runs({"none": 0.0}, noise=0))
    assert "| AUC of | cold items | home |" in text
    assert "| none | 0.6120 | 0.7120 |" in text


def test_without_a_plain_model_nothing_is_said_of_what_knowledge_brings() -> None:
    text = report_of(runs({"user@llm": 0.01}))
    assert "No plain model was trained beside these: nothing is said of what they bring." in text
    assert "nan" not in text


def test_all_files_are_written_and_the_runs_are_whole(tmp_path: Path) -> None:
    rows = runs({"none": 0.0, "user@llm": 0.01}).to_dict("records")
    for _ in range(2):
        quality_report.write(tmp_path, "made", rows, "python -m benchmarks.quality made", 1, ABOUT, BESIDE)
    assert len(pd.read_parquet(tmp_path / "made.parquet")) == len(rows)
    assert "<svg" in (tmp_path / "made.svg").read_text()
    text = (tmp_path / "made.md").read_text()
    assert "](made.svg)" in text
    assert "## made\n\nMade-up rows.\n" in text
    assert "`python -m benchmarks.quality made`" in text


def test_the_picture_of_a_curve_has_a_line_for_each_system_over_the_lengths(tmp_path: Path) -> None:
    sets = [f"shop{quality_picture.FIRST}{length}" for length in (3, 12)]
    rows = pd.concat([runs({"none": 0.0, "din": 0.01, "match@llm": 0.02}, data=name) for name in sets])
    found = quality_picture.gains(rows)
    assert {*found["system"]} == {"din", "match@llm"}
    assert found[found["system"] == "din"]["gain"].mean() == pytest.approx(100 * 0.01 / 0.712, rel=0.02)
    quality_picture.picture(tmp_path / "curve.svg", rows)
    text = (tmp_path / "curve.svg").read_text()
    assert "first interactions of each user" in text


def test_readings_stand_beside_the_default_one_by_validation_rows_alone(tmp_path: Path) -> None:
    rows = runs({"none": 0.0, "match@llm": 0.01, "match@last": 0.02, "match@words": 0.01}).rename(
        columns={"test_auc": "valid_auc"}
    )
    quality_report.write_readings(tmp_path, "made", rows.to_dict("records"), "command", ABOUT)
    text = (tmp_path / "made.md").read_text()
    lines = {line.split(" | ")[0].strip("| "): line for line in text.splitlines() if line.startswith("|")}
    assert "+1.3" in lines["match@last"]
    assert "0.000 |" in lines["match@last"]
    assert float(lines["match@words"].split(" | ")[3].strip("| ")) > 0.05
    assert lines["none"].endswith("|  |  |")
    assert lines["match@llm"].endswith("|  |  |")
    assert "test rows were not looked at" in text
