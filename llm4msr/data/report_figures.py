"""The figures of the data report, from counts of the partitions and from the items."""

from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from llm4msr import schema, storage
from llm4msr.arrays import Column, Ints, strings
from llm4msr.config import Config
from llm4msr.data import spelling
from llm4msr.data.interactions import Ids
from llm4msr.data.report import FEW_ROWS, DataReport, Described, Scenarios, Split, Titles
from llm4msr.data.report_counts import MissingIds, RowCounts, find_missing
from llm4msr.data.scan import Pairs
from llm4msr.errors import DataError
from llm4msr.text import mask, quote, shorten

EXAMPLES = 3
_CODE = r"^[\w:./#-]*\d[\w:./#-]*$"
"""One word with a digit in it, as ids and article numbers are and titles seldom."""

PromptSampler = Callable[[dict[str, pa.Table], dict[str, list[str]]], tuple[str, str]]
"""From the prepared tables and the items' fields: whose prompt is shown, and that prompt."""
SamplerOpener = Callable[[Config], PromptSampler]
"""Reads the templates, so that a wrong one is reported before the work starts."""


def describe(
    config: Config, counts: RowCounts, user_ids: Column, pairs: Pairs, items: pa.Table
) -> dict[str, Described]:
    """How many users and items of the interactions their files describe; `user_ids` are some of those in the file.

    Raises:
        DataError: users or items are described, but none of those that the interactions name.
    """
    rows, first = _by_id(pairs.item, pairs)
    missing = find_missing(pairs.item.distinct, rows, first, items["item_id"]) if len(items) else None
    sides = {"user": (counts.missing_users, user_ids), "item": (missing, items["item_id"])}
    files = {side: _file(config, side) for side in sides}
    return {side: _described(ids, theirs, side, files[side]) for side, (ids, theirs) in sides.items() if ids}


def _by_id(ids: Ids, pairs: Pairs) -> tuple[Ints, Ints]:
    """Rows and first row of each distinct item or scenario of the pairs."""
    first = np.full(len(ids.distinct), np.iinfo(np.int64).max)
    np.minimum.at(first, ids.number_R, pairs.first_K)
    return np.bincount(ids.number_R, pairs.rows_K, len(first)).astype(np.int64), first


def build(
    counts: RowCounts,
    described: dict[str, Described],
    splits: dict[str, Split],
    pairs: Pairs,
    raw_items: pa.Table,
    items: pa.Table,
    sample: tuple[str, str],
) -> DataReport:
    """The report; `items` are those that are published, and `sample` a user or item and their prompt."""
    longest_path, other_separator = _paths(raw_items)
    return DataReport(
        **counts.model_dump(include={"rows", "left_out", "users", "users_with_one_row", "repeats", "orders"}),
        items=len(pairs.item.distinct),
        scenarios=len(pairs.scenario.distinct),
        order_restarts=counts.order_restarts,
        longest_path=longest_path,
        other_separator=other_separator,
        described=described,
        titles=_titles(items, pairs),
        by_scenario=_by_scenario(pairs),
        parts=splits,
        prompt_of=sample[0],
        prompt=sample[1],
    )


def _file(config: Config, side: str) -> str:
    source = config.source
    name = {"user": source.table.users, "item": source.table.items}[side]
    file = str(storage.path(source.path) / name) if source.kind == "table" else f"the {side}s of {source.path}"
    return shorten(mask(file), 200)


def _described(ids: MissingIds, theirs: Column, side: str, file: str) -> Described:
    ours = pa.array([text for _, text in sorted(ids.examples)], pa.large_string())
    theirs = theirs.cast(pa.large_string())
    pairs = spelling.find_pairs(ours, theirs)
    alike = len(pairs.ours)
    examples, others = pairs if alike else (ours, theirs)
    described = Described(
        file=file,
        in_file=ids.in_file,
        ids=ids.ids,
        missing=ids.missing,
        missing_rows=ids.rows,
        alike=alike,
        examples=_quote_examples(examples),
        theirs=_quote_examples(others) if len(ours) else [],
    )
    if described.missing == described.ids:
        raise DataError(
            f"{file}: none of the {described.ids} {side} ids of the interactions is there: they have "
            f"{', '.join(described.examples)}, this file has {', '.join(described.theirs)}. Ids are compared exactly "
            f"as given: write them the same way in both{' (as text, not as decimals)' if alike else ''}, "
            f"or name the right column"
        )
    return described


def _quote_examples(column: Column) -> list[str]:
    return [*map(quote, strings(column[:EXAMPLES]))]


def _count(mask: Column) -> int:
    return int(np.count_nonzero(mask.to_numpy(zero_copy_only=False)))


def _titles(items: pa.Table, pairs: Pairs) -> Titles:
    trained = items.filter(items["f:item_id"].to_numpy() > 0)
    titles = trained["title"]
    is_id = pc.equal(titles, trained["item_id"])
    is_code = pc.and_not(pc.match_substring_regex(titles, _CODE), is_id)
    if not len(trained):  # split.min_item_rows leaves none
        return Titles(items=0, ids=0, codes=0, commonest="''", commonest_items=0, examples=[])
    counts = pc.value_counts(titles)
    commonest = int(np.argmax(counts.field("counts").to_numpy()))
    return Titles(
        items=len(trained),
        commonest=quote(counts.field("values")[commonest].as_py()),
        commonest_items=counts.field("counts")[commonest].as_py(),
        ids=_count(is_id),
        codes=_count(is_code),
        examples=_quote_examples(titles.filter(pc.or_(is_id, is_code))),
        bare=_bare(trained["item_id"].filter(is_id), pairs),
    )


def _bare(untitled: Column, pairs: Pairs) -> list[str]:
    """Scenarios in which most items of training rows are of these, unless all are so."""
    is_untitled = pc.is_in(pairs.item.distinct, untitled.cast(pairs.item.distinct.type)).to_numpy(zero_copy_only=False)
    trained_K, scenarios = pairs.train_K > 0, pairs.scenario
    items_S, bare_S = (
        np.bincount(scenarios.number_R[chosen_K], minlength=len(scenarios.distinct))
        for chosen_K in (trained_K, trained_K & is_untitled[pairs.item.number_R])
    )
    in_order = np.argsort(_by_id(scenarios, pairs)[1], kind="stable")  # the order in which they come
    bare = in_order[bare_S[in_order] > items_S[in_order] / 2]
    return [] if len(bare) == len(items_S) else [*map(quote, strings(scenarios.distinct.take(bare)))]


def _by_scenario(pairs: Pairs) -> Scenarios:
    ids = pairs.scenario
    rows, first = _by_id(ids, pairs)
    trained = np.bincount(ids.number_R, pairs.train_K, len(rows)).astype(np.int64)
    in_order = np.argsort(first, kind="stable")  # the order in which they come
    small = in_order[(trained[in_order] > 0) & (trained[in_order] < FEW_ROWS)]
    untrained = in_order[trained[in_order] == 0]

    def examples(places: Ints, counts: Ints) -> dict[str, int]:
        names = _quote_examples(ids.distinct.take(places[:EXAMPLES]))
        return {name: int(counts[place]) for name, place in zip(names, places, strict=False)}

    return Scenarios(
        largest=examples(in_order[np.argsort(-rows[in_order], kind="stable")], rows),
        smallest_rows=int(rows.min()),
        small=examples(small, trained),
        small_count=len(small),
        untrained=examples(untrained, rows),
        untrained_count=len(untrained),
    )


def _paths(items: pa.Table) -> tuple[int, str]:
    """Steps of the longest category path; and a separator that most paths have inside while none splits."""
    name = f"{schema.FEATURE}category"
    if name not in items.column_names or not pa.types.is_list(items.schema.field(name).type):
        return 0, ""
    longest = int(pc.max(pc.list_value_length(items[name])).as_py() or 0)
    if longest > 1:
        return longest, ""
    steps = pc.list_flatten(items[name])
    counts = {mark: _count(pc.match_substring(steps, mark)) for mark in (">", "|", "/", ";", ",")}
    best = max(counts, key=lambda mark: counts[mark])
    return longest, best if counts[best] > len(steps) / 2 else ""
