"""What the columns of the interactions are: scenario, label, order, context; and how rows are split."""

from collections.abc import Iterator
from typing import NamedTuple

from llm4msr.draft import labels, names, scenarios, times
from llm4msr.draft.columns import ColumnSample, named
from llm4msr.draft.guess import Guess, Note
from llm4msr.draft.roles import Roles
from llm4msr.draft.samples import Sample
from llm4msr.text import shorten

NEGATIVES = 4
MOST_CONTEXTS = 1000
"""Different values of a column that is taken for a context."""

FEW_TIMES = 30
"""Different times below which no cut leaves parts of about the wanted size."""


class Columns(NamedTuple):
    """The guesses about the interactions' columns, in the order in which the config shows them."""

    guesses: list[Guess | Note]
    split: list[Guess | Note]
    taken: set[str]
    scenario: str
    """The column's name, or nothing."""


def find_columns(roles: Roles) -> Columns:
    """Guess them; each is of the interactions' table."""
    sample = roles.interactions
    taken = {str(roles.user.value), str(roles.item.value)}
    order, is_position = times.find_order(sample, _rest(sample, taken), str(roles.user.value))
    taken |= {str(order.value)} if isinstance(order, Guess) else set()
    label = [*labels.find_label(sample, _rest(sample, taken))]
    taken |= {str(guess.value) for guess in label if isinstance(guess, Guess)}
    scenario = scenarios.find_scenario(_rest(sample, taken), roles)
    taken.add(str(scenario.value))
    context = _find_context(sample, _rest(sample, taken))
    has_label = any(isinstance(guess, Guess) for guess in label)
    split = [*_find_split(sample, order, is_position, has_label)]
    return Columns([roles.user, roles.item, scenario, *label, order, *context], split, taken, str(scenario.value))


def _rest(sample: Sample, taken: set[str]) -> list[ColumnSample]:
    return [column for name, column in sample.columns.items() if name not in taken]


def _find_context(sample: Sample, columns: list[ColumnSample]) -> Iterator[Guess | Note]:
    kinds = ("text", "whole", "flag")
    found = [c for c in named(columns, names.CONTEXT) if c.kind in kinds and 2 <= c.distinct <= MOST_CONTEXTS]
    if found:
        context = tuple(column.name for column in found)
        yield Guess("context", context, "usual names for what is known when a list is ranked")
    rest = [column.name for column in columns if column not in found]
    if rest:
        yield Note(f"not used: {shorten(', '.join(rest), 200)}")


def _find_split(sample: Sample, order: Guess | Note, is_position: bool, has_label: bool) -> Iterator[Guess | Note]:
    if isinstance(order, Note):
        yield Guess("kind", "random", "there are no times to split by")
    elif is_position:
        yield Guess("kind", "leave_last_out", "order is a position within the user: the last row of each tests")
    else:
        why = 'the latest rows test, as in service; where few test users have a past, set by = "user"'
        yield Guess("kind", "time", why)
        times_there = sample.columns[str(order.value)].distinct
        if sample.is_whole and times_there < FEW_TIMES:
            yield Guess("by", "user", f"there are {times_there} different times, too few to cut all rows by")
    if not has_label:
        why = f"there is no label: {NEGATIVES} items are drawn for each row from those that the user had not taken"
        yield Guess("negatives", NEGATIVES, why)
