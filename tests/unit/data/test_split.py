from typing import Any

import numpy as np
import pandas as pd
import pytest

from llm4msr.config import SplitConfig
from llm4msr.data import negatives
from llm4msr.data.negatives import Pools
from llm4msr.data.split import TEST, TRAIN, VALID, choose
from llm4msr.errors import DataError
from tests.support.splits import assign, divide, encode


def with_negatives(rows, part, per_positive, seed):
    item, items = pd.factorize(rows["item_id"], sort=True)
    scenario = pd.factorize(rows["scenario_id"], sort=True)[0] + 1
    pool = pd.DataFrame({"scenario": scenario, "item": item + 1})[part == TRAIN].drop_duplicates()
    pools = Pools.of(*pool.to_numpy().T, np.ones(len(pool), np.int64), scenario.max() + 1)
    user = pd.factorize(rows["user_id"])[0]
    drawn = negatives.draw(user, item + 1, scenario, part, pools, per_positive, [seed])
    negative = rows.iloc[drawn.row_N].assign(item_id=items[drawn.item_N - 1], label=np.float32(0))
    return pd.concat([rows, negative], ignore_index=True), np.concatenate([part, part[drawn.row_N]])


def rows_of(users: list[str], order: list[float] | None = None, **columns: Any) -> pd.DataFrame:
    frame = pd.DataFrame({"user_id": users, "order": np.arange(len(users), dtype=float) if order is None else order})
    return frame.assign(**columns)


def many(rows: int = 500, users: int = 20, times: int = 97, seed: int = 3) -> pd.DataFrame:
    """Rows in no order of time, with equal times among them."""
    rng = np.random.default_rng(seed)
    order = rng.integers(times, size=rows).astype(float)
    return rows_of([f"u{u}" for u in rng.integers(users, size=rows)], order.tolist())


# --- parts ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("times", [5, 97, 10_000])
def test_global_time_never_trains_on_what_is_later(times: int):
    rows = many(times=times)
    part = assign(rows, SplitConfig(valid=0.2, test=0.2), seed=1)
    order = rows["order"].to_numpy()
    assert order[part == TRAIN].max() < order[part == VALID].min()
    assert order[part == VALID].max() < order[part == TEST].min()


def test_global_time_keeps_equal_times_together_and_near_the_wanted_shares():
    rows = many(times=97)
    part = assign(rows, SplitConfig(valid=0.2, test=0.2), seed=1)
    assert (rows.assign(part=part).groupby("order")["part"].nunique() == 1).all()
    shares = np.bincount(part) / len(rows)
    np.testing.assert_allclose(shares, [0.6, 0.2, 0.2], atol=0.03)


def test_exact_shares_where_all_times_differ():
    part = assign(rows_of(["u"] * 10), SplitConfig(valid=0.1, test=0.2), seed=1)
    assert part.tolist() == [TRAIN] * 7 + [VALID] + [TEST] * 2


@pytest.mark.parametrize("by", ["user", "global"])
def test_file_order_does_not_matter_to_time(by: str):
    rows = many(times=10_000)
    config = SplitConfig(by=by)
    mixed = np.random.default_rng(0).permutation(len(rows))
    expected = assign(rows, config, 1)[mixed]
    np.testing.assert_array_equal(assign(rows.iloc[mixed], config, 1), expected)


def test_user_time_cuts_each_user_by_their_own_time():
    rows = many()
    part = assign(rows, SplitConfig(by="user", valid=0.2, test=0.2), seed=1)
    for _, here in rows.assign(part=part).groupby("user_id"):
        in_time = here.sort_values("order", kind="stable")["part"].to_numpy()
        assert (np.diff(in_time) >= 0).all()
        np.testing.assert_allclose(np.bincount(in_time, minlength=3) / len(here), [0.6, 0.2, 0.2], atol=1.5 / len(here))


def test_a_users_first_rows_are_those_of_the_earliest_times_and_ties_are_taken_as_they_come():
    rows = rows_of(["a"] * 5 + ["b"], [3.0, 1, 2, 2, 2, 9])
    chosen = choose(encode(rows), SplitConfig(first_events=3))
    assert chosen.row_R.tolist() == [1, 2, 3, 5]


def test_leave_last_out_takes_the_last_two_of_who_has_three():
    users = ["a", "a", "a", "a", "b", "b", "b", "c", "c", "d"]
    order = [4.0, 1, 3, 2, 7, 5, 6, 1, 2, 9]
    part = assign(rows_of(users, order), SplitConfig(kind="leave_last_out"), seed=1)
    assert part.tolist() == [TEST, TRAIN, VALID, TRAIN, TEST, TRAIN, VALID, TRAIN, TRAIN, TRAIN]


def test_random_follows_the_seed_and_the_shares():
    rows = many(rows=1000)
    config = SplitConfig(kind="random", valid=0.1, test=0.3)
    part = assign(rows, config, seed=1)
    assert np.bincount(part).tolist() == [600, 100, 300]
    np.testing.assert_array_equal(part, assign(rows, config, seed=1))
    assert (part != assign(rows, config, seed=2)).any()
    first = part[:200]
    assert set(first) == {TRAIN, VALID, TEST}


@pytest.mark.parametrize(
    ("rows", "config", "message"),
    [
        (rows_of(["a"] * 4, [1.0] * 4), {"kind": "time"}, "split 'time': no train rows in 4 rows"),
        (rows_of(["a", "b", "c"]), {"kind": "leave_last_out"}, "split 'leave_last_out': no valid rows in 3 rows"),
        (rows_of(["a", "b"]), {"kind": "random"}, "split 'random': no valid rows in 2 rows"),
        (rows_of(["a", "b"]), {"kind": "time", "by": "user"}, "split 'time': no valid rows in 2 rows"),
    ],
)
def test_empty_part_is_refused(rows: pd.DataFrame, config: dict[str, Any], message: str):
    with pytest.raises(DataError, match=message):
        assign(rows, SplitConfig.model_validate(config), seed=1)


# --- what may reach a prompt --------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [{}, {"by": "user"}, {"kind": "leave_last_out"}, {"kind": "random"}])
@pytest.mark.parametrize("share", [0.3, 0.5, 1.0])
def test_history_is_the_earliest_share_of_the_training_rows(config: dict[str, Any], share: float):
    rows = many(rows=2000, times=10**6)
    wanted = SplitConfig.model_validate(config | {"history_share": share})
    part = assign(rows, wanted, seed=1)
    history = divide(rows, wanted, 1).history_R
    assert (part[history] == TRAIN).all()
    assert abs(history.sum() / (part == TRAIN).sum() - share) < 0.02
    left = rows[(part == TRAIN) & ~history]
    groups = rows["user_id"] if config.get("by") == "user" or config.get("kind") == "leave_last_out" else None
    if share < 1 and groups is None:
        assert rows["order"][history].max() < left["order"].min()
    if share < 1 and groups is not None:
        last_read = rows[history].groupby("user_id")["order"].max()
        assert (left["order"] > left["user_id"].map(last_read)).all()


# --- negatives ----------------------------------------------------------------------------------------------------


def implicit(rows: int = 600, users: int = 15, items: int = 12, seed: int = 2) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    scenario = rng.integers(2, size=rows)
    item = rng.integers(items, size=rows) + 100 * scenario  # the scenarios share no item
    return rows_of(
        [f"u{u}" for u in rng.integers(users, size=rows)],
        item_id=[f"i{i}" for i in item],
        scenario_id=[f"s{s}" for s in scenario],
        label=np.float32(1),
        device=[f"d{d}" for d in rng.integers(3, size=rows)],
    )


@pytest.fixture(scope="module")
def drawn() -> tuple[pd.DataFrame, np.ndarray, pd.DataFrame, np.ndarray]:
    rows = implicit(rows=120)
    part = assign(rows, SplitConfig(valid=0.2, test=0.2), 1)
    return rows, part, *with_negatives(rows, part, 3, seed=5)


def test_negatives_follow_the_positives_and_keep_their_row(drawn):
    rows, part, both, parts = drawn
    pd.testing.assert_frame_equal(both.iloc[: len(rows)], rows)
    np.testing.assert_array_equal(parts[: len(rows)], part)
    negative = both.iloc[len(rows) :]
    assert (negative["label"] == 0).all()
    assert 2.5 * len(rows) < len(negative) <= 3 * len(rows)
    originals = set(zip(rows["user_id"], rows["scenario_id"], rows["order"], rows["device"], part, strict=True))
    columns = (negative[c] for c in ("user_id", "scenario_id", "order", "device"))
    assert set(zip(*columns, parts[len(rows) :], strict=True)) <= originals


def test_a_negative_was_not_taken_up_to_its_part(drawn):
    rows, part, both, parts = drawn
    for user, item, code in zip(
        both["user_id"][len(rows) :], both["item_id"][len(rows) :], parts[len(rows) :], strict=True
    ):
        assert not ((rows["user_id"] == user) & (rows["item_id"] == item) & (part <= code)).any()


def test_negatives_are_training_items_of_the_same_scenario(drawn):
    rows, part, both, _ = drawn
    pools = rows[part == TRAIN].groupby("scenario_id")["item_id"].agg(set)
    negative = both.iloc[len(rows) :]
    for scenario, items in negative.groupby("scenario_id")["item_id"]:
        assert set(items) <= pools[scenario]
        assert len(set(items)) > len(pools[scenario]) / 2


def test_negatives_follow_the_seed():
    rows = implicit()
    part = assign(rows, SplitConfig(), 1)
    first, again, other = (with_negatives(rows, part, 2, seed)[0] for seed in (1, 1, 2))
    pd.testing.assert_frame_equal(first, again)
    assert not first["item_id"].equals(other["item_id"])


def test_training_negatives_do_not_know_what_the_user_takes_later():
    """u's only possible training negative is what they take in the test; nothing is left for the test itself."""
    rows = rows_of(["u", "v", "v", "u"], item_id=["a", "b", "b", "b"], scenario_id="s", label=np.float32(1))
    part = np.array([TRAIN, TRAIN, VALID, TEST])
    both, parts = with_negatives(rows, part, 4, seed=0)
    negative = both.iloc[4:]
    assert set(negative["item_id"][(negative["user_id"] == "u") & (parts[4:] == TRAIN)]) == {"b"}
    assert not ((negative["user_id"] == "u") & (parts[4:] == TEST)).any()
    assert set(negative["item_id"][negative["user_id"] == "v"]) == {"a"}


def test_a_scenario_without_training_rows_gets_no_negatives():
    rows = rows_of(
        ["u", "v", "u", "v"], item_id=["a", "b", "c", "d"], scenario_id=["s", "s", "new", "new"], label=np.float32(1)
    )
    both, parts = with_negatives(rows, np.array([TRAIN, TRAIN, VALID, TEST]), 2, seed=0)
    assert set(both["scenario_id"][4:]) == {"s"}
    assert set(parts[4:]) == {TRAIN}
