"""The data report of `prepare`: how large the data is, what ids and titles lack, how it was split, and one prompt.

Examples are few and short, and written as Python literals, so that a blank at an end, or `'7'` beside `'7.0'`, can be
seen. The report is bounded, whatever the data.
"""

from typing import Self

from pydantic import BaseModel

from llm4msr.text import block, percent, shorten

FEW_ROWS = 30
"""Training rows below which a scenario's own part of a model learns next to nothing."""
WIDTH = 110
"""Characters of a line of the prompt."""
PROMPT_LINES = 6


class Sums(BaseModel):
    """What adds up over partitions, field by field."""

    def __add__(self, other: Self) -> Self:
        return self.model_validate({name: value + getattr(other, name) for name, value in self})


class Described(BaseModel):
    """How many ids of the interactions are found in the file that describes users or items."""

    file: str
    in_file: int
    ids: int
    """Distinct ids of the interactions."""
    missing: int
    """Of these, how many are not in the file; `missing_rows` are their rows."""
    missing_rows: int
    alike: int
    """Of the missing, how many are in the file in another spelling: `examples` and `theirs` are then pairs."""
    examples: list[str]
    theirs: list[str]


class Titles(BaseModel):
    """What the LLM gets to read of the items of training rows."""

    items: int
    ids: int
    """Titles that are the item's id, which is what an item without a title shows."""
    codes: int
    """Other titles that look like a code, not like a name."""
    commonest: str
    commonest_items: int
    """The title that most items have, and how many."""
    examples: list[str]
    bare: list[str] = []
    """Scenarios whose items in training rows mostly have none, if not all scenarios are so."""


class Scenarios(BaseModel):
    """How many rows the scenarios have, as {scenario: rows}; the lists are cut to a few examples."""

    largest: dict[str, int]
    smallest_rows: int
    small: dict[str, int]
    """Examples with few training rows; there are `small_count`."""
    small_count: int
    untrained: dict[str, int]
    """Examples that no training row has, with their rows; there are `untrained_count`."""
    untrained_count: int


class Split(Sums):
    """One split (train, valid or test). A user's past are those training rows that may reach a prompt."""

    rows: int
    drawn: int
    """How many of these are drawn negatives."""
    positives: int
    users: int
    users_with_past: int
    rows_with_past: int


class DataReport(BaseModel):
    """The figures and examples; the manifest of `prepare` holds it as `report`."""

    rows: int
    left_out: int
    """Rows of the source that are not used."""
    users: int
    items: int
    scenarios: int
    users_with_one_row: int
    repeats: int
    """Rows with the user, item and scenario of an earlier row."""
    order_restarts: bool
    """Whether `order` counts from 0 or 1 for each user anew."""
    orders: int
    """Distinct values of `order`."""
    longest_path: int
    """Steps of the longest category path; 0 where there are no paths."""
    other_separator: str
    """The mark that most paths have inside, if the configured separator splits none; else empty."""
    described: dict[str, Described]
    titles: Titles
    by_scenario: Scenarios
    parts: dict[str, Split]
    prompt_of: str
    prompt: str


def report_lines(report: DataReport, whole_prompt: bool = False) -> list[str]:
    """The report as lines of text for a terminal; of the prompt only the first ones, unless it is wanted whole."""
    sections = {
        "data": [_data(report)],
        "scenarios": [_scenarios(report)],
        **{f"{side}s": [_described(described)] for side, described in report.described.items()},
        "titles": [_titles(report.titles)],
        "split": [*_split(report.parts), *_left_out(report)],
        "prompt": _prompt(report, whole_prompt),
    }
    width = max(map(len, sections))
    return [
        f"  {'' if number else name:<{width}}  {line}".rstrip()
        for name, lines in sections.items()
        for number, line in enumerate(lines)
    ]


def name_examples(examples: dict[str, int], count: int) -> str:
    """Named examples with their rows, and how many more there are."""
    named = ", ".join(f"{name} ({rows:,})" for name, rows in examples.items())
    return named + (f" and {count - len(examples):,} more" if count > len(examples) else "")


def _data(report: DataReport) -> str:
    counts = f"{report.rows:,} rows of {report.users:,} users with {report.items:,} items"
    alone = percent(report.users_with_one_row, report.users)
    return f"{counts}; {alone} of the users have one row; {report.repeats:,} rows repeat another's user, item, scenario"


def _scenarios(report: DataReport) -> str:
    by = report.by_scenario
    smallest = f"; the smallest has {by.smallest_rows:,} rows" if report.scenarios > len(by.largest) else ""
    return f"{report.scenarios:,}: {name_examples(by.largest, report.scenarios)}{smallest}"


def _described(described: Described) -> str:
    file = described.file if len(described.file) <= 40 else f"…{described.file[-39:]}"
    named = f"{described.ids - described.missing:,} of {described.ids:,} are described in {file}"
    if not described.missing:
        return named
    return f"{named}; others, in {described.missing_rows:,} rows, such as {', '.join(described.examples)}"


def _titles(titles: Titles) -> str:
    named = f"{titles.items - titles.ids:,} of {titles.items:,} items of training rows have one"
    if titles.codes:
        named += f", of which {titles.codes:,} look like codes"
    return named + (f"; others show their id, such as {', '.join(titles.examples)}" if titles.ids else "")


def _split(splits: dict[str, Split]) -> list[str]:
    total = sum(split.rows for split in splits.values())
    table = [("", "rows", "", "positive", "", "users", "with a past", "", "rows of these")]
    for name, s in splits.items():
        counts = (f"{s.rows:,}", percent(s.rows, total), f"{s.positives:,}", percent(s.positives, s.rows))
        past = (f"{s.users_with_past:,}", percent(s.users_with_past, s.users))
        table.append((name, *counts, f"{s.users:,}", *past, percent(s.rows_with_past, s.rows - s.drawn)))
    first, *widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = [
        "  ".join([f"{name:<{first}}", *(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))])
        for name, *cells in table
    ]
    drawn = ", ".join(f"{split.drawn:,} of {name}" for name, split in splits.items() if split.drawn)
    return lines + ([f"drawn as negatives: {drawn}"] if drawn else [])


def _left_out(report: DataReport) -> list[str]:
    of = f"{report.left_out:,} of {report.rows + report.left_out:,} rows"
    return [f"left out (split.first_events, split.latest): {of}"] if report.left_out else []


def _prompt(report: DataReport, whole: bool) -> list[str]:
    if not report.prompt:
        return ["none: no user has liked anything in the training rows"]
    lines = block(report.prompt).split("\n")
    if not whole:
        text = [shorten(line, WIDTH) for line in lines if line.strip()]
        lines = text if len(text) <= PROMPT_LINES else [text[0], *text[1 : PROMPT_LINES - 1], "…"]
    return [f"that of {report.prompt_of}:", *(f"| {line}".rstrip() for line in lines)]
