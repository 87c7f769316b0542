"""What the rows of a partition hold, of which vocabularies, pools of negatives and the report are made.

Shape suffixes: R rows, K pairs of an item and a scenario.
"""

from typing import Any, NamedTuple, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from llm4msr import schema
from llm4msr.arrays import Bools, Column, Ints
from llm4msr.data import catalogue
from llm4msr.data.interactions import Ids
from llm4msr.data.report_counts import RowCounts
from llm4msr.data.split import TRAIN, SplitRows


class Pairs(NamedTuple):
    """Each pair of an item and a scenario that rows have."""

    item: Ids
    scenario: Ids
    first_K: Ints
    """The smallest `row` of theirs."""
    rows_K: Ints
    train_K: Ints
    """How many of these rows train, how many may reach a prompt, and how many of those are likes."""
    past_K: Ints
    liked_K: Ints


class Scan(NamedTuple):
    """What the rows of a partition hold, and what is known of its users."""

    pairs: Pairs
    contexts: dict[str, pa.Table]
    """The words of each context field that training rows have, as `catalogue.count_words` gives them."""
    features: dict[str, pa.Table]
    """The words of each feature that users of training rows have."""
    trained: int
    """Users of training rows; `users` counts the others too that are described."""
    users: int
    counts: RowCounts


def scan(split: SplitRows, described: pa.Table, counts: RowCounts) -> Scan:
    """Look through a partition; `described` are its users as the source describes them."""
    rows, train_R = split.rows, split.split_R == TRAIN
    trained = trained_users(split)
    theirs = catalogue.describe(described, "user_id", trained)
    features = [name for name in described.column_names if name.startswith(schema.FEATURE)]
    return Scan(
        pairs=_count_pairs(split),
        contexts={name: _words(ids, train_R) for name, ids in rows.context.items()},
        features={name.removeprefix(schema.FEATURE): catalogue.count_words(theirs[name]) for name in features},
        trained=len(trained),
        users=len(catalogue.order_ids(trained, described["user_id"])),
        counts=counts,
    )


def trained_users(split: SplitRows) -> Column:
    """The ids of the users of training rows, in no order."""
    user = split.rows.user
    return user.distinct.filter(user.count_rows(split.split_R == TRAIN) > 0)


def _words(ids: Ids, chosen_R: Bools) -> pa.Table:
    count = ids.count_rows(chosen_R)
    words = pa.table({"word": ids.distinct, "count": pa.array(count)})
    return words.filter(pc.and_(pa.array(count > 0), pc.not_equal(ids.distinct, pa.scalar(""))))


def _count_pairs(split: SplitRows) -> Pairs:
    rows, is_liked_R = split.rows, split.history_R & (split.rows.label_R > 0.5)
    scenarios = len(rows.scenario.distinct)
    key_R, size = rows.item.number_R.astype(np.int64) * scenarios + rows.scenario.number_R, 0
    size = len(rows.item.distinct) * scenarios
    key_K, place_R = np.arange(size), key_R
    if size > max(1 << 20, 4 * len(key_R)):
        key_K, place_R = np.unique(key_R, return_inverse=True)
    first = np.zeros(len(key_K), np.int64)
    first[place_R[::-1]] = rows.row_R[::-1]  # of equal places the last one stays: the first row
    chosen = (slice(None), split.split_R == TRAIN, split.history_R, is_liked_R)
    counts = [np.bincount(place_R[rows_chosen], minlength=len(key_K)) for rows_chosen in chosen]
    held = np.flatnonzero(counts[0])
    item = Ids((key_K[held] // scenarios).astype(np.int32), rows.item.distinct)
    scenario = Ids((key_K[held] % scenarios).astype(np.int32), rows.scenario.distinct)
    return Pairs(item, scenario, first[held], *(count[held] for count in counts))


def add_pairs(parts: list[Pairs]) -> Pairs:
    """The pairs of several partitions."""
    if len(parts) == 1:
        return parts[0]
    item, scenario = _join([part.item for part in parts]), _join([part.scenario for part in parts])
    key = item.number_R.astype(np.int64) * max(len(scenario.distinct), 1) + scenario.number_R
    key_K, first, place = np.unique(key, return_index=True, return_inverse=True)
    earliest = np.full(len(key_K), np.iinfo(np.int64).max)
    np.minimum.at(earliest, place, np.concatenate([part.first_K for part in parts]))
    sums = (np.concatenate([part[column] for part in parts]) for column in range(3, len(Pairs._fields)))
    counts = [np.bincount(place, weights, len(key_K)).astype(np.int64) for weights in sums]
    return Pairs(
        Ids(item.number_R[first], item.distinct), Ids(scenario.number_R[first], scenario.distinct), earliest, *counts
    )


def _join(parts: list[Ids]) -> Ids:
    chunks = [pa.DictionaryArray.from_arrays(ids.number_R, ids.distinct) for ids in parts]
    return Ids.from_column(pa.chunked_array(cast("Any", chunks)))
