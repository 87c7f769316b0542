"""What the layers of knowledge move: the same trained net, with a level left out as it scores.

That says what a level does in this net, and nothing of what knowledge brings: a net that was trained with its levels
leans on them. For that see `effect`, which compares with a plain model.
"""

from dataclasses import dataclass

import numpy as np

from llm4msr.arrays import Floats
from llm4msr.explain.ablation import Levels, by_level
from llm4msr.explain.opened_run import Opened
from llm4msr.model.net import RankerNet
from llm4msr.training import metrics
from llm4msr.training.batches import to_batch
from llm4msr.training.dataset import Data


@dataclass(frozen=True)
class Part:
    """What the levels do to the logits of a scenario's test rows: mean absolute parts."""

    scenario: int | None
    """None of all; 0 of those that the training rows lack."""
    name: str
    user: float
    own: float
    """Of the user level: what is the users' own."""
    scenario_level: float


@dataclass(frozen=True)
class LayerSection:
    """What the page shows."""

    parts: list[Part]
    left_out: list[tuple[str, float | None]]
    """AUC of the same net with levels left out, the mean over the seeds; last the plain model, where it is trained."""


def layer_section(run: Opened, levels: list[Levels], plain: list[Floats]) -> LayerSection:
    """From the logits of all test rows: of each seed with levels left out, and of each seed's plain model."""
    return LayerSection(_parts(run, levels[0]), _left_out(run, levels, plain))


def levels_of(net: RankerNet, data: Data, batch_size: int) -> Levels:
    """Logits of all test rows with each level in and out."""
    parts = []
    for rows, _ in data.rows("test").batches(batch_size, None):
        parts.append(by_level(net, to_batch(rows, data.tables, data.knowledge if net.uses_users else None)))
    return Levels.merged(parts)


def _parts(run: Opened, levels: Levels) -> list[Part]:
    scenario_B = run.test["scenario"].to_numpy()
    parts_B = [np.abs(part) for part in (levels.user_part, levels.own_part, levels.scenario_part)]
    found = [Part(None, "all test rows", *(float(part.mean()) for part in parts_B))]
    for number in np.unique(scenario_B).tolist():
        here = (float(part[scenario_B == number].mean()) for part in parts_B)
        found.append(Part(number, run.scenario_names[number], *here))
    return found


def _left_out(run: Opened, levels: list[Levels], plain: list[Floats]) -> list[tuple[str, float | None]]:
    label_B = run.test["label"].to_numpy()

    def mean_auc(logits: list[Floats]) -> float | None:
        values = [value for logit in logits if (value := metrics.auc(label_B, logit)) is not None]
        return float(np.mean(values)) if values else None

    wanted = [("this model", "both")]
    both_levels = run.net.uses_users and run.net.has_scenario_level
    if run.net.user_level_is_added:
        wanted += [("every user as one without knowledge", "default_both")]
    if both_levels:
        wanted += [("without its scenario level", "user"), ("without its user level", "scenario")]
    wanted += [("without both levels" if both_levels else "without its level", "none")]
    rows = [(name, mean_auc([getattr(one, level) for one in levels])) for name, level in wanted]
    return [*rows, ("the plain model, trained on its own", mean_auc(plain))] if plain else rows
