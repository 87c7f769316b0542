"""What the columns of the tables of items and users are: title, category, features."""

import re
from collections.abc import Iterator

from llm4msr.draft import names
from llm4msr.draft.columns import ColumnSample
from llm4msr.draft.guess import Guess, Note
from llm4msr.draft.roles import Described, Roles
from llm4msr.text import percent, quote, shorten

MOST_VALUES = 1000
"""Different values of a feature that is worth an embedding for each."""
MOST_FEATURES = 8
_SEPARATORS = (" > ", ">", "|", " / ", "/", ";", ",")
_ROW_OR_ID = re.compile(r"^(unnamed.*|index|row|rownumber|.*(url|uri|image|img|link|path|hash|embedding|vector))$")


def find_items(roles: Roles, taken: set[str], scenario: str) -> tuple[list[Guess | Note], list[str]]:
    """The keys about items, and what is to be mended; `taken` are columns of the interactions with a meaning.

    Where items have a scenario too, it is no feature: the row says it already, and a prompt would say it twice.
    """
    if roles.items is None:
        return [*_no_items(roles, taken)], []
    guesses: list[Guess | Note] = [
        Guess("items", roles.items.sample.name, _why(roles.items, "item"), _is_sure(roles.items)),
        *_find_key("item_in_items", roles.items, roles.item),
        *_find_repeats(roles.items),
    ]
    columns = _rest(roles.items)
    title, category = _find_title(columns), _find_category(columns)
    guesses.append(title or Note("title is left out: no column holds names of items, so prompts show ids"))
    if category:
        guesses += category
    used = {guess.value for guess in guesses if isinstance(guess, Guess)}
    refused = {"item_id", scenario} | ({"category"} if category else set())
    guesses += _find_features("item_features", [c for c in columns if c.name not in used], refused)
    return guesses, [*_faults(roles.items, "item")]


def find_users(roles: Roles) -> tuple[list[Guess | Note], list[str]]:
    """The keys about users, and what is to be mended."""
    if roles.users is None:
        return [], []
    features = [*_find_features("user_features", _rest(roles.users), {"user_id"})]
    if not any(isinstance(guess, Guess) for guess in features):
        return [Note(f"{roles.users.sample.name or 'the users'} is left out: none of its columns is a feature")], []
    users = Guess("users", roles.users.sample.name, _why(roles.users, "user"), _is_sure(roles.users))
    return [users, *_find_key("user_in_users", roles.users, roles.user), *features], [*_faults(roles.users, "user")]


def _find_key(key: str, described: Described, ours: Guess) -> Iterator[Guess]:
    """The name of the ids in the table that describes them, if it is another one than in the interactions."""
    if described.key != ours.value:
        why = f"what the interactions call '{ours.value}'"
        yield Guess(key, described.key, why, is_sure=described.overlap > 0.5)


def _find_repeats(items: Described) -> Iterator[Guess]:
    column = items.sample.columns[items.key]
    if twice := column.filled - column.distinct:
        yield Guess("repeated_items", "first", f"{_repeated(items, twice)}; the first row of each counts")


def _repeated(described: Described, twice: int) -> str:
    some = "" if described.sample.is_whole else f" (of the {described.sample.columns[described.key].rows:,} looked at)"
    return f"{twice:,} of the values of '{described.key}' stand again in a later row{some}"


def _rest(described: Described) -> list[ColumnSample]:
    return [column for name, column in described.sample.columns.items() if name != described.key]


def _why(described: Described, role: str) -> str:
    some = (
        "there"
        if described.sample.is_whole
        else f"among the {described.sample.columns[described.key].rows:,} rows looked at"
    )
    return f"a row for each {role}: {percent(described.overlap)} of the interactions' {role}s are {some}"


def _is_sure(described: Described) -> bool:
    return described.overlap > 0.5 or (described.overlap > 0 and not described.sample.is_whole)


def _faults(described: Described, role: str) -> Iterator[str]:
    sample, column = described.sample, described.sample.columns[described.key]
    if described.overlap == 0 and sample.is_whole:
        shown = f"the file has {', '.join(map(quote, column.values[:3]))}"
        yield f"{role}s: none of the interactions' {role}s is in {sample.name}: {shown}; write ids the same way in both"
    if role == "user" and column.distinct < column.filled:
        again = _repeated(described, column.filled - column.distinct)
        yield f"users: in {sample.name}, {again}; keep one row of each"
    if column.filled < column.rows:
        yield f"{role}s: {column.rows - column.filled:,} rows of {sample.name} have no '{described.key}'; remove them"


def _no_items(roles: Roles, taken: set[str]) -> Iterator[Note]:
    rest = [c.name for c in roles.interactions.columns.values() if c.name not in taken and not c.is_unique]
    titles = names.choose(rest, names.TITLE) or [name for name in rest if names.has_word(name, ("title", "name"))]
    if titles:
        yield Note(
            f"items is left out: '{titles[0]}' stands in the interactions, and titles are read from a table with one "
            f"row for each item; write one with the columns {roles.item.value} and {titles[0]}"
        )
    else:
        yield Note("items is left out: no file describes items; without titles prompts show ids, which say little")


def _find_title(columns: list[ColumnSample]) -> Guess | None:
    texts = {c.name: c for c in columns if c.kind == "text" or (c.kind in ("whole", "time") and c.filled)}
    usual = [name for name in names.choose(texts, names.TITLE) if texts[name].distinct > 1]
    if usual:
        return Guess("title", usual[0], f"a usual name; such as {quote(texts[usual[0]].values[0])}")
    varied = [c for c in columns if c.kind == "text" and c.words >= 1.5 and c.distinct > c.rows / 2 and not _is_url(c)]
    if not varied:
        return None
    best = max(varied, key=lambda c: (c.distinct / c.rows > 0.8, -abs(c.words - 5)))
    why = f"by its content alone: texts of {best.words:.0f} words, such as {quote(best.values[0])}"
    return Guess("title", best.name, why, is_sure=False)


def _is_url(column: ColumnSample) -> bool:
    return any("://" in value for value in column.values[:5])


def _find_category(columns: list[ColumnSample]) -> list[Guess | Note]:
    by_name = {c.name: c for c in columns if c.kind in ("text", "list", "whole") and c.distinct > 1}
    usual = names.choose(by_name, names.CATEGORY)
    if not usual:
        return []
    column = by_name[usual[0]]
    guesses: list[Guess | Note] = [
        Guess(
            "category",
            column.name,
            f"a usual name; such as {quote(column.values[0])}" if column.values else "a usual name",
        )
    ]
    if column.kind == "text" and not any(" > " in value for value in column.values):
        shares = {mark: sum(mark in value for value in column.values) / len(column.values) for mark in _SEPARATORS[1:]}
        best = max(shares, key=lambda mark: shares[mark])
        if shares[best] > 0.2:
            why = f"stands in {percent(shares[best])} of its values"
            guesses.append(Guess("category_separator", best, why, is_sure=best not in (",", "/", " / ")))
    return guesses


def _find_features(key: str, columns: list[ColumnSample], refused: set[str]) -> Iterator[Guess | Note]:
    fit = [c for c in columns if c.name not in refused and _is_feature(c)]
    chosen, rest = fit[:MOST_FEATURES], [c.name for c in columns if c not in fit[:MOST_FEATURES]]
    if chosen:
        yield Guess(key, tuple(c.name for c in chosen), "columns of few values that repeat")
    if rest:
        yield Note(f"not used: {shorten(', '.join(rest), 200)}")


def _is_feature(column: ColumnSample) -> bool:
    """Whether it has few values that many rows share; times, measures and long texts are none."""
    if column.kind not in ("text", "whole", "flag", "list") or column.is_epoch or column.distinct < 2:
        return False
    if _ROW_OR_ID.match(names.plain(column.name)) or column.words > 6:
        return False
    return column.distinct <= min(MOST_VALUES, column.filled / 2 if column.kind != "list" else MOST_VALUES)
