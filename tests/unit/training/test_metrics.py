from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import log_loss, ndcg_score, roc_auc_score

from llm4msr.training import metrics, score_counts
from llm4msr.training.metrics import METRICS, Predictions, Sums
from llm4msr.training.score_counts import ScoreCounts
from llm4msr.training.user_metrics import user_metrics

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
        assert {place[metric] for metric in METRICS} == {None}
    assert report["overall"]["rows"] == 600
    others = report["scenarios"][1:]
    assert all(place[metric] > 0 for place in others for metric in METRICS)
    assert (metrics.auc(rows.label, rows.logit), metrics.logloss(rows.label, rows.logit)) == (None, None)


def test_no_rows_have_no_logloss():
    assert metrics.logloss([], []) is None


@pytest.mark.parametrize("first_user", [0, 65_530, 2**40])
def test_metrics_of_users_equal_sklearns(first_user: int):
    rows = predictions()
    rows = rows._replace(user=rows.user + first_user)
    slow = {}
    for user in np.unique(rows.user):
        label, logit = rows.label[rows.user == user], rows.logit[rows.user == user]
        if len(set(label)) == 2:
            slow[user] = (len(label), roc_auc_score(label, logit), ndcg_score([label], [logit], k=10))
    found = user_metrics(rows.user, rows.label > 0.5, rows.logit)
    assert found.group_U.tolist() == sorted(slow)
    for at, column in enumerate((found.rows_U, found.auc_U, found.ndcg_U)):
        np.testing.assert_allclose(column, [slow[user][at] for user in found.group_U])
    count, auc, ndcg = np.array([*slow.values()]).T
    overall = metrics.report(rows, NAMES)["overall"]
    assert overall["gauc"] == pytest.approx((auc * count).sum() / count.sum())
    assert overall["ndcg_at_10"] == pytest.approx(ndcg.mean())


def test_recall_of_tied_rows_is_the_mean_over_their_orders():
    rng = np.random.default_rng(1)
    label, logit = rng.random(24) < 0.4, rng.integers(4, size=24).astype(float)
    recalls = []
    for _ in range(4000):
        order = rng.permutation(24)
        top = order[np.argsort(-logit[order], kind="stable")][:10]
        recalls.append(label[top].sum() / label.sum())
    found = user_metrics(np.zeros(24, np.int64), label, logit)
    assert found.recall_U[0] == pytest.approx(np.mean(recalls), abs=4 * np.std(recalls) / 4000**0.5)
    apart = user_metrics(np.zeros(24, np.int64), label, np.arange(24.0))
    assert apart.recall_U[0] == label[-10:].sum() / label.sum()


def test_calibration_error_is_the_mean_distance_of_rates_in_bins_of_as_many_rows():
    rng = np.random.default_rng(0)
    logit = rng.normal(-2, 1, 1500)
    label = rng.random(1500) < 1 / (1 + np.exp(-logit))
    by_score = np.argsort(logit).reshape(15, 100)
    likely = 1 / (1 + np.exp(-logit))
    slow = np.mean([abs(label[bin_].mean() - likely[bin_].mean()) for bin_ in by_score])
    counts = ScoreCounts.of(np.zeros(1500, np.int64), label, logit)
    assert counts.calibration_error() == pytest.approx(slow)
    over = ScoreCounts.of(np.zeros(1500, np.int64), label, logit + 1)
    assert over.calibration_error() > 0.1 > 0.04 > slow


def test_calibration_error_of_a_constant_is_the_distance_of_the_two_rates():
    label = np.arange(40) < 10
    counts = ScoreCounts.of(np.zeros(40, np.int64), label, np.full(40, np.log(0.4 / 0.6)))
    assert counts.calibration_error() == pytest.approx(0.15)


def split_by_user(rows: Predictions, parts: int) -> list[Predictions]:
    return [take(rows, rows.user % parts == part) for part in range(parts)]


@given(st.integers(1, 300), st.integers(1, 7), st.integers(1, 40), st.integers(0, 2**32), st.sampled_from([4, 10**6]))
@settings(max_examples=60)
def test_sums_of_users_parts_give_the_metrics_of_the_whole(rows: int, parts: int, users: int, seed: int, levels: int):
    whole = predictions(rows, levels, seed)
    whole = whole._replace(user=whole.user % users, scenario=whole.scenario % 4)
    sums = [Sums.of(part, 4) for part in split_by_user(whole, parts)]
    expected = metrics.report(whole, NAMES)
    for order in (sums, sums[::-1]):
        found = Sums.from_bytes(Sums.add(order).to_bytes()).report(NAMES)
        assert found["overall"]["auc"] == expected["overall"]["auc"]
        assert found["overall"] == pytest.approx(expected["overall"], abs=1e-12)
        for one, other in zip(found["scenarios"], expected["scenarios"], strict=True):
            assert one == pytest.approx(other, abs=1e-12)


@given(st.integers(0, 2**32), st.integers(1, 64), st.integers(1, 6))
@settings(max_examples=40)
def test_counts_of_too_many_scores_are_bounded_and_do_not_depend_on_the_order(seed: int, limit: int, parts: int):
    rows = predictions(900, 10**6, seed)
    exact = ScoreCounts.of(rows.scenario, rows.label > 0.5, rows.logit)
    each = [ScoreCounts.of(r.scenario, r.label > 0.5, r.logit) for r in split_by_user(rows, parts)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(score_counts, "MAX_COUNTS", limit)
        found, nested = ScoreCounts.add(each), each[0]
        for part in each[1:]:
            nested = ScoreCounts.add([nested, part])
        nested = ScoreCounts.add([nested])
    assert len(found.key_K) <= max(limit, 3), "three scenarios"
    for one, other in zip(found, nested, strict=True):
        np.testing.assert_array_equal(one, other)
    assert found.positives_K.sum() == (rows.label > 0.5).sum()
    auc, bound = found.of_all().auc()
    assert abs(auc - exact.of_all().auc()[0]) <= bound
    assert abs(found.calibration_error() - exact.calibration_error()) < 1


def test_a_million_scores_in_bins_are_close():
    rng = np.random.default_rng(0)
    label = rng.random(400_000) < 0.3
    logit = rng.normal(label - 1.5, 1.2).astype(np.float32)
    exact = ScoreCounts.of(np.zeros(len(label), np.int64), label, logit)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(score_counts, "MAX_COUNTS", 1 << 14)
        binned = ScoreCounts.add([exact])
    auc, bound = binned.auc()
    assert exact.auc() == (metrics.auc(label, logit), 0)
    assert 0 < bound < 5e-4
    assert abs(auc - exact.auc()[0]) < bound / 20
    assert binned.calibration_error() == pytest.approx(exact.calibration_error(), abs=1e-4)


def test_the_two_zeros_tie():
    assert metrics.auc([1, 0], [0.0, -0.0]) == metrics.auc([0, 1], [0.0, -0.0]) == 0.5


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
