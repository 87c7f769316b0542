"""Users' features by partition, and what becomes of their ids; how bundles serve them is in export/test_export.py."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from llm4msr.arrays import Ints, strings
from llm4msr.config import Config, ModelConfig
from llm4msr.data import catalogue, partitions
from llm4msr.storage import StageOutput
from llm4msr.training.dataset import Dataset
from llm4msr.training.feature_tables import FeatureTables
from llm4msr.training.loop import fit
from llm4msr.training.user_features import UserFeatures
from tests.support.data import config_of, interactions, prepared_table, write_data
from tests.support.partitioned import split
from tests.unit.conftest import World


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> StageOutput:
    """40 users of training rows and 5 that are only described; they have a country and up to three hobbies."""
    from llm4msr.pipeline import prepare

    folder = write_data(tmp_path_factory.mktemp("users"), interactions())
    described = {
        "user_id": [f"u{u}" for u in range(45)],
        "country": ["de" if u % 3 else "fr" for u in range(45)],
        "hobbies": [["chess", "go", "tea"][: u % 4] for u in range(45)],
    }
    pq.write_table(pa.table(described), folder / "users.parquet")
    table = {"users": "users.parquet", "user_features": ["country", "hobbies"]}
    return prepare(config_of(folder, table=table))


def numbers_by_id(data: StageOutput, **model: Any) -> dict[str, Ints]:
    """The numbers of each user's fields by the user's raw id."""
    features = UserFeatures(data, ModelConfig(**model))
    tables = partitions.read_each(data, "users", ["user_id"])
    return {
        raw_id: numbers
        for partition, table in enumerate(tables)
        for raw_id, numbers in zip(strings(table["user_id"]), features.numbers(partition), strict=True)
    }


@pytest.mark.parametrize("total", [2, 16])
@pytest.mark.parametrize("kind", ["whole", "hashed", "none"])
def test_partitions_give_what_one_gives(data: StageOutput, tmp_path: Path, kind: str, total: int):
    whole = numbers_by_id(data, user_embedding=kind, user_embedding_rows=7)
    parts = numbers_by_id(split(data, tmp_path, total), user_embedding=kind, user_embedding_rows=7)
    assert whole.keys() == parts.keys()
    for raw_id, numbers in whole.items():
        padded = parts[raw_id]
        assert padded[: len(numbers)].tolist() == numbers.tolist()
        assert not padded[len(numbers) :].any(), "lists have room for the longest that there can be"


def test_a_user_of_training_rows_has_an_embedding_and_others_are_unknown(data: StageOutput):
    trained = set(strings(prepared_table(data, "histories")["user_id"]))
    assert len(trained) == 40
    for kind, most in (("whole", 40), ("hashed", 7)):
        found = numbers_by_id(data, user_embedding=kind, user_embedding_rows=7)
        numbers = {raw_id: int(row[0]) for raw_id, row in found.items()}
        assert {raw_id for raw_id, number in numbers.items() if number} == trained
        assert max(numbers.values()) <= most
        assert len(set(numbers.values()) - {0}) >= most - 1
        (field, *_) = UserFeatures(data, ModelConfig(user_embedding=kind, user_embedding_rows=7)).fields
        assert (field.name, field.size) == ("user_id", most + 1)


def test_a_hashed_number_is_that_of_the_raw_id_whoever_else_there_is(data: StageOutput, world: World):
    model = {"user_embedding": "hashed", "user_embedding_rows": 1000}
    one, two = numbers_by_id(data, **model), numbers_by_id(world.data, **model)
    both = [raw_id for raw_id in one if raw_id and raw_id in two]
    assert len(both) == 40
    assert all(one[raw_id][0] == two[raw_id][0] > 0 for raw_id in both)


@pytest.mark.parametrize(("rows", "hashed"), [(40, 0), (39, 39)])
def test_by_default_ids_are_hashed_where_there_are_more_than_rows(data: StageOutput, rows: int, hashed: int):
    assert UserFeatures(data, ModelConfig(user_embedding_rows=rows)).hashed_rows == hashed
    assert catalogue.field_sizes(data)["user"]["user_id"] == 40


def test_without_ids_only_features_are_left(data: StageOutput):
    features = UserFeatures(data, ModelConfig(user_embedding="none"))
    assert [field.name for field in features.fields] == ["country", "hobbies"]


def test_a_partition_of_users_is_read_when_a_row_of_it_comes(data: StageOutput, tmp_path: Path):
    """The other files are gone."""
    parts = split(data, tmp_path, 4)
    tables, offset_P = FeatureTables.open(parts), partitions.offsets(parts, "users")
    for partition in (0, 1, 3):
        (tmp_path / partitions.file_name("users", partition)).unlink()
    inside = np.arange(offset_P[2], offset_P[3])
    assert tables.users.take(inside).shape == (len(inside), tables.user_slots)


@pytest.mark.parametrize("kind", ["whole", "hashed", "none"])
@pytest.mark.parametrize("total", [1, 4])
def test_every_kind_trains_on_partitions(world: World, tmp_path: Path, kind: str, total: int):
    model = world.config.model.model_copy(
        update={"user_embedding": kind, "user_embedding_rows": 7, "knowledge": "none", "dropout": 0.0}
    )
    config: Config = world.config.model_copy(update={"model": model})
    parts = split(world.data, tmp_path, total)
    last = fit(config, Dataset.open(config, parts, None)).progress
    assert last.best_auc is not None
    assert last.best_auc > 0.7


def test_slots_of_users_lie_in_their_fields(data: StageOutput):
    tables = FeatureTables.open(data, ModelConfig(user_embedding="hashed", user_embedding_rows=7))
    nothing = torch.zeros(len(tables.users), dtype=torch.int64)
    slots = tables.slots(torch.arange(len(tables.users)), nothing, nothing, torch.zeros((len(nothing), 1), dtype=int))
    starts = np.cumsum([0, *(field.size for field in tables.fields)])
    assert slots[:, 0].max() < starts[1] <= slots[:, 1].min() <= slots[:, 1].max() < starts[2] <= slots[:, 2].min()
    assert slots.dtype == torch.int64
