from itertools import permutations

import numpy as np
import pytest
from sklearn.metrics import log_loss, roc_auc_score

from llm4msr.training import metrics
from llm4msr.training.metrics import Predictions

NAMES = ["", "home", "search", "feed"]


def predictions(rows: int = 600, levels: int = 9, seed: int = 0) -> Predictions:
    """Few distinct scores, so that there are ties, within users too."""
    rng = np.random.default_rng(seed)
    label = (rng.random(rows) < 0.4).astype(np.float32)
    logit = np.round(rng.normal(label, 1.5) * levels / 4) / levels * 4
    return Predictions(rng.integers(40, size=rows), rng.integers(1, 4, size=rows), label, logit.astype(np.float32))


def take(rows: Predictions, index: np.ndarray) -> Predictions:
    return Predictions(*(column[index] for column in rows))


@pytest.mark.parametrize("levels", [1, 3, 9, 10_000])
def test_auc_equals_sklearns_with_ties(levels: int):
    rows = predictions(levels=levels)
    assert metrics.auc(rows.label, rows.logit) == pytest.approx(roc_auc_score(rows.label, rows.logit), abs=1e-12)


@pytest.mark.parametrize(
    ("label", "logit", "expected"),
    [([0, 1], [0, 1], 1.0), ([0, 1], [1, 0], 0.0), ([0, 1], [1, 1], 0.5), ([0, 1, 1], [1, 1, 2], 0.75)],
)
def test_auc_of_few_rows(label: list[int], logit: list[float], expected: float):
    assert metrics.auc(label, logit) == expected


@pytest.mark.parametrize("label", [[0, 0], [1, 1], [1], []])
def test_auc_of_one_class_is_none(label: list[int]):
    assert metrics.auc(label, np.arange(len(label))) is None


def test_logloss_equals_sklearns():
    rows = predictions()
    probability = 1 / (1 + np.exp(-rows.logit.astype(np.float64)))
    assert metrics.logloss(rows.label, rows.logit) == pytest.approx(log_loss(rows.label, probability), rel=1e-9)


def test_logloss_of_extreme_logits_is_finite():
    assert metrics.logloss([0, 1], [800.0, 800.0]) == pytest.approx(400.0)
    assert metrics.logloss([0, 1], [-800.0, 800.0]) == pytest.approx(0.0)


def test_logloss_takes_labels_between_zero_and_one():
    assert metrics.logloss([0.25], [0.0]) == pytest.approx(np.log(2))


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_a_score_that_is_no_finite_number_leaves_no_metric(wrong: float):
    rows = predictions()
    rows.logit[np.flatnonzero(rows.scenario == 1)[0]] = wrong
    report = metrics.report(rows, NAMES)
    for place in (report["overall"], report["scenarios"][0]):
        assert (place["auc"], place["gauc"], place["logloss"]) == (None, None, None)
    assert report["overall"]["rows"] == 600
    others = report["scenarios"][1:]
    assert all(place[metric] > 0 for place in others for metric in ("auc", "gauc", "logloss"))
    assert (metrics.auc(rows.label, rows.logit), metrics.logloss(rows.label, rows.logit)) == (None, None)


def test_no_rows_have_no_logloss():
    assert metrics.logloss([], []) is None


@pytest.mark.parametrize("first_user", [0, 65_530, 2**40])
def test_auc_by_group_equals_a_slow_reference(first_user: int):
    rows = predictions()
    rows = rows._replace(user=rows.user + first_user)
    slow = {}
    for user in np.unique(rows.user):
        here = rows.user == user
        if len(set(rows.label[here])) == 2:
            slow[user] = (roc_auc_score(rows.label[here], rows.logit[here]), here.sum())
    ids, aucs, counts = metrics.auc_by_group(rows.user, rows.label, rows.logit)
    assert ids.tolist() == sorted(slow)
    np.testing.assert_allclose(aucs, [slow[i][0] for i in ids])
    np.testing.assert_array_equal(counts, [slow[i][1] for i in ids])
    gauc = sum(a * n for a, n in slow.values()) / sum(n for _, n in slow.values())
    assert metrics.report(rows, NAMES)["overall"]["gauc"] == pytest.approx(gauc)


def test_report_is_overall_and_by_scenario():
    rows = predictions()
    report = metrics.report(rows, NAMES)
    assert [(one["scenario"], one["scenario_id"]) for one in report["scenarios"]] == [*enumerate(NAMES)][1:]
    for one in report["scenarios"]:
        here = take(rows, rows.scenario == one["scenario"])
        assert one["auc"] == pytest.approx(roc_auc_score(here.label, here.logit))
        assert one["logloss"] == pytest.approx(metrics.logloss(here.label, here.logit))
        assert one["rows"] == len(here.label)
    assert report["overall"]["auc"] == pytest.approx(roc_auc_score(rows.label, rows.logit))
    assert report["overall"]["rows"] == 600


def test_report_leaves_absent_scenarios_out_and_undefined_metrics_none():
    rows = Predictions(*(np.array(c) for c in ([1, 2, 1], [2, 2, 1], [1.0, 0.0, 1.0], [0.5, 0.2, 0.1])))
    report = metrics.report(rows, NAMES)
    home, search = report["scenarios"]
    assert (home["scenario"], search["scenario"]) == (1, 2)
    assert home["auc"] is None
    assert home["gauc"] is None
    assert home["logloss"] > 0
    assert search["auc"] == 1.0
    assert search["gauc"] is None  # each user has one row


def test_scenarios_of_one_name_and_the_unknown_one_stay_apart():
    rows = predictions()
    rows = rows._replace(scenario=rows.scenario % 3)
    report = metrics.report(rows, ["", "overall", "overall"])
    assert [(one["scenario"], one["rows"]) for one in report["scenarios"]] == [
        (number, int((rows.scenario == number).sum())) for number in range(3)
    ]


def test_parts_in_any_order_give_the_same_report():
    rows = predictions()
    parts = [take(rows, np.arange(start, 600, 3)) for start in range(3)]
    whole = metrics.report(rows, NAMES)
    for order in permutations(parts):
        merged = metrics.report(Predictions.concatenate(order), NAMES)
        assert merged["overall"]["rows"] == 600
        assert merged["overall"] == pytest.approx(whole["overall"], abs=1e-12)
        for one, two in zip(whole["scenarios"], merged["scenarios"], strict=True):
            assert one == pytest.approx(two, abs=1e-12)
