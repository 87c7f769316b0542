"""How well rows are ordered and predicted, per scenario and overall, from sums over parts of the rows.

All rows of a user lie in one part, such as a partition or a worker's share of one.
"""

import io
from collections.abc import Iterable, Sequence
from functools import reduce
from typing import Literal, NamedTuple, TypedDict

import numpy as np
import numpy.typing as npt

from llm4msr.arrays import AnyFloats, Bools, Floats, Ints, Singles
from llm4msr.training.score_counts import ScoreCounts
from llm4msr.training.user_metrics import user_metrics

Metric = Literal["auc", "gauc", "logloss", "ndcg_at_10", "recall_at_10", "ece"]
METRICS: tuple[Metric, ...] = ("auc", "gauc", "logloss", "ndcg_at_10", "recall_at_10", "ece")


class Scores(TypedDict):
    """How well rows are ordered and predicted; None where the rows do not define it (one class only, say)."""

    auc: float | None
    gauc: float | None
    """Mean AUC within a user, weighted by rows (Zhu et al., KDD 2017, https://arxiv.org/abs/1703.02091)."""
    logloss: float | None
    """In nats."""
    ndcg_at_10: float | None
    """Mean over the users with both classes of how their own rows are ordered; see `user_metrics`."""
    recall_at_10: float | None
    """Likewise: the share of a user's positives that is among the user's first ten rows."""
    ece: float | None
    """Expected calibration error; see `score_counts`."""


class Metrics(Scores):
    """Scores, and of how many rows."""

    rows: int
    auc_bound: float | None
    """By how much `auc` can be wrong: 0 up to a million different scores, then about 0.00001."""


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
    """Numbers of people, 0 or more: rows of equal ones are one user's."""
    scenario: Ints
    label: Singles
    logit: AnyFloats

    @classmethod
    def none(cls) -> "Predictions":
        """Of no rows."""
        return cls(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32), np.empty(0, np.float32))

    @classmethod
    def concatenate(cls, parts: Sequence["Predictions"]) -> "Predictions":
        """The rows of several batches as one."""
        return cls(*(np.concatenate(column) for column in zip(*parts, strict=True)))


class Sums(NamedTuple):
    """What the metrics of some rows are computed from; P places: each scenario by number, and last all rows."""

    rows_P: Ints
    infinite_P: Ints
    """Rows whose score is not finite: where there are any, there is no metric."""
    loss_P: Floats
    users_PM: Floats
    """Over users with both classes: their number, their rows, and sums of AUC times rows, NDCG and recall."""
    counts: ScoreCounts

    @classmethod
    def of(cls, rows: Predictions, scenarios: int) -> "Sums":
        """Exact sums of these rows; `scenarios` counts the unknown one."""
        finite_B = np.isfinite(rows.logit)
        infinite_P = _count(rows.scenario[~finite_B], scenarios)
        rows_P = _count(rows.scenario, scenarios)
        user_B, scenario_B, label_B, logit_B = (column[finite_B] for column in rows)
        positive_B, x_B = label_B > 0.5, logit_B.astype(np.float64)
        loss_B = np.logaddexp(0, x_B) - x_B * label_B
        loss_P = np.r_[np.bincount(scenario_B, loss_B, scenarios), loss_B.sum()]
        counts = ScoreCounts.of(scenario_B, positive_B, logit_B)
        return cls(rows_P, infinite_P, loss_P, _of_users(user_B, scenario_B, positive_B, logit_B, scenarios), counts)

    @classmethod
    def add(cls, parts: Iterable["Sums"]) -> "Sums":
        """The sums of all parts, of which two are held at a time. No two of them have rows of one user."""
        total = reduce(cls._plus, parts)
        return total._replace(counts=ScoreCounts.add([total.counts]))

    def _plus(self, other: "Sums") -> "Sums":
        return Sums(
            self.rows_P + other.rows_P,
            self.infinite_P + other.infinite_P,
            self.loss_P + other.loss_P,
            self.users_PM + other.users_PM,
            ScoreCounts.add([self.counts, other.counts]),
        )

    def report(self, names: Sequence[str]) -> Report:
        """The metrics of all rows, and of each scenario that has any; `names[i]` is the id of scenario i."""
        scenarios: list[ScenarioMetrics] = [
            {"scenario": number, "scenario_id": names[number], **self._metrics(number, self.counts.of_scenario(number))}
            for number in np.flatnonzero(self.rows_P[:-1]).tolist()
        ]
        return {"overall": self._metrics(-1, self.counts.of_all()), "scenarios": scenarios}

    def _metrics(self, place: int, counts: ScoreCounts) -> Metrics:
        rows = int(self.rows_P[place])
        none: Metrics = {**NO_SCORES, "rows": rows, "auc_bound": None}
        if self.infinite_P[place] or not rows:
            return none
        auc, bound = counts.auc() or (None, None)
        users, user_rows, auc_rows, ndcg, recall = self.users_PM[place].tolist()
        return {
            "auc": auc,
            "gauc": auc_rows / user_rows if users else None,
            "logloss": float(self.loss_P[place]) / rows,
            "ndcg_at_10": ndcg / users if users else None,
            "recall_at_10": recall / users if users else None,
            "ece": counts.calibration_error(),
            "rows": rows,
            "auc_bound": bound,
        }

    def to_bytes(self) -> bytes:
        """For `from_bytes`."""
        file = io.BytesIO()
        np.savez(file, *self[:-1], *map(np.asarray, self.counts))
        return file.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> "Sums":
        """Sums as they were; nothing is unpickled."""
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            rows, infinite, loss, users, *counts, shift = (arrays[name] for name in arrays.files)
        scenario, key, positives, negatives = counts
        return cls(rows, infinite, loss, users, ScoreCounts(scenario, key, positives, negatives, int(shift)))


NO_SCORES: Scores = {
    "auc": None,
    "gauc": None,
    "logloss": None,
    "ndcg_at_10": None,
    "recall_at_10": None,
    "ece": None,
}


def report(predictions: Predictions, names: Sequence[str]) -> Report:
    """The metrics of all rows, and of each scenario that has any, by number; `names[i]` is the id of scenario i.

    Rows with a score that is not finite have no metric.
    """
    return Sums.of(predictions, len(names)).report(names)


def auc(label: npt.ArrayLike, logit: npt.ArrayLike) -> float | None:
    """Probability that a positive row scores above a negative one, ties counting half; `label` and `logit` are [B].

    None with one class only, and where a score is no finite number.
    """
    if not np.isfinite(logit).all():
        return None
    nowhere_B = np.zeros(np.size(label), np.int64)
    value = ScoreCounts.of(nowhere_B, np.asarray(label) > 0.5, np.asarray(logit)).auc()
    return value[0] if value else None


def logloss(label: npt.ArrayLike, logit: npt.ArrayLike) -> float | None:
    """Mean binary cross-entropy in nats; None without rows, and where a score is no finite number."""
    x = np.asarray(logit, np.float64)
    if not x.size or not np.isfinite(x).all():
        return None
    return float(np.mean(np.logaddexp(0, x) - x * np.asarray(label)))


def _count(scenario_B: Ints, scenarios: int) -> Ints:
    return np.r_[np.bincount(scenario_B, minlength=scenarios), len(scenario_B)]


def _of_users(user_B: Ints, scenario_B: Ints, positive_B: Bools, logit_B: AnyFloats, scenarios: int) -> Floats:
    """`Sums.users_PM` of the rows of users as a whole, and of those of each user in each scenario."""
    sums_PM = np.zeros((scenarios + 1, 5))
    user = user_metrics(user_B, positive_B, logit_B)
    columns = (np.ones(len(user.rows_U)), user.rows_U, user.auc_U * user.rows_U, user.ndcg_U, user.recall_U)
    sums_PM[-1] = [column.sum() for column in columns]
    place = user_metrics(user_B * scenarios + scenario_B, positive_B, logit_B)
    columns = (np.ones(len(place.rows_U)), place.rows_U, place.auc_U * place.rows_U, place.ndcg_U, place.recall_U)
    for at, column in enumerate(columns):
        sums_PM[:-1, at] = np.bincount(place.group_U % scenarios, column, scenarios)
    return sums_PM
