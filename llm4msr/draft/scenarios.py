"""Which column of the interactions names the scenario, or what to do where none does."""

import pyarrow.compute as pc

from llm4msr.draft import names
from llm4msr.draft.columns import ColumnSample, named
from llm4msr.draft.guess import Guess
from llm4msr.draft.roles import Roles
from llm4msr.draft.samples import Sample
from llm4msr.text import quote

MOST_SCENARIOS = 200
MOST_UNNAMED = 20
"""Different values of a column that is taken for the scenario though its name says nothing."""
_SURE = names.SCENARIO[: names.SCENARIO.index("department")]
"""Names that mean a scenario and hardly anything else."""
_REASONS = ("a usual name", "a usual name", "a name that speaks of one", "by its content alone")
_NONE = len(_REASONS)
_SPLITS = {"train", "training", "valid", "validation", "val", "dev", "test"}


def find_scenario(columns: list[ColumnSample], roles: Roles) -> Guess:
    """The column; an empty name where none is one."""
    evidence = {column: _evidence(column) for column in columns}
    found = [column for column in columns if evidence[column] < _NONE]
    if not found:
        return Guess("scenario", "", _advice(roles), is_sure=False)
    shared = {column for column in found if _shares_users(roles, column.name)}
    found.sort(key=lambda c: (evidence[c] > 0, c.distinct == 1, c not in shared, evidence[c]))
    best, *others = found
    why = f"{_REASONS[evidence[best]]}: {_values(best)}"
    why += f"; it could also be {', '.join(column.name for column in others[:3])}" if others else ""
    if best.distinct > 1 and best not in shared:
        return Guess("scenario", best.name, f"{why}. No user is in two of them, so nothing carries over", is_sure=False)
    return Guess("scenario", best.name, why, is_sure=evidence[best] == 0)


def _evidence(column: ColumnSample) -> int:
    """How good a candidate it is, as a place in `_REASONS`; `_NONE` if it is none."""
    if column.kind not in ("text", "whole", "flag"):
        return _NONE
    other = (*names.EVENT, *names.LABEL, *names.STARS)
    if names.choose([column.name], other) or {value.lower() for value in column.values} <= _SPLITS:
        return _NONE
    if names.choose([column.name], _SURE) and column.distinct <= MOST_SCENARIOS:
        return 0
    if column.filled < column.rows:
        return _NONE
    if names.choose([column.name], names.SCENARIO) and 2 <= column.distinct <= MOST_SCENARIOS:
        return 1
    if not 2 <= column.distinct <= MOST_UNNAMED:
        return _NONE
    return 2 if names.has_word(column.name, _SURE) else 3 if column.kind == "text" else _NONE


def _shares_users(roles: Roles, name: str) -> bool:
    user = str(roles.user.value)
    pairs = roles.interactions.rows.table.select([user, name]).group_by([user, name]).aggregate([])
    return len(pairs) > len(pc.unique(pairs[user]))


def _values(column: ColumnSample) -> str:
    shown = ", ".join(map(quote, column.values[:4]))
    count = f"{column.distinct} different values" if column.distinct > 1 else "one value in the rows looked at"
    return f"{count}, such as {shown}"


def _advice(roles: Roles) -> str:
    """What to do where all rows are taken for one scenario."""
    where = roles.interactions.name or roles.interactions.files[0].path.name
    text = (
        f"no column of {where} looks like one (a page, a shelf, a channel: few values, of which a user meets several), "
        "so all rows are of one scenario, and nothing is learned across scenarios. If there is such a column, name it"
    )
    for described in filter(None, (roles.items, roles.users)):
        columns = [column for column in _few(described.sample) if column.name != described.key]
        if found := named(columns, (*names.SCENARIO, *names.CATEGORY)):
            text += f"; or copy '{found[0].name}' ({found[0].distinct} values) of {described.sample.name} to each row"
            break
    files = [file.path.name.split(".")[0] for file in roles.interactions.files]
    if 1 < len(files) <= MOST_UNNAMED:
        text += f"; if each file is a scenario, put each into a folder of its own, such as 'scenario={files[0]}'"
    return text


def _few(sample: Sample) -> list[ColumnSample]:
    return [column for column in sample.columns.values() if 2 <= column.distinct <= MOST_SCENARIOS]
