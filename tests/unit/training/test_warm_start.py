"""Training that begins with the weights of an earlier one, on data that has grown."""

from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from llm4msr.config import BACKBONES, Config
from llm4msr.errors import ConfigError
from llm4msr.knowledge import item_vectors
from llm4msr.knowledge.item_vectors import ItemVectors
from llm4msr.model.net import RankerNet
from llm4msr.pipeline import extracted, prepare
from llm4msr.storage import StageOutput
from llm4msr.training import loop, train, warm_start
from llm4msr.training.checkpoint import WEIGHTS
from llm4msr.training.dataset import Dataset
from llm4msr.training.row_files import Rows
from tests.support.data import (
    config_of,
    interactions,
    prepare_and_make_knowledge,
    prepared_table,
    publish_knowledge,
    publish_trained,
    write_data,
)


def grown(folder: Path) -> list[list[Any]]:
    """The rows of the earlier data, and later ones of new users, items and a scenario that sorts before the others."""
    later = [[f"a{row[0]}", f"a{row[1]}", "catalogue", *row[3:]] for row in interactions(12, 8, 20, seed=1)]
    return [*interactions(), *later]


def earlier_and_later(folder: Path, **sections: Any) -> tuple[Config, StageOutput, Config]:
    """The config of a finished training, its output, and the config of one on more data that begins with it."""
    first = config_of(write_data(folder / "first"), split={"kind": "time", "by": "user"}, **sections)
    prepare_and_make_knowledge(first)
    trained = publish_trained(first)
    sections["train"] = sections.get("train", {}) | {"warm_start": str(trained.folder)}
    second = config_of(write_data(folder / "second", grown(folder)), split={"kind": "time", "by": "user"}, **sections)
    return first, trained, second


def scores(net: RankerNet, data: Dataset, users: list[str], items: list[str], scenarios: list[str]) -> torch.Tensor:
    """Of each user with each item in each scenario, by raw id."""
    numbers = [
        {raw: number for number, raw in enumerate(prepared_table(data.prepared, table)[column].to_pylist())}
        for table, column in (("users", "user_id"), ("items", "item_id"))
    ]
    triples = [
        (numbers[0][u], numbers[1][i], data.scenario_names.index(s)) for u in users for i in items for s in scenarios
    ]
    columns = torch.tensor(triples).T
    zeros = torch.zeros(len(triples))
    rows = Rows(*columns, label_B=zeros, context_BC=torch.ones((len(triples), 1), dtype=torch.int64))
    net.eval()
    with torch.inference_mode():
        return net(data.batch(rows, net))


def warmed(config: Config) -> tuple[RankerNet, Dataset]:
    data = Dataset.open(config, prepare(config), None)
    net = data.new_net(config)
    warm_start.load_weights(net, config, data)
    return net, data


# AITM's scenarios tell each other by number, in a ring that a new one changes
@pytest.mark.parametrize("backbone", sorted(BACKBONES.keys() - {"aitm"}))
def test_what_the_earlier_model_knew_is_scored_as_before(tmp_path: Path, backbone: str):
    model = {"backbone": backbone, "knowledge": "none"}
    first, trained, second = earlier_and_later(tmp_path, model=model, train={"epochs": 1})
    old = Dataset.open(first, prepare(first), None)
    old_net = old.new_net(first)
    old_net.load_state_dict(safetensors.torch.load(trained.read(WEIGHTS)))
    net, data = warmed(second)
    assert len(data.scenario_names) > len(old.scenario_names)
    raw = (["u1", "u7", ""], ["i0", "i3", ""], ["home", "search", ""])
    torch.testing.assert_close(scores(net, data, *raw), scores(old_net, old, *raw), rtol=0, atol=1e-6)
    unlike = data.new_net(second)
    assert not torch.allclose(scores(unlike, data, *raw), scores(old_net, old, *raw), atol=1e-3)


def test_training_begins_lower_and_its_output_has_another_name(tmp_path: Path):
    _, _, second = earlier_and_later(tmp_path, model={"knowledge": "none"}, train={"epochs": 1})
    anew = second.model_copy(update={"train": second.train.model_copy(update={"warm_start": ""})})
    prepared = prepare(second)
    losses = [loop.fit(c, Dataset.open(c, prepared, None)).progress.history[0]["loss"] for c in (second, anew)]
    assert losses[0] < losses[1]
    assert len({str(train.folder(c, prepared, None)) for c in (second, anew)}) == 2


def test_another_model_is_refused_with_what_to_do(tmp_path: Path):
    _, _, second = earlier_and_later(tmp_path, model={"knowledge": "none"}, train={"epochs": 1})
    other = second.model_copy(update={"model": second.model.model_copy(update={"embedding_dim": 6})})
    with pytest.raises(ConfigError, match=r"train\.warm_start = .*its model is another one .* the same keys"):
        warmed(other)


def test_it_tells_of_weights_that_read_other_vectors_of_the_same_items(tmp_path: Path):
    sections = {"model": {"knowledge": "none", "match": ["cosines"]}, "extract": {"reads": "items"}}
    first, _, second = earlier_and_later(tmp_path, **sections, train={"epochs": 1})
    other = warm_start.warnings(second, *prepare_and_make_knowledge(second))
    assert len(other) == 1
    assert "learned to read other vectors of the same items (mean cosine" in other[0]
    vectors_ID, known_I = item_vectors.read(extracted(second))
    narrow = publish_knowledge(tmp_path / "narrow", {}, items=ItemVectors(vectors_ID[:, :2], known_I))
    (line,) = warm_start.warnings(second, prepare(second), narrow)
    assert "(mean cosine 0.00)" in line
    again = first.model_copy(update={"train": second.train})
    data = prepare(first)
    assert warm_start.warnings(again, data, extracted(again)) == []
    assert warm_start.warnings(first, data, extracted(first)) == []  # begins anew


@pytest.mark.parametrize("place", ["nowhere", "out"])
def test_a_folder_without_a_training_is_refused(tmp_path: Path, place: str):
    config = config_of(write_data(tmp_path), train={"warm_start": str(tmp_path / place)})
    prepared = prepare(config)
    uri = str(prepared.folder) if place == "out" else str(tmp_path / place)
    config = config.model_copy(update={"train": config.train.model_copy(update={"warm_start": uri})})
    with pytest.raises(ConfigError, match="no finished training; give a folder that `train` published"):
        train.folder(config, prepared, None)
