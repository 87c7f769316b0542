"""What the test rows say of each model: means over seeds, and differences to the plain model.

Scenarios are addressed by number; their ids, which may be any text, are only shown. A model is named by its variant.
"""

from collections.abc import Callable, Sequence
from typing import TypedDict

import numpy as np

from llm4msr.text import NONE, signed
from llm4msr.training.metrics import METRICS, NO_SCORES, Metric, Metrics, Report, ScenarioMetrics, Scores
from llm4msr.training.popularity import warnings

PLAIN = "none"
WORDS = "-words"
"""How the name ends of a model that is as the configured one, with counts of words for a language model's vectors."""
UNKNOWN = "(not in the training rows)"


class SeedReport(Report):
    """The report of a model that was trained with this seed."""

    seed: int


class Spread(TypedDict):
    """Mean and standard deviation over seeds: no deviation with one seed, neither where the metric is undefined."""

    mean: float | None
    std: float | None


class Spreads(TypedDict):
    """A spread of each metric."""

    auc: Spread
    gauc: Spread
    logloss: Spread
    ndcg_at_10: Spread
    recall_at_10: Spread
    ece: Spread


class Place(Spreads):
    """Spreads of all rows."""

    rows: float
    """The mean number."""


class ScenarioPlace(Place):
    """Spreads of one scenario's rows."""

    scenario: int
    scenario_id: str


class Summary(TypedDict):
    """One model over its seeds."""

    overall: Place
    scenarios: list[ScenarioPlace]


class Difference(Spreads):
    """A model's metrics less those of the plain model, seed by seed."""

    seeds: int
    """That both were trained with."""


class Results(TypedDict):
    """All that `metrics.json` holds, by model or baseline."""

    summary: dict[str, Summary]
    against_none: dict[str, Difference]
    test_rows: int
    test_rows_of_users_with_knowledge: int
    warnings: list[str]
    runs: dict[str, list[SeedReport]]
    baselines: dict[str, list[Report]]


def compare(runs: dict[str, list[SeedReport]], baselines: dict[str, list[Report]], read: tuple[int, int]) -> Results:
    """The results of all models; `read`: test rows of users with knowledge, and all test rows.

    `baselines` hold a report for each prepared data set: seeds of training may share one.
    """
    reports: dict[str, Sequence[Report]] = {**baselines, **runs}
    summary = {name: summarise(reports[name]) for name in reports}
    means = {name: means_of(one["overall"]) for name, one in summary.items()}
    return {
        "summary": summary,
        "against_none": {name: subtract(runs[name], runs[PLAIN]) for name in runs if PLAIN in runs and name != PLAIN},
        "test_rows": read[1],
        "test_rows_of_users_with_knowledge": read[0],
        "warnings": [line for name in runs for line in warnings(name, means[name], means, "test")],
        "runs": runs,
        "baselines": baselines,
    }


def summarise(reports: Sequence[Report]) -> Summary:
    """Mean and deviation over seeds of each metric.

    Where seeds have splits of their own, a scenario can have another number in each: the first is shown.
    """
    places: dict[tuple[bool, str], list[ScenarioMetrics]] = {}
    for report in reports:
        for place in report["scenarios"]:
            places.setdefault((place["scenario"] == 0, place["scenario_id"]), []).append(place)
    scenarios: list[ScenarioPlace] = [
        {"scenario": found[0]["scenario"], "scenario_id": name, **_place(found)}
        for (_, name), found in sorted(places.items())
    ]
    return {"overall": _place([report["overall"] for report in reports]), "scenarios": scenarios}


def means_of(place: Spreads) -> Scores:
    """The means alone."""
    means: Scores = {**NO_SCORES}
    for metric in METRICS:
        means[metric] = place[metric]["mean"]
    return means


def subtract(reports: Sequence[SeedReport], plain: Sequence[SeedReport]) -> Difference:
    """Mean and deviation of the differences to the plain model, over the seeds that both have."""
    by_seed = {report["seed"]: report["overall"] for report in plain}
    pairs = [(report["overall"], by_seed[report["seed"]]) for report in reports if report["seed"] in by_seed]

    def spread_of(metric: Metric) -> Spread:
        values = [(model[metric], other[metric]) for model, other in pairs]
        return spread([None if a is None or b is None else a - b for a, b in values])

    return {"seeds": len(pairs), **_spreads(spread_of)}


def spread(values: Sequence[float | None]) -> Spread:
    """Mean and standard deviation of those that are defined."""
    defined = [value for value in values if value is not None]
    if not defined:
        return {"mean": None, "std": None}
    return {"mean": float(np.mean(defined)), "std": float(np.std(defined, ddof=1)) if len(defined) > 1 else None}


def format_spread(spread: Spread, sign: bool = False) -> str:
    """`0.7000 ± 0.0100`, without the deviation where there is none."""
    mean, std = spread["mean"], spread["std"]
    if mean is None:
        return NONE
    return (signed(mean) if sign else f"{mean:.4f}") + (f" ± {std:.4f}" if std is not None else "")


def _place(places: Sequence[Metrics]) -> Place:
    rows = float(np.mean([place["rows"] for place in places]))
    return {"rows": rows, **_spreads(lambda metric: spread([place[metric] for place in places]))}


def _spreads(spread_of: Callable[[Metric], Spread]) -> Spreads:
    return {
        "auc": spread_of("auc"),
        "gauc": spread_of("gauc"),
        "logloss": spread_of("logloss"),
        "ndcg_at_10": spread_of("ndcg_at_10"),
        "recall_at_10": spread_of("recall_at_10"),
        "ece": spread_of("ece"),
    }
