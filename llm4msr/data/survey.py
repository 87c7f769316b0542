"""The data report from the data: all of it counted on columns, at a few percent of what preparing costs.

Shape suffix: R rows.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from llm4msr import schema, storage
from llm4msr.arrays import Bools, Ints
from llm4msr.config import Config
from llm4msr.data import spelling, split
from llm4msr.data.data_report import FEW_ROWS, DataReport, Described, Part, Scenarios, Titles
from llm4msr.data.sources import RawData
from llm4msr.errors import DataError
from llm4msr.text import mask, quote, shorten

EXAMPLES = 3
_CODE = r"^[\w:./#-]*\d[\w:./#-]*$"
"""One word with a digit in it, as ids and article numbers are and titles seldom."""

PromptSample = Callable[[dict[str, pa.Table], dict[str, list[str]]], tuple[str, str]]
"""From the prepared tables and the items' fields: whose prompt is shown, and that prompt."""
PromptSampler = Callable[[Config], PromptSample]
"""Reads the templates first, so that a wrong one is told before the work."""


class Ids(NamedTuple):
    """A column of ids as numbers [R], and the ids that these stand for, in the order in which they come."""

    number_R: Ints
    distinct: pa.Array

    @classmethod
    def of(cls, column: "pd.Series[str]") -> "Ids":
        """Of a column of text."""
        number_R, distinct = pd.factorize(column)
        return cls(number_R.astype(np.int64), pa.array(distinct, pa.large_string()))

    def rows(self, chosen_R: Bools | slice = slice(None)) -> Ints:
        """Rows of each distinct id among the chosen ones."""
        return np.bincount(self.number_R[chosen_R], minlength=len(self.distinct))


class Survey:
    """The data as it is used (`rows`), seen before and after it is split."""

    def __init__(self, config: Config, raw: RawData, rows: pd.DataFrame):
        """Look at the ids.

        Raises:
            DataError: users or items are described, but none of those that the interactions name.
        """
        self.config, self.raw, self.rows = config, raw, rows
        self.user, self.item, self.scenario = (Ids.of(rows[f"{side}_id"]) for side in ("user", "item", "scenario"))
        sides = {"user": (raw.users, self.user), "item": (raw.items, self.item)}
        self.described = {
            side: _described(ids, table[f"{side}_id"], side, _file(config, side))
            for side, (table, ids) in sides.items()
            if table.num_rows
        }

    def report(
        self,
        part_R: Ints,
        history_R: Bools,
        drawn: Ints,
        tables: dict[str, pa.Table],
        fields: dict[str, list[str]],
        sample: PromptSample,
    ) -> DataReport:
        """What there is to say once all is prepared; `drawn` are the parts of drawn negatives, `fields` the items'."""
        rows_of_user = self.user.rows()
        prompt_of, prompt = sample(tables, fields)
        longest_path, other_separator = _paths(self.raw.items)
        return DataReport(
            rows=len(self.rows),
            users=len(self.user.distinct),
            items=len(self.item.distinct),
            scenarios=len(self.scenario.distinct),
            users_with_one_row=int((rows_of_user == 1).sum()),
            repeats=repeats(self.user, self.item, self.scenario),
            order_restarts=order_restarts(self.raw.interactions),
            orders=self.rows["order"].nunique(),
            longest_path=longest_path,
            other_separator=other_separator,
            described=self.described,
            titles=_titles(tables["items"]),
            by_scenario=_by_scenario(self.scenario, part_R),
            parts={name: self._part(part_R == code, history_R, drawn == code) for name, code in split.PARTS.items()},
            prompt_of=prompt_of,
            prompt=prompt,
        )

    def _part(self, here_R: Bools, history_R: Bools, drawn: Bools) -> Part:
        rows = self.user.rows(here_R)
        past = self.user.rows(history_R) > 0
        return Part(
            rows=int(here_R.sum() + drawn.sum()),
            drawn=int(drawn.sum()),
            positives=int((self.rows["label"].to_numpy()[here_R] > 0.5).sum()),
            users=int((rows > 0).sum()),
            users_with_past=int((past & (rows > 0)).sum()),
            rows_with_past=int(rows[past].sum()),
        )


def repeats(*sides: Ids) -> int:
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
    users = interactions.select(["user_id", "order"]).group_by("user_id")
    users = users.aggregate([("order", "min"), ("order", "max"), ("order", "count")])
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


def _described(ids: Ids, theirs: pa.ChunkedArray, side: str, file: str) -> Described:
    theirs = theirs.cast(pa.large_string())
    missing = pc.invert(pc.is_in(ids.distinct, value_set=theirs))
    ours = ids.distinct.filter(missing)
    pairs = spelling.pairs(ours, theirs)
    if len(pairs.ours):
        examples, others = pairs.ours[:EXAMPLES], pairs.theirs[:EXAMPLES]
    else:
        examples, others = ours[:EXAMPLES], theirs[:EXAMPLES]
    found = Described(
        file=file,
        in_file=len(theirs),
        ids=len(ids.distinct),
        missing=len(ours),
        missing_rows=int(ids.rows()[missing.to_numpy(zero_copy_only=False)].sum()),
        alike=len(pairs.ours),
        examples=[quote(text) for text in examples.to_pylist()],
        theirs=[quote(text) for text in others.to_pylist()] if len(ours) else [],
    )
    if found.missing == found.ids:
        raise DataError(
            f"{file}: none of the {found.ids} {side} ids of the interactions is there: they have "
            f"{', '.join(found.examples)}, this file has {', '.join(found.theirs)}. Ids are compared exactly as given: "
            f"write them the same way in both{' (as text, not as decimals)' if found.alike else ''}, "
            f"or name the right column"
        )
    return found


def _titles(items: pa.Table) -> Titles:
    trained = items.filter(pc.greater(items["f:item_id"], 0))
    is_id = pc.equal(trained["title"], trained["item_id"])
    is_code = pc.and_not(pc.match_substring_regex(trained["title"], _CODE), is_id)
    counts = pc.value_counts(trained["title"])
    most = counts[int(np.argmax(counts.field("counts").to_numpy()))].as_py()
    return Titles(
        items=len(trained),
        commonest=quote(most["values"]),
        commonest_items=most["counts"],
        ids=pc.sum(is_id).as_py() or 0,
        codes=pc.sum(is_code).as_py() or 0,
        examples=[*map(quote, trained["title"].filter(pc.or_(is_id, is_code))[:EXAMPLES].to_pylist())],
    )


def _by_scenario(scenario: Ids, part_R: Ints) -> Scenarios:
    rows, trained = scenario.rows(), scenario.rows(part_R == split.TRAIN)
    small, untrained = np.flatnonzero((trained > 0) & (trained < FEW_ROWS)), np.flatnonzero(trained == 0)

    def some(places: Ints, counts: Ints) -> dict[str, int]:
        names = scenario.distinct.take(pa.array(places[:EXAMPLES])).to_pylist()
        return {quote(name): int(counts[at]) for name, at in zip(names, places, strict=False)}

    return Scenarios(
        largest=some(np.argsort(-rows, kind="stable"), rows),
        smallest_rows=int(rows.min()),
        small=some(small, trained),
        small_count=len(small),
        untrained=some(untrained, rows),
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
    found = {mark: pc.sum(pc.match_substring(steps, mark)).as_py() or 0 for mark in (">", "|", "/", ";", ",")}
    best = max(found, key=lambda mark: found[mark])
    return longest, best if found[best] > len(steps) / 2 else ""
