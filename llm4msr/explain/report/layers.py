"""What the layers of knowledge move: the same trained net, scored with levels left out.

This tells what a level does in this net, not what knowledge brings, since a net that was trained with its levels leans
on them. What knowledge brings is the subject of `effect`, which compares with a plain model.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from llm4msr.arrays import Floats
from llm4msr.explain.ablation import Levels, score_levels
from llm4msr.explain.finished_run import FinishedRun
from llm4msr.explain.report.tables import Table
from llm4msr.model.net import RankerNet
from llm4msr.training import metrics
from llm4msr.training.dataset import Dataset


@dataclass(frozen=True)
class LevelParts:
    """Mean absolute parts of the logits of a scenario's test rows; the fields are the columns of levels.csv."""

    scenario: int | None
    """None for all rows, 0 for scenarios that the training rows lack."""
    name: str
    user: float
    own: float
    """What of the user level's part comes from the users' own knowledge."""
    scenario_level: float


@dataclass(frozen=True)
class LayerSection:
    """What the page shows."""

    parts: list[LevelParts]
    left_out: list[tuple[str, float | None]]
    """Mean AUC over the seeds of the same net with levels left out; last the plain model, where it is trained."""

    def tables(self) -> dict[str, Table]:
        """One row per scenario."""
        rows = pd.DataFrame(self.parts).astype({"scenario": "Int64"})
        return {"levels.csv": Table("how far each level moves the logits", rows)}


def layer_section(run: FinishedRun, levels: list[Levels], plain: list[Floats]) -> LayerSection:
    """From the logits, float64 [B], of all test rows: each seed's with levels left out, and its plain model's."""
    return LayerSection(_parts(run, levels[0]), _left_out(run, levels, plain))


def score_test_levels(net: RankerNet, data: Dataset, batch_size: int, partitions: Sequence[int]) -> Levels:
    """Logits of all test rows of these partitions, with each level in and out."""
    rows = data.rows("test")
    batches = (batch for partition in partitions for batch in rows.in_file_order(batch_size, partition))
    return Levels.concatenate([score_levels(net, data.batch(batch, net)) for batch in batches])


def _parts(run: FinishedRun, levels: Levels) -> list[LevelParts]:
    scenario_B = run.test["scenario"].to_numpy()
    parts_LB = [np.abs(part) for part in (levels.user_part, levels.own_part, levels.scenario_part)]
    rows = [LevelParts(None, "all test rows", *(float(part_B.mean()) for part_B in parts_LB))]
    for number in np.unique(scenario_B).tolist():
        means = (float(part_B[scenario_B == number].mean()) for part_B in parts_LB)
        rows.append(LevelParts(number, run.scenario_names[number], *means))
    return rows


def _left_out(run: FinishedRun, levels: list[Levels], plain: list[Floats]) -> list[tuple[str, float | None]]:
    label_B = run.test["label"].to_numpy()

    def mean_auc(logits: list[Floats]) -> float | None:
        values = [value for logit in logits if (value := metrics.auc(label_B, logit)) is not None]
        return float(np.mean(values)) if values else None

    models = [("this model", "both")]
    both_levels = run.net.uses_users and run.net.has_scenario_level
    if run.net.user_level_is_added:
        models += [("every user as one without knowledge", "default_both")]
    if both_levels:
        models += [("without its scenario level", "user"), ("without its user level", "scenario")]
    models += [("without both levels" if both_levels else "without its level", "none")]
    rows = [(name, mean_auc([getattr(logits, level) for logits in levels])) for name, level in models]
    return [*rows, ("the plain model, trained on its own", mean_auc(plain))] if plain else rows
