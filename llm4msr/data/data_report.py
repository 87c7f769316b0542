"""What `prepare` says about the data: its size, what ids and titles lack, how it was split, and a prompt made of it.

Examples are few and short, and written as Python writes text, so that a blank at an end, or `'7'` beside `'7.0'`, is
seen.
"""

from pydantic import BaseModel

from llm4msr.text import block, percent, shorten

FEW_ROWS = 30
"""Training rows below which a scenario's own part of a model learns next to nothing."""
WIDTH = 110
"""Characters of a line of the prompt."""
PROMPT_LINES = 6


class Described(BaseModel):
    """How the ids of the interactions meet those of the file that describes users or items."""

    file: str
    in_file: int
    ids: int
    """Distinct ids of the interactions."""
    missing: int
    """So many of them are not in the file, in so many rows."""
    missing_rows: int
    alike: int
    """So many of those are in the file in another spelling: `examples` and `theirs` are then pairs."""
    examples: list[str]
    theirs: list[str]


class Titles(BaseModel):
    """What the LLM gets to read of the items of training rows."""

    items: int
    ids: int
    """So many titles are the item's id, which is what an item without a title shows."""
    codes: int
    """So many more look like a code, not like a name."""
    commonest: str
    commonest_items: int
    """The title that most items have, and how many."""
    examples: list[str]


class Scenarios(BaseModel):
    """How rows lie on scenarios."""

    largest: dict[str, int]
    smallest_rows: int
    small: dict[str, int]
    """Some with few training rows; there are `small_count`."""
    small_count: int
    untrained: dict[str, int]
    """Some that no training row has, with their rows; there are `untrained_count`."""
    untrained_count: int


class Part(BaseModel):
    """One part of the split. A user's past are those training rows that may reach a prompt."""

    rows: int
    drawn: int
    """Rows of these that are drawn negatives."""
    positives: int
    users: int
    users_with_past: int
    rows_with_past: int


class DataReport(BaseModel):
    """See the module; bounded, whatever the data."""

    rows: int
    users: int
    items: int
    scenarios: int
    users_with_one_row: int
    repeats: int
    """Rows whose user, item and scenario stand in an earlier row."""
    order_restarts: bool
    """Whether `order` counts from 0 or 1 for each user anew."""
    orders: int
    """Distinct values of `order`."""
    longest_path: int
    """Steps of the longest category path; 0 where there are no paths."""
    other_separator: str
    """What paths that never split have inside instead, where that is plain."""
    described: dict[str, Described]
    titles: Titles
    by_scenario: Scenarios
    parts: dict[str, Part]
    prompt_of: str
    prompt: str


def lines(report: DataReport) -> list[str]:
    """The report in lines, each of them fit for a terminal."""
    about = {
        "data": [_data(report)],
        "scenarios": [_scenarios(report)],
        **{f"{side}s": [_described(described)] for side, described in report.described.items()},
        "titles": [_titles(report.titles)],
        "split": _split(report.parts),
        "prompt": _prompt(report),
    }
    width = max(map(len, about))
    return [
        f"  {'' if number else name:<{width}}  {line}".rstrip()
        for name, block_ in about.items()
        for number, line in enumerate(block_)
    ]


def some(examples: dict[str, int], count: int) -> str:
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
    return f"{report.scenarios:,}: {some(by.largest, report.scenarios)}{smallest}"


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


def _split(parts: dict[str, Part]) -> list[str]:
    total = sum(part.rows for part in parts.values())
    table = [("", "rows", "", "positive", "", "users", "with a past", "", "rows of these")]
    for name, p in parts.items():
        counts = (f"{p.rows:,}", percent(p.rows, total), f"{p.positives:,}", percent(p.positives, p.rows))
        past = (f"{p.users_with_past:,}", percent(p.users_with_past, p.users))
        table.append((name, *counts, f"{p.users:,}", *past, percent(p.rows_with_past, p.rows - p.drawn)))
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    shown = ["  ".join(f"{cell:>{w}}" for cell, w in zip(row[1:], widths[1:], strict=True)) for row in table]
    drawn = ", ".join(f"{part.drawn:,} of {name}" for name, part in parts.items() if part.drawn)
    told = [f"{row[0]:<{widths[0]}}  {line}" for row, line in zip(table, shown, strict=True)]
    return told + ([f"drawn as negatives: {drawn}"] if drawn else [])


def _prompt(report: DataReport) -> list[str]:
    if not report.prompt:
        return ["none: no user has liked anything in the training rows"]
    text = [shorten(line, WIDTH) for line in block(report.prompt).split("\n") if line.strip()]
    kept = text if len(text) <= PROMPT_LINES else [text[0], *text[1 : PROMPT_LINES - 1], "…"]
    return [f"that of {report.prompt_of}:", *(f"| {line}" for line in kept)]
