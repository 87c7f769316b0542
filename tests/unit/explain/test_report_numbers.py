"""The numbers of the report, each on data where the right answer is known."""

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from llm4msr.explain.ablation import Levels
from llm4msr.explain.report import bootstrap, cases, page, scenarios, users
from llm4msr.explain.report.bootstrap import Draws, Interval, weighted_auc
from llm4msr.training import metrics


def test_weighted_auc_of_single_rows_is_the_auc_ties_included():
    rng = np.random.default_rng(0)
    label, logit = rng.random(300) < 0.4, np.round(rng.standard_normal(300), 1)
    assert weighted_auc(label, logit, np.ones((1, 300)))[0] == pytest.approx(metrics.auc(label, logit), abs=1e-12)


def test_a_weight_is_a_row_that_stands_more_than_once():
    rng = np.random.default_rng(1)
    label, logit, times = rng.random(80) < 0.5, np.round(rng.standard_normal(80), 1), rng.integers(0, 4, 80)
    repeated = metrics.auc(np.repeat(label, times), np.repeat(logit, times))
    assert weighted_auc(label, logit, times[None])[0] == pytest.approx(repeated, abs=1e-12)
    assert np.isnan(weighted_auc(label, logit, np.where(label, 0, 1)[None])[0])


def test_the_same_logits_have_no_difference_and_better_ones_a_clear_one():
    rng = np.random.default_rng(2)
    user, label = np.repeat(np.arange(150), 8), rng.random(1200) < 0.5
    weak, strong = label + 3 * rng.standard_normal(1200), label + rng.standard_normal(1200)
    draws, everywhere = Draws(user, 1), np.ones(1200, bool)
    _, _, gain = draws.compare(label, weak[None], weak[None], everywhere)
    assert gain == Interval(0, 0, 0)
    without, with_, gain = draws.compare(label, weak[None], strong[None], everywhere)
    assert gain is not None
    assert without is not None
    assert with_ is not None
    assert gain.value == pytest.approx(with_.value - without.value)
    assert gain.low < gain.value < gain.high
    assert gain.clear
    assert with_.low < metrics.auc(label, strong) < with_.high
    assert draws.compare(label, weak[None], strong[None], label) == (None, None, None), "one class only"
    assert draws.compare(label, None, strong[None], everywhere) == (None, with_, None), "no plain model"


def test_an_interval_is_wider_where_rows_of_a_user_go_together():
    rng = np.random.default_rng(3)
    label, noise = rng.random(2000) < 0.5, rng.standard_normal(2000)
    few = np.repeat(np.arange(20), 100)
    better = label * np.repeat(rng.choice([0.0, 3.0], 20), 100) + noise  # for some users alone
    widths = []
    for user in (few, np.arange(2000)):
        _, _, gain = Draws(user, 1).compare(label, noise[None], better[None], np.ones(2000, bool))
        assert gain is not None
        widths.append(gain.high - gain.low)
    assert widths[0] > 2 * widths[1]


def test_seeds_that_disagree_widen_the_interval():
    rng = np.random.default_rng(4)
    user, label = np.repeat(np.arange(300), 5), rng.random(1500) < 0.5
    base, good = rng.standard_normal(1500), label + rng.standard_normal(1500)
    widths = []
    for seconds in (good, base):
        _, _, gain = Draws(user, 2).compare(label, np.stack([base, base]), np.stack([good, seconds]), label | ~label)
        assert gain is not None
        widths.append(gain.high - gain.low)
    assert widths[1] > 2 * widths[0]


def test_similar_is_the_cosine_of_what_differs():
    rows = np.array([[9.0, 1], [9, -1], [10, 0], [8, 0]])
    cosines = scenarios.similar(rows)
    np.testing.assert_allclose(cosines[0], [1, -1, 0, 0], atol=1e-12)
    np.testing.assert_allclose(cosines, cosines.T)
    np.testing.assert_allclose(scenarios.similar(rows * [1000, 1], scaled=True)[0], [1, -1, 0, 0], atol=1e-4)


def test_agreement_of_a_heat_map_with_itself_and_with_its_reverse():
    rng = np.random.default_rng(0)
    square = rng.standard_normal((6, 6))
    square += square.T
    same = scenarios.agreement(square, square)
    assert same == (pytest.approx(1), 15, pytest.approx(1 / 720)), "of 720 permutations one does as well: itself"
    assert scenarios.agreement(square, -square)[0] == pytest.approx(-1)
    big = rng.standard_normal((12, 12))
    assert scenarios.agreement(big + big.T, np.tri(12) + np.tri(12).T)[0] != 1
    assert np.isnan(scenarios.agreement(square, np.ones((6, 6)))[0]), "nothing varies"


def interactions(*rows: tuple[int, int, int, float]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["user", "item", "scenario", "label"])


def test_shared_users_are_a_share_of_the_users_of_either():
    train = interactions(
        (1, 1, 1, 1), (2, 1, 1, 0), (3, 1, 1, 0), (2, 2, 2, 1), (3, 2, 2, 1), (4, 2, 2, 1), (4, 3, 3, 1)
    )
    shared = scenarios.behaviour(train, 3)[0].values_SS
    np.testing.assert_allclose(shared, [[1, 0.5, 0], [0.5, 1, 1 / 3], [0, 1 / 3, 1]])


def test_rates_correlate_over_common_items_else_over_common_users():
    rng = np.random.default_rng(0)
    rows = []
    for item in range(20):
        for user in range(10):
            liked = user < item / 2
            rows += [(user, item, 1, float(liked)), (user, item, 2, float(liked)), (user, item, 3, float(not liked))]
    train = interactions(*rows)
    np.testing.assert_allclose(scenarios.rates(train, "item", 3), [[1, 1, -1], [1, 1, -1], [-1, -1, 1]])
    apart = train.assign(item=train["item"] + 100 * train["scenario"]).sample(frac=1, random_state=rng.integers(9))
    maps = scenarios.behaviour(apart, 3)
    assert "users' rates" in maps[1].note
    np.testing.assert_allclose(maps[1].values_SS, [[1, 1, -1], [1, 1, -1], [-1, -1, 1]])


def test_distinctive_columns_are_what_was_planted_and_none_where_all_are_alike():
    rng = np.random.default_rng(0)
    group = np.repeat([0, 1], 100)
    has = (rng.random((200, 30)) < 0.3).astype(float)
    has[:100, 7], has[100:, 11] = 1, 1
    assert [best[0] for best in users.distinctive_columns(sparse.csr_matrix(has), group, 2, 3)] == [7, 11]
    same = np.tile(rng.random((1, 30)) < 0.5, (200, 1)).astype(float)
    assert users.distinctive_columns(sparse.csr_matrix(same), group, 2, 3) == [[], []]


def test_variance_between_is_all_or_nothing_at_the_ends():
    codes = np.repeat(np.eye(3), 5, axis=0)
    assert users.variance_between(codes, np.repeat([0, 1, 2], 5)) == pytest.approx(1)
    assert users.variance_between(codes, np.tile([0, 1, 2, 3, 4], 3)) == pytest.approx(0, abs=1e-12)


def test_users_are_chosen_by_what_knowledge_did_to_them():
    number = np.arange(1, 8)
    gain = pd.DataFrame({"gain": [0.1, 0.9, -0.2, -0.8, 0.05, 0.3, 5.0], "rows": [9, 9, 9, 9, 9, 9, 1]}, index=number)
    people = pd.DataFrame({"rows": [0, 50, 60, 40, 30, 50, 3, 70], "known": [False, *[True] * 7]})
    chosen = dict(cases.choose(people, gain))
    assert (chosen["moved closer"], chosen["moved away"]) == (2, 4), "7 has too few test rows to say so"
    assert chosen["new"] == 6
    assert len({*chosen.values()}) == len(chosen) == 4
    assert cases.choose(people, gain[:0]) == []


def test_loss_and_gain_of_users_are_means_over_their_test_rows():
    test = pd.DataFrame({"user": [5, 5, 2], "label": [1.0, 0.0, 1.0]})
    zero, sure = np.zeros(3), np.array([2.0, -2.0, -1.0])
    gains = cases.gains(test, Levels(zero, zero, zero, sure, zero, zero))
    assert gains["without"].tolist() == pytest.approx([np.log(2)] * 2)
    assert gains.loc[5, "with"] == pytest.approx(np.log1p(np.exp(-2)))
    assert gains.loc[5, "gain"] > 0 > gains.loc[2, "gain"]
    assert gains["rows"].tolist() == [1, 2]


def test_test_rows_beyond_the_limit_are_those_of_users_drawn_whole(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(bootstrap, "MAX_ROWS", 100)
    user = np.repeat(np.arange(50), 10)
    kept = bootstrap.sample_users(user)
    assert 100 <= kept.sum() <= 110
    assert all(kept[user == one].all() or not kept[user == one].any() for one in range(50))
    assert bootstrap.sample_users(user[:90]).all()


def test_one_wide_interval_does_not_flatten_the_others():
    narrow, wide = Interval(0.0, -0.01, 0.01), Interval(0.0, -0.9, 0.9)
    assert page.span([narrow, narrow, narrow, wide, None]) == pytest.approx(0.04)
    assert page.span([None]) == 1
    assert page.span([Interval(0, 0, 0)]) > 0
