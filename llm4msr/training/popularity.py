"""What every model has to beat before anything is said of it: item popularity, and a constant.

Popularity: an item's score in a scenario is the number of its positives there, of the training rows; items with equal
numbers are ordered by their positives in all scenarios. So an item that nobody liked in training, or that is unknown,
scores lowest, and all such tie. In scenario 0, which stands for those that the training rows lack, the positives of
all scenarios count. The score is no probability, so popularity has neither logloss nor calibration error.

Constant: the share of positives of the scenario's training rows (in scenario 0: of all), whatever user and item are.
It ranks nothing: its AUC is 0.5 wherever there are two classes.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from llm4msr.arrays import Array, Floats, Ints
from llm4msr.data import partitions
from llm4msr.storage import StageOutput
from llm4msr.text import number
from llm4msr.training import metrics
from llm4msr.training.metrics import Metric, Metrics, Predictions, Report, Scores

Counts = tuple[Ints, Ints]
"""Sorted keys [K], and how often each came [K]."""

POPULARITY, CONSTANT = "popularity", "constant"
BASELINES = (CONSTANT, POPULARITY)
ITEMS = 1 << 40
"""A key is scenario * ITEMS + item."""
PENDING = 1 << 22
"""Keys that wait to be added up: what is in memory is bounded by this and the pairs of scenario and item."""


@dataclass(frozen=True)
class Popularity:
    """Counts of the training rows. S scenarios with the unknown one as row 0, B rows."""

    by_pair: Counts
    """Positives by scenario and item."""
    by_item: Counts
    """Positives by item, in all scenarios."""
    rows_S: Ints
    positives_S: Floats

    @classmethod
    def read(cls, prepared: StageOutput, scenarios: int) -> "Popularity":
        """From prepared rows, a row group at a time; `scenarios` counts the unknown one."""
        rows_S, positives_S = np.zeros(scenarios, np.int64), np.zeros(scenarios)
        pending: list[Counts] = []
        for scenario_B, item_B, label_B in _columns(prepared, "train", ["scenario", "item", "label"]):
            rows_S += np.bincount(scenario_B, minlength=scenarios)
            positives_S += np.bincount(scenario_B, label_B, minlength=scenarios)
            liked_B = label_B > 0.5
            pending.append(np.unique(scenario_B[liked_B] * ITEMS + item_B[liked_B], return_counts=True))
            if sum(len(keys) for keys, _ in pending) > PENDING:
                pending = [_add_up(pending)]
        by_pair = _add_up(pending)
        return cls(by_pair, _add_up([(by_pair[0] % ITEMS, by_pair[1])]), rows_S, positives_S)

    def scores(self, scenario_B: Ints, item_B: Ints) -> Floats:
        """float64 [B]: what popularity ranks rows by, from their scenario and item numbers, int64 [B]."""
        all_B = _look_up(self.by_item, item_B)
        scenario_only_B = np.where(scenario_B > 0, _look_up(self.by_pair, scenario_B * ITEMS + item_B), all_B)
        return np.asarray(scenario_only_B + all_B / (1 + self.by_item[1].max(initial=0)), np.float64)

    def log_odds(self, scenario_B: Ints) -> Floats:
        """float64 [B]: the constant's logit; finite, as a share is kept half a row away from none and from all."""
        rows_S, positives_S = self.rows_S.copy(), self.positives_S.copy()
        rows_S[0], positives_S[0] = rows_S.sum(), positives_S.sum()
        rows_S = np.maximum(rows_S, 1)
        rate_S = np.clip(positives_S / rows_S, 0.5 / rows_S, 1 - 0.5 / rows_S)
        return np.asarray(np.log(rate_S / (1 - rate_S))[scenario_B], np.float64)


def reports(prepared: StageOutput, part: str, names: Sequence[str]) -> dict[str, Report]:
    """Of each baseline, the same as `metrics.report` gives of a model: on `valid` or `test` of prepared data."""
    counts = Popularity.read(prepared, len(names))
    user_B, scenario_B, item_B, label_B = (
        np.concatenate(column)
        for column in zip(*_columns(prepared, part, ["user", "scenario", "item", "label"]), strict=True)
    )

    def report(logit_B: Floats) -> Report:
        return metrics.report(Predictions(user_B, scenario_B, label_B, logit_B), names)

    popular, constant = report(counts.scores(scenario_B, item_B)), report(np.zeros(len(label_B)))
    for place in _places(popular):
        place["logloss"] = place["ece"] = None
    for place, likely in zip(_places(constant), _places(report(counts.log_odds(scenario_B))), strict=True):
        place["logloss"], place["ece"] = likely["logloss"], likely["ece"]
    return {CONSTANT: constant, POPULARITY: popular}


def warnings(name: str, model: Scores, baselines: Mapping[str, Scores], rows: str) -> list[str]:
    """What to say of a model that loses to a baseline; all are the overall metrics on the same `rows`."""
    lines = []
    for baseline, description in ((POPULARITY, "item popularity within the scenario"), (CONSTANT, "a constant")):
        losses = [
            f"{label} {number(model[metric])} against {number(baselines[baseline][metric])}"
            for metric, label, sign in _COMPARED
            if _loses(model[metric], baselines[baseline][metric], sign)
        ]
        if losses:
            lines.append(f"'{name}' loses to {description} on the {rows} rows: {', '.join(losses)}. {_REMEDY}")
    return lines


_COMPARED: tuple[tuple[Metric, str, int], ...] = (
    ("auc", "AUC", 1),
    ("gauc", "GAUC", 1),
    ("logloss", "logloss", -1),
)
"""Each metric, its label, and whether more of it is better (1) or worse (-1)."""
_REMEDY = (
    "Do not serve it as it is: look in its history.json whether valid_auc still rises (train.epochs, train.patience), "
    "try another train.learning_rate, and check labels and split of the prepared data"
)


def phrase(scores: Scores) -> str:
    """The overall metrics of a model or baseline, to stand within a sentence."""
    return f"AUC {number(scores['auc'])}, GAUC {number(scores['gauc'])}, logloss {number(scores['logloss'])}"


def _loses(model: float | None, baseline: float | None, sign: int) -> bool:
    """Whether the baseline is better; a model whose scores are not finite has no metric, which is worse than any."""
    return baseline is not None and (model is None or sign * model < sign * baseline)


def _places(report: Report) -> list[Metrics]:
    return [report["overall"], *report["scenarios"]]


def _columns(prepared: StageOutput, part: str, names: list[str]) -> Iterator[tuple[Array, ...]]:
    """These columns of each row group."""
    for partition in range(partitions.count(prepared)):
        with partitions.parquet(prepared, part, partition) as parquet:
            for group in range(parquet.num_row_groups):
                table = partitions.number(prepared, parquet.read_row_group(group, names), partition)
                yield tuple(table[name].to_numpy() for name in names)


def _add_up(parts: Sequence[Counts]) -> Counts:
    keys, place = np.unique(np.concatenate([keys for keys, _ in parts]), return_inverse=True)
    counts = np.bincount(place, np.concatenate([counts for _, counts in parts]), len(keys))
    return keys, counts.astype(np.int64)


def _look_up(counts: Counts, key_B: Ints) -> Ints:
    """How often each key came; 0 where it did not."""
    keys, times = counts
    if not len(keys):
        return np.zeros(len(key_B), np.int64)
    place_B = np.minimum(np.searchsorted(keys, key_B), len(keys) - 1)
    return np.where(keys[place_B] == key_B, times[place_B], 0)
