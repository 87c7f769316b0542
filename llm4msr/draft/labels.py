"""Which column of the interactions is to be predicted, or what to do where none can be."""

from collections.abc import Iterator

from llm4msr.config.toml import as_toml
from llm4msr.draft import names
from llm4msr.draft.columns import ColumnSample, named
from llm4msr.draft.guess import Guess, Note
from llm4msr.draft.samples import Sample
from llm4msr.text import percent, quote, shorten

_LIKED_FROM = 0.6
"""Part of the most stars above which an item counts as liked: 3 of 5."""


def find_label(sample: Sample, columns: list[ColumnSample]) -> Iterator[Guess | Note]:
    """The label, or why there is none."""
    usual = named([column for column in columns if column.filled == column.rows and _fits(column)], names.LABEL)
    flags = [c for c in columns if c.kind == "flag" and c.distinct == 2 and c.filled == c.rows]
    stars = [column for column in named(columns, names.STARS) if column.is_number and column.high > 1]
    if both := [column for column in usual if column.distinct > 1]:
        yield Guess("label", both[0].name, f"a usual name; {_classes(sample, both[0])}")
        if both[1:]:
            yield Note(f"other columns that may be the label: {', '.join(column.name for column in both[1:])}")
    elif stars:
        yield from _of_stars(stars[0])
    elif unread := [c for c in named(columns, names.LABEL) if c not in usual and 0 < c.distinct <= 2]:
        why = "a usual name, but not each row has a number from 0 to 1, true or false: see above"
        yield Guess("label", unread[0].name, why, is_sure=False)
    elif len(flags) == 1 and not usual:
        why = f"the one column of 0 and 1; {_classes(sample, flags[0])}. Is it what lists should bring about?"
        yield Guess("label", flags[0].name, why, is_sure=False)
    else:
        yield Note(f"label is left out: {_why_none(columns, usual)}, so each row counts as an item that the user took")
        yield from _of_events(columns)


def _why_none(columns: list[ColumnSample], usual: list[ColumnSample]) -> str:
    if usual:
        return f"'{usual[0].name}' is {usual[0].values[0]} in all rows that were looked at"
    other = [column for column in named(columns, names.LABEL) if column.values]
    if not other:
        return "no column says what was liked"
    shown = ", ".join(map(quote, other[0].values[:3]))
    return (
        f"'{other[0].name}' holds {shown} and the like, where a number from 0 to 1, true or false is read in every row"
    )


def _fits(column: ColumnSample) -> bool:
    return column.kind == "flag" or (column.kind == "number" and 0 <= column.low <= column.high <= 1)


def _classes(sample: Sample, column: ColumnSample) -> str:
    if column.kind != "flag":
        return "numbers from 0 to 1, liked above 0.5"
    values = sample.rows.labels(column.name).to_numpy()
    return f"{percent(float(values.mean()))} of the rows are liked"


def _of_stars(column: ColumnSample) -> Iterator[Note]:
    low, high = (f"{end:g}" for end in (column.low, column.high))
    most = _LIKED_FROM * column.high
    yield Note(
        f"label is left out: '{column.name}' holds stars from {low} to {high}, and a label lies between 0 and 1. "
        "So each row counts as an item that the user took, and the ranker learns what a user takes next"
    )
    yield Note(
        f"to learn what users like among what they rated instead, write label = {as_toml(column.name)} and "
        f"liked_above = {most:g}, and take split.negatives out"
    )


def _of_events(columns: list[ColumnSample]) -> Iterator[Note]:
    events = [column for column in named(columns, names.EVENT) if 1 < column.distinct <= 50]
    if events:
        kinds = shorten(", ".join(map(quote, events[0].values)), 120)
        yield Note(
            f"'{events[0].name}' holds kinds of events ({kinds}), which all count alike: keep only rows of the kinds "
            "that matter, or write a column of 0 and 1 and name it as label"
        )
