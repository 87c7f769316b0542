"""Which table holds interactions, items and users, and which columns are the ids that join them."""

from collections.abc import Sequence
from typing import NamedTuple

import pyarrow.compute as pc

from llm4msr.arrays import Column
from llm4msr.data.reading.columns import Rows
from llm4msr.draft import names
from llm4msr.draft.columns import ColumnSample
from llm4msr.draft.guess import Guess
from llm4msr.draft.samples import Sample
from llm4msr.errors import DataError
from llm4msr.text import percent, shorten

_NEAR_UNIQUE = 0.9
"""Share of different values from which a column is a key, a few of whose values stand twice."""
_OVERLAP = 0.3
"""Share of the interactions' ids that a file describes, from which it is taken for theirs whatever its names are."""
_CHANCE = 10
"""So many different values may be among the ids of another table by chance, as small numbers are."""


class Described(NamedTuple):
    """A table with a row for each item or user."""

    sample: Sample
    key: str
    """Its column of ids."""
    overlap: float
    """Share of the interactions' ids, in the sample, that are there."""


class Roles(NamedTuple):
    """The tables, and the columns of ids in the interactions."""

    interactions: Sample
    user: Guess
    item: Guess
    items: Described | None
    users: Described | None
    unused: list[Sample]


def find_roles(samples: Sequence[Sample]) -> Roles:
    """Guess them, by names first and then by content.

    Raises:
        DataError: no table has a column of users and one of items.
    """
    _refuse_apart(samples)
    interactions = max(samples, key=lambda sample: (_points(sample), sample.about))
    others = [sample for sample in samples if sample is not interactions]
    user, item = _find_ids(interactions, others)
    items = _find_described(interactions, str(item.value), others, names.ITEM)
    others = [sample for sample in others if items is None or sample is not items.sample]
    users = _find_described(interactions, str(user.value), others, names.USER)
    unused = [sample for sample in others if users is None or sample is not users.sample]
    return Roles(interactions, user, item, items, users, unused)


def _refuse_apart(samples: Sequence[Sample]) -> None:
    """Refuse tables of which some have users and some have items, as orders and their lines do, but none has both."""
    has = [(sample, *_has_ids(sample)) for sample in samples]
    if any(has_user and has_item for _, has_user, has_item in has):
        return
    for users in [sample for sample, has_user, _ in has if has_user]:
        for items in [sample for sample, _, has_item in has if has_item]:
            if shared := [name for name in users.columns if name in items.columns]:
                raise DataError(
                    f"users stand in {users.name} and items in {items.name}: join the two by '{shared[0]}' to one "
                    "table, in which each row is what one user did with one item"
                )


def _has_ids(sample: Sample) -> tuple[bool, bool]:
    """Whether it names users and items that stand in several rows."""
    repeated = [column.name for column in sample.columns.values() if _may_be_id(column) and not column.is_unique]
    has_user, has_item = (bool(names.choose(repeated, usual, loosely=True)) for usual in (names.USER, names.ITEM))
    return has_user, has_item


def _points(sample: Sample) -> int:
    has_user, has_item = _has_ids(sample)
    rest = sum(bool(names.choose(sample.columns, usual)) for usual in (names.ORDER, (*names.LABEL, *names.STARS)))
    return 4 * (has_user and has_item) + 2 * (has_user or has_item) + rest


def _may_be_id(column: ColumnSample) -> bool:
    return column.kind in ("text", "whole", "flag") and column.distinct > 1


def _find_ids(interactions: Sample, others: Sequence[Sample]) -> tuple[Guess, Guess]:
    columns = {name: column for name, column in interactions.columns.items() if _may_be_id(column)}
    user = _by_name(columns, names.USER, others, "user")
    rest = [name for name in columns if user is None or name != user.value]
    item = _by_name({name: columns[name] for name in rest}, names.ITEM, others, "item")
    taken = [str(guess.value) for guess in (user, item) if guess]
    rest = [name for name in columns if name not in taken]
    if item is None:
        item = _joined(interactions, rest, others, "item") or _repeated(interactions, rest, "item", bool(user))
    rest = [name for name in rest if item is None or name != item.value]
    if user is None:
        user = _joined(interactions, rest, others, "user") or _repeated(interactions, rest, "user", True)
    if user is None or item is None:
        what = " and ".join(role for role, guess in (("users", user), ("items", item)) if guess is None)
        shown = shorten(", ".join(interactions.columns), 300)
        raise DataError(
            f"{interactions.files[0].path}: no column looks like ids of {what}; it has {shown}. "
            "Give the file in which each row is what one user did with one item"
        )
    return user, item


def _by_name(
    columns: dict[str, ColumnSample], usual: tuple[str, ...], others: Sequence[Sample], role: str
) -> Guess | None:
    """The column of the most usual name, or of one that is the key of another table too."""
    found = names.choose(columns, usual, loosely=True)
    if not found:
        return None
    keys = {column.name for sample in others for column in sample.columns.values() if _is_key(column)}
    found.sort(key=lambda name: name not in keys)
    column = columns[found[0]]
    rivals = f"; it could also be {', '.join(found[1:3])}" if found[1:] else ""
    is_weak = names.rank(found[0], usual) > len(usual) - 5
    why = f"a usual name for ids of {role}s: {column.distinct:,} different values{rivals}"
    return Guess(role, found[0], why, is_sure=not is_weak)


def _joined(interactions: Sample, columns: Sequence[str], others: Sequence[Sample], role: str) -> Guess | None:
    """The column whose values are a unique column of another table: items' tables have texts."""
    found = []
    for sample in others:
        if any(column.words >= 1.5 for column in sample.columns.values()) != (role == "item"):
            continue
        for name in columns:
            key, share = _best_key(interactions, name, sample)
            if share >= _OVERLAP and _is_fit(interactions, name) and interactions.columns[name].distinct > _CHANCE:
                used = share * interactions.columns[name].distinct / sample.columns[key].distinct
                found.append((share * min(used, 1.0), share, name, key, sample.name))
    if not found:
        return None
    _, share, name, key, where = max(found)
    return Guess(role, name, f"{percent(share)} of its values are in '{key}' of {where}", is_sure=False)


def _repeated(interactions: Sample, columns: Sequence[str], role: str, is_only: bool) -> Guess | None:
    """By content alone: of the columns of many values that repeat, the first is taken for users, the next for items."""
    rows = len(interactions.rows.table)
    many = [name for name in columns if 2 < interactions.columns[name].distinct < rows and _is_fit(interactions, name)]
    many = sorted(many, key=lambda name: -interactions.columns[name].distinct)[: 1 if is_only else 2]
    in_order = [name for name in columns if name in many]
    if not in_order or (role == "item" and not is_only and len(in_order) < 2):
        return None
    name = in_order[-1] if role == "item" else in_order[0]
    distinct = interactions.columns[name].distinct
    return Guess(role, name, f"by its content alone: {distinct:,} different values in {rows:,} rows", is_sure=False)


def _is_fit(sample: Sample, name: str) -> bool:
    others = (*names.SCENARIO, *names.LABEL, *names.STARS, *names.EVENT, *names.ORDER, *names.TITLE, *names.CATEGORY)
    column = sample.columns[name]
    return not names.choose([name], (*others, *names.VISIT)) and column.words < 1.5 and not column.is_epoch


def _find_described(
    interactions: Sample, name: str, others: Sequence[Sample], usual: tuple[str, ...]
) -> Described | None:
    """The table that describes the ids of this column: the same name counts most, then shared ids."""
    found = []
    for sample in others:
        if name in sample.columns and _is_key(sample.columns[name]):
            found.append((2.0, Described(sample, name, _overlap(interactions.rows, name, sample.rows, name))))
            continue
        key, share = _best_key(interactions, name, sample)
        is_named = bool(key) and bool(names.choose([key], (*usual, "id"), loosely=True))
        if key and share >= (0.01 if is_named else _OVERLAP):
            found.append((share, Described(sample, key, share)))
    return max(found, key=lambda one: (one[0], one[1].overlap))[1] if found else None


def _is_key(column: ColumnSample) -> bool:
    return column.kind in ("text", "whole", "flag") and column.distinct >= _NEAR_UNIQUE * column.rows


def _best_key(interactions: Sample, name: str, sample: Sample) -> tuple[str, float]:
    """The column of another table that holds most of this column's ids, and their share."""
    keys = [column.name for column in sample.columns.values() if _is_key(column)]
    shares = {key: _overlap(interactions.rows, name, sample.rows, key) for key in keys}
    best = max(shares, key=lambda key: shares[key], default="")
    return best, shares.get(best, 0.0)


def _overlap(rows: Rows, name: str, described: Rows, key: str) -> float:
    ours, theirs = _ids(rows, name), _ids(described, key)
    if ours is None or theirs is None or not len(ours):
        return 0.0
    return float(pc.is_in(ours, value_set=theirs).to_numpy(zero_copy_only=False).mean())


def _ids(rows: Rows, name: str) -> "Column | None":
    """The different ids of a column; none if it cannot hold ids."""
    try:
        table = rows.table.select([name]).drop_null()
        return pc.unique(Rows(table, rows.file).ids(name))
    except DataError:
        return None
