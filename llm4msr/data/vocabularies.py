"""All items, scenarios, words and pools of negatives by number: what every partition needs to number its rows.

Shape suffixes: K pairs of an item and a scenario, I distinct items, S scenarios with the unknown one.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from llm4msr import schema
from llm4msr.arrays import Column, Ints, strings
from llm4msr.config import Config, SplitConfig
from llm4msr.data import catalogue, scenarios
from llm4msr.data.interactions import Ids
from llm4msr.data.negatives import Pools
from llm4msr.data.scan import Pairs

Words = dict[str, list[str]]


class Vocabularies(NamedTuple):
    """What is the same for all partitions; nothing in it grows with users or rows."""

    items: pa.Table
    """The table that is published."""
    scenarios: list[str]
    """Their ids by number, the first for the unknown one."""
    user: Words
    item: Words
    """The words of each feature; number 1 is the first."""
    context: Words
    pools: Pools | None
    """Where negatives are drawn from, if any are."""

    @property
    def category(self) -> str | None:
        """The feature of the items that prompts show."""
        return schema.category_field(self.items, self.item)

    def fields(self, users: int) -> dict[str, dict[str, list[str] | int]]:
        """What `fields.json` holds: the words of each field, and of ids how many have a number as a feature.

        `users` are those of training rows.
        """
        items = int(np.count_nonzero(self.items[f"{schema.FEATURE}item_id"].to_numpy()))
        return {
            "user": {"user_id": users, **self.user},
            "item": {"item_id": items, **self.item},
            "context": {**self.context},
        }


class ScenarioItems(NamedTuple):
    """What is said of the items of each scenario, by number."""

    count_S: Ints
    titles: list[list[str]]


def build(
    pairs: Pairs, raw_items: pa.Table, features: Sequence[str], words: tuple[Words, Words], config: Config
) -> Vocabularies:
    """Number the items and scenarios of all partitions; `words` are those of users' features and of the context."""
    train_I = np.bincount(pairs.item.number_R, pairs.train_K, len(pairs.item.distinct))
    trained = pairs.item.distinct.filter(train_I >= config.split.min_item_rows)
    ids = catalogue.order_ids(trained, raw_items["item_id"])
    described = catalogue.describe(raw_items, "item_id", ids)
    theirs = described.slice(0, len(trained))
    counts = {name: [catalogue.count_words(theirs[schema.FEATURE + name])] for name in features}
    item = {name: catalogue.vocabulary(tables, config.split.min_value_count) for name, tables in counts.items()}
    items = schema.check(catalogue.build("item", ids, len(trained), described, item), schema.ITEMS, "items")
    train_S = np.bincount(pairs.scenario.number_R, pairs.train_K, len(pairs.scenario.distinct))
    names = ["", *sorted(strings(pairs.scenario.distinct.filter(train_S > 0)))]
    pools = _pools(pairs, items, names, config.split) if config.split.negatives else None
    return Vocabularies(items, names, words[0], item, words[1], pools)


def number(ids: Ids, known: Column) -> Ints:
    """The number of each row's id among `known`, whose first is the unknown one."""
    return catalogue.number_ids(ids.distinct, known.slice(1))[ids.number_R]


def _pools(pairs: Pairs, items: pa.Table, names: list[str], config: SplitConfig) -> Pools:
    item_K, scenario_K = number(pairs.item, items["item_id"]), number(pairs.scenario, pa.array(names))
    held = np.flatnonzero(pairs.train_K > 0)  # rare items without a number too: else number 0 would always be a like
    weight_K = pairs.train_K if config.negatives_by == "popularity" else np.ones(len(pairs.train_K), np.int64)
    return Pools.of(scenario_K[held], item_K[held], weight_K[held], len(names))


def scenario_items(pairs: Pairs, vocabularies: Vocabularies) -> ScenarioItems:
    """Distinct items of each scenario in what may reach a prompt, and the titles that were liked most."""
    items, names = vocabularies.items, pa.array(vocabularies.scenarios)
    item_K, scenario_K = number(pairs.item, items["item_id"]), number(pairs.scenario, names)
    count_S = np.bincount(scenario_K[pairs.past_K > 0], minlength=len(names))
    liked = np.flatnonzero((pairs.liked_K > 0) & (item_K > 0))
    liked = liked[np.lexsort((item_K[liked], -pairs.liked_K[liked], scenario_K[liked]))]
    ends = np.searchsorted(scenario_K[liked], np.arange(len(names) + 1))
    titles = []
    for start, end in pairwise(ends):
        most = item_K[liked[start : min(start + scenarios.MAX_TITLES, end)]]
        titles.append(strings(items["title"].take(most)))
    return ScenarioItems(count_S, titles)
