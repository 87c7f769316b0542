"""The models side by side: every metric that `evaluate` has of each, how they learned, how far their probabilities can
be trusted, and what the vectors cost."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from llm4msr.arrays import Bools, Floats
from llm4msr.explain.report.bootstrap import Interval
from llm4msr.explain.report.plots import Chart, chart
from llm4msr.explain.report.rows import ScoredRows
from llm4msr.explain.report.tables import Table
from llm4msr.text import signed
from llm4msr.training.results import PLAIN, Results
from llm4msr.training.trained import TrainedModel

BINS = 10
"""Of equally many rows, in the picture of calibration."""
HISTORY = "history.json"
Curve = list[tuple[float, float]]


@dataclass(frozen=True)
class ModelSection:
    """What the page shows."""

    results: Results
    """As `evaluate` published them, of all test rows."""
    curves: dict[str, Curve]
    """Validation AUC by epoch, by variant, of the first seed; of those whose training kept it."""
    calibration: dict[str, Curve]
    """Share of positives by mean probability, of this model and the plain one."""
    cost: dict[str, str]
    """What extraction and the trainings took."""
    price: str
    """The cost against the gain."""

    @property
    def aucs(self) -> dict[str, list[float]]:
        """Test AUC of each seed, by variant."""
        return {
            name: [auc for one in seeds if (auc := one["overall"]["auc"]) is not None]
            for name, seeds in self.results["runs"].items()
        }

    @property
    def charts(self) -> list[Chart]:
        """Those that have something to show."""
        learning = "Validation AUC after each epoch; the best one’s weights are used."
        trust = "Test rows in tenths by predicted probability; on the diagonal, as many are liked as predicted."
        return [
            one
            for one in (
                chart("How they learned", learning, ("epoch", "AUC"), dict(self.curves)),
                chart("Calibration", trust, ("predicted", "liked"), dict(self.calibration), square=True),
            )
            if one is not None
        ]

    def tables(self) -> dict[str, Table]:
        """A row for each point of the charts."""
        described = {
            "curves.csv": ("validation AUC after each epoch", ["model", "epoch", "valid_auc"], self.curves),
            "calibration.csv": ("predicted and real shares", ["model", "predicted", "liked"], self.calibration),
        }
        return {
            file: Table(text, pd.DataFrame([(name, *point) for name in by for point in by[name]], columns=columns))
            for file, (text, columns, by) in described.items()
            if by
        }


def model_section(
    models: Sequence[TrainedModel], results: Results, rows: ScoredRows, gain: Interval | None
) -> ModelSection:
    """Of all models, this one's first; `rows` are those of its seed, `gain` is what extraction is paid for."""
    own = models[0]
    curves = {model.variant: _learning(model) for model in models if model.config.seed == rows.seed}
    shown = [name for name in (own.variant, PLAIN) if name in rows.logits]
    calibration = {name: reliability(rows.label_B, rows.logits[name]) for name in shown}
    seconds = own.extracted.manifest.seconds if own.extracted else 0.0
    curves = {name: curve for name, curve in curves.items() if curve}
    return ModelSection(results, curves, calibration, _cost(models), _price(seconds, gain))


def reliability(label_B: Bools, logit_B: Floats) -> Curve:
    """Mean probability and share of positives of each bin of rows."""
    with np.errstate(over="ignore"):
        probability_B = 1 / (1 + np.exp(-logit_B))
    if not np.isfinite(probability_B).all():
        return []
    bins = [part for part in np.array_split(np.argsort(probability_B, kind="stable"), BINS) if len(part)]
    return [(float(probability_B[part].mean()), float(label_B[part].mean())) for part in bins]


def _learning(model: TrainedModel) -> Curve:
    if HISTORY not in model.output.manifest.files:
        return []
    epochs = model.output.json(HISTORY)
    return [(float(one["epoch"]), one["valid_auc"]) for one in epochs if one["valid_auc"] is not None]


def _cost(models: Sequence[TrainedModel]) -> dict[str, str]:
    own = models[0]
    cost = {}
    if own.extracted is not None:
        manifest = own.extracted.manifest
        spent = manifest.info.get("spent", {}).values()
        tokens = sum(one.get("tokens", 0) for one in spent)  # a pass that found its shards spent nothing
        part = ", of the last run, which went on from an earlier one" if manifest.continued else ""
        cost["Extraction"] = f"{manifest.seconds:,.0f} s{part}"
        cost |= {"Tokens read": f"{tokens:,}"} if tokens else {}
        cost["Texts read"] = f"{manifest.rows:,}"
    for label, variant in (("Training this model", own.variant), ("Training the plain model", PLAIN)):
        seconds = [model.output.manifest.seconds for model in models if model.variant == variant]
        cost |= {label: f"{np.mean(seconds):,.0f} s a seed"} if seconds else {}
    return cost


def _price(seconds: float, gain: Interval | None) -> str:
    if not seconds:
        return "This model reads no vectors, so no LLM was asked."
    if gain is None or not gain.low > 0:
        return f"Extraction took {seconds:,.0f} s, and no gain is claimed for it."
    each = seconds * 0.01 / gain.value
    return (
        f"Extraction took {seconds:,.0f} s, once and before serving, for {signed(gain.value)} AUC: {each:,.0f} s for "
        "every 0.01."
    )
