"""Scores that say how often an item is liked: for each scenario a line through the logits, fitted to validation rows.

Platt's scaling (1999) with a slope above zero, which keeps the order of a scenario's items. A temperature alone, as
Guo et al. (ICML 2017, https://arxiv.org/abs/1706.04599) have it, can make scores bolder or milder, but not fewer: it
leaves a logit of 0 where it is, whatever the scenario's share of likes is, and this differs most between scenarios and
from training to validation. Isotonic regression would give many items one score.

Shape suffixes: K pairs of scenario and score, S scenarios.
"""

from typing import NamedTuple

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit

from llm4msr.arrays import Floats
from llm4msr.bundle.messages import Calibration
from llm4msr.model.serving_net import Lines
from llm4msr.progress import say
from llm4msr.text import shorten
from llm4msr.training import predictions
from llm4msr.training.dataset import scenario_names
from llm4msr.training.score_counts import ScoreCounts
from llm4msr.training.trained import TrainedModel

MIN_ROWS = 100
"""Of each class: with fewer, a fitted line is off by as much as trained models usually are."""
SLOPES = 0.1, 10.0
"""The least and the most."""
NAMES = 5
"""Scenarios that are named where there are more to name."""


class Calibrated(NamedTuple):
    """Lines, and what they achieve."""

    lines: Lines
    report: Calibration


def calibrate(model: TrainedModel) -> Calibrated:
    """Score the validation rows, partition by partition, and fit a line to those of each scenario."""
    calibrated = fit(predictions.count_scores(model, "valid"), scenario_names(model.prepared))
    say(f"  calibration: {phrase(calibrated.report)}")
    return calibrated


def fit(counts: ScoreCounts, names: list[str]) -> Calibrated:
    """The line of each scenario; scores are logits, and `names[i]` is the id of scenario i.

    Scenarios with fewer than `MIN_ROWS` rows of a class stay as they are.
    """
    slope_S, bias_S = np.ones(len(names)), np.zeros(len(names))
    unchanged = []
    for scenario, name in enumerate(names):
        here = counts.of_scenario(scenario)
        if min(here.positives_K.sum(), here.negatives_K.sum()) >= MIN_ROWS:
            slope_S[scenario], bias_S[scenario] = fit_line(here)
        elif scenario:  # the unknown one has no name, and rarely any rows
            unchanged.append(name)
    lines = Lines(slope_S.astype(np.float32), bias_S.astype(np.float32))
    report = Calibration(
        method="platt",
        rows=int(counts.positives_K.sum() + counts.negatives_K.sum()),
        error_before=counts.of_all().calibration_error(),
        error_after=counts.along(*lines).of_all().calibration_error(),
        unchanged=unchanged,
    )
    return Calibrated(lines, report)


def fit_line(counts: ScoreCounts) -> tuple[float, float]:
    """Slope and bias of the least log loss, which is convex in both; the counts are those of one scenario."""
    score_K = counts.scores()
    positives_K, rows_K = counts.positives_K, counts.positives_K + counts.negatives_K
    total = rows_K.sum()

    def loss(line: Floats) -> tuple[float, Floats]:
        logit_K = line[0] * score_K + line[1]
        surplus_K = rows_K * expit(logit_K) - positives_K
        nats = (rows_K * np.logaddexp(0, logit_K) - positives_K * logit_K).sum()
        return nats / total, np.array([surplus_K @ score_K, surplus_K.sum()]) / total

    slope, bias = minimize(loss, np.array([1.0, 0.0]), jac=True, method="L-BFGS-B", bounds=[SLOPES, (None, None)]).x
    return float(slope), float(bias)


def phrase(report: Calibration) -> str:
    """What was achieved, within a sentence."""
    if report.error_before is None or report.error_after is None:
        return "no validation rows, so that all scores are the model's own"
    named = ", ".join(shorten(name) for name in report.unchanged[:NAMES])
    more = f" and {len(report.unchanged) - NAMES} more" if len(report.unchanged) > NAMES else ""
    few = f"; unchanged, with fewer than {MIN_ROWS} likes or other rows there: {named}{more}" if named else ""
    return (
        f"expected calibration error {report.error_after:.4f} on the {report.rows:,} validation rows it was fitted to, "
        f"{report.error_before:.4f} before{few}"
    )
