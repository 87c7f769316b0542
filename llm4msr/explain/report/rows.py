"""The test rows with what every model says of them, as `evaluate` published it, and how new each row is to training.

Shape suffixes: B test rows, S seeds.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa

from llm4msr.arrays import Bools, Floats, Ints
from llm4msr.data import partitions
from llm4msr.explain.report.bootstrap import sample_users
from llm4msr.storage import StageOutput
from llm4msr.training import predictions
from llm4msr.training.dataset import scenario_names
from llm4msr.training.popularity import Popularity
from llm4msr.training.results import UNKNOWN
from llm4msr.training.trained import TrainedModel

NEW = 5
"""A user with fewer training rows is new."""


class ScoredRows(NamedTuple):
    """The test rows of one seed; where seeds share their data, all seeds' are the same but for the logits."""

    seed: int
    user_B: Ints
    """Their numbers in this seed's data."""
    owner_B: Ints
    """The users by a number that is the same in all seeds."""
    scenario_B: Ints
    """By the number that the first seed has for it: 0 is unknown, -1 unknown to that seed alone."""
    label_B: Bools
    popularity_B: Floats
    """What item popularity ranks by."""
    user_rows_B: Ints
    """Training rows of the user."""
    item_likes_B: Ints
    """Positives of the item in the training rows."""
    is_met_B: Bools
    """Whether the training rows have the user in this scenario."""
    logits: dict[str, Floats]
    """float64 [B] by variant."""

    def take(self, mask_B: Bools) -> "ScoredRows":
        """The rows of the mask."""
        logits = {name: logit_B[mask_B] for name, logit_B in self.logits.items()}
        return ScoredRows._make([self.seed, *(column[mask_B] for column in self[1:-1]), logits])


def read_rows(evaluation: StageOutput, models: Sequence[TrainedModel], numbers: Sequence[int]) -> list[ScoredRows]:
    """Those of each seed, the first model's seed first, of these partitions; of very many those of some users.

    Raises:
        StorageError: a file is missing or damaged.
    """
    by_seed: dict[int, list[TrainedModel]] = {}
    for model in models:
        by_seed.setdefault(model.config.seed, []).append(model)
    names = scenario_names(models[0].prepared)
    parts = [read_seed(evaluation, own, numbers, names) for own in by_seed.values()]
    ids = [
        np.array(partitions.raw_ids(part_of[0].prepared, rows.user_B), object)  # as text each has room for the longest
        for part_of, rows in zip(by_seed.values(), parts, strict=True)
    ]
    owner_SB = _owners(ids)
    mask_SB = sample_users(owner_SB)
    owner_SB = _owners([owner_B[mask_B] for owner_B, mask_B in zip(owner_SB, mask_SB, strict=True)])
    kept = [rows.take(mask_B) for rows, mask_B in zip(parts, mask_SB, strict=True)]
    return [rows._replace(owner_B=owner_B) for rows, owner_B in zip(kept, owner_SB, strict=True)]


def read_seed(
    evaluation: StageOutput, models: Sequence[TrainedModel], numbers: Sequence[int], names: Sequence[str]
) -> ScoredRows:
    """The rows of models of one seed; `names` are the ids by the scenario numbers that are wanted."""
    prepared, seed = models[0].prepared, models[0].config.seed
    own_names = scenario_names(prepared)
    files = [_file(evaluation, seed, number) for number in numbers]
    scores = pa.concat_tables(
        evaluation.table(file, [predictions.column_of(model) for model in models]) for file in files
    )
    test = _read(prepared, "test", numbers, ["user", "item", "scenario", "label"])
    train = _read(prepared, "train", numbers, ["user", "scenario"])
    user_B, item_B, scenario_B = (test[name].to_numpy() for name in ("user", "item", "scenario"))
    popularity = Popularity.read(prepared, len(own_names))
    places = {name: number for number, name in enumerate(names)}
    pairs = np.unique(train["user"].to_numpy() * len(own_names) + train["scenario"].to_numpy())
    counts = train["user"].value_counts()
    return ScoredRows(
        seed=seed,
        user_B=user_B,
        owner_B=user_B,
        scenario_B=np.array([places.get(name, -1) for name in own_names])[scenario_B],
        label_B=test["label"].to_numpy() > 0.5,
        popularity_B=popularity.scores(scenario_B, item_B),
        user_rows_B=np.asarray(counts.reindex(user_B, fill_value=0), np.int64),
        item_likes_B=popularity.scores(np.zeros_like(scenario_B), item_B).astype(np.int64),  # its fraction breaks ties
        is_met_B=np.isin(user_B * len(own_names) + scenario_B, pairs),
        logits={model.variant: scores[predictions.column_of(model)].to_numpy().astype(np.float64) for model in models},
    )


def row_groups(seeds: Sequence[ScoredRows], names: Sequence[str]) -> list[tuple[str, int | None, str, list[Bools]]]:
    """Kind, scenario number, name and masks [B] of each group that has rows."""
    few = int(np.quantile(seeds[0].item_likes_B, 0.25)) if len(seeds[0].item_likes_B) else 0
    seen = seeds[0].user_rows_B[seeds[0].user_rows_B >= NEW]
    middle = int(np.median(seen)) if len(seen) else NEW
    tests: list[tuple[str, str, Callable[[ScoredRows], Bools]]] = [
        ("user", f"under {NEW} training rows", lambda rows: rows.user_rows_B < NEW),
        ("user", f"{NEW} to {middle} training rows", lambda r: (r.user_rows_B >= NEW) & (r.user_rows_B <= middle)),
        ("user", f"over {middle} training rows", lambda rows: rows.user_rows_B > middle),
        ("item", f"{few} likes in training or fewer", lambda rows: rows.item_likes_B <= few),
        ("item", "more likes", lambda rows: rows.item_likes_B > few),
        ("met", "no training row of the user in the scenario", lambda rows: ~rows.is_met_B),
        ("met", "some training rows of the user in the scenario", lambda rows: rows.is_met_B),
    ]
    groups: list[tuple[str, int | None, str, list[Bools]]] = [
        ("scenario", number, name if number else UNKNOWN, [rows.scenario_B == number for rows in seeds])
        for number, name in enumerate(names)
    ]
    groups += [(kind, None, name, [test(rows) for rows in seeds]) for kind, name, test in tests]
    return [group for group in groups if any(mask_B.any() for mask_B in group[-1])]


def _owners(ids_SB: Sequence[np.ndarray]) -> list[Ints]:
    """The ids as numbers from 0 on."""
    owner_B, _ = pd.factorize(np.concatenate(ids_SB))
    return np.split(owner_B.astype(np.int64), np.cumsum([len(ids_B) for ids_B in ids_SB])[:-1])


def _file(evaluation: StageOutput, seed: int, number: int) -> str:
    shared = partitions.file_name(predictions.FOLDER, number)
    own = partitions.file_name(f"{predictions.FOLDER}/seed={seed}", number)
    return own if own in evaluation.manifest.files else shared


def _read(prepared: StageOutput, table: str, numbers: Sequence[int], columns: list[str]) -> pd.DataFrame:
    return pa.concat_tables(partitions.read(prepared, table, n, columns) for n in numbers).to_pandas()
