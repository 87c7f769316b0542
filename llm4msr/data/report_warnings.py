"""Warnings about what is likely a mistake in a data report; each says what to do."""

from collections.abc import Iterator
from itertools import chain

from llm4msr.config import Config
from llm4msr.data.report import FEW_ROWS, DataReport, Split, name_examples
from llm4msr.text import percent

MANY_SCENARIOS = 200
RARE = 1e-3
"""Share of positives (or of others) below which metrics rest on a handful of rows."""
SPLIT_NAMES = {"train": "training", "valid": "validation", "test": "test"}


def find_warnings(report: DataReport, config: Config) -> list[str]:
    """One text for each likely mistake."""
    return list(chain.from_iterable(check(report, config) for check in _CHECKS))


def _ids(report: DataReport, config: Config) -> Iterator[str]:
    for side, ids in report.described.items():
        lost = f"{ids.missing:,} of {ids.ids:,} {side} ids ({percent(ids.missing_rows, report.rows)} of rows)"
        if ids.alike:
            pairs = zip(ids.examples, ids.theirs, strict=False)
            named = ", ".join(f"{ours} for the file's {theirs}" for ours, theirs in pairs)
            yield (
                f"{lost} are not in {ids.file}, and {ids.alike:,} of them differ from an id there only in how it "
                f"is written: {named}. Ids are compared exactly as given: write them the same way in both files"
            )
        elif max(ids.missing / ids.ids, ids.missing_rows / report.rows) > 0.5:
            yield (
                f"{lost} are not in {ids.file}: the interactions have {', '.join(ids.examples)}, the file has "
                f"{', '.join(ids.theirs)}. Describe them there, or name the right column"
            )


def _titles(report: DataReport, config: Config) -> Iterator[str]:
    titles = report.titles
    named = f"such as {', '.join(titles.examples)}"
    if not titles.items:
        least = config.split.min_item_rows
        yield f"no item has split.min_item_rows = {least} training rows, so all are the unknown item: lower it"
    if titles.ids > titles.items / 10:
        yield (
            f"{titles.ids:,} of {titles.items:,} items have no title and show their id, {named}, which tells an LLM "
            f"nothing. {_bare(titles.bare)}{_title_remedy(config)}"
        )
    elif titles.codes > titles.items / 2:
        yield f"{titles.codes:,} of {titles.items:,} titles look like codes, {named}. {_title_remedy(config)}"
    if titles.commonest_items > max(titles.items / 2, 1):
        yield (
            f"{titles.commonest_items:,} of {titles.items:,} items have the title {titles.commonest}, so an LLM cannot "
            "tell them apart: is the title's column the right one?"
        )


def _bare(scenarios: list[str]) -> str:
    if not scenarios:
        return ""
    named = ", ".join(scenarios[:3]) + f" and {len(scenarios) - 3} more" * (len(scenarios) > 3)
    return f"In {named} most have none, so expect little of texts there. "


def _title_remedy(config: Config) -> str:
    if config.source.kind == "amazon" and not config.source.amazon.meta:
        return "Set source.amazon.meta = true"
    columns = config.source.table
    if not config.source.is_own:
        return "Their text is missing in the source"
    if columns.items and columns.title:
        return f"Describe all items in {columns.items}, and fill its column '{columns.title}'"
    return f"Name source.table.{'title' if columns.items else 'items (a table) and title (its column)'}"


def _paths(report: DataReport, config: Config) -> Iterator[str]:
    if report.longest_path == 1 and config.source.is_own:
        exact = f"set source.table.category_separator = '{report.other_separator}'"
        remedy = exact if report.other_separator else "set source.table.category_separator if they are paths"
        yield f"no category has '{config.source.table.category_separator}' inside, so each is one step: {remedy}"


def _order(report: DataReport, config: Config) -> Iterator[str]:
    s, columns = config.split, config.source.table
    one_time = (s.kind == "time" and s.by == "global") or s.latest or (s.kind == "random" and s.history_share < 1)
    if config.source.is_own and not columns.order:
        if s.kind != "random" or s.latest or s.first_events:
            yield (
                "there is no source.table.order, so the order of rows in the file is taken for time: name the column "
                "of time, or set split.kind = 'random' where there is none"
            )
    elif report.order_restarts and one_time:
        yield (
            f"'{columns.order or 'order'}' looks like a position within the user, since it begins anew for each, but "
            "is used as one time for all: set split.by = 'user', or name a column of time as source.table.order"
        )


def _sizes(report: DataReport, config: Config) -> Iterator[str]:
    if config.split.kind != "time":
        return
    rows = {name: split.rows - split.drawn for name, split in report.parts.items()}
    actual = {name: rows[name] / sum(rows.values()) for name in ("valid", "test")}
    shares = {"valid": config.split.valid, "test": config.split.test}
    if any(not 0.5 < actual[name] / shares[name] < 2 for name in shares):
        named = ", ".join(f"{name} {100 * actual[name]:.1f}% for {100 * shares[name]:.1f}%" for name in shares)
        if config.split.by == "user":
            yield (
                f"parts are not as large as set, since users have too few rows to divide: {named}. Set split.kind = "
                "'leave_last_out', or larger shares"
            )
            return
        yield (
            f"parts are not as large as set, since rows of one time stay together and there are {report.orders:,} "
            f"times: {named}. Name a finer source.table.order, or set split.by = 'user'"
        )


def _past(report: DataReport, config: Config) -> Iterator[str]:
    few = [SPLIT_NAMES[name] for name in ("valid", "test") if _mostly_new(report.parts[name])]
    if few:
        by_time = config.split.kind == "time" and config.split.by == "global" and not _mostly_alone(report)
        remedy = (
            "set split.by = 'user', which leaves everybody a past" if by_time else "they need more rows in training"
        )
        yield f"most {' and '.join(few)} users have no past in the training rows, so no knowledge: {remedy}"


def _mostly_new(split: Split) -> bool:
    return split.users_with_past < split.users / 2


def _mostly_alone(report: DataReport) -> bool:
    return report.users_with_one_row > report.users / 2


def _users(report: DataReport, config: Config) -> Iterator[str]:
    if _mostly_alone(report):
        yield (
            f"{report.users_with_one_row:,} of {report.users:,} users have a single row, so nothing is both known of "
            "them and tested: is the user's column the right one? If it is, leave them out"
        )


def _labels(report: DataReport, config: Config) -> Iterator[str]:
    rows = sum(split.rows for split in report.parts.values())
    positives = sum(split.positives for split in report.parts.values())
    only_label = _only_label(rows, positives)
    if only_label == "1" and config.split.negatives:
        yield (
            "no negative could be drawn, since users have taken all items that their scenario has in the training "
            "rows, so there is nothing to tell apart and metrics are n/a: bring data with more items, or with labels"
        )
    elif only_label == "1":
        yield (
            "all labels are 1, so there is nothing to tell apart and metrics are n/a: "
            "set split.implicit = true, and split.negatives, such as 4"
        )
    elif only_label == "0":
        yield "no label is above 0.5, so nothing is liked, there are no prompts and metrics are n/a; mend the labels"
    else:
        for name, split in report.parts.items():
            if label := _only_label(split.rows, split.positives):
                effect = "nothing can be learned" if name == "train" else "its AUC is n/a"
                yield (
                    f"all {split.rows:,} {SPLIT_NAMES[name]} rows have label {label}, so {effect}: "
                    "make that part larger, or set another split.kind"
                )
        if not RARE <= positives / rows <= 1 - RARE:
            yield (
                f"{positives:,} of {rows:,} labels are 1 ({percent(positives, rows)}), so metrics rest on few rows: "
                "leave out some of the other class, or bring more data"
            )


def _drawn(report: DataReport, config: Config) -> Iterator[str]:
    expected = {name: (split.rows - split.drawn) * config.split.negatives for name, split in report.parts.items()}
    short = [name for name, split in report.parts.items() if split.drawn < expected[name] / 2]
    if short and any(split.drawn for split in report.parts.values()):
        named = ", ".join(
            f"{report.parts[name].drawn:,} of {expected[name]:,} for {SPLIT_NAMES[name]} rows" for name in short
        )
        yield (
            "most negatives could not be drawn, since users have taken most items that their scenario has in the "
            f"training rows: {named}. Lower split.negatives, or bring data with more items"
        )


def _only_label(rows: int, positives: int) -> str:
    """The one label that all rows have, or an empty text."""
    return {0: "0", rows: "1"}.get(positives, "")


def _repeats(report: DataReport, config: Config) -> Iterator[str]:
    if report.repeats > report.rows / 10:
        yield (
            f"{report.repeats:,} of {report.rows:,} rows have the user, item and scenario of an earlier row: "
            "remove them if the file holds rows twice; they count again otherwise"
        )


def _scenarios(report: DataReport, config: Config) -> Iterator[str]:
    by = report.by_scenario
    if report.scenarios > MANY_SCENARIOS:
        yield (
            f"there are {report.scenarios:,} scenarios; each has a prompt and its own part of the model: "
            "is the scenario's column the right one? If it is, join those that are alike"
        )
    if by.untrained_count:
        yield (
            f"no training row has the scenario {name_examples(by.untrained, by.untrained_count)}, so it is ranked as "
            "an unknown one: set split.by = 'user' or split.kind = 'random', or leave it out"
        )
    if by.small_count:
        yield (
            f"fewer than {FEW_ROWS} training rows have the scenario {name_examples(by.small, by.small_count)}, too few "
            "to learn from: join it with another, or leave it out"
        )


_CHECKS = (_ids, _titles, _paths, _order, _sizes, _past, _users, _labels, _drawn, _repeats, _scenarios)
