"""The results as a Markdown table with notes: what `table.md` holds."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

from llm4msr.text import NONE, count_of, markdown
from llm4msr.training.metrics import Metric
from llm4msr.training.popularity import CONSTANT, POPULARITY
from llm4msr.training.results import PLAIN, UNKNOWN, Place, Results, SeedReport, Summary, format_spread

CONTROLS = ("shuffled", "random")
LITTLE = 0.005
"""A difference between two trainings of one seed each that may well be the seed's."""


def markdown_table(backbone: str, results: Results) -> str:
    """A row per scenario, AUC and logloss of each model side by side; a row per model; and what to know of them."""
    columns: list[tuple[str, Literal["auc", "logloss"]]] = [(name, "auc") for name in results["summary"]]
    columns += [(name, "logloss") for name in results["summary"] if name != POPULARITY]
    labels = {"auc": "AUC", "logloss": "logloss"}
    lines = [
        _line(["no.", "test rows of", "rows", *(f"{name} {labels[metric]}" for name, metric in columns)]),
        _line(["---:", "---", *["---:"] * (1 + len(columns))]),
    ]
    for row in _rows(results["summary"]):
        cells = [format_spread(row.places[name][metric]) if name in row.places else NONE for name, metric in columns]
        count = f"{max(place['rows'] for place in row.places.values()):,.0f}"
        lines.append(_line([row.number, row.name, count, *cells]))
    return "\n".join([*lines, "", *_other_metrics(results["summary"]), "", *_notes(backbone, results), ""])


class _Row(NamedTuple):
    """A scenario's number and name, and the metrics that each model has there."""

    number: str
    name: str
    places: dict[str, Place]


def _rows(summary: dict[str, Summary]) -> list[_Row]:
    """All rows first, then the scenarios by name; the unknown ones are the last."""
    rows: dict[tuple[bool, str], _Row] = {}
    for model, one in summary.items():
        for place in one["scenarios"]:
            unknown, name = key = place["scenario"] == 0, place["scenario_id"]
            row = _Row(str(place["scenario"]), f"*{UNKNOWN}*" if unknown else markdown(name), {})
            rows.setdefault(key, row).places[model] = place
    overall = _Row("", "**all**", {model: one["overall"] for model, one in summary.items()})
    return [overall, *(row for _, row in sorted(rows.items()))]


OTHER_METRICS: dict[Metric, str] = {"gauc": "GAUC", "ndcg_at_10": "NDCG@10", "recall_at_10": "Recall@10", "ece": "ECE"}


def _other_metrics(summary: dict[str, Summary]) -> list[str]:
    """Of all rows: a line per model or baseline."""
    lines = [_line(["on all test rows", *OTHER_METRICS.values()]), _line(["---", *["---:"] * len(OTHER_METRICS)])]
    for name, one in summary.items():
        lines.append(_line([name, *(format_spread(one["overall"][metric]) for metric in OTHER_METRICS)]))
    return lines


def _notes(backbone: str, results: Results) -> list[str]:
    runs = results["runs"]
    seeds = max(len(reports) for reports in runs.values())
    note = "mean ± standard deviation over the seeds"
    if seeds == 1:
        note = f"one seed, so differences below {LITTLE} say little"
    notes = [
        f"Backbone {markdown(backbone)}, {seeds} seed{'s' * (seeds > 1)}: {note}.",
        "GAUC: mean AUC within a user, weighted by rows. NDCG@10, Recall@10: how a user's own test rows are ordered, "
        "mean over the users with both classes. ECE: expected calibration error, how far rates of positives are from "
        "the predicted ones on average, in 15 bins of equally many rows.",
        _note_on_bounds(runs),
        _note_on_names([*runs]),
        f"`{POPULARITY}`: positives of the item in the scenario's training rows. `{CONSTANT}`: the share of positives "
        "of the scenario's training rows, for every row.",
        _note_on_knowledge(results),
        *(f"**Warning**: {line}." for line in results["warnings"]),
    ]
    return [line for note in notes if note for line in (note, "")][:-1]


def _note_on_names(models: list[str]) -> str:
    """What `model.match` adds to a model's name."""
    parts = {part for name in models for part in name.split("-")}
    meanings = {"match": "by vectors", "din": "by ids"}
    named = [f"`{part}` {how}" for part, how in meanings.items() if part in parts]
    return f"Models match the past with the candidate (model.match): {', '.join(named)}." if named else ""


def _note_on_bounds(runs: dict[str, list[SeedReport]]) -> str:
    """Empty where every AUC is exact."""
    reports = [report["overall"] for seeds in runs.values() for report in seeds]
    bound = max((report["auc_bound"] or 0.0 for report in reports), default=0.0)
    return f"AUC was summed in bins of scores; it is wrong by {bound:.1g} at most." if bound else ""


def _note_on_knowledge(results: Results) -> str:
    """Nothing is said of what knowledge brings where there is no plain model beside it."""
    names = [name for name in results["runs"] if name != PLAIN]
    if not names:
        return ""
    if PLAIN not in results["runs"]:
        return (
            f"No plain model (`{PLAIN}`) was trained beside {_and(names)}, so this table says nothing about what "
            f'knowledge brings: add "{PLAIN}" to evaluate.variants and run again.'
        )
    count = count_of(results["test_rows_of_users_with_knowledge"], results["test_rows"])
    note = (
        f"Against the plain model (`{PLAIN}`, same backbone and seeds): "
        f"{'; '.join(_difference(results, name) for name in names)}. Test rows of users with knowledge: {count}."
    )
    if missing := [control for control in CONTROLS if not any(name.endswith(f"-{control}") for name in names)]:
        note += (
            f" Without {_and(missing)} beside it (evaluate.variants), a difference may be capacity and not knowledge."
        )
    return note


def _difference(results: Results, name: str) -> str:
    difference = results["against_none"][name]
    auc, gauc = format_spread(difference["auc"], sign=True), format_spread(difference["gauc"], sign=True)
    return f"`{name}` AUC {auc}, GAUC {gauc}"


def _and(names: Sequence[str]) -> str:
    return " and ".join(f"`{name}`" for name in names)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
