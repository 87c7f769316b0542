"""The numbers of the report, each on data where the right answer is known."""

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from llm4msr.explain.report import bootstrap, cases, gains, models, page, scenarios, users
from llm4msr.explain.report.bootstrap import Draws, Interval, weighted_auc
from llm4msr.explain.report.gains import Gain
from llm4msr.explain.report.plots import Axis
from llm4msr.explain.report.rows import ScoredRows
from llm4msr.training import metrics


def aucs(label: np.ndarray, score: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Of rows of a user each."""
    return weighted_auc(label, score, np.arange(len(label)), times.astype(np.float32))


def test_weighted_auc_of_single_rows_is_the_auc_ties_included():
    rng = np.random.default_rng(0)
    label, logit = rng.random(300) < 0.4, np.round(rng.standard_normal(300), 1)
    assert aucs(label, logit, np.ones((1, 300)))[0] == pytest.approx(metrics.auc(label, logit), abs=1e-12)


def test_a_weight_is_a_row_that_stands_more_than_once():
    rng = np.random.default_rng(1)
    label, logit, times = rng.random(80) < 0.5, np.round(rng.standard_normal(80), 1), rng.integers(0, 4, 80)
    repeated = metrics.auc(np.repeat(label, times), np.repeat(logit, times))
    assert aucs(label, logit, times[None])[0] == pytest.approx(repeated, abs=1e-12)
    assert np.isnan(aucs(label, logit, np.where(label, 0, 1)[None])[0])


def gain_of(
    users: list[np.ndarray], labels: list[np.ndarray], plain: list[np.ndarray], own: list[np.ndarray]
) -> Interval:
    """Of all rows of each seed."""
    draws, everywhere = Draws(users), [np.ones(len(label), bool) for label in labels]
    one, other = draws.auc(labels, own, everywhere), draws.auc(labels, plain, everywhere)
    assert one is not None
    assert other is not None
    return one.minus(other).interval


def width(interval: Interval) -> float:
    return interval.high - interval.low


def test_the_same_logits_have_no_difference_and_better_ones_a_clear_one():
    rng = np.random.default_rng(2)
    user, label = np.repeat(np.arange(150), 8), rng.random(1200) < 0.5
    weak, strong = label + 3 * rng.standard_normal(1200), label + rng.standard_normal(1200)
    assert gain_of([user], [label], [weak], [weak]) == Interval(0, 0, 0)
    gain = gain_of([user], [label], [weak], [strong])
    assert gain.low < gain.value < gain.high
    assert gain.clear
    own = Draws([user]).auc([label], [strong], [np.ones(1200, bool)])
    assert own is not None
    assert own.interval.low < metrics.auc(label, strong) < own.interval.high
    assert Draws([user]).auc([label], [strong], [label]) is None, "one class only"


def test_an_interval_is_wider_where_rows_of_a_user_go_together():
    rng = np.random.default_rng(3)
    label, noise = rng.random(2000) < 0.5, rng.standard_normal(2000)
    few = np.repeat(np.arange(20), 100)
    better = label * np.repeat(rng.choice([0.0, 3.0], 20), 100) + noise  # for some users alone
    together, apart = (gain_of([user], [label], [noise], [better]) for user in (few, np.arange(2000)))
    assert width(together) > 2 * width(apart)


def test_seeds_that_disagree_widen_the_interval():
    rng = np.random.default_rng(4)
    user, label = np.repeat(np.arange(300), 5), rng.random(1500) < 0.5
    base, good = rng.standard_normal(1500), label + rng.standard_normal(1500)
    alike, apart = (gain_of([user] * 2, [label] * 2, [base, base], [good, second]) for second in (good, base))
    assert width(apart) > 2 * width(alike)


def test_a_seed_whose_rows_are_of_one_class_says_nothing():
    rng = np.random.default_rng(5)
    user, label = np.arange(200), rng.random(200) < 0.5
    score = label + rng.standard_normal(200)
    both = Draws([user, user]).auc([label, label | True], [score, score], [label | True] * 2)
    assert both is not None
    assert both.value == pytest.approx(metrics.auc(label, score))
    assert width(both.interval) > 0


def scored(label: np.ndarray, logits: dict[str, np.ndarray], seed: int = 1) -> ScoredRows:
    """Rows of users with five rows each in one scenario."""
    user = np.arange(len(label)) // 5 + 1
    one, likes = np.ones(len(label), np.int64), np.arange(len(label)) % 7
    return ScoredRows(seed, user, user, one, label, likes + 0.0, 10 * one, likes, one > 0, logits)


def section(variant: str, rows: ScoredRows) -> gains.GainSection:
    """Where all test rows were read."""
    scores = rows.logits | {"popularity": rows.popularity_B}
    aucs = {name: metrics.auc(rows.label_B, score) for name, score in scores.items()}
    return gains.gain_section(variant, [rows], ["", "shop"], aucs)


@pytest.mark.parametrize(
    ("own", "begins"), [(3.0, "A gain: test AUC is +"), (0.5, "A loss: test AUC is 0."), (1.0, "No claim: against the")]
)
def test_the_verdict_follows_the_interval(own: float, begins: str):
    rng = np.random.default_rng(6)
    label = rng.random(1000) < 0.5
    plain, model = (strength * label + rng.standard_normal(1000) for strength in (1.5 if own != 1.0 else 1.0, own))
    made = section("both", scored(label, {"none": plain, "both": model}))
    assert made.verdict.startswith(begins)
    assert made.plain is not None
    assert made.claims == made.plain.clear == (not begins.startswith("No claim"))
    assert [row.name for row in made.groups] == [
        "shop",
        "5 to 10 training rows",
        "1 likes in training or fewer",
        "more likes",
        "some training rows of the user in the scenario",
    ]
    assert "Without shuffled and random vectors beside it" in " ".join(made.caveats)
    limits = ["One seed: the interval holds no spread of seeds.", "No control was trained, so this may be capacity."]
    assert made.limits == limits[: {"A gain": 2, "A loss": 1, "No claim": 0}[begins.partition(":")[0]]]


def test_wrong_vectors_that_do_as_well_may_be_capacity():
    rng = np.random.default_rng(7)
    label = rng.random(1000) < 0.5
    plain, model = rng.standard_normal(1000), 2 * label + rng.standard_normal(1000)
    for random, level in ((model, True), (plain, False)):
        logits = {"none": plain, "both-random": random, "both": model}
        made = section("both", scored(label, logits))
        assert made.claims
        assert ("may be capacity, not knowledge" in " ".join(made.caveats)) == level
        assert ("both with random vectors: 0.0000" in " ".join(made.caveats)) == level
        assert made.limits == ["One seed: the interval holds no spread of seeds."]


def test_what_counts_of_words_do_too_is_not_claimed_for_the_language_model():
    rng = np.random.default_rng(9)
    label = rng.random(1000) < 0.5
    plain, model = rng.standard_normal(1000), 2 * label + rng.standard_normal(1000)
    for words, own in ((model, False), (plain, True)):
        made = section("match", scored(label, {"none": plain, "match-words": words, "match": model}))
        assert made.claims
        assert made.verdict.startswith("A gain: ")
        assert ("No claim for the language model itself: over the same model with counts" in made.verdict) != own
        assert ("so much is the language model’s own." in made.verdict) == own
        assert made.words is not None
        assert made.words.clear == own
        assert "match with counts of words" in [gains.label(rival.name, "match") for rival in made.rivals]
        assert "not clearly ahead" not in " ".join(made.caveats)
    alone = section("match", scored(label, {"none": plain, "match": model}))
    assert "words" not in alone.verdict
    level = section("match", scored(label, dict.fromkeys(("none", "match-words", "match"), plain)))
    assert level.verdict.startswith("No claim: against the plain model")
    assert "words" not in level.verdict


def test_a_model_whose_probabilities_are_right_lies_on_the_diagonal():
    rng = np.random.default_rng(8)
    logit = 2 * rng.standard_normal(100_000)
    curve = models.reliability(rng.random(100_000) < 1 / (1 + np.exp(-logit)), logit)
    assert len(curve) == 10
    for predicted, liked in curve:
        assert liked == pytest.approx(predicted, abs=0.02)
    assert models.reliability(np.array([True]), np.array([np.nan])) == []


@pytest.mark.parametrize(
    ("low", "high", "texts"),
    [
        (0, 1, ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]),
        (-0.013, 0.02, ["−0.01", "0.00", "0.01", "0.02"]),
        (3, 21, ["5", "10", "15", "20"]),
    ],
)
def test_ticks_are_round_numbers_in_their_places(low: float, high: float, texts: list[str]):
    axis = Axis(low, high, 200)
    assert [text for _, text in axis.ticks] == texts
    for place, text in axis.ticks:
        assert place == pytest.approx(200 * (float(text.replace("−", "-")) - low) / (high - low), abs=0.06)
    assert (axis.at(low - 1), axis.at(high + 1)) == (0, 200)


def test_an_axis_of_nothing_or_of_one_number_has_ticks():
    for values in ([], [None, float("nan")], [0.5], [-1e-7, 1e-7]):
        assert len(Axis.over(values, 100).ticks) >= 2


def test_similar_is_the_cosine_of_what_differs():
    rows = np.array([[9.0, 1], [9, -1], [10, 0], [8, 0]])
    cosines = scenarios.similar(rows)
    np.testing.assert_allclose(cosines[0], [1, -1, 0, 0], atol=1e-5)
    np.testing.assert_allclose(cosines, cosines.T)
    np.testing.assert_allclose(scenarios.similar(rows * [1000, 1])[0], [1, -1, 0, 0], atol=1e-4)


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


def test_users_are_chosen_by_how_the_models_differ_on_them():
    number = np.arange(1, 8)
    gain = pd.DataFrame({"gain": [0.1, 0.9, -0.2, -0.8, 0.05, 0.3, 5.0], "rows": [9, 9, 9, 9, 9, 9, 1]}, index=number)
    people = pd.DataFrame({"rows": [0, 50, 60, 40, 30, 50, 3, 70], "known": [False, *[True] * 7]})
    chosen = dict(cases.choose(people, gain))
    assert (chosen["gains most"], chosen["loses most"]) == (2, 4), "7 has too few test rows to say so"
    assert chosen["new"] == 6
    assert len({*chosen.values()}) == len(chosen) == 4
    assert cases.choose(people, gain[:0]) == []


def test_a_users_gain_is_the_mean_over_their_test_rows():
    label = np.array([True, False, True])
    sure = np.array([2.0, -2.0, -1.0])
    rows = scored(label, {"none": np.zeros(3), "both": sure})._replace(user_B=np.array([5, 5, 2]))
    made = cases.gains(rows, "both")
    assert made.loc[5, "gain"] == pytest.approx(np.log(2) - np.log1p(np.exp(-2)))
    assert made.loc[5, "gain"] > 0 > made.loc[2, "gain"]
    assert made["rows"].tolist() == [1, 2]
    alone = cases.gains(rows._replace(logits={"both": sure}), "both")
    assert alone["gain"].tolist() == [0, 0], "without a plain model nobody gains"


def test_test_rows_beyond_the_limit_are_those_of_users_drawn_whole(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(bootstrap, "MAX_ROWS", 100)
    user = np.repeat(np.arange(50), 10)
    for kept in bootstrap.sample_users([user, user]):
        assert 100 <= kept.sum() <= 110
        assert all(kept[user == one].all() or not kept[user == one].any() for one in range(50))
    assert bootstrap.sample_users([user[:90]])[0].all()


def test_one_wide_interval_does_not_flatten_the_others():
    def gain(low: float, high: float) -> Gain:
        return Gain("all", None, "x", 1, None, None, Interval(0.0, low, high))

    axis = page.gain_axis([gain(-0.01, 0.01)] * 3 + [gain(-0.9, 0.9)])
    assert axis.high == pytest.approx(0.04, rel=0.2)
    assert axis.low == pytest.approx(-0.04, rel=0.2)
    assert page.gain_axis([]).at(0.0) == 50 * page.BAR / 100
