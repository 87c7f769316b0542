"""What the test rows say of each model: means over seeds, differences to the plain model, and the table.

Scenarios are addressed by number; their ids, which may be any text, are only shown. A model is named by its variant.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from llm4msr.text import NONE, count_of, markdown, signed
from llm4msr.training.popularity import CONSTANT, POPULARITY, warnings

METRICS = ("auc", "gauc", "logloss")
PLAIN = "none"
CONTROLS = ("shuffled", "random")
UNKNOWN = "(not in the training rows)"
LITTLE = 0.005
"""A difference between two trainings of one seed each that may well be the seed's."""

Report = dict[str, Any]
"""As `metrics.report` gives it, and `seed`."""


def compare(runs: dict[str, list[Report]], baselines: dict[str, list[Report]], read: tuple[int, int]) -> dict[str, Any]:
    """All that `metrics.json` holds; `read` is how many test rows are of users with knowledge, and how many there are.

    `baselines` hold a report for each prepared data set: seeds of training may share one.
    """
    summary = {name: summarise(reports) for name, reports in (baselines | runs).items()}
    means = {name: means_of(one["overall"]) for name, one in summary.items()}
    told = [line for name in runs for line in warnings(name, means[name], means, "test")]
    return {
        "summary": summary,
        "against_none": {name: against(runs[name], runs[PLAIN]) for name in runs if PLAIN in runs and name != PLAIN},
        "test_rows": read[1],
        "test_rows_of_users_with_knowledge": read[0],
        "warnings": told,
        "runs": runs,
        "baselines": baselines,
    }


def summarise(reports: Sequence[Report]) -> dict[str, Any]:
    """Mean and deviation over seeds of each metric; deviation None with one seed, both None where undefined.

    Where seeds have splits of their own, a scenario can have other numbers in them: the first is shown.
    """
    places: dict[tuple[bool, str], list[Report]] = {}
    for report in reports:
        for place in report["scenarios"]:
            places.setdefault((place["scenario"] == 0, place["scenario_id"]), []).append(place)
    scenarios = [
        {"scenario": found[0]["scenario"], "scenario_id": name} | _spreads(found)
        for (_, name), found in sorted(places.items())
    ]
    return {"overall": _spreads([report["overall"] for report in reports]), "scenarios": scenarios}


def means_of(place: Report) -> dict[str, float | None]:
    """The means of a place of the summary."""
    return {metric: place[metric]["mean"] for metric in METRICS}


def against(mine: Sequence[Report], plain: Sequence[Report]) -> dict[str, Any]:
    """Mean and deviation of the differences to the plain model over the seeds of both."""
    other = {report["seed"]: report["overall"] for report in plain}
    pairs = [(report["overall"], other[report["seed"]]) for report in mine if report["seed"] in other]
    return {"seeds": len(pairs)} | {
        metric: spread([None if None in (a[metric], b[metric]) else a[metric] - b[metric] for a, b in pairs])
        for metric in METRICS
    }


def spread(values: Sequence[float | None]) -> dict[str, float | None]:
    """Mean and standard deviation of those that there are."""
    there = [value for value in values if value is not None]
    if not there:
        return {"mean": None, "std": None}
    return {"mean": float(np.mean(there)), "std": float(np.std(there, ddof=1)) if len(there) > 1 else None}


def table(backbone: str, found: dict[str, Any]) -> str:
    """Markdown: a row per scenario, AUC and logloss of each model side by side, and below it what to know of them."""
    summary = found["summary"]
    columns = [(name, metric) for metric in ("auc", "logloss") for name in summary]
    columns.remove((POPULARITY, "logloss"))
    labels = {"auc": "AUC", "logloss": "logloss"}
    lines = [
        _line(["no.", "test rows of", "rows", *(f"{name} {labels[metric]}" for name, metric in columns)]),
        _line(["---:", "---", *["---:"] * (1 + len(columns))]),
    ]
    for number, name, rows, places in _rows(summary):
        cells = [format_spread(places[model][metric]) if model in places else NONE for model, metric in columns]
        lines.append(_line([number, name, rows, *cells]))
    return "\n".join([*lines, "", *_notes(backbone, found), ""])


def format_spread(value: dict[str, float | None], sign: bool = False) -> str:
    """`0.7000 ± 0.0100`, without the deviation where there is none."""
    mean, std = value["mean"], value["std"]
    if mean is None:
        return NONE
    return (signed(mean) if sign else f"{mean:.4f}") + (f" ± {std:.4f}" if std is not None else "")


def difference(found: dict[str, Any], name: str) -> str:
    """One phrase on a model against the plain one."""
    told = found["against_none"][name]
    gains = ", ".join(f"{label} {format_spread(told[m], sign=True)}" for m, label in (("auc", "AUC"), ("gauc", "GAUC")))
    return f"`{name}` {gains}"


def _rows(summary: dict[str, Any]) -> list[tuple[str, str, str, dict[str, Report]]]:
    """Number, name and count of each line, and what each model has there; the unknown scenarios are the last."""
    lines = [("", "**all**", {name: one["overall"] for name, one in summary.items()})]
    by_name: dict[tuple[bool, str], dict[str, Report]] = {}
    for model, one in summary.items():
        for place in one["scenarios"]:
            by_name.setdefault((place["scenario"] == 0, place["scenario_id"]), {})[model] = place
    for (unknown, name), places in sorted(by_name.items()):
        number = next(iter(places.values()))["scenario"]
        lines.append((str(number), f"*{UNKNOWN}*" if unknown else markdown(name), places))
    return [(number, name, f"{max(p['rows'] for p in places.values()):,.0f}", places) for number, name, places in lines]


def _notes(backbone: str, found: dict[str, Any]) -> list[str]:
    summary, runs = found["summary"], found["runs"]
    seeds = max(len(reports) for reports in runs.values())
    over = "mean ± standard deviation over the seeds"
    if seeds == 1:
        over = f"one seed, so differences below {LITTLE} say little"
    gauc = ", ".join(f"{name} {format_spread(one['overall']['gauc'])}" for name, one in summary.items())
    notes = [
        f"Backbone {markdown(backbone)}, {seeds} seed{'s' * (seeds > 1)}: {over}. "
        f"GAUC (mean AUC within a user): {gauc}.",
        f"`{POPULARITY}`: positives of the item in the scenario's training rows. `{CONSTANT}`: the share of positives "
        "of the scenario's training rows, for every row.",
        _knowledge(found),
        *(f"**Warning**: {line}." for line in found["warnings"]),
    ]
    return [line for note in notes if note for line in (note, "")][:-1]


def _knowledge(found: dict[str, Any]) -> str:
    """What the table says of knowledge: nothing where there is no plain model beside it."""
    runs = found["runs"]
    ours = [name for name in runs if name != PLAIN]
    if not ours:
        return ""
    if PLAIN not in runs:
        return (
            f"No plain model (`{PLAIN}`) was trained beside {_and(ours)}, so this table says nothing about what "
            f'knowledge brings: add "{PLAIN}" to evaluate.variants and run again.'
        )
    read = count_of(found["test_rows_of_users_with_knowledge"], found["test_rows"])
    note = (
        f"Against the plain model (`{PLAIN}`, same backbone and seeds): "
        f"{'; '.join(difference(found, name) for name in ours)}. Test rows of users with knowledge: {read}."
    )
    if missing := [name for name in CONTROLS if not any(one.endswith(f"-{name}") for one in ours)]:
        note += (
            f" Without {_and(missing)} beside it (evaluate.variants), a difference may be capacity and not knowledge."
        )
    return note


def _and(names: Sequence[str]) -> str:
    return " and ".join(f"`{name}`" for name in names)


def _spreads(places: Sequence[Report]) -> dict[str, Any]:
    rows = float(np.mean([place["rows"] for place in places]))
    return {"rows": rows} | {metric: spread([place[metric] for place in places]) for metric in METRICS}


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
