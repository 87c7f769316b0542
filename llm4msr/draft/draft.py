"""From files to the draft of a config."""

from collections.abc import Iterator, Sequence

from llm4msr.draft import descriptions, interactions, public, tables, times
from llm4msr.draft.guess import Draft, Guess, Note
from llm4msr.draft.roles import Roles, find_roles
from llm4msr.draft.samples import Sample, read_samples
from llm4msr.errors import DataError
from llm4msr.text import quote, shorten

MANY_ROWS = 100_000
"""From which on the match of a user's past with a candidate is worth its weights: with three interactions of each of
19,000 users it was not, with six it was (benchmarks/results/quality-curve.md). With labels it is worth less, but
projected it was above plain and random vectors on each of three sets of so many rows (docs/measured.md)."""


def draft(places: Sequence[str]) -> Draft:
    """Look at some rows of the files, and guess what is what.

    Raises:
        DataError: no file can be read as CSV or Parquet, or none has a column of users and one of items.
        StorageError: a place does not exist or cannot be read.
    """
    known = public.recognise(places)
    if known is not None:
        return known
    found = tables.look_into(places)
    samples = read_samples(found)
    roles = find_roles(samples)
    columns = interactions.find_columns(roles)
    items, mend_items = descriptions.find_items(roles, columns.taken, columns.scenario)
    users, mend_users = descriptions.find_users(roles)
    used = [sample for sample in samples if sample not in roles.unused]
    delimiter, mend_delimiter = _delimiter(used)
    unused = [*(sample.name for sample in roles.unused), *found.others]
    table = [
        _interactions(roles),
        *delimiter,
        *items[:1],
        *users[:1],
        *columns.guesses,
        *items[1:],
        *users[1:],
    ]
    table += [Note(f"files that are not used: {shorten(', '.join(unused), 200)}")] if unused else []
    decisions = [*mend_delimiter, *mend_items, *mend_users, *_left_out(roles), *_faults(roles, columns.guesses)]
    matches = roles.interactions.about >= MANY_ROWS
    return Draft(found.path, _seen(samples), table, columns.split, decisions, matches)


def _interactions(roles: Roles) -> Guess:
    sample = roles.interactions
    many = f"{len(sample.files):,} files, " if len(sample.files) > 1 else ""
    about = "" if sample.is_whole else "about "
    return Guess("interactions", sample.name, f"a row for each user and item: {many}{about}{sample.about:,} rows")


def _delimiter(used: Sequence[Sample]) -> tuple[list[Guess | Note], list[str]]:
    """The key, if a header does not show the mark, and which of the other files have another one."""
    marks = sorted({sample.delimiter for sample in used} - {""})
    if not marks:
        return [], []
    why = "a header has other marks too, and with this one all rows have as many cells"
    others = [sample.name for sample in used if not sample.is_read_with(marks[0])]
    rule = f"delimiter: cells are separated by {quote(marks[0])} in one file, and otherwise in"
    return [Guess("delimiter", marks[0], why)], [f"{rule} {name}; write both alike" for name in others]


def _left_out(roles: Roles) -> Iterator[str]:
    """Files with the ids of the interactions that are not read with them, such as a later day's with a column more."""
    ids, one = {str(roles.user.value), str(roles.item.value)}, roles.interactions
    for other in roles.unused:
        if ids <= other.columns.keys():
            yield (
                f"interactions: {other.name} names users and items as {one.name} does, but has other columns, and is "
                "left out; to read both, make interactions a glob that takes these files alone"
            )


def _seen(samples: Sequence[Sample]) -> str:
    rows = [f"{len(s.rows.table):,} rows of {s.name or s.files[0].path.name}" for s in samples]
    return shorten(", ".join(rows), 300)


def _faults(roles: Roles, guesses: list[Guess | Note]) -> Iterator[str]:
    """What the source would refuse in the rows that were looked at, as it says it itself."""
    rows = roles.interactions.rows
    read = {"user": rows.ids, "item": rows.ids, "scenario": rows.ids, "label": rows.labels}
    for guess in guesses:
        if isinstance(guess, Guess) and str(guess.value) in rows.table.column_names:
            try:
                if guess.key in read:
                    read[guess.key](str(guess.value))
                elif guess.key == "order":
                    times.read_order(rows, str(guess.value))
            except DataError as error:
                yield f"{guess.key}: {error}"
