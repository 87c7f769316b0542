"""`train.warm_start`: begin with the weights of an earlier training, though there are more users, items and values now.

Each prepared data numbers its ids and values anew. So an embedding, and all that a backbone keeps for each scenario, is
taken over by what it stands for: the raw id or the value. What the earlier data did not have begins untrained.

Shape suffixes: M matches, S scenarios, D numbers of an item's vector.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import safetensors.torch
import torch
from torch import Tensor, nn

from llm4msr import storage
from llm4msr.arrays import Column, Ints
from llm4msr.config import Config
from llm4msr.config.model import ModelConfig
from llm4msr.data import partitions
from llm4msr.errors import ConfigError
from llm4msr.knowledge import item_vectors
from llm4msr.model import backbones
from llm4msr.model.embedding import Field
from llm4msr.model.net import RankerNet
from llm4msr.storage import StageOutput
from llm4msr.training.checkpoint import WEIGHTS
from llm4msr.training.dataset import Dataset, scenario_names
from llm4msr.training.feature_tables import FeatureTables
from llm4msr.training.user_features import UserFeatures

_TABLE = "embedding.table.weight"
ALIKE = 0.9
"""Mean cosine of items' vectors now and then, from which weights that read those still make sense of these."""
COMPARED = 1 << 16
"""Items, about, whose vectors are compared."""
_PER_DATA = "scenarios_SZ"
"""The scenarios' vectors, which are the new knowledge's."""


class Matches(NamedTuple):
    """Numbers of one field that stand for the same in two prepared data: int64 [M] each."""

    new_M: Ints
    old_M: Ints


def weights_checksum(config: Config) -> str:
    """Of the weights that training begins with; empty where it begins with none.

    Raises:
        ConfigError: no training has ended at that URI.
    """
    return _open(config).checksum(WEIGHTS) if config.train.warm_start else ""


def load_weights(net: RankerNet, config: Config, data: Dataset) -> None:
    """Copy into the net what the earlier training knows of it.

    Raises:
        ConfigError: the earlier training has another model, or its data is gone.
    """
    trained = _open(config)
    uri = config.train.warm_start
    prepared = _published_beside(trained, "prepare")
    if prepared is None:
        raise ConfigError(f"train.warm_start = {uri!r}: the data that it was trained on is gone; prepare that again")
    old = safetensors.torch.load(trained.read(WEIGHTS))
    weights = net.state_dict()
    scenarios = _match(pa.array(data.scenario_names), pa.array(scenario_names(prepared)))
    per_scenario = ScenarioTensors(net.backbone, net.width, net.scenarios, config.model)
    try:
        for name in weights.keys() - {_TABLE, _PER_DATA}:
            per_scenario.copy(name, weights, old, scenarios)
        _copy_embeddings(weights[_TABLE], old[_TABLE], data, prepared, scenarios, config.model)
    except (KeyError, RuntimeError) as error:
        raise ConfigError(
            f"train.warm_start = {uri!r}: its model is another one ({error}); give `model` the same keys"
        ) from None


def warnings(config: Config, data: StageOutput, knowledge: StageOutput | None) -> list[str]:
    """A line where items' vectors no longer have the numbers that the earlier weights learned to read."""
    if not config.train.warm_start or knowledge is None or item_vectors.FILE not in knowledge.manifest.files:
        return []
    trained = _open(config)
    known = _published_beside(trained, "extract")
    prepared = _published_beside(trained, "prepare")
    if known is None or prepared is None or item_vectors.FILE not in known.manifest.files:
        return []
    matches = _match(*(output.table("items.parquet", ["item_id"])["item_id"] for output in (data, prepared)))
    some = slice(None, None, max(1, len(matches.new_M) // COMPARED))
    new, old = (item_vectors.read(one) for one in (knowledge, known))
    new_MD, old_MD = new.vectors_ID[matches.new_M[some]], old.vectors_ID[matches.old_M[some]]
    both_M = new.known_I[matches.new_M[some]] & old.known_I[matches.old_M[some]]
    if not both_M.any():
        return []
    cosine = 0.0
    if new_MD.shape[1] == old_MD.shape[1]:
        unit_MD, old_unit_MD = (item_vectors.of_unit_length(one_MD[both_M]) for one_MD in (new_MD, old_MD))
        cosine = float((unit_MD.astype(np.float32) * old_unit_MD).sum(axis=1).mean())
    if cosine >= ALIKE:
        return []
    return [
        f"train.warm_start = {config.train.warm_start!r}: its weights learned to read other vectors of the same items "
        f"(mean cosine {cosine:.2f}): these were fitted anew, or come from elsewhere. Train without it too, and compare"
    ]


def _published_beside(trained: StageOutput, stage: str) -> StageOutput | None:
    """What that training read of a stage; None if it read nothing or that is gone."""
    name = trained.manifest.inputs.get(stage)
    return storage.open_output(trained.folder.parent.parent / stage / name) if name else None


def _open(config: Config) -> StageOutput:
    output = storage.open_output(storage.path(config.train.warm_start))
    if output is None or output.manifest.stage != "train":
        where = f"train.warm_start = {config.train.warm_start!r}"
        raise ConfigError(f"{where}: no finished training; give a folder that `train` published")
    return output


class ScenarioTensors:
    """Which tensors of a backbone have a part for each scenario: those that another number of scenarios changes."""

    def __init__(self, backbone: nn.Module, width: int, scenarios: int, config: ModelConfig):
        """Build the backbone with one more scenario, and compare."""
        own, larger = backbone.state_dict(), backbones.build(width, scenarios + 1, config).state_dict()
        self._axes = {f"backbone.{name}": _changed_axis(own[name], larger[name]) for name in own}
        self._members: dict[str, tuple[str, int, str]] = {}
        for added in larger.keys() - own.keys():
            for before, after in _around(added, scenarios):
                names = {f"{before}{number}{after}": number for number in range(scenarios)}
                if names.keys() <= own.keys():
                    members = {f"backbone.{name}": (before, number, after) for name, number in names.items()}
                    self._members |= members

    def copy(self, name: str, weights: dict[str, Tensor], old: dict[str, Tensor], scenarios: Matches) -> None:
        """Copy one tensor, or the parts of it whose scenarios the earlier training had too."""
        axis = self._axes.get(name)
        if name in self._members:
            before, number, after = self._members[name]
            for old_number in scenarios.old_M[scenarios.new_M == number].tolist():
                weights[name].copy_(old[f"backbone.{before}{old_number}{after}"])
        elif axis is None:
            weights[name].copy_(old[name])
        else:
            new_M, old_M = (torch.from_numpy(numbers) for numbers in scenarios)
            weights[name].index_copy_(axis, new_M, old[name].index_select(axis, old_M))


def _around(name: str, number: int) -> Iterator[tuple[str, str]]:
    """What stands before and after a number, wherever a tensor's name has it: modules in a list are numbered."""
    for match in re.finditer(rf"(?<=\.){number}(?=\.)", name):
        yield name[: match.start()], name[match.end() :]


def _changed_axis(tensor: Tensor, larger: Tensor) -> int | None:
    changed = [axis for axis, (a, b) in enumerate(zip(tensor.shape, larger.shape, strict=True)) if a != b]
    return changed[0] if changed else None


def _copy_embeddings(
    table: Tensor,
    old_table: Tensor,
    data: Dataset,
    prepared: StageOutput,
    scenarios: Matches,
    model: ModelConfig,
) -> None:
    """Rows of the embedding table, field by field."""
    old_fields = FeatureTables.open(prepared, model).fields
    old_starts = dict(zip([(f.side, f.name) for f in old_fields], _starts(old_fields), strict=True))
    for field, start in zip(data.tables.fields, _starts(data.tables.fields), strict=True):
        old_start = old_starts.get((field.side, field.name))
        if old_start is None:
            continue
        matches = _matches(field, data.prepared, prepared, model)
        for new_M, old_M in [scenarios] if field.side == "scenario" else matches:
            table[torch.from_numpy(start + new_M)] = old_table[torch.from_numpy(old_start + old_M)]


def _starts(fields: list[Field]) -> list[int]:
    starts: list[int] = np.cumsum([0, *(field.size for field in fields)]).tolist()
    return starts[:-1]


def _matches(field: Field, new: StageOutput, old: StageOutput, model: ModelConfig) -> Iterator[Matches]:
    """The unknown value, and then those that both have; of users, partition by partition."""
    yield Matches(np.zeros(1, np.int64), np.zeros(1, np.int64))
    if (field.side, field.name) == ("user", "user_id"):
        yield from _user_matches(new, old, model)
    elif (field.side, field.name) == ("item", "item_id"):
        items, old_items = (output.table("items.parquet", ["item_id", "f:item_id"]) for output in (new, old))
        yield _match_ids(items, old_items, "item_id")
    else:
        values, old_values = (output.json("fields.json")[field.side].get(field.name, []) for output in (new, old))
        yield _match(pa.array(["", *values], pa.string()), pa.array(["", *old_values], pa.string()))


def _user_matches(new: StageOutput, old: StageOutput, model: ModelConfig) -> Iterator[Matches]:
    count, old_count = partitions.count(new), partitions.count(old)
    features, old_features = UserFeatures(new, model), UserFeatures(old, model)
    for partition in range(count):
        users = features.ids(partition)
        first = partition * old_count // count
        for other in range(first, max((partition + 1) * old_count // count, first + 1)):
            yield _match_ids(users, old_features.ids(other), "user_id")


def _match_ids(new: pa.Table, old: pa.Table, key: str) -> Matches:
    """Of the ids that have an embedding."""
    trained, old_trained = (table.filter(pc.greater(table[f"f:{key}"], pa.scalar(0))) for table in (new, old))
    places = _match(trained[key], old_trained[key])
    numbers, old_numbers = (table[f"f:{key}"].to_numpy() for table in (trained, old_trained))
    return Matches(numbers[places.new_M], old_numbers[places.old_M])


def _match(words: Column, old_words: Column) -> Matches:
    """Of words whose places are their numbers."""
    places = pc.index_in(words, value_set=old_words.cast(words.type))
    return Matches(np.flatnonzero(places.is_valid()), np.asarray(places.drop_null(), np.int64))
