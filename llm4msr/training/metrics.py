"""AUC, GAUC and logloss, per scenario and overall, exact, and the same however the rows were divided."""

from collections.abc import Sequence
from typing import Literal, NamedTuple, TypedDict

import numpy as np
import numpy.typing as npt

from llm4msr.arrays import AnyFloats, Floats, Ints, Singles

Metric = Literal["auc", "gauc", "logloss"]


class Scores(TypedDict):
    """How well rows are ordered and predicted; None where the rows do not define it (one class only, say)."""

    auc: float | None
    gauc: float | None
    """Mean AUC within a user, weighted by rows (Zhu et al., KDD 2017, https://arxiv.org/abs/1703.02091)."""
    logloss: float | None
    """In nats."""


class Metrics(Scores):
    """Scores, and of how many rows."""

    rows: int


class ScenarioMetrics(Metrics):
    """Metrics of the rows of one scenario."""

    scenario: int
    """0 stands for all scenarios that the training rows lack."""
    scenario_id: str


class Report(TypedDict):
    """Metrics of one model on one set of rows."""

    overall: Metrics
    scenarios: list[ScenarioMetrics]


class Predictions(NamedTuple):
    """Scored rows; all arrays [B]."""

    user: Ints
    scenario: Ints
    label: Singles
    logit: AnyFloats

    @classmethod
    def concatenate(cls, parts: Sequence["Predictions"]) -> "Predictions":
        """The rows of several batches or workers as one; the metrics do not depend on their order."""
        return cls(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def report(predictions: Predictions, names: Sequence[str]) -> Report:
    """The metrics of all rows, and of each scenario that has any, by number; `names[i]` is the id of scenario i.

    Rows with a score that is not finite have no metric.
    """
    scenarios: list[ScenarioMetrics] = [
        {"scenario": int(number), "scenario_id": names[number], **_metrics(_of_scenario(predictions, number))}
        for number in np.unique(predictions.scenario)
    ]
    return {"overall": _metrics(predictions), "scenarios": scenarios}


def auc_by_group(group: Ints, label: npt.ArrayLike, logit: npt.ArrayLike) -> tuple[Ints, Floats, Ints]:
    """AUC within each group that has both classes: group ids int64 [G], AUCs float64 [G], row counts int64 [G].

    A tie counts half (the Mann-Whitney U statistic divided by the number of pairs). `group` (ids, 0 or more), `label`
    and `logit` are [B]. There is no group at all where a score is not finite: such scores have no order.
    """
    if not np.isfinite(logit).all():
        return np.empty(0, np.int64), np.empty(0), np.empty(0, np.int64)
    group, positive, score = np.asarray(group), np.asarray(label) > 0.5, np.asarray(logit)
    order = np.argsort(score)
    small = group.astype(np.min_scalar_type(group.max(initial=0)))  # a stable sort of 16 bits takes no comparisons
    order = order[np.argsort(small[order], kind="stable")]
    group, positive, score = group[order], positive[order], score[order]
    new_group = np.ones(len(group), bool)
    new_group[1:] = group[1:] != group[:-1]
    new_value = new_group.copy()
    new_value[1:] |= score[1:] != score[:-1]
    starts, first = np.flatnonzero(new_group), np.flatnonzero(new_value)
    last = np.append(first[1:], len(score)) - 1
    counts, dense = np.diff(starts, append=len(group)), np.cumsum(new_group) - 1
    rank = ((first + last) / 2)[np.cumsum(new_value) - 1] + 1 - starts[dense]
    positives = np.bincount(dense, positive, len(starts))
    negatives = counts - positives
    wins = np.bincount(dense, rank * positive, len(starts)) - positives * (positives + 1) / 2
    both = (positives > 0) & (negatives > 0)
    return group[starts[both]], wins[both] / (positives * negatives)[both], counts[both]


def auc(label: npt.ArrayLike, logit: npt.ArrayLike) -> float | None:
    """Probability that a positive row scores above a negative one, ties counting half; `label` and `logit` are [B].

    None with one class only, and where a score is no finite number.
    """
    _, value, _ = auc_by_group(np.zeros(np.size(label), np.int64), label, logit)
    return float(value[0]) if len(value) else None


def logloss(label: npt.ArrayLike, logit: npt.ArrayLike) -> float | None:
    """Mean binary cross-entropy in nats; None without rows, and where a score is no finite number."""
    x = np.asarray(logit, np.float64)
    if not x.size or not np.isfinite(x).all():
        return None
    return float(np.mean(np.logaddexp(0, x) - x * np.asarray(label)))


def _metrics(rows: Predictions) -> Metrics:
    _, aucs, weights = auc_by_group(rows.user, rows.label, rows.logit)
    return {
        "auc": auc(rows.label, rows.logit),
        "gauc": float(np.average(aucs, weights=weights)) if len(aucs) else None,
        "logloss": logloss(rows.label, rows.logit),
        "rows": len(rows.label),
    }


def _of_scenario(rows: Predictions, scenario: int) -> Predictions:
    mask_B = rows.scenario == scenario
    return Predictions(*(column[mask_B] for column in rows))
