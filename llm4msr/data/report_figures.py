"""The figures of the data report, all counted on whole columns, at a few percent of what preparing costs.

Shape suffixes: R rows, N drawn negatives.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from llm4msr import schema, storage
from llm4msr.arrays import Bools, Column, Ints, strings
from llm4msr.config import Config
from llm4msr.data import spelling, split
from llm4msr.data.report import FEW_ROWS, DataReport, Described, Scenarios, Split, Titles
from llm4msr.errors import DataError
from llm4msr.text import mask, quote, shorten

EXAMPLES = 3
_CODE = r"^[\w:./#-]*\d[\w:./#-]*$"
"""One word with a digit in it, as ids and article numbers are and titles seldom."""

PromptSampler = Callable[[dict[str, pa.Table], dict[str, list[str]]], tuple[str, str]]
"""From the prepared tables and the items' fields: whose prompt is shown, and that prompt."""
SamplerOpener = Callable[[Config], PromptSampler]
"""Reads the templates, so that a wrong one is reported before the work starts."""


class Ids(NamedTuple):
    """A column of ids as numbers [R], and the ids that these stand for, in the order in which they come."""

    number_R: Ints
    distinct: Column

    @classmethod
    def from_column(cls, column: "pd.Series[str]") -> "Ids":
        """Number the values of a column of text."""
        number_R, distinct = pd.factorize(column)
        return cls(number_R.astype(np.int64), pa.array(distinct, pa.large_string()))

    def count_rows(self, chosen_R: Bools | slice = slice(None)) -> Ints:
        """Rows of each distinct id among the chosen rows."""
        return np.bincount(self.number_R[chosen_R], minlength=len(self.distinct))


class ReportBuilder:
    """Makes the report on the interactions that are used (`rows`), before and after they are split."""

    def __init__(self, config: Config, interactions: pa.Table, users: pa.Table, items: pa.Table, rows: pd.DataFrame):
        """Compare the ids with those of the described users and items.

        Raises:
            DataError: users or items are described, but none of those that the interactions name.
        """
        self.interactions, self.items, self.rows = interactions, items, rows
        self.user, self.item, self.scenario = (Ids.from_column(rows[f"{n}_id"]) for n in ("user", "item", "scenario"))
        sides = {"user": (users, self.user), "item": (items, self.item)}
        self.described = {
            side: _described(ids, table[f"{side}_id"], side, _file(config, side))
            for side, (table, ids) in sides.items()
            if table.num_rows
        }

    def build(
        self,
        split_R: Ints,
        history_R: Bools,
        drawn_N: Ints,
        tables: dict[str, pa.Table],
        item_fields: dict[str, list[str]],
        sample_prompt: PromptSampler,
    ) -> DataReport:
        """The report; `drawn_N` are the splits of the drawn negatives, `tables` those that are published."""
        prompt_of, prompt = sample_prompt(tables, item_fields)
        longest_path, other_separator = _paths(self.items)
        return DataReport(
            rows=len(self.rows),
            users=len(self.user.distinct),
            items=len(self.item.distinct),
            scenarios=len(self.scenario.distinct),
            users_with_one_row=int((self.user.count_rows() == 1).sum()),
            repeats=count_repeats(self.user, self.item, self.scenario),
            order_restarts=order_restarts(self.interactions),
            orders=self.rows["order"].nunique(),
            longest_path=longest_path,
            other_separator=other_separator,
            described=self.described,
            titles=_titles(tables["items"]),
            by_scenario=_by_scenario(self.scenario, split_R),
            parts={n: self._split(split_R == code, history_R, drawn_N == code) for n, code in split.SPLITS.items()},
            prompt_of=prompt_of,
            prompt=prompt,
        )

    def _split(self, in_split_R: Bools, history_R: Bools, in_split_N: Bools) -> Split:
        rows_of_user = self.user.count_rows(in_split_R)
        has_past = self.user.count_rows(history_R) > 0
        return Split(
            rows=int(in_split_R.sum() + in_split_N.sum()),
            drawn=int(in_split_N.sum()),
            positives=int((self.rows["label"].to_numpy()[in_split_R] > 0.5).sum()),
            users=int((rows_of_user > 0).sum()),
            users_with_past=int((has_past & (rows_of_user > 0)).sum()),
            rows_with_past=int(rows_of_user[has_past].sum()),
        )


def count_repeats(*sides: Ids) -> int:
    """Rows that have the ids of an earlier row on all sides."""
    same_R = np.zeros(len(sides[0].number_R), np.int64)
    for number_R, _ in sides:
        size = int(number_R.max()) + 1
        if (int(same_R.max()) + 1) * size >= 1 << 63:
            same_R = pd.factorize(same_R)[0]
        same_R = same_R * size + number_R
    return len(same_R) - int(pd.Series(same_R).nunique())


def order_restarts(interactions: pa.Table) -> bool:
    """Whether `order` counts from 0 or 1 for (almost) each user anew, as a position does and time does not."""
    order = interactions["order"].to_numpy()
    first = order.min()
    if first not in (0, 1) or (order % 1).any():
        return False
    groups = interactions.select(["user_id", "order"]).group_by("user_id")
    users = groups.aggregate([("order", "min"), ("order", "max"), ("order", "count")])
    rows, starts, ends = (users[f"order_{name}"].to_numpy() for name in ("count", "min", "max"))
    several = rows > 1
    if several.sum() < 3:
        return False
    anew = (starts <= first + 1) & (ends - starts < 2 * rows)
    return bool(anew[several].mean() >= 0.8)


def _file(config: Config, side: str) -> str:
    source = config.source
    name = {"user": source.table.users, "item": source.table.items}[side]
    file = str(storage.path(source.path) / name) if source.kind == "table" else f"the {side}s of {source.path}"
    return shorten(mask(file), 200)


def _described(ids: Ids, theirs: Column, side: str, file: str) -> Described:
    theirs = theirs.cast(pa.large_string())
    missing = pc.invert(pc.is_in(ids.distinct, value_set=theirs))
    ours = ids.distinct.filter(missing)
    pairs = spelling.find_pairs(ours, theirs)
    alike = len(pairs.ours)
    examples, others = pairs if alike else (ours, theirs)
    described = Described(
        file=file,
        in_file=len(theirs),
        ids=len(ids.distinct),
        missing=len(ours),
        missing_rows=int(ids.count_rows()[missing.to_numpy(zero_copy_only=False)].sum()),
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


def _titles(items: pa.Table) -> Titles:
    trained = items.filter(items["f:item_id"].to_numpy() > 0)
    titles = trained["title"]
    is_id = pc.equal(titles, trained["item_id"])
    is_code = pc.and_not(pc.match_substring_regex(titles, _CODE), is_id)
    counts = pc.value_counts(titles)
    commonest = int(np.argmax(counts.field("counts").to_numpy()))
    return Titles(
        items=len(trained),
        commonest=quote(counts.field("values")[commonest].as_py()),
        commonest_items=counts.field("counts")[commonest].as_py(),
        ids=_count(is_id),
        codes=_count(is_code),
        examples=_quote_examples(titles.filter(pc.or_(is_id, is_code))),
    )


def _by_scenario(scenario: Ids, split_R: Ints) -> Scenarios:
    rows, trained = scenario.count_rows(), scenario.count_rows(split_R == split.TRAIN)
    small, untrained = np.flatnonzero((trained > 0) & (trained < FEW_ROWS)), np.flatnonzero(trained == 0)

    def examples(places: Ints, counts: Ints) -> dict[str, int]:
        names = _quote_examples(scenario.distinct.take(places[:EXAMPLES]))
        return {name: int(counts[place]) for name, place in zip(names, places, strict=False)}

    return Scenarios(
        largest=examples(np.argsort(-rows, kind="stable"), rows),
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
