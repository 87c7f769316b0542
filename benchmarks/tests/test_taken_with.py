"""Titles of what was taken together: only what two users share counts, and an item without such keeps its own title."""

import pandas as pd

from benchmarks.taken_with import NEIGHBOURS, OTHER, OWN, described, taken_with


def test_the_nearest_are_those_with_most_users_in_common() -> None:
    baskets = {1: "abc", 2: "abd", 3: "ac", 4: "ad", 5: "ce", 6: "d"}
    events = pd.DataFrame([(user, item) for user, items in baskets.items() for item in items], columns=["user", "item"])
    found = taken_with(events).groupby("item")["other"].agg(list).to_dict()
    assert found["b"] == ["a"]  # c and d are each shared with one user alone
    assert found["a"] == ["b", "c"]  # cosines .71, .58 and .33
    assert "e" not in found
    assert max(map(len, found.values())) <= NEIGHBOURS


def test_a_title_is_cut_for_others_only_where_there_are_any() -> None:
    title = pd.Series({"a": "A" * 150, "b": "B" * 150, "c": None}, dtype=object)
    neighbours = pd.DataFrame({"item": ["a", "a"], "other": ["b", "c"]})
    texts = described(title, neighbours)
    assert texts["a"] == "A" * OWN + ". Taken with: " + "B" * OTHER
    assert texts["b"] == "B" * 150
    assert texts["c"] == ""
