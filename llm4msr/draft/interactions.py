"""What the columns of the interactions are: scenario, label, order, context; and how rows are split."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import pyarrow.compute as pc

from llm4msr.arrays import AnyInts, Floats
from llm4msr.data.reading.columns import Rows
from llm4msr.data.reading.order import Order
from llm4msr.draft import names
from llm4msr.draft.columns import ColumnSample
from llm4msr.draft.guess import Guess, Note
from llm4msr.draft.roles import Roles
from llm4msr.draft.samples import Sample
from llm4msr.errors import DataError
from llm4msr.text import percent, quote, shorten

NEGATIVES = 4
MOST_SCENARIOS = 200
MOST_UNNAMED = 20
"""Different values of a column that is taken for the scenario though its name says nothing."""
_SURE_NAMES = 25
"""So many of `names.SCENARIO` mean a scenario and nothing else."""
_SPLITS = {"train", "training", "valid", "validation", "val", "dev", "test"}
_POSITION = names.ORDER[names.ORDER.index("seqpos") :]


class Columns(NamedTuple):
    """The guesses about the interactions' columns, in the order in which the config shows them."""

    guesses: list[Guess | Note]
    split: list[Guess | Note]
    decisions: list[str]
    taken: set[str]


def find_columns(roles: Roles) -> Columns:
    """Guess them; each is of the interactions' table."""
    sample, decisions = roles.interactions, list[str]()
    taken = {str(roles.user.value), str(roles.item.value)}
    order, is_position = _find_order(sample, _rest(sample, taken), str(roles.user.value))
    taken |= {str(order.value)} if isinstance(order, Guess) else set()
    label = [*_find_label(sample, _rest(sample, taken))]
    taken |= {str(guess.value) for guess in label if isinstance(guess, Guess)}
    scenario = _find_scenario(sample, _rest(sample, taken), roles)
    if isinstance(scenario, str):
        decisions.append(scenario)
        scenario = Guess("scenario", "scenario", "no column is one: see what to decide above", is_sure=False)
    taken.add(str(scenario.value))
    context = _find_context(sample, _rest(sample, taken))
    has_label = any(isinstance(guess, Guess) for guess in label)
    split = [*_find_split(order, is_position, has_label)]
    return Columns([roles.user, roles.item, scenario, *label, order, *context], split, decisions, taken)


def _rest(sample: Sample, taken: set[str]) -> list[ColumnSample]:
    return [column for name, column in sample.columns.items() if name not in taken]


def _named(columns: Iterable[ColumnSample], usual: tuple[str, ...]) -> list[ColumnSample]:
    by_name = {column.name: column for column in columns}
    return [by_name[name] for name in names.choose(by_name, usual)]


# --- order --------------------------------------------------------------------------------------------------------


def _find_order(sample: Sample, columns: list[ColumnSample], user: str) -> tuple[Guess | Note, bool]:
    """The column, and whether it is a position within each user."""
    for column in _named(columns, names.ORDER):
        if _is_order(sample, column.name):
            is_position = _restarts(sample, column.name, user)
            if is_position:
                return Guess("order", column.name, "begins anew for each user, so it is a position within them"), True
            if names.plain(column.name) not in _POSITION:
                return Guess("order", column.name, f"a usual name for time; {_span(column)}"), False
        elif column.kind == "text" and column.filled:
            shown = quote(column.values[0])
            why = f"a usual name for time, but values such as {shown} are no numbers and no ISO 8601: see above"
            return Guess("order", column.name, why, is_sure=False), False
    times = [column for column in columns if column.kind == "time" or (column.kind == "whole" and column.is_epoch)]
    for column in sorted(times, key=lambda column: -column.distinct):
        if _is_order(sample, column.name):
            return Guess("order", column.name, f"it holds times; {_span(column)}", is_sure=False), False
    return Note("order is left out: no column holds times, so the order of rows in the files says nothing"), False


def read_order(rows: Rows, name: str) -> None:
    """Read the column as the source does.

    Raises:
        DataError: it holds neither numbers nor times, or a cell is missing.
    """
    Order.decide(rows, name).encode(rows, name)


def _is_order(sample: Sample, name: str) -> bool:
    try:
        read_order(Rows(sample.rows.table.select([name]).drop_null(), sample.rows.file), name)
    except DataError:
        return False
    return True


def _span(column: ColumnSample) -> str:
    if column.is_epoch:
        unit = next(
            name for name, size in (("seconds", 1e10), ("ms", 1e13), ("us", 1e16), ("ns", 1e19)) if column.high < size
        )
        return f"{unit} since 1970"
    return f"such as {quote(column.values[0])}" if column.values else "it is empty"


def _restarts(sample: Sample, name: str, user: str) -> bool:
    """Whether it counts from 0 or 1 for (almost) each user anew, without large gaps; see `data.report_counts`."""
    column = sample.columns[name]
    if not column.is_number or column.is_epoch or not -1 < column.low < 2:
        return False
    rows = sample.rows.table.select([name, user]).drop_null()
    order_R: Floats = Rows(rows, sample.rows.file).numbers(name).to_numpy()
    user_R: AnyInts = pc.index_in(rows[user], value_set=pc.unique(rows[user])).to_numpy()
    count_U = np.bincount(user_R)
    start_U, end_U = np.full(len(count_U), np.inf), np.full(len(count_U), -np.inf)
    np.minimum.at(start_U, user_R, order_R)
    np.maximum.at(end_U, user_R, order_R)
    several_U = count_U > 1
    dense_U = several_U & (start_U >= 0) & (start_U <= 1) & (end_U - start_U < 2 * count_U)
    return bool(several_U.sum() >= 3 and dense_U.sum() >= 0.8 * several_U.sum())


# --- label --------------------------------------------------------------------------------------------------------


def _find_label(sample: Sample, columns: list[ColumnSample]) -> Iterator[Guess | Note]:
    """The label, or why there is none."""
    usable = [column for column in columns if column.filled == column.rows]
    usual = [column for column in _named(usable, names.LABEL) if column.kind == "flag" or _is_share(column)]
    both = [column for column in usual if column.distinct > 1]
    if both:
        yield Guess("label", both[0].name, f"a usual name; {_classes(sample, both[0])}")
        if both[1:]:
            others = ", ".join(column.name for column in both[1:])
            yield Note(f"other columns that may be the label: {others}")
        return
    stars = [column for column in _named(columns, names.STARS) if column.is_number and column.high > 1]
    if stars:
        yield from _of_stars(stars[0])
        return
    flags = [column for column in usable if column.kind == "flag" and column.distinct == 2]
    if len(flags) == 1 and not usual:
        why = f"the one column of 0 and 1; {_classes(sample, flags[0])}. Is it what lists should bring about?"
        yield Guess("label", flags[0].name, why, is_sure=False)
        return
    if usual:
        yield Note(f"label is left out: '{usual[0].name}' is {usual[0].values[0]} in all rows that were looked at")
    yield from _of_events(columns)


def _is_share(column: ColumnSample) -> bool:
    return column.kind == "number" and 0 <= column.low <= column.high <= 1


def _classes(sample: Sample, column: ColumnSample) -> str:
    if column.kind != "flag":
        return "numbers from 0 to 1, liked above 0.5"
    values = sample.rows.labels(column.name).to_numpy()
    return f"{percent(float(values.mean()))} of the rows are liked"


def _of_stars(column: ColumnSample) -> Iterator[Note]:
    low, high = (f"{end:g}" for end in (column.low, column.high))
    middle = (1 + column.high) / 2 if column.low >= 1 else (column.low + column.high) / 2
    yield Note(
        f"label is left out: '{column.name}' holds stars from {low} to {high}, and a label lies between 0 and 1. "
        "So each row counts as an item that the user took, and the ranker learns what a user takes next"
    )
    yield Note(
        f"to learn what users like among what they rated: write a column of 0 and 1, {column.name} > {middle:g}, "
        "name it as label, and take split.negatives out"
    )


def _of_events(columns: list[ColumnSample]) -> Iterator[Note]:
    yield Note("label is left out: no column says what was liked, so each row counts as an item that the user took")
    events = [column for column in _named(columns, names.EVENT) if 1 < column.distinct <= 50]
    if events:
        kinds = shorten(", ".join(map(quote, events[0].values)), 120)
        yield Note(
            f"'{events[0].name}' holds kinds of events ({kinds}), which all count alike: keep only rows of the kinds "
            "that matter, or write a column of 0 and 1 and name it as label"
        )


# --- scenario -----------------------------------------------------------------------------------------------------


def _find_scenario(sample: Sample, columns: list[ColumnSample], roles: Roles) -> Guess | str:
    """The column, or what is to be decided."""
    usable = [column for column in columns if column.filled == column.rows and not _is_split(column)]
    named = [column for column in _named(usable, names.SCENARIO) if column.kind in ("text", "whole", "flag")]
    sure = [column for column in named if names.rank(column.name, names.SCENARIO) < _SURE_NAMES]
    several = [column for column in [*sure, *named] if 2 <= column.distinct <= MOST_SCENARIOS] or sure[:1]
    events = _named(usable, names.EVENT)
    content = [
        column
        for column in usable
        if column.kind == "text" and 2 <= column.distinct <= MOST_UNNAMED and column not in events
    ]
    found = list(dict.fromkeys([*several, *content]))
    if not found:
        return _no_scenario(sample, roles)
    shared = {c.name for c in found if _shares_users(sample, c.name, str(roles.user.value))}
    found.sort(key=lambda column: (column not in sure, column.name not in shared))
    others = [column.name for column in found[1:4]]
    more = f"; it could also be {', '.join(others)}" if others else ""
    is_usual = found[0] in several
    why = f"{'a usual name' if is_usual else 'by its content alone'}: {_values(found[0])}{more}"
    if found[0].distinct > 1 and found[0].name not in shared:
        return Guess("scenario", found[0].name, f"{why}. No user is in two of them, so nothing carries over", False)
    return Guess("scenario", found[0].name, why, is_sure=found[0] in sure)


def _is_split(column: ColumnSample) -> bool:
    return {value.lower() for value in column.values} <= _SPLITS


def _values(column: ColumnSample) -> str:
    shown = ", ".join(map(quote, column.values[:4]))
    count = f"{column.distinct} different values" if column.distinct > 1 else "one value in the rows looked at"
    return f"{count}, such as {shown}"


def _shares_users(sample: Sample, scenario: str, user: str) -> bool:
    pairs = sample.rows.table.select([user, scenario]).group_by([user, scenario]).aggregate([])
    return len(pairs) > len(pc.unique(pairs[user]))


def _no_scenario(sample: Sample, roles: Roles) -> str:
    where = sample.name or sample.files[0].path.name
    text = (
        f"scenario: no column of {where} looks like one (a page, a shelf, a channel: few values, which a user meets "
        "several of). Name such a column as source.table.scenario"
    )
    for described in filter(None, (roles.items, roles.users)):
        columns = [c for c in _rest(described.sample, {described.key}) if 2 <= c.distinct <= MOST_SCENARIOS]
        found = _named(columns, (*names.SCENARIO, *names.CATEGORY))
        if found:
            text += f", or copy '{found[0].name}' ({found[0].distinct} values) of {described.sample.name} to each row"
            break
    return f"{text}; where there is one scenario only, put the file into a folder named 'scenario=all'"


# --- context and split --------------------------------------------------------------------------------------------


def _find_context(sample: Sample, columns: list[ColumnSample]) -> Iterator[Guess | Note]:
    kinds = ("text", "whole", "flag")
    found = [c for c in _named(columns, names.CONTEXT) if c.kind in kinds and 2 <= c.distinct <= MOST_SCENARIOS]
    if found:
        context = tuple(column.name for column in found)
        yield Guess("context", context, "usual names for what is known when a list is ranked")
    rest = [column.name for column in columns if column not in found]
    if rest:
        yield Note(f"not used: {shorten(', '.join(rest), 200)}")


def _find_split(order: Guess | Note, is_position: bool, has_label: bool) -> Iterator[Guess | Note]:
    if isinstance(order, Note):
        yield Guess("kind", "random", "there are no times to split by")
    elif is_position:
        yield Guess("kind", "leave_last_out", "order is a position within the user: the last row of each tests")
    else:
        yield Guess("kind", "time", "the latest rows test, as in service; where few test users have a past, by = user")
    if not has_label:
        why = f"there is no label: {NEGATIVES} items are drawn for each row from those that the user had not taken"
        yield Guess("negatives", NEGATIVES, why)
